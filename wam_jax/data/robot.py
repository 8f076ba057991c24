"""A robot as a model knows it: what it senses, is told and does, between raw units and the model's.

Training and control go through the same object, so that both see the same pixels, words and
numbers. A checkpoint carries it as JSON; needs no dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import record as record_lib


@dataclasses.dataclass(frozen=True)
class Robot:
  """What a checkpoint knows about one robot.

  Attributes:
    id: its category in the model.
    record: its cameras, slices and rates.
    statistics: None if no dataset of the training mixture had it.
    center_crop: training saw random crops, so that everything else sees the centre crop.
    action_overlap: control steps that the actions of a chunk go on beyond its end; in training.
  """

  id: int
  record: record_lib.Embodiment
  statistics: normalize.Statistics | None
  center_crop: bool = False
  action_overlap: int = 0

  @property
  def can_act(self) -> bool:
    """Whether the robot has actions, and training saw some."""
    return bool(self.record.action and self.statistics)

  def compose(self, views: Mapping[str, np.ndarray]) -> np.ndarray:
    """[I, J, 3] uint8, the composite image that evaluation and control show the model.

    Args:
      views: view key to [rows, columns, 3] uint8 RGB of any size, as stored.
    Raises:
      ValueError: a view is missing, or is not uint8 RGB.
    """
    augmentation = images.CENTER_CROP if self.center_crop else None
    return images.compose(self.record, views, augmentation)

  def observe(
    self, views: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """(composite image [I, J, 3] uint8, state vector [X] float32 in the record's units).

    Args:
      views: as `compose` takes them.
      state: the robot's arrays by the keys of the record's state slices, as stored.
    Raises:
      ValueError: a view or an array is missing or has another shape than the record says.
    """
    return self.compose(views), record_lib.read(self.record.state, state)

  def instruct(self, text: str) -> str:
    """The prompt for an instruction."""
    return self.record.instruct(text)

  def normalize_proprio(self, proprio: np.ndarray, width: int) -> np.ndarray:
    """State [..., X] in the record's units to the model's [..., width] float32, zero on padded
    dimensions.
    """
    return _pad(self.statistics.state.normalize(proprio), width)

  def normalize_action(self, action: np.ndarray, width: int) -> np.ndarray:
    """Actions [..., U] in the record's units, already relative where it says so, to the model's
    [..., width] float32, zero on padded dimensions.
    """
    return _pad(self.statistics.action.normalize(action), width)

  def act(self, normalized_AU: np.ndarray, proprio_X: np.ndarray) -> np.ndarray:
    """The model's actions of one chunk as the robot takes them: [steps_per_chunk + action_overlap,
    record.action_dim], absolute.

    In the units of the stored arrays: what the record's slices changed is changed back.

    Args:
      normalized_AU: [A, U] normalized and padded, as the model gives them.
      proprio_X: [record.proprio_dim] the state vector at the chunk's first step (`observe`), from
        which relative actions count.
    Raises:
      ValueError: `normalized_AU` or `proprio_X` is too small for the record.
    """
    S, U = self.record.steps_per_chunk + self.action_overlap, self.record.action_dim
    # NumPy would cut both without a word, and a robot do something else than the model meant.
    if normalized_AU.shape[0] < S or normalized_AU.shape[1] < U:
      raise ValueError(
        f'Actions of shape {normalized_AU.shape} are too small for {self.record.name!r}: expected '
        f'at least ({S}, {U}).'
      )
    if proprio_X.shape != (self.record.proprio_dim,):
      raise ValueError(
        f'Proprio of {self.record.name!r} has shape {proprio_X.shape}; expected '
        f'({self.record.proprio_dim},).'
      )
    # Training in the opposite order: units, then differences, then the model's range.
    relative_SU = self.statistics.action.unnormalize(normalized_AU[:S, :U])
    action_QSU = normalize.add_reference(self.record, relative_SU[None], proprio_X[None])
    return record_lib.restore(self.record.action, action_QSU[0])

  def normalize_prefix(
    self, prefix_DU: np.ndarray, proprio_X: np.ndarray, width: int
  ) -> np.ndarray:
    """Actions that the robot is committed to as the first of its next chunk: the model's
    [action_overlap, width] float32, zero beyond them; relative ones count from `proprio_X`.

    Args:
      prefix_DU: [d, record.action_dim] as the robot takes them, d at most `action_overlap`.
      proprio_X: the state vector now, where that chunk begins.
    Raises:
      ValueError: there are more than training had, or they are no actions of this robot.
    """
    D, U = self.action_overlap, self.record.action_dim
    prefix_DU = np.asarray(prefix_DU, np.float32)
    if prefix_DU.ndim != 2 or prefix_DU.shape[1] != U:
      raise ValueError(
        f'A prefix of {self.record.name!r} has shape {prefix_DU.shape}; expected (steps, {U}), '
        'actions as the robot takes them.'
      )
    if len(prefix_DU) > D:
      raise ValueError(
        f'A prefix of {self.record.name!r} has {len(prefix_DU)} steps, and this model was trained '
        f'for at most model.action_overlap={D}; commit to fewer, or train with more.'
      )
    if not np.isfinite(prefix_DU).all():
      raise ValueError(f'A prefix of {self.record.name!r} is not finite.')
    # As training makes the actions of a chunk.
    absolute_DU = record_lib.convert(self.record.action, prefix_DU)
    relative_QDU = normalize.subtract_reference(self.record, absolute_DU[None], proprio_X[None])
    normalized_DU = np.zeros((D, width), np.float32)
    normalized_DU[: len(prefix_DU)] = self.normalize_action(relative_QDU[0], width)
    return normalized_DU


def _pad(x: np.ndarray, width: int) -> np.ndarray:
  # Zero is the middle of the model's range: what a robot lacks pulls to neither side.
  padded = np.zeros((*x.shape[:-1], width), np.float32)
  padded[..., : x.shape[-1]] = x
  return padded


def to_metadata(robots: Sequence[Robot]) -> dict[str, Any]:
  """JSON-ready description of all robots of a model; `from_metadata` is the inverse."""
  return {
    'embodiments': {
      robot.record.name: {
        'id': robot.id,
        'record': dataclasses.asdict(robot.record),
        'center_crop': robot.center_crop,
        'statistics': robot.statistics and normalize.to_dict(robot.statistics),
        # Of models without, the description stays what it was.
        **({'action_overlap': robot.action_overlap} if robot.action_overlap else {}),
      }
      for robot in robots
    }
  }


def from_metadata(metadata: Mapping[str, Any]) -> dict[str, Robot]:
  """Robots by name, from `to_metadata`'s result, also after a trip through JSON.

  Raises:
    ValueError: it is not such a description, or the statistics of one do not fit its record.
  """
  try:
    robots = {name: _parse(stored) for name, stored in metadata['embodiments'].items()}
  except (KeyError, TypeError, AttributeError) as e:
    raise ValueError(
      f'The metadata of this checkpoint describes no embodiments as this version writes them '
      f'({type(e).__name__}: {e}); it holds {sorted(metadata)}.'
    ) from e
  for name, robot in robots.items():
    if robot.statistics:
      where = f'{name!r} in the metadata of this checkpoint'
      normalize.check_widths(robot.statistics, robot.record, where)
  return robots


def _parse(stored: Mapping[str, Any]) -> Robot:
  return Robot(
    id=int(stored['id']),
    record=record_lib.from_dict(stored['record']),
    statistics=stored['statistics'] and normalize.from_dict(stored['statistics']),
    center_crop=bool(stored.get('center_crop', False)),  # The first version wrote none.
    action_overlap=int(stored.get('action_overlap', 0)),
  )
