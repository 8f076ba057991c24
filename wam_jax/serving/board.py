"""What the page shows: who is there, what they see and what was imagined for them, and how long
answers take. Owns the newest of each; `health` hands it out, `page/` draws it.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import watching

_ANSWERS = 240  # Of which latencies are shown.
_RATE_S = 10.0  # Over which answers a second are counted.
_ENDED_S, _MOST_ENDED = 60.0, 12  # For which episodes are shown that are over, and how many.
_MOST_SHOWN = 64  # Episodes on the page.

REAL, IMAGINED = 'real', 'imagined'


@dataclasses.dataclass(eq=False)
class _Row:
  """An episode.

  Attributes:
    pictures: by kind, a strip of frames [I, r J, 3] that is not changed any more.
    versions: by kind, how many there were.
    frames: by kind, the number of frames in the strip.
  """

  began: watching.Began
  used_s: float
  chunks: int = 0
  age_s: float = 0.0
  queue_s: float = 0.0
  device_s: float = 0.0
  repeated: int = 0
  ended_s: float | None = None
  pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  versions: dict[str, int] = dataclasses.field(default_factory=dict)
  frames: dict[str, int] = dataclasses.field(default_factory=dict)

  def put(self, kind: str, frames) -> None:
    self.pictures[kind] = np.concatenate(list(frames), axis=1)
    self.frames[kind] = len(frames)
    self.versions[kind] = self.versions.get(kind, 0) + 1


class Board(watching.Watcher):
  """The newest of all episodes. Read by other threads than the one that writes it."""

  name = 'page'

  def __init__(
    self,
    about: Mapping[str, Any],
    metrics: metrics_lib.Metrics,
    clock: Callable[[], float] = time.monotonic,
  ):
    """`about` is shown as it is: JSON-ready."""
    self._about = dict(about)
    self._metrics = metrics
    self._clock = clock
    self._start_s = clock()
    self._rows: dict[int, _Row] = {}
    # (when, age, queue, device), seconds.
    self._answers: collections.deque[tuple[float, ...]] = collections.deque(maxlen=_ANSWERS)
    self._lock = threading.Lock()

  def note(self, **about: Any) -> None:
    """Changes what is shown of the server."""
    self._about = {**self._about, **about}

  def take(self, event: watching.Event) -> None:
    with self._lock:
      if isinstance(event, watching.Began):
        self._rows[event.episode] = _Row(event, self._clock())
        self._forget_old()
      row = self._rows.get(event.episode)
      if row is None:
        return
      if isinstance(event, watching.Answered):
        self._note_answer(row, event)
      elif isinstance(event, watching.Imagined) and event.frames_RIJ3 is not None:
        row.put(IMAGINED, event.frames_RIJ3)
      elif isinstance(event, watching.Ended):
        row.ended_s = self._clock()

  def lose(self, episode: int) -> None:
    with self._lock:
      self._rows.pop(episode, None)

  def show(self) -> dict[str, Any]:
    """JSON-ready: `about`, `sessions`, `latency`, `counts`."""
    with self._lock:
      self._forget_old()
      now_s = self._clock()
      # Those that are under way in their order, then those that ended last.
      rows = sorted(
        self._rows.values(), key=lambda row: (-(row.ended_s or np.inf), row.began.episode)
      )
      return {
        'about': {**self._about, 'up_s': now_s - self._start_s},
        'sessions': [self._show_row(row, now_s) for row in rows[:_MOST_SHOWN]],
        'latency': self._show_latency(now_s),
        'counts': {
          'open': sum(row.ended_s is None for row in rows),
          'refused': self._metrics.refused.total(),
          'imagined': self._metrics.imagined.value('decoded'),
          'dropped': self._metrics.imagined.value('dropped'),
          'recorded': self._metrics.recorded.value(),
        },
      }

  def draw(self, episode: int, kind: str) -> tuple[str, bytes] | None:
    """(MIME type, file) of the newest strip of frames of an episode; None where there is none."""
    with self._lock:
      row = self._rows.get(episode)
      strip = row and row.pictures.get(kind)
    if strip is None:
      return None
    bgr = np.ascontiguousarray(strip[..., ::-1])
    if len(strip) <= watching.SMALL_ROWS:
      return 'image/png', cv2.imencode('.png', bgr)[1].tobytes()
    options = (cv2.IMWRITE_JPEG_QUALITY, watching.JPEG_QUALITY)
    return 'image/jpeg', cv2.imencode('.jpg', bgr, options)[1].tobytes()

  def _note_answer(self, row: _Row, event: watching.Answered) -> None:
    row.used_s = self._clock()
    row.chunks = event.chunk + 1
    row.age_s, row.queue_s, row.device_s = event.age_s, event.queue_s, event.device_s
    row.repeated = event.window.repeated
    row.put(REAL, event.window.frames)
    self._answers.append((row.used_s, event.age_s, event.queue_s, event.device_s))

  def _show_row(self, row: _Row, now_s: float) -> dict[str, Any]:
    began = row.began
    return {
      'episode': began.episode,
      'session': began.session,
      'robot': began.record.name,
      'prompt': began.prompt,
      'began': began.why,
      'chunks': row.chunks,
      'seconds': row.chunks * began.record.chunk_s,
      'age_ms': 1e3 * row.age_s,
      'queue_ms': 1e3 * row.queue_s,
      'device_ms': 1e3 * row.device_s,
      'repeated_frames': row.repeated,
      'silent_s': now_s - row.used_s,
      'ended_s': None if row.ended_s is None else now_s - row.ended_s,
      'video_fps': began.record.video_fps,
      'versions': dict(row.versions),
      'frames': dict(row.frames),
    }

  def _show_latency(self, now_s: float) -> dict[str, Any]:
    answers = list(self._answers)
    ages_ms = [1e3 * age_s for _, age_s, _, _ in answers]
    recent = sum(now_s - when_s < _RATE_S for when_s, *_ in answers)
    # Of answers that come fast, those of a part of that time alone are kept.
    first_s = answers[0][0] if len(answers) == _ANSWERS else self._start_s
    percentiles = np.percentile(ages_ms, [50, 95, 99]) if ages_ms else [None] * 3
    return {
      'ages_ms': [round(age_ms, 3) for age_ms in ages_ms],
      **{name: value and float(value) for name, value in zip(('p50', 'p95', 'p99'), percentiles)},
      'per_s': recent / min(_RATE_S, max(now_s - first_s, 1e-3)),
    }

  def _forget_old(self) -> None:
    """Episodes that have been over for a while, and the oldest where there are many."""
    now_s = self._clock()
    ended = [number for number, row in self._rows.items() if row.ended_s is not None]
    ended.sort(key=lambda number: self._rows[number].ended_s or 0.0)
    for place, number in enumerate(ended):
      silent_s = now_s - (self._rows[number].ended_s or 0.0)
      if silent_s > _ENDED_S or place < len(ended) - _MOST_ENDED:
        del self._rows[number]
