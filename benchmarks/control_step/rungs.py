"""The rungs of the ladder, from the slowest to the fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from benchmarks.control_step import engines
from benchmarks.control_step import scene as scene_lib
from wam_jax import config as cfg
from wam_jax.control import apart
from wam_jax.control import policy as policy_lib
from wam_jax.control import quantize

# DreamZero's policy head: of 16 steps, those at which the network runs.
_FIXED = (0, 1, 2, 6, 10, 13, 14, 15)
_GUIDED: Mapping[str, Any] = dict(mode='joint', steps=16, guidance_scale=5.0, action_steps=0)
_FOUR: Mapping[str, Any] = dict(_GUIDED, steps=4)
_FLASH: Mapping[str, Any] = dict(mode='flash', steps=1, guidance_scale=1.0, action_steps=0)


@dataclasses.dataclass(frozen=True)
class Rung:
  """A way to compute a chunk.

  Attributes:
    what: what is new in it.
    sample: keys of `config.sample`.
    engine: 'uncached', 'apart' (guidance a pass after the other, the prompt in every pass),
      'prompt_once' (without the latter), 'two_passes' (committing and denoising) or 'policy'.
    same_as: the rung whose actions these are, sums in another order.
    near: the rung whose actions these are but for rounding of kernels; by how much is told.
    apart: whether the weights of each layer are arrays of their own, where control has them so.
    quantized: whether the kernels of the layers have one byte a number, by `sample.precision`.
    longer: whether it is meant to take longer than the rung before, since it does more.
    passes: of the whole network, of the network for committing alone, of actions alone.
  """

  what: str
  sample: Mapping[str, Any]
  engine: str
  passes: tuple[int, int, int]
  same_as: str = ''
  near: str = ''
  apart: bool = False
  quantized: bool = False
  longer: bool = False


RUNGS: Mapping[str, Rung] = {
  'naive': Rung('16 steps, guidance, nothing kept between passes', _GUIDED, 'uncached', (32, 0, 0)),
  'cache': Rung('keys and values of the past kept', _GUIDED, 'apart', (32, 1, 0), same_as='naive'),
  'prompt_once': Rung("the prompt's too", _GUIDED, 'prompt_once', (32, 1, 0), same_as='naive'),
  'batched': Rung(
    'both branches of guidance in a pass', _GUIDED, 'two_passes', (16, 1, 0), same_as='naive'
  ),
  'fixed': Rung(
    'velocities used again at 8 of 16 steps',
    dict(_GUIDED, evaluate_steps=_FIXED),
    'two_passes',
    (8, 1, 0),
  ),
  'cosine': Rung(
    'or where two in a row were alike', dict(_GUIDED, reuse='cosine'), 'two_passes', (0, 1, 0)
  ),
  'steps4': Rung('4 steps', _FOUR, 'two_passes', (4, 1, 0)),
  'unguided4': Rung('no guidance', dict(_FOUR, guidance_scale=1.0), 'two_passes', (4, 1, 0)),
  'flash1': Rung('Flash: 1 step', _FLASH, 'two_passes', (1, 1, 0)),
  'sweep': Rung(
    'committed and denoised in one sweep', _FLASH, 'policy', (1, 0, 0), same_as='flash1'
  ),
  'apart': Rung(
    'weights of each layer apart, of which none is copied',
    _FLASH,
    'policy',
    (1, 0, 0),
    same_as='flash1',
    apart=True,
  ),
  'pass1_actions4': Rung(
    'one pass of the video, 4 of the actions',
    dict(_FLASH, action_steps=4),
    'policy',
    (1, 0, 3),
    apart=True,
    longer=True,
  ),
  'act_only4': Rung(
    'actions alone, 4 steps, no future video',
    dict(_FLASH, mode='act_only', action_steps=4),
    'policy',
    (1, 0, 3),
    apart=True,
  ),
  'quantized': Rung(
    'and kernels of one byte a number, the rest as before',
    dict(_FLASH, mode='act_only', action_steps=4),
    'policy',
    (1, 0, 3),
    near='act_only4',
    apart=True,
    quantized=True,
  ),
}


def build(
  rung: Rung, scene: scene_lib.Scene, config: cfg.TrainConfig
) -> engines.Uncached | engines.Cached:
  """The rung, ready to compute the scene's chunk."""
  sample = dataclasses.replace(
    config.sample, **{'evaluate_steps': (), 'precision': 'model', **rung.sample}
  )
  if rung.engine == 'uncached':
    return engines.Uncached(scene, sample)
  # Weights here are random, and trained for everything.
  flow = dataclasses.replace(config.flow, video_hidden=0.2)
  given = (scene.model, sample, flow)
  if rung.engine == 'policy':
    is_apart = rung.apart and not find_needless(scene.model)
    params = scene.layers_apart if is_apart else scene.params
    if rung.quantized:
      params = quantize_kernels(scene.params, config.sample.precision)
      params = apart.take(params) if is_apart else params
    return engines.Cached(scene, policy_lib.Policy(*given), params)
  policy = engines.Earlier(
    *given,
    together=rung.engine == 'two_passes',
    prompt_once=rung.engine != 'apart',
    image_BIC=scene.image_BIC,
  )
  return engines.Cached(scene, policy, scene.params)


def find_lack(precision: str) -> str:
  """What a quantized rung needs and is not here, a library or another device; '' for nothing."""
  try:
    quantize.check_installed(precision)
    quantize.check_device(precision, jax.devices()[0])
  except ValueError as lack:
    return str(lack)
  return ''


def find_needless(model: cfg.ModelConfig) -> str:
  """Why control does not keep the layers of a model apart here; '' where it does."""
  platform = jax.default_backend()
  if apart.suits(model, platform):
    return ''
  return f'layers of width {model.dim} stay together on {platform}, as in control'


def quantize_kernels(params: Any, precision: str) -> Any:
  """`params` with the kernels of all layers of one byte a number, and all else as it was."""
  flat = traverse_util.flatten_dict(params, sep='/')
  for path in quantize.find_kernels(params, ('blocks',)):
    bias = flat[path.removesuffix('w') + 'b']
    flat[path] = jax.device_put(quantize.quantize(flat[path], bias, quantize.SCHEMES[precision]))
  return traverse_util.unflatten_dict(flat, sep='/')


def list_slower(rows: Mapping[str, Any]) -> list[str]:
  """Rungs that are slower than all before them by more than 5 %, but for those meant to be."""
  fastest = math.inf
  found = []
  for name, row in rows.items():
    if RUNGS[name].longer:
      continue
    if row['p50_ms'] > 1.05 * fastest:
      found.append(f'{name} by {row["p50_ms"] / fastest - 1:.0%}')
    fastest = min(fastest, row['p50_ms'])
  return found
