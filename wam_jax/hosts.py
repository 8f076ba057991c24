"""What the processes of one job tell each other beside the arrays: all go on, or all stop with the
same words.

Messages go through the coordinator of `jax.distributed`, not through the devices: nothing is
compiled, a text may have any length, and a wait has an end. Each process must come to the same
stages, as often. With one process every function here does its work and waits for nobody.

  `all_or_none`   each does a part, and goes on when all have done theirs
  `decide`        the first one does it, and all have its result
  `agree`         all hold the same, or hear which host holds something else
  `together`      a process that fails anywhere ends the others, too

Collectives are no way to say that something went wrong: who waits in one hears nothing. So a
stage that may fail on one host alone holds none, or is inside of `together`, which ends a process
from beside.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax

from wam_jax import cli
from wam_jax import progress

T = TypeVar('T')

LIMIT_S = 1800.0  # Hosts start, read and install at different speeds.
FOREVER_S = 7 * 24 * 3600.0  # For work that may take days; a host that dies ends all the same.

_MISTAKES = (ValueError, OSError, FloatingPointError)  # Whose message is all that a user needs.
_EVERY_S = 0.25  # Between two looks at what the others have said.
_SOON_S = 0.01  # For an answer that should be there.
_TOGETHER_S = 1.0  # A mistake of several hosts is found by all of them in about this time.
_GRACE_S = 10.0  # For a process to end by itself, after another one failed.
_met: collections.Counter[str] = collections.Counter()  # How often at each stage, in any thread.


_watched: list[_Meeting] = []  # Of `together`, at which nobody gives anything but an error.


class HostError(Exception):
  """Something failed on some of the hosts; the message is the same on all of them."""


class HostMistake(HostError, ValueError):
  """The same command would fail again."""


class HostFailure(HostError, OSError):
  """Trying again may help: a network, a disk, a process that was killed."""


@contextlib.contextmanager
def all_or_none(stage: str, limit_s: float = LIMIT_S) -> Iterator[None]:
  """Leaves the block when every process has come to its end.

  Args:
    stage: what the block does, for messages, as 'opening the dataset'.
    limit_s: longest time to wait for the others.
  Raises:
    HostError: on every process, if the block failed on some of them, or some did not come. Where
      all fail alike, or one is alone, it is the error itself.
  """
  meeting = _Meeting(stage, limit_s)
  try:
    yield
  except BaseException as e:
    meeting.fail(e)
    raise  # Alone, or all fail alike, or all know already.
  meeting.give(None)


def exchange(stage: str, value: Any, limit_s: float = LIMIT_S) -> list[Any]:
  """What every process gives, JSON-ready and small, in the order of the processes.

  Raises:
    HostError: on every process, if some did not come within `limit_s`.
  """
  return _Meeting(stage, limit_s).give(value)


def decide(stage: str, choose: Callable[[], T], limit_s: float = LIMIT_S) -> T:
  """The JSON-ready result of `choose`, which is called on the first process alone.

  Raises:
    HostError: on every process, if it raises there, or does not end within `limit_s`.
  """
  meeting = _Meeting(stage, limit_s)
  chosen = None
  if _find_job().number == 0:
    try:
      chosen = choose()
    except BaseException as e:
      meeting.fail(e)
      raise
  return meeting.give(chosen)[0]


def agree(stage: str, facts: Mapping[str, Any], advice: str, limit_s: float = LIMIT_S) -> None:
  """Returns if all processes give equal JSON-ready facts.

  Args:
    facts: by name, what must be equal; the first process's are the truth.
    advice: how a user makes them equal.
  Raises:
    HostError: on every process, naming the hosts that differ from the first one, and in what.
  """
  said = {name: _shorten(value) for name, value in facts.items()}
  digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
  if len(set(exchange(stage, digest, limit_s))) == 1:
    return  # All that hundreds of hosts have to say to each other.
  everyone = exchange(f'{stage}, in detail', said, limit_s)
  truth = everyone[0]
  lines = []
  for name in sorted({name for given in everyone for name in given}):
    hosts_by_value: dict[str, list[int]] = {}
    for number, given in enumerate(everyone):
      hosts_by_value.setdefault(given.get(name, 'absent'), []).append(number)
    if len(hosts_by_value) > 1:
      expected = truth.get(name, 'absent')
      others = [
        f'{value} on {_name_hosts(numbers)}'
        for value, numbers in hosts_by_value.items()
        if value != expected
      ]
      lines.append(f'{name}: {expected} on {_name_hosts([0])}, {", ".join(others)}')
  if lines:
    listed = '\n  '.join(lines[:10] + [f'... and {len(lines) - 10} more'] * (len(lines) > 10))
    raise HostMistake(f'The hosts of this job differ ({stage}):\n  {listed}\n{advice}')


@contextlib.contextmanager
def together() -> Iterator[None]:
  """While inside, an error that leaves the block on one process ends all, with its message.

  A process that does not end by itself within ten seconds, because it waits for devices or in a
  collective, is ended from a thread, as if killed: what it was writing stays unfinished.
  """
  meeting = _Meeting('', FOREVER_S)
  if meeting.is_alone:
    yield
    return
  watch = _Watch(meeting)
  _watched.append(meeting)
  try:
    yield
  except BaseException as e:
    watch.stop()
    # Should this process hang while it is cleaned up.
    end = threading.Timer(6 * _GRACE_S, _end_process, [{'error': describe(e), 'status': 1}])
    end.daemon = True
    end.start()
    meeting.fail(e)
    raise
  finally:
    watch.stop()
    _watched.remove(meeting)


class _Meeting:
  """One stage at which every process says something, and all hear the same verdict."""

  def __init__(self, stage: str, limit_s: float):
    self._stage = stage
    self._limit_s = limit_s
    self._place = f'wam_jax/stage/{stage}/{_met[stage]}'
    _met[stage] += 1
    job = _find_job()
    self._client = job.client
    self._number = job.number
    self._count = job.count

  @property
  def is_alone(self) -> bool:
    """Whether there is nobody to meet."""
    return self._client is None

  def give(self, value: Any) -> list[Any]:
    """What all have given, once all have; raises HostError if one failed or did not come."""
    if self._client is None:
      return [json.loads(json.dumps(value))]  # As the others would see it.
    self._say({'host': socket.gethostname(), 'value': value})
    return self._hear()

  def fail(self, error: BaseException) -> None:
    """Tells the others; raises HostError unless `error` itself should be raised."""
    if self._client is None:
      return
    failure = {'error': describe(error), 'status': cli.status_of(error)}
    known = isinstance(error, HostError)  # By all, and it names its hosts.
    self._say({'host': socket.gethostname(), 'known': known} | failure)
    if not known:
      time.sleep(_TOGETHER_S)  # Others may be about to find the same.
    self._judge(self._read())
    if known:
      return
    try:
      self._hear()
    except HostError as e:
      # Of a bug the traceback is worth more; and alike on all, it needs no names of hosts.
      if isinstance(error, _MISTAKES) and str(e) != describe(error):
        raise e from error

  def find_verdict(self, wait_s: float = _EVERY_S) -> dict[str, Any] | None:
    """What was judged, if that is known within `wait_s`."""
    try:
      text = self._client.blocking_key_value_get(f'{self._place}/verdict', int(1000 * wait_s))
    except jax.errors.JaxRuntimeError as e:
      if 'DEADLINE_EXCEEDED' not in str(e):
        raise
      return None
    return json.loads(text)

  def _say(self, said: dict[str, Any]) -> None:
    self._client.key_value_set(f'{self._place}/said/{self._number}', json.dumps(said))

  def _read(self) -> dict[int, dict[str, Any]]:
    """By number of the process, what those said that have come."""
    found = self._client.key_value_dir_get(f'{self._place}/said/')
    return {int(key.rsplit('/', 1)[1]): json.loads(text) for key, text in found}

  def _hear(self) -> list[Any]:
    """Waits for the verdict; the first process gives it, or whoever fails."""
    start = time.monotonic()
    line = progress.Line()
    line.wait()
    while True:
      verdict = self.find_verdict()
      if verdict is not None:
        break
      for other in _watched:
        # Somebody has failed elsewhere, and will not come.
        if other is not self and (failure := other.find_verdict(_SOON_S)):
          raise _make_error(failure)
      waited_s = time.monotonic() - start
      if self._number == 0:
        said = self._read()
        absent = [number for number in range(self._count) if number not in said]
        late = waited_s > self._limit_s
        if not absent or late:
          self._judge(said, late)
        else:
          line(f'{self._stage}: waiting for {_name_hosts(absent)}, {waited_s:.0f} s')
      elif waited_s > self._limit_s + _GRACE_S:
        raise HostFailure(self._describe_late([0]))
    line.close()
    if 'error' in verdict:
      raise _make_error(verdict)
    return verdict['values']

  def _judge(self, said: Mapping[int, dict[str, Any]], late: bool = False) -> None:
    """Gives the verdict on what was said; the first one that is given holds for all."""
    failed = {number: one for number, one in sorted(said.items()) if 'error' in one}
    known = [one for one in failed.values() if one['known']]
    absent = [number for number in range(self._count) if number not in said]
    if known:
      verdict = {'error': known[0]['error'], 'status': known[0]['status']}
    elif failed:
      status = max(one['status'] for one in failed.values())
      verdict = {'error': self._describe_failed(failed), 'status': status}
    elif late and absent:
      verdict = {'error': self._describe_late(absent), 'status': 1}
    else:
      verdict = {'values': [said[number]['value'] for number in range(self._count)]}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # ALREADY_EXISTS
      self._client.key_value_set(f'{self._place}/verdict', json.dumps(verdict))

  def _describe_failed(self, failed: Mapping[int, Mapping[str, Any]]) -> str:
    names = {number: one['host'] for number, one in failed.items()}
    numbers_by_text: dict[str, list[int]] = {}
    for number, one in failed.items():
      numbers_by_text.setdefault(one['error'], []).append(number)
    if len(failed) == self._count and len(numbers_by_text) == 1:
      return next(iter(numbers_by_text))
    stage = f' while {self._stage},' if self._stage else ''
    parts = [f'{_name_hosts(numbers, names)}: {text}' for text, numbers in numbers_by_text.items()]
    return f'Failed{stage} on {len(failed)} of {self._count} hosts. ' + '\n'.join(parts)

  def _describe_late(self, absent: Sequence[int]) -> str:
    return (
      f'{_name_hosts(absent)} of {self._count} did not come to the end of {self._stage} within '
      f'{self._limit_s:.0f} s of the others. Look at what is printed there; a disk or a network '
      'may be stuck. Start all again.'
    )


class _Watch:
  """A thread that ends this process some time after another one has failed."""

  def __init__(self, meeting: _Meeting):
    """Starts it.

    Args:
      meeting: where a process that fails says so.
    """
    self._meeting = meeting
    self._over = threading.Event()
    # No daemon: a thread in the client must not outlive the interpreter.
    self._thread = threading.Thread(target=self._run, name='wam_jax.hosts')
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread; again, if need be."""
    self._over.set()
    self._thread.join()

  def _run(self) -> None:
    while not self._over.wait(1.0):
      try:
        failure = self._meeting.find_verdict(_SOON_S)
      except jax.errors.JaxRuntimeError:
        return  # The coordinator is gone, and JAX ends the process.
      # Whoever waits in a stage of this module has heard it, and ends in order.
      if failure and not self._over.wait(_GRACE_S):
        _end_process(failure)


