"""Writes episodes as a TFDS dataset in RLDS form: ArrayRecord shards with a frame index, no
TensorFlow needed. What all builders share.

Owns shards, worker processes, progress, restart and publication; what an episode holds is the
builder's business. Each shard is a pure function of the dataset's description, so any number of
worker processes writes the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pathlib
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

from wam_jax import progress
from wam_jax import storage
from wam_jax.data import frames

VERSION = '1.0.0'
# Where there are as many episodes: a small dataset, too, is written and read in parallel.
MIN_SHARDS = 8
_PARAMETERS = 'build.json'
_UNFINISHED = '.unfinished'  # Suffix of a shard that is being written.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What is to be written; all of it can be pickled.

  Attributes:
    name, config: the dataset's name and config in TFDS; `config` may be ''.
    module: the module that builds it, as in `python -m`.
    description: a sentence for dataset_info.json.
    features: the TFDS features of one episode.
    open_split: a function from a split's name to the function from episode number to example
      (images as encoded file objects). Called once per shard, in whichever process writes it.
    sizes: per split, the work that each episode is, in `unit`.
    unit: the name of what progress counts.
    shard_size: the work in a shard, about.
    min_shards: the least number of shards of a split that has as many episodes.
    parameters: what decides every byte, JSON-ready; kept in build.json.
    files: name to content of further small files.
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

  @property
  def lean(self) -> pathlib.Path:
    """Its episodes without images."""
    return self.path.parent / frames.FOLDER / self.path.name

  @property
  def entry(self) -> pathlib.Path:
    """Its part of the frame index, until all are written."""
    return self.lean.with_name(f'{self.path.name}.json')

  @property
  def is_done(self) -> bool:
    return self.path.exists() and self.entry.exists()


def write(path: str | os.PathLike[str], dataset: Dataset, workers: int = 1) -> bool:
  """Writes the dataset to the directory `path` unless it is there; it appears only when complete.

  After an error or a kill, shards that are finished wait in a hidden directory beside `path`, and
  the next call with the same parameters goes on from there. A second process that is asked for the
  same dataset waits for the first.

  Returns:
    Whether this call made it.
  Raises:
    ValueError: a dataset with other parameters is at `path`, finished or not; `workers` is below 1;
      nobody may write there; or an episode is larger than a record can be.
  """
  if workers < 1:
    raise ValueError(f'workers={workers} must be at least 1.')
  path = make_output_path(path)
  if not path.exists():
    storage.check_directory(path.parent, '--output')
    with storage.resumable_directory(path, _has_shards) as partial:
      if partial is not None:
        _write(partial, dataset, workers)
        return True
  _check_same(path, dataset)
  return False


def make_output_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Absolute path of what builders write.

  Raises:
    ValueError: it is of an object store.
  """
  cure = 'Make the dataset in a directory, and copy that to the bucket when it is complete.'
  return storage.make_local_path(path, '--output', cure)


def _has_shards(partial: pathlib.Path) -> bool:
  return any('.array_record-' in p.name and p.suffix != _UNFINISHED for p in partial.iterdir())


def _check_same(directory: pathlib.Path, dataset: Dataset) -> None:
  try:
    found = json.loads((directory / _PARAMETERS).read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(
      f'{directory} exists but was not written by {dataset.module} ({error}); give another '
      '--output or move it away.'
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
  # Before the first shard: whoever goes on must be able to compare.
  (directory / _PARAMETERS).write_text(json.dumps(dataset.parameters, indent=2) + '\n')

  templates = {split: _make_template(directory, dataset, split) for split in dataset.sizes}
  shards = [
    shard
    for split, sizes in dataset.sizes.items()
    for shard in plan_shards(split, sizes, dataset.shard_size, dataset.min_shards, templates[split])
  ]
  (directory / frames.FOLDER).mkdir(exist_ok=True)
  _run(dataset, shards, workers)

  info = _make_info(directory, dataset)
  info.set_splits(
    tfds.core.splits.SplitDict(
      _make_split_info(split, template, [shard for shard in shards if shard.split == split])
      for split, template in templates.items()
    )
  )
  info.write_to_directory(directory)
  for name, content in dataset.files.items():
    (directory / name).write_bytes(content)
  _write_index(directory, shards)


def _make_template(
  directory: pathlib.Path, dataset: Dataset, split: str
) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    data_dir=directory,
    dataset_name=dataset.name,
    split=split,
    filetype_suffix='array_record',
    template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE,
  )


def _make_info(directory: pathlib.Path, dataset: Dataset) -> tfds.core.DatasetInfo:
  """The description without its splits."""
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
  return info


def _make_split_info(
  split: str, template: tfds.core.ShardedFileTemplate, shards: list[Shard]
) -> tfds.core.SplitInfo:
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=[len(shard.sizes) for shard in shards],
    num_bytes=sum(shard.path.stat().st_size for shard in shards),
    filename_template=template,
  )


