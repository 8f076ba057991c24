"""Start of every `python -m wam_jax.NAME`: a user's mistake ends as one message, a bug as a
traceback.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app
from absl import flags
from absl import logging

_ALLOCATOR = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'MALLOC_MMAP_THRESHOLD_': str(2**32),
  'MALLOC_TRIM_THRESHOLD_': str(2**33),
}
_PACKAGE = pathlib.Path(__file__).parent


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs an absl program; exits with status 1 and `error: ...` on stderr where the user can fix the
  cause.

  That is each ValueError, FloatingPointError or OSError that this package raises. The same types
  raised inside a library are bugs and keep their traceback. `--verbosity=1` shows the traceback
  always.
  """
  app.run(lambda argv: _call(main, argv), flags_parser=_parse_flags)


def keep_memory() -> None:
  """Starts this program again with an allocator that keeps and uses huge pages of what it has
  freed.

  On CPU, a training step spends a quarter of its time on fresh pages otherwise. Nothing but speed
  changes. Does nothing where the allocator is not glibc's or where somebody has set it up already.
  """
  if sys.platform == 'linux' and not ({'LD_PRELOAD', *_ALLOCATOR} & os.environ.keys()):
    os.environ.update(_ALLOCATOR)
    os.execv(sys.executable, sys.orig_argv)


def _call(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # absl would show what each library logs for itself.
  try:
    main(argv)
  except (ValueError, FloatingPointError, OSError) as e:
    if not _raised_here(e):
      raise
    if logging.get_verbosity() >= logging.DEBUG:
      traceback.print_exc()
    _stop(str(e))


def _raised_here(error: BaseException) -> bool:
  frames = traceback.extract_tb(error.__traceback__)
  return (
    isinstance(error, OSError) or _PACKAGE in pathlib.Path(frames[-1].filename).resolve().parents
  )


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (
    AttributeError,
    KeyError,
  ) as e:  # What a locked ConfigDict raises on --config.wrong.key=...
    given = [arg for arg in argv[1:] if arg.lstrip('-').startswith('config.')]
    _stop(
      f'a key of {" ".join(given)} does not exist: {_plain(e)}. '
      'Every key is declared in wam_jax/config.py; datasets are named in the config file.'
    )
  except OSError as e:
    _stop(f'--config cannot be loaded: {_plain(e)}')
  except flags.Error as e:
    # A ValueError inside the config file arrives with its whole traceback; its last line says what
    # is wrong.
    _stop(_plain(e) + '\n--help lists the flags.')


def _plain(error: BaseException) -> str:
  while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps its KeyError.
    error = error.args[0]
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  if 'Traceback (most recent call last)' in text:
    text = text.strip().splitlines()[-1].strip()
  return ' '.join(text.split()).replace('\'"', '').replace('"\'', '').rstrip('.?')


def _stop(message: str) -> None:
  sys.stdout.flush()
  print(f'error: {message}', file=sys.stderr, flush=True)
  sys.exit(1)
