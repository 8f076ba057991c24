"""The baseline of `benchmarks.data`: the same windows from a tf.data pipeline.

Whole trajectories are read and cut into windows, windows are shuffled in a buffer (encoded, as octo
does, or decoded, as openpi does), frames are decoded, cropped, resized and jittered with
TensorFlow's own operations, then tiled and batched. One thread, and pictures one by one
(tf.map_fn) are choices: the core is one, and so each picture stays in its cache.

Runs in a Python that has TensorFlow and needs nothing else of this project: `python
benchmarks/data/tfdata.py SETTINGS`, where SETTINGS is JSON with the fields of `Settings`. Speaks
the protocol of `benchmarks.contest`.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
import pathlib
import sys

import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from benchmarks import contest

SIZE = (180, 320)  # Rows and columns of the stored images.


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is read and how.

  Attributes:
    data: the directory of the TFRecord shards.
    views: keys of the images, in the order of `tiles`.
    tiles: row, column, height, width, repeat of each view.
    composite: rows and columns of the whole.
    frames, stride: camera frames of a window, and steps between two.
    chunk: steps of a chunk; a window has at least one, and repeats the last step of its episode to
      its full length.
    state, action, language: keys of the arrays and texts.
    batch: windows of a batch.
    decode_first: whether decoded windows are shuffled (openpi), not encoded ones (octo).
    jitter: 'ops' (one tf.image operation after the other) or 'matrix' (all as one product, as this
      project does).
    shuffle: windows in the buffer; as many as about 1.5 GB hold.
    trajectories: files, and trajectories, that are read side by side.
  """

  data: str
  views: tuple
  tiles: tuple
  composite: tuple
  frames: int
  stride: int
  chunk: int
  state: tuple
  action: tuple
  language: tuple
  batch: int
  decode_first: bool
  jitter: str
  shuffle: int
  trajectories: int = 8


def make_dataset(s: Settings) -> tf.data.Dataset:
  """Batches, forever, on one core."""
  shards = sorted(glob.glob(os.path.join(s.data, '*tfrecord*')))
  files = tf.data.Dataset.from_tensor_slices(shards).shuffle(len(shards), seed=0).repeat()
  records = files.interleave(tf.data.TFRecordDataset, cycle_length=s.trajectories, block_length=1)
  windows = records.interleave(
    lambda record: _cut_windows(s, _parse(s, record)),
    cycle_length=s.trajectories,
    block_length=1,
  )
  if s.decode_first:
    windows = windows.map(lambda window: _decode_window(s, window), num_parallel_calls=1)
  shuffled = windows.shuffle(s.shuffle, seed=0)
  finished = shuffled.map(lambda window: _finish(s, window), num_parallel_calls=1)
  batches = finished.batch(s.batch).prefetch(1)
  # One core, as all contestants; no more buffers than the one that shuffles.
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.autotune.ram_budget = 1
  return batches.with_options(options)


def _parse(s, record):
  """Arrays of one trajectory, images still encoded."""
  images = [f'steps/observation/{view}' for view in s.views]
  states = [f'steps/observation/{key}' for key in s.state]
  actions = [f'steps/{key}' for key in s.action]
  words = [f'steps/{key}' for key in s.language]
  text = tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)
  number = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
  features = dict.fromkeys(images + words, text) | dict.fromkeys(states + actions, number)
  found = tf.io.parse_single_example(record, features)
  # Arrays come flat: all steps of a trajectory in a row.
  length = tf.shape(found[images[0]])[0]

  def join(keys):
    return tf.concat([tf.reshape(found[key], [length, -1]) for key in keys], axis=1)

  return {
    'images': [found[key] for key in images],
    'state': join(states),
    'action': join(actions),
    'words': [found[key] for key in words],
  }


