"""Random access to the episodes of a TFDS/RLDS directory in ArrayRecord format, without TensorFlow.

Owns shards and decoding. A dataset with a frame index (frames.py) gives up single images; of others
whole episodes are read. What the arrays of a step mean is the embodiment record's business; which
steps make a sample is `windows.py`'s.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from wam_jax import remote
from wam_jax.data import cache as cache_lib
from wam_jax.data import embodiments
from wam_jax.data import frames


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
    return (
      self.state_TX.nbytes + self.action_TU.nbytes + sum(map(_held, self.encoded.values())) + 1000
    )

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
    if (
      image is None
      or image.dtype != np.uint8
      or image.shape != self.image_shape[key]
      or image.shape[-1] != 3
    ):
      self._check(image, encoded.size, key, step)
    return image

  def _check(self, image: np.ndarray | None, size: int, key: str, step: int) -> None:
    where, want = f'Image {key!r} of step {step} of {self.where}', self.image_shape[key]
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

  def texts(self, step: int) -> tuple[str, ...]:
    """The instructions at `step`, one per language key."""
    return next(span.texts for span in self.spans if step < span.stop)


class Episodes:
  """The episodes of one split, as an `embodiments.Embodiment` sees them.

  `episodes[i]` parses episode i, or takes it from the cache. Pickles to a few paths, so that grain
  workers can have it.

  Args:
    path: TFDS directory with dataset_info.json; `~` is expanded.
    split: TFDS split, slices allowed.
    record: which arrays are needed.
    cache: shared by the datasets of a mixture; None keeps nothing.
  Raises:
    ValueError: the directory, its format, the split or a key the record needs is not there.
  """

  def __init__(
    self,
    path: str,
    split: str,
    record: embodiments.Embodiment,
    cache: cache_lib.Cache | None = None,
  ):
    self.path, self.split, self.record = remote.make_path(path, 'The dataset'), split, record
    self._cache, self._key = cache or cache_lib.Cache(0), (str(self.path), record.name, split)
    builder = _open_builder(self.path)
    self._specs = _step_specs(builder)
    _check_keys(self.path, self._specs, record)
    self._shards = _file_instructions(builder, self.path, split)
    self._records = array_record_data_source.ArrayRecordDataSource(self._shards)
    self._index = frames.open_index(self.path, self._shards)
    self._first_record = np.cumsum([0] + [s.take for s in self._shards])

  def __len__(self) -> int:
    return int(self._first_record[-1])

  def __getitem__(self, index: int) -> Episode:
    return self._cache.get((*self._key, index), lambda: self._parse(index))

  @functools.cached_property
  def fingerprint(self) -> str:
    """Changes when the dataset does: of its description, and size and last 128 KiB of every
    shard.
    """
    return _fingerprint(self.path, self._shards)

  def where(self, index: int) -> str:
    """Shard file and record of an episode, for messages."""
    shard = int(np.searchsorted(self._first_record, index, 'right')) - 1
    record = index - int(self._first_record[shard]) + self._shards[shard].skip
    return f'record {record} of {self._shards[shard].filename}'

  def name(self, index: int) -> str:
    """The texts under the record's `episode_key`, joined by '--'.

    Raises:
      ValueError: the episode lacks one.
    """
    features = self._read(index)
    missing = [key for key in self.record.episode_key if key not in features]
    if missing:
      raise ValueError(
        f'{self.where(index)} has no {missing}, which name it according to {self.record.name!r}; it '
        f'holds {sorted(features)}.'
      )
    return '--'.join(
      features[key].bytes_list.value[0].decode('utf-8', 'replace')
      for key in self.record.episode_key
    )

  def spans(self, index: int) -> tuple[Span, ...]:
    """The language spans of an episode, without touching its arrays and images."""
    features = self._read(index)
    return self._spans(features, self._length(features, index), index)

  def numeric(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(state_TX, action_TU) of an episode, without touching its images."""
    features = self._read(index)
    return self._arrays(features, self._length(features, index), index)

  def _read(self, index: int):
    try:
      record = self._index.episode(index) if self._index else self._records[index]
    except Exception as e:  # array_record raises several types, with messages that name no file.
      raise ValueError(
        f'Cannot read {self.where(index)}: the shard is missing, truncated or corrupt '
        f'({type(e).__name__}: {e}). Restore the file or rebuild the dataset.'
      ) from e
    try:
      return tf_example_pb2.Example.FromString(record).features.feature
    except Exception as e:  # DecodeError of whichever protobuf implementation is installed.
      raise ValueError(
        f'{self.where(index)} is not a tf.train.Example ({len(record)} bytes): {e}. '
        'Rebuild the dataset.'
      ) from e

  def _parse(self, index: int) -> Episode:
    features = self._read(index)
    length = self._length(features, index)
    state_TX, action_TU = self._arrays(features, length, index)
    encoded = {
      v.key: self._images(features, f'observation/{v.key}', length, index)
      for v in self.record.views
    }
    return Episode(
      self.where(index),
      length,
      state_TX,
      action_TU,
      self._spans(features, length, index),
      encoded,
      {v.key: tuple(self._specs[f'observation/{v.key}'].shape) for v in self.record.views},
    )

  def _length(self, features, index: int) -> int:
    key = f'observation/{self.record.views[0].key}'
    length = len(self._stored(features, key, index))
    if not length:
      raise ValueError(
        f'{self.where(index)} has no image under {key!r}; it holds {sorted(features)}.'
      )
    return length

  def _stored(self, features, key: str, index: int) -> Sequence[bytes]:
    """The images under `key`, however many."""
    values = features[f'steps/{key}'].bytes_list.value if f'steps/{key}' in features else []
    if self._index and values:
      return self._index.images(index, values[0])
    return list(values)

  def _images(self, features, key: str, length: int, index: int) -> Sequence[bytes]:
    return self._counted(self._stored(features, key, index), key, length, index)

  def _spans(self, features, length: int, index: int) -> tuple[Span, ...]:
    texts = [self._texts(features, key, length, index) for key in self.record.language]
    steps = list(zip(*texts)) or [()] * length
    starts = [0] + [t for t in range(1, length) if steps[t] != steps[t - 1]]
    return tuple(
      Span(start, stop, tuple(text.decode('utf-8', 'replace') for text in steps[start]))
      for start, stop in zip(starts, starts[1:] + [length])
    )

  def _texts(self, features, key: str, length: int, index: int) -> Sequence[bytes]:
    values = list(features[f'steps/{key}'].bytes_list.value) if f'steps/{key}' in features else []
    return self._counted(values, key, length, index)

  def _counted(self, values: Sequence[bytes], key: str, length: int, index: int) -> Sequence[bytes]:
    if len(values) != length:
      raise ValueError(
        f'{self.where(index)} has {len(values)} values of {key!r} for its {length} steps.'
      )
    return values

  def _arrays(self, features, length: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    state = [(f'observation/{s.key}', s) for s in self.record.state]
    action = [(s.key, s) for s in self.record.action]
    columns = {key: self._column(features, key, length, index) for key in dict(state + action)}
    empty = [np.zeros((length, 0), np.float32)]
    return tuple(
      np.concatenate(empty + [columns[key][:, s.start : s.stop] for key, s in part], axis=1)
      for part in (state, action)
    )

  def _column(self, features, key: str, length: int, index: int) -> np.ndarray:
    feature = features.get(f'steps/{key}')
    kind = feature.WhichOneof('kind') if feature is not None else 'nothing'
    if kind not in ('float_list', 'int64_list'):
      raise ValueError(f'{self.where(index)} stores {key!r} as {kind}; expected numbers.')
    values = np.asarray(getattr(feature, kind).value, np.float32)
    width = int(np.prod(self._specs[key].shape, dtype=int))
    if values.size != length * width:
      raise ValueError(
        f'{self.where(index)} has {values.size} numbers of {key!r}; expected {length} steps '
        f'x {width}.'
      )
    if not np.isfinite(values).all():
      step = int(np.flatnonzero(~np.isfinite(values))[0]) // width
      raise ValueError(
        f'{self.where(index)} has NaN or infinity in {key!r} at step {step}; repair or drop the '
        'episode.'
      )
    return values.reshape(length, width)


def _held(images: Sequence[bytes]) -> int:
  return (
    images.table_T3.nbytes
    if isinstance(images, frames.Images)
    else sum(len(image) + 48 for image in images)
  )


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
      f'{path} is in {builder.info.file_format.value} format, which has no random access. Convert it once: '
      f'python -m data.convert --source={path} --output=DIR'
    )
  return builder


