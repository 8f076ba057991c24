"""Writes episodes as a TFDS dataset in RLDS form: ArrayRecord shards, no TensorFlow needed. What
all builders share.

Owns shards, worker processes, progress, restart and publication; what an episode holds is the
builder's business. Each shard is a pure function of the dataset's description, so any number of
worker processes writes the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import file_adapters

VERSION = '1.0.0'
MIN_SHARDS = (
  8  # Where there are as many episodes: a small dataset, too, is written and read in parallel.
)
_PARAMETERS = 'build.json'
_UNFINISHED = '.unfinished'  # Suffix of a shard that is being written.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What is to be written; all of it can be pickled.

  Attributes:
    name, config: of the dataset in TFDS; `config` may be ''.
    module: that builds it, as in `python -m`.
    description: a sentence for dataset_info.json.
    features: of one episode.
    open_split: a split's name to the function from episode number to example (images as encoded
      file objects). Called once per shard, in whichever process writes it.
    sizes: per split, the work that each episode is, in `unit`.
    unit: what progress counts.
    shard_size: work in a shard, about.
    min_shards: least number of shards of a split that has as many episodes.
    parameters: JSON-ready, what decides every byte; kept in build.json.
    files: further small files: name to content.
  """

  name: str
  config: str
  module: str
  description: str
  features: tfds.features.FeaturesDict
  open_split: Callable[[str], Callable[[int], dict[str, Any]]]
  sizes: dict[str, Sequence[int]]
  unit: str
  shard_size: int
  min_shards: int
  parameters: dict[str, Any]
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
  """Part of the work: episodes `first ... first + len(sizes) - 1` of `split` go to `path`."""

  split: str
  path: pathlib.Path
  first: int
  sizes: tuple[int, ...]


def write(path: str | os.PathLike[str], dataset: Dataset, workers: int = 1) -> bool:
  """Writes the dataset to the directory `path` unless it is there; it appears only when complete.

  After an error or a kill, shards that are finished wait in a hidden directory beside `path`, and
  the next call with the same parameters goes on from there. A second process that is asked for the
  same dataset waits for the first.

  Returns:
    Whether this call made it.
  Raises:
    ValueError: a dataset with other parameters is at `path`, finished or not; `workers` is below 1;
      or an episode is larger than a record can be.
  """
  if workers < 1:
    raise ValueError(f'workers={workers} must be at least 1.')
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with _sole_writer(path.with_name(f'.{path.name}.partial')) as partial:
      if not path.exists():
        _write(partial, dataset, workers)
        partial.rename(path)
        return True
  _check_same(path, dataset)
  return False


