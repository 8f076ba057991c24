r"""Converts an RLDS dataset to uncompressed ArrayRecord with a frame index, without TensorFlow.

python -m data.convert --source=~/bridge_dataset/1.0.0 --output=~/bridge/1.0.0 --workers=8 \
  [--split=train] [--shards=present]

The source is TFRecord (as DROID, OXE and Bridge are published) or ArrayRecord (as TFDS writes it,
compressed and without index; the builders beside this module write the index themselves). Records
are copied byte for byte and read again; only their framing changes, so that training has random
access to single images. Paths may be local or of an object store (gs://).

The output appears whole or not at all. A conversion that was stopped continues where it was:
finished shards wait in a hidden directory beside the output; in an object store they have their
place, and dataset_info.json comes last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import struct
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence

import google_crc32c
import tensorflow_datasets as tfds
from absl import flags
from array_record.python import array_record_module
from etils import epath

from data import portion as portion_lib
from wam_jax import cli
from wam_jax import pointers
from wam_jax import progress
from wam_jax import storage
from wam_jax.data import exclusions
from wam_jax.data import frames

_SOURCE = flags.DEFINE_string(
  'source', None, 'TFDS directory with dataset_info.json and TFRecord or ArrayRecord shards.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make; it must not exist.')
_WORKERS = flags.DEFINE_integer('workers', 1, 'Processes, one shard each at a time.', lower_bound=1)

_SPLIT = flags.DEFINE_string(
  'split', '', 'Names of the splits to convert, with commas; all by default.'
)
_SHARDS = flags.DEFINE_string(
  'shards',
  '',
  "Numbers of the shards of --split to convert, as 0:2,5; 'present' for all that are there, of a "
  'partial download; all by default.',
)

_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_DESCRIPTION = 'dataset_info.json'  # A directory without it is no dataset, so it comes last.
_ORIGIN = 'origin.json'  # What an unfinished conversion is made from.
_GZIP = b'\x1f\x8b'
_READ_BYTES = 1 << 24  # At once, where a whole file is read back.


def read_tfrecord(path: epath.PathLike) -> Iterator[bytes]:
  """The records of a TFRecord shard, both checksums of each verified.

  A record is: length (uint64), masked CRC of the length (uint32), bytes, masked CRC of the bytes
  (uint32), all little-endian.

  Raises:
    ValueError: truncated, or a checksum differs; names shard and record.
  Source: TensorFlow `tensorflow/core/lib/io/record_writer.h`.
  """
  with epath.Path(path).open('rb') as f:
    number = 0
    while head := f.read(12):
      where = f'record {number} of {path}'
      if len(head) < 12:
        raise ValueError(
          f'{where} is truncated: {len(head)} of 12 bytes of its head. Download the shard again.'
        )
      (length,) = struct.unpack('<Q', head[:8])
      if not number and head.startswith(_GZIP) and not _has_crc(head[:8], head[8:]):
        raise ValueError(f'{path} is compressed as a whole (GZIP). Unpack the shards first: gunzip')
      _check_crc(head[:8], head[8:], f'The length of {where}')
      body = f.read(length + 4)
      if len(body) < length + 4:
        raise ValueError(
          f'{where} is truncated: {len(body)} of {length + 4} bytes. Download the shard again.'
        )
      _check_crc(body[:-4], body[-4:], where)
      yield body[:-4]
      number += 1


def _has_crc(content: bytes, stored: bytes) -> bool:
  crc = google_crc32c.value(content)
  # Masked, so that a record which holds CRCs of its own parts keeps a telling one.
  masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  return struct.unpack('<I', stored)[0] == masked


def _check_crc(content: bytes, stored: bytes, where: str) -> None:
  if not _has_crc(content, stored):
    raise ValueError(f'{where} is corrupt: its checksum does not match. Download the shard again.')


def read_array_record(path: epath.PathLike) -> Iterator[bytes]:
  """The records of an ArrayRecord shard, which checks them itself.

  Raises:
    ValueError: truncated or corrupt; names shard and record.
  """
  with tempfile.TemporaryDirectory() as directory:
    local = _fetch(epath.Path(path), directory)
    number = 0
    try:
      reader = array_record_module.ArrayRecordReader(local)
      for number in range(reader.num_records()):
        yield reader.read([number])[0]
      reader.close()  # Raises what `num_records` may have kept to itself.
    except (RuntimeError, IndexError, ValueError) as e:
      raise ValueError(
        f'record {number} of {path} is truncated or corrupt ({e}). Restore the shard.'
      ) from e


def convert(
  source: str, output: str, workers: int = 1, splits: str = '', shards: str = ''
) -> epath.Path:
  """Writes the dataset at `source` to `output`, shard by shard; returns the output directory.

  Args:
    splits, shards: which of them, see `portion.choose`.
  Raises:
    ValueError: `source` is no dataset of a known format, `output` exists, or a shard is missing,
      corrupt or of another length than dataset_info.json says. Finished shards stay for the next
      call.
  """
  source = storage.make_path(source, '--source')
  output = storage.make_path(output, '--output')
  info = _open_source(source, output)
  portion = portion_lib.choose(info, source, splits, shards)
  for line in portion.left_out:
    progress.say(f'left out: {line}')
  with _open_output(output) as partial:
    (partial / frames.FOLDER).mkdir(parents=True, exist_ok=True)
    _check_origin(partial, source, portion)
    jobs = _plan(info, portion, partial)
    left = [job for job in jobs if not job.done]
    if len(left) < len(jobs):
      print(f'{len(jobs) - len(left)} of {len(jobs)} shards are there already', file=sys.stderr)
    _run(left, workers)
    _write_index(partial, jobs)
    _copy_description(source, partial, {path.name for path in _list_files(info)}, portion)
  _remove_traces(output)
  return output


@contextlib.contextmanager
def _open_output(output: epath.Path) -> Iterator[epath.Path]:
  """Where shards are written: a hidden directory that takes the name of `output` at the end, or, in
  an object store, which cannot rename, their own place.
  """
  if storage.is_remote(output):
    yield output
    return
  with storage.resumable_directory(pathlib.Path(output), _has_begun) as partial:
    if partial is None:  # Another process has made it while this one waited.
      raise _already_there(output)
    _remove_leftovers(partial)
    yield epath.Path(partial)


def _has_begun(partial: pathlib.Path) -> bool:
  return (partial / _ORIGIN).exists()


def _remove_leftovers(partial: pathlib.Path) -> None:
  """Removes the shards that a killed process was about to write."""
  for path in partial.iterdir():
    if path.is_dir() and path.name != frames.FOLDER:
      shutil.rmtree(path)


def _already_there(output: epath.Path) -> ValueError:
  return ValueError(f'{output} exists already; remove it or give another --output.')


@dataclasses.dataclass(frozen=True)
class _Job:
  """One shard.

  Attributes:
    source, target: the files.
    size: bytes of `source`.
    file_format: the format of `source`, as TFDS calls it.
    length: the number of records, according to dataset_info.json.
    image_keys: see `frames.image_keys`.
  """

  source: epath.Path
  target: epath.Path
  size: int
  file_format: str
  length: int
  image_keys: tuple[str, ...]

  @property
  def lean(self) -> epath.Path:
    """The file of episodes without images."""
    return self.target.parent / frames.FOLDER / self.target.name

  @property
  def entry(self) -> epath.Path:
    """The shard's part of the frame index; the last file that is written."""
    return self.lean.parent / f'{self.target.name}.json'

  @property
  def done(self) -> bool:
    return self.entry.exists()


