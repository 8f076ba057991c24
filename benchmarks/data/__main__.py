"""How fast windows come out of a dataset, against a tf.data pipeline and against decoding alone, on
one core.

python -m benchmarks.data --tensorflow_python=PYTHON [--json=FILE]

A window has DROID's arrays: three 180 x 320 JPEG views, 33 frames, each cropped, resized, jittered
and tiled to 352 x 640 (a quadrant each, or as DROID does), with its states, actions and prompt. The
dataset is made on first use (benchmarks/data/episodes.py). The baseline needs tensorflow-cpu, here or in
the Python named (pip install -e '.[benchmark]').
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import psutil
from absl import flags
from etils import epath

from benchmarks import contest
from benchmarks.data import episodes as made_up
from data import convert
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import embodiments
from wam_jax.data import frames
from wam_jax.data import pipeline
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import windows

_DATA = flags.DEFINE_string(
  'data', f'{presets.DATA_ROOT}/benchmark', 'Directory of the dataset, made if missing: 2.7 GB.'
)
_EPISODES = flags.DEFINE_integer('episodes', 40, 'Episodes, if the dataset is made.', 1)
_STEPS = flags.DEFINE_integer(
  'steps', 500, 'Steps of an episode, about, if the dataset is made.', 120
)
_TENSORFLOW = flags.DEFINE_string(
  'tensorflow_python',
  sys.executable,
  'Python with tensorflow-cpu and psutil; empty for no baseline.',
)
_CORE = flags.DEFINE_integer('core', 0, 'The core that all are measured on.', 0)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each.', 1)
_SECONDS = flags.DEFINE_float('seconds', 6.0, 'CPU time of a turn.', 0.1)
_MEMORY = flags.DEFINE_integer(
  'memory_batches', 0, 'If positive, only memory is measured, over that many batches.', 0
)
_PART = flags.DEFINE_enum(
  'part',
  '',
  ('', 'decode', 'read_and_decode', 'benchmark', 'droid'),
  'For the program itself: what this process measures, decoding or the windows of a robot.',
)
cli.define_json()

CHUNKS = 4
_DROID = embodiments.get('droid')
_CORNERS = ((0, 0), (176, 0), (0, 320))
QUADRANTS = dataclasses.replace(
  _DROID,
  name='benchmark',
  views=tuple(
    record_lib.View(view.key, *corner, 176, 320) for view, corner in zip(_DROID.views, _CORNERS)
  ),
)
embodiments.EMBODIMENTS[QUADRANTS.name] = QUADRANTS


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
  dataset = cfg.DatasetConfig(path=str(path), embodiment=robot)
  return cfg.TrainConfig(
    batch_size=batch,
    model=model,
    data=cfg.DataConfig(
      mixture={'made_up': dataset}, embodiments=(robot,), augment=True, threads=1, prefetch=1
    ),
  )


def make_dataset(root: epath.Path, episodes: int, length: int) -> None:
  """The episodes as published, in `root`/tfrecord, and as converted, in `root`/array_record."""
  published, converted = root / 'tfrecord/1.0.0', root / 'array_record/1.0.0'
  shards = min(8, episodes)
  workers = min(shards, os.cpu_count() or 1)
  if not (published / 'dataset_info.json').exists():
    made_up.write(published, episodes, length, shards, workers)
  if not converted.exists():
    convert.convert(str(published), str(converted), workers)


def serve_pipeline(path: epath.Path, robot: str) -> None:
  """The whole path: windows from disk to batches."""
  batches = pipeline.Data.open(make_config(path, robot)).train_batches()
  contest.serve(lambda: len(next(batches).sample_B2))


def serve_decode(path: epath.Path, from_memory: bool, num: int = 48) -> None:
  """The limit: the frames of such windows, each once, decoded from memory (or read and decoded),
  and nothing else.
  """
  cv2.setNumThreads(1)
  opened = sources.Episodes(str(path), 'train', QUADRANTS)
  anchors, rng = windows.make_anchors(opened), np.random.default_rng(0)

  def load():
    number, step, stop = anchors[int(rng.integers(len(anchors)))]
    episode, window = opened[number], windows.make_window(opened.record, CHUNKS, step, stop)
    steps = np.unique(window.frame_steps_R).tolist()
    if not from_memory:
      return episode, steps
    encoded = {
      v.key: {step: episode.encoded[v.key][step] for step in steps} for v in opened.record.views
    }
    return dataclasses.replace(episode, encoded=encoded), steps

  loaded = itertools.cycle([load() for _ in range(num)])

  def work():
    episode, steps = next(loaded)
    for view in episode.encoded:
      for step in steps:
        episode.decode(view, step)
    return 1

  contest.serve(work)


def baselines(root: epath.Path) -> dict[str, dict[str, Any]]:
  """Settings of the tf.data pipelines, by name; each buffer holds about 1.5 GB."""
  record = QUADRANTS
  common = dict(
    data=str(root / 'tfrecord/1.0.0'),
    views=[v.key for v in record.views],
    tiles=[[v.row, v.column, v.height, v.width, v.repeat] for v in record.views],
    composite=record.composite,
    frames=1 + CHUNKS * record.camera_frames_per_chunk,
    stride=record.stride,
    chunk=record.steps_per_chunk,
    state=list(dict.fromkeys(s.key for s in record.state)),
    action=list(dict.fromkeys(s.key for s in record.action)),
    language=record.language,
    batch=2,
  )
  encoded, decoded = dict(decode_first=False, shuffle=600), dict(decode_first=True, shuffle=80)
  return {
    'tf.data, shuffles encoded (octo)': {**common, **encoded, 'jitter': 'ops'},
    'tf.data, shuffles decoded (openpi)': {**common, **decoded, 'jitter': 'ops'},
    'the same as octo, colours by matrix': {**common, **encoded, 'jitter': 'matrix'},
  }


def compete(
  root: epath.Path, tensorflow: str, core: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
  """A row per contestant: median samples per second of the core, share of the limit, start-up,
  memory.
  """
  part = lambda name: [sys.executable, '-m', 'benchmarks.data', f'--part={name}', f'--data={root}']
  commands = {
    'decoding alone': part('decode'),
    'reading and decoding': part('read_and_decode'),
    'wam_jax': part('benchmark'),
    'wam_jax, tiled as DROID': part('droid'),
  }
  if tensorflow:
    script = str(pathlib.Path(__file__).with_name('tfdata.py'))
    commands |= {
      name: [tensorflow, script, json.dumps(settings)] for name, settings in baselines(root).items()
    }
  turns, starts = {}, {}
  _read_files(root)
  with contest.Contestant(commands['decoding alone'], [core]) as limit:
    for name, command in commands.items():
      print(f'{name} ...', file=sys.stderr)
      with contest.Contestant(command, [core]) as contestant:
        starts[name] = contestant.start_s
        contestant.turn(seconds / 2)  # Warm-up: caches, buffers, autotuning.
        limit.turn(seconds / 2)
        turns[name] = [(contestant.turn(seconds), limit.turn(seconds)) for _ in range(rounds)]
  median = lambda name, value: statistics.median(value(*pair) for pair in turns[name])
  return [
    dict(
      name=name,
      samples_per_s=median(name, lambda mine, limit: mine.rate),
      of_limit=median(name, lambda mine, limit: mine.rate / limit.rate),
      start_s=starts[name],
      rss_mib=turns[name][-1][0].rss_mib,
    )
    for name in commands
  ]


def _read_files(root: epath.Path) -> None:
  """So that the kernel has them: the disk is not what is measured."""
  for file in pathlib.Path(root).rglob('*'):
    if file.is_file():
      with file.open('rb', buffering=0) as f:
        while f.read(1 << 24):
          pass


def measure_access(path: epath.Path, tries: int = 15) -> list[dict[str, Any]]:
  """Milliseconds until the encoded frames of one window are there: through the frame index, and of
  a whole episode.
  """
  rows = []
  with tempfile.TemporaryDirectory() as directory:
    for file in pathlib.Path(path).iterdir():
      if file.name != frames.FOLDER:
        (pathlib.Path(directory) / file.name).symlink_to(file)
    for name, place in (
      ('one window, frame index', path),
      ('one window, whole episode', directory),
    ):
      opened = sources.Episodes(str(place), 'train', QUADRANTS)
      cold, warm = zip(*(_access(path, opened, number % len(opened)) for number in range(tries)))
      rows.append(
        dict(
          name=name, cold_ms=1e3 * statistics.median(cold), warm_ms=1e3 * statistics.median(warm)
        )
      )
  return rows


def _access(path: epath.Path, opened: sources.Episodes, number: int) -> tuple[float, float]:
  """Seconds when the kernel has none of the files in memory, and again."""

  def read():
    start = time.perf_counter()
    episode = opened[number]
    for view in opened.record.views:
      for step in range(20, 117, opened.record.stride):
        episode.encoded[view.key][step]
    return time.perf_counter() - start

  for file in pathlib.Path(path).rglob('*'):
    if file.is_file():
      with file.open('rb') as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  return read(), read()


def measure_memory(path: epath.Path, batches: int) -> list[dict[str, Any]]:
  """Resident MiB ten times over a run."""
  process, rows = psutil.Process(), []
  with contextlib.closing(
    pipeline.Data.open(make_config(path, QUADRANTS.name, batch=1)).train_batches()
  ) as iterator:
    for done in range(1, batches + 1):
      next(iterator)
      if done % max(1, batches // 10) == 0:
        rows.append(dict(name=f'after {done} batches', rss_mib=process.memory_info().rss / 2**20))
        print(f'{rows[-1]["name"]}: {rows[-1]["rss_mib"]:.0f} MiB', file=sys.stderr)
  return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
  """Names to the left, a column per number."""
  columns = [key for key in rows[0] if key != 'name']
  print(f'{"":38}' + ''.join(f'{key:>16}' for key in columns))
  for row in rows:
    numbers = (f'{row[key]:.3g}' if row[key] < 100 else f'{row[key]:.0f}' for key in columns)
    print(f'{row["name"]:38}' + ''.join(f'{number:>16}' for number in numbers))


def _check_tensorflow(python: str) -> None:
  try:
    done = python and subprocess.run(
      [python, '-c', 'import psutil, tensorflow'], capture_output=True
    )
    found = not python or done.returncode == 0
  except OSError:
    found = False
  if not found:
    raise ValueError(
      f'--tensorflow_python={python} cannot import tensorflow and psutil; name a Python that can '
      "(pip install -e '.[benchmark]'), or give an empty one to go without the baseline."
    )


def main(unused_argv: list[str]) -> None:
  root = epath.Path(_DATA.value).expanduser()
  converted = root / 'array_record/1.0.0'
  if _PART.value:
    if 'decode' in _PART.value:
      return serve_decode(converted, from_memory=_PART.value == 'decode')
    return serve_pipeline(converted, _PART.value)
  if not _MEMORY.value:
    _check_tensorflow(_TENSORFLOW.value)
  make_dataset(root, _EPISODES.value, _STEPS.value)
  if _MEMORY.value:
    tables = {'memory': measure_memory(converted, _MEMORY.value)}
  else:
    rows = compete(root, _TENSORFLOW.value, _CORE.value, _ROUNDS.value, _SECONDS.value)
    tables = {'throughput': rows, 'access': measure_access(converted)}
  for rows in tables.values():
    print_table(rows)
  cli.write_json(tables)


if __name__ == '__main__':
  cli.keep_memory()
  cli.run(main)
