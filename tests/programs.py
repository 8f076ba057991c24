"""How tests start the project's programs."""

import atexit
import multiprocessing
import os
import pathlib
import random
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent

# Without optimization passes the tiny programs of the tests compile four times faster; their
# numbers agree.
FAST_XLA = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'

# A program of ours spends most of a short life importing these. They are imported once, by a server
# that starts no thread and no JAX backend and is forked for each program.
_IMPORTED_ONCE = (
  'flax.linen',
  'grain',
  'jax',
  'optax',
  'orbax.checkpoint',
  'tensorflow_datasets',
  'wam_jax.evaluation.run',
  'wam_jax.interop.layouts',
  'wam_jax.train_step',
)
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(list(_IMPORTED_ONCE))


def environment() -> dict[str, str]:
  """Variables of a program on one device, with the allocator as it is: it runs for a few steps
  only.
  """
  return os.environ | {'XLA_FLAGS': FAST_XLA, 'MALLOC_TRIM_THRESHOLD_': '-1'}


class Program:
  """`python -m MODULE ARGUMENTS` in the repository, in a process of its own: what tests use of
  `subprocess.Popen`.

  The process is forked from one that has imported what all programs import, which saves most of
  its time. It is a module's `__main__` with its own flags, signals, threads and exit status. Tests
  of the start itself, and of kills, start a Python of their own.

  Attributes:
    pid: the number of the process.
  """

  def __init__(
    self,
    module: str,
    *arguments: object,
    variables: Mapping[str, str] | None = None,
    one_stream: bool = False,
  ):
    """Starts it.

    Args:
      variables: of the environment, beside those of `environment`. JAX, which is imported already,
        has read its own.
      one_stream: stderr goes where stdout goes.
    """
    self.args = [module, *map(str, arguments)]
    self._place = tempfile.TemporaryDirectory()
    stdout = pathlib.Path(self._place.name, 'stdout')
    self._streams = [stdout, stdout if one_stream else stdout.with_name('stderr')]
    self._process = _FORKS.Process(
      target=_run,
      args=(self.args, [str(path) for path in self._streams], environment() | (variables or {})),
    )
    self._process.start()
    self.pid = self._process.pid

  @property
  def returncode(self) -> int | None:
    """The exit status, or minus the number of the signal that ended it; None while it runs."""
    return self._process.exitcode

  def poll(self) -> int | None:
    """As `returncode`."""
    return self.returncode

  def send_signal(self, number: int) -> None:
    """Sends a signal to a process that is there."""
    os.kill(self.pid, number)

  def communicate(self, timeout: float = 300) -> tuple[str, str]:
    """What it wrote to stdout and stderr, once it has ended.

    Raises:
      subprocess.TimeoutExpired: it did not within `timeout` seconds, and was killed.
    """
    self._process.join(timeout)
    late = self._process.is_alive()
    if late:
      self._process.kill()
      self._process.join()
    stdout, stderr = (path.read_text() if path.exists() else '' for path in self._streams)
    if late:
      raise subprocess.TimeoutExpired(self.args, timeout, stdout, stderr)
    return stdout, stderr


def run(
  module: str,
  *arguments: object,
  variables: Mapping[str, str] | None = None,
  timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
  """A `Program` that has ended, with what it wrote and its exit status."""
  program = Program(module, *arguments, variables=variables)
  stdout, stderr = program.communicate(timeout)
  return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def output(module: str, *arguments: object, status: int = 0, **options: Any) -> str:
  """What a program prints that ends as it is to; `options` as `run` has them."""
  done = run(module, *arguments, **options)
  assert done.returncode == status, (done.args, done.stdout, done.stderr)
  return done.stdout


def run_code(
  code: str,
  *arguments: object,
  variables: Mapping[str, str] | None = None,
  cwd: pathlib.Path = ROOT,
  timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
  """`python -c CODE ARGUMENTS`, in a Python in which nothing is imported yet."""
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)],
    cwd=cwd,
    env=environment() | (variables or {}),
    check=False,
    text=True,
    capture_output=True,
    timeout=timeout,
  )


def is_open(port: int) -> bool:
  """Whether something listens on a port of this machine."""
  with socket.socket() as probe:
    return probe.connect_ex(('127.0.0.1', port)) == 0


def free_port(first: int, last: int) -> int:
  """A port in [first, last) that nothing listens on."""
  # Tests may run side by side: no fixed port.
  for port in random.sample(range(first, last), 100):
    if not is_open(port):
      return port
  raise OSError('no free port')


def _run(argv: list[str], streams: list[str], variables: dict[str, str]) -> None:
  """What the forked process does; its exit status is that of the program."""
  for number, path in enumerate(streams, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  # Of the server or of multiprocessing, and they may lead elsewhere.
  sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115 (it lives as long as the process)
  sys.stderr = open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115
  os.environ.clear()
  os.environ.update(variables)
  os.chdir(ROOT)
  sys.argv = argv
  sys.path.insert(0, str(ROOT))
  try:
    runpy.run_module(argv[0], run_name='__main__', alter_sys=True)
  finally:
    # multiprocessing leaves these out, and from Python 3.13 on forgets those of modules that the
    # server has imported: JAX's, at which the processes of a job wait for each other.
    atexit._run_exitfuncs()
    jax = sys.modules.get('jax')
    if jax is not None and jax.distributed.is_initialized():
      jax.distributed.shutdown()
    sys.stdout.flush()