def _make_error(failure: Mapping[str, Any]) -> HostError:
  kind = HostMistake if failure['status'] == cli.MISTAKE else HostFailure
  return kind(failure['error'])


def describe(error: BaseException) -> str:
  """The message of a user's mistake; of another error its type, too."""
  if isinstance(error, _MISTAKES) and str(error):
    return str(error)
  return f'{type(error).__name__}: {error}'


def _end_process(failure: Mapping[str, Any]) -> None:
  """Prints a failure and ends this process, wherever its main thread may be."""
  os.write(2, f'error: {failure["error"]}\n'.encode())
  sys.stdout.flush()
  # The others wait for each other before they end.
  leave = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  leave.start()
  leave.join(_GRACE_S)
  os._exit(failure['status'])


@dataclasses.dataclass(frozen=True)
class _Job:
  """The processes that belong together.

  Attributes:
    client: the connection to their coordinator; None where this process is alone.
    number, count: which one this is, and of how many.
  """

  client: Any | None
  number: int
  count: int


def _find_job() -> _Job:
  """The job of this process. Starts no backend."""
  # Not public, but what jax.experimental.multihost_utils and Orbax use.
  from jax._src import distributed

  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return _Job(None, 0, 1)
  return _Job(state.client, state.process_id, state.num_processes)


def _name_hosts(numbers: Sequence[int], names: Mapping[int, str] | None = None) -> str:
  """As 'host 1 (worker-1)' or 'hosts 1, 2, 5 and 12 more'."""
  listed = [f'{n} ({names[n]})' if names else f'{n}' for n in numbers[:8]]
  more = f' and {len(numbers) - 8} more' if len(numbers) > 8 else ''
  return f'host{"s" if len(numbers) > 1 else ""} {", ".join(listed)}{more}'


def _shorten(value: Any) -> str:
  """A fact as it is compared and shown."""
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
