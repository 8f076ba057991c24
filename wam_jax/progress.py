"""What long work says of itself while it runs: how much is done, how fast, and the time left.

On a terminal one line is rewritten in place; elsewhere (a log, a pipe) a whole line comes about
every ten seconds. Work that is done sooner says nothing. In a job of several processes only the
first one speaks. Owns no numbers that are kept: those of training are in metrics.py.
"""

from __future__ import annotations

import collections
import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TextIO, TypeVar

import tqdm

T = TypeVar('T')

EVERY_S = 10.0  # Between two lines of a log.
_IN_PLACE_S = 0.5  # Between two states of a line on a terminal.


def is_first_process() -> bool:
  """Whether this process speaks for its job. Starts no backend before `jax.distributed` has."""
  jax = sys.modules.get('jax')  # A process without it belongs to no job of several.
  return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
  """Prints `text` on lines of its own, above whatever line stands on the terminal."""
  if is_first_process():
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Line:
  """One line that says what is under way; call it with each new text."""

  def __init__(
    self,
    stream: TextIO | None = None,
    every_s: float = EVERY_S,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Nothing is shown yet.

    Args:
      stream: where it appears; stderr by default.
      every_s: least seconds between two lines where `stream` is no terminal.
    """
    self._stream = stream or sys.stderr
    self._clock = clock
    self._in_place = self._stream.isatty()
    self._period_s = _IN_PLACE_S if self._in_place else every_s
    self._next_s = -1.0
    self._bar: tqdm.tqdm | None = None

  def __call__(self, text: str) -> None:
    """Shows `text` unless the last one was shown just now."""
    if self.is_due():
      self.show(text)

  def is_due(self) -> bool:
    """Whether the next text should be shown."""
    return self._clock() >= self._next_s

  def wait(self) -> None:
    """The next text is due when a period is over."""
    self._next_s = self._clock() + self._period_s

  def show(self, text: str, fraction: float | None = None) -> None:
    """Shows `text`, on a terminal behind a bar of the `fraction` of the work that is done."""
    self.wait()
    if not is_first_process():
      return
    if not self._in_place:
      print(text, file=self._stream, flush=True)
    elif self._bar is None:
      self._bar = self._make_bar(text, fraction)
    else:
      self._bar.n = fraction or 0
      self._bar.set_description_str(text)

  def close(self) -> None:
    """Ends the line on a terminal: one with a bar stays as it is, another one vanishes."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _make_bar(self, text: str, fraction: float | None) -> tqdm.tqdm:
    return _Bar(
      desc=text,
      initial=fraction or 0,
      total=None if fraction is None else 1.0,
      file=self._stream,
      leave=fraction is not None,
      dynamic_ncols=True,
      # A bar, be it one blank, makes tqdm cut the line at the width of the terminal.
      bar_format='{desc}{bar:1}' if fraction is None else '{bar:10} {desc}',
    )


class _Bar(tqdm.tqdm):
  monitor_interval = 0  # No thread that would redraw it between our calls.


class Progress:
  """Counts work, and shows the amount, its rate and the time left; a context manager.

  As in `import: 1.5/4 GB (37%)  0.52 GB/s  ETA 0:00:05`.
  """

  def __init__(
    self,
    label: str,
    total: float,
    unit: str = '',
    *,
    done: float | None = 0,
    show_rate: Callable[[float], str] | None = None,
    line: Line | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock, or with `done=None` leaves that to the first `update`.

    Args:
      label: what the line begins with.
      total: the whole amount.
      unit: name of what is counted; 'B' counts bytes and shows gigabytes.
      done: amount done before. None where the first `update` tells it; what comes before that
        update, as compilation does, is not counted as work.
      show_rate: text for an amount per second, instead of the rate in `unit`.
      line: where it is shown; on stderr by default.
    """
    self._label = label
    self._total = total
    self._unit = unit
    self._show_rate = show_rate or self._show_plain_rate
    self._line = line or Line(clock=clock)
    self._clock = clock
    # (seconds, amount) of the newest lines; the rate shown is that since the oldest of them.
    self._marks: collections.deque[tuple[float, float]] = collections.deque(maxlen=16)
    self._done = 0
    if done is not None:
      self._start(done)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def add(self, amount: float = 1, notes: str = '') -> None:
    """`amount` more is done; `notes` stand between the amount and the rate."""
    self.update(self._done + amount, notes)

  def update(self, done: float, notes: str = '') -> None:
    """`done` is done in all; `notes` as in `add`."""
    if not self._marks:
      self._start(done)
      return
    self._done = done
    # Work that was never shown does not report its end either.
    ends = len(self._marks) > 1 and done >= self._total
    if ends or self._line.is_due():
      self._show(notes)

  def close(self) -> None:
    """Ends the line."""
    self._line.close()

  def _start(self, done: float) -> None:
    self._done = done
    self._marks.append((self._clock(), done))
    self._line.wait()

  def _show(self, notes: str) -> None:
    now = (self._clock(), self._done)
    rate = compute_rate(self._marks[0], now)
    self._marks.append(now)
    left = datetime.timedelta(seconds=round((self._total - self._done) / rate)) if rate else '?'
    percent = 100 * self._done / self._total if self._total else 100.0
    amount = f'{self._show_number(self._done)}/{self._show_number(self._total)}'
    unit = {'': '', 'B': ' GB'}.get(self._unit, f' {self._unit}')
    parts = (
      f'{self._label} {amount}{unit} ({int(percent)}%)',
      notes,
      self._show_rate(rate),
      f'ETA {left}',
    )
    self._line.show('  '.join(part for part in parts if part), percent / 100)

  def _show_number(self, amount: float) -> str:
    return f'{round(amount / 1e9, 2):.10g}' if self._unit == 'B' else f'{amount:.10g}'

  def _show_plain_rate(self, rate: float) -> str:
    if self._unit == 'B':
      return f'{rate / 1e9:.3g} GB/s'
    return f'{rate:.0f}/s' if rate >= 100 else f'{rate:.3g}/s'


def compute_rate(start: tuple[float, float], end: tuple[float, float]) -> float:
  """Amount per second between two (seconds, amount); 0 where no time has passed."""
  seconds = end[0] - start[0]
  return (end[1] - start[1]) / seconds if seconds > 0 else 0.0


def _count_one(unused_item: object) -> float:
  return 1


def track(
  items: Iterable[T],
  label: str,
  total: float,
  unit: str = '',
  amount: Callable[[T], float] = _count_one,
  **options,
) -> Iterator[T]:
  """Yields `items`, and shows how far along they are.

  Args:
    amount: work that an item is; the `total` is of all of them.
    options: of `Progress`.
  """
  with Progress(label, total, unit, **options) as progress:
    for item in items:
      yield item
      progress.add(amount(item))