def plan_shards(
  split: str,
  sizes: Sequence[int],
  shard_size: int,
  min_shards: int,
  template: tfds.core.ShardedFileTemplate,
) -> list[Shard]:
  """Episodes in order, cut into shards of about equal work, none of them empty."""
  sizes_N = np.asarray(sizes, np.int64)
  total = sizes_N.sum()
  count = min(len(sizes), max(min_shards, math.ceil(total / shard_size)))

  # An episode goes where its middle falls when the whole work is cut into `count` equal parts; the
  # part of a middle is middle * count // total, here in halves, so that integers stay exact.
  twice_middle_N = 2 * np.cumsum(sizes_N) - sizes_N
  shard_N = twice_middle_N * count // (2 * total)
  # A long episode may leave its neighbouring parts empty; those are no shards.
  firsts = np.unique(shard_N, return_index=True)[1].tolist()
  bounds = list(itertools.pairwise([*firsts, len(sizes)]))
  return [
    Shard(
      split=split,
      path=pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=len(bounds))),
      first=first,
      sizes=tuple(sizes[first:stop]),
    )
    for i, (first, stop) in enumerate(bounds)
  ]


def _write_shard(dataset: Dataset, shard: Shard, report: Callable[[int], None]) -> None:
  cv2.setNumThreads(1)  # Shards are written side by side instead.
  make_episode = dataset.open_split(shard.split)
  serializer = example_serializer.ExampleSerializer(dataset.features.get_serialized_info())

  def make_records() -> Iterator[bytes]:
    for index, size in enumerate(shard.sizes, shard.first):
      example = dataset.features.encode_example(make_episode(index))
      try:
        # `features.serialize_example` leaves the order of the proto's map to the process; this
        # fixes the bytes.
        yield serializer.get_tf_example(example).SerializeToString(deterministic=True)
      except message.EncodeError as error:
        raise ValueError(
          f'Episode {index} of split {shard.split} does not fit a record, which holds 2 GiB '
          f'({error}). Store smaller images, or cut it into shorter episodes.'
        ) from error
      report(size)

  unfinished = shard.path.with_name(shard.path.name + _UNFINISHED)
  crcs = frames.write_records(str(unfinished), make_records())
  keys = frames.image_keys(dataset.features)
  entry = frames.index_shard(str(unfinished), crcs, keys, str(shard.lean))
  shard.entry.write_text(json.dumps(entry))
  # Last: a shard that is there has all that belongs to it.
  unfinished.rename(shard.path)


def _write_index(directory: pathlib.Path, shards: list[Shard]) -> None:
  """Puts the entries of all shards together; the last thing, for without them shards are no longer
  finished.
  """
  index = {shard.path.name: json.loads(shard.entry.read_text()) for shard in shards}
  (directory / frames.FOLDER / frames.INDEX).write_text(json.dumps(index))
  for shard in shards:
    shard.entry.unlink()


def _run(dataset: Dataset, shards: list[Shard], workers: int) -> None:
  """Writes the shards that are not there yet, in this process or in several."""
  todo = [shard for shard in shards if not shard.is_done]
  total = _count_work(shards)
  done = total - _count_work(todo)
  if done:
    print(f'going on after {len(shards) - len(todo)} of {len(shards)} shards', file=sys.stderr)
  if not todo:
    return

  start_s = time.monotonic()
  workers = min(workers, len(todo))
  with progress.Progress(dataset.name, total, dataset.unit, done=done) as shown:
    if workers == 1:
      for shard in todo:
        _write_shard(dataset, shard, shown.add)
    else:
      _run_processes(dataset, todo, workers, shown.add)
  seconds = time.monotonic() - start_s
  print(f'{total}/{total} {dataset.unit}, in {seconds:.1f} s', file=sys.stderr)


def _count_work(shards: list[Shard]) -> int:
  return sum(sum(shard.sizes) for shard in shards)


def _run_processes(
  dataset: Dataset, todo: list[Shard], workers: int, report: Callable[[int], None]
) -> None:
  # Spawned, not forked: the caller may have started threads (JAX, grpc).
  context = multiprocessing.get_context('spawn')
  with context.Manager() as manager:
    queue = manager.Queue()
    pool = concurrent.futures.ProcessPoolExecutor(
      max_workers=workers,
      mp_context=context,
      initializer=_start_worker,
      initargs=(dataset, queue),
    )
    with pool:
      futures = [pool.submit(_work, shard) for shard in todo]
      try:
        while not all(future.done() for future in futures):
          concurrent.futures.wait(
            futures, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION
          )
          _raise_failure(futures)
          _drain(queue, report)
        _drain(queue, report)
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _raise_failure(futures: list[concurrent.futures.Future]) -> None:
  for future in futures:
    if future.done():
      future.result()


def _drain(queue: Any, report: Callable[[int], None]) -> None:
  while not queue.empty():
    report(queue.get())


# What a worker process was started with. The dataset travels once a process, not with every shard.
_worker: tuple[Dataset, Any] | None = None


def _start_worker(dataset: Dataset, queue: Any) -> None:
  global _worker
  _worker = dataset, queue


def _work(shard: Shard) -> None:
  dataset, queue = _worker
  _write_shard(dataset, shard, queue.put)
