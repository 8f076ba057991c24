"""Programs measured on the same cores in turns: each is asked for work, timed, and stopped while
the others run.

A contestant is a process that calls `serve`; whoever compares them uses `Contestant`. Needs only
the standard library and psutil, so that a contestant may live in another Python.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil


def serve(work: Callable[[], int]) -> None:
  """Answers the other side: one JSON line when the first work is done, then one for every number of
  seconds read.

  Args:
    work: does some, returns how many samples it was.
  """
  work()
  _answer()
  for line in sys.stdin:
    cpu_s = float(line)
    samples = 0
    # CPU time, since other programs may share the core.
    cpu_start = time.process_time()
    wall_start = time.perf_counter()
    while time.process_time() - cpu_start < cpu_s:
      samples += work()
    _answer(
      samples=samples,
      cpu_s=time.process_time() - cpu_start,
      wall_s=time.perf_counter() - wall_start,
      rss_mib=psutil.Process().memory_info().rss / 2**20,
    )


def _answer(**values: float) -> None:
  print(json.dumps(values), flush=True)


@dataclasses.dataclass(frozen=True)
class Turn:
  """What was done in one turn.

  Attributes:
    samples: the number of samples.
    cpu_s, wall_s: CPU seconds of the process, and seconds.
    rss_mib: resident MiB at the end.
  """

  samples: int
  cpu_s: float
  wall_s: float
  rss_mib: float

  @property
  def rate(self) -> float:
    """Samples per CPU second: what other programs take of the machine does not count."""
    return self.samples / self.cpu_s


class Contestant:
  """A process pinned to `cores` that works only while it is measured. Use as a context manager.

  Attributes:
    start_s: seconds from its start to its first sample.
  Raises:
    ValueError: it ended instead of answering; with what it said.
  """

  def __init__(self, command: Sequence[str], cores: Sequence[int]):
    start = time.perf_counter()
    self._command = command
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      # Before the program starts: threads that it makes at once are pinned, too.
      preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    self._read()
    self.start_s = time.perf_counter() - start
    # Stopped, it takes nothing from whoever is measured: no thread of it runs on.
    self._process.send_signal(signal.SIGSTOP)

  def __enter__(self) -> Contestant:
    return self

  def __exit__(self, *unused_error) -> None:
    self._process.kill()
    self._process.wait()

  def turn(self, seconds: float) -> Turn:
    """Measures `seconds` of CPU time."""
    self._process.send_signal(signal.SIGCONT)
    self._process.stdin.write(f'{seconds}\n')
    self._process.stdin.flush()
    turn = Turn(**self._read())
    self._process.send_signal(signal.SIGSTOP)
    return turn

  def _read(self) -> dict[str, float]:
    for line in self._process.stdout:
      # Whatever else it prints is not for us.
      if line.startswith('{'):
        return json.loads(line)
    code = self._process.wait()
    command = ' '.join(self._command[:3])
    raise ValueError(f'{command} ... ended with code {code}; its messages are above.')
