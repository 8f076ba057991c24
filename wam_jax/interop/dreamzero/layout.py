"""The directory of an official DreamZero checkpoint: `model*.safetensors` for everything,
config.json (`config`) and experiment_cfg/ (`experiment`), both ways.

One of adapters (LoRA) holds only what was trained; the other weights are those of its base.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from wam_jax import config as cfg
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop import shards
from wam_jax.interop.dreamzero import config as config_lib
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.dreamzero import lora
from wam_jax.interop.dreamzero import serving
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import safetensors

STEM = 'model'
PREFIXES = {
  'dit': 'action_head.model.',
  'text': 'action_head.text_encoder.',
  'image': 'action_head.image_encoder.model.',
  'tokenizer': 'action_head.vae.model.',
}
# Rows and columns of DROID's composite image, for models that know no robot.
_COMPOSITE = (352, 640)


@dataclasses.dataclass(frozen=True)
class Directory:
  """What one directory says and holds, before its base is added and its adapters are merged.

  Attributes:
    path: where it is.
    head: the settings of the policy head.
    conf: the content of conf.yaml, {} where there is none.
    parts: its weights by part, without prefix.
    adapters: its adapters, by the whole name of the weight they change.
    is_partial: whether it holds only what was trained.
  """

  path: epath.Path
  head: Mapping[str, Any]
  conf: Mapping[str, Any]
  parts: foreign.Parts
  adapters: Mapping[str, lora.Adapter]
  is_partial: bool

  @property
  def base_name(self) -> str:
    """The name of the directory that it was trained on."""
    return config_lib.name_base(self.head, self.conf)

  def check_base(self, base: epath.Path) -> None:
    """Raises ValueError unless `base` has the name of the directory that this was trained on."""
    if not self.is_partial:
      raise ValueError(f'--source={self.path} holds all its weights; leave out --base.')
    # A link by the right name counts, wherever it leads, and so does what a link leads to.
    names = (*base.parts, *base.resolve().parts)
    if not any(self.base_name in name for name in names):
      raise ValueError(
        f'--source={self.path} was trained on {self.base_name!r}, but --base={base} is something '
        'else. Pass the right one; if it is the same under another name, link or rename it to '
        f'{self.base_name!r}.'
      )


def open_directory(path: epath.Path) -> Directory:
  """The directory alone; reads headers and configs, never numbers.

  Raises:
    ValueError: files are missing, cut or contradict each other, or weights are of no known part.
  """
  head = config_lib.read_head(path)
  conf = experiment.read_conf(path)
  weights, adapters = lora.split(safetensors.open_weights(path, STEM))
  parts, unknown = split_parts(weights)
  errors.fail(
    f'{path} has weights that belong to no part of a DreamZero model:',
    unknown,
    'It may be of another model.',
  )
  # The training script says it; adapters without the weights they change show it.
  has_orphans = any(name not in weights for name in adapters)
  return Directory(
    path=path,
    head=head,
    conf=conf,
    parts=parts,
    adapters=adapters,
    is_partial=bool(conf.get('save_lora_only')) or has_orphans,
  )


def split_parts(
  weights: Mapping[str, lazy.Weight],
) -> tuple[dict[str, dict[str, lazy.Weight]], list[str]]:
  """(weights by part without prefix, a line for each that belongs to none)."""
  parts: dict[str, dict[str, lazy.Weight]] = {part: {} for part in foreign.PARTS}
  unknown = []
  for name, weight in weights.items():
    for part, prefix in PREFIXES.items():
      if name.startswith(prefix):
        parts[part][name.removeprefix(prefix)] = weight
        break
    else:
      unknown.append(f'{name} {list(weight.shape)}')
  return parts, unknown


def join_parts(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """What is given by part, under the names that the files have; inverse of `split_parts`."""
  joined = {}
  for part, of_part in parts.items():
    joined |= {PREFIXES[part] + name: value for name, value in of_part.items()}
  return joined


def make_source(
  directory: Directory, base: foreign.Foreign | None, options: foreign.Options
) -> foreign.Foreign:
  """The checkpoint, completed from `base` where it is given, adapters merged.

  Raises:
    ValueError: the base or the adapters do not fit.
  """
  parts = directory.parts
  lacks = ()
  if base is not None:
    parts = _complete(directory, base)
  elif directory.is_partial:
    lacks = (_describe_missing(directory),)

  head = _with_image_words(directory.head, options)
  if directory.adapters and not lacks:
    merged = lora.merge(
      join_parts(parts),
      directory.adapters,
      # 4 is what the class of the head has where nothing is said.
      rank=head.get('lora_rank', 4),
      alpha=head.get('lora_alpha', 4),
    )
    parts, _ = split_parts(merged)

  bfloat16 = bool(directory.conf.get('eval_bf16', False))
  model = config_lib.infer_model(head, foreign.list_shapes(parts), bfloat16)
  return foreign.Foreign(
    layout='dreamzero',
    path=directory.path,
    model=model,
    fields=config_lib.make_flow_and_sample(head),
    weights=parts,
    # Without its base nothing can be asked of a part.
    tables={} if lacks else foreign.make_tables(model, 'dreamzero'),
    lacks=lacks,
    merged=len(directory.adapters),
    base=base.path if base else None,
    notes=config_lib.list_notes(head),
    read_robots=functools.partial(experiment.read_robots, directory.path, model),
  )


def _complete(directory: Directory, base: foreign.Foreign) -> dict[str, dict[str, lazy.Weight]]:
  """The base's weights, with those of the directory in their place."""
  remedy = 'Pass the base it was trained on.'
  errors.fail(f'--base={base.path} is not whole:', base.lacks, remedy)
  if base.layout == 'diffusers':
    raise ValueError(
      f'--base={base.path} is in the layout {base.layout!r}; pass the DreamZero or Wan-AI '
      'directory.'
    )

  completed = {}
  differing = []
  for part in foreign.PARTS:
    # What is made new for a base alone has been trained here, and must be here.
    held = {name: w for name, w in base.weights.get(part, {}).items() if name not in base.fresh}
    for name, weight in directory.parts[part].items():
      if name in held and held[name].shape != weight.shape:
        differing.append(
          f'{part}: {name} is {list(weight.shape)} here, {list(held[name].shape)} in the base'
        )
    completed[part] = held | directory.parts[part]
  errors.fail(f'--base={base.path} does not fit --source={directory.path}:', differing, remedy)
  return completed


