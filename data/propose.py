"""A record proposed from the data: what its vectors are, by the names of their columns and by how
they move.

Shared by `data.from_lerobot` and `data.suggest`, which find the vectors. What the data do not tell
is guessed, and said: `propose` returns the guesses with the record.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from wam_jax.data import angles
from wam_jax.data import record as record_lib
from wam_jax.interop.dreamzero import composites
from wam_jax.interop.dreamzero import robots

SAMPLED = 20  # Episodes whose numbers are looked at.
WIDEST = 64  # Longer vectors are embeddings or point clouds.
VIEW_WIDTH = 320  # Pixels of a camera in the composite, at most.
TILE = 16  # Pixels; the encoders want composites of whole ones.
AHEAD_S = 0.5  # A target that a robot follows is reached within this time.
# Of a target's own spread, what may be left when the state that follows is subtracted.
TARGET_FIT = 0.5
HELD_FIT = 0.1  # The same of its size, where the names of both agree.
MOTION_FIT = 0.5  # Correlation of deltas or velocities with the state's motion.
# Motion within a chunk over the range of all episodes: below it, counting from the chunk's first
# state spares resolution.
RELATIVE_BELOW = 0.5

_SUFFIX = re.compile(r'[._](pos|position|goal|target|value|vel|velocity)$')
_SIDE = re.compile(r'(?:^|[_.\s-])(left|right)(?:[_.\s-]|$)')
# Of an end effector or a pose: what is called wrist_roll is a joint.
_POSE = r'^(?:(?:left|right|ee|eef|tcp|pose|end|effector|orientation|delta|d)[_.]?)*'
# In this order: the first that matches a column's name says what it is.
_KINDS = (
  ('gripper', re.compile(r'grip|finger|claw|jaw|suction|(?<!end_)effector')),
  ('base', re.compile(r'base|wheel|(^|[_.])(linear|angular|theta|vx|vy|vw)([_.]|$)')),
  ('rotation', re.compile(_POSE + r'(?:r[xyz]|w[xyz]|q[xyzw]|roll|pitch|yaw|rot\w*)\d*$')),
  ('position', re.compile(r'(^|[_.]|d)[xyz]$')),
)


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera by the record's key, and the rows and columns of its images."""

  key: str
  rows: int
  columns: int


@dataclasses.dataclass(frozen=True)
class Vector:
  """An array of numbers by the record's key.

  Attributes:
    names: of its columns; () where they have none.
    is_relative: whether the data say that it counts from the state of the same name.
  """

  key: str
  width: int
  names: tuple[str, ...] = ()
  is_relative: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
  """What a dataset says of itself.

  Attributes:
    name: of the robot.
    hz: of its steps.
    state, action: the vectors, in order.
    episodes: some, as ({state key: [T, width]}, {action key: [T, width]}).
    fields: others of the record that are known.
    notes: what else was decided, a line each.
  """

  name: str
  hz: float
  cameras: tuple[Camera, ...]
  state: tuple[Vector, ...]
  action: tuple[Vector, ...]
  episodes: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]
  fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Run:
  """Neighbouring columns of a vector that are of one kind, and of one arm.

  Attributes:
    kind: 'gripper', 'base', 'rotation', 'position', 'joint', or '' where nothing tells.
    values: per episode [T, width].
  """

  vector: Vector
  start: int
  stop: int
  kind: str
  values: tuple[np.ndarray, ...]

  @property
  def names(self) -> tuple[str, ...]:
    return self.vector.names[self.start : self.stop]

  @property
  def label(self) -> str:
    text = f'{self.vector.key}[{self.start}:{self.stop}]'
    return f'{text} ({", ".join(self.names)})' if self.names else text

  @property
  def all(self) -> np.ndarray:
    """[all steps, width]; zeros where no episode could be read."""
    return np.concatenate(
      [*self.values, np.zeros((0 if self.values else 1, self.stop - self.start))]
    )


@dataclasses.dataclass(frozen=True)
class _Source:
  """Columns of the state that an action is about.

  Attributes:
    text: as `Slice.relative_to` names them.
    values: per episode [T, width].
    unit: of the slice that they lie in.
    steps: that the state is later, where it follows a target.
    misfit: what of the action's spread is left after that.
    offset: what of the action's size is left after that.
    same: whether the columns have the action's names.
  """

  text: str
  values: tuple[np.ndarray, ...]
  unit: str
  steps: int
  misfit: float
  offset: float
  same: bool

  @property
  def is_held(self) -> bool:
    """Whether an arm that hardly moves holds what it is told: its spread tells nothing, and zero is
    far from it.
    """
    return self.same and self.offset < HELD_FIT


