"""Random access to the episodes of a TFDS/RLDS directory in ArrayRecord format, without TensorFlow.

Owns shards and their records. A dataset with a frame index (frames.py) gives up single images; of
others whole episodes are read. What a record holds is `episode.py`'s business, what the arrays of a
step mean the embodiment record's, and which steps make a sample `windows.py`'s.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.proto import tf_example_pb2

from wam_jax import pointers
from wam_jax import storage
from wam_jax.data import beside
from wam_jax.data import cache as cache_lib
from wam_jax.data import choice as choice_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import exclusions as exclusions_lib
from wam_jax.data import frames
from wam_jax.data import promises
from wam_jax.data import record as record_lib
from wam_jax.data import shards

# What TFDS says of JSON that is none, and of features that it does not know; none names the file.
# Errors of disks and networks are others, and may pass.
_UNREADABLE = (
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  ImportError,
  json_format.ParseError,
)

NOTHING = 'nothing'  # In place of a file of exclusions: all episodes are wanted.


class Dataset:
  """A TFDS directory in ArrayRecord format, opened once for all that read it.

  Its description is read once, and the end of each shard once, whatever splits are opened.

  Args:
    path: TFDS directory with dataset_info.json; `~` is expanded.
    cache: keeps parsed episodes, shared by the datasets of a mixture; None keeps nothing.
    keeps: whether what is found out about it may be written beside it.
    exclude: the file that says what is left out of it, in place of the one beside it
      (`exclusions.py`).
  Raises:
    ValueError: the directory is not there, or in another format.

  Attributes:
    exclusions: what is left out, whoever reads it.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    cache: cache_lib.Cache | None = None,
    keeps: bool = True,
    exclude: str = '',
  ):
    self.keeps = keeps
    self.exclude = exclude
    self.path = storage.make_path(path, 'The dataset')
    self.cache = cache or cache_lib.Cache(0)  # Of no size: it keeps nothing.
    self._builder = _open_builder(self.path)
    self.specs = _find_step_specs(self._builder)
    self.index_entries = frames.load_entries(self.path)
    self._ends = shards.Ends()
    self.exclusions = (
      exclusions_lib.Exclusions(self.path / exclusions_lib.FILE, {})
      if exclude == NOTHING
      else exclusions_lib.read(self.path, exclude)
    )
    self.exclusions.check(*self.list_contents())
    self._opened: dict[tuple[Any, ...], Episodes] = {}

  def open(
    self,
    split: str,
    record: record_lib.Embodiment,
    choice: choice_lib.Choice = choice_lib.Choice(),
    given: str = '',
  ) -> Episodes:
    """The episodes of a split as a robot sees them, the same object at every call.

    Raises:
      ValueError: as `Episodes`.
    """
    key = (split, record, choice, given)
    if key not in self._opened:
      self._opened[key] = Episodes(self, split, record, choice=choice, given=given)
    return self._opened[key]

  def list_contents(self) -> tuple[dict[str, int], dict[str, list[str]]]:
    """By split, how many episodes it has, and the names of its shards."""
    splits = self._builder.info.splits
    counts = {name: split.num_examples for name, split in splits.items()}
    files = {name: [path.name for path in split.filepaths] for name, split in splits.items()}
    return counts, files

  @functools.cached_property
  def first_episodes(self) -> dict[str, tuple[str, int]]:
    """By name of a shard, its split and the number there of its first episode."""
    found = {}
    for name, split in self._builder.info.splits.items():
      firsts = np.cumsum([0, *split.shard_lengths]).tolist()
      for path, first in zip(split.filepaths, firsts):
        found[path.name] = (name, first)
    return found

  @property
  def name(self) -> str:
    """What the dataset calls itself, wherever it lies."""
    return self._builder.info.name

  @property
  def splits(self) -> list[str]:
    """Names of its splits."""
    return sorted(self._builder.info.splits)

  def find_instructions(self, split: str) -> list[Any]:
    """TFDS file instructions of a split: `filename` of each shard, `skip` and `take` of its
    records.

    Raises:
      ValueError: there is no such split, or it is empty.
    """
    splits = self._builder.info.splits
    try:
      instructions = splits[split].file_instructions
    except Exception as e:  # TFDS raises KeyError, ValueError or AssertionError here.
      raise ValueError(f'{self.path} has no split {split!r}; it has {sorted(splits)}.') from e
    here = [i for i in instructions if not self._is_left_out(os.path.basename(i.filename))]
    if not here:
      if instructions:
        raise ValueError(
          f'Split {split!r} of {self.path} holds no episodes, but for shards that '
          f'{self.exclusions.place} leaves out.'
        )
      counts = ', '.join(f'{splits[name].num_examples} in {name!r}' for name in self.splits)
      raise ValueError(
        f'Split {split!r} of {self.path} holds no episodes: it has {counts}. Of so few take a '
        "larger share, as 'train[75%:]' of 4, and the rest for training, 'train[:75%]': --split, "
        'or config.data.mixture.NAME.held_out and .split.'
      )
    return here

  def _is_left_out(self, shard: str) -> bool:
    split, _ = self.first_episodes[shard]
    return shard in self.exclusions.of(split).shards

  def read_ends(self, files: Sequence[str]) -> list[shards.End]:
    """The ends of shards.

    Raises:
      ValueError: some are not there, or are Git LFS pointers.
    """
    ends = self._ends.read(files)
    missing = [file for file, end in zip(files, ends) if end is None]
    if missing:
      some = exclusions_lib.describe_missing(list(map(str, missing)))
      split, _ = self.first_episodes[os.path.basename(missing[0])]
      command = exclusions_lib.make_command(self.path, split, '--shards=missing', self.exclude)
      raise ValueError(
        f'Shards of {self.path} are missing: {some}. Restore them; or go on without: {command}'
      )
    for file, end in zip(files, ends):
      pointers.check(file, end.tail)
    return ends

  def forget_ends(self) -> None:
    """Frees what `read_ends` holds, 128 KiB a shard; it reads again what is asked for later."""
    self._ends = shards.Ends()

  @functools.cached_property
  def description(self) -> bytes:
    """What TFDS says of the dataset, as it lies there."""
    return b''.join(
      (self.path / name).read_bytes() for name in ('dataset_info.json', 'features.json')
    )


