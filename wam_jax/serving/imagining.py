"""Pictures of imagined video, made while no robot waits for them.

The device that decodes is the one that answers. So what was imagined waits on the host, and a chunk
is decoded where no observation waits and none is expected before that is done: between two queries
of a robot that acts in real time, in a pause, or when a session is over. The newest is decoded
first, and the oldest dropped where too many wait.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from wam_jax.control import turns
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import sessions as sessions_lib

_LOG = logging.getLogger(__name__)
SPARE, ALWAYS, OFF = 'spare', 'always', 'off'
KINDS = (SPARE, ALWAYS, OFF)

_PAUSE_S = 1.0  # Of silence, and twice the usual, after which a session is not expected.
_INTERVALS = 8  # A little less than the shortest of the last of them is expected.
_SHARE = 0.8  # Of that.
_MARGIN = 1.5  # Of what it took.
_MOST_CHUNKS, _MOST_BYTES = 1024, 2**30  # That wait.


class Rhythm:
  """When a session asks, within its episodes: what comes between two of them has no rhythm."""

  def __init__(self):
    self._newest_s = -math.inf
    self._episode = -1
    self._intervals: collections.deque[float] = collections.deque(maxlen=_INTERVALS)

  def beat(self, episode: int, now_s: float) -> None:
    """It asks now, in the episode of that number."""
    if episode == self._episode:
      self._intervals.append(now_s - self._newest_s)
    self._episode = episode
    self._newest_s = now_s

  @property
  def pauses_s(self) -> float:
    """From when on it is taken to pause."""
    return self._newest_s + max(_PAUSE_S, 2 * max(self._intervals, default=0.0))

  def expect(self, now_s: float) -> float:
    """When it may ask next: now, where that is not known."""
    if now_s > self.pauses_s:
      return math.inf
    return max(now_s, self._newest_s + _SHARE * min(self._intervals, default=0.0))


@dataclasses.dataclass(frozen=True)
class _Waiting:
  episode: int
  step: float
  dream: turns.Dream


class Dreams:
  """What was imagined and not looked at. `arrive` and `forget` may come from any thread, all else
  is of the device's. Whatever a picture fails of, the log says so, there is none, and robots are
  answered.

  Attributes:
    decode_s: what decoding a chunk takes, by the slowest of the last.
  """

  def __init__(
    self,
    engine: turns.Engine,
    kind: str,
    tell: Callable[[int, float, np.ndarray | None], None],
    metrics: metrics_lib.Metrics,
    clock: Callable[[], float] = time.monotonic,
  ):
    """
    Args:
      kind: of `KINDS`: in spare time, or at once, also where a robot waits then.
      tell: called with the episode, the step of the chunk, and its frames or None.
    """
    self._engine = engine
    self._kind = kind
    self._tell = tell
    self._metrics = metrics
    self._clock = clock
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._bytes = 0
    self._rhythms: dict[sessions_lib.Session, Rhythm] = {}
    self._took_s: collections.deque[float] = collections.deque(maxlen=8)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._waiting)

  @property
  def decode_s(self) -> float:
    return max(self._took_s, default=self._engine.imagine_s)

  def arrive(self, session: sessions_lib.Session, episode: int) -> None:
    """An observation of a session came, in the episode of that number."""
    if self._kind != OFF:
      with self._lock:
        self._rhythms.setdefault(session, Rhythm()).beat(episode, self._clock())

  def forget(self, session: sessions_lib.Session) -> None:
    """A session is over; nothing of it is expected."""
    with self._lock:
      self._rhythms.pop(session, None)

  def keep(self, episode: int, step: float, robot: str, acted: turns.Acted) -> None:
    """What came with a chunk waits; before the next turn of its session."""
    dream = None
    if self._kind != OFF:
      try:
        dream = self._engine.keep(robot, acted)
      except Exception:
        _LOG.exception('keeping an imagined chunk failed')
    if dream is None:
      self._tell(episode, step, None)
      return
    self._waiting.append(_Waiting(episode, step, dream))
    self._bytes += dream.nbytes
    while len(self._waiting) > _MOST_CHUNKS or self._bytes > _MOST_BYTES:
      self._drop()

  def wait_s(self) -> float | None:
    """Seconds until a chunk may be decoded, as far as is known now; None where none waits."""
    if not self._waiting:
      return None
    if self._kind == ALWAYS:
      return 0.0
    now_s = self._clock()
    ends_s = now_s + _MARGIN * self.decode_s
    with self._lock:
      # Whoever may ask before it is done.
      near = [one for one in self._rhythms.values() if one.expect(now_s) < ends_s]
    return max((one.pauses_s - now_s for one in near), default=0.0)

  def decode(self) -> None:
    """Makes the pictures of the newest chunk."""
    newest = self._waiting.pop()
    self._bytes -= newest.dream.nbytes
    start_s = self._clock()
    try:
      frames_RIJ3 = self._engine.imagine(newest.dream)
    except Exception:
      _LOG.exception('decoding an imagined chunk failed')
      self._tell(newest.episode, newest.step, None)
      return
    took_s = self._clock() - start_s
    self._took_s.append(took_s)
    self._metrics.imagining_s.observe(took_s)
    self._metrics.imagined.add(label='decoded')
    self._tell(newest.episode, newest.step, frames_RIJ3)

  def finish(self, seconds: float) -> None:
    """Makes what pictures it can within so many seconds; there are none of the rest."""
    ends_s = self._clock() + seconds
    while self._waiting and self._clock() + self.decode_s < ends_s:
      self.decode()
    while self._waiting:
      self._drop()

  def _drop(self) -> None:
    oldest = self._waiting.popleft()
    self._bytes -= oldest.dream.nbytes
    self._metrics.imagined.add(label='dropped')
    self._tell(oldest.episode, oldest.step, None)
