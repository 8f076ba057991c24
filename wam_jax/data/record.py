"""What is said of a robot: cameras and their tiling, state and action slices with units, rates,
prompt.

A record says how the arrays of an RLDS step become the model's inputs. Owns no I/O, no statistics
and no robot: those that the project knows, and where others are found, are in embodiments.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import prompts

FLIPS = ('', 'rows', 'columns', 'both')
RESIZES = ('area', 'bilinear')
NORMS = ('q99', 'q99_reference', 'mean_std', 'min_max', 'none')

# The paper's; 8 camera frames are the released models' 2 latent frames of 4.
VIDEO_FPS = 5.0
FRAMES_PER_CHUNK = 8


@dataclasses.dataclass(frozen=True)
class View:
  """A camera and the rectangle it fills in the composite image.

  Attributes:
    key: of the image under `steps/observation/` (a path with '/' for nested features).
    row, column, height, width: of its rectangle, pixels; the image is resized to it.
    repeat: times that each column is drawn, side by side; the image is resized to `width / repeat`
      columns.
    flip: 'rows' where the stored image is upside down, 'columns' where it is mirrored, 'both', or
      ''.
  """

  key: str
  row: int
  column: int
  height: int
  width: int
  repeat: int = 1
  flip: str = ''


@dataclasses.dataclass(frozen=True)
class Slice:
  """Part of a state or action vector: (array[start:stop] - offset) / scale, clipped.

  Attributes:
    key: of the array under `steps/observation/` (state) or `steps/` (action), a path with '/' for
      nested features.
    start, stop: columns taken.
    unit: 'm', 'rad', 'normalized', ... of the result; one word for documentation and plots.
    relative_to: for actions, key and columns of the state slice subtracted at the chunk's first
      step, as 'key:start:stop'; '' for an absolute action.
    rest: for actions whose zero is not standing still, the state slice that changes nothing,
      written likewise.
    offset, scale: a constant change of units; offset=1, scale=-1 inverts a gripper.
    clip: lowest and highest result; () for no bounds.
    norm: how the result is brought to the model's range, see `normalize.Quantiles`.
    wrap: lowest result and the one a whole turn above it, which is the same pose, of an angle that
      goes around, as (-pi, pi) or (0, 360); () for any other number. Differences then go the short
      way, and commands come back within these two.
  """

  key: str
  start: int
  stop: int
  unit: str
  relative_to: str = ''
  rest: str = ''
  offset: float = 0.0
  scale: float = 1.0
  clip: tuple[float, ...] = ()
  norm: str = 'q99'
  wrap: tuple[float, ...] = ()

  @property
  def width(self) -> int:
    """Columns."""
    return self.stop - self.start

  def convert(self, stored: np.ndarray) -> np.ndarray:
    """The slice's stored columns [..., width] in its own units, float32."""
    part = np.asarray(stored, np.float32)
    # Most slices are stored in their own units: these keep every bit.
    if (self.offset, self.scale) != (0, 1):
      part = (part - np.float32(self.offset)) / np.float32(self.scale)
    return np.clip(part, *self.clip) if self.clip else part

  def restore(self, part: np.ndarray) -> np.ndarray:
    """What `convert` was given, but for what `clip` cut off."""
    if (self.offset, self.scale) == (0, 1):
      return part
    return part * np.float32(self.scale) + np.float32(self.offset)


