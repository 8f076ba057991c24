"""How files and directories get their place: whole or not at all, locked, on a disk or in a bucket.

A reader finds the old file or the whole new one, however the writer ends; what was written is on
the disk when it has its name. On object storage (gs://) an object appears whole by itself, cannot
be appended to, and nothing locks it: small files of a run are written to a local directory and
sent, and the newest process owns the place. Checkpoints and datasets are read and written in place
by their own libraries.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import fsspec
from etils import epath

from wam_jax import passing

T = TypeVar('T')

WAITS_S = (1.0, 4.0, 16.0)  # Before what failed is tried again.
_OWNER = '.owner'
_STALL_S = 60  # Without a byte, a request to an object store is given up and made again.


def make_path(path: str | os.PathLike[str], what: str = 'the path') -> epath.Path:
  """`path` with `~` expanded, local or gs://.

  Raises:
    ValueError: another kind of object store, or gcsfs is not installed; calls the path `what`.
  """
  path = os.fspath(path)
  if '://' in path and not path.startswith('gs://'):
    raise ValueError(
      f'{what} {path!r} is an object store other than gs://. Mount it and pass the mounted path.'
    )
  if is_remote(path):
    try:
      _bound_requests()
    except ImportError as e:
      raise ValueError(
        f"{what} {path!r} needs gcsfs: pip install -e '.[gcs]', or mount the bucket (gcsfuse) "
        'and pass the mounted path.'
      ) from e
  return epath.Path(path).expanduser()


def make_local_path(path: str | os.PathLike[str], what: str, cure: str) -> pathlib.Path:
  """The absolute `path` with `~` expanded.

  Args:
    what: what messages call the path, as '--output'.
    cure: what to do instead, a sentence.
  Raises:
    ValueError: it is of an object store, which would become a local directory of that name.
  """
  if is_remote(path):
    raise ValueError(f'{what}={os.fspath(path)} is an object store. {cure}')
  return pathlib.Path(path).expanduser().absolute()


def open_store() -> fsspec.AbstractFileSystem:
  """The client of gs://.

  Raises:
    ImportError: gcsfs is not installed.
  """
  _bound_requests()
  return fsspec.filesystem('gcs')


def _bound_requests() -> None:
  """In this process no request to gs:// waits forever from now on: one that moves nothing for a
  minute fails and is made again, by gcsfs and by TensorStore, which reads and writes the arrays of
  checkpoints. What its environment or fsspec's configuration says already, stays.

  Raises:
    ImportError: gcsfs is not installed.
  """
  fsspec.get_filesystem_class('gcs')
  # As JAX sets both where it runs on a TPU. Source: TensorStore, docs/environment.rst.
  os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', str(_STALL_S))
  os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '256')
  settings = fsspec.config.conf.setdefault('gcs', {})
  if 'requests_timeout' not in settings:
    import aiohttp  # Comes with gcsfs.

    # Its own limit, five minutes for a whole answer, is of a kind that gcsfs does not try again.
    settings['requests_timeout'] = aiohttp.ClientTimeout(
      total=None, sock_connect=_STALL_S, sock_read=_STALL_S
    )


def list_sizes(directory: epath.Path) -> dict[str, int]:
  """Bytes of each file in a directory by name, in one request; {} if there is none."""
  if is_remote(directory):
    try:
      found = open_store().ls(str(directory), detail=True, refresh=True)
    except FileNotFoundError:
      return {}
    return {one['name'].rsplit('/', 1)[1]: one['size'] for one in found if one['type'] == 'file'}
  if not directory.is_dir():
    return {}
  with os.scandir(directory) as entries:
    return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether `path` is of an object store."""
  return '://' in os.fspath(path)


def check_file(path: epath.Path, what: str) -> None:
  """Says that no file can be written at `path`, before its content has cost anything. Of gs://
  nothing is asked.

  Args:
    what: what messages call the path, as '--output'.
  Raises:
    ValueError: a directory is there, or the place cannot be written.
  """
  if is_remote(path):
    return
  if path.is_dir():
    raise ValueError(f'{what}={path} is a directory; name a file in it.')
  check_directory(path.parent, what)


