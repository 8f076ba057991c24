"""What the official server does of its own accord with an export: what it fetches, where it samples
and feeds otherwise than the run did. Each is said, or can be given.

Source: DreamZero `WANPolicyHead`, `GrootSimPolicy`, `DreamTransform`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg
from wam_jax.interop import foreign

TOKENIZER = 'tokenizer_path'  # Beside the parts of a model: the vocabulary of the prompts.
_UMT5 = 'google/umt5-xxl'
_WAN2_1 = 'Wan-AI/Wan2.1-I2V-14B-480P'
_WAN2_2 = 'Wan-AI/Wan2.2-TI2V-5B'
# By part: the flag that says where it lies, and the file of the hub.
_FETCHED = {
  'text': ('text_encoder', 'models_t5_umt5-xxl-enc-bf16.pth'),
  'image': ('image_encoder', 'models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth'),
  'tokenizer': ('vae', 'Wan2.1_VAE.pth'),
}
# What config.json says of sampling; all else is a constant of the official head.
_SAID = ('mode', 'video_final_sigma')
# Of training alone: what config.json says.
_TOLD = ('schedule', 'video_beta')


@dataclasses.dataclass(frozen=True)
class Serving:
  """What is known of where an export will be served.

  Attributes:
    camera: columns and rows of the robots' camera images; None for the published ones.
    names: of parts of state and action, as `keys.name_parts` takes them.
    paths: by part ('text', 'image', 'tokenizer') and `TOKENIZER`, where it lies there; not checked
      here.
  """

  camera: tuple[int, int] | None = None
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  paths: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def vocabulary(self) -> str:
    """What the server opens as its tokenizer."""
    return self.paths.get(TOKENIZER, _UMT5)


def list_notes(config: cfg.TrainConfig, serving: Serving) -> list[str]:
  """What to know before the export is served, a line each."""
  return [_say_fetched(config.model, serving), *_say_sampling(config), *_say_training(config)]


def _say_fetched(model: cfg.ModelConfig, serving: Serving) -> str:
  """What the server loads by itself, though all weights are in the export."""
  places = []
  absent = []
  for part, (flag, file) in _FETCHED.items():
    is_2_2 = part == 'tokenizer' and model.tokenizer.kind == 'wan2_2'
    hub = f'{_WAN2_2}/Wan2.2_VAE.pth' if is_2_2 else f'{_WAN2_1}/{file}'
    places.append(serving.paths.get(part) or f'{hub} (hub)')
    if part not in serving.paths:
      absent.append(f'--{flag}')
  places.append(f'{serving.vocabulary}' + ('' if TOKENIZER in serving.paths else ' (hub)'))
  if TOKENIZER not in serving.paths:
    absent.append('--tokenizer')
  line = (
    'the official server loads these before it puts the weights of the export in their place: '
    + ', '.join(places)
  )
  return f'{line}; say where they lie there with {", ".join(absent)}' if absent else line


def _say_sampling(config: cfg.TrainConfig) -> list[str]:
  """Where the constants of the official head differ from how this run samples."""
  differing = _list_differences(config.sample, foreign.SAMPLE, _SAID, 'sample')
  if config.sample.mode == 'act_only':
    # config.json has a word for the two others.
    differing.append("sample.mode='act_only' ('joint' there)")
  if not differing:
    return []
  return [f'the official server samples otherwise than this run: {", ".join(differing)}']


def _say_training(config: cfg.TrainConfig) -> list[str]:
  """Where official training would go on otherwise; serving is not concerned."""
  differing = _list_differences(config.flow, foreign.FLOW, _TOLD, 'flow')
  if config.flow.schedule == 'flash':
    differing.append("flow.schedule='flash' ('decoupled' there)")
  if not config.model.predict_first_frame:
    differing.append('model.predict_first_frame=False (True there)')
  if config.model.state_rule != 'reference':
    differing.append(f"model.state_rule={config.model.state_rule!r} ('reference' there)")
  if not differing:
    return []
  return [f'training it further there would differ from this run: {", ".join(differing)}']


def _list_differences(mine: Any, theirs: Any, said: tuple[str, ...], group: str) -> list[str]:
  """The keys of a group of the config with other values there, but for those in `said`."""
  lines = []
  for field in dataclasses.fields(mine):
    here, there = getattr(mine, field.name), getattr(theirs, field.name)
    if field.name in said or here == there:
      continue
    values = f'={here!r} ({there!r} there)' if len(f'{here!r}{there!r}') < 80 else ''
    lines.append(f'{group}.{field.name}{values}')
  return lines
