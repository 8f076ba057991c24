"""Where every image of a dataset lies in its shards, so that a window costs its own images and not
its episode.

TFDS keeps an episode as one record: 500 steps of three cameras are 30 MB, of which a window needs a
fifteenth. Builders and `data.convert` write the records uncompressed and beside them
  DATASET/wam_frames/SHARD        the shard's episodes without their images, one after the other
  DATASET/wam_frames/index.json   where each of these lies, and a fingerprint of the shard
An episode without images is its tf.Example, each image feature replaced by a table of its steps'
images: [steps, 3] int64, (position in the shard, bytes, CRC-32C). No image is stored twice,
whatever is read is checked, and local paths and object stores are read alike.

Leans on the layout of ArrayRecord's files, which the library does not promise to keep: setup.py
holds array-record below the next version, and `index_shard` reads every record back both ways, so
that a changed layout ends the making of a dataset and not a training run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from wam_jax import pointers
from wam_jax.data import payload
from wam_jax.data import shards

FOLDER = 'wam_frames'
INDEX = 'index.json'
# A record is one chunk, and its bytes are those in the file.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


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
    paths = [os.fspath(shard.filename) for shard in instructions]
    self._shards = list(map(payload.Shard, paths, fingerprints))
    lean = [str(path / FOLDER / name) for name in names]
    self._lean = list(map(payload.Shard, lean, fingerprints))

    # Number of the shard, then position, bytes and CRC-32C of each episode without images.
    rows = []
    for number, (name, shard) in enumerate(zip(names, instructions)):
      episodes = entries[name]['episodes'][shard.skip : shard.skip + shard.take]
      rows += [(number, *episode) for episode in episodes]
    self._rows = np.asarray(rows, np.int64)

  def episode(self, number: int) -> bytes:
    """The serialized tf.Example of an episode without images."""
    shard, start, size, crc = self._rows[number].tolist()
    lean = self._lean[shard]
    content = payload.read_plain(lean, start, size)
    return _check(content, crc, lambda: f'episode {number} in {lean.path}')

  def images(self, number: int, table: bytes) -> Images:
    """The images of one view of an episode."""
    shard = self._shards[int(self._rows[number, 0])]
    return Images(shard, np.frombuffer(table, '<i8').reshape(-1, 3))


class Images(Sequence):
  """The encoded images of one view, read one by one when asked for.

  Attributes:
    shard: where they lie.
    table_T3: [T, 3] int64 position, bytes and CRC-32C of each.
  """

  def __init__(self, shard: payload.Shard, table_T3: np.ndarray):
    self.shard = shard
    self.table_T3 = table_T3

  def __len__(self) -> int:
    return len(self.table_T3)

  def __getitem__(self, step: int) -> bytes:
    position, size, _ = self.table_T3[step].tolist()
    return self.check(step, payload.read(self.shard, position, size))

  def check(self, step: int, content: bytes) -> bytes:
    """`content`, which was read for this step.

    Raises:
      ValueError: it is not what was written.
    """
    position, _, crc = self.table_T3[step].tolist()
    byte = payload.find_byte(position)
    return _check(content, crc, lambda: f'image of step {step} at byte {byte} of {self.shard.path}')


class Loaded(Sequence):
  """The images of a view, some of which are in memory; the others are read when asked for."""

  def __init__(self, images: Images, loaded: Mapping[int, bytes]):
    self._images = images
    self._loaded = loaded

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, step: int) -> bytes:
    return self._loaded[step] if step in self._loaded else self._images[step]


def load(views: Mapping[str, Images], steps: Sequence[int]) -> dict[str, Loaded]:
  """The views of one episode with the images of these steps in memory.

  A view's images of neighbouring steps lie side by side: in an object store a window of a few
  seconds is one request a view.
  Raises:
    ValueError: the shard is not there, or an image is damaged.
  """
  wanted = [(key, step) for key in views for step in steps]
  pieces = [tuple(views[key].table_T3[step, :2].tolist()) for key, step in wanted]
  loaded: dict[str, dict[int, bytes]] = {key: {} for key in views}
  if wanted:
    shard = next(iter(views.values())).shard  # An episode is one record.
    for (key, step), content in zip(wanted, payload.read_pieces(shard, pieces)):
      loaded[key][step] = views[key].check(step, content)
  return {key: Loaded(images, loaded[key]) for key, images in views.items()}


def load_entries(path: epath.Path) -> dict[str, Any] | None:
  """What the frame index of a dataset says of each shard; None where it has none."""
  pointers.check(path / FOLDER / INDEX)
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


def write_records(shard: str, records: Iterable[bytes]) -> list[int]:
  """Writes a local shard that can be indexed; the CRC-32C of each record."""
  writer = array_record_module.ArrayRecordWriter(shard, _WRITER_OPTIONS)
  crcs = []
  try:
    for record in records:
      writer.write(record)
      crcs.append(google_crc32c.value(record))
  finally:
    writer.close()
  return crcs


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
      for number, (position, content) in enumerate(payload.read_records(shard, len(crcs))):
        record = reader.read([number])[0]
        if google_crc32c.value(record) != crcs[number] or content != record:
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


def _check(content: bytes, crc: int, where: Callable[[], str]) -> bytes:
  if google_crc32c.value(content) != crc:
    raise ValueError(
      f'Cannot read {where()}: its checksum does not match. Restore the file or rebuild the '
      'dataset.'
    )
  return content