def _step_specs(builder) -> dict[str, Any]:
  """Feature path under `steps/` to its per-step shape and dtype."""
  flat = {}

  def visit(prefix, node):
    for key, value in node.items():
      visit(f'{prefix}{key}/', value) if isinstance(value, dict) else flat.update(
        {f'{prefix}{key}': value}
      )

  visit('', builder.info.features.get_tensor_info())
  return {
    key.removeprefix('steps/'): spec for key, spec in flat.items() if key.startswith('steps/')
  }


def _check_keys(path: epath.Path, specs: dict[str, Any], record: embodiments.Embodiment) -> None:
  slices = [(f'observation/{s.key}', s.stop) for s in record.state] + [
    (s.key, s.stop) for s in record.action
  ]
  needed = (
    [(f'observation/{v.key}', 0) for v in record.views]
    + slices
    + [(key, 0) for key in record.language]
  )
  problems = [f'no {key!r}' for key, _ in needed if key not in specs]
  problems += [
    f'{key!r} has {int(np.prod(specs[key].shape, dtype=int))} columns, the record takes up to {stop}'
    for key, stop in slices
    if key in specs and np.prod(specs[key].shape, dtype=int) < stop
  ]
  if problems:
    raise ValueError(
      f'{path} does not fit embodiment {record.name!r}: {"; ".join(problems[:10])}. Its steps have '
      f'{sorted(specs)}. Correct the record in wam_jax/data/embodiments.py.'
    )


def _file_instructions(builder, path: epath.Path, split: str):
  try:
    instructions = builder.info.splits[split].file_instructions
  except Exception as e:  # TFDS raises KeyError, ValueError or AssertionError here.
    raise ValueError(f'{path} has no split {split!r}; it has {sorted(builder.info.splits)}.') from e
  if not instructions:
    raise ValueError(f'Split {split!r} of {path} holds no episodes.')
  missing = [i.filename for i in instructions if not epath.Path(i.filename).exists()]
  if missing:
    raise ValueError(
      f'Shards of {path} are missing: {", ".join(map(str, missing[:10]))}. Restore them.'
    )
  return instructions


def _fingerprint(path: epath.Path, shards) -> str:
  digest = hashlib.sha256()
  for name in ('dataset_info.json', 'features.json'):
    digest.update((path / name).read_bytes())
  paths = [epath.Path(shard.filename) for shard in shards]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    for path, (size, tail) in zip(paths, pool.map(frames.read_tail, paths)):
      digest.update(f'{path.name}:{size}'.encode() + tail)
  return digest.hexdigest()[:16]
