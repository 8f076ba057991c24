"""Object storage (gs://): which paths are taken, and how files that libraries write locally come to
lie there.

An object appears whole or not at all, cannot be appended to, and nothing locks it. Small files of a
run are therefore written to a local directory and sent; checkpoints and datasets are read and
written in place by their own libraries.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator, Sequence

import fsspec
from etils import epath

_OWNER = '.owner'


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
      fsspec.get_filesystem_class('gcs')
    except ImportError as e:
      raise ValueError(
        f"{what} {path!r} needs gcsfs: pip install 'wam_jax[gcs]', or mount the bucket (gcsfuse) and "
        'pass the mounted path.'
      ) from e
  return epath.Path(path).expanduser()


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether `path` is of an object store."""
  return '://' in os.fspath(path)


def write(path: epath.Path, content: bytes) -> None:
  """Puts one object.

  Raises:
    ValueError: there is no such bucket, or no permission.
  """
  try:
    path.write_bytes(content)
  except Exception as e:  # gcsfs raises OSError, its own HttpError or what google.auth raises.
    bucket = '/'.join(str(path).split('/')[:3])
    reason = (
      'there is no such bucket'
      if isinstance(e, FileNotFoundError)
      else ' '.join(str(e).split())[:300]
    )
    raise ValueError(
      f'{path} cannot be written: {reason}. Check the name and your permission with '
      f'`gcloud storage ls {bucket}`; log in by `gcloud auth application-default login`.'
    ) from e


def move(source: epath.Path, target: epath.Path) -> None:
  """Renames all objects below `source`; they are copied within the store."""
  store = fsspec.filesystem('gcs')
  store.copy(str(source), str(target), recursive=True)
  store.rm(str(source), recursive=True)


class Folder:
  """A local directory for files whose place is elsewhere; `send` brings there what has changed.

  Attributes:
    local: where to write; the place itself if that is local.
  """

  def __init__(self, local: pathlib.Path, place: epath.Path | None = None, owner: str = ''):
    """`place` is None if it is `local`; with an `owner` nothing is sent once another one has taken
    `place`.
    """
    self.local, self._place, self._owner = local, place, owner
    self._sent: dict[pathlib.Path, tuple[int, int]] = {}
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
      ValueError: they cannot be written, or the place belongs to another process by now.
    """
    if self._place:
      self._sending.result()
      self._send()

  def _send(self) -> None:
    if self._owner and (self._place / _OWNER).read_text() != self._owner:
      raise ValueError(
        f'{self._place} has been taken over by another training process; this one stops. Pass another '
        'directory to run both.'
      )
    for path in sorted(path for path in self.local.rglob('*') if path.is_file()):
      state = path.stat()
      stamp = state.st_size, state.st_mtime_ns
      if self._sent.get(path) != stamp:
        write(self._place / path.relative_to(self.local).as_posix(), path.read_bytes())
        self._sent[path] = stamp


@contextlib.contextmanager
def staged(place: pathlib.Path | epath.Path) -> Iterator[pathlib.Path]:
  """A local directory whose files are in `place` at the end; `place` itself, made, if that is
  local.
  """
  if not is_remote(place):
    place.mkdir(parents=True, exist_ok=True)
    yield place
    return
  with tempfile.TemporaryDirectory() as local:
    yield pathlib.Path(local)
    Folder(pathlib.Path(local), place).send()


@contextlib.contextmanager
def taken(place: epath.Path, continued: Sequence[str]) -> Iterator[Folder]:
  """The Folder of `place`, which belongs to this process until another one takes it; sent at the
  end.

  An earlier owner stops at its next `send`: nothing has to time out before a killed run can be
  continued.

  Args:
    continued: names of files that are written on from where they are; fetched if they exist.
  Raises:
    ValueError: `place` cannot be written.
  """
  owner = uuid.uuid4().hex
  write(place / _OWNER, owner.encode())
  with tempfile.TemporaryDirectory() as local:
    for name in continued:
      if (place / name).exists():
        (pathlib.Path(local) / name).write_bytes((place / name).read_bytes())
    folder = Folder(pathlib.Path(local), place, owner)
    try:
      yield folder
    finally:
      folder.send()
