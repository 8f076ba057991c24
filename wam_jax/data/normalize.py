"""The map between raw units and the model's [-1, 1], both ways, for training and control alike.

Owns the numbers; needs no dataset. `statistics.py` computes them, a checkpoint carries them.
"""
from __future__ import annotations

import dataclasses
import functools
from typing import Any
from collections.abc import Mapping, Sequence

import numpy as np

from wam_jax.data import embodiments

RANGE_FLOOR = 1e-3  # In raw units: a dimension that hardly moves must not be blown up to [-1, 1].


@dataclasses.dataclass(frozen=True)
class Quantiles:
  """1% and 99% quantiles of one vector, [N] float32 each, raw units."""

  q01: np.ndarray
  q99: np.ndarray

  @functools.cached_property
  def middle(self) -> np.ndarray:
    """What maps to 0."""
    return (self.q01 + self.q99) / 2

  @functools.cached_property
  def half_range(self) -> np.ndarray:
    """What maps to 1, counted from the middle; floored."""
    return np.maximum(self.q99 - self.q01, np.float32(RANGE_FLOOR)) / 2

  def normalize(self, x: np.ndarray) -> np.ndarray:
    """clip(2 (x - q01) / (q99 - q01) - 1, -1, 1), float32. Source: spec 5.3."""
    return np.clip((x - self.middle) / self.half_range, -1, 1).astype(np.float32)

  def unnormalize(self, x: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`, not clipped: the model may go a little beyond the quantiles."""
    return (x * self.half_range + self.middle).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What normalization needs to know about one embodiment.

  Attributes:
    state: quantiles of the record's state vector.
    action: quantiles of its action vector; relative dimensions as differences to the state at the chunk's start.
    steps: control steps that were seen.
  """

  state: Quantiles
  action: Quantiles
  steps: int


def to_dict(statistics: Statistics) -> dict[str, Any]:
  """JSON-ready; `from_dict` is the inverse."""
  quantiles = {part: {'q01': q.q01.tolist(), 'q99': q.q99.tolist()}
               for part, q in (('state', statistics.state), ('action', statistics.action))}
  return {**quantiles, 'steps': statistics.steps}


def from_dict(content: Mapping[str, Any]) -> Statistics:
  """Statistics from `to_dict`'s result, also after a trip through JSON."""
  state, action = (Quantiles(*(np.asarray(content[part][q], np.float32) for q in ('q01', 'q99')))
                   for part in ('state', 'action'))
  return Statistics(state, action, int(content['steps']))


def combine(statistics: Sequence[Statistics]) -> Statistics:
  """Over several datasets of one embodiment: q01 the least, q99 the greatest. Source: spec 5.3."""
  def widest(quantiles):
    return Quantiles(np.min([q.q01 for q in quantiles], axis=0), np.max([q.q99 for q in quantiles], axis=0))
  return Statistics(widest([s.state for s in statistics]), widest([s.action for s in statistics]),
                    sum(s.steps for s in statistics))


def subtract_reference(record: embodiments.Embodiment, action_QSU: np.ndarray, proprio_QX: np.ndarray) -> np.ndarray:
  """Actions minus the state at their chunk's first step, on the relative dimensions.

  Source: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID` (spec 5.4 (5)).
  """
  return action_QSU - reference(record, proprio_QX)[:, None, :]


def reference(record: embodiments.Embodiment, proprio_QX: np.ndarray) -> np.ndarray:
  """[Q, U] what relative actions count from; zero on absolute dimensions."""
  columns_U = np.asarray(record.reference_columns, np.int64)
  if not columns_U.size or columns_U.max() < 0:
    return np.zeros((proprio_QX.shape[0], columns_U.size), np.float32)
  return np.where(columns_U >= 0, proprio_QX[:, columns_U], np.float32(0))


def normalize_proprio(statistics: Statistics, proprio: np.ndarray, proprio_dim: int) -> np.ndarray:
  """Raw [..., X] state to the model's [..., proprio_dim] float32, zero on padded dimensions."""
  return _pad(statistics.state.normalize(proprio), proprio_dim)


def normalize_action(statistics: Statistics, action: np.ndarray, action_dim: int) -> np.ndarray:
  """Raw, already relative [..., U] actions to the model's [..., action_dim] float32, zero on padded dimensions."""
  return _pad(statistics.action.normalize(action), action_dim)


def unnormalize_action(statistics: Statistics, record: embodiments.Embodiment, action_AU: np.ndarray,
                       proprio: np.ndarray) -> np.ndarray:
  """The model's actions of one chunk as the robot takes them: [steps_per_chunk, record.action_dim], raw, absolute.

  Args:
    action_AU: [A, U] normalized and padded, as the model gives them.
    proprio: [record.proprio_dim] raw state at the chunk's first step, from which relative actions count.
  Raises:
    ValueError: `action_AU` or `proprio` is too small for the record.
  """
  if action_AU.shape[0] < record.steps_per_chunk or action_AU.shape[1] < record.action_dim:
    raise ValueError(f'Actions of shape {action_AU.shape} are too small for {record.name!r}: expected at least '
                     f'({record.steps_per_chunk}, {record.action_dim}).')
  if proprio.shape != (record.proprio_dim,):
    raise ValueError(f'Proprio of {record.name!r} has shape {proprio.shape}; expected ({record.proprio_dim},).')
  action_SU = statistics.action.unnormalize(action_AU[:record.steps_per_chunk, :record.action_dim])
  return action_SU + reference(record, proprio[None])


def _pad(x: np.ndarray, width: int) -> np.ndarray:
  padded = np.zeros(x.shape[:-1] + (width,), np.float32)
  padded[..., :x.shape[-1]] = x
  return padded


@dataclasses.dataclass(frozen=True)
class KnownEmbodiment:
  """What a checkpoint knows about one robot.

  Attributes:
    id: its category in the model.
    record: its cameras, slices and rates.
    statistics: None if no dataset of the training mixture had it.
  """

  id: int
  record: embodiments.Embodiment
  statistics: Statistics | None


def to_metadata(known: Sequence[KnownEmbodiment]) -> dict[str, Any]:
  """JSON-ready description of all embodiments of a model; `from_metadata` is the inverse."""
  return {'embodiments': {
      e.record.name: {'id': e.id, 'record': dataclasses.asdict(e.record),
                      'statistics': e.statistics and to_dict(e.statistics)} for e in known}}


def from_metadata(metadata: Mapping[str, Any]) -> dict[str, KnownEmbodiment]:
  """Embodiments by name, from `to_metadata`'s result, also after a trip through JSON.

  Raises:
    ValueError: it is not such a description.
  """
  try:
    return {name: KnownEmbodiment(int(e['id']), embodiments.from_dict(e['record']),
                                  e['statistics'] and from_dict(e['statistics']))
            for name, e in metadata['embodiments'].items()}
  except (KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'The metadata of this checkpoint describes no embodiments as this version writes them '
                     f'({type(e).__name__}: {e}); it holds {sorted(metadata)}.') from e