def _open_source(source: epath.Path, output: epath.Path) -> tfds.core.DatasetInfo:
  # In an object store the shards of an unfinished conversion have their place already.
  sign = output / _DESCRIPTION if storage.is_remote(output) else output
  if sign.exists():
    raise _already_there(output)
  if not (source / _DESCRIPTION).exists():
    raise ValueError(
      f'{source} has no {_DESCRIPTION}; give the version directory of a TFDS dataset, such as '
      'NAME/1.0.0.'
    )
  pointers.check(source / _DESCRIPTION)
  info = tfds.builder_from_directory(source).info
  if info.file_format.value not in _READERS:
    raise ValueError(
      f'{source} is in {info.file_format.value} format; expected one of {sorted(_READERS)}.'
    )
  return info


def _list_files(info: tfds.core.DatasetInfo) -> list[epath.Path]:
  return [path for split in info.splits.values() for path in split.filepaths]


def _plan(
  info: tfds.core.DatasetInfo, portion: portion_lib.Portion, partial: epath.Path
) -> list[_Job]:
  image_keys = tuple(frames.image_keys(info.features))
  jobs = []
  for name, shards in portion.shards.items():
    for number, shard in enumerate(shards):
      if shard.size <= pointers.LARGEST:  # A request a shard, where it is of an object store.
        pointers.check(shard.path)
      target = f'{info.name}-{name}.array_record-{number:05}-of-{len(shards):05}'
      job = _Job(
        source=shard.path,
        target=partial / target,
        size=shard.size,
        file_format=info.file_format.value,
        length=shard.length,
        image_keys=image_keys,
      )
      jobs.append(job)
  return jobs


def _check_origin(partial: epath.Path, source: epath.Path, portion: portion_lib.Portion) -> None:
  """Remembers what the shards in `partial` are made from, and refuses to mix sources."""
  origin = {
    'source': str(source),
    'shards': {shard.path.name: shard.size for shard in portion.list_all()},
  }
  file = partial / _ORIGIN
  if not file.exists():
    storage.write_whole(file, json.dumps(origin))
    return
  found = json.loads(file.read_text())
  if found != origin:
    raise ValueError(
      f'{partial} holds an unfinished conversion of {found["source"]}, which is not, or no longer, '
      f'{source} or this part of it; remove it and run again.'
    )


