"""Our own checkpoints, seen as files: what a conversion writes and reads without loading them.

`wam_jax.checkpoint` owns the layout; see there.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import frozen as frozen_lib
from wam_jax import identity
from wam_jax import integrity
from wam_jax import workdir as workdir_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import lazy
from wam_jax.interop.files import orbax

# By part: the item of the checkpoint that holds it, and where in that item.
ITEMS = {
  'dit': ('params', ''),
  'text': ('frozen', 'text/params/'),
  'image': ('frozen', 'image/params/'),
  'tokenizer': ('frozen', 'tokenizer/params/'),
}
# In the item `frozen`: mean and deviation of the VAE's latents, where not the released ones.
MEAN_STD = 'tokenizer/mean_std_2C'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
  """A checkpoint of a run, opened.

  Attributes:
    workdir: the directory of the run.
    step: the step of the checkpoint.
    config: the config of the run, without adapters.
    data: what it knows of robots, as `robot.to_metadata` gives it.
    source: what `write_metadata` was told, {} for a run.
    base: what the run started from, as `source.identify` records it; {} for scratch.
    datasets: which episodes it was trained on, where that is known.
    lora: the adapters that reading merges into the weights.
    averaged: whether the weights are averages over training steps.
    params: the arrays of the model, by '/'-separated path.
    frozen: the arrays of the encoders, by '/'-separated path.
  """

  workdir: pathlib.Path
  step: int
  config: cfg.TrainConfig
  data: Mapping[str, Any]
  source: Mapping[str, Any]
  base: Mapping[str, Any]
  datasets: Mapping[str, Any] | None
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
    """The robots by name."""
    return robot_lib.from_metadata(self.data)


class Adapted(NamedTuple):
  """An array stacked over layers with its adapter merged in when it is read; like `orbax.Array`."""

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
    base = self.base.read(part)
    down = self.down.read(part)
    up = self.up.read(part)
    layers = zip(base, down, up, strict=True)
    return np.stack([finetuning.adapt(*layer, self.scale) for layer in layers])


class Hashes(NamedTuple):
  """Which weights a checkpoint has.

  Attributes:
    weights: the hash of the model's, from `identity`.
    encoders: the hash of each frozen encoder, from `encoders.fingerprint`.
  """

  weights: str
  encoders: dict[str, str]


def is_workdir(path: epath.Path) -> bool:
  """Whether a run or an import wrote the directory."""
  return (path / 'checkpoints').is_dir()


def open_workdir(workdir: pathlib.Path, step: int | None) -> Own:
  """Checkpoint `step`, or the newest.

  Raises:
    ValueError: there is none, or it is not whole.
  """
  place = _find_checkpoint(workdir, step)
  try:
    metadata = checkpoint.load_metadata(place)
  except checkpoint.CheckpointError as e:
    raise ValueError(f'{e}; pass another --checkpoint_step.') from e

  config = cfg.from_config_dict(workdir_lib.fill_config(metadata['config']))
  params = orbax.open_item(place / 'params')
  averaged = 'ema_params' in metadata['items']
  if averaged:
    # Averages are kept of what is trained; the rest is as it was.
    params |= orbax.open_item(place / 'ema_params')
  return Own(
    workdir=workdir,
    step=int(place.name),
    config=finetuning.merged_config(config),
    data=metadata['data'],
    source=metadata.get('source', {}),
    base=metadata.get('base') or {},
    datasets=metadata.get('datasets'),
    lora=config.model.lora,
    averaged=averaged,
    params=_merge(params, config.model.lora),
    frozen=orbax.open_item(frozen_lib.find(place, metadata)),
  )


def _find_checkpoint(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
  """The directory of checkpoint `step`, or of the newest."""
  if not is_workdir(epath.Path(workdir)):
    raise ValueError(f'--source={workdir} is no workdir: it has no checkpoints/ directory.')
  # What has another name is still being written.
  places = {int(p.name): p for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()}
  if not places or step not in (None, *places):
    wanted = '' if step is None else f' of step {step}'
    steps = ', '.join(map(str, sorted(places))) or 'none'
    raise ValueError(f'{workdir} has no checkpoint{wanted}; it has {steps}.')
  return places[max(places) if step is None else step]


def _merge(
  params: Mapping[str, orbax.Array], lora: cfg.LoraConfig
) -> dict[str, orbax.Array | Adapted]:
  """The arrays with every adapter beside a kernel merged into it."""
  merged = dict(params)
  suffix = f'/{finetuning.DOWN}'
  for module in [path.removesuffix(suffix) for path in params if path.endswith(suffix)]:
    kernel = merged.pop(f'{module}/w')
    down = merged.pop(f'{module}/{finetuning.DOWN}')
    up = merged.pop(f'{module}/{finetuning.UP}')
    merged[f'{module}/w'] = Adapted(kernel, down, up, lora.scale)
  return merged


def checkpoint_place(workdir: pathlib.Path) -> pathlib.Path:
  """Where the items of an imported checkpoint go: step 0."""
  return workdir / 'checkpoints' / '0'


class Part(NamedTuple):
  """What is written at once: an array, or a layer of it without that axis."""

  path: str
  numbers: np.ndarray
  layer: int | None = None


def write_item(
  place: pathlib.Path,
  announced: Mapping[str, lazy.Shape],
  stacked: frozenset[str],
  parts: Iterable[Part],
  width: int = 0,
) -> str:
  """Writes one item of a checkpoint, part by part, of which none but the last two are in memory;
  the hash of its arrays.

  Args:
    announced, stacked, width: as `orbax.ItemWriter` has them.
  """
  writer = orbax.ItemWriter(place, announced, stacked, width)
  total = 0
  # What is on its way to the disk is added up meanwhile.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    for path, numbers, layer in parts:
      shape = announced[path].shape
      starts = (0,) * len(shape) if layer is None else (layer, *[0] * numbers.ndim)
      part = identity.Part(path, shape, starts, numbers if layer is None else numbers[None])
      adding = thread.submit(identity.add_up, part)
      writer.write(path, numbers, layer=layer)
      total += adding.result()
  writer.finish()
  return identity.make_hash(announced, total)


def write_metadata(
  workdir: pathlib.Path,
  config: cfg.TrainConfig,
  data: Mapping[str, Any],
  source: Mapping[str, Any],
  hashes: Hashes,
  datasets: Mapping[str, Any] | None = None,
) -> None:
  """config.json of the workdir and the item `metadata` of its checkpoint.

  Args:
    workdir: the directory to make one of a run.
    config: the config of the run.
    data: what is known of robots, as `robot.to_metadata` gives it.
    source: where the weights came from and how; kept for the record.
    hashes: of what was written.
    datasets: which episodes the weights were trained on, where that is known.
  """
  # Through text, so that both files hold the same: lists for tuples.
  plain = json.loads(json.dumps(cfg.to_dict(config)))
  (workdir / 'config.json').write_text(json.dumps(plain, indent=1) + '\n')

  metadata = {
    'items': ['params'],
    'config': plain,
    'data': data,
    'source': source,
    **hashes._asdict(),
  }
  if datasets:
    metadata['datasets'] = datasets
  place = checkpoint_place(workdir) / 'metadata'
  place.mkdir()
  (place / 'metadata').write_text(json.dumps(metadata))
  integrity.complete(place.parent)