@dataclasses.dataclass(frozen=True)
class Embodiment:
  """Everything the pipeline and the policy must know about one robot.

  Attributes:
    name: what the robot is called; a checkpoint knows it, and its row of the model, by this.
    views: cameras in tiling order; together they cover `composite` (rows, columns), the rest is
      black.
    composite: pixel size of the tiled image.
    state, action: slices in the order the model sees them; no action slices for video-only data.
    control_hz: rate of the recorded actions.
    video_fps: rate of the camera frames that the model sees; must divide `control_hz`.
    chunk_s: seconds one chunk covers.
    prompt: template with one or more `{}` for the lower-cased instruction.
    language: keys under `steps/` that hold instructions (several: one is drawn per sample in
      training).
    resize: how images get their size: 'bilinear' with antialiasing, as the reference, or 'area'
      (the mean of the pixels covered where it shrinks, linear elsewhere).
    episode_key: texts of an episode, outside its steps, that joined by '--' name it in a file of
      step ranges.
    success: text that the name of a successful episode contains; '' where all episodes are.
  """

  name: str
  views: tuple[View, ...]
  composite: tuple[int, int]
  state: tuple[Slice, ...]
  action: tuple[Slice, ...]
  control_hz: float
  video_fps: float
  chunk_s: float
  prompt: str = '{}'
  language: tuple[str, ...] = ('language_instruction',)
  resize: str = 'area'
  episode_key: tuple[str, ...] = ()
  success: str = ''

  def __post_init__(self):
    problems = [*self._timing_problems(), *self._view_problems(), *self._slice_problems()]
    if self.resize not in RESIZES:
      problems.append(f'resize={self.resize!r} must be one of {RESIZES}')
    if self.success and not self.episode_key:
      problems.append(f'success={self.success!r} needs episode_key, the texts it is looked for in')
    if problems:
      raise ValueError(f'Embodiment {self.name!r}: {"; ".join(problems[:10])}.')

  def _timing_problems(self) -> Iterator[str]:
    # In this order: each check divides by what the one before found to be valid.
    rates_are_positive = self.control_hz > 0 and self.video_fps > 0
    if not rates_are_positive or not _is_near(self.control_hz / self.video_fps, self.stride):
      yield f'video_fps={self.video_fps} must divide control_hz={self.control_hz}'
    elif not (
      self.steps_per_chunk and _is_near(self.control_hz * self.chunk_s, self.steps_per_chunk)
    ):
      yield (
        f'chunk_s={self.chunk_s} must be a whole number of steps at control_hz={self.control_hz}'
      )
    elif self.steps_per_chunk % self.stride:
      yield (
        f'{self.steps_per_chunk} steps a chunk must be a multiple of {self.stride} steps a camera '
        'frame'
      )

  def _view_problems(self) -> Iterator[str]:
    if not self.views:
      yield 'needs at least one view'
    for view in self.views:
      rows, columns = self.composite
      if view.row + view.height > rows or view.column + view.width > columns:
        yield f'view {view.key!r} ends outside the composite {self.composite}'
      if view.flip not in FLIPS:
        yield f'flip={view.flip!r} of view {view.key!r} must be one of {FLIPS}'
      if view.repeat < 1 or view.width % view.repeat:
        yield f'repeat={view.repeat} of view {view.key!r} must divide its width {view.width}'

  def _slice_problems(self) -> Iterator[str]:
    for s in (*self.state, *self.action):
      if s.width < 1 or s.start < 0:
        yield f'slice {s.key!r} takes the columns {s.start} to {s.stop}'
      if not s.scale:
        yield f'scale of slice {s.key!r} must not be 0'
      if s.clip and (len(s.clip) != 2 or s.clip[0] >= s.clip[1]):
        yield f'clip={s.clip} of slice {s.key!r} must be (lowest, highest) or ()'
      if s.wrap and (len(s.wrap) != 2 or s.wrap[0] >= s.wrap[1]):
        yield f'wrap={s.wrap} of slice {s.key!r} must be (lowest, lowest and a turn) or ()'
      if s.norm not in NORMS:
        yield f'norm={s.norm!r} of slice {s.key!r} must be one of {NORMS}'
    for s in self.action:
      for part, text in (('relative_to', s.relative_to), ('rest', s.rest)):
        if text and self._state_column(text, s.width) is None:
          yield f'{part}={text!r} of action {s.key!r} lies in no state slice, or has another width'

  def _state_column(self, text: str, width: int) -> int | None:
    """Where 'key:start:stop' begins in the model's state vector; None if it is not inside one state
    slice.
    """
    key, start, stop = text.rsplit(':', 2)
    offset = 0  # Columns of the model's vector before this slice.
    for s in self.state:
      if s.key == key and s.start <= int(start) and int(stop) <= s.stop:
        return offset + int(start) - s.start if int(stop) - int(start) == width else None
      offset += s.width
    return None

  @functools.cached_property
  def reference_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension subtracted at the chunk's first step; -1 where
    absolute.
    """
    return self._columns([s.relative_to for s in self.action])

  @functools.cached_property
  def rest_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension that, sent as the action, changes nothing; -1 where
    zero does.
    """
    return self._columns([s.rest for s in self.action])

  @functools.cached_property
  def wraps(self) -> tuple[tuple[float, float], ...]:
    """Per action dimension, its lowest number and its turn; (0, 0) where it does not go around."""
    found: list[tuple[float, float]] = []
    for s in self.action:
      low, high = s.wrap or (0.0, 0.0)
      found += [(low, high - low)] * s.width
    return tuple(found)

  def instruct(self, text: str) -> str:
    """The prompt: the template with the lower-cased instruction at every `{}`."""
    return prompts.fill(self.prompt, text.strip())

  def _columns(self, texts: list[str]) -> tuple[int, ...]:
    """Per action dimension, the state dimension that its slice's text names; -1 where it is ''."""
    columns: list[int] = []
    for s, text in zip(self.action, texts):
      if text:
        start = self._state_column(text, s.width)
        columns += range(start, start + s.width)
      else:
        columns += [-1] * s.width
    return tuple(columns)

  @property
  def stride(self) -> int:
    """Control steps between two camera frames that the model sees."""
    return round(self.control_hz / self.video_fps)

  @property
  def steps_per_chunk(self) -> int:
    """Control steps in one chunk."""
    return round(self.control_hz * self.chunk_s)

  @property
  def camera_frames_per_chunk(self) -> int:
    """r."""
    return self.steps_per_chunk // self.stride

  @property
  def action_dim(self) -> int:
    """Real action dimensions."""
    return sum(s.width for s in self.action)

  @property
  def proprio_dim(self) -> int:
    """Real state dimensions."""
    return sum(s.width for s in self.state)


