"""What watches a run from beside its loop: losses that are not finite, steps that hang, signals,
traces. Owns no state of the model, and writes nothing but the trace.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import progress
from wam_jax import storage

_RECENT = 100  # Steps whose median is the usual loss ...
_ENOUGH = 20  # ... once there are so many.


class Complete(NamedTuple):
  """A step whose loss is known, and finite."""

  step: int
  loss: float


class _Dispatched(NamedTuple):
  """A step that the devices may still be computing."""

  step: int
  sample_B2: np.ndarray
  watched: Mapping[str, jax.Array]


class LossWatch:
  """Stops the run at the first step whose loss or gradient is not finite, and reports a loss far
  above the usual.

  Looks two steps behind the one being dispatched, so the devices never wait for the host, nor the
  host run far ahead.
  """

  def __init__(self, config: cfg.TrainConfig, recent: Sequence[float] = ()):
    """`recent` are the losses that the checkpoint which a run goes on from has of `get_state`."""
    self._factor = config.spike_factor
    self._stop = config.stop_on_spike
    self._pending: collections.deque[_Dispatched] = collections.deque()
    self._recent = collections.deque(recent, maxlen=_RECENT)
    self._last: Complete | None = None

  def add(self, step: int, sample_B2: np.ndarray, step_metrics: Mapping[str, jax.Array]) -> None:
    """`step` was dispatched; `sample_B2` are its (dataset, sample) on this host."""
    watched = {name: step_metrics[name] for name in ('loss', 'grad_norm') if name in step_metrics}
    self._pending.append(_Dispatched(step, sample_B2, watched))

  def get_state(self) -> dict[str, list[float]]:
    """What a restart needs to find the same spikes, for the metadata of a checkpoint; call it when
    all steps are checked.
    """
    return {'usual_losses': list(self._recent)}

  def check(self, lag: int) -> Complete | None:
    """Checks all but the newest `lag` steps; returns the last complete one, None before the first.

    Raises:
      FloatingPointError: a step is not finite, or a spike that `config.stop_on_spike` forbids.
    """
    while len(self._pending) > lag:
      step, sample_B2, watched = self._pending.popleft()
      values = {name: float(value) for name, value in jax.device_get(watched).items()}
      if not all(math.isfinite(value) for value in values.values()):
        found = ', '.join(f'{name} {value}' for name, value in values.items())
        raise FloatingPointError(f'Step {step} is not finite: {found}. {_advise(sample_B2)}')
      self._check_spike(step, sample_B2, values['loss'])
      self._last = Complete(step, values['loss'])
    return self._last

  def _check_spike(self, step: int, sample_B2: np.ndarray, loss: float) -> None:
    # A median, because a spike or two among the recent losses must not move it.
    usual = float(np.median(self._recent)) if len(self._recent) >= _ENOUGH else math.inf
    if not self._factor or loss <= self._factor * usual:
      self._recent.append(loss)
      return
    found = (
      f'The loss of step {step} is {loss:.4g}, {loss / usual:.1f} times the median of the steps '
      'before it.'
    )
    if self._stop:
      raise FloatingPointError(f'{found} {_advise(sample_B2)}')
    # All find the same loss, and the first process speaks for them.
    of_hosts = hosts.exchange('reporting a spike', _list_samples(sample_B2))
    samples = '; '.join(f'on host {number}: {listed}' for number, listed in enumerate(of_hosts))
    progress.say(f'{found} Its samples {samples}')


def _list_samples(sample_B2: np.ndarray) -> str:
  pairs = np.asarray(sample_B2).tolist()
  return ' '.join(f'{dataset}:{sample}' for dataset, sample in pairs)


def _advise(sample_B2: np.ndarray) -> str:
  samples = f'Its samples on host {jax.process_index()}, as dataset:sample: '
  return (
    f'{samples}{_list_samples(sample_B2)}. Nothing of this step was saved. Check these samples '
    '(python -m data.validate), or lower config.optimizer.learning_rate and run again from the '
    'last checkpoint.'
  )


class HangTimeout:
  """Ends the process, with the stack of every thread, when what the loop waits for does not come.

  Inside of `steps` one is due, its batch included, from the one before it on. The first, which
  compiles and for which the reader starts, what is between steps, as evaluations and saves, and
  what is before and after them all have another, longer time.

  Each process has a clock of its own. Where one hangs, the others wait for it in the next sum over
  devices, and end at most two steps later: not by JAX's heartbeat, which takes 100 s.
  """

  def __init__(self, step_s: float, pause_s: float):
    """Seconds for a step, 0 for no limit to anything; for all else, 0 for no limit to that."""
    self._step_s = step_s
    self._pause_s = pause_s if step_s else 0
    self._steps = 0

  def __enter__(self) -> Self:
    self._arm(self._pause_s)
    return self

  @contextlib.contextmanager
  def steps(self) -> Iterator[None]:
    """Inside, steps are due, and outside none."""
    self._arm(self._limit_s)
    try:
      yield
    finally:
      self._steps = 0
      self._arm(self._limit_s)

  def begin_step(self) -> None:
    """A step has its batch and begins; the next one is due."""
    self._steps += 1
    self._arm(self._limit_s)

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """No step is due inside."""
    self._arm(self._pause_s)
    yield
    self._arm(self._limit_s)

  def __exit__(self, *unused_error) -> None:
    faulthandler.cancel_dump_traceback_later()

  @property
  def _limit_s(self) -> float:
    return self._step_s if self._steps > 1 else self._pause_s

  def _arm(self, seconds: float) -> None:
    """Starts the clock anew."""
    if seconds:
      # By a thread in C: it needs neither the main thread nor Python's lock, which may both hang.
      faulthandler.dump_traceback_later(seconds, exit=True)
    else:
      faulthandler.cancel_dump_traceback_later()


class Profile:
  """A trace of the steps first to last for XProf: `tensorboard --logdir=WORKDIR/profile`."""

  def __init__(self, steps: Sequence[int], place: pathlib.Path):
    """`steps` are the first and the last one, or () for no trace; it goes to the directory `place`,
    local or of a bucket, as soon as it ends.
    """
    self._steps = steps
    self._place = place
    self._running: contextlib.ExitStack | None = None

  def __enter__(self) -> Self:
    return self

  def at(self, step: int, finish: Callable[[], Any]) -> None:
    """Call before `step` is dispatched; `finish` waits for those before it."""
    if not self._steps:
      return
    first, last = self._steps
    if step == first:
      with contextlib.ExitStack() as stack:
        jax.profiler.start_trace(stack.enter_context(storage.local_directory(self._place)))
        stack.callback(jax.profiler.stop_trace)
        self._running = stack.pop_all()
    elif step > last and self._running:
      finish()  # Devices may be steps behind.
      self._end()

  def __exit__(self, *unused_error) -> None:
    self._end()

  def _end(self) -> None:
    """Writes the trace, if one is under way."""
    running = self._running
    self._running = None
    if running:
      running.close()


class StopSignal:
  """Turns the first SIGTERM or Ctrl-C into a stop at the next step; the second one ends the process
  at once.

  Attributes:
    signal: number of the one that came.
  """

  def __init__(self):
    self.signal = int(signal.SIGTERM)
    self._event = threading.Event()
    self._previous = {}

  def __enter__(self) -> Self:
    # With several processes JAX itself catches SIGTERM, and all agree on the step.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *unused_error) -> None:
    self._restore()

  def requested(self, step: int) -> bool:
    """Whether to stop after `step` steps; the same on every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._event.is_set()

  def _handle(self, number: int, unused_frame) -> None:
    self._restore()  # The next signal ends the process.
    self.signal = number
    self._event.set()
    # Not print: it may be what the signal interrupted.
    message = f'\n{signal.Signals(number).name}: saving at the next step, then stopping\n'
    os.write(2, message.encode())

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