def _run(jobs: Sequence[_Job], workers: int) -> None:
  total = sum(job.size for job in jobs)
  with progress.Progress('converting', total, 'B') as shown:
    if workers == 1:
      for job in jobs:
        _convert_shard(job)
        shown.add(job.size)
    else:
      _run_processes(jobs, workers, shown)


def _run_processes(jobs: Sequence[_Job], workers: int, shown: progress.Progress) -> None:
  # Spawned, not forked: object stores are read with threads.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
    running = {pool.submit(_convert_shard, job): job for job in jobs}
    try:
      for future in concurrent.futures.as_completed(running):
        future.result()
        shown.add(running[future].size)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _convert_shard(job: _Job) -> None:
  """Writes, re-reads and indexes one shard; its files get their names when all that is done."""
  # On the disk of the target, so that a finished file is only renamed.
  beside = None if storage.is_remote(job.target) else job.target.parent
  with tempfile.TemporaryDirectory(dir=beside) as directory:
    shard = os.path.join(directory, job.target.name)
    lean = os.path.join(directory, 'lean')
    records = _READERS[job.file_format](job.source)
    crcs = frames.write_records(shard, records)
    if len(crcs) != job.length:
      raise ValueError(
        f'{job.source} holds {len(crcs)} records; {_DESCRIPTION} says {job.length}. Download the '
        'shard again.'
      )
    entry = frames.index_shard(shard, crcs, job.image_keys, lean)
    _deliver(lean, job.lean)
    _deliver(shard, job.target)
  storage.write_whole(job.entry, json.dumps(entry))


def _deliver(local: str, target: epath.Path) -> None:
  """Gives a finished local file its place; one that is sent elsewhere is read back."""
  if not storage.is_remote(target):
    os.replace(local, target)
    return
  epath.Path(local).copy(target, overwrite=True)
  if _file_crc(target) != _file_crc(epath.Path(local)):
    raise ValueError(f'{target} is not what was sent there; run again.')


def _file_crc(path: epath.Path) -> int:
  crc = 0
  with path.open('rb') as f:
    while content := f.read(_READ_BYTES):
      crc = google_crc32c.extend(crc, content)
  return crc


def _fetch(path: epath.Path, directory: str) -> str:
  """The path of a local file: `path`, or a copy of it in `directory`."""
  if not storage.is_remote(path):
    return str(path)
  return str(path.copy(pathlib.Path(directory) / path.name))


def _write_index(partial: epath.Path, jobs: Sequence[_Job]) -> None:
  index = {job.target.name: json.loads(job.entry.read_text()) for job in jobs}
  storage.write_whole(partial / frames.FOLDER / frames.INDEX, json.dumps(index))


def _copy_description(
  source: epath.Path, partial: epath.Path, shards: Collection[str], portion: portion_lib.Portion
) -> None:
  """Copies everything but the shards, which may have names of their own, and what is derived from
  them, with the format in dataset_info.json changed.
  """
  description = json.loads((source / _DESCRIPTION).read_text())
  shard_names = tuple(f'{description["name"]}-{split["name"]}.' for split in description['splits'])
  names = storage.list_sizes(source)
  for name in names:
    is_derived = name in shards or name.startswith((*shard_names, 'wam_'))
    if name not in (_DESCRIPTION, exclusions.FILE) and not is_derived:
      (source / name).copy(partial / name, overwrite=True)
  if exclusions.FILE in names:
    portion.carry(exclusions.read(source), partial / exclusions.FILE).write()

  description['fileFormat'] = 'array_record'
  description['splits'] = portion.describe(description['splits'])
  for split in description['splits']:
    split['filepathTemplate'] = _TEMPLATE
  storage.write_whole(partial / _DESCRIPTION, json.dumps(description, indent=2))


def _remove_traces(output: epath.Path) -> None:
  """Removes what only an unfinished conversion needs. Not before the output has its name: one that
  is stopped until then goes on from there.
  """
  for path in (output / frames.FOLDER).iterdir():
    if path.name.endswith('.json') and path.name != frames.INDEX:
      path.unlink()
  (output / _ORIGIN).unlink()


_READERS = {'tfrecord': read_tfrecord, 'array_record': read_array_record}


def main(unused_argv: list[str]) -> None:
  output = convert(_SOURCE.value, _OUTPUT.value, _WORKERS.value, _SPLIT.value, _SHARDS.value)
  splits = tfds.builder_from_directory(output).info.splits
  counts = ', '.join(f'{name} {split.num_examples} episodes' for name, split in splits.items())
  print(f'{output}: {counts}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  cli.run(main)
