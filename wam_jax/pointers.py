"""Git LFS pointers: what a repository holds in place of a large file that was not fetched.

A clone without Git LFS has them for shards, videos, weights and vocabularies alike, and each
library calls them damaged in its own words. Whatever opens a file that may come from a repository
asks here.
Source: git-lfs, docs/spec.md.
"""

from __future__ import annotations

import os
import re

from etils import epath

_MAGIC = b'version https://git-lfs.github.com/spec/'
LARGEST = 1024  # Bytes of a pointer, by its specification.


def check(path: str | os.PathLike[str], content: bytes | None = None) -> None:
  """Returns if the file is none, or is not there; reads at most its first kilobyte.

  Args:
    content: of the file, where it has been read already; its beginning suffices.
  Raises:
    ValueError: it is a pointer; says what it stands for, and how to fetch that.
  """
  if content is None:
    content = _read_start(path)
  if not content.startswith(_MAGIC):
    return
  size = re.search(rb'^size (\d+)', content[:LARGEST], re.M)
  stands_for = f'for {int(size[1]):,} bytes that were' if size else 'for a file that was'
  name = os.path.basename(os.fspath(path))
  raise ValueError(
    f'{os.fspath(path)} is a Git LFS pointer: {len(content[:LARGEST])} bytes of text that stand '
    f'{stands_for} not downloaded. Fetch them where it was cloned: git lfs install && git lfs pull '
    f"--include='*{os.path.splitext(name)[1] or name}'"
  )


def _read_start(path: str | os.PathLike[str]) -> bytes:
  try:
    # Opened as epath opens it: it may be an object of a bucket.
    with epath.Path(path).open('rb') as f:
      return f.read(LARGEST)
  except (FileNotFoundError, IsADirectoryError):
    return b''
