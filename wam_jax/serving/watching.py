"""What happens in a server, told to those who watch: the page, recordings, films, a viewer.

Each watcher works in a thread of its own behind a queue of bounded size, so that no answer waits
for a disk, a codec or a network. One that falls behind or fails loses whole episodes, never parts.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import record as record_lib
from wam_jax.serving import history as history_lib
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import sessions as sessions_lib

# Frames up to so many rows are sent to viewers as they are, larger ones as JPEG.
SMALL_ROWS, JPEG_QUALITY = 128, 85
_LOG = logging.getLogger(__name__)
_MOST_BYTES = 2**30  # Of what waits for a watcher.
_END_S = 60.0  # For what is left when the server stops.


@dataclasses.dataclass(frozen=True)
class Event:
  """Something about the episode of this number, of which there is one in a server."""

  episode: int

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays that it holds."""
    return 0


@dataclasses.dataclass(frozen=True)
class Began(Event):
  """An episode begins.

  Attributes:
    session: what people call its session.
    record: of its robot.
    prompt: what it was told.
    why: what began it.
    at_s: when, in seconds since 1970.
  """

  session: str
  record: record_lib.Embodiment
  prompt: str
  why: str
  at_s: float


@dataclasses.dataclass(frozen=True)
class Saw(Event):
  """An observation that asks for a chunk.

  Attributes:
    observation: images and states by the keys of the record, as they were sent.
    steps_T: when its frames were taken, in control steps.
  """

  observation: Mapping[str, np.ndarray]
  steps_T: np.ndarray

  @property
  def nbytes(self) -> int:
    return _count(self.observation)


@dataclasses.dataclass(frozen=True)
class Answered(Event):
  """A chunk that was sent.

  Attributes:
    chunk: how many of its episode came before.
    window: the frames that the model was shown for it; of `window.step` on are its actions.
    action_SU: as the robot takes them.
    age_s, queue_s, device_s: from the observation's arrival to the answer; of that waiting, and
      computing.
    checkpoint_step: of the weights that made it; None where the server has had no others.
  """

  chunk: int
  window: history_lib.Window
  action_SU: np.ndarray
  age_s: float
  queue_s: float
  device_s: float
  checkpoint_step: int | None = None

  @property
  def nbytes(self) -> int:
    return sum(frame.nbytes for frame in self.window.frames)


@dataclasses.dataclass(frozen=True)
class Did(Event):
  """A control step that a client says was done: what it saw, and the action that it executed then.

  Attributes:
    step: its number in the episode.
  """

  step: int
  observation: Mapping[str, np.ndarray]
  action_U: np.ndarray

  @property
  def nbytes(self) -> int:
    return _count(self.observation)


@dataclasses.dataclass(frozen=True)
class Imagined(Event):
  """Pictures of what was imagined with the chunk of `step`, as `Answered.window` counts it.

  Attributes:
    frames_RIJ3: uint8 composites; None where there are none.
  """

  step: float
  frames_RIJ3: np.ndarray | None

  @property
  def nbytes(self) -> int:
    return 0 if self.frames_RIJ3 is None else self.frames_RIJ3.nbytes


@dataclasses.dataclass(frozen=True)
class Ended(Event):
  """Nothing more is seen or done in the episode; `Imagined` may still come.

  Attributes:
    outcome: what the client said of it.
    steps: how many control steps it says that it did; None where it does not say.
  """

  outcome: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  steps: int | None = None


class Watcher:
  """Takes events in their order, in one thread. A watcher of its own overrides what it needs.

  Attributes:
    name: for logs and metrics.
  """

  name = ''

  def take(self, event: Event) -> None:
    """Something happened."""

  def lose(self, episode: int) -> None:
    """Events of an episode were lost, and no more of it come."""

  def close(self) -> None:
    """The server stops; all events were taken."""