def propose(found: Found) -> tuple[record_lib.Embodiment, list[str]]:
  """A record that fits the data, and what in it was guessed, a line each.

  Raises:
    ValueError: there is no camera; a world model needs one.
  """
  if not found.cameras:
    raise ValueError(f'{found.name!r} has no camera; a world model needs one.')
  guesses = list(found.notes)
  timing = record_lib.timing(found.hz)
  S = round(timing['control_hz'] * timing['chunk_s'])

  state_runs = [run for v in found.state for run in _split(v, [e[0] for e in found.episodes])]
  state = []
  for run in state_runs:
    unit, why = _find_unit(run)
    state.append(record_lib.Slice(run.vector.key, run.start, run.stop, unit))
    guesses.append(f'state {run.label}: {unit}, {why}')
  action = []
  for v in found.action:
    for run in _split(v, [e[1] for e in found.episodes]):
      one, why = _propose_action(run, list(zip(state_runs, state)), S, found.hz)
      action.append(one)
      guesses.append(f'action {run.label}: {why}')

  views, composite = tile(found.cameras)
  record = record_lib.Embodiment(
    name=found.name,
    views=views,
    composite=composite,
    state=tuple(state),
    action=tuple(action),
    **timing,
    **found.fields,
  )
  record, changes = _mend_angles(record, found)
  guesses += changes
  guesses.append(
    f'{found.hz:g} steps a second; chunks of {record.chunk_s:g} s, {S} actions and '
    f'{record.camera_frames_per_chunk} frames, as in the paper'
  )
  if changes := list(composites.list_changes(robots.find_tag(record.name), record)):
    guesses.append(
      f"only for an export to DreamZero's official server: {'; '.join(changes)}; after training it "
      'is too late, and --layout=diffusers needs none of it'
    )
  return record, guesses