def _describe_missing(directory: Directory) -> str:
  trained = sum(map(len, directory.parts.values()))
  return (
    f'it holds only weights that were trained, {trained} and {len(directory.adapters)} adapters '
    f'(LoRA); the others are those of {directory.base_name!r}: pass --base=DIRECTORY of it'
  )


def _with_image_words(head: Mapping[str, Any], options: foreign.Options) -> dict[str, Any]:
  """`head`, with what the user knows better than it of the image encoder."""
  said = head.get('image_encoder_cfg') or {}
  return {**head, 'image_encoder_cfg': {**said, **options.image_words}}


def list_shards(model: cfg.ModelConfig) -> list[shards.Shards]:
  """The files of weights that an export has."""
  sections = [
    shards.Section(part=part, prefix=PREFIXES[part], rows=table)
    for part, table in foreign.make_tables(model, 'dreamzero').items()
  ]
  return [shards.Shards(folder='.', stem=STEM, sections=sections)]


def write_configs(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  robots: Mapping[str, robot_lib.Robot],
  where: serving.Serving,
  torch_dtype: str,
) -> list[str]:
  """Every file of an export but the weights; what to know of them, a line each.

  Args:
    robots: by the reference's tag.
    where: it will be served.
    torch_dtype: of the weights.
  Raises:
    ValueError: a robot cannot be described to the reference.
  """
  notes = experiment.write(directory, robots, config.model, where)
  tokens = _count_tokens(config.model, robots)
  content = config_lib.make_config(config, tokens, where.paths, torch_dtype)
  jsonfile.write(directory / config_lib.CONFIG, content)
  return [*notes, *serving.list_notes(config, where)]


def _count_tokens(c: cfg.ModelConfig, robots: Mapping[str, robot_lib.Robot]) -> int:
  """Tokens of one latent frame of the robots' composite images."""
  resize = tuple(c.tokenizer.resize)
  composites = {resize or robot.record.composite for robot in robots.values()}
  if len(composites) > 1:
    raise ValueError(
      f'Robots with images of different sizes, {sorted(composites)}, cannot share one '
      'config.json; pass --embodiment=NAME.'
    )
  # The transformer sees the composite in patches of latents.
  composite = composites.pop() if composites else resize or _COMPOSITE
  cell = c.tokenizer.spatial * c.patch
  return math.prod(pixels // cell for pixels in composite)
