"""Where every image of a dataset lies in its shards, so that a window costs its own images and not
its episode.

TFDS keeps an episode as one record: 500 steps of three cameras are 30 MB, of which a window needs a
fifteenth. `data.convert` writes the records uncompressed and beside them
  DATASET/wam_frames/SHARD        the shard's episodes without their images, one after the other
  DATASET/wam_frames/index.json   where each of these lies, and a fingerprint of the shard
An episode without images is its tf.Example, each image feature replaced by a table of its steps'
images: [steps, 3] int64, (position in the shard, bytes, CRC-32C). No image is stored twice,
whatever is read is checked, and local paths and object stores are read alike.

Leans on the layout of ArrayRecord's files, which the library does not promise to keep: setup.py
holds array-record below the next version, and `index_shard` reads every record back both ways, so
that a changed layout ends a conversion and not a training run.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from wam_jax.data import shards

FOLDER = 'wam_frames'
INDEX = 'index.json'
# A record is one chunk, and its bytes are those in the file.
WRITER_OPTIONS = 'group_size:1,uncompressed'


# ArrayRecord files are Riegeli files: blocks of 64 KiB, each with a header of 24 bytes, around
# chunks with a header of 40 bytes. A position below counts the bytes outside of block headers.
# Source: riegeli_records_file_format.md there.
_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = 40
_RECORDS = b'r'


class Index:
  """Reads episodes without images, and single images, of one split.

  Args:
    path: of the dataset.
    entries: what index.json says of each shard, from `load_entries`.
    instructions: TFDS file instructions of the split, with `filename`, `skip` and `take`.
    fingerprints: those of the shards as they are now.
  Raises:
    ValueError: the index is of other shards.
  """

  def __init__(
    self,
    path: epath.Path,
    entries: Mapping[str, Any],
    instructions: Sequence[Any],
    fingerprints: Sequence[str],
  ):
    names = [epath.Path(shard.filename).name for shard in instructions]
    stale = [
      name
      for name, now in zip(names, fingerprints)
      if name not in entries or entries[name]['fingerprint'] != now
    ]
    if stale:
      raise ValueError(
        f'{path / FOLDER} does not belong to the shards beside it: {", ".join(stale[:10])}. Remove '
        'that folder and read whole episodes, or make the dataset again with '
        'python -m data.convert.'
      )
    self._fingerprints = list(fingerprints)
    self._shards = [os.fspath(shard.filename) for shard in instructions]
    self._lean = [str(path / FOLDER / name) for name in names]

    # Number of the shard, then position, bytes and CRC-32C of each episode without images.
    rows = []
    for number, (name, shard) in enumerate(zip(names, instructions)):
      episodes = entries[name]['episodes'][shard.skip : shard.skip + shard.take]
      rows += [(number, *episode) for episode in episodes]
    self._rows = np.asarray(rows, np.int64)

  def episode(self, number: int) -> bytes:
    """The serialized tf.Example of an episode without images."""
    shard, start, size, crc = self._rows[number].tolist()
    content = _open(self._lean[shard], self._fingerprints[shard]).read(start, size)
    return _check(content, crc, lambda: f'episode {number} in {self._lean[shard]}')

  def images(self, number: int, table: bytes) -> Images:
    """The images of one view of an episode."""
    shard = int(self._rows[number, 0])
    return Images(
      self._shards[shard], self._fingerprints[shard], np.frombuffer(table, '<i8').reshape(-1, 3)
    )


class Images(Sequence):
  """The encoded images of one view, read one by one when asked for.

  Attributes:
    table_T3: [T, 3] int64 position, bytes and CRC-32C of each.
  """

  def __init__(self, shard: str, fingerprint: str, table_T3: np.ndarray):
    self._shard, self._fingerprint, self.table_T3 = shard, fingerprint, table_T3

  def __len__(self) -> int:
    return len(self.table_T3)

  def __getitem__(self, step: int) -> bytes:
    position, size, crc = self.table_T3[step].tolist()
    content = _read_payload(_open(self._shard, self._fingerprint), position, size)
    return _check(
      content, crc, lambda: f'image of step {step} at byte {_in_file(position)} of {self._shard}'
    )


def load_entries(path: epath.Path) -> dict[str, Any] | None:
  """What the frame index of a dataset says of each shard; None where it has none."""
  try:
    return json.loads((path / FOLDER / INDEX).read_text())
  except FileNotFoundError:
    return None


def image_keys(features: tfds.features.FeaturesDict) -> list[str]:
  """Keys, in a serialized episode, of the images of its steps."""

  def visit(prefix, feature):
    if isinstance(feature, tfds.features.FeaturesDict):
      for key, value in feature.items():
        yield from visit(f'{prefix}/{key}', value)
    elif isinstance(feature, tfds.features.Image):
      yield prefix

  return list(visit('steps', features['steps'].feature)) if 'steps' in features else []


def index_shard(
  shard: str, crcs: Sequence[int], keys: Sequence[str], target: str
) -> dict[str, Any]:
  """Writes the episodes of a finished local shard, without images, to `target`; returns the shard's
  index entry.

  Reads every record again, as a reader of ArrayRecord and as this module do.

  Args:
    crcs: CRC-32C of the records that went into the shard.
    keys: of images, as from `image_keys`.
  Raises:
    ValueError: the shard does not hold these records.
  """
  reader = array_record_module.ArrayRecordReader(shard)
  entries = []
  start = 0
  try:
    if reader.num_records() != len(crcs):
      raise ValueError(
        f'{shard} holds {reader.num_records()} records after writing {len(crcs)}; is the disk full?'
      )
    with open(target, 'wb') as out:
      for number, (position, size) in enumerate(_records(shard, len(crcs))):
        record = reader.read([number])[0]
        if (
          google_crc32c.value(record) != crcs[number]
          or _read_payload(_LocalFile(shard), position, size) != record
        ):
          raise ValueError(
            f'Record {number} of {shard} is not what was written; check the disk and run again.'
          )
        lean = _without_images(record, position, keys)
        out.write(lean)
        entries.append((start, len(lean), google_crc32c.value(lean)))
        start += len(lean)
  finally:
    reader.close()
  return {'fingerprint': shards.read_end(shard).fingerprint, 'episodes': entries}


def _without_images(record: bytes, position: int, keys: Sequence[str]) -> bytes:
  """The episode `record`, which begins at `position` of its shard, with tables in place of
  images.
  """
  example = tf_example_pb2.Example.FromString(record)
  features = example.features.feature
  for key in keys:
    if key in features:
      table = _locate(record, features[key].bytes_list.value)
      table[:, 0] += position
      features[key].bytes_list.value[:] = [table.astype('<i8').tobytes()]
  return example.SerializeToString(deterministic=True)


def _locate(record: bytes, images: Sequence[bytes]) -> np.ndarray:
  """[T, 3] where in `record` each image lies, or another with the same bytes."""
  rows = []
  end = 0
  for image in images:
    start = record.index(image, end)
    end = start + len(image)
    rows.append((start, len(image), google_crc32c.value(image)))
  return np.asarray(rows, np.int64).reshape(-1, 3)


def _records(shard: str, count: int) -> Iterator[tuple[int, int]]:
  """(position, bytes) of the records of an uncompressed shard."""
  file = _LocalFile(shard)
  position = 0
  while count:
    header = _read_payload(file, position, _CHUNK_HEADER)
    if len(header) < _CHUNK_HEADER:
      raise ValueError(
        f'{shard} ends after byte {_in_file(position)} with {count} records missing; is the disk '
        'full?'
      )
    _, stored, _, kind, size = struct.unpack('<QQQQQ', header)
    position += _CHUNK_HEADER + stored
    # Chunks of other kinds hold the file's signature and the list of its records.
    if bytes([kind & 255]) == _RECORDS:
      yield position - size, size
      count -= 1


def _read_payload(file, position: int, size: int) -> bytes:
  """`size` bytes from `position` on, block headers left out."""
  if not size:
    return b''
  first = _in_file(position)
  content = file.read(first, _in_file(position + size - 1) + 1 - first)
  head = _BLOCK - first % _BLOCK
  if head >= len(content):
    return content
  # The rest of the block where the payload begins, then every block without its header.
  blocks = range(head, len(content), _BLOCK)
  return content[:head] + b''.join(content[i + _BLOCK_HEADER : i + _BLOCK] for i in blocks)


def _in_file(position: int) -> int:
  """The byte of the file at a position, which does not count block headers."""
  block, offset = divmod(position, _BLOCK - _BLOCK_HEADER)
  return block * _BLOCK + _BLOCK_HEADER + offset


def _check(content: bytes, crc: int, where: Callable[[], str]) -> bytes:
  if google_crc32c.value(content) != crc:
    raise ValueError(
      f'Cannot read {where()}: its checksum does not match. Restore the file or rebuild the '
      'dataset.'
    )
  return content


class _LocalFile:
  """A file that several threads read at once."""

  def __init__(self, path: str):
    # It stays open as long as this object lives.
    self._file = open(path, 'rb', buffering=0)  # noqa: SIM115
    # What follows an image is not asked for next.
    if hasattr(os, 'posix_fadvise'):
      os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

  def read(self, start: int, size: int) -> bytes:
    return os.pread(self._file.fileno(), size, start)


class _RemoteFile:
  """An object that several threads read at once, a request for each range."""

  def __init__(self, path: str):
    self._path, self._store = path, fsspec.filesystem('gcs')

  def read(self, start: int, size: int) -> bytes:
    return self._store.cat_file(self._path, start, start + size)


# Shards may be more than the files that a process can hold open.
@functools.lru_cache(maxsize=256)
def _open(path: str, fingerprint: str) -> _LocalFile | _RemoteFile:
  """An open file; the fingerprint keeps an earlier file of that name from being taken for it."""
  del fingerprint
  try:
    return _RemoteFile(path) if '://' in path else _LocalFile(path)
  except OSError as e:
    raise ValueError(f'Cannot open {path} ({e}). Restore the file or rebuild the dataset.') from e
