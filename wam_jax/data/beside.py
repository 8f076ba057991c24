"""Small derived files beside a dataset, or in the user's cache where the dataset is read-only."""

from __future__ import annotations

import hashlib
import pathlib

from etils import epath

from wam_jax.data import storage

FALLBACK = pathlib.Path('~/.cache/wam_jax')  # For what belongs beside a dataset that is read-only.


def read(path: epath.Path, name: str) -> bytes | None:
  """What `write` left for the dataset at `path`, or None."""
  found = find(path, name)
  return found.read_bytes() if found.exists() else None


def find(path: epath.Path, name: str) -> epath.Path:
  """Where `read` looks first: the file beside the dataset, or the fallback if only that
  exists.
  """
  beside, fallback = _beside(path, name)
  return fallback if fallback.exists() and not beside.exists() else beside


def write(path: epath.Path, name: str, content: bytes) -> epath.Path:
  """Writes a small derived file into the dataset's directory, or under ~/.cache/wam_jax where that
  is read-only.

  A reader sees the old file or the whole new one. Returns where it went.
  """
  beside, fallback = _beside(path, name)
  try:
    return storage.write_atomic(beside, content)
  except OSError:
    fallback.parent.mkdir(parents=True, exist_ok=True)
    return storage.write_atomic(fallback, content)


def _beside(path: epath.Path, name: str) -> tuple[epath.Path, epath.Path]:
  home = epath.Path(FALLBACK).expanduser()
  return path / name, home / hashlib.sha256(str(path).encode()).hexdigest()[:16] / name
