"""Converts a TFRecord RLDS dataset (as DROID, OXE and Bridge are published) to ArrayRecord, without TensorFlow.

python -m data.convert --source=~/bridge_dataset/1.0.0 --output=~/bridge_array_record/1.0.0 --workers=8

Records are copied byte for byte; only the shards' framing changes, so that training has random access to episodes.
The output appears whole or not at all.
"""
from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import struct
from collections.abc import Iterator
import uuid

from absl import app
from absl import flags
from array_record.python import array_record_module
from etils import epath
import google_crc32c
import tensorflow_datasets as tfds

from wam_jax.data import storage

_SOURCE = flags.DEFINE_string('source', None, 'TFDS directory with dataset_info.json and TFRecord shards.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make; it must not exist.')
_WORKERS = flags.DEFINE_integer('workers', 1, 'Processes, one shard each at a time.', lower_bound=1)

_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


def read_tfrecord(path: epath.PathLike) -> Iterator[bytes]:
  """The records of a TFRecord shard, both checksums of each verified.

  A record is: length (uint64), masked CRC of the length (uint32), bytes, masked CRC of the bytes (uint32).
  Raises:
    ValueError: truncated, or a checksum differs; names shard and record.
  Source: TensorFlow `tensorflow/core/lib/io/record_writer.h`.
  """
  with epath.Path(path).open('rb') as f:
    number = 0
    while head := f.read(12):
      where = f'record {number} of {path}'
      if len(head) < 12:
        raise ValueError(f'{where} is truncated: {len(head)} of 12 bytes of its head. Download the shard again.')
      (length,) = struct.unpack('<Q', head[:8])
      _check_crc(head[:8], head[8:], f'The length of {where}')
      body = f.read(length + 4)
      if len(body) < length + 4:
        raise ValueError(f'{where} is truncated: {len(body)} of {length + 4} bytes. Download the shard again.')
      _check_crc(body[:-4], body[-4:], where)
      yield body[:-4]
      number += 1


def _check_crc(content: bytes, stored: bytes, where: str) -> None:
  crc = google_crc32c.value(content)
  masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  if struct.unpack('<I', stored)[0] != masked:
    raise ValueError(f'{where} is corrupt: its checksum does not match. Download the shard again.')


def convert(source: str, output: str, workers: int = 1) -> epath.Path:
  """Writes the dataset at `source` to `output` as ArrayRecord, shard by shard; returns the output directory.

  Raises:
    ValueError: `source` is no TFRecord dataset, `output` exists, or a shard is missing, corrupt or of another length
      than dataset_info.json says. Nothing is left behind.
  """
  source, output = epath.Path(source).expanduser(), epath.Path(output).expanduser()
  shards_in = _source_shards(source, output)
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = output.parent / f'.{output.name}.partial_{uuid.uuid4().hex[:8]}'
  partial.mkdir()
  try:
    _copy_description(source, partial)
    info = tfds.builder_from_directory(partial).info
    jobs = [(path, target, length) for name, paths in shards_in.items() for path, target, length
            in zip(paths, info.splits[name].filepaths, info.splits[name].shard_lengths)]
    _run(jobs, workers)
    partial.rename(output)
  finally:
    if partial.exists():
      partial.rmtree()
  return output


def _source_shards(source: epath.Path, output: epath.Path) -> dict[str, list[epath.Path]]:
  if output.exists():
    raise ValueError(f'{output} exists already; remove it or give another --output.')
  if not (source / 'dataset_info.json').exists():
    raise ValueError(f'{source} has no dataset_info.json; give the version directory of a TFDS dataset, such as '
                     'NAME/1.0.0.')
  info = tfds.builder_from_directory(source).info
  if info.file_format.value != 'tfrecord':
    raise ValueError(f'{source} is in {info.file_format.value} format; only tfrecord needs converting.')
  shards = {name: list(split.filepaths) for name, split in info.splits.items()}
  missing = [str(path) for paths in shards.values() for path in paths if not path.exists()]
  if missing:
    raise ValueError(f'{len(missing)} shards of {source} are missing: {", ".join(missing[:10])}.')
  return shards


def _copy_description(source: epath.Path, target: epath.Path) -> None:
  """Everything but the shards, with the format in dataset_info.json changed."""
  for path in source.iterdir():
    if path.is_file() and '.tfrecord' not in path.name:
      path.copy(target / path.name)
  description = json.loads((source / 'dataset_info.json').read_text())
  description['fileFormat'] = 'array_record'
  for split in description['splits']:
    split['filepathTemplate'] = _TEMPLATE
  (target / 'dataset_info.json').write_text(json.dumps(description, indent=2))


def _run(jobs: list[tuple[epath.Path, epath.Path, int]], workers: int) -> None:
  if workers == 1:
    done = map(_convert_shard, jobs)
    list(storage.progress(done, len(jobs), 'converting shards'))
    return
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    list(storage.progress(pool.map(_convert_shard, jobs), len(jobs), 'converting shards'))


def _convert_shard(job: tuple[epath.Path, epath.Path, int]) -> None:
  source, target, length = job
  writer, count = array_record_module.ArrayRecordWriter(str(target), 'group_size:1'), 0
  try:
    for record in read_tfrecord(source):
      writer.write(record)
      count += 1
  finally:
    writer.close()
  if count != length:
    raise ValueError(f'{source} holds {count} records; dataset_info.json says {length}. Download the shard again.')
  reader = array_record_module.ArrayRecordReader(str(target))
  written = reader.num_records()
  reader.close()
  if written != length:
    raise ValueError(f'{target} holds {written} records after writing {length}; is the disk full?')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Arguments without a flag: {argv[1:]}.')
  try:
    output = convert(_SOURCE.value, _OUTPUT.value, _WORKERS.value)
  except ValueError as e:
    raise SystemExit(f'error: {e}') from e
  info = tfds.builder_from_directory(output).info
  print(f'{output}: ' + ', '.join(f'{name} {s.num_examples} episodes' for name, s in info.splits.items()))


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  app.run(main)
