"""An episode as a robot sees it, parsed from a record of a dataset as far as it is asked for.

Owns what a record holds and the decoding of its images; which records there are is the business of
`sources.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from wam_jax.data import frames
from wam_jax.data import prompts
from wam_jax.data import record as record_lib


@dataclasses.dataclass(frozen=True)
class Span:
  """Consecutive steps `start` ... `stop - 1` under the same instructions, one text per language
  key.
  """

  start: int
  stop: int
  texts: tuple[str, ...]

  @property
  def is_blank(self) -> bool:
    """Whether it should have an instruction and has none."""
    return bool(self.texts) and not any(text.strip() for text in self.texts)


@dataclasses.dataclass(frozen=True)
class Episode:
  """One parsed episode; images stay encoded until `decode`.

  Attributes:
    where: shard file and record, for messages.
    length: steps; 0 where nothing was recorded.
    state_TX: [length, X] float32, raw units, the record's state slices side by side.
    action_TU: [length, U] float32, raw units, absolute as stored.
    spans: language spans in order.
    encoded: per view key, the JPEG or PNG bytes of every step; read when asked for if there is a
      frame index.
    image_shape: per view key, what features.json promises; None where it is free.
    given_T: [length] bool, steps whose action was carried out but is not to be imitated; None where
      nobody asked.
    remedy: how to leave the episode out, a sentence for messages.
  """

  where: str
  length: int
  state_TX: np.ndarray
  action_TU: np.ndarray
  spans: tuple[Span, ...]
  encoded: dict[str, Sequence[bytes]]
  image_shape: dict[str, tuple[int | None, ...]]
  given_T: np.ndarray | None = None
  remedy: str = ''

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
    encoded = np.frombuffer(self._read_image(key, step), np.uint8)
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

  def _read_image(self, key: str, step: int) -> bytes:
    try:
      return self.encoded[key][step]
    except ValueError as e:  # Of a frame index, which does not know what it is an image of.
      raise ValueError(f'Image {key!r} of step {step} of {self.where}: {e} {self.remedy}') from e

  def _explain(self, image: np.ndarray | None, size: int, key: str, step: int) -> None:
    """Raises what is wrong with an image of `size` bytes."""
    where = f'Image {key!r} of step {step} of {self.where}'
    want = self.image_shape[key]
    if image is None:
      raise ValueError(
        f'{where} is not a readable JPEG or PNG ({size} bytes); rebuild the dataset. {self.remedy}'
      )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(
        f'{where} decodes to {image.dtype} {image.shape}; expected uint8 (rows, columns, 3). '
        f'{self.remedy}'
      )
    if any(w not in (None, got) for w, got in zip(want, image.shape)):
      raise ValueError(f'{where} has shape {image.shape}; features.json says {want}. {self.remedy}')

  def load(self, steps: Sequence[int]) -> Episode:
    """The episode with the images of these steps in memory, for as few reads as may be; itself
    where all are.

    Raises:
      ValueError: an image cannot be read.
    """
    if not all(isinstance(images, frames.Images) for images in self.encoded.values()):
      return self
    try:
      return dataclasses.replace(self, encoded=frames.load(self.encoded, steps))
    except ValueError as e:
      raise ValueError(f'An image of {self.where}: {e} {self.remedy}') from e

  def texts(self, step: int) -> tuple[str, ...]:
    """The instructions at `step`, one per language key."""
    return next(span.texts for span in self.spans if step < span.stop)


class Place(NamedTuple):
  """Where an episode is, for messages.

  Attributes:
    where: shard file and record.
    remedy: how to leave it out, a sentence.
  """

  where: str
  remedy: str


class Outline:
  """One record of a dataset with its parts, each parsed when it is asked for; touches no image.

  Args:
    place: of the record.
    features: of the tf.Example.
    record: which of them are needed.
    specs: feature path under `steps/` to its per-step shape and dtype.
    open_images: from the table of where a view's images lie, which a frame index stores in their
      place, to the images; None where they are stored themselves.
    cuts: (first, step after the last) of the steps that are left out.
    given: the feature under `steps/` that marks actions which are not to be imitated; '' for none.
  """

  def __init__(
    self,
    *,
    place: Place,
    features: Mapping[str, Any],
    record: record_lib.Embodiment,
    specs: Mapping[str, Any],
    open_images: Callable[[bytes], Sequence[bytes]] | None,
    cuts: Sequence[tuple[int, int]] = (),
    given: str = '',
  ):
    self._where, self._remedy = place
    self._cuts = cuts
    self._given = given
    self._features = features
    self.record = record
    self._specs = specs
    self._open_images = open_images

  def parse(self) -> Episode:
    """The whole episode.

    Raises:
      ValueError: the record does not hold what the description promises; so do the other methods.
    """
    views = [view.key for view in self.record.views]
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
      remedy=self._remedy,
      length=self.length,
      state_TX=state_TX,
      action_TU=action_TU,
      spans=self.spans,
      encoded={},
      image_shape={},
      given_T=self._column(self._given)[:, 0] != 0 if self._given else None,
    )

  @functools.cached_property
  def length(self) -> int:
    """Steps; 0 where a recording was ended before it began."""
    # Every record has a view, while videos without actions may have no other array.
    key = self.record.views[0].key
    length = len(self._images(key))
    if not length and not self._is_empty():
      raise ValueError(
        f"{self._where} has no image under 'observation/{key}'; it holds {sorted(self._features)}. "
        f'{self._remedy}'
      )
    return length

  def _is_empty(self) -> bool:
    """Whether nothing that the record takes has a step."""
    keys = [*self.record.language, *(s.key for s in self.record.action)]
    keys += [f'observation/{s.key}' for s in (*self.record.state, *self.record.views)]
    stored = [self._features.get(f'steps/{key}') for key in keys]
    # A feature that is not there at all is something else than one without values.
    kinds = [feature is not None and feature.WhichOneof('kind') for feature in stored]
    return all(kinds) and not any(
      len(getattr(feature, kind).value) for feature, kind in zip(stored, kinds)
    )

  def name(self) -> str:
    """The texts under the record's `episode_key`, joined by '--'."""
    keys = self.record.episode_key
    missing = [key for key in keys if key not in self._features]
    if missing:
      raise ValueError(
        f'{self._where} has no {missing}, which name it according to {self.record.name!r}; it '
        f'holds {sorted(self._features)}.'
      )
    return '--'.join(_decode(self._features[key].bytes_list.value[0]) for key in keys)

  @functools.cached_property
  def spans(self) -> tuple[Span, ...]:
    """The language spans in order, without the steps that are left out."""
    if not self.length:
      return ()
    texts = [self._count(self._words(key), key) for key in self.record.language]
    steps = list(zip(*texts)) or [()] * self.length
    # Texts are compared as stored; only one a span is decoded.
    is_here_T = self._find_kept()
    starts = [
      t
      for t in range(self.length)
      if not t or steps[t] != steps[t - 1] or is_here_T[t] != is_here_T[t - 1]
    ]
    stops = [*starts[1:], self.length]
    return tuple(
      Span(start, stop, tuple(map(_decode, steps[start])))
      for start, stop in zip(starts, stops)
      if is_here_T[start]
    )

  def numeric(self) -> tuple[np.ndarray, np.ndarray]:
    """(state_TX, action_TU), as `Episode` has them; what is no number in a step that is left out is
    0.
    """
    state = [(f'observation/{s.key}', s) for s in self.record.state]
    action = [(s.key, s) for s in self.record.action]
    # Slices may share an array, which is then converted once.
    columns = {key: self._column(key) for key in dict(state + action)}
    for key, s in state + action:
      self._check_finite(columns[key], key, s)
    if self._cuts:
      columns = {key: np.nan_to_num(column_TN) for key, column_TN in columns.items()}
    return _join(columns, state, self.length), _join(columns, action, self.length)

  def _find_kept(self) -> np.ndarray:
    """[length] bool, the steps that are not left out."""
    is_here_T = np.ones(self.length, bool)
    for first, stop in self._cuts:
      is_here_T[first:stop] = False
    return is_here_T

  def read_numbers(self, path: str) -> np.ndarray:
    """The numbers under a path of the record, as they are stored: int64 or float32; none where it
    holds no numbers.
    """
    feature = self._features.get(path)
    kind = feature.WhichOneof('kind') if feature is not None else None
    if kind not in ('float_list', 'int64_list'):
      return np.zeros(0, np.float32)
    return np.asarray(
      getattr(feature, kind).value, np.int64 if kind == 'int64_list' else np.float32
    )

  def _bytes(self, key: str) -> Sequence[bytes]:
    """What is stored under `key`; each becomes an object of its own when it is asked for."""
    feature = self._features.get(f'steps/{key}')
    return [] if feature is None else feature.bytes_list.value

  def _words(self, key: str) -> Sequence[bytes]:
    """The texts under `key`, encoded; where they are stored as numbers, of their characters."""
    feature = self._features.get(f'steps/{key}')
    if feature is None or feature.WhichOneof('kind') != 'int64_list':
      return self._bytes(key)
    codes = np.asarray(feature.int64_list.value, np.int64)
    width = int(np.prod(self._specs[key].shape, dtype=int))
    if codes.size != self.length * width:
      raise ValueError(
        f'{self._where} has {codes.size} characters of {key!r}; expected {self.length} steps x '
        f'{width}.'
      )
    try:
      return prompts.decode_codes(codes.reshape(self.length, width))
    except ValueError as e:
      raise ValueError(f'{self._where}, {key!r}: {e}') from e

  def _images(self, view: str) -> Sequence[bytes]:
    """The images of a view, however many."""
    stored = self._bytes(f'observation/{view}')
    return self._open_images(stored[0]) if stored and self._open_images else stored

  def _count(self, values: Sequence[bytes], key: str) -> Sequence[bytes]:
    """`values`, of which there must be one a step."""
    if len(values) != self.length:
      raise ValueError(
        f'{self._where} has {len(values)} values of {key!r} for its {self.length} steps. '
        f'{self._remedy}'
      )
    return values

  def _column(self, key: str) -> np.ndarray:
    """[length, width] float32, the numbers under `key`."""
    if not self.length:
      return np.zeros((0, int(np.prod(self._specs[key].shape, dtype=int))), np.float32)
    feature = self._features.get(f'steps/{key}')
    kind = feature.WhichOneof('kind') if feature is not None else 'nothing'
    if kind not in ('float_list', 'int64_list'):
      raise ValueError(f'{self._where} stores {key!r} as {kind}; expected numbers. {self._remedy}')
    values = np.asarray(getattr(feature, kind).value, np.float32)
    width = int(np.prod(self._specs[key].shape, dtype=int))
    if values.size != self.length * width:
      raise ValueError(
        f'{self._where} has {values.size} numbers of {key!r}; expected {self.length} steps '
        f'x {width}. {self._remedy}'
      )
    return values.reshape(self.length, width)

  def _check_finite(self, values_TN: np.ndarray, key: str, s: record_lib.Slice) -> None:
    """Only what the record takes, of steps that are not left out, must be numbers."""
    is_number_TN = np.isfinite(values_TN[:, s.start : s.stop])
    if is_number_TN.all():
      return
    wrong_TN = ~is_number_TN & self._find_kept()[:, None]
    if wrong_TN.any():
      step, column = np.argwhere(wrong_TN)[0].tolist()
      raise ValueError(
        f'{self._where} has NaN or infinity in {key!r} at step {step}, column {s.start + column}; '
        f'repair it. {self._remedy}'
      )


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
