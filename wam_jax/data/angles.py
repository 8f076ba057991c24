"""Angles at their seam: neighbouring poses whose numbers are a whole turn apart.

Counted from a state on the other side of the seam, a small turn is nearly a whole one. A slice that
says where its numbers go around (`record.Slice.wrap`) has its differences shortened; one that goes
around and does not say so is found here by its jumps, and no difference of it is learnt. So are
rotations whose three or four numbers flip together, which no turn of a single one mends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from wam_jax.data import record as record_lib

# By unit; of the others, which may be either, the range must say that the numbers go once around.
TURNS = {'rad': 2 * np.pi, 'deg': 360.0}
UNCLEAR = ('', 'unknown', 'mixed', 'raw')
JUMP = (0.75, 1.25)  # Turns from one row to the next: a robot turns by less, a lost packet is less.
AROUND = (0.9, 1.1)  # Turns between the lowest and the highest value of an angle with a seam.
QUATERNION = 'quaternion'
# Turns that two Euler angles jump together where the third passes a quarter: half a one each.
HALF = (0.45, 0.55)
NEAR = 0.1  # Turns: what is left where a vector of rotation is met by its opposite.

Place = tuple[int, int]  # Episode and step.


@dataclasses.dataclass
class Seams:
  """The jumps of a whole turn in the columns of a vector, in rows that are added by episode.

  Attributes:
    slices: of the vector.
    count_NK: jumps of each column, by the turn in `TURNS`.
    first: place and values of the first one, by column and turn.
    flips: by slice of quaternions, the number of sign changes, and the first one's place.
    rotations: by slice of three angles, the number of rows where they flip together, and the first
      one's place.
    low_N, high_N: bounds of each column.
  """

  slices: Sequence[record_lib.Slice]
  count_NK: np.ndarray = dataclasses.field(init=False)
  first: dict[tuple[int, int], tuple[int, int, float, float]] = dataclasses.field(
    default_factory=dict
  )
  flips: dict[int, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
  rotations: dict[int, tuple[int, int, int]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    width = sum(s.width for s in self.slices)
    self.count_NK = np.zeros((width, len(TURNS)), int)
    self.low_N = np.full(width, np.inf)
    self.high_N = np.full(width, -np.inf)

  def add(self, rows_TN: np.ndarray, episode: int, start: int = 0) -> None:
    """Adds rows of an episode that follow each other, from step `start` on."""
    if len(rows_TN) < 2:
      return
    self.low_N = np.minimum(self.low_N, rows_TN.min(0))
    self.high_N = np.maximum(self.high_N, rows_TN.max(0))
    jump_TN = np.abs(np.diff(rows_TN.astype(np.float64), axis=0))
    for k, turn in enumerate(TURNS.values()):
      is_seam_TN = (jump_TN >= JUMP[0] * turn) & (jump_TN <= JUMP[1] * turn)
      self.count_NK[:, k] += is_seam_TN.sum(0)
      for n in np.flatnonzero(is_seam_TN.any(0)).tolist():
        row = int(is_seam_TN[:, n].argmax())
        values = float(rows_TN[row, n]), float(rows_TN[row + 1, n])
        self.first.setdefault((n, k), (episode, start + row, *values))
    self._add_rotations(rows_TN, (episode, start))

  def _add_rotations(self, rows_TN: np.ndarray, place: Place) -> None:
    for i, (s, columns) in enumerate(record_lib.columns(self.slices)):
      part_TN = rows_TN[:, columns].astype(np.float64)
      if s.unit == QUATERNION and s.width == 4:
        # Neighbouring poses are alike, so that opposite numbers are the same pose.
        _count(self.flips, i, (part_TN[1:] * part_TN[:-1]).sum(1) < 0, place)
      if s.unit in TURNS and s.width == 3:
        _count(self.rotations, i, _find_flips(part_TN / TURNS[s.unit]), place)

  def is_angle(self, n: int, k: int, unit: str) -> bool:
    """Whether a column in this unit, with jumps of turn `k`, is an angle in that turn's unit."""
    turn_unit = tuple(TURNS)[k]
    if unit not in UNCLEAR:
      return unit == turn_unit
    turn = TURNS[turn_unit]
    span = float(self.high_N[n] - self.low_N[n])
    is_placed = np.isclose(self.low_N[n], [-turn / 2, 0], atol=turn / 20).any()
    return AROUND[0] * turn <= span <= AROUND[1] * turn and bool(is_placed)

  def list_wraps(self, columns: Sequence[int], unit: str) -> set[tuple[float, float]]:
    """Where those of these columns that jump by a whole turn go around."""
    return {
      self.propose_wrap(n, k)
      for n in columns
      for k in range(len(TURNS))
      if self.count_NK[n, k] and self.is_angle(n, k, unit)
    }

  def propose_wrap(self, n: int, k: int) -> tuple[float, float]:
    """Where a column with jumps of turn `k` goes around."""
    turn = tuple(TURNS.values())[k]
    low = 0.0 if self.low_N[n] > -turn / 20 else -turn / 2
    return low, low + turn


