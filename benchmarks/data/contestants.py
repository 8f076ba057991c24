"""Who is measured by `benchmarks.data`: our pipeline, its limit, and the settings of the baselines.

Each contestant is a process of its own that answers as `benchmarks.contest` wants it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import cv2
import numpy as np
from etils import epath

from benchmarks import contest
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import windows

CHUNKS = 4  # Of a window.
_KEPT = 48  # Windows that the limit decodes again and again.

_DROID = embodiments.get('droid')
_CORNERS = ((0, 0), (176, 0), (0, 320))
# DROID with a quadrant for each view: no picture is enlarged, and tf.data can tile it as fast.
QUADRANTS = dataclasses.replace(
  _DROID,
  name='benchmark',
  views=tuple(
    record_lib.View(view.key, *corner, 176, 320) for view, corner in zip(_DROID.views, _CORNERS)
  ),
)
embodiments.EMBODIMENTS[QUADRANTS.name] = QUADRANTS

DECODE = 'decode'
READ_AND_DECODE = 'read_and_decode'
MATCHED = 'tf.data, the same work'
OPERATIONS = 'tf.data, tf.image colours'
DECODED = 'tf.data, the same, shuffled decoded'
# By contestant, what it does beyond the work that is compared.
DOES_MORE = {
  'wam_jax, tiled as DROID': 'the wrist is drawn twice as wide',
  MATCHED: 'its memory is the buffer that shuffles 600 encoded windows, a choice of about 1.5 GB; '
  'ours shuffles numbers',
  OPERATIONS: 'four tf.image operations a picture (as octo has them) where the others have one '
  'matrix product; the same buffer',
  DECODED: 'the same operations; the buffer, of the same size, holds 80 decoded windows (in this '
  'order openpi reads DROID, two pictures a sample, and leaves colours to the device)',
}
PARTS = (DECODE, READ_AND_DECODE, QUADRANTS.name, _DROID.name)


def make_config(path: epath.Path, robot: str, batch: int = 2) -> cfg.TrainConfig:
  """Windows of four chunks with augmentation."""
  model = cfg.ModelConfig(
    action_dim=32,
    proprio_dim=64,
    actions_per_chunk=24,
    max_chunks=CHUNKS,
    frames_per_chunk=2,
    tokenizer=cfg.TokenizerConfig(temporal=4, spatial=8),
  )
  data = cfg.DataConfig(
    mixture={'made_up': cfg.DatasetConfig(path=str(path), embodiment=robot)},
    embodiments=(robot,),
    augment=True,
    # One core, as all contestants; tf.data has one batch ready, too.
    threads=1,
    prefetch=1,
  )
  return cfg.TrainConfig(batch_size=batch, model=model, data=data)


def serve(path: epath.Path, part: str) -> None:
  """Serves one of `PARTS`; a robot's name stands for its windows."""
  if part in (DECODE, READ_AND_DECODE):
    serve_decoding(path, from_memory=part == DECODE)
  else:
    serve_windows(path, part)


def serve_windows(path: epath.Path, robot: str) -> None:
  """The whole path: windows from disk to batches."""
  batches = pipeline.Data.open(make_config(path, robot)).train_batches()
  contest.serve(lambda: len(next(batches).sample_B2))


def serve_decoding(path: epath.Path, from_memory: bool) -> None:
  """The limit: the frames of such windows, each once, decoded from memory (or read and decoded),
  and nothing else.
  """
  cv2.setNumThreads(1)
  opened = sources.Episodes(str(path), 'train', QUADRANTS)
  anchors = windows.make_anchors(opened)
  rng = np.random.default_rng(0)

  def load():
    number, step, stop = anchors[int(rng.integers(len(anchors)))]
    episode = opened[number]
    window = windows.make_window(opened.record, CHUNKS, step, stop)
    steps = np.unique(window.frame_steps_R).tolist()
    # Read beforehand, so that nothing but decoding is left.
    if from_memory:
      keys = [view.key for view in opened.record.views]
      encoded = {key: {step: episode.encoded[key][step] for step in steps} for key in keys}
      episode = dataclasses.replace(episode, encoded=encoded)
    return episode, steps

  loaded = itertools.cycle([load() for _ in range(_KEPT)])

  def decode_next():
    episode, steps = next(loaded)
    for view in episode.encoded:
      for step in steps:
        episode.decode(view, step)
    return 1

  contest.serve(decode_next)


def list_baselines(root: epath.Path) -> dict[str, dict[str, Any]]:
  """Settings of the tf.data pipelines (`tfdata.Settings`), by name, the matched one first.

  That one does to a picture what ours does; what the others do more is in `DOES_MORE`. How many
  windows a buffer shuffles is a choice of whoever builds such a pipeline: here about 1.5 GB.
  """
  record = QUADRANTS
  common = {
    'data': str(root / 'tfrecord/1.0.0'),
    'views': [v.key for v in record.views],
    'tiles': [[v.row, v.column, v.height, v.width, v.repeat] for v in record.views],
    'composite': record.composite,
    'frames': 1 + CHUNKS * record.camera_frames_per_chunk,
    'stride': record.stride,
    'chunk': record.steps_per_chunk,
    # Several slices of a record may be of one array, which is read once.
    'state': list(dict.fromkeys(s.key for s in record.state)),
    'action': list(dict.fromkeys(s.key for s in record.action)),
    'language': record.language,
    'batch': 2,
  }
  encoded = common | {'decode_first': False, 'shuffle': 600}
  decoded = common | {'decode_first': True, 'shuffle': 80}
  return {
    MATCHED: encoded | {'jitter': 'matrix'},
    OPERATIONS: encoded | {'jitter': 'ops'},
    DECODED: decoded | {'jitter': 'ops'},
  }