def _is_near(rate: float, whole: int) -> bool:
  """Whether a quotient of rates is a whole number, but for rounding."""
  # Numbers such as 1.6 s are not exact in binary; wrong rates are off by far more.
  return abs(rate - whole) <= 1e-6


def read(slices: Sequence[Slice], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """[..., width of all slices] float32: the stored arrays, by key, as a record's vector.

  Raises:
    ValueError: an array is missing, or has too few columns.
  """
  problems = []
  for s in slices:
    if s.key not in arrays:
      problems.append(f'{s.key!r} is missing')
    elif np.shape(arrays[s.key])[-1] < s.stop:
      problems.append(f'{s.key!r} has {np.shape(arrays[s.key])[-1]} columns')
  if problems:
    # Read by whoever connects a robot, so it names all that is expected.
    widest: dict[str, int] = {}  # Several slices may be of one array.
    for s in slices:
      widest[s.key] = max(s.stop, widest.get(s.key, 0))
    expected = ', '.join(f'{key!r} with at least {stop} columns' for key, stop in widest.items())
    told = '; '.join(list(dict.fromkeys(problems))[:10])
    raise ValueError(f'{told}; got {sorted(arrays)}, expected {expected}.')
  parts = []
  for s in slices:
    array = np.asarray(arrays[s.key], np.float32)
    parts.append(array[..., s.start : s.stop])
  return convert(slices, np.concatenate(parts, axis=-1) if parts else np.zeros(0, np.float32))


def convert(slices: Sequence[Slice], stored: np.ndarray) -> np.ndarray:
  """[..., width of all slices] float32, a record's vector: the stored columns side by side, in the
  slices' units.
  """
  return _each(slices, Slice.convert, stored)


def restore(slices: Sequence[Slice], vector: np.ndarray) -> np.ndarray:
  """Inverse of `convert`, but for what a slice's `clip` cut off."""
  return _each(slices, Slice.restore, vector)


def _each(
  slices: Sequence[Slice], change: Callable[[Slice, np.ndarray], np.ndarray], vector: np.ndarray
) -> np.ndarray:
  """The vector with the columns of each slice changed."""
  # The usual record changes nothing, and then the vector is not copied.
  if all((s.offset, s.scale, s.clip) == (0, 1, ()) for s in slices):
    return vector
  parts = []
  end = 0
  for s in slices:
    parts.append(change(s, vector[..., end : end + s.width]))
    end += s.width
  return np.concatenate(parts, axis=-1)


def names(slices: Sequence[Slice]) -> list[str]:
  """One name per dimension, for messages, tables and plots."""
  return [f'{s.key}[{i}]' for s in slices for i in range(s.start, s.stop)]


def columns(slices: Sequence[Slice]) -> Iterator[tuple[Slice, slice]]:
  """Each slice with its columns of the whole vector."""
  start = 0
  for s in slices:
    yield s, slice(start, start + s.width)
    start += s.width


def widths(slices: Sequence[Slice]) -> dict[str, int]:
  """The least columns of each stored array, by its key."""
  found: dict[str, int] = {}
  for s in slices:
    found[s.key] = max(found.get(s.key, 0), s.stop)
  return found


def timing(control_hz: float) -> dict[str, float]:
  """Rates of a record as in the paper: chunks of 8 camera frames, as near 5 frames a second as
  `control_hz` allows.

  Where 5 divides `control_hz`, a chunk lasts 1.6 s: 24 steps at 15 Hz, 48 at 30 Hz.
  """
  stride = max(1, round(control_hz / VIDEO_FPS))
  return dict(
    control_hz=control_hz,
    video_fps=control_hz / stride,
    chunk_s=FRAMES_PER_CHUNK * stride / control_hz,
  )


def reference_timing(record: Embodiment) -> Embodiment:
  """The record with the rates of the released weights, called NAME_reference where they are not its
  own.

  The reference takes every third frame and 24 steps a chunk of every robot: at 15 Hz these are the
  paper's rates, at 30 Hz they are 10 frames a second and 0.8 s. Its normalization does not floor
  either: 'q99' becomes 'q99_reference'.
  Source: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID`.
  """
  rates = dict(video_fps=record.control_hz / 3, chunk_s=24 / record.control_hz)
  # Where both agree, as at DROID's 15 Hz, there is one record and one set of statistics.
  if rates == dict(video_fps=record.video_fps, chunk_s=record.chunk_s):
    return record
  return dataclasses.replace(
    record,
    name=f'{record.name}_reference',
    state=tuple(map(_unfloor, record.state)),
    action=tuple(map(_unfloor, record.action)),
    **rates,
  )


def _unfloor(s: Slice) -> Slice:
  """The slice with the reference's norm in place of ours, which floors narrow ranges."""
  return dataclasses.replace(s, norm='q99_reference') if s.norm == 'q99' else s


def with_composite(record: Embodiment, rows: int, columns: int, name: str) -> Embodiment:
  """The record, called `name`, with its composite and the rectangles in it scaled to `rows` x
  `columns` pixels.

  Raises:
    ValueError: a rectangle would not end on whole pixels.
  """
  by_row = rows / record.composite[0]
  by_column = columns / record.composite[1]

  # Edges that were rounded would leave gaps between views, or let them overlap.
  views = []
  for view in record.views:
    edges = dict(
      row=view.row * by_row,
      column=view.column * by_column,
      height=view.height * by_row,
      width=view.width * by_column,
    )
    if any(n != round(n) for n in edges.values()):
      raise ValueError(
        f'The views of {record.name!r} do not end on whole pixels in a composite of ({rows}, '
        f'{columns}); choose a multiple or whole fraction of {record.composite}.'
      )
    whole = {key: round(n) for key, n in edges.items()}
    views.append(dataclasses.replace(view, **whole))
  return dataclasses.replace(record, name=name, composite=(rows, columns), views=tuple(views))


def from_dict(record: Mapping[str, Any]) -> Embodiment:
  """Inverse of `dataclasses.asdict`, also after a trip through JSON; fields that a record lacks
  have their default.
  """
  # Checkpoints hold records of any age: a field that came later has its default.
  fields = dict(record)
  for key, value in record.items():
    if isinstance(value, list):  # JSON knows no tuples.
      fields[key] = tuple(value)
  fields['views'] = tuple(View(**view) for view in record['views'])
  for part in ('state', 'action'):
    fields[part] = tuple(slice_from_dict(s) for s in record[part])
  return Embodiment(**fields)


def list_differences(one: Embodiment, other: Embodiment) -> list[str]:
  """The fields in which two records differ, with both values, in words; none where they are the
  same robot.
  """
  lines = []
  for field in dataclasses.fields(Embodiment):
    mine, others = getattr(one, field.name), getattr(other, field.name)
    if mine == others:
      continue
    if field.name in ('views', 'state', 'action') and len(mine) == len(others):
      for a, b in zip(mine, others):
        lines += _list_part_differences(f'{field.name} {a.key}', a, b)
    else:
      lines.append(f'{field.name} ({_shorten(mine)} against {_shorten(others)})')
  return lines


def _list_part_differences(where: str, one: View | Slice, other: View | Slice) -> list[str]:
  """The fields in which two views or slices differ."""
  names = [field.name for field in dataclasses.fields(one)]
  pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
  return [f'{where}.{name} ({a!r} against {b!r})' for name, a, b in pairs if a != b]


def _shorten(value: Any) -> str:
  if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
    return str([part.key for part in value])
  return repr(value)


def slice_from_dict(content: Mapping[str, Any]) -> Slice:
  """Inverse of `dataclasses.asdict` for one slice."""
  pairs = {key: tuple(content.get(key, ())) for key in ('clip', 'wrap')}
  return Slice(**{**content, **pairs})
