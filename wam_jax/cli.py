"""Start of every command, `python -m wam_jax.NAME`, `data.NAME` and `benchmarks.NAME`: a user's
mistake ends as one message, a bug as a traceback. Also the flag --json of all that measure.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import app
from absl import flags
from absl import logging

from wam_jax import storage
from wam_jax import strict_json

_ALLOCATOR = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'MALLOC_MMAP_THRESHOLD_': str(2**32),
  'MALLOC_TRIM_THRESHOLD_': str(2**33),
}
MISTAKE = 2  # The exit status that no launcher starts again after.
INTERRUPTED = 130  # As a shell says it of SIGINT.
# What the system says of a wrong path. Its other errors, of networks and disks, may pass.
_WRONG_PATH = (
  FileExistsError,
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)
_MISSING = re.compile(r'flag --(\w+)=None: Flag --\1 must have a value other than None\.?')
_OURS = frozenset({'wam_jax', 'data', 'benchmarks', 'configs', 'docs'})  # Top-level packages.

flags.disclaim_key_flags()  # --help shows flags with the command that defines them.


def run(main: Callable[[Sequence[str]], int | None], takes_arguments: bool = False) -> None:
  """Runs an absl program; exits with `error: ...` on stderr where the user can fix the cause, else
  with the status that `main` returns.

  That is each ValueError, FloatingPointError or OSError that our own packages raise. The same types
  raised inside a library are bugs and keep their traceback. `--verbosity=1` shows the traceback
  always. The status is MISTAKE where the same command would fail again; 1, as after a traceback,
  where trying again may help; INTERRUPTED after Ctrl-C, where the command does not end in its own
  way.

  Args:
    takes_arguments: whether `main` reads arguments that are no flags; they are mistakes otherwise.
  """
  _find_checkout()
  app.run(lambda argv: _call(main, argv, takes_arguments), flags_parser=_parse_flags)


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
  """In it a command imports what an extra is for; without that it ends with one message."""
  try:
    yield
  except ModuleNotFoundError as e:
    if e.name is None or e.name.split('.')[0] in _OURS:
      raise
    _stop(f"this command needs the package {e.name}: pip install -e '.[{extra}]'.")


def define_json(note: str = '') -> None:
  """Defines --json, for `write_json`; `note` is added to its help."""
  flags.DEFINE_string('json', None, f'File for what is printed, as JSON. {note}'.strip())


def define_embodiment(note: str) -> flags.FlagHolder[str]:
  """Defines --embodiment, which `data.embodiments.resolve` reads; `note` says what it is of."""
  return flags.DEFINE_string(
    'embodiment',
    '',
    f'{note} A name of wam_jax/data/embodiments.py, a JSON file, or a directory with one '
    '(embodiment.json) or with checkpoints, as WORKDIR or WORKDIR:NAME.',
  )


def define_mesh(default: str) -> flags.FlagHolder[Any]:
  """Defines --mesh, which `read_mesh` reads; `default` says what is taken without it."""
  return flags.DEFINE_list(
    'mesh',
    None,
    'Devices that a policy is split over: tensor=4, its heads, or data=2, the two branches of '
    f'guidance, or both, as tensor=4,data=2; {default}',
  )


def read_mesh(flag: flags.FlagHolder[Any]) -> tuple[str, ...] | None:
  """What `config.sample.mesh` is to be; None where nothing is said."""
  return None if flag.value is None else tuple(flag.value)


def read_names(flag: flags.FlagHolder[Any], choices: Iterable[str]) -> list[str]:
  """What a flag of `DEFINE_list` names, in its order.

  Raises:
    ValueError: nothing, something else than `choices`, or one of them twice.
  """
  given = flag.value
  choices = list(choices)
  if not given or not set(given) <= set(choices) or len(set(given)) < len(given):
    raise ValueError(
      f'--{flag.name}={",".join(given)} must name some of {", ".join(choices)}, each once.'
    )
  return given


def write_json(report: Any) -> None:
  """Writes what a command has printed to the file of --json, if that is given."""
  if flags.FLAGS.json:
    content = strict_json.dumps(report, indent=2) + '\n'
    storage.write_report(storage.make_path(flags.FLAGS.json, '--json'), content)


def _check_json() -> None:
  """Says where the file of --json cannot be written, before anything is measured.

  Raises:
    ValueError: there is a directory in its place, or none for it.
  """
  given = flags.FLAGS['json'].value if 'json' in flags.FLAGS else None
  if given:
    storage.check_file(storage.make_path(given, '--json'), '--json')


def read_config(flag: flags.FlagHolder[Any]) -> dict[str, Any]:
  """What a flag of `config_flags.DEFINE_config_file` holds.

  Raises:
    ValueError: the file cannot be loaded.
  """
  try:
    return flag.value.to_dict()
  except OSError as e:  # Not raised before its value is asked for.
    raise ValueError(f'--config cannot be loaded: {_summarize_loading(e)}') from e


def keep_memory() -> None:
  """Starts this program again with an allocator that keeps and uses huge pages of what it has
  freed.

  On CPU, a training step spends a quarter of its time on fresh pages otherwise. Nothing but speed
  changes. Does nothing where the allocator is not glibc's or where somebody has set it up already.
  """
  if sys.platform == 'linux' and not ({'LD_PRELOAD', *_ALLOCATOR} & os.environ.keys()):
    os.environ.update(_ALLOCATOR)
    os.execv(sys.executable, sys.orig_argv)


def _find_checkout() -> None:
  """Lets configs import each other (`from configs import tiny`) wherever the command is run from.

  They are not installed with wam_jax: they lie beside it in a checkout.
  """
  checkout = pathlib.Path(__file__).resolve().parent.parent
  if (checkout / 'configs').is_dir() and str(checkout) not in sys.path:
    sys.path.append(str(checkout))


def _call(
  main: Callable[[Sequence[str]], int | None], argv: Sequence[str], takes_arguments: bool = False
) -> int | None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # absl would show what each library logs for itself.
  if len(argv) > 1 and not takes_arguments:
    _stop(f'Unexpected arguments {argv[1:]}; every option starts with --.')
  try:
    _check_json()
    return main(argv)
  except (ValueError, FloatingPointError, OSError) as e:
    if not _raised_here(e):
      raise
    if logging.get_verbosity() >= logging.DEBUG:
      traceback.print_exc()
    _stop(str(e), status=status_of(e))
  except KeyboardInterrupt:
    _stop('stopped by Ctrl-C.', status=INTERRUPTED)


def status_of(error: BaseException) -> int:
  """The exit status after `error`: MISTAKE where the same command would fail again, else 1."""
  again = (ValueError, FloatingPointError, *_WRONG_PATH)
  return MISTAKE if isinstance(error, again) else 1


def _raised_here(error: BaseException) -> bool:
  """Whether our own code has raised `error`, or the operating system, wherever it was asked."""
  if isinstance(error, OSError):
    return True
  frames = traceback.walk_tb(error.__traceback__)
  packages = [frame.f_globals.get('__package__') or '' for frame, _ in frames]
  while packages[-1] == 'concurrent.futures':  # Hands on what a worker process has raised.
    packages.pop()
  return packages[-1].split('.')[0] in _OURS


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    _check_numbers()
    return rest
  except SyntaxError as e:
    _stop(f'--config cannot be loaded: {e.filename}, line {e.lineno}: {e.msg}.')
  except (AttributeError, KeyError) as e:  # A locked ConfigDict, at --config.wrong.key=...
    if "no attribute 'get_config'" in str(e):
      _stop('--config cannot be loaded: the file defines no function get_config.')
    given = [arg for arg in argv[1:] if arg.lstrip('-').startswith('config.')]
    _stop(
      f'a key of {" ".join(given)} does not exist: {_summarize(e)}. '
      'Every key is declared in wam_jax/config/; datasets are named in the config file.'
    )
  except ModuleNotFoundError as e:
    if (e.name or '').split('.')[0] not in _OURS:
      raise
    _stop(
      f'--config cannot be loaded: it imports {e.name!r}, which is not installed with wam_jax. Run '
      'the command in the directory that holds configs/, or set PYTHONPATH to it.'
    )
  except OSError as e:
    _stop(f'--config cannot be loaded: {_summarize_loading(e)}')
  except flags.Error as e:
    # A ValueError inside the config file arrives with its whole traceback; its last line says what
    # is wrong.
    _stop(_name_missing(_summarize(e)) + '\n--help lists the flags.')


def _check_numbers() -> None:
  """Raises where a flag is no finite number: bounds let NaN through, and nothing is above it.

  Keys of a config have checks of their own.
  """
  values = flags.FLAGS.flag_values_dict()
  wrong = [
    f'--{name}={value}'
    for name, value in values.items()
    if isinstance(value, float) and not math.isfinite(value) and not name.startswith('config.')
  ]
  if wrong:
    raise flags.IllegalFlagValueError(f'{", ".join(wrong)}: expected a finite number')


def _name_missing(text: str) -> str:
  """`text`, or where it says that a flag must not be None, what that flag is for."""
  return _MISSING.sub(lambda found: f'--{found[1]} is needed: {flags.FLAGS[found[1]].help}', text)


def _summarize(error: BaseException) -> str:
  """The message of an error of flags or of a ConfigDict, in one line and without its quotes."""
  while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps its KeyError.
    error = error.args[0]
  text = str(error)
  if isinstance(error, KeyError) and error.args:
    text = str(error.args[0])  # `str` of a KeyError would quote it.
  if 'Traceback (most recent call last)' in text:
    text = text.strip().splitlines()[-1].strip()
  return ' '.join(text.split()).replace('\'"', '').replace('"\'', '').rstrip('.?')


def _summarize_loading(error: OSError) -> str:
  """Why a config was not loaded: of all that `config_flags` tells, what the system said."""
  text = _summarize(error)
  missing = re.search(r"No such file or directory: '([^']+)'", text)
  return (
    f'there is no file {missing[1]}; configs/ has those that come with it.' if missing else text
  )


def _stop(message: str, status: int = MISTAKE) -> None:
  sys.stdout.flush()
  print(f'error: {message}', file=sys.stderr, flush=True)
  sys.exit(status)
