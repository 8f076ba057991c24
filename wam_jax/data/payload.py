"""Bytes of ArrayRecord shards by their position, from a disk or an object store, in as few reads as
may be. Knows blocks and chunks; what the bytes mean is frames.py's business.

ArrayRecord files are Riegeli files: blocks of 64 KiB, each with a header of 24 bytes, around chunks
with a header of 40 bytes. A position counts the bytes outside of block headers.
Source: riegeli_records_file_format.md there.
"""

from __future__ import annotations

import bisect
import functools
import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wam_jax import pointers
from wam_jax import storage

_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = 40
_RECORDS = b'r'

# A request to an object store takes the time of about a megabyte; what lies nearer together is one
# request. Of what it brings at least every twelfth byte is wanted, as of a camera of 30 Hz that is
# looked at three times a second.
_GAP = 1 << 20
_WASTE = 12


class Shard(NamedTuple):
  """A file of records.

  Attributes:
    path: local, or gs://.
    fingerprint: of the file as it is now, from `shards.End`, which keeps an earlier file of that
      name from being taken for it.
  """

  path: str
  fingerprint: str


class _Range(NamedTuple):
  """Neighbouring pieces that are read at once.

  Attributes:
    start, stop: positions.
    wanted: bytes of the pieces.
  """

  start: int
  stop: int
  wanted: int


def read(shard: Shard, position: int, size: int) -> bytes:
  """`size` bytes of payload from `position` on.

  Raises:
    ValueError: the shard is not there.
  """
  return _read(_open(shard), position, size)


def read_plain(shard: Shard, start: int, size: int) -> bytes:
  """`size` bytes from byte `start` on of a file without blocks; errors as `read`."""
  return _open(shard).read(start, size)


def read_pieces(shard: Shard, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
  """The payload of each (position, size).

  Of an object store pieces that lie near each other are one request, and all requests are made at
  the same time; on a disk what follows directly is one read.
  Raises:
    ValueError: the shard is not there, or cannot be read.
  """
  file = _open(shard)
  ranges = _join(pieces, file.gap)
  contents = dict(zip(ranges, file.read_all(ranges)))
  starts = [one.start for one in ranges]

  def cut(position: int, size: int) -> bytes:
    if not size:
      return b''
    # The last range that begins at or before it.
    one = ranges[bisect.bisect_right(starts, position) - 1]
    return contents[one][position - one.start : position - one.start + size]

  return [cut(*piece) for piece in pieces]


def read_records(path: str, count: int) -> Iterator[tuple[int, bytes]]:
  """(position, content) of the records of an uncompressed local shard of `count` records.

  Raises:
    ValueError: it ends before.
  """
  file = _LocalFile(path)
  position = 0
  while count:
    header = _read(file, position, _CHUNK_HEADER)
    if len(header) < _CHUNK_HEADER:
      raise ValueError(
        f'{path} ends after byte {find_byte(position)} with {count} records missing; is the disk '
        'full?'
      )
    _, stored, _, kind, size = struct.unpack('<QQQQQ', header)
    position += _CHUNK_HEADER + stored
    # Chunks of other kinds hold the file's signature and the list of its records.
    if bytes([kind & 255]) == _RECORDS:
      yield position - size, _read(file, position - size, size)
      count -= 1


def find_byte(position: int) -> int:
  """The byte of the file at a position."""
  block, offset = divmod(position, _BLOCK - _BLOCK_HEADER)
  return block * _BLOCK + _BLOCK_HEADER + offset


def _join(pieces: Sequence[tuple[int, int]], gap: int) -> list[_Range]:
  """Ranges in order that hold all pieces, joined over at most `gap` bytes that nobody wants."""
  ranges: list[_Range] = []
  for position, size in sorted({piece for piece in pieces if piece[1]}):
    before = ranges[-1] if ranges else None
    if before and position - before.stop <= gap:
      joined = _Range(before.start, max(before.stop, position + size), before.wanted + size)
      if joined.stop - joined.start <= _WASTE * joined.wanted:
        ranges[-1] = joined
        continue
    ranges.append(_Range(position, position + size, size))
  return ranges


def _read(file: _LocalFile | _RemoteFile, position: int, size: int) -> bytes:
  """As `read`."""
  if not size:
    return b''
  first, stop = _span(position, size)
  return _without_headers(file.read(first, stop - first), first)


def _span(position: int, size: int) -> tuple[int, int]:
  """The first byte of a payload in the file, and the one after its last."""
  return find_byte(position), find_byte(position + size - 1) + 1


def _without_headers(content: bytes, first: int) -> bytes:
  """The payload in `content`, which begins with the byte `first` of the file, one of payload."""
  head = _BLOCK - first % _BLOCK
  if head >= len(content):
    return content
  # The rest of the block where the payload begins, then every block without its header.
  blocks = range(head, len(content), _BLOCK)
  return content[:head] + b''.join(content[i + _BLOCK_HEADER : i + _BLOCK] for i in blocks)


class _LocalFile:
  """A file that several threads read at once.

  Attributes:
    gap: bytes that a read may take for nothing.
  """

  gap = 16  # Neighbours in a record have a tag and a length between them.

  def __init__(self, path: str):
    # It stays open as long as this object lives.
    self._file = open(path, 'rb', buffering=0)  # noqa: SIM115
    # What follows an image is not asked for next.
    if hasattr(os, 'posix_fadvise'):
      os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, start: int, size: int) -> bytes:
    return os.pread(self._file.fileno(), size, start)

  def read_all(self, ranges: Sequence[_Range]) -> list[bytes]:
    return [_read(self, one.start, one.stop - one.start) for one in ranges]


class _RemoteFile:
  """An object that several threads read at once, a request for each range."""

  gap = _GAP

  def __init__(self, path: str):
    self._path = path
    self._store = storage.open_store()

  def read(self, start: int, size: int) -> bytes:
    return self._store.cat_file(self._path, start, start + size)

  def read_all(self, ranges: Sequence[_Range]) -> list[bytes]:
    spans = [_span(one.start, one.stop - one.start) for one in ranges]
    firsts = [first for first, _ in spans]
    stops = [stop for _, stop in spans]
    contents = self._store.cat_ranges([self._path] * len(spans), firsts, stops, on_error='return')
    for first, content in zip(firsts, contents):
      if isinstance(content, Exception):
        raise ValueError(
          f'Cannot read byte {first} of {self._path} ({content}). Restore the file or rebuild the '
          'dataset.'
        ) from content
    return [_without_headers(content, first) for first, content in zip(firsts, contents)]


# Shards may be more than the files that a process can hold open.
@functools.lru_cache(maxsize=256)
def _open(shard: Shard) -> _LocalFile | _RemoteFile:
  try:
    if not storage.is_remote(shard.path):
      pointers.check(shard.path)
    return (_RemoteFile if storage.is_remote(shard.path) else _LocalFile)(shard.path)
  except OSError as e:
    raise ValueError(
      f'Cannot open {shard.path} ({e}). Restore the file or rebuild the dataset.'
    ) from e
