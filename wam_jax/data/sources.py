"""Random access to the episodes of a TFDS/RLDS directory in ArrayRecord format, without TensorFlow.

Owns shards and decoding. A dataset with a frame index (frames.py) gives up single images; of others
whole episodes are read. What the arrays of a step mean is the embodiment record's business; which
steps make a sample is `windows.py`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from wam_jax import storage
from wam_jax.data import beside
from wam_jax.data import cache as cache_lib
from wam_jax.data import frames
from wam_jax.data import record as record_lib
from wam_jax.data import shards


@dataclasses.dataclass(frozen=True)
class Span:
  """Consecutive steps `start` ... `stop - 1` under the same instructions, one text per language
  key.
  """

  start: int
  stop: int
  texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Episode:
  """One parsed episode; images stay encoded until `decode`.

  Attributes:
    where: shard file and record, for messages.
    length: steps.
    state_TX: [length, X] float32, raw units, the record's state slices side by side.
    action_TU: [length, U] float32, raw units, absolute as stored.
    spans: language spans in order.
    encoded: per view key, the JPEG or PNG bytes of every step; read when asked for if there is a
      frame index.
    image_shape: per view key, what features.json promises; None where it is free.
  """

  where: str
  length: int
  state_TX: np.ndarray
  action_TU: np.ndarray
  spans: tuple[Span, ...]
  encoded: dict[str, Sequence[bytes]]
  image_shape: dict[str, tuple[int | None, ...]]

  @property
  def nbytes(self) -> int:
    """Memory held, about."""
    images = sum(_count_bytes(images) for images in self.encoded.values())
    objects = 1000  # Python's own, and the texts.
    return self.state_TX.nbytes + self.action_TU.nbytes + images + objects

  def decode(self, key: str, step: int) -> np.ndarray:
    """The image of view `key` at `step`: [rows, columns, 3] uint8, RGB. Errors as `decode_bgr`."""
    image = self.decode_bgr(key, step)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)

  def decode_bgr(self, key: str, step: int) -> np.ndarray:
    """The same with blue first, as OpenCV decodes.

    Raises:
      ValueError: not a readable 8-bit RGB image, or of another size than features.json says.
    """
    encoded = np.frombuffer(self.encoded[key][step], np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    # The usual case takes one comparison of shapes; sizes that are free are compared one by one.
    if (
      image is None
      or image.dtype != np.uint8
      or image.shape != self.image_shape[key]
      or image.shape[-1] != 3
    ):
      self._explain(image, encoded.size, key, step)
    return image

  def _explain(self, image: np.ndarray | None, size: int, key: str, step: int) -> None:
    """Raises what is wrong with an image of `size` bytes."""
    where = f'Image {key!r} of step {step} of {self.where}'
    want = self.image_shape[key]
    if image is None:
      raise ValueError(
        f'{where} is not a readable JPEG or PNG ({size} bytes); rebuild the dataset.'
      )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(
        f'{where} decodes to {image.dtype} {image.shape}; expected uint8 (rows, columns, 3).'
      )
    if any(w not in (None, got) for w, got in zip(want, image.shape)):
      raise ValueError(f'{where} has shape {image.shape}; features.json says {want}.')

  def load(self, steps: Sequence[int]) -> Episode:
    """The episode with the images of these steps in memory, for as few reads as may be; itself
    where all are.

    Raises:
      ValueError: an image cannot be read.
    """
    if not all(isinstance(images, frames.Images) for images in self.encoded.values()):
      return self
    return dataclasses.replace(self, encoded=frames.load(self.encoded, steps))

  def texts(self, step: int) -> tuple[str, ...]:
    """The instructions at `step`, one per language key."""
    return next(span.texts for span in self.spans if step < span.stop)


class Dataset:
  """A TFDS directory in ArrayRecord format, opened once for all that read it.

  Its description is read once, and the end of each shard once, whatever splits are opened.

  Args:
    path: TFDS directory with dataset_info.json; `~` is expanded.
    cache: keeps parsed episodes, shared by the datasets of a mixture; None keeps nothing.
    keeps: whether what is found out about it may be written beside it.
  Raises:
    ValueError: the directory is not there, or in another format.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    cache: cache_lib.Cache | None = None,
    keeps: bool = True,
  ):
    self.keeps = keeps
    self.path = storage.make_path(path, 'The dataset')
    self.cache = cache or cache_lib.Cache(0)  # Of no size: it keeps nothing.
    self._builder = _open_builder(self.path)
    self.specs = _find_step_specs(self._builder)
    self.index_entries = frames.load_entries(self.path)
    self._ends = shards.Ends()
    self._opened: dict[tuple[str, record_lib.Embodiment], Episodes] = {}

  def open(self, split: str, record: record_lib.Embodiment) -> Episodes:
    """The episodes of a split as a robot sees them, the same object at every call.

    Raises:
      ValueError: as `Episodes`.
    """
    key = (split, record)
    if key not in self._opened:
      self._opened[key] = Episodes(self, split, record)
    return self._opened[key]

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
    if not instructions:
      raise ValueError(f'Split {split!r} of {self.path} holds no episodes.')
    return list(instructions)

  def read_ends(self, files: Sequence[str]) -> list[shards.End]:
    """The ends of shards.

    Raises:
      ValueError: some are not there.
    """
    ends = self._ends.read(files)
    missing = [file for file, end in zip(files, ends) if end is None]
    if missing:
      raise ValueError(
        f'Shards of {self.path} are missing: {", ".join(map(str, missing[:10]))}. Restore them.'
      )
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
  """The episodes of one split, as an `record_lib.Embodiment` sees them.

  `episodes[i]` parses episode i, or takes it from the cache. Pickles to a few paths, so that grain
  workers can have it.

  Args:
    dataset: whose split it is, or the path of one that nobody else reads.
    split: TFDS split, slices allowed.
    record: which arrays are needed.
    cache: as `Dataset` takes it; of no use for one that is open.
  Raises:
    ValueError: the directory, its format, the split or a key the record needs is not there.

  Attributes:
    fingerprint: changes when the dataset does: its description, or the size or last 128 KiB of a
      shard of this split.
    parts: of each shard of the split its fingerprint, and the first and the number of the records
      that are taken.
    record_bytes: bytes of an episode's record, on average.
  """

  def __init__(
    self,
    dataset: Dataset | str | os.PathLike[str],
    split: str,
    record: record_lib.Embodiment,
    cache: cache_lib.Cache | None = None,
  ):
    if not isinstance(dataset, Dataset):
      dataset = Dataset(dataset, cache)
    self.path = dataset.path
    self.split = split
    self.record = record
    self._keeps = dataset.keeps
    self._cache = dataset.cache
    # A cache is shared by datasets, and two robots take different parts of one episode.
    self._key = (str(self.path), record.name, split)
    self._specs = dataset.specs
    _check_keys(self.path, self._specs, record)

    # Of the dataset only what reading takes, so that workers get paths and not the ends of shards.
    self._instructions = dataset.find_instructions(split)
    self._first_record = np.cumsum([0] + [i.take for i in self._instructions])
    files = [os.fspath(i.filename) for i in self._instructions]
    ends = dataset.read_ends(files)
    self.fingerprint = _make_fingerprint(dataset.description, files, ends)
    self.parts = tuple(
      (end.fingerprint, i.skip, i.take) for end, i in zip(ends, self._instructions)
    )

    counts = [i.examples_in_shard for i in self._instructions]
    self.record_bytes = sum(end.size for end in ends) / sum(counts)
    # Opens no shard before a record is asked for.
    self._records = array_record_data_source.ArrayRecordDataSource(self._instructions)
    self._index = None
    if dataset.index_entries is not None:
      fingerprints = [fingerprint for fingerprint, _, _ in self.parts]
      self._index = frames.Index(self.path, dataset.index_entries, self._instructions, fingerprints)

  def __len__(self) -> int:
    return int(self._first_record[-1])

  def __getitem__(self, index: int) -> Episode:
    return self._cache.get((*self._key, index), lambda: self.outline(index).parse())

  def numbers(self, index: int) -> Episode:
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
    return [
      (os.fspath(i.filename), record)
      for i in self._instructions
      for record in range(i.skip, i.skip + i.take)
    ]

  def keep(self, name: str, content: bytes) -> None:
    """Keeps a small file that was made of these episodes: beside the dataset, or, where nothing may
    be written there, in the user's cache.
    """
    beside.write(self.path, name, content, in_cache=not self._keeps)

  def where(self, index: int) -> str:
    """Shard file and record of an episode, for messages."""
    shard = int(np.searchsorted(self._first_record, index, 'right')) - 1
    instruction = self._instructions[shard]
    record = index - int(self._first_record[shard]) + instruction.skip
    return f'record {record} of {instruction.filename}'

  def outline(self, index: int) -> Outline:
    """The record of an episode, read once for all that is asked of it.

    Raises:
      ValueError: it cannot be read.
    """
    where = self.where(index)
    features = self._read(index, where)
    open_images = None if self._index is None else functools.partial(self._index.images, index)
    return Outline(where, features, self.record, self._specs, open_images)

  def name(self, index: int) -> str:
    """`Outline.name` of an episode."""
    return self.outline(index).name()

  def spans(self, index: int) -> tuple[Span, ...]:
    """`Outline.spans` of an episode."""
    return self.outline(index).spans()

  def numeric(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """`Outline.numeric` of an episode."""
    return self.outline(index).numeric()

  def _read(self, index: int, where: str) -> Mapping[str, Any]:
    try:
      content = self._records[index] if self._index is None else self._index.episode(index)
    except Exception as e:  # array_record raises several types, with messages that name no file.
      raise ValueError(
        f'Cannot read {where}: the shard is missing, truncated or corrupt '
        f'({type(e).__name__}: {e}). Restore the file or rebuild the dataset.'
      ) from e
    try:
      return tf_example_pb2.Example.FromString(content).features.feature
    except Exception as e:  # DecodeError of whichever protobuf implementation is installed.
      raise ValueError(
        f'{where} is not a tf.train.Example ({len(content)} bytes): {e}. Rebuild the dataset.'
      ) from e


class Outline:
  """One record of a dataset with its parts, each parsed when it is asked for; touches no image.

  Args:
    where: shard file and record, for messages.
    features: of the tf.Example.
    record: which of them are needed.
    specs: feature path under `steps/` to its per-step shape and dtype.
    open_images: from the table of where a view's images lie, which a frame index stores in their
      place, to the images; None where they are stored themselves.
  """

  def __init__(
    self,
    where: str,
    features: Mapping[str, Any],
    record: record_lib.Embodiment,
    specs: Mapping[str, Any],
    open_images: Callable[[bytes], Sequence[bytes]] | None,
  ):
    self._where = where
    self._features = features
    self._record = record
    self._specs = specs
    self._open_images = open_images

  def parse(self) -> Episode:
    """The whole episode.

    Raises:
      ValueError: the record does not hold what the description promises; so do the other methods.
    """
    views = [view.key for view in self._record.views]
    encoded = {key: self._count(self._images(key), f'observation/{key}') for key in views}
    if self._open_images is None:
      encoded = {key: list(images) for key, images in encoded.items()}
    shapes = {key: tuple(self._specs[f'observation/{key}'].shape) for key in views}
    return dataclasses.replace(self.parse_numbers(), encoded=encoded, image_shape=shapes)

  def parse_numbers(self) -> Episode:
    """The episode without its images."""
    state_TX, action_TU = self.numeric()
    return Episode(
      where=self._where,
      length=self.length,
      state_TX=state_TX,
      action_TU=action_TU,
      spans=self.spans(),
      encoded={},
      image_shape={},
    )

  @functools.cached_property
  def length(self) -> int:
    """Steps."""
    # Every record has a view, while videos without actions may have no other array.
    key = self._record.views[0].key
    length = len(self._images(key))
    if not length:
      raise ValueError(
        f"{self._where} has no image under 'observation/{key}'; it holds {sorted(self._features)}."
      )
    return length

  def name(self) -> str:
    """The texts under the record's `episode_key`, joined by '--'."""
    keys = self._record.episode_key
    missing = [key for key in keys if key not in self._features]
    if missing:
      raise ValueError(
        f'{self._where} has no {missing}, which name it according to {self._record.name!r}; it '
        f'holds {sorted(self._features)}.'
      )
    return '--'.join(_decode(self._features[key].bytes_list.value[0]) for key in keys)

  def spans(self) -> tuple[Span, ...]:
    """The language spans in order."""
    texts = [self._count(self._bytes(key), key) for key in self._record.language]
    steps = list(zip(*texts)) or [()] * self.length
    # Texts are compared as stored; only one a span is decoded.
    changes = [t for t in range(1, self.length) if steps[t] != steps[t - 1]]
    starts = [0, *changes]
    stops = [*starts[1:], self.length]
    return tuple(
      Span(start, stop, tuple(map(_decode, steps[start]))) for start, stop in zip(starts, stops)
    )

  def numeric(self) -> tuple[np.ndarray, np.ndarray]:
    """(state_TX, action_TU), as `Episode` has them."""
    state = [(f'observation/{s.key}', s) for s in self._record.state]
    action = [(s.key, s) for s in self._record.action]
    # Slices may share an array, which is then converted once.
    columns = {key: self._column(key) for key in dict(state + action)}
    return _join(columns, state, self.length), _join(columns, action, self.length)

  def _bytes(self, key: str) -> Sequence[bytes]:
    """What is stored under `key`; each becomes an object of its own when it is asked for."""
    feature = self._features.get(f'steps/{key}')
    return [] if feature is None else feature.bytes_list.value

  def _images(self, view: str) -> Sequence[bytes]:
    """The images of a view, however many."""
    stored = self._bytes(f'observation/{view}')
    return self._open_images(stored[0]) if stored and self._open_images else stored

  def _count(self, values: Sequence[bytes], key: str) -> Sequence[bytes]:
    """`values`, of which there must be one a step."""
    if len(values) != self.length:
      raise ValueError(
        f'{self._where} has {len(values)} values of {key!r} for its {self.length} steps.'
      )
    return values

  def _column(self, key: str) -> np.ndarray:
    """[length, width] float32, the numbers under `key`."""
    feature = self._features.get(f'steps/{key}')
    kind = feature.WhichOneof('kind') if feature is not None else 'nothing'
    if kind not in ('float_list', 'int64_list'):
      raise ValueError(f'{self._where} stores {key!r} as {kind}; expected numbers.')
    values = np.asarray(getattr(feature, kind).value, np.float32)
    width = int(np.prod(self._specs[key].shape, dtype=int))
    if values.size != self.length * width:
      raise ValueError(
        f'{self._where} has {values.size} numbers of {key!r}; expected {self.length} steps '
        f'x {width}.'
      )
    if not np.isfinite(values).all():
      step = int(np.flatnonzero(~np.isfinite(values))[0]) // width
      raise ValueError(
        f'{self._where} has NaN or infinity in {key!r} at step {step}; repair or drop the episode.'
      )
    return values.reshape(self.length, width)


def _join(
  columns: Mapping[str, np.ndarray],
  slices: Sequence[tuple[str, record_lib.Slice]],
  length: int,
) -> np.ndarray:
  """[length, width] float32, the slices side by side; of no width if there are none."""
  parts = [np.zeros((length, 0), np.float32)]  # So that no slices give an array, too.
  parts += [columns[key][:, s.start : s.stop] for key, s in slices]
  return np.concatenate(parts, axis=1)


def _decode(text: bytes) -> str:
  # One bad byte in an instruction is no reason to stop a run.
  return text.decode('utf-8', 'replace')


def _count_bytes(images: Sequence[bytes]) -> int:
  """Memory that the images of a view hold, about."""
  if isinstance(images, frames.Images):
    return images.table_T3.nbytes
  return sum(len(image) + 48 for image in images)  # 48: of a Python object.


def _open_builder(path: epath.Path):
  if not path.exists():
    raise ValueError(f'There is no dataset directory {path}; build it, or correct the path.')
  if not (path / 'dataset_info.json').exists():
    raise ValueError(
      f'{path} has no dataset_info.json; give the version directory of a TFDS dataset, such as '
      'NAME/1.0.0.'
    )
  builder = tfds.builder_from_directory(path)
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
  for key, stop in slices:
    columns = int(np.prod(specs[key].shape, dtype=int)) if key in specs else stop
    if columns < stop:
      problems.append(f'{key!r} has {columns} columns, the record takes up to {stop}')
  if problems:
    raise ValueError(
      f'{path} does not fit embodiment {record.name!r}: {"; ".join(problems[:10])}. Its steps have '
      f'{sorted(specs)}. Correct the record, or name another embodiment.'
    )


def _make_fingerprint(description: bytes, files: Sequence[str], ends: Sequence[shards.End]) -> str:
  digest = hashlib.sha256(description)
  for file, end in zip(files, ends):
    # Without the directory: a copy of the dataset elsewhere is the same dataset.
    name = os.path.basename(file)
    digest.update(f'{name}:{end.size}'.encode() + end.tail)
  return digest.hexdigest()[:16]