def find_slice(slices: Sequence[record_lib.Slice], column: int) -> int:
  """The number of the slice in which a column of the vector lies."""
  ends = np.cumsum([s.width for s in slices])
  return int(np.searchsorted(ends, column, 'right'))


def _count(
  found: dict[int, tuple[int, int, int]], i: int, is_one_T: np.ndarray, place: Place
) -> None:
  """Counts these rows, the first of which lies at `place`."""
  if is_one_T.any():
    episode, start = place
    count, *first = found.get(i, (0, episode, start + int(is_one_T.argmax())))
    found[i] = (count + int(is_one_T.sum()), *first)


def _find_flips(turns_T3: np.ndarray) -> np.ndarray:
  """[T - 1] bool, where three angles, in turns, name nearly the same rotation by far numbers."""
  jump_T3 = np.abs(np.diff(turns_T3, axis=0))
  # Euler angles past a pole.
  is_half_T3 = (jump_T3 >= HALF[0]) & (jump_T3 <= HALF[1])
  # A vector of rotation by half a turn, and its opposite.
  ends_T3 = turns_T3[1:] + turns_T3[:-1]
  length_T = np.linalg.norm(turns_T3, axis=1)
  is_long_T = np.minimum(length_T[1:], length_T[:-1]) >= HALF[0]
  is_opposite_T = is_long_T & (np.linalg.norm(ends_T3, axis=1) <= NEAR)
  # Of one number alone it is a seam, which a turn of it mends.
  is_opposite_T &= (jump_T3 > NEAR).sum(1) > 1
  return (is_half_T3.sum(1) >= 2) | is_opposite_T


def list_unsafe(
  record: record_lib.Embodiment,
  state: Seams,
  action: Seams,
  where: Callable[[int], str],
) -> Iterator[str]:
  """A sentence for each relative action whose differences are a whole turn off, or no differences.

  Args:
    where: episode number to its place in the dataset.
  """
  references = record.reference_columns
  for i, (s, of_slice) in enumerate(record_lib.columns(record.action)):
    columns = range(of_slice.start, of_slice.stop)
    if not s.relative_to:
      continue
    for n in () if s.wrap else columns:
      of_state = record.state[find_slice(record.state, references[n])]
      sides = ((action, n, s), (state, references[n], of_state))
      yield from _list_seams(sides, s, n - columns.start, where)
    of_state = find_slice(record.state, references[columns.start])
    yield from _list_flips(s, (action, i), (state, of_state), where)


def _list_seams(
  sides: Sequence[tuple[Seams, int, record_lib.Slice]],
  s: record_lib.Slice,
  offset: int,
  where: Callable[[int], str],
) -> Iterator[str]:
  for seams, n, part in sides:
    for k, unit in enumerate(TURNS):
      if not seams.count_NK[n, k] or not seams.is_angle(n, k, part.unit):
        continue
      episode, step, before, after = seams.first[n, k]
      low, high = seams.propose_wrap(n, k)
      yield (
        f'action {s.key}[{s.start + offset}], counted from {s.relative_to}, goes around: from '
        f'{before:.5g} to {after:.5g} {unit} after step {step} of {where(episode)}, '
        f'{seams.count_NK[n, k]} times; say "wrap": [{low:.6g}, {high:.6g}] in that slice of the '
        'record'
      )
      return


def _list_flips(
  s: record_lib.Slice,
  action: tuple[Seams, int],
  state: tuple[Seams, int],
  where: Callable[[int], str],
) -> Iterator[str]:
  for seams, i in (action, state):
    for found, what in ((seams.flips, 'a quaternion'), (seams.rotations, 'a rotation')):
      if i in found:
        count, episode, step = found[i]
        yield (
          f'action {s.key}[{s.start}:{s.stop}], counted from {s.relative_to}, is {what} whose '
          f'numbers flip together {count} times, first after step {step} of {where(episode)}; make '
          'it absolute, or store a rotation whose neighbours have neighbouring numbers'
        )
        return


def mend(
  record: record_lib.Embodiment, state: Seams, action: Seams
) -> tuple[record_lib.Embodiment, list[str]]:
  """(the record with relative angles that say where they go around, and rotations that flip
  absolute, what was changed, a line each).
  """
  changes = []
  slices = []
  for i, (s, columns) in enumerate(record_lib.columns(record.action)):
    mine = range(columns.start, columns.stop)
    mended = s
    if s.relative_to and not s.wrap:
      theirs = [record.reference_columns[n] for n in mine]
      wraps = action.list_wraps(mine, s.unit) | state.list_wraps(theirs, s.unit)
      of_state = find_slice(record.state, theirs[0])
      flips = i in action.flips or i in action.rotations
      flips |= of_state in state.flips or of_state in state.rotations
      if flips or len(wraps) > 1:
        mended = dataclasses.replace(s, relative_to='', rest=s.relative_to)
        changes.append(f'action {s.key}[{s.start}:{s.stop}]: absolute, for its numbers flip')
      elif wraps:
        mended = dataclasses.replace(s, wrap=wraps.pop())
        changes.append(f'action {s.key}[{s.start}:{s.stop}]: goes around at {mended.wrap}')
    slices.append(mended)
  return dataclasses.replace(record, action=tuple(slices)), changes
