"""Synthetic RLDS datasets, written through TFDS with no TensorFlow, whose pixels and numbers tell
their own time.

At step t of episode e every pixel of view `top` is (e, t, 7), of `wrist` (e, t, 77), the state is
(t, 100 e, -t) and the action (t, t + 0.5). Images are PNG, hence exact.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import shutil
import struct

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import record as record_lib
from wam_jax.data import sources

Slice, View = record_lib.Slice, record_lib.View
# 8 control steps a chunk, a camera frame every 4.
CLOCK = record_lib.Embodiment(
  name='clock',
  views=(View('top', 0, 0, 16, 16), View('wrist', 0, 16, 16, 8)),
  composite=(16, 24),
  state=(Slice('proprio', 0, 3, 's'),),
  action=(Slice('action', 0, 2, 's'),),
  control_hz=10.0,
  video_fps=2.5,
  chunk_s=0.8,
)
RELATIVE = dataclasses.replace(
  CLOCK,
  name='clock_relative',
  action=(Slice('action', 0, 1, 's', relative_to='proprio:0:1'), Slice('action', 1, 2, 's')),
)
SLOW = dataclasses.replace(CLOCK, name='clock_slow', control_hz=5.0)
VIDEO = dataclasses.replace(CLOCK, name='clock_video', state=(), action=())


def encode(image_IJ3: np.ndarray) -> bytes:
  """PNG of an RGB image."""
  return cv2.imencode('.png', cv2.cvtColor(image_IJ3, cv2.COLOR_RGB2BGR))[1].tobytes()


def make_step(episode: int, t: int) -> dict:
  """Step t of the synthetic episode."""
  image = lambda blue: io.BytesIO(encode(np.full((16, 16, 3), (episode, t, blue), np.uint8)))
  return {
    'observation': {
      'top': image(7),
      'wrist': image(77),
      'proprio': np.asarray((t, 100 * episode, -t), np.float32),
    },
    'action': np.asarray((t, t + 0.5), np.float32),
    'language_instruction': f'Task {episode % 3}',
    'is_first': t == 0,
  }


FEATURES = tfds.features.FeaturesDict(
  {
    'steps': tfds.features.Dataset(
      {
        'observation': {
          'top': tfds.features.Image(shape=(16, 16, 3), encoding_format='png'),
          'wrist': tfds.features.Image(shape=(16, 16, 3), encoding_format='png'),
          'proprio': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        },
        'action': tfds.features.Tensor(shape=(2,), dtype=np.float32),
        'language_instruction': tfds.features.Text(),
        'is_first': tfds.features.Scalar(dtype=np.bool_),
      }
    )
  }
)


class SyntheticRlds(tfds.core.GeneratorBasedBuilder):
  """Writes what it is given."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, splits, features, **kwargs):
    self._given, self._features = splits, features
    super().__init__(**kwargs)

  def _info(self):
    return self.dataset_info_from_configs(features=self._features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(episodes) for name, episodes in self._given.items()}

  def _generate_examples(self, episodes):
    yield from enumerate({'steps': steps} for steps in episodes)


def write_dataset(
  root, splits, features=FEATURES, file_format='array_record', shards: int | None = None
) -> str:
  """Writes `splits` (name to list of episodes, each a list of steps); returns the dataset's
  directory. With `shards` each split has that many, for which it needs as many episodes.
  """
  builder = SyntheticRlds(splits, features, data_dir=str(root), file_format=file_format)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
  return str(builder.data_path)


def make_dataset(root, lengths, edit=lambda steps: None, **kwargs) -> str:
  """A synthetic dataset with episodes of these lengths in `train` and the first two in `val`."""
  episodes = [[make_step(e, t) for t in range(n)] for e, n in enumerate(lengths)]
  edit(episodes)
  return write_dataset(
    root,
    {
      'train': episodes,
      'val': [[make_step(e, t) for t in range(n)] for e, n in enumerate(lengths[:2])],
    },
    **kwargs,
  )


def make_sharded(root, shards: int, length: int = 12) -> str:
  """A synthetic dataset of `shards` shards, each of two episodes in `train`, of one in `val`."""
  make_episodes = lambda count: [
    [make_step(e % 256, t) for t in range(length)] for e in range(count)
  ]
  return write_dataset(
    root, {'train': make_episodes(2 * shards), 'val': make_episodes(shards)}, shards=shards
  )


def make_config(datasets, **data) -> cfg.TrainConfig:
  """A small config over {name: (path, embodiment, weight)}."""
  mixture = {
    name: cfg.DatasetConfig(path=path, embodiment=embodiment, weight=weight)
    for name, (path, embodiment, weight) in datasets.items()
  }
  names = tuple(dict.fromkeys(d.embodiment for d in mixture.values()))
  model = cfg.ModelConfig(
    num_embodiments=len(names), action_dim=3, proprio_dim=4, actions_per_chunk=8, max_chunks=2
  )
  return cfg.TrainConfig(
    batch_size=8, model=model, data=cfg.DataConfig(mixture=mixture, embodiments=names, **data)
  )


# TFRecord's way of storing a checksum: rotated by 15 bits, plus a constant.
def mask(crc: int) -> int:
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
  """A record in TFRecord framing."""
  length = struct.pack('<Q', len(record))
  return (
    length
    + struct.pack('<I', mask(google_crc32c.value(length)))
    + record
    + struct.pack('<I', mask(google_crc32c.value(record)))
  )


def copy_as_tfrecord(
  path: str, target: pathlib.Path, record: record_lib.Embodiment
) -> pathlib.Path:
  """An ArrayRecord dataset as TFRecord, which TFDS itself writes only with TensorFlow."""
  shutil.copytree(path, target)
  description = target / 'dataset_info.json'
  description.write_text(
    description.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
  )
  for split in ('train', 'val'):
    episodes = sources.Episodes(path, split, record)
    by_shard: dict[str, bytes] = {}
    for (file, _), content in zip(episodes.places, episodes._records):
      name = pathlib.Path(file).name
      by_shard[name] = by_shard.get(name, b'') + frame(content)
    for name, content in by_shard.items():
      (target / name.replace('array_record', 'tfrecord')).write_bytes(content)
      (target / name).unlink()
  return target


def write_bridge(root: pathlib.Path, episodes: int = 6, steps: int = 10) -> str:
  """A dataset with the keys, shapes and format of published BridgeData V2, of random walks; its
  directory.
  """
  rng = np.random.default_rng(0)
  features = tfds.features.FeaturesDict(
    {
      'steps': tfds.features.Dataset(
        {
          'observation': {
            'image_0': tfds.features.Image(shape=(64, 64, 3), encoding_format='jpeg'),
            'state': tfds.features.Tensor(shape=(7,), dtype=np.float32),
          },
          'action': tfds.features.Tensor(shape=(7,), dtype=np.float32),
          'language_instruction': tfds.features.Text(),
          'is_first': tfds.features.Scalar(dtype=np.bool_),
        }
      )
    }
  )

  def step(t):
    image = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return {
      'observation': {
        'image_0': io.BytesIO(cv2.imencode('.jpg', image)[1].tobytes()),
        'state': rng.normal(size=7).astype(np.float32),
      },
      'action': rng.normal(size=7).astype(np.float32),
      'language_instruction': 'put the spoon on the towel',
      'is_first': t == 0,
    }

  made = [[step(t) for t in range(steps)] for _ in range(episodes)]
  path = write_dataset(root / 'array_record', {'train': made, 'val': made[:2]}, features)
  return str(copy_as_tfrecord(path, root / 'tfrecord', embodiments.get('bridge_widowx')))
