"""What a session has seen, at the spacing of training.

Clients send a frame at each query, or a few since the last one; the model was trained on frames a
fixed number of control steps apart. Each frame is placed on the clock of control steps, and the
model is shown the nearest frame to each of its times. Owns no images of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from wam_jax.data import record as record_lib

SPACING, REFERENCE = 'spacing', 'reference'
KINDS = (SPACING, REFERENCE)
_REFERENCE_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Window:
  """The frames of a turn.

  Attributes:
    frames: uint8 composites [I, J, 3], r of them.
    repeated: how many of them are another one again.
    off: the most control steps between a frame and the time that it stands for.
    step: the control step of the newest.
  """

  frames: list[np.ndarray]
  repeated: int
  off: float
  step: float

  def place_frames(self, stride: int) -> Iterator[tuple[float, np.ndarray]]:
    """(control step that it stands for, frame) of each, which lie `stride` apart."""
    first = self.step - stride * (len(self.frames) - 1)
    for number, frame in enumerate(self.frames):
      yield first + number * stride, frame


class History:
  """The frames of one episode.

  Attributes:
    placed_T: the control steps of the frames that came last.
  """

  def __init__(
    self, record: record_lib.Embodiment, kind: str, steps_per_query: int, frames: int = 0
  ):
    """
    Args:
      kind: 'spacing', or 'reference' for DreamZero's server: the last four frames that came, the
        first in place of those that lack, each shown as often as a chunk has room.
      steps_per_query: control steps between two queries of a client that says no times.
      frames: that the model is shown, the newest; 0 for those of a chunk.
    """
    self._count = frames or record.camera_frames_per_chunk
    self._record = record
    self._kind = kind
    self._steps_per_query = steps_per_query
    self._frames: list[tuple[float, np.ndarray]] = []  # By time.
    self._answered: float | None = None
    self.placed_T = np.zeros(0)

  def add(self, frames: Sequence[np.ndarray], steps: np.ndarray | None) -> Window:
    """Takes the frames of a query; what the model is shown at it.

    Args:
      frames: composites, oldest first.
      steps: when they were taken, in control steps; None for as the queries come.
    Raises:
      ValueError: the newest is older than one that an answer was made of.
    """
    times = self._place(len(frames)) if steps is None else steps
    self.placed_T = times
    now = float(times[-1])
    if self._answered is not None and now < self._answered:
      raise ValueError(
        f'the newest frame is of step {now:g}, and step {self._answered:g} was answered already; '
        'reset the session where an episode starts'
      )
    # A query that was not answered, and is made again, is of the same time.
    kept = [(time, frame) for time, frame in self._frames if time < float(times[0])]
    self._frames = kept + [(float(time), frame) for time, frame in zip(times, frames)]
    oldest = now - self._record.steps_per_chunk - self._record.stride
    if self._kind == SPACING:
      self._frames = [pair for pair in self._frames if pair[0] >= oldest] or self._frames[-1:]
      return self._window(now)
    self._frames = self._frames[-_REFERENCE_FRAMES:]
    return self._reference_window(now)

  def note_answer(self, window: Window) -> None:
    """An answer was made of `window`: the next query comes after it."""
    self._answered = window.step

  def _place(self, count: int) -> np.ndarray:
    """Control steps of the frames of a client that says no times."""
    now = 0.0 if self._answered is None else self._answered + self._steps_per_query
    if count in (self._count, self._record.camera_frames_per_chunk):
      # As many as the model sees, or as a chunk shows: at its spacing.
      return now + self._record.stride * np.arange(1 - count, 1, dtype=float)
    if count == 1:
      return np.asarray([now])
    # Evenly over the steps since the last query: 24 steps in four frames are 1, 8.7, 16.3 and 24.
    return now + np.linspace(1 - self._steps_per_query, 0, count)

  def _window(self, now: float) -> Window:
    count = self._count
    if self._answered is None:
      # Before anything has moved, every frame is the current one.
      return Window([self._frames[-1][1]] * count, 0, 0.0, now)
    times = np.asarray([time for time, _ in self._frames])
    targets = self._targets(now)
    nearest = np.abs(times[None] - targets[:, None]).argmin(axis=1)
    frames = [self._frames[i][1] for i in nearest]
    off = float(np.abs(times[nearest] - targets).max())
    return Window(frames, count - len(set(nearest.tolist())), off, now)

  def _reference_window(self, now: float) -> Window:
    count = self._count
    if self._answered is None:
      return Window([self._frames[-1][1]] * count, 0, 0.0, now)
    last = [self._frames[0]] * (_REFERENCE_FRAMES - len(self._frames)) + self._frames
    chosen = [last[i] for i in np.arange(count) * _REFERENCE_FRAMES // count]
    times = np.asarray([time for time, _ in chosen])
    off = float(np.abs(times - self._targets(now)).max())
    return Window([frame for _, frame in chosen], count - len(set(times.tolist())), off, now)

  def _targets(self, now: float) -> np.ndarray:
    """Control steps at which the model sees frames."""
    count = self._count
    return now - self._record.stride * np.arange(count - 1, -1, -1, dtype=float)
