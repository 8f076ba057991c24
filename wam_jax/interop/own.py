"""Our own checkpoints, seen as files: what a conversion writes and reads without loading them.

`wam_jax.checkpoint` owns the layout; see there.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import workdir as workdir_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import orbax

ITEMS = {
  'dit': ('params', ''),
  'text': ('frozen', 'text/params/'),
  'image': ('frozen', 'image/params/'),
  'tokenizer': ('frozen', 'tokenizer/params/'),
}  # By part: item of the checkpoint, and where in it.
MEAN_STD = 'tokenizer/mean_std_2C'


@dataclasses.dataclass(frozen=True)
class Own:
  """A checkpoint of a run, opened.

  Attributes:
    config: of the run, without adapters.
    data: what it knows of robots, as `robot_lib.to_metadata` gives it.
    source: what `write_metadata` was told, {} for a run.
    base: what the run started from, as `checkpoint.load_base` records it; {} for scratch.
    lora: adapters that reading merges into the weights.
    averaged: the weights are averages over training steps.
    frozen, params: arrays by '/'-separated path.
  """

  workdir: pathlib.Path
  step: int
  config: cfg.TrainConfig
  data: Mapping[str, Any]
  source: Mapping[str, Any]
  base: Mapping[str, Any]
  lora: cfg.LoraConfig
  averaged: bool
  params: Mapping[str, orbax.Array | Adapted]
  frozen: Mapping[str, orbax.Array]

  @property
  def adapters(self) -> int:
    """How many are merged, over all layers."""
    return sum(x.shape[0] for x in self.params.values() if isinstance(x, Adapted))

  def part(self, name: str) -> dict[str, orbax.Array | Adapted]:
    """The arrays of one part, by the paths of its table."""
    item, prefix = ITEMS[name]
    held = self.params if item == 'params' else self.frozen
    return {path.removeprefix(prefix): x for path, x in held.items() if path.startswith(prefix)}

  def robots(self) -> dict[str, robot_lib.Robot]:
    """By name."""
    return robot_lib.from_metadata(self.data)


class Adapted(NamedTuple):
  """An array stacked over layers with its adapter merged in when it is read; like
  `orbax.Array`.
  """

  base: orbax.Array
  down: orbax.Array
  up: orbax.Array
  scale: float

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  @property
  def layers(self) -> int:
    return self.base.layers

  def read(self, part: slice = slice(None)) -> np.ndarray:
    layers = zip(*(x.read(part) for x in (self.base, self.down, self.up)), strict=True)
    return np.stack([finetuning.adapt(*layer, self.scale) for layer in layers])


def is_workdir(path: epath.Path) -> bool:
  """Whether a run or an import wrote the directory."""
  return (path / 'checkpoints').is_dir()


def open_workdir(workdir: pathlib.Path, step: int | None) -> Own:
  """Checkpoint `step`, or the newest.

  Raises:
    ValueError: there is none, or it is not whole.
  """
  if not is_workdir(epath.Path(workdir)):
    raise ValueError(f'--source={workdir} is no workdir: it has no checkpoints/ directory.')
  places = {int(p.name): p for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()}
  if not places or step not in (None, *places):
    raise ValueError(
      f'{workdir} has no checkpoint{"" if step is None else f" of step {step}"}; it has '
      f'{", ".join(map(str, sorted(places))) or "none"}.'
    )
  step = max(places) if step is None else step
  place = places[step]
  metadata = jsonfile.read(epath.Path(place / 'metadata' / 'metadata'))
  missing = [name for name in metadata['items'] if not (place / name).is_dir()]
  if missing:
    raise ValueError(f'{place} lacks {", ".join(missing)}; pass another --checkpoint_step.')
  config = cfg.from_config_dict(workdir_lib.fill_config(metadata['config']))
  averaged = 'ema_params' in metadata['items']
  params = orbax.open_item(place / 'params') | (
    orbax.open_item(place / 'ema_params') if averaged else {}
  )
  return Own(
    workdir,
    step,
    finetuning.merged_config(config),
    metadata['data'],
    metadata.get('source', {}),
    metadata.get('base') or {},
    config.model.lora,
    averaged,
    _merge(params, config.model.lora),
    orbax.open_item(place / 'frozen'),
  )


def _merge(
  params: Mapping[str, orbax.Array], lora: cfg.LoraConfig
) -> dict[str, orbax.Array | Adapted]:
  """The arrays with every adapter beside a kernel merged into it."""
  merged = dict(params)
  for module in [
    path.removesuffix(f'/{finetuning.DOWN}')
    for path in params
    if path.endswith(f'/{finetuning.DOWN}')
  ]:
    kernel, down, up = (
      merged.pop(f'{module}/{name}') for name in ('w', finetuning.DOWN, finetuning.UP)
    )
    merged[f'{module}/w'] = Adapted(kernel, down, up, lora.scale)
  return merged


def checkpoint_place(workdir: pathlib.Path) -> pathlib.Path:
  """Where the items of an imported checkpoint go: step 0."""
  return workdir / 'checkpoints' / '0'


def write_metadata(
  workdir: pathlib.Path, config: cfg.TrainConfig, data: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
  """config.json of the workdir and the item `metadata` of its checkpoint.

  Args:
    source: where the weights came from and how; kept for the record.
  """
  plain = json.loads(json.dumps(cfg.to_dict(config)))
  (workdir / 'config.json').write_text(json.dumps(plain, indent=1) + '\n')
  place = checkpoint_place(workdir) / 'metadata'
  place.mkdir()
  (place / 'metadata').write_text(
    json.dumps({'items': ['frozen', 'params'], 'config': plain, 'data': data, 'source': source})
  )


def vocabulary_name(vocabulary: epath.Path) -> str:
  """What the text encoder's vocabulary is called in a workdir."""
  return workdir_lib.VOCABULARIES[vocabulary.suffix != '.json']


def copy_vocabulary(workdir: pathlib.Path, vocabulary: epath.Path) -> None:
  """Copies the text encoder's vocabulary into the workdir."""
  with (
    vocabulary.open('rb') as source,
    (workdir / vocabulary_name(vocabulary)).open('wb') as target,
  ):
    shutil.copyfileobj(source, target)
