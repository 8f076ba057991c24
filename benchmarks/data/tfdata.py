"""The baseline of `benchmarks.data`: the same windows from a tf.data pipeline as octo and openpi
build theirs.

Whole trajectories are read and cut into windows, windows are shuffled in a buffer (encoded, as octo
does, or decoded, as openpi does), frames are decoded, cropped, resized and jittered with
TensorFlow's own operations, then tiled and batched. Runs in a Python that has TensorFlow and needs
nothing else of this project: `python benchmarks/data/tfdata.py SETTINGS`, where SETTINGS is JSON with
the fields of `Settings`. Speaks the protocol of `benchmarks.contest`.
"""

from __future__ import annotations

import dataclasses
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
    data: directory of TFRecord shards.
    views: keys of the images, in the order of `tiles`.
    tiles: row, column, height, width, repeat of each view.
    composite: rows, columns.
    frames, stride: camera frames of a window and steps between two.
    chunk: steps; a window has at least one chunk, and repeats the last step of its episode to its
      full length.
    state, action, language: keys of the arrays and texts.
    batch: windows.
    decode_first: shuffle decoded windows (openpi), not encoded ones (octo).
    jitter: 'ops' (one tf.image operation after the other) or 'matrix' (all as one product, as this
      project does).
    shuffle: windows in the buffer; as many as about 1.5 GB hold.
    trajectories: read side by side.
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
  files = tf.data.Dataset.from_tensor_slices(sorted(glob.glob(os.path.join(s.data, '*tfrecord*'))))
  files = files.shuffle(len(files), seed=0).repeat()
  records = files.interleave(tf.data.TFRecordDataset, cycle_length=s.trajectories, block_length=1)
  windows = records.interleave(
    lambda record: _windows(s, _parse(s, record)), cycle_length=s.trajectories, block_length=1
  )
  if s.decode_first:
    decode_all = lambda images: tf.reshape(
      _map(_decode, tf.reshape(images, [-1]), tf.uint8), [len(s.views), s.frames, *SIZE, 3]
    )
    windows = windows.map(lambda w: {**w, 'images': decode_all(w['images'])}, num_parallel_calls=1)
  batches = windows.shuffle(s.shuffle, seed=0).map(lambda w: _finish(s, w), num_parallel_calls=1)
  batches = batches.batch(s.batch).prefetch(1)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.autotune.ram_budget = 1
  return batches.with_options(options)


def _parse(s, record):
  text = lambda: tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)
  number = lambda: tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
  images = [f'steps/observation/{view}' for view in s.views]
  arrays = [f'steps/observation/{key}' for key in s.state] + [f'steps/{key}' for key in s.action]
  words = [f'steps/{key}' for key in s.language]
  found = tf.io.parse_single_example(
    record, {**{key: text() for key in images + words}, **{key: number() for key in arrays}}
  )
  length = tf.shape(found[images[0]])[0]
  table = lambda keys: tf.concat([tf.reshape(found[key], [length, -1]) for key in keys], axis=1)
  return {
    'images': [found[key] for key in images],
    'state': table(arrays[: len(s.state)]),
    'action': table(arrays[len(s.state) :]),
    'words': [found[key] for key in words],
  }


def _windows(s, trajectory):
  steps, span = s.stride * tf.range(s.frames), s.stride * (s.frames - 1)
  length = tf.shape(trajectory['state'])[0]
  starts = tf.data.Dataset.range(tf.cast(length - s.chunk, tf.int64)).shuffle(1024, seed=0)

  def window(start):
    at = lambda steps: tf.minimum(tf.cast(start, tf.int32) + steps, length - 1)
    return {
      'images': tf.stack([tf.gather(view, at(steps)) for view in trajectory['images']]),
      'state': tf.gather(trajectory['state'], at(s.chunk * tf.range(span // s.chunk))),
      'action': tf.gather(trajectory['action'], at(tf.range(span))),
      'words': tf.stack([words[start] for words in trajectory['words']]),
    }

  return starts.map(window, num_parallel_calls=1)


def _map(one, many, dtype):
  """`one` of each of `many`: images are worked on one by one, in the cache."""
  return tf.map_fn(one, many, fn_output_signature=dtype)


def _decode(encoded):
  return tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3), [*SIZE, 3])


def _finish(s, window):
  draw = lambda low, high: tf.random.uniform([], low, high)
  top, left = draw(0, 1), draw(0, 1)
  factors = [draw(1 - width, 1 + width) for width in (0.3, 0.4, 0.5)] + [draw(-0.08, 0.08)]
  jitter = _jitter if s.jitter == 'ops' else _jitter_matrix
  canvas = []
  for view, (row, column, height, width, repeat) in enumerate(s.tiles):

    def make(image, height=height, width=width // repeat):
      image = _crop(image if s.decode_first else _decode(image), top, left)
      return tf.cast(
        255 * jitter(tf.image.resize(image, [height, width]) / 255, *factors), tf.uint8
      )

    film = _map(make, window['images'][view], tf.uint8)
    canvas.append(((row, column), tf.repeat(film, repeat, axis=2)))
  span = tf.constant([[-3.0], [3.0]])
  bound = lambda x: tf.clip_by_value(2 * (x - span[0]) / (span[1] - span[0]) - 1, -1, 1)
  return {
    'frames': _tile(canvas, s.composite),
    'state': bound(window['state']),
    'action': bound(window['action']),
    'words': window['words'][0],
  }


def _crop(image, top, left):
  rows, columns = (int(0.95 * n) for n in SIZE)
  start = lambda share, free: tf.cast(tf.round(share * free), tf.int32)
  row, column = start(top, SIZE[0] - rows), start(left, SIZE[1] - columns)
  return image[row : row + rows, column : column + columns]


def _jitter(image, brightness, contrast, saturation, hue):
  clip = lambda x: tf.clip_by_value(x, 0.0, 1.0)
  image = clip(image * brightness)
  image = clip(tf.image.adjust_contrast(image, contrast))
  image = clip(tf.image.adjust_saturation(image, saturation))
  return clip(tf.image.adjust_hue(image, hue))


def _jitter_matrix(image, brightness, contrast, saturation, hue):
  luma = tf.constant([0.299, 0.587, 0.114])
  angle = 2 * 3.14159265 * hue
  saturate = saturation * tf.eye(3) + (1 - saturation) * luma
  turn = (
    tf.cos(angle) * tf.eye(3)
    + (1 - tf.cos(angle)) / 3
    + tf.sin(angle) / 3**0.5 * tf.constant([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
  )
  gray = brightness * tf.tensordot(tf.reduce_mean(image, axis=[0, 1]), luma, 1)
  change = brightness * contrast * tf.matmul(turn, saturate)
  return tf.clip_by_value(
    tf.tensordot(image, tf.transpose(change), 1) + (1 - contrast) * gray, 0.0, 1.0
  )


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
