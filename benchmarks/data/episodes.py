"""Robot episodes for `benchmarks.data`: keys, shapes, rates and file sizes of DROID, pictures made
up here.

Every view is a camera that drifts over a textured wall (a power spectrum that falls with frequency,
as in photographs) while textured things move in front of it, with a little sensor noise: JPEGs of
quality 95 have about the 21 kB of DROID.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core import example_serializer

from wam_jax import progress

ROWS, COLUMNS = 180, 320
VIEWS = ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
LANGUAGE = ('language_instruction', 'language_instruction_2', 'language_instruction_3')
QUALITY = 95
_MARGIN = 48  # Pixels that the camera may drift.
_CONTRAST = 45  # Standard deviation of the grey values of a texture.


def make_features() -> tfds.features.FeaturesDict:
  """The features of DROID that its record reads."""
  image = tfds.features.Image(shape=(ROWS, COLUMNS, 3), encoding_format='jpeg')
  joints = tfds.features.Tensor(shape=(7,), dtype=np.float64)
  gripper = tfds.features.Tensor(shape=(1,), dtype=np.float64)
  text = tfds.features.Text()
  step = {
    'observation': {
      **dict.fromkeys(VIEWS, image),
      'joint_position': joints,
      'gripper_position': gripper,
    },
    'action_dict': {'joint_position': joints, 'gripper_position': gripper},
    **dict.fromkeys(LANGUAGE, text),
    'is_first': tfds.features.Scalar(np.bool_),
  }
  return tfds.features.FeaturesDict(
    {
      'steps': tfds.features.Dataset(step),
      'episode_metadata': {'recording_folderpath': text, 'file_path': text},
    }
  )


def make_episode(seed: int, length: int) -> dict[str, Any]:
  """One example for `make_features`, images encoded."""
  rng = np.random.default_rng(seed)
  films = {view: _film(rng, length) for view in VIEWS}
  joints = np.cumsum(rng.normal(0, 0.02, (length + 1, 7)), axis=0)
  # Opens and closes every 125 steps or so.
  gripper = (np.sin(np.arange(length + 1) / 40 + rng.uniform(0, 6))[:, None] > 0).astype(np.float64)
  words = f'put object {rng.integers(100)} on shelf {rng.integers(20)}'
  steps = [
    {
      'observation': {
        **{view: io.BytesIO(next(film)) for view, film in films.items()},
        'joint_position': joints[t],
        'gripper_position': gripper[t],
      },
      'action_dict': {'joint_position': joints[t + 1], 'gripper_position': gripper[t + 1]},
      'language_instruction': words,
      'language_instruction_2': f'please {words}',
      'language_instruction_3': '',
      'is_first': t == 0,
    }
    for t in range(length)
  ]
  name = f'success/episode_{seed}'
  return {'steps': steps, 'episode_metadata': {'recording_folderpath': name, 'file_path': name}}


def _film(rng: np.random.Generator, length: int) -> Iterator[bytes]:
  """Encoded pictures of one view."""
  wall = _texture(rng, ROWS + _MARGIN, COLUMNS + _MARGIN, _CONTRAST)
  things = []
  for size in rng.integers(24, 80, 5):
    texture = _texture(rng, size, size, _CONTRAST)
    things.append((texture, rng.uniform(0, 6, 2), rng.uniform(0.01, 0.04, 2)))
  # Eight pictures of sensor noise, drawn from anew for each step.
  noise = np.round(rng.normal(0, 0.7, (8, ROWS, COLUMNS, 3))).astype(np.int16)
  phase = rng.uniform(0, 6, 2)
  speed = rng.uniform(0.005, 0.03, 2)
  for t in range(length):
    drift = _MARGIN / 2 * (1 + np.sin(phase + speed * t))
    move = np.asarray([[1, 0, -drift[0]], [0, 1, -drift[1]]])
    picture = cv2.warpAffine(wall, move, (COLUMNS, ROWS))
    for texture, start, rate in things:
      size = len(texture)
      share = 0.5 + 0.5 * np.sin(start + rate * t)  # Of the way from edge to edge.
      row, column = (share * (ROWS - size, COLUMNS - size)).astype(int)
      picture[row : row + size, column : column + size] = texture
    picture = np.clip(picture + noise[rng.integers(8)], 0, 255).astype(np.uint8)
    yield cv2.imencode('.jpg', picture, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()


def _texture(rng: np.random.Generator, rows: int, columns: int, contrast: float) -> np.ndarray:
  """[rows, columns, 3] uint8: noise with a 1 / frequency^1.9 spectrum, its channels alike but not
  equal.
  """
  lowest = 1 / max(rows, columns)  # Keeps the mean finite.
  frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)) + lowest

  def layer():
    spectrum = np.fft.rfft2(rng.normal(size=(rows, columns))) / frequency**1.9
    picture = np.fft.irfft2(spectrum, (rows, columns))
    return (picture - picture.mean()) / picture.std()

  gray = layer()
  colour = np.stack([gray + 0.2 * layer() for _ in range(3)], axis=-1) + rng.normal(0, 0.2, 3)
  return np.clip(120 + contrast * colour, 0, 255).astype(np.uint8)


def write(path: epath.Path, episodes: int, length: int, shards: int, workers: int) -> None:
  """Writes `episodes` of about `length` steps as TFRecord shards in TFDS form: a dataset as
  published.
  """
  path.mkdir(parents=True, exist_ok=True)
  template = tfds.core.ShardedFileTemplate(
    data_dir=path,
    dataset_name='made_up',
    split='train',
    filetype_suffix='tfrecord',
    template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE,
  )
  bounds = [episodes * i // shards for i in range(shards + 1)]
  jobs = []
  for i in range(shards):
    file = str(template.sharded_filepath(shard_index=i, num_shards=shards))
    jobs.append(_Shard(file, range(bounds[i], bounds[i + 1]), length))

  with contextlib.ExitStack() as stack:
    each = map
    if workers > 1:
      spawn = multiprocessing.get_context('spawn')
      each = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, spawn)).map
    written = each(_write_shard, jobs)
    sizes = list(progress.track(written, 'writing shards of the benchmark', shards, unit='shards'))

  identity = dataset_info.DatasetIdentity(
    name='made_up',
    version=tfds.core.Version('1.0.0'),
    data_dir=str(path),
    module_name='benchmarks.data.episodes',
  )
  made_from = {'episodes': episodes, 'length': length, 'shards': shards}
  split = tfds.core.splits.SplitInfo(
    name='train',
    shard_lengths=[len(job.seeds) for job in jobs],
    num_bytes=sum(sizes),
    filename_template=template,
  )
  info = tfds.core.DatasetInfo(
    builder=identity, features=make_features(), description=json.dumps(made_from)
  )
  info.set_file_format(tfds.core.FileFormat.TFRECORD)
  info.set_splits(tfds.core.splits.SplitDict([split]))
  info.write_to_directory(path)


class _Shard(NamedTuple):
  """One file: its path, the seeds of its episodes, and about how many steps they have."""

  path: str
  seeds: range
  length: int


def _write_shard(shard: _Shard) -> int:
  """Bytes of the records written."""
  cv2.setNumThreads(1)
  features = make_features()
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  total = 0
  with open(shard.path, 'wb') as f:
    for seed in shard.seeds:
      steps = shard.length + seed % 21 - 10  # Episodes differ in length.
      example = features.encode_example(make_episode(seed, steps))
      record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
      f.write(frame(record))
      total += len(record)
  return total


def frame(record: bytes) -> bytes:
  """A record in TFRecord framing: length, its masked CRC-32C, bytes, their masked CRC-32C."""
  length = struct.pack('<Q', len(record))
  return length + _masked_crc(length) + record + _masked_crc(record)


def _masked_crc(content: bytes) -> bytes:
  crc = google_crc32c.value(content)
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