def check_directory(path: epath.Path, what: str) -> None:
  """The same for a directory, which may be there already."""
  if is_remote(path):
    return
  path = pathlib.Path(path).absolute()
  place = next(one for one in (path, *path.parents) if one.exists())
  try:
    # Permissions do not tell all: of a read-only disk only a file does.
    with tempfile.TemporaryFile(dir=place):
      pass
  except OSError as e:
    raise ValueError(
      f'{what} cannot be written in {path}: {place}: {e.strerror}. Name a place where you may '
      'write.'
    ) from e


def write_whole(path: pathlib.Path | epath.Path, content: bytes | str) -> None:
  """Puts `content` in the place of `path`, local or gs://.

  Raises:
    OSError: it cannot be written, and is what it was before; the message names `path`.
  """
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):
    _put(path, content)
    return
  with whole_file(path) as partial:
    partial.write_bytes(content)


def write_report(path: epath.Path, content: bytes | str) -> None:
  """The same, with the directories above it."""
  if not is_remote(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, content)


@contextlib.contextmanager
def whole_file(path: pathlib.Path | epath.Path) -> Iterator[pathlib.Path]:
  """A local file that takes the place of `path` when the block ends well, and vanishes otherwise: a
  hidden one beside it; of one on gs://, which must fit in memory, a temporary one.

  Raises:
    OSError: as `write_whole`.
  """
  if is_remote(path):
    with tempfile.TemporaryDirectory() as directory:
      partial = pathlib.Path(directory, path.name)
      yield partial
      _put(path, partial.read_bytes())
    return
  unique = uuid.uuid4().hex[:8]  # Another process may write the same file at the same time.
  # Its end says what kind of file it is.
  partial = path.with_name(f'.{unique}.{path.name}')
  try:
    yield partial
    _sync(partial)
    partial.replace(path)
  except OSError as e:
    if e.filename in (None, str(partial)):  # A full disk has no name, and the hidden one says less.
      e.filename = str(path)
    raise
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(output: pathlib.Path, size: int = 0) -> Iterator[pathlib.Path]:
  """A hidden directory beside `output` that takes its name when the block ends well, and vanishes
  otherwise.

  Args:
    size: bytes that are about to be written.
  Raises:
    ValueError: `output` is there already, or the disk is or becomes full.
  """
  if output.exists() and not (output.is_dir() and not any(output.iterdir())):
    raise ValueError(
      f'--output={output} exists already; nothing was changed. Pass another directory, or delete '
      'it.'
    )
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if size > free:
      raise ValueError(
        f'{output.parent} has {_show_bytes(free)} free; up to {_show_bytes(size)} are needed. Make '
        'room, or pass --output on another disk.'
      )
    # Beside its place: a directory can be renamed within one disk alone.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.parent))
    partial.chmod(0o777 & ~_read_umask())  # mkdtemp lets nobody else in.
  except OSError as e:
    raise ValueError(
      f'--output={output} cannot be written: {e.strerror}. Pass a directory you may write to.'
    ) from e
  try:
    yield partial
    _publish(partial, output)
  except OSError as e:
    free = shutil.disk_usage(output.parent).free
    raise ValueError(
      f'--output={output} could not be written ({_show_bytes(free)} free): {e}. What was written '
      'is removed again; make room and repeat.'
    ) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _show_bytes(count: int) -> str:
  return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


@contextlib.contextmanager
def resumable_directory(
  output: pathlib.Path, is_worth_keeping: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path | None]:
  """The hidden directory `.NAME.partial` beside `output`, which takes its name when the block ends
  well, and waits for the next call otherwise.

  A second process waits until the first one is done.

  Args:
    is_worth_keeping: whether an unfinished directory holds work that the next call can go on from;
      it is removed otherwise.
  Yields:
    The directory, with what earlier calls left in it; None if `output` is there already.
  """
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = output.with_name(f'.{output.name}.partial')
  handle = _make_locked(partial)
  try:
    if output.exists():
      yield None
    else:
      yield partial
      _publish(partial, output)
  finally:
    if partial.exists() and (output.exists() or not is_worth_keeping(partial)):
      shutil.rmtree(partial)
    os.close(handle)