def tile(
  cameras: Sequence[Camera],
) -> tuple[tuple[record_lib.View, ...], tuple[int, int]]:
  """Views in two columns, filled from the top left downwards as the reference does, and the size of
  the whole.
  """
  first = cameras[0]
  # No camera gets more pixels than it has.
  width = min(VIEW_WIDTH, -(-first.columns // TILE) * TILE)
  height = max(TILE, round(width * first.rows / first.columns / TILE) * TILE)
  # All views have the shape of the first one: the composite has to be a rectangle.
  rows = -(-len(cameras) // 2)
  columns = min(2, len(cameras))
  views = []
  for i, camera in enumerate(cameras):
    column, row = divmod(i, rows)
    views.append(record_lib.View(camera.key, row * height, column * width, height, width))
  return tuple(views), (rows * height, columns * width)


def sample(numbers: Sequence[int]) -> Sequence[int]:
  """At most `SAMPLED` of these, spread over all."""
  return numbers[:: max(1, -(-len(numbers) // SAMPLED))]


def plain_name(text: str) -> str:
  """Lower-case letters, digits and underscores, as TFDS wants names; perhaps ''."""
  return re.sub(r'\W+', '_', text).strip('_').lower()


def flatten_names(names: object, width: int) -> tuple[str, ...]:
  """Names of a vector's columns from what a description calls `names`: lists and dicts of them, one
  in another; () where they are not one a column.
  """
  flat = tuple(_list_leaves(names))
  return flat if len(flat) == width and all(isinstance(name, str) for name in flat) else ()


def _list_leaves(names: object) -> Iterator[object]:
  if isinstance(names, Mapping):
    names = list(names.values())
  if not isinstance(names, (list, tuple)):
    yield names
    return
  for name in names:
    yield from _list_leaves(name)


def _spell(name: str) -> str:
  """A name in small letters, its words parted: `kLeftHandIndex` as `k_left_hand_index`."""
  return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()


def _split(vector: Vector, arrays: Sequence[Mapping[str, np.ndarray]]) -> Iterator[_Run]:
  """The columns of a vector, cut where their kind or their arm changes."""
  values = [np.asarray(each[vector.key], np.float64).reshape(-1, vector.width) for each in arrays]
  kinds = _find_kinds(vector, values)
  start = 0
  for stop in range(1, vector.width + 1):
    if stop == vector.width or kinds[stop] != kinds[start]:
      parts = tuple(v[:, start:stop] for v in values)
      yield _Run(vector, start, stop, kinds[start][0], parts)
      start = stop


def _find_kinds(vector: Vector, values: Sequence[np.ndarray]) -> list[tuple[str, str]]:
  """(kind, side) of each column."""
  key = vector.key.lower()
  if vector.names:
    return [_name_kind(_spell(name), key) for name in vector.names]
  whole = _name_kind(key, '')
  kinds = [whole if whole[0] != 'joint' or 'joint' in key else ('', whole[1])] * vector.width
  # Without names: a last column that is nearly always at one of its two ends is a gripper.
  if vector.width > 2 and values and _is_two_valued(np.concatenate(values)[:, -1]):
    kinds[-1] = ('gripper', kinds[-1][1])
  return kinds


def _name_kind(name: str, key: str) -> tuple[str, str]:
  side = _SIDE.search(name) or _SIDE.search(key)
  plain = _SUFFIX.sub('', name)
  kind = next((kind for kind, pattern in _KINDS if pattern.search(plain)), 'joint')
  return kind, side.group(1) if side else ''


def _is_two_valued(column_T: np.ndarray) -> bool:
  low, high = column_T.min(), column_T.max()
  if high - low < 1e-6:
    return False
  share = (column_T - low) / (high - low)
  return bool(np.mean((share < 0.05) | (share > 0.95)) > 0.9)


def _find_unit(run: _Run) -> tuple[str, str]:
  """(unit, why) of columns, by their kind and size."""
  values = run.all
  size = float(np.quantile(np.abs(values), 0.995)) if values.size else 0.0
  low = float(values.min(initial=0))
  velocity = any(re.search(r'[._]vel', _spell(name)) for name in (*run.names, run.vector.key))
  per = '/s' if velocity else ''
  reach = f'values reach {size:.4g}'
  if run.kind == 'gripper':
    if size <= 1.05 and low >= -1.05:
      # Fingers that open by centimetres look like a share that never gets far.
      return ('normalized', reach) if size > 0.2 else ('m', f'guessed, {reach}')
    return ('percent', f'guessed, {reach}') if size <= 105 else ('raw', f'not known, {reach}')
  if run.kind in ('joint', 'rotation'):
    if run.names and all(re.search(r'(^|[_.])q[xyzw]$', _spell(name)) for name in run.names):
      return 'quaternion', 'by its names'
    if size > 2.2 * np.pi and not velocity:
      return 'deg', f'{reach}, more than a turn in radians'
    return f'rad{per}', f'{reach}, within a turn in radians'
  if run.kind == 'position':
    return (f'm{per}', reach) if size < 5 else (f'mm{per}', f'guessed, {reach}')
  if run.kind == 'base':
    return 'mixed', 'turns and drives'
  if 0.9 <= size <= 1.0001:
    return 'normalized', f'guessed, {reach} and nothing says of what'
  return 'unknown', f'nothing says, {reach}'


def _mend_angles(
  record: record_lib.Embodiment, found: Found
) -> tuple[record_lib.Embodiment, list[str]]:
  """The record whose differences are never a whole turn off, and what was changed for that."""
  seams = {part: angles.Seams(getattr(record, part)) for part in ('state', 'action')}
  for i, (state, action) in enumerate(found.episodes):
    for part, arrays in (('state', state), ('action', action)):
      columns = [arrays[s.key][:, s.start : s.stop] for s in getattr(record, part)]
      if columns:
        seams[part].add(np.concatenate(columns, axis=1), i)
  return angles.mend(record, **seams)


def _propose_action(
  run: _Run, states: list[tuple[_Run, record_lib.Slice]], steps: int, hz: float
) -> tuple[record_lib.Slice, str]:
  """A slice of the action, and why it is what it is."""
  unit, why_unit = _find_unit(run)
  part = record_lib.Slice(run.vector.key, run.start, run.stop, unit)
  source = _find_target(run, states, round(AHEAD_S * hz))
  if run.vector.is_relative and source is not None:
    return dataclasses.replace(part, relative_to=source.text, unit=source.unit), (
      f'{source.unit}, counts from {source.text}: the data say so'
    )
  if source is not None and (source.misfit < TARGET_FIT or source.is_held):
    part = dataclasses.replace(part, unit=source.unit)
    told = (
      f'{source.unit}, a target that {source.text} follows {source.steps / hz:.2g} s later, but '
      f'for {100 * source.misfit:.0f} % of its spread'
    )
    if source.misfit >= TARGET_FIT:
      told = (
        f'{source.unit}, a target that {source.text} holds, but for {100 * source.offset:.0f} % of '
        'its size; it hardly moves in these episodes'
      )
    share = _measure_motion(run, source, steps)
    if run.kind != 'gripper' and share < RELATIVE_BELOW:
      return dataclasses.replace(part, relative_to=source.text), (
        f'{told}; relative to it, since within a chunk it moves {100 * share:.0f} % of its range; '
        f'rest={source.text!r} in place of relative_to keeps it absolute'
      )
    reason = (
      '' if run.kind == 'gripper' else f', moving {100 * share:.0f} % of its range in a chunk'
    )
    return dataclasses.replace(part, rest=source.text), (
      f'{told}; absolute{reason}, and standing still is to send {source.text} back'
    )
  moved = _find_motion(run, states)
  if moved is not None:
    text, correlation = moved
    return part, (
      f'{unit} ({why_unit}), a change or velocity of {text} (correlation {correlation:.2f}): '
      'zero stands still'
    )
  return part, f'{unit} ({why_unit}); follows no state, and zero is guessed to stand still'


def _list_windows(
  run: _Run, states: list[tuple[_Run, record_lib.Slice]]
) -> Iterator[tuple[str, tuple[np.ndarray, ...], str, bool]]:
  """(text, values, unit, whether names agree) of all columns of the state as wide as the run."""
  mine = [_SUFFIX.sub('', _spell(name)) for name in run.names]
  for other, part in states:
    theirs = [_SUFFIX.sub('', _spell(name)) for name in other.names]
    for start in range(other.stop - other.start - (run.stop - run.start) + 1):
      stop = start + run.stop - run.start
      text = f'{part.key}:{other.start + start}:{other.start + stop}'
      same = bool(mine) and theirs[start:stop] == mine
      yield text, tuple(v[:, start:stop] for v in other.values), part.unit, same


def _find_target(
  run: _Run, states: list[tuple[_Run, record_lib.Slice]], ahead: int
) -> _Source | None:
  """The columns of the state that follow the run most closely, those of its names before others."""
  spread = run.all.std(axis=0) + 1e-9
  size = np.sqrt(np.square(run.all).mean()) + 1e-9
  best: tuple[bool, float] | None = None
  found = None
  for text, values, unit, same in _list_windows(run, states):
    for late in range(ahead + 1):
      left = [a[: len(a) - late] - s[late:] for a, s in zip(run.values, values) if len(a) > late]
      if not left:
        continue
      error = np.square(np.concatenate(left))
      misfit = float(np.median(np.sqrt(error.mean(axis=0)) / spread))
      rank = (not same, misfit)
      if best is None or rank < best:
        best = rank
        offset = float(np.sqrt(error.mean()) / size)
        found = _Source(text, values, unit, late, misfit, offset, same)
  return found


def _measure_motion(run: _Run, source: _Source, steps: int) -> float:
  """How far actions get from the state at their chunk's start, over half their range."""
  away = []
  for a, s in zip(run.values, source.values):
    starts = range(0, max(1, len(a) - steps + 1), steps)
    away += [np.abs(a[start : start + steps] - s[start]) for start in starts]
  if not away:
    return 1.0
  low, high = np.quantile(run.all, (0.01, 0.99), axis=0)
  moved = np.quantile(np.concatenate(away), 0.99, axis=0)
  moves = high - low > 1e-6
  if not moves.any():
    return 1.0
  return float(np.median(moved[moves] / ((high - low)[moves] / 2)))


def _find_motion(
  run: _Run, states: list[tuple[_Run, record_lib.Slice]]
) -> tuple[str, float] | None:
  """The columns of the state whose changes go with the run, and how well."""
  best = None
  for text, values, _, same in _list_windows(run, states):
    pairs = [(a[:-1], np.diff(s, axis=0)) for a, s in zip(run.values, values) if len(a) > 2]
    if not pairs:
      continue
    a, change = (np.concatenate(part) for part in zip(*pairs))
    a, change = a - a.mean(axis=0), change - change.mean(axis=0)
    size = np.sqrt(np.square(a).sum(axis=0) * np.square(change).sum(axis=0)) + 1e-12
    correlation = float(np.median((a * change).sum(axis=0) / size))
    rank = (same, correlation)
    if correlation > MOTION_FIT and (best is None or rank > best[0]):
      best = (rank, text, correlation)
  return best and best[1:]