@contextlib.contextmanager
def _sole_writer(partial: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes and locks the directory `partial`; removes it afterwards unless it holds finished
  shards.
  """
  handle = _lock(partial)
  try:
    yield partial
  finally:
    if partial.exists() and not _has_shards(partial):
      shutil.rmtree(partial)
    os.close(handle)


def _has_shards(partial: pathlib.Path) -> bool:
  return any('.array_record-' in p.name and p.suffix != _UNFINISHED for p in partial.iterdir())


def _lock(directory: pathlib.Path) -> int:
  """Makes `directory` and locks it, after whoever has it; the open handle, whose end releases
  it.
  """
  while True:
    directory.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # Its owner may rename or remove it at any time.
      handle = os.open(directory, os.O_RDONLY)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        print(f'waiting for another process that writes {directory}', file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), directory.stat()):
          return handle
      os.close(handle)


def _check_same(directory: pathlib.Path, dataset: Dataset) -> None:
  try:
    found = json.loads((directory / _PARAMETERS).read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(
      f'{directory} exists but was not written by {dataset.module} ({error}); give another --output '
      'or move it away.'
    ) from error
  wanted = json.loads(json.dumps(dataset.parameters))
  differing = [
    f'{key}={found.get(key)!r} there, {wanted.get(key)!r} asked'
    for key in {**wanted, **found}
    if found.get(key) != wanted.get(key)
  ]
  if differing:
    raise ValueError(
      f'{directory} was made with other parameters: '
      + '; '.join(differing[:10])
      + '. Ask for the same ones, give another --output, or remove it.'
    )


def _write(directory: pathlib.Path, dataset: Dataset, workers: int) -> None:
  if _has_shards(directory):
    _check_same(directory, dataset)
  (directory / _PARAMETERS).write_text(json.dumps(dataset.parameters, indent=2) + '\n')
  templates = {
    split: tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name=dataset.name,
      split=split,
      filetype_suffix='array_record',
      template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE,
    )
    for split in dataset.sizes
  }
  shards = [
    shard
    for split, sizes in dataset.sizes.items()
    for shard in plan_shards(split, sizes, dataset.shard_size, dataset.min_shards, templates[split])
  ]
  _run(dataset, shards, workers)
  split_infos = []
  for split, template in templates.items():
    mine = [shard for shard in shards if shard.split == split]
    split_infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard.sizes) for shard in mine],
        num_bytes=sum(shard.path.stat().st_size for shard in mine),
        filename_template=template,
      )
    )
  info = tfds.core.DatasetInfo(
    builder=dataset_info.DatasetIdentity(
      name=dataset.name,
      version=tfds.core.Version(VERSION),
      data_dir=os.fspath(directory),
      module_name=dataset.module,
      config_name=dataset.config or None,
      config_description=dataset.description if dataset.config else None,
    ),
    features=dataset.features,
    description=dataset.description,
  )
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  info.set_splits(tfds.core.splits.SplitDict(split_infos))
  info.write_to_directory(directory)
  for name, content in dataset.files.items():
    (directory / name).write_bytes(content)


def plan_shards(
  split: str,
  sizes: Sequence[int],
  shard_size: int,
  min_shards: int,
  template: tfds.core.ShardedFileTemplate,
) -> list[Shard]:
  """Episodes in order, cut into shards of about equal work, none of them empty."""
  sizes_N = np.asarray(sizes, np.int64)
  count = min(len(sizes), max(min_shards, math.ceil(sizes_N.sum() / shard_size)))
  shard_N = (
    (2 * np.cumsum(sizes_N) - sizes_N) * count // (2 * sizes_N.sum())
  )  # Where the middle of an episode falls.
  bounds = [*np.unique(shard_N, return_index=True)[1].tolist(), len(sizes)]
  return [
    Shard(
      split,
      pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=len(bounds) - 1)),
      first,
      tuple(sizes[first:stop]),
    )
    for i, (first, stop) in enumerate(itertools.pairwise(bounds))
  ]


def _write_shard(dataset: Dataset, shard: Shard, report: Callable[[int], None]) -> None:
  cv2.setNumThreads(1)
  make_episode = dataset.open_split(shard.split)
  serializer = example_serializer.ExampleSerializer(dataset.features.get_serialized_info())

  def examples() -> Iterator[tuple[int, bytes]]:
    for index, size in enumerate(shard.sizes, shard.first):
      example = dataset.features.encode_example(make_episode(index))
      # `features.serialize_example` leaves the order of the proto's map to the process; this fixes
      # the bytes.
      try:
        yield index, serializer.get_tf_example(example).SerializeToString(deterministic=True)
      except message.EncodeError as error:
        raise ValueError(
          f'Episode {index} of split {shard.split} does not fit a record, which holds 2 GiB ({error}). '
          'Store smaller images, or cut it into shorter episodes.'
        ) from error
      report(size)

  unfinished = shard.path.with_name(shard.path.name + _UNFINISHED)
  file_adapters.ArrayRecordFileAdapter.write_examples(unfinished, examples())
  unfinished.rename(shard.path)


class _Progress:
  """Work done, rate and time left on stderr: rewritten in place on a terminal, else a line every
  ten seconds.
  """

  def __init__(self, total: int, done: int, unit: str):
    self._total, self._done, self._before, self._unit = total, done, done, unit
    self._start = self._shown = time.monotonic()
    self._in_place = sys.stderr.isatty()

  def __call__(self, count: int) -> None:
    self._done += count
    now = time.monotonic()
    if now - self._shown < (0.5 if self._in_place else 10.0) and self._done < self._total:
      return
    self._shown = now
    rate = (self._done - self._before) / max(now - self._start, 1e-6)
    left = (self._total - self._done) / max(rate, 1e-6)
    line = f'{self._done}/{self._total} {self._unit}, {rate:.{1 if rate < 10 else 0}f}/s, {left:.0f} s left'
    finished = self._done == self._total
    sys.stderr.write((f'\r{line}   ' + '\n' * finished) if self._in_place else f'{line}\n')
    sys.stderr.flush()


_worker: Any = None


def _start_worker(dataset: Dataset, queue: Any) -> None:
  global _worker
  _worker = dataset, queue


def _work(shard: Shard) -> None:
  dataset, queue = _worker
  _write_shard(dataset, shard, queue.put)


def _run(dataset: Dataset, shards: list[Shard], workers: int) -> None:
  """Writes the shards that are not there yet, in this process or in several."""
  todo = [shard for shard in shards if not shard.path.exists()]
  total, left = (sum(sum(shard.sizes) for shard in part) for part in (shards, todo))
  if len(todo) < len(shards):
    print(f'going on after {len(shards) - len(todo)} of {len(shards)} shards', file=sys.stderr)
  progress = _Progress(total, total - left, dataset.unit)
  workers = min(workers, len(todo))
  if workers <= 1:
    for shard in todo:
      _write_shard(dataset, shard, progress)
    return
  # Spawned, not forked: the caller may have started threads (JAX, grpc).
  context = multiprocessing.get_context('spawn')
  with context.Manager() as manager:
    queue = manager.Queue()
    with concurrent.futures.ProcessPoolExecutor(
      workers, context, _start_worker, (dataset, queue)
    ) as pool:
      futures = [pool.submit(_work, shard) for shard in todo]
      try:
        while not all(future.done() for future in futures):
          concurrent.futures.wait(
            futures, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION
          )
          for failed in [f for f in futures if f.done() and f.exception()]:
            failed.result()
          while not queue.empty():
            progress(queue.get())
        while not queue.empty():
          progress(queue.get())
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
