"""Weights of another run, or of an import: what there is, and then each host's own parts of it.

Which checkpoint it is, and whether it can be read, is one answer for all processes; see `hosts`.
"""

from __future__ import annotations

import dataclasses
import operator
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import frozen as frozen_lib
from wam_jax import hosts
from wam_jax import identity
from wam_jax import items
from wam_jax.models import encoders

Say = Callable[[str], None]
# Of the model, what no array shows.
_RULES = (
  'predict_first_frame',
  'state_rule',
  'history_rule',
  'video_sees',
  'action_overlap',
  'prompt_in_modulation',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A checkpoint of another run, opened: none of its numbers has been read.

  Attributes:
    place: the directory of the checkpoint.
    config: the config of that run, adapters included, with the vocabulary that lies in its workdir.
    metadata: what the checkpoint says of itself.
    stored: the ShapeDtypeStructs of its parameters, by item: 'params', and 'ema_params' where it
      keeps averages.
    frozen: its encoders, of ShapeDtypeStructs.
  """

  place: pathlib.Path
  config: cfg.TrainConfig
  metadata: Mapping[str, Any]
  stored: Mapping[str, Mapping[str, Any]]
  frozen: encoders.Encoders

  @property
  def workdir(self) -> pathlib.Path:
    """The workdir of that run."""
    return self.place.parent.parent

  @property
  def step(self) -> int:
    """The step of the checkpoint."""
    return int(self.place.name)

  @property
  def params(self) -> dict[str, Any]:
    """ShapeDtypeStructs of what `read_params` gives."""
    return finetuning.without_adapters(self._overlay(self.stored))

  def hash_encoders(self, say: Say) -> dict[str, str]:
    """The hash of each encoder; every process must call it."""
    return frozen_lib.hash_once(self._frozen_place, self.metadata, say)

  def read_encoders(self, like: encoders.Encoders) -> encoders.Encoders:
    """The encoders on devices; every process must call it.

    Args:
      like: the encoders, of ShapeDtypeStructs with shardings.
    """
    return self._read(lambda: frozen_lib.load_parts(self._frozen_place, like))

  def read_params(self, shardings: Mapping[str, Any], say: Say) -> tuple[dict[str, Any], str]:
    """The weights on devices as they are stored, averaged where that run keeps an average and with
    its adapters merged, and their hash; every process must call it.

    Args:
      shardings: of each array of `params`.
      say: told when there is no hash yet, and it is made.
    """
    params = self._read(lambda: self._load_params(shardings))
    weights = self.metadata.get('weights')
    if weights is None:
      say(f'hashing the weights in {self.place}, this once: checkpoints of before have no hash')
      weights = identity.hash_arrays(params)
    return merge_parts(params, self.config.model.lora), weights

  def _load_params(self, shardings: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays that matter, adapters on every device."""
    mesh = jax.tree.leaves(shardings)[0].mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    wanted = dict(self.stored)
    wanted['params'] = finetuning.without(self.stored['params'], self.stored.get('ema_params', {}))
    parts = {
      item: items.load_parts(self.place / item, _place(shapes, shardings, everywhere))
      for item, shapes in wanted.items()
      if shapes
    }
    return self._overlay(parts)

  def _overlay(self, trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Parameters, with averages where there are some."""
    return finetuning.overlay(trees.get('params', {}), trees.get('ema_params', {}))

  @property
  def _frozen_place(self) -> pathlib.Path:
    return frozen_lib.find(self.place, self.metadata)

  def _read(self, load: Callable[[], Any]) -> Any:
    try:
      return checkpoint.read_together(load, self.place, f'reading {self.place}')
    except checkpoint.DamageError as e:
      raise checkpoint.CheckpointError(
        f'Step {self.step} of {self.workdir} is damaged: {e}. Restore it from a copy, or move it '
        'away to use the step before.'
      ) from e


def open_source(workdir: str | pathlib.Path) -> Source:
  """The newest checkpoint of the run in `workdir`, the same on every process; all must call it.

  Raises:
    CheckpointError, HostError: no such directory or checkpoint; none has all its files.
  """
  stage = f'opening {workdir}'
  # Between two listings the run, if it is still going on, may save.
  step = hosts.decide(stage, lambda: checkpoint.load_newest(workdir, None, _open).step)
  with hosts.all_or_none(stage):
    return checkpoint.load_newest(workdir, step, _open)


def merge_parts(params: Mapping[str, Any], lora: cfg.LoraConfig) -> dict[str, Any]:
  """`finetuning.merge` of arrays on devices: each process merges its own parts."""
  if finetuning.DOWN not in params:
    return {key: merge_parts(x, lora) if isinstance(x, Mapping) else x for key, x in params.items()}
  kernel = params['w']
  down = np.asarray(params[finetuning.DOWN].addressable_data(0))
  up = np.asarray(params[finetuning.UP].addressable_data(0))
  held = {str(shard.index): shard.data for shard in kernel.addressable_shards}
  outer = down.ndim - 1  # The axes of layers and of the input.

  def merge(index: tuple[slice, ...]) -> np.ndarray:
    layers = zip(
      np.asarray(held[str(index)]),
      down[index[:outer]],
      up[(index[0], slice(None), *index[outer:])],
      strict=True,
    )
    return np.stack([finetuning.adapt(*layer, lora.scale) for layer in layers])

  merged = jax.make_array_from_callback(kernel.shape, kernel.sharding, merge)
  return finetuning.without_adapters(params) | {'w': merged}


def _open(place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]) -> Source:
  names = [name for name in ('params', 'ema_params') if name in metadata['items']]
  return Source(
    place=place,
    config=config,
    metadata=metadata,
    stored={name: items.load_shapes(place / name) for name in names},
    frozen=frozen_lib.load_shapes(frozen_lib.find(place, metadata), config.model),
  )


def _place(
  shapes: Mapping[str, Any], shardings: Mapping[str, Any], default: NamedSharding
) -> dict[str, Any]:
  """`shapes` with their shardings, `default` for those that have none."""
  placed = {}
  for key, x in shapes.items():
    if isinstance(x, Mapping):
      placed[key] = _place(x, shardings.get(key, {}), default)
    else:
      placed[key] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.get(key, default))
  return placed


def describe_rules(config: cfg.TrainConfig, source: cfg.TrainConfig) -> list[str]:
  """The keys by which a run trains by other rules than the run whose weights it starts from did:
  noise, loss, and who sees whom; with both values.
  """
  lines = []
  for field in dataclasses.fields(cfg.FlowConfig):
    lines += _compare(f'flow.{field.name}', config, source)
  for key in _RULES:
    lines += _compare(f'model.{key}', config, source)
  return lines


def _compare(key: str, config: cfg.TrainConfig, source: cfg.TrainConfig) -> list[str]:
  get = operator.attrgetter(key)
  if get(config) == get(source):
    return []
  return [f'config.{key}={get(config)!r} ({get(source)!r} there)']


def identify(source: Source, weights: str) -> dict[str, Any]:
  """The record of what a run started from: 'workdir', 'step', 'weights', their hash, and 'origin',
  what the checkpoint says of its own source (of an import) or base (of a run that started from
  another), or None.
  """
  return {
    'workdir': str(source.workdir),
    'step': source.step,
    'weights': weights,
    'origin': source.metadata.get('source') or source.metadata.get('base'),
  }
