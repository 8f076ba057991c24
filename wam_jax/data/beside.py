"""Small files that are derived from a dataset and kept beside it: found again by the next start.

A dataset on a read-only place has them in the user's cache; where that cannot be written either,
this process keeps them in memory. What a file is of stands in the file: its reader decides whether
that is still true.
"""

from __future__ import annotations

import hashlib
import pathlib

from absl import logging
from etils import epath

from wam_jax import storage

FALLBACK = pathlib.Path('~/.cache/wam_jax')

# By place, what could be written nowhere.
_in_memory: dict[epath.Path, bytes] = {}


def read(dataset: epath.Path, name: str) -> bytes | None:
  """What `write` left for the dataset, or None."""
  if dataset / name in _in_memory:
    return _in_memory[dataset / name]
  for place in _list_places(dataset, name):
    try:
      return place.read_bytes()
    except FileNotFoundError:
      continue
  return None


def find(dataset: epath.Path, name: str) -> epath.Path:
  """Where `read` looks first: beside the dataset, or in the user's cache if only that is there."""
  place, fallback = _list_places(dataset, name)
  return fallback if fallback.exists() and not place.exists() else place


def write(dataset: epath.Path, name: str, content: bytes, in_cache: bool = False) -> epath.Path:
  """Keeps a small file for the dataset; a reader sees the old one or the whole new one.

  Args:
    in_cache: leave the dataset's directory as it is.
  Returns:
    Where it went: into the dataset's directory, or under ~/.cache/wam_jax where that is read-only.
    Where nothing can be written it says so once, and the place is the first that was tried.
  """
  place, fallback = _list_places(dataset, name)
  reason = 'only the cache was asked for'
  try:
    if not in_cache:
      storage.write_whole(place, content)
      return place
  except OSError as e:
    reason = e
  try:
    fallback.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(fallback, content)
    return fallback
  except OSError:
    if place not in _in_memory:
      logging.warning(
        '%s cannot be kept beside the dataset (%s), nor under %s: it is in memory, and the next '
        'start makes it again.', place, reason, FALLBACK
      )  # fmt: skip
    _in_memory[place] = content
    return place


def _list_places(dataset: epath.Path, name: str) -> tuple[epath.Path, epath.Path]:
  """Where a file may lie, in this order."""
  folder = hashlib.sha256(str(dataset).encode()).hexdigest()[:16]
  return dataset / name, epath.Path(FALLBACK).expanduser() / folder / name
