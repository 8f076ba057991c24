"""How long a program took to be ready for robots, and which compiled programs it made or found.

Owns what is counted and said of a start; what is run ahead is of `engine` and `agent`, and where
compiled programs are kept of `compilation_cache`.
"""

from __future__ import annotations

import os
import pathlib
import time

import jax

from wam_jax import compilation_cache

_IMPORTED_S = time.monotonic()
# Events of JAX: every program that is needed, compiled or found, and those that were found.
_MADE = '/jax/core/compile/backend_compile_duration'
_FOUND = '/jax/compilation_cache/cache_hits'


class Watch:
  """Counts the programs of this process from here on.

  Attributes:
    made: those that were compiled or found in the compilation cache.
    found: those that were found there.
  """

  def __init__(self):
    self.made = 0
    self.found = 0
    self._made_ahead = 0
    self._is_ready = False
    jax.monitoring.register_event_duration_secs_listener(self._note_made)
    jax.monitoring.register_event_listener(self._note_found)

  @property
  def compiled(self) -> int:
    """Programs that XLA compiled."""
    return self.made - self.found

  @property
  def made_late(self) -> int:
    """Programs that were made after everything was ready; each held up a robot."""
    return self.made - self._made_ahead if self._is_ready else 0

  def note_ready(self) -> str:
    """Everything is ready: what the start took, as one line."""
    self._made_ahead = self.made
    self._is_ready = True
    line = (
      f'ready {seconds_since_start():.1f} s after the start of the process: {self.made} programs, '
      f'{self.compiled} compiled, {self.found} found in the compilation cache'
    )
    if not compilation_cache.is_used():
      line += '; there is none, --compilation_cache=DIR names one for the next start'
    return line

  def _note_made(self, event: str, duration_secs: float, **unused) -> None:
    del duration_secs
    if event == _MADE:
      self.made += 1

  def _note_found(self, event: str, **unused) -> None:
    if event == _FOUND:
      self.found += 1


def seconds_since_start() -> float:
  """Seconds since this process was started; since it imported this, where no /proc tells."""
  stat = pathlib.Path('/proc/self/stat')
  if not stat.exists():
    return time.monotonic() - _IMPORTED_S
  # Fields are counted after the name in parentheses, which may hold blanks; see proc(5).
  started = int(stat.read_text().rpartition(')')[2].split()[19])
  return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf('SC_CLK_TCK')
