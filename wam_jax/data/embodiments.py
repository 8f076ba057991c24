"""One declarative record per robot: cameras and their tiling, state and action slices with units, rates, prompt.

Owns no I/O and no statistics. A record says how the arrays of an RLDS step become the model's inputs.
"""
from __future__ import annotations

import dataclasses


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
  """

  key: str
  start: int
  stop: int
  unit: str
  relative_to: str = ''


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
)}
