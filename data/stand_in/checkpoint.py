"""A small random checkpoint in the layout of the released ones: what DreamZero's own code would
open, with every file, and weights that have learnt nothing.

Owns sizes and numbers; what the files hold is in `wam_jax/interop/dreamzero`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import storage
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop.dreamzero import layout
from wam_jax.interop.dreamzero import serving
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import safetensors

# The rules of the 5B, with the smallest sizes that they allow, and smaller frames; in float32, as
# processors compute.
MODEL = dataclasses.replace(
  presets.WAN2_2_TI2V_5B,
  dim=32,
  mlp_dim=64,
  num_heads=2,
  num_layers=2,
  image_dim=32,
  image_tokens=5,
  freq_dim=16,
  action_hidden=32,
  dtype='float32',
  tokenizer=dataclasses.replace(
    presets.WAN2_2_TI2V_5B.tokenizer, resize=(64, 128), vae=cfg.VAEConfig(4, 8)
  ),
  text=cfg.TextConfig(
    'umt5', vocab=64, length=64, dim=32, layers=1, heads=4, attention_dim=32, mlp_dim=32, buckets=8
  ),
  image=cfg.ImageConfig(
    'clip', size=14, patch=7, dim=32, heads=16, layers=2, mlp_ratio=2, out_dim=8
  ),
)
_DTYPE = np.dtype(ml_dtypes.bfloat16)
_SPECIAL = ('<pad>', '</s>', '<unk>')  # UMT5's, in its order.


def write(output: pathlib.Path, robot: robot_lib.Robot, seed: int) -> None:
  """The checkpoint of one robot, with its statistics; appears when all of it is there.

  Raises:
    ValueError: `output` is there already.
  """
  config = dataclasses.replace(
    cfg.TrainConfig(), model=MODEL, flow=foreign.FLOW, sample=foreign.SAMPLE
  )
  shapes = {}
  for part, table in foreign.make_tables(MODEL, 'dreamzero').items():
    for row in table:
      for name in row.names:
        shapes[layout.PREFIXES[part] + name] = lazy.Shape(row.torch_shape, _DTYPE)

  rng = np.random.default_rng(seed)
  with storage.whole_directory(output) as partial:
    layout.write_configs(partial, config, {'oxe_droid': robot}, serving.Serving(), _DTYPE.name)
    jsonfile.write(partial / 'tokenizer.json', _make_vocabulary())
    with safetensors.Writer(partial, layout.STEM, shapes, shard_bytes=10**9) as writer:
      for name, shape in shapes.items():
        writer.write(name, _draw(name, shape.shape, rng).astype(_DTYPE))


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  """Numbers that keep activations at about their size, as those of a new network do."""
  numbers = rng.standard_normal(shape, np.float32)
  if len(shape) > 1:
    return numbers / math.sqrt(math.prod(shape[1:]))
  scales = name.endswith(('weight', 'gamma'))
  return 0.1 * numbers + scales


def _make_vocabulary() -> dict[str, Any]:
  """What tokenizer.json holds of a vocabulary of letters."""
  letters = [chr(code) for code in range(ord('a'), ord('z') + 1)]
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  special = [
    {'id': number, 'content': token, 'special': True, **dict.fromkeys(flags, False)}
    for number, token in enumerate(_SPECIAL)
  ]
  tokens = [*_SPECIAL, '▁', *letters]
  return {
    'version': '1.0',
    'added_tokens': special,
    'pre_tokenizer': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always'},
    'model': {
      'type': 'Unigram',
      'unk_id': _SPECIAL.index('<unk>'),
      'vocab': [[token, 0.0] for token in tokens],
    },
  }