def _cut_windows(s, trajectory):
  steps = s.stride * tf.range(s.frames)
  span = s.stride * (s.frames - 1)
  length = tf.shape(trajectory['state'])[0]
  starts = tf.data.Dataset.range(tf.cast(length - s.chunk, tf.int64)).shuffle(1024, seed=0)

  def cut(start):
    # What is past the end of the trajectory repeats its last step.
    def shift(steps):
      return tf.minimum(tf.cast(start, tf.int32) + steps, length - 1)

    return {
      'images': tf.stack([tf.gather(view, shift(steps)) for view in trajectory['images']]),
      'state': tf.gather(trajectory['state'], shift(s.chunk * tf.range(span // s.chunk))),
      'action': tf.gather(trajectory['action'], shift(tf.range(span))),
      'words': tf.stack([words[start] for words in trajectory['words']]),
    }

  return starts.map(cut, num_parallel_calls=1)


def _decode_window(s, window):
  encoded = tf.reshape(window['images'], [-1])
  decoded = tf.reshape(_map(_decode, encoded, tf.uint8), [len(s.views), s.frames, *SIZE, 3])
  return {**window, 'images': decoded}


def _map(one, many, dtype):
  """`one` of each of `many`: images are worked on one by one, in the cache."""
  return tf.map_fn(one, many, fn_output_signature=dtype)


def _decode(encoded):
  return tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3), [*SIZE, 3])


def _finish(s, window):
  """Cropped, resized, jittered, tiled and normalized; all frames and views alike."""
  top, left = _draw(0, 1), _draw(0, 1)
  jitter = _jitter if s.jitter == 'ops' else _jitter_matrix
  # Brightness, contrast, saturation, and the turn of the hue.
  factors = [_draw(1 - width, 1 + width) for width in (0.3, 0.4, 0.5)] + [_draw(-0.08, 0.08)]

  def make_tile(image, height, width):
    image = image if s.decode_first else _decode(image)
    resized = tf.image.resize(_crop(image, top, left), [height, width]) / 255
    return tf.cast(255 * jitter(resized, *factors), tf.uint8)

  canvas = []
  for view, (row, column, height, width, repeat) in enumerate(s.tiles):
    make = functools.partial(make_tile, height=height, width=width // repeat)
    film = _map(make, window['images'][view], tf.uint8)
    canvas.append(((row, column), tf.repeat(film, repeat, axis=2)))
  return {
    'frames': _tile(canvas, s.composite),
    'state': _bound(window['state']),
    'action': _bound(window['action']),
    'words': window['words'][0],
  }


def _draw(low, high):
  return tf.random.uniform([], low, high)


def _bound(x, low=-3.0, high=3.0):
  """[low, high] to [-1, 1], clipped."""
  return tf.clip_by_value(2 * (x - low) / (high - low) - 1, -1, 1)


def _crop(image, top, left):
  """95 % of the rows and columns; `top` and `left` are shares of what is free."""
  rows, columns = (int(0.95 * n) for n in SIZE)
  row = tf.cast(tf.round(top * (SIZE[0] - rows)), tf.int32)
  column = tf.cast(tf.round(left * (SIZE[1] - columns)), tf.int32)
  return image[row : row + rows, column : column + columns]


def _jitter(image, brightness, contrast, saturation, hue):
  image = _clip(image * brightness)
  image = _clip(tf.image.adjust_contrast(image, contrast))
  image = _clip(tf.image.adjust_saturation(image, saturation))
  return _clip(tf.image.adjust_hue(image, hue))


def _clip(image):
  return tf.clip_by_value(image, 0.0, 1.0)


def _jitter_matrix(image, brightness, contrast, saturation, hue):
  luma = tf.constant([0.299, 0.587, 0.114])
  saturate = saturation * tf.eye(3) + (1 - saturation) * luma
  # The hue turns colours about the axis of greys (Rodrigues).
  angle = 2 * 3.14159265 * hue
  cross = tf.constant([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
  turn = tf.cos(angle) * tf.eye(3) + (1 - tf.cos(angle)) / 3 + tf.sin(angle) / 3**0.5 * cross
  change = brightness * contrast * tf.matmul(turn, saturate)
  gray = brightness * tf.tensordot(tf.reduce_mean(image, axis=[0, 1]), luma, 1)
  return _clip(tf.tensordot(image, tf.transpose(change), 1) + (1 - contrast) * gray)


def _tile(canvas, composite):
  """Quadrants side by side; what no view covers is black."""
  rows = {}
  for (row, column), film in canvas:
    rows.setdefault(row, {})[column] = film
  lines = []
  for row in sorted(rows):
    line = tf.concat([rows[row][column] for column in sorted(rows[row])], axis=2)
    lines.append(tf.pad(line, [[0, 0], [0, 0], [0, composite[1] - tf.shape(line)[2]], [0, 0]]))
  return tf.concat(lines, axis=1)


if __name__ == '__main__':
  settings = Settings(**json.loads(sys.argv[1]))
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  batches = iter(make_dataset(settings))
  contest.serve(lambda: len(next(batches)['frames']))
