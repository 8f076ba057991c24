"""What a server counts and times, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Counter:
  """A number for each value of one label, which only rises."""

  kind = 'counter'

  def __init__(self, name: str, text: str, label: str = ''):
    self.name = name
    self.text = text
    self._label = label
    self._values: dict[str, float] = {} if label else {'': 0.0}
    self._lock = threading.Lock()

  def add(self, value: float = 1.0, label: str = '') -> None:
    with self._lock:
      self._values[label] = self._values.get(label, 0.0) + value

  def value(self, label: str = '') -> float:
    return self._values.get(label, 0.0)

  def total(self) -> float:
    """Of all labels."""
    with self._lock:
      return sum(self._values.values())

  def forget(self) -> None:
    with self._lock:
      self._values = {} if self._label else {'': 0.0}

  def lines(self) -> list[str]:
    with self._lock:
      values = sorted(self._values.items())
    return [f'{self.name}{_label(self._label, label)} {value:.15g}' for label, value in values]


class Gauge:
  """A number that is asked for when somebody looks."""

  kind = 'gauge'

  def __init__(self, name: str, text: str, read: Callable[[], float]):
    self.name = name
    self.text = text
    self._read = read

  def lines(self) -> list[str]:
    return [f'{self.name} {self._read():.15g}']


class Histogram:
  """How long something took, in seconds, for each value of one label."""

  kind = 'histogram'

  def __init__(self, name: str, text: str, label: str = '', bounds: Sequence[float] = _SECONDS):
    self.name = name
    self.text = text
    self._label = label
    self._bounds = bounds
    self._counts: dict[str, list[int]] = {}
    self._sums: dict[str, float] = {}
    self._lock = threading.Lock()

  def observe(self, seconds: float, label: str = '') -> None:
    with self._lock:
      counts = self._counts.setdefault(label, [0] * (len(self._bounds) + 1))
      counts[bisect.bisect_left(self._bounds, seconds)] += 1
      self._sums[label] = self._sums.get(label, 0.0) + seconds

  def forget(self) -> None:
    with self._lock:
      self._counts.clear()
      self._sums.clear()

  def lines(self) -> list[str]:
    with self._lock:
      counts = {label: list(each) for label, each in self._counts.items()}
      sums = dict(self._sums)
    lines = []
    for label, each in sorted(counts.items()):
      below = 0
      for bound, count in zip([*self._bounds, '+Inf'], each):
        below += count
        lines.append(f'{self.name}_bucket{_label(self._label, label, le=bound)} {below}')
      named = _label(self._label, label)
      lines += [f'{self.name}_sum{named} {sums[label]:.6f}', f'{self.name}_count{named} {below}']
    return lines


class Metrics:
  """All that a server says of itself.

  Attributes:
    messages: by what came of them.
    refused: by reason.
    episodes: by why they began.
    phase_s: decoding, computing, writing.
    queue_s: waiting, from the arrival of an observation to the pass that it goes through.
    age_s: from the arrival of an observation to its chunk.
    imagined: chunks that were imagined, by what came of them.
    imagining_s: what it takes to make pictures of one.
    held_up_s: seconds that observations waited for that.
    recorded: episodes that were written.
    unwatched: episodes that somebody who watches has lost.
  """

  def __init__(self):
    self.messages = Counter('wam_messages_total', 'Messages by answer.', 'answer')
    self.refused = Counter('wam_refused_total', 'Requests that were refused, by reason.', 'reason')
    self.episodes = Counter('wam_episodes_total', 'Episodes by what began them.', 'why')
    self.phase_s = Histogram('wam_step_seconds', 'Time of an answer, by phase.', 'phase')
    self.queue_s = Histogram('wam_queue_seconds', 'Time that an observation waited.')
    self.age_s = Histogram('wam_chunk_age_seconds', 'Age of an observation as its chunk leaves.')
    self.imagined = Counter('wam_imagined_total', 'Imagined chunks by what came of them.', 'what')
    self.imagining_s = Histogram('wam_imagining_seconds', 'Time to decode an imagined chunk.')
    self.held_up_s = Counter('wam_held_up_seconds_total', 'Waiting of observations for decoding.')
    self.recorded = Counter('wam_recorded_episodes_total', 'Episodes written.')
    self.unwatched = Counter(
      'wam_unwatched_episodes_total', 'Episodes lost, by watcher.', 'watcher'
    )
    self._all = [
      self.messages,
      self.refused,
      self.episodes,
      self.phase_s,
      self.queue_s,
      self.age_s,
      self.imagined,
      self.imagining_s,
      self.held_up_s,
      self.recorded,
      self.unwatched,
    ]

  def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
    """Adds a number that is asked for when somebody looks."""
    self._all.append(Gauge(name, text, read))

  def forget(self) -> None:
    """Counts anew; before anything was served."""
    for metric in self._all:
      if not isinstance(metric, Gauge):
        metric.forget()

  def show(self) -> str:
    """The text that Prometheus reads."""
    lines = []
    for metric in self._all:
      lines += [f'# HELP {metric.name} {metric.text}', f'# TYPE {metric.name} {metric.kind}']
      lines += metric.lines()
    return '\n'.join(lines) + '\n'


def _label(name: str, value: str, **more: object) -> str:
  pairs = ([(name, value)] if name else []) + list(more.items())
  text = ','.join(f'{key}="{_escape(str(part))}"' for key, part in pairs)
  return f'{{{text}}}' if text else ''


def _escape(text: str) -> str:
  return text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')
