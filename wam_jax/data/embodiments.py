"""One declarative record per robot: cameras and their tiling, state and action slices with units, rates, prompt.

Owns no I/O and no statistics. A record says how the arrays of an RLDS step become the model's inputs.
"""
from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class View:
  """A camera and the rectangle it fills in the composite image.

  Attributes:
    key: of the image under `steps/observation/` (a path with '/' for nested features).
    row, column, height, width: of its rectangle, pixels; the image is resized to it.
  """

  key: str
  row: int
  column: int
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class Slice:
  """Part of a state or action vector.

  Attributes:
    key: of the array under `steps/observation/` (state) or `steps/` (action).
    start, stop: columns taken.
    unit: 'm', 'rad', 'normalized', ... one word for documentation and plots.
    relative_to: for actions, key and columns of the state slice subtracted at the chunk's first step, as
      'key:start:stop'; '' for an absolute action.
    rest: for actions whose zero is not standing still, the state slice that changes nothing, written likewise.
  """

  key: str
  start: int
  stop: int
  unit: str
  relative_to: str = ''
  rest: str = ''


@dataclasses.dataclass(frozen=True)
class Embodiment:
  """Everything the pipeline and the policy must know about one robot.

  Attributes:
    name: key of the table below and of `DataConfig.embodiments`.
    views: cameras in tiling order; together they cover `composite` (rows, columns), the rest is black.
    composite: pixel size of the tiled image.
    state, action: slices in the order the model sees them; no action slices for video-only data.
    control_hz: rate of the recorded actions.
    video_fps: rate of the camera frames that the model sees; must divide `control_hz`.
    chunk_s: seconds one chunk covers.
    prompt: template with one or more `{}` for the lower-cased instruction.
    language: keys under `steps/` that hold instructions (several: one is drawn per sample in training).
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

  def __post_init__(self):
    problems = [*self._timing_problems(), *self._view_problems(),
                *(f'{part}={text!r} of action {s.key!r} lies in no state slice, or has another width'
                  for s in self.action for part, text in (('relative_to', s.relative_to), ('rest', s.rest))
                  if text and self._state_column(text, s.stop - s.start) is None)]
    if problems:
      raise ValueError(f'Embodiment {self.name!r}: {"; ".join(problems[:10])}.')

  def _timing_problems(self):
    if self.control_hz <= 0 or self.video_fps <= 0 or abs(self.control_hz / self.video_fps - self.stride) > 1e-6:
      yield f'video_fps={self.video_fps} must divide control_hz={self.control_hz}'
    elif abs(self.control_hz * self.chunk_s - self.steps_per_chunk) > 1e-6 or not self.steps_per_chunk:
      yield f'chunk_s={self.chunk_s} must be a whole number of steps at control_hz={self.control_hz}'
    elif self.steps_per_chunk % self.stride:
      yield f'{self.steps_per_chunk} steps a chunk must be a multiple of {self.stride} steps a camera frame'

  def _view_problems(self):
    if not self.views:
      yield 'needs at least one view'
    for view in self.views:
      if view.row + view.height > self.composite[0] or view.column + view.width > self.composite[1]:
        yield f'view {view.key!r} ends outside the composite {self.composite}'

  def _state_column(self, text: str, width: int) -> int | None:
    """Where 'key:start:stop' begins in the model's state vector; None if it is not inside one state slice."""
    key, start, stop = text.rsplit(':', 2)
    offset = 0
    for s in self.state:
      if s.key == key and s.start <= int(start) and int(stop) <= s.stop:
        return offset + int(start) - s.start if int(stop) - int(start) == width else None
      offset += s.stop - s.start
    return None

  @property
  def reference_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension subtracted at the chunk's first step; -1 where absolute."""
    return self._columns([s.relative_to for s in self.action])

  @property
  def rest_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension that, sent as the action, changes nothing; -1 where zero does."""
    return self._columns([s.rest for s in self.action])

  def _columns(self, texts: list[str]) -> tuple[int, ...]:
    widths = [s.stop - s.start for s in self.action]
    return tuple(self._state_column(text, width) + i if text else -1
                 for text, width in zip(texts, widths) for i in range(width))

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
    return sum(s.stop - s.start for s in self.action)

  @property
  def proprio_dim(self) -> int:
    """Real state dimensions."""
    return sum(s.stop - s.start for s in self.state)


def _tabletop(name: str, state: tuple[Slice, ...], action: tuple[Slice, ...], control_hz: float) -> Embodiment:
  """A tabletop robot: the top view beside the wrist view, which is squeezed to half its width to save tokens."""
  return Embodiment(
      name=name, views=(View('top', 0, 0, 32, 32), View('wrist', 0, 32, 32, 16)), composite=(32, 48),
      state=state, action=action, control_hz=control_hz, video_fps=2.5, chunk_s=0.8)


EMBODIMENTS = {e.name: e for e in (
    _tabletop('tabletop_disc',
              (Slice('proprio', 0, 4, 'm'),), (Slice('action', 0, 3, 'normalized'),), control_hz=10.0),
    _tabletop('tabletop_arm',
              (Slice('proprio', 0, 6, 'rad'),), (Slice('action', 0, 3, 'normalized'),), control_hz=15.0),
    _tabletop('tabletop_cart',
              (Slice('proprio', 0, 5, 'm'),), (Slice('action', 0, 4, 'normalized'),), control_hz=5.0),
    _tabletop('tabletop_human', (), (), control_hz=10.0),
    # BridgeData V2 as published in RLDS. Most of its episodes have only the fixed camera image_0; the others are blank
    # there. Actions are end-effector deltas already, the gripper (1 open, 0 closed) is absolute.
    Embodiment(
        name='bridge_widowx', views=(View('image_0', 0, 0, 64, 64),), composite=(64, 64),
        state=(Slice('state', 0, 3, 'm'), Slice('state', 3, 6, 'rad'), Slice('state', 6, 7, 'normalized')),
        action=(Slice('action', 0, 3, 'm'), Slice('action', 3, 6, 'rad'),
                Slice('action', 6, 7, 'normalized', rest='state:6:7')),
        control_hz=5.0, video_fps=2.5, chunk_s=0.8),
)}


def get(name: str) -> Embodiment:
  """The record called `name`.

  Raises:
    ValueError: there is none.
  """
  if name not in EMBODIMENTS:
    raise ValueError(f'There is no embodiment {name!r}; wam_jax/data/embodiments.py has {sorted(EMBODIMENTS)}.')
  return EMBODIMENTS[name]


def from_dict(record: Mapping[str, Any]) -> Embodiment:
  """Inverse of `dataclasses.asdict`, also after a trip through JSON."""
  slices = {part: tuple(Slice(**s) for s in record[part]) for part in ('state', 'action')}
  return Embodiment(**{**record, **slices, 'views': tuple(View(**v) for v in record['views']),
                       'composite': tuple(record['composite']), 'language': tuple(record['language'])})
