"""Where compiled programs are kept, so that a restart does not compile them again: the flag of the
commands that compile, and what it means. Owns no programs; JAX reads and writes them.

JAX's process 0 writes and all processes read, so the place is one that every host sees and that
outlives them: beside the checkpoints. A program is found again where it, the options, the chips and
the versions are the same; nothing but time is lost with the directory. It holds code: whoever may
write there decides what runs. Source: jax, docs/persistent_compilation_cache.md.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

import jax
from absl import flags
from etils import epath

from wam_jax import storage

FOLDER = 'compilation_cache'

flags.disclaim_key_flags()  # --help shows the flag with the command that defines it.


def define_flag() -> flags.FlagHolder:
  """Defines --compilation_cache, for `keep`."""
  return flags.DEFINE_string(
    'compilation_cache',
    None,
    'Directory, local or gs://, where compiled programs are kept for faster restarts; '
    f'WORKDIR/{FOLDER} by default, but nowhere on CPUs; empty for nowhere.',
  )


def keep(given: str | None, workdir: pathlib.Path | epath.Path, is_private: bool = False) -> None:
  """From here on JAX looks for each program there before it compiles it, and keeps it there, small
  and quick ones too. Starts the backend.

  Args:
    given: what the flag says.
    is_private: whether a local directory that somebody else may write to is refused; one that is
      not there is made for its owner alone.
  Raises:
    ValueError: the place is of an object store that cannot be reached, or not private.
  """
  if given is None and (jax.default_backend() == 'cpu' or jax.config.jax_compilation_cache_dir):
    # XLA's programs for a CPU are of the instructions of the one that compiled them: another may
    # end on them, or refuse them on itself (jax issue 38445). And a place that JAX was told of by
    # its own option stays.
    return
  if given == '':
    jax.config.update('jax_enable_compilation_cache', False)
    return
  place = storage.make_path(given, '--compilation_cache') if given else workdir / FOLDER
  if is_private and not storage.is_remote(place):
    _make_private(place)
  jax.config.update('jax_compilation_cache_dir', str(place))
  # A restart runs hundreds of small programs, which JAX would compile again.
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if storage.is_remote(place):
    # XLA's own caches for GPUs, which are beside JAX's by default, know file systems only.
    jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  elif jax.process_index() == 0:
    _remove_torn(place)


def _make_private(place: epath.Path) -> None:
  """Makes a directory for its owner alone; raises `ValueError` where another may write."""
  pathlib.Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
  found = os.stat(place)
  if found.st_uid != os.getuid() or found.st_mode & 0o022:
    raise ValueError(
      f'Compiled programs in {place} are code, and others than you may write there: chmod 700 '
      f'{place}, name another place by --compilation_cache, or keep none by --compilation_cache=.'
    )


def _remove_torn(place: epath.Path) -> None:
  """Removes the programs in a local directory that a kill cut short: JAX would compile them at each
  start, and never write them again. An object appears whole or not at all.
  """
  # Not public: how JAX packs what it keeps.
  from jax._src import compilation_cache as packing

  for path in place.glob('*-cache'):
    try:
      packing.decompress_executable(path.read_bytes())
    except Exception:  # Each way of packing has an error of its own.
      with contextlib.suppress(OSError):  # It may be gone, or somebody else's.
        path.unlink()


def is_used() -> bool:
  """Whether JAX keeps compiled programs, and looks for them."""
  return bool(jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir)