class Desk:
  """A watcher in its thread, and what waits for it."""

  def __init__(self, watcher: Watcher, lost: metrics_lib.Counter, most_bytes: int = _MOST_BYTES):
    """`lost` counts episodes by watcher."""
    self._watcher = watcher
    self._lost = lost
    self._most_bytes = most_bytes
    self._waiting: collections.deque[Event | None] = collections.deque()
    self._bytes = 0
    self._changed = threading.Condition()
    # Episodes of which something was lost, until they end.
    self._broken: set[int] = set()
    self._thread = threading.Thread(target=self._run, daemon=True, name=watcher.name)
    self._thread.start()

  def put(self, event: Event) -> None:
    """Hands an event over; never waits."""
    with self._changed:
      if event.episode in self._broken:
        if isinstance(event, Ended):
          self._broken.discard(event.episode)
        return
      fits = self._bytes + event.nbytes <= self._most_bytes
      if not fits:
        self._break(event.episode)
      self._bytes += event.nbytes if fits else 0
      self._waiting.append(event if fits else _Lost(event.episode))
      self._changed.notify()

  def close(self, seconds: float = _END_S) -> None:
    """Waits until all was taken, or for so long."""
    with self._changed:
      self._waiting.append(None)
      self._changed.notify()
    self._thread.join(seconds)
    if self._thread.is_alive():
      _LOG.error('%s was not done within %g s; what was open is lost', self._watcher.name, seconds)

  def _break(self, episode: int) -> None:
    self._broken.add(episode)
    self._lost.add(label=self._watcher.name)
    _LOG.error('%s loses an episode', self._watcher.name)

  def _run(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._waiting)
        event = self._waiting.popleft()
        if event is not None:
          self._bytes -= event.nbytes
          is_broken = event.episode in self._broken and not isinstance(event, _Lost)
          if is_broken and isinstance(event, Ended):
            self._broken.discard(event.episode)
      try:
        if event is None:
          self._watcher.close()
          return
        if isinstance(event, _Lost):
          self._watcher.lose(event.episode)
        elif not is_broken:
          self._watcher.take(event)
      except Exception:
        # A disk, a codec, a network: the episode is lost and counted, the next one is tried.
        _LOG.exception('%s failed', self._watcher.name)
        if event is None:
          return
        self._fail(event)

  def _fail(self, event: Event) -> None:
    with self._changed:
      if event.episode not in self._broken:
        self._break(event.episode)
      # What came after its end is all there is.
      if isinstance(event, Ended):
        self._broken.discard(event.episode)
    try:
      self._watcher.lose(event.episode)
    except Exception:
      # What cannot even be removed is told; the thread is of the episodes after it.
      _LOG.exception('%s failed again', self._watcher.name)


@dataclasses.dataclass(frozen=True)
class _Lost(Event):
  """Events of this episode did not fit the queue."""


class Hub:
  """Tells all watchers. But for `imagined`, which is of the device's thread, of the event loop."""

  def __init__(self, watchers: Sequence[Watcher], metrics: metrics_lib.Metrics):
    self._desks = [Desk(watcher, metrics.unwatched) for watcher in watchers]
    self._open: dict[sessions_lib.Session, int] = {}

  def begin(self, session: sessions_lib.Session) -> None:
    """An episode of a session begins; the one before is over."""
    self.end(session)
    if session.is_rehearsal or not self._desks:
      return
    self._open[session] = session.episode
    began = Began(
      episode=session.episode,
      session=session.name,
      record=session.robot.record,
      prompt=session.prompt or '',
      why=session.began,
      at_s=time.time(),
    )
    self._tell(began)

  def is_watched(self, session: sessions_lib.Session) -> bool:
    """Whether anybody watches the episode that a session is in."""
    return session in self._open

  def tell(self, event: Event) -> None:
    """Something happened in an episode that is under way; of others, nothing is told."""
    if event.episode in self._open.values():
      self._tell(event)

  def imagined(self, episode: int, step: float, frames_RIJ3: np.ndarray | None) -> None:
    """Pictures of a chunk, also of an episode that is over."""
    self._tell(Imagined(episode, step, frames_RIJ3))

  def end(
    self,
    session: sessions_lib.Session,
    outcome: Mapping[str, Any] | None = None,
    steps: int | None = None,
  ) -> None:
    """The episode of a session is over, if one was under way; arguments as of `Ended`."""
    episode = self._open.pop(session, None)
    if episode is not None:
      self._tell(Ended(episode, outcome or {}, steps))

  def close(self) -> None:
    """All episodes are over; waits for the watchers."""
    for session in list(self._open):
      self.end(session)
    for desk in self._desks:
      desk.close()

  def _tell(self, event: Event) -> None:
    for desk in self._desks:
      desk.put(event)


def _count(observation: Mapping[str, np.ndarray]) -> int:
  return sum(value.nbytes for value in observation.values())
