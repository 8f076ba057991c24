"""How tests start the project's programs."""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping

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


def run(
  module: str,
  *arguments: object,
  variables: Mapping[str, str] | None = None,
  timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
  """`python -m MODULE ARGUMENTS` in the repository, in a process of its own, and what came of it.

  The process is forked from one that has imported what all programs import, which saves most of
  its time. Tests of starting, of signals and of kills start a Python of their own.

  Args:
    variables: of the environment, beside those of `environment`. JAX, which is imported already,
      has read its own.
  Raises:
    subprocess.TimeoutExpired: it runs for more than `timeout` seconds.
  """
  argv = [module, *map(str, arguments)]
  with tempfile.TemporaryDirectory() as place:
    streams = [pathlib.Path(place, name) for name in ('stdout', 'stderr')]
    process = _FORKS.Process(
      target=_run, args=(argv, [str(path) for path in streams], environment() | (variables or {}))
    )
    process.start()
    process.join(timeout)
    if process.is_alive():
      process.kill()
      process.join()
      raise subprocess.TimeoutExpired(argv, timeout, *(path.read_text() for path in streams))
    stdout, stderr = (path.read_text() for path in streams)
  return subprocess.CompletedProcess(argv, process.exitcode, stdout, stderr)


def _run(argv: list[str], streams: list[str], variables: dict[str, str]) -> None:
  """What the forked process does; its exit status is that of the program."""
  for number, path in enumerate(streams, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
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
    # multiprocessing leaves these out.
    atexit._run_exitfuncs()
    sys.stdout.flush()
