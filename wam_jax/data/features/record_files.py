"""The files of stored features: planned, written one by one whole or not at all, and finished."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source
from array_record.python import array_record_module
from etils import epath

from wam_jax import pointers
from wam_jax import storage
from wam_jax.data.features import describe

PLAN, INDEX, MANIFEST = 'plan.json', 'index.npz', 'manifest.json'
DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16)}


@dataclasses.dataclass(frozen=True)
class Storing:
  """What a user chooses about stored features; training takes any choice.

  Attributes:
    anchor_stride: control steps between two anchors.
    draw_offset: the grid of an episode starts at a step drawn within one stride, not at each span's
      first.
    variants: differently augmented copies of each window.
    seed: seed of offsets and augmentations.
    dtype: dtype of the stored numbers, a key of DTYPES.
    file_mib: size of a record file, about; a kill costs at most the file it interrupts.
  """

  anchor_stride: int
  draw_offset: bool = False
  variants: int = 1
  seed: int = 0
  dtype: str = 'bfloat16'
  file_mib: float = 256.0

  def __post_init__(self):
    counts = {'anchor_stride': self.anchor_stride, 'variants': self.variants}
    low = [f'{key}={count}' for key, count in counts.items() if count < 1]
    if low:
      raise ValueError(f'{", ".join(low)}: must be at least 1.')
    if self.dtype not in DTYPES:
      raise ValueError(f'dtype={self.dtype!r} must be one of {tuple(DTYPES)}.')


@dataclasses.dataclass(frozen=True)
class Files:
  """The record files of one kind.

  Attributes:
    directory: where they lie.
    kind: 'windows' or 'prompts'.
    count: records in all of them.
    size: records of a file; the last may have fewer.
  """

  directory: epath.Path
  kind: str
  count: int
  size: int

  def __len__(self) -> int:
    """Files."""
    return -(-self.count // self.size)

  def path(self, number: int) -> epath.Path:
    """The path of file `number`."""
    return self.directory / f'{self.kind}-{number:05d}-of-{len(self):05d}.array_record'

  def rows(self, number: int) -> range:
    """The records of file `number`."""
    return range(number * self.size, min(self.count, (number + 1) * self.size))

  def list_missing(self, shard_index: int = 0, shard_count: int = 1) -> list[int]:
    """Files that are not there yet, of every `shard_count`-th one."""
    there = storage.list_files(self.directory)
    numbers = range(shard_index, len(self), shard_count)
    return [number for number in numbers if self.path(number).name not in there]

  def write(self, number: int, records: Iterable[bytes]) -> None:
    """Writes file `number`, whole or not at all.

    Raises:
      ValueError: the disk is full, or `records` are not as many as the file's rows.
    """
    target = self.path(number)
    expected = len(self.rows(number))
    with storage.whole_file(target) as partial:
      written = _write_records(partial, records)
      if written != expected:
        raise ValueError(f'{target.name} would hold {written} records where {expected} belong.')

  def open_source(self) -> array_record_data_source.ArrayRecordDataSource:
    """Random access to the records; opens no file before it is read."""
    numbers = range(len(self))
    files = [_Whole(str(self.path(number)), take=len(self.rows(number))) for number in numbers]
    return array_record_data_source.ArrayRecordDataSource(files)


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> int:
  """How many records the finished file holds."""
  # A group is what is read at once, and windows are read one by one in random order.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  try:
    for record in records:
      writer.write(record)
  finally:
    try:
      writer.close()
    except RuntimeError as e:  # The disk is full.
      raise ValueError(
        f'{path.parent} cannot be written ({e}); make room and run the same command again, which '
        'goes on after the last whole file.'
      ) from e
  # Read back: the writer does not tell of what it lost.
  reader = array_record_module.ArrayRecordReader(str(path))
  written = reader.num_records()
  reader.close()
  return written


@dataclasses.dataclass(frozen=True)
class _Whole:
  """A whole record file, as `ArrayRecordDataSource` wants it described."""

  filename: str
  take: int
  skip: int = 0

  @property
  def examples_in_shard(self) -> int:
    return self.take


def list_files(directory: epath.Path, plan: Mapping[str, Any]) -> dict[str, Files]:
  """The record files of a plan, by kind."""
  return {
    kind: Files(directory, kind, count=planned['count'], size=planned['per_file'])
    for kind, planned in plan['files'].items()
  }


def make_plan(
  description: Mapping[str, Any],
  storing: Storing,
  shapes: Mapping[str, Sequence[int]],
  samples_W: np.ndarray,
  prompt_ids: Sequence[np.ndarray],
  text_dim: int,
) -> dict[str, Any]:
  """What plan.json says.

  Args:
    description: from `describe.make_description`.
    shapes: shapes of the arrays of a window, by name; a record holds them in the order of their
      names.
    samples_W: [W] anchors of the windows.
    prompt_ids: [P] token ids of each prompt.
    text_dim: numbers of an embedded token.
  """
  windows = len(samples_W) * storing.variants
  # Padding behind a prompt embeds to zeros, which are not stored.
  tokens = sum(len(np.trim_zeros(ids_P, 'b')) for ids_P in prompt_ids)
  files = {
    'windows': _plan_files(storing, windows, windows * sum(map(math.prod, shapes.values()))),
    'prompts': _plan_files(storing, len(prompt_ids), tokens * text_dim),
  }
  plan = {
    'of': description,
    'stored': dataclasses.asdict(storing),
    'shapes': shapes,
    'files': files,
  }
  return json.loads(json.dumps(plan))  # As it comes back from the file.


def _plan_files(storing: Storing, records: int, numbers: int) -> dict[str, int]:
  size = numbers * DTYPES[storing.dtype].itemsize
  per_file = int(storing.file_mib * 2**20 * records / max(1, size))
  return {'count': records, 'bytes': size, 'per_file': max(1, per_file)}


def begin(
  directory: epath.Path,
  plan: Mapping[str, Any],
  samples_W: np.ndarray,
  prompt_ids: Sequence[np.ndarray],
) -> None:
  """Makes the directory, or takes up what an earlier call with the same plan began.

  Raises:
    ValueError: features of the same description are there or under way, stored otherwise; or no
      permission.
  """
  try:
    if not storage.is_remote(directory):  # A store has no directories.
      directory.mkdir(exist_ok=True)
    # The plan last: where it is, the index is, too.
    if not (directory / PLAN).exists():
      _write_index(directory / INDEX, samples_W, prompt_ids)
      storage.write_whole(directory / PLAN, json.dumps(plan, indent=1))
  except OSError as e:
    raise ValueError(
      f'{directory} cannot be written ({e}); stored features lie beside the episodes, so give a '
      'copy of the dataset where you may write.'
    ) from e
  differing = describe.list_differences(read_json(directory / PLAN), plan)
  if differing:
    raise ValueError(
      f'{directory} was begun otherwise:\n  '
      + '\n  '.join(differing[:10])
      + '\nGive the same flags again, or delete that directory.'
    )


def _write_index(path: epath.Path, samples_W: np.ndarray, prompt_ids: Sequence[np.ndarray]) -> None:
  content = io.BytesIO()
  prompt_keys_M = np.asarray([describe.hash_prompt(ids_P) for ids_P in prompt_ids], np.uint64)
  np.savez(content, samples_W=samples_W, prompt_keys_M=prompt_keys_M)
  storage.write_whole(path, content.getvalue())


def finish(directory: epath.Path) -> list[str]:
  """Writes the manifest if every file of the plan is there; returns the names of those that are
  not.
  """
  plan = read_json(directory / PLAN)
  missing = list_missing(directory, plan)
  if missing:
    return missing
  there = storage.list_files(directory)
  names = [
    files.path(number).name
    for files in list_files(directory, plan).values()
    for number in range(len(files))
  ]
  sizes = {name: there[name] for name in names}
  storage.write_whole(directory / MANIFEST, json.dumps({**plan, 'bytes': sizes}, indent=1))
  if not storage.is_remote(directory):
    # What processes that were killed left behind.
    for partial in directory.glob('.*.array_record'):
      partial.unlink(missing_ok=True)
  return []


def list_missing(directory: epath.Path, plan: Mapping[str, Any]) -> list[str]:
  """Names of the files of a plan that are not there."""
  return [
    files.path(number).name
    for files in list_files(directory, plan).values()
    for number in files.list_missing()
  ]


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a file of this module.

  Raises:
    ValueError: it is damaged.
  """
  pointers.check(path)
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(
      f'{path} is not JSON ({e}); delete {path.parent} and make it again: python -m data.encode'
    ) from e
