"""Wan-AI's originals: `diffusion_pytorch_model*.safetensors`, config.json, and a `.pth` for each
encoder, in the directory or somewhere else. Read only: the files have no room for action modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from etils import epath

from wam_jax import config as cfg
from wam_jax.interop import foreign
from wam_jax.interop import fresh
from wam_jax.interop import lazy
from wam_jax.interop import sizes
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import pth
from wam_jax.interop.files import safetensors

STEM = 'diffusion_pytorch_model'
# By part, the names that Wan-AI gives the files.
ENCODERS = {'text': 'models_t5*.pth', 'image': 'models_clip*.pth', 'tokenizer': '*VAE*.pth'}
# By part, the flag of `wam_jax.convert` that says where the file is.
_FLAGS = {'text': 'text_encoder', 'image': 'image_encoder', 'tokenizer': 'vae'}
_FRAMES = 33  # Camera frames of a training window of the reference.
_DTYPE = 'bfloat16'


def open_source(path: epath.Path, options: foreign.Options) -> foreign.Foreign:
  """The checkpoint at `path`; errors as `layouts.open_source`."""
  said = jsonfile.read(path / 'config.json')
  parts: dict[str, Mapping[str, lazy.Weight]] = {'dit': safetensors.open_weights(path, STEM)}

  files = {part: _find_encoder(path, part, options) for part in ENCODERS}
  needs_image = any(name.startswith('img_emb.') for name in parts['dit'])
  missing = []
  for part, file in files.items():
    if file is not None:
      parts[part] = _open_encoder(file)
    elif part != 'image' or needs_image:
      # Wan2.2-TI2V is published without an image encoder, and can do without.
      missing.append(part)

  shapes = foreign.list_shapes(parts)
  image = cfg.ImageConfig()
  if files['image']:
    image = sizes.infer_image(options.image_words, shapes['image'], _DTYPE)
  model = sizes.infer_model(
    said,
    shapes['dit'],
    _FRAMES,
    tokenizer=sizes.infer_tokenizer({}, shapes['tokenizer'], resize=(), dtype=_DTYPE),
    text=sizes.infer_text({}, shapes['text'], said.get('text_len'), _DTYPE),
    image=image,
  )
  source = foreign.Foreign(
    layout='wan',
    path=path,
    model=model,
    fields={'flow': foreign.FLOW, 'sample': foreign.SAMPLE},
    weights=parts,
  )
  source = fresh.complete(source, options.num_embodiments)
  return dataclasses.replace(
    source,
    tables={part: table for part, table in source.tables.items() if part not in missing},
    lacks=tuple(_describe_missing(part) for part in missing),
  )


def _find_encoder(path: epath.Path, part: str, options: foreign.Options) -> epath.Path | None:
  """The file of one encoder: the one that was named, else the one in `path`, if any."""
  place = options.encoders.get(part, path)
  if not place.exists():
    raise ValueError(f'{place}, given for the {part} encoder, does not exist.')
  if not place.is_dir():
    return place
  found = sorted(place.glob(ENCODERS[part]))
  if len(found) > 1:
    names = ', '.join(file.name for file in found)
    raise ValueError(f'{place} has several files {ENCODERS[part]}: {names}; name one.')
  return found[0] if found else None


def _open_encoder(file: epath.Path) -> dict[str, lazy.Weight]:
  """The weights in `file`, without the half of CLIP that reads text."""
  open_file = safetensors.open_file if file.suffix == '.safetensors' else pth.open_file
  weights = open_file(file)
  return {name: w for name, w in weights.items() if not name.startswith('textual.')}


def _describe_missing(part: str) -> str:
  return (
    f'{ENCODERS[part]} is missing; it is published with Wan2.1-I2V-14B-480P (a Wan2.2 VAE with '
    f'its model): pass --{_FLAGS[part]}=FILE or DIRECTORY'
  )