def _make_locked(directory: pathlib.Path) -> int:
  """Makes `directory` and locks it, after whoever has it; the open handle, whose end releases
  it.
  """
  while True:
    directory.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # Its owner may rename or remove it at any time.
      handle = os.open(directory, os.O_RDONLY)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        print(f'waiting for another process that writes {directory}', file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
      with contextlib.suppress(FileNotFoundError):
        # The lock is worth nothing where the name has gone to another directory meanwhile.
        if os.path.samestat(os.fstat(handle), directory.stat()):
          return handle
      os.close(handle)


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
  """Holds the file `path`, made if missing, against other processes; the kernel releases it,
  however this one ends.

  Raises:
    BlockingIOError: another process holds it.
  """
  with path.open('w') as f:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


def _publish(partial: pathlib.Path, output: pathlib.Path) -> None:
  """Gives a directory its name, once all of it is on the disk."""
  for place, _, names in os.walk(partial):
    for name in names:
      _sync(pathlib.Path(place, name))
    _sync(pathlib.Path(place))
  partial.replace(output)
  _sync(output.parent)


def _sync(path: pathlib.Path) -> None:
  """Returns when a file, or the list of a directory, is on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _read_umask() -> int:
  mask = os.umask(0)  # There is no way to read it but to set it.
  os.umask(mask)
  return mask


def _put(path: epath.Path, content: bytes) -> None:
  """Puts one object.

  Raises:
    OSError: there is no such bucket, or no permission.
  """
  try:
    path.write_bytes(content)
  except Exception as e:  # gcsfs raises OSError, its own HttpError or what google.auth raises.
    raise _describe_refusal(path, e) from e


def _describe_refusal(path: epath.Path, error: Exception) -> OSError:
  """What to do when `path` cannot be written."""
  bucket = '/'.join(str(path).split('/')[:3])
  reason = ' '.join(str(error).split())[:300]
  if isinstance(error, FileNotFoundError) or getattr(error, 'code', None) == 404:
    reason = 'there is no such bucket'
  return OSError(
    f'{path} cannot be written: {reason}. Check the name and your permission with '
    f'`gcloud storage ls {bucket}`; log in by `gcloud auth application-default login`.'
  )


def list_files(place: pathlib.Path | epath.Path) -> dict[str, int]:
  """Size in bytes of each file below `place`, by its name from there."""
  if is_remote(place):
    store = open_store()
    store.invalidate_cache()  # Other processes and libraries write there, too.
    prefix = str(place).removeprefix('gs://').rstrip('/') + '/'
    found = store.find(str(place), detail=True)
    return {name.removeprefix(prefix): entry['size'] for name, entry in found.items()}
  paths = (pathlib.Path(top, name) for top, _, names in os.walk(place) for name in names)
  return {path.relative_to(place).as_posix(): path.stat().st_size for path in paths}


def retry(call: Callable[[], T], what: str) -> T:
  """The result of `call`, which reads or writes; errors that may pass by themselves are waited for.

  Args:
    what: what it does, for messages, as 'listing the checkpoints'.
  Raises:
    Exception: what the last try raises.
  """
  for wait_s in WAITS_S:
    try:
      return call()
    except Exception as e:  # Each library has its own types for a time-out or a refusal.
      if not passing.may_pass(e):
        raise
      reason = ' '.join(str(e).split())[:300] or type(e).__name__
      print(f'{what}: {reason}; again in {wait_s:g} s', file=sys.stderr, flush=True)
      time.sleep(wait_s)
  return call()


class TakenError(ValueError):
  """A place in a bucket belongs to another process by now."""


class Owner:
  """The object of a place in a bucket that says which process it belongs to: whoever wrote it last.

  Its generation, a number that the store counts up with every write, is what is compared, and what
  a write is bound to: of two processes that take a place at the same time, one is refused.
  """

  def __init__(self, place: epath.Path):
    """Takes `place`.

    Raises:
      OSError: it cannot be written.
      TakenError: another process took it at the same moment.
    """
    # Comes with gcsfs, and is slow to import.
    from google.api_core import exceptions
    from google.cloud import storage as gcs

    self._place = place
    bucket, _, self._name = str(place / _OWNER).removeprefix('gs://').partition('/')
    name = uuid.uuid4().hex
    try:
      # Objects are found by bucket and name: the project is of no use, and need not be known.
      self._bucket = gcs.Client(project='unused').bucket(bucket)
      before = self._bucket.get_blob(self._name)
      blob = self._bucket.blob(self._name)
      with contextlib.suppress(exceptions.PreconditionFailed):
        blob.upload_from_string(name, if_generation_match=before.generation if before else 0)
      # Read again: a write that was repeated is refused, though it is ours.
      owned = blob.download_as_text() == name
      self._generation = blob.generation
    except Exception as e:  # Of google.auth, google.cloud or requests.
      raise _describe_refusal(place / _OWNER, e) from e
    if not owned:
      raise TakenError(
        f'{place} was taken by another training process at the same moment; this one stops. Pass '
        'another directory to run both.'
      )

  def check(self) -> None:
    """Raises TakenError once another process has taken the place; OSError if it cannot be read."""
    where = self._place / _OWNER
    try:
      found = retry(lambda: self._bucket.get_blob(self._name), f'reading {where}')
    except Exception as e:  # Of google.auth, google.cloud or requests.
      raise OSError(f'{where} cannot be read: {" ".join(str(e).split())[:300]}') from e
    if found is None or found.generation != self._generation:
      raise TakenError(
        f'{self._place} has been taken over by another training process; this one stops. Pass '
        'another directory to run both.'
      )


class Folder:
  """A local directory for files whose place is elsewhere; `send` brings there what has changed.

  Attributes:
    local: where to write; the place itself if that is local.
  """

  def __init__(
    self, local: pathlib.Path, place: epath.Path | None = None, owner: Owner | None = None
  ):
    """`place` is None if it is `local`; with an `owner` nothing is sent once another one has taken
    `place`.
    """
    self.local = local
    self._place = place
    self._owner = owner
    # Size and time of change of each file as it was sent.
    self._sent: dict[pathlib.Path, tuple[int, int]] = {}
    # One thread, so that what is sent later arrives later.
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._sending = self._thread.submit(lambda: None)

  def send_soon(self) -> None:
    """Sends in the background unless that is still under way; raises what the last time raised."""
    if self._place and self._sending.done():
      self._sending.result()
      self._sending = self._thread.submit(self._send)

  def send(self) -> None:
    """Returns when all files are there.

    Raises:
      OSError: they cannot be written.
      TakenError: the place belongs to another process by now.
    """
    if self._place:
      self._sending.result()
      self._send()

  def check_owner(self) -> None:
    """Raises TakenError if the place belongs to another process by now."""
    if self._owner:
      self._owner.check()

  def _send(self) -> None:
    self.check_owner()
    for path in sorted(path for path in self.local.rglob('*') if path.is_file()):
      state = path.stat()
      stamp = state.st_size, state.st_mtime_ns
      if self._sent.get(path) != stamp:
        _put(self._place / path.relative_to(self.local).as_posix(), path.read_bytes())
        self._sent[path] = stamp


@contextlib.contextmanager
def local_directory(place: pathlib.Path | epath.Path) -> Iterator[pathlib.Path]:
  """A local directory whose files are in `place` at the end; `place` itself, made, if that is
  local. One that is empty still when the block fails is gone again.
  """
  if not is_remote(place):
    place.mkdir(parents=True, exist_ok=True)
    try:
      yield place
    except BaseException:
      with contextlib.suppress(OSError):  # Something was written.
        place.rmdir()
      raise
    return
  with tempfile.TemporaryDirectory() as local:
    yield pathlib.Path(local)
    Folder(pathlib.Path(local), place).send()


@contextlib.contextmanager
def owned_folder(place: epath.Path, continued: Sequence[str]) -> Iterator[Folder]:
  """The Folder of `place`, which belongs to this process until another one takes it; sent at the
  end.

  An earlier owner stops at its next `send`: nothing has to time out before a killed run can be
  continued.

  Args:
    continued: names of files that are written on from where they are; fetched if they exist.
  Raises:
    OSError: `place` cannot be written.
    TakenError: another process took it at the same moment, or later.
  """
  owner = Owner(place)
  with tempfile.TemporaryDirectory() as name:
    local = pathlib.Path(name)
    for file in continued:
      if (place / file).exists():
        (local / file).write_bytes((place / file).read_bytes())
    folder = Folder(local, place, owner)
    try:
      yield folder
    except BaseException:
      # The metrics of a run that failed say why; but its own error says more than one of these.
      try:
        folder.send()
      except Exception as e:
        print(f'the last files were not sent to {place}: {e}', file=sys.stderr)
      raise
    folder.send()