class Episodes:
  """The episodes of one split that are not excluded, as an `record_lib.Embodiment` sees them.

  `episodes[i]` parses episode i, or takes it from the cache. Pickles to a few paths, so that grain
  workers can have it.

  Args:
    dataset: whose split it is, or the path of one that nobody else reads.
    split: TFDS split, slices allowed.
    record: which arrays are needed.
    cache: as `Dataset` takes it; of no use for one that is open.
    choice: which steps of them count.
    given: the feature of a step that marks actions which are not to be imitated; '' for none.
  Raises:
    ValueError: the directory, its format, the split or a key the record needs is not there.

  Attributes:
    fingerprint: changes when the dataset does: its description, the size or last 128 KiB of a
      shard of this split, or what is left out of it.
    base_fingerprint: the same, whatever is left out.
    excluded: stands for what is left out; '' where nothing is.
    parts: of each shard of the split its fingerprint, and the first and the number of the records
      that are taken; several where there are gaps.
    record_bytes: bytes of an episode's record, on average.
    exclude: the file that says what is left out, as `Dataset` takes it.
  """

  def __init__(
    self,
    dataset: Dataset | str | os.PathLike[str],
    split: str,
    record: record_lib.Embodiment,
    cache: cache_lib.Cache | None = None,
    choice: choice_lib.Choice = choice_lib.Choice(),
    given: str = '',
  ):
    if not isinstance(dataset, Dataset):
      dataset = Dataset(dataset, cache)
    self.path = dataset.path
    self.split = split
    self.record = record
    self.choice = choice
    self.given = given
    self._keeps = dataset.keeps
    self._cache = dataset.cache
    self.exclude = dataset.exclude
    self._specs = dataset.specs
    _check_keys(self.path, self._specs, record)
    _check_given(self.path, self._specs, given)

    # Of the dataset only what reading takes, so that workers get paths and not the ends of shards.
    self._instructions = dataset.find_instructions(split)
    files = [os.fspath(i.filename) for i in self._instructions]
    self._list_records(dataset, files)
    ends = dataset.read_ends(files)
    self.base_fingerprint = _make_fingerprint(dataset.description, files, ends)
    left_out = [dataset.exclusions.of(name).fingerprint for name in dict.fromkeys(self._splits)]
    self.excluded = ' '.join(left_out).strip()
    self.fingerprint = self.base_fingerprint
    if self.excluded:
      said = f'{self.base_fingerprint} without {left_out}'.encode()
      self.fingerprint = hashlib.sha256(said).hexdigest()[:16]
    fingerprints = [end.fingerprint for end in ends]
    self.parts = self._list_parts(fingerprints)

    counts = [i.examples_in_shard for i in self._instructions]
    self.record_bytes = sum(end.size for end in ends) / sum(counts)
    # Opens no shard before a record is asked for.
    self._records = array_record_data_source.ArrayRecordDataSource(self._instructions)
    self._index = None
    if dataset.index_entries is not None:
      self._index = frames.Index(self.path, dataset.index_entries, self._instructions, fingerprints)

  def _list_records(self, dataset: Dataset, files: Sequence[str]) -> None:
    """Which of the records that the split names are there for anybody, and where they lie."""
    self._splits: list[str] = []
    self._left_out: collections.Counter[str] = collections.Counter()
    rows = []  # Number among those of the split, shard, record there, number in the whole split.
    self._cuts: dict[int, tuple[tuple[int, int], ...]] = {}
    total = 0
    for shard, (file, instruction) in enumerate(zip(files, self._instructions)):
      split, first = dataset.first_episodes[os.path.basename(file)]
      self._splits.append(split)
      left_out = dataset.exclusions.of(split)
      for record in range(instruction.skip, instruction.skip + instruction.take):
        episode = first + record
        if episode in left_out.episodes:
          self._left_out['excluded'] += 1
        else:
          if episode in left_out.steps:
            self._cuts[len(rows)] = left_out.steps[episode]
          rows.append((total, shard, record, episode))
        total += 1
    if not rows:
      raise ValueError(
        f'{dataset.exclusions.place} leaves out all episodes of split {self.split!r} of '
        f'{self.path}; correct it.'
      )
    self._rows_N4 = np.asarray(rows, np.int64)
    absent = {shard for split in set(self._splits) for shard in dataset.exclusions.of(split).shards}
    if absent:
      self._left_out['shards'] = len(absent)

  def _list_parts(self, fingerprints: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    shard_N, record_N = self._rows_N4[:, 1], self._rows_N4[:, 2]
    is_first_N = (np.diff(shard_N, prepend=-1) != 0) | (np.diff(record_N, prepend=-2) != 1)
    first_P = np.flatnonzero(is_first_N)
    take_P = np.diff(first_P, append=len(shard_N))
    return tuple(
      (fingerprints[shard_N[first]], int(record_N[first]), int(take))
      for first, take in zip(first_P, take_P)
    )

  @property
  def _key(self) -> tuple[Any, ...]:
    # A cache is shared by datasets, and two robots take different parts of one episode.
    robot = (self.record.name, hash(self.record), self.given)
    return (str(self.path), *robot, self.split, self.fingerprint)

  def write_flags(self) -> str:
    """What names the choice and another file of exclusions in a command, after a space."""
    file = f' --exclude={shlex.quote(self.exclude)}' if self.exclude else ''
    return f'{self.choice.write_flags()}{file}'

  def list_left_out(self) -> dict[str, int]:
    """By reason, how many episodes of the split are excluded, and how many shards."""
    return dict(self._left_out)

  def __len__(self) -> int:
    return len(self._rows_N4)

  def __getitem__(self, index: int) -> episode_lib.Episode:
    return self._cache.get((*self._key, index), lambda: self.outline(index).parse())

  def numbers(self, index: int) -> episode_lib.Episode:
    """Episode `index` without its images, parsed or from the cache."""
    key = (*self._key, 'numbers', index)
    return self._cache.get(key, lambda: self.outline(index).parse_numbers())

  @property
  def has_index(self) -> bool:
    """Whether single images can be read, and an outline costs none of them."""
    return self._index is not None

  @property
  def places(self) -> list[tuple[str, int]]:
    """Shard and number of the record there of each episode."""
    files = [os.fspath(i.filename) for i in self._instructions]
    return [(files[shard], record) for _, shard, record, _ in self._rows_N4.tolist()]

  def keep(self, name: str, content: bytes) -> None:
    """Keeps a small file that was made of these episodes: beside the dataset, or, where nothing may
    be written there, in the user's cache.
    """
    beside.write(self.path, name, content, in_cache=not self._keeps)

  def where(self, index: int) -> str:
    """Shard file and record of an episode, for messages."""
    _, shard, record, _ = self._rows_N4[index].tolist()
    return f'record {record} of {self._instructions[shard].filename}'

  def find_place(self, index: int) -> tuple[str, int]:
    """Split and number there of an episode, as `exclusions.py` names it."""
    _, shard, _, episode = self._rows_N4[index].tolist()
    return self._splits[shard], episode

  def remedy(self, index: int) -> str:
    """How to leave an episode out, a sentence for messages."""
    split, episode = self.find_place(index)
    flags = f'--episodes={episode}'
    command = exclusions_lib.make_command(self.path, split, flags, self.exclude)
    return f'To leave the episode out: {command}'

  def outline(self, index: int) -> episode_lib.Outline:
    """The record of an episode, read once for all that is asked of it.

    Raises:
      ValueError: it cannot be read.
    """
    where = self.where(index)
    features = self._read(index, where)
    open_images = None
    if self._index is not None:
      open_images = functools.partial(self._index.images, int(self._rows_N4[index, 0]))
    return episode_lib.Outline(
      place=episode_lib.Place(where, self.remedy(index)),
      features=features,
      record=self.record,
      specs=self._specs,
      open_images=open_images,
      cuts=self._cuts.get(index, ()),
      given=self.given,
    )

  def name(self, index: int) -> str:
    """`Outline.name` of an episode."""
    return self.outline(index).name()

  def spans(self, index: int) -> tuple[episode_lib.Span, ...]:
    """`Outline.spans` of an episode."""
    return self.outline(index).spans

  def numeric(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """`Outline.numeric` of an episode."""
    return self.outline(index).numeric()

  def _read(self, index: int, where: str) -> Mapping[str, Any]:
    number = int(self._rows_N4[index, 0])
    try:
      content = self._records[number] if self._index is None else self._index.episode(number)
    except Exception as e:  # array_record raises several types, with messages that name no file.
      raise ValueError(
        f'Cannot read {where}: the shard is missing, truncated or corrupt '
        f'({type(e).__name__}: {e}). Restore the file or rebuild the dataset. '
        f'{self.remedy(index)}'
      ) from e
    try:
      return tf_example_pb2.Example.FromString(content).features.feature
    except Exception as e:  # DecodeError of whichever protobuf implementation is installed.
      raise ValueError(
        f'{where} is not a tf.train.Example ({len(content)} bytes): {e}. Rebuild the dataset. '
        f'{self.remedy(index)}'
      ) from e


def _open_builder(path: epath.Path):
  if not path.exists():
    raise ValueError(f'There is no dataset directory {path}; build it, or correct the path.')
  if not (path / 'dataset_info.json').exists():
    raise ValueError(
      f'{path} has no dataset_info.json; give the version directory of a TFDS dataset, such as '
      'NAME/1.0.0.'
    )
  for name in ('dataset_info.json', 'features.json'):
    pointers.check(path / name)
  try:
    builder = tfds.builder_from_directory(path)
  except _UNREADABLE as e:
    reason = ' '.join(str(e).split())[:200]
    raise ValueError(
      f'{path}: its dataset_info.json or features.json cannot be read ({type(e).__name__}: '
      f'{reason}). Copy them again, or make the dataset again.'
    ) from e
  if builder.info.file_format.value != 'array_record':
    raise ValueError(
      f'{path} is in {builder.info.file_format.value} format, which has no random access. Convert '
      f'it once: python -m data.convert --source={path} --output=DIR'
    )
  return builder


def _find_step_specs(builder) -> dict[str, Any]:
  """Feature path under `steps/` to its per-step shape and dtype."""
  specs = {}

  def visit(prefix, node):
    for key, value in node.items():
      if isinstance(value, dict):
        visit(f'{prefix}{key}/', value)
      elif prefix.startswith('steps/'):
        specs[f'{prefix}{key}'.removeprefix('steps/')] = value

  visit('', builder.info.features.get_tensor_info())
  return specs


def _check_keys(path: epath.Path, specs: Mapping[str, Any], record: record_lib.Embodiment) -> None:
  """The step has every key that the record takes, and as many columns of it."""
  views = [f'observation/{view.key}' for view in record.views]
  slices = [(f'observation/{s.key}', s.stop) for s in record.state]
  slices += [(s.key, s.stop) for s in record.action]

  needed = [*views, *(key for key, _ in slices), *record.language]
  problems = [f'no {key!r}' for key in needed if key not in specs]
  problems += promises.list_problems(specs, record)
  for key, stop in slices:
    # Of a shape that differs from step to step nobody can say.
    has_shape = key in specs and None not in specs[key].shape
    columns = int(np.prod(specs[key].shape, dtype=int)) if has_shape else stop
    if columns < stop:
      problems.append(f'{key!r} has {columns} columns, the record takes up to {stop}')
  if problems:
    raise ValueError(
      f'{path} does not fit embodiment {record.name!r}: {"; ".join(problems[:10])}. Its steps have '
      f'{sorted(specs)}. Correct the record, or name another embodiment.'
    )


def _check_given(path: epath.Path, specs: Mapping[str, Any], given: str) -> None:
  """The mark of actions that are not to be imitated is one number a step."""
  if not given:
    return
  marks = [
    key
    for key, spec in specs.items()
    if np.dtype(spec.np_dtype).kind in 'biuf'
    and None not in spec.shape
    and int(np.prod(spec.shape)) == 1
  ]
  if given not in marks:
    raise ValueError(
      f"{path}: its mixture's given={given!r} must be a feature of its steps that is one number; "
      f'those are {sorted(marks)}.'
    )


def _make_fingerprint(description: bytes, files: Sequence[str], ends: Sequence[shards.End]) -> str:
  digest = hashlib.sha256(description)
  for file, end in zip(files, ends):
    # Without the directory: a copy of the dataset elsewhere is the same dataset.
    name = os.path.basename(file)
    digest.update(f'{name}:{end.size}'.encode() + end.tail)
  return digest.hexdigest()[:16]
