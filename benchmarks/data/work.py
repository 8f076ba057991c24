"""What `benchmarks.data` measures: contestants in turns, access to single windows, memory over a
run.
"""

from __future__ import annotations

import contextlib
import dataclasses
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

import psutil
from etils import epath

from benchmarks import contest
from benchmarks.data import contestants
from benchmarks.data import episodes as made_up
from data import convert
from wam_jax.data import frames
from wam_jax.data import pipeline
from wam_jax.data import sources

_LIMIT = 'decoding alone'
_OURS = 'wam_jax'
_BLOCK = 2**24  # Bytes that are read at once.


@dataclasses.dataclass(frozen=True)
class Match:
  """How contestants are measured.

  Attributes:
    core: the core that all of them are on.
    rounds: turns of each.
    seconds: CPU time of a turn.
  """

  core: int
  rounds: int
  seconds: float


def find_converted(root: epath.Path) -> epath.Path:
  """The dataset in the form that is read."""
  return root / 'array_record/1.0.0'


def make_dataset(root: epath.Path, episodes: int, length: int) -> None:
  """The episodes as published, in `root`/tfrecord, and as converted, in `root`/array_record."""
  published, converted = root / 'tfrecord/1.0.0', find_converted(root)
  shards = min(8, episodes)
  workers = min(shards, os.cpu_count() or 1)
  if not (published / 'dataset_info.json').exists():
    made_up.write(published, episodes, length, shards, workers)
  if not converted.exists():
    convert.convert(str(published), str(converted), workers)


def check_tensorflow(python: str) -> None:
  """Raises ValueError where the baseline could not run in `python`; an empty one is no baseline."""
  if python and not _can_import(python, 'psutil, tensorflow'):
    raise ValueError(
      f'--tensorflow_python={python} cannot import tensorflow and psutil; name a Python that can '
      "(pip install -e '.[benchmark]'), or give an empty one to go without the baseline."
    )


def _can_import(python: str, modules: str) -> bool:
  try:
    return subprocess.run([python, '-c', f'import {modules}'], capture_output=True).returncode == 0
  except OSError:
    return False


def compete(root: epath.Path, tensorflow: str, match: Match) -> list[dict[str, Any]]:
  """A row per contestant: median samples per second of the core, share of the limit, start-up,
  memory.

  The limit, decoding alone, takes a turn after each turn of each contestant.
  """
  commands = _list_commands(root, tensorflow)
  rows = []
  # The disk is not what is measured.
  _read_files(root)
  with contest.Contestant(commands[_LIMIT], [match.core]) as limit:
    for name, command in commands.items():
      print(f'{name} ...', file=sys.stderr)
      with contest.Contestant(command, [match.core]) as contestant:
        # Warm-up: caches, buffers, autotuning.
        contestant.turn(match.seconds / 2)
        limit.turn(match.seconds / 2)
        rounds = [
          (contestant.turn(match.seconds), limit.turn(match.seconds)) for _ in range(match.rounds)
        ]
      last, _ = rounds[-1]
      rows.append(
        {
          'name': name,
          'samples_per_s': statistics.median(own.rate for own, _ in rounds),
          'of_limit': statistics.median(own.rate / most.rate for own, most in rounds),
          'start_s': contestant.start_s,
          'rss_mib': last.rss_mib,
        }
      )
  return rows


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The one comparison to quote: of the same work on every picture; {} without a baseline."""
  by_name = {row['name']: row for row in rows}
  if contestants.MATCHED not in by_name:
    return {}
  # Shares of the limit, with which each took turns: what slowed the core slowed both.
  shares = [by_name[name]['of_limit'] for name in (_OURS, contestants.MATCHED)]
  return {'ours': _OURS, 'baseline': contestants.MATCHED, 'ratio': shares[0] / shares[1]}


def show_throughput(rows: Sequence[dict[str, Any]]) -> str:
  """The headline, the table, and what whoever is in it does more."""
  lines = []
  found = headline(rows)
  if found:
    lines.append(
      f'{found["ours"]}: {found["ratio"]:.2f} times the windows a CPU second of {found["baseline"]}'
    )
  lines.append(show_table(rows))
  named = [row['name'] for row in rows if row['name'] in contestants.DOES_MORE]
  lines += [f'{name}: {contestants.DOES_MORE[name]}' for name in named]
  return '\n'.join(lines)


def _list_commands(root: epath.Path, tensorflow: str) -> dict[str, list[str]]:
  ours = [sys.executable, '-m', 'benchmarks.data', f'--data={root}']
  decode, read_and_decode, quadrants, droid = contestants.PARTS
  commands = {
    _LIMIT: [*ours, f'--part={decode}'],
    'reading and decoding': [*ours, f'--part={read_and_decode}'],
    _OURS: [*ours, f'--part={quadrants}'],
    'wam_jax, tiled as DROID': [*ours, f'--part={droid}'],
  }
  if tensorflow:
    # A script, not a module: its Python may have nothing of this project.
    script = str(pathlib.Path(__file__).with_name('tfdata.py'))
    for name, settings in contestants.list_baselines(root).items():
      commands[name] = [tensorflow, script, json.dumps(settings)]
  return commands


def _read_files(root: epath.Path) -> None:
  """Reads them once, so that the kernel has them in memory."""
  for path in _list_files(root):
    with path.open('rb', buffering=0) as f:
      while f.read(_BLOCK):
        pass


def _list_files(root: epath.Path) -> list[pathlib.Path]:
  return [path for path in pathlib.Path(root).rglob('*') if path.is_file()]


def measure_access(root: epath.Path, tries: int = 15) -> list[dict[str, Any]]:
  """Milliseconds until the encoded frames of one window are there: through the frame index, and of
  a whole episode.
  """
  converted = find_converted(root)
  with tempfile.TemporaryDirectory() as directory:
    # The same dataset without its index, which is kept in a folder beside the records.
    for path in pathlib.Path(converted).iterdir():
      if path.name != frames.FOLDER:
        (pathlib.Path(directory) / path.name).symlink_to(path)
    return [
      _measure_access('one window, frame index', converted, converted, tries),
      _measure_access('one window, whole episode', epath.Path(directory), converted, tries),
    ]


def _measure_access(name: str, place: epath.Path, files: epath.Path, tries: int) -> dict[str, Any]:
  opened = sources.Episodes(str(place), 'train', contestants.QUADRANTS)
  cold_s = []
  warm_s = []
  for number in range(tries):
    # Once from the disk, then once more from the memory of the kernel.
    _drop_from_memory(files)
    cold_s.append(_time_window(opened, number % len(opened)))
    warm_s.append(_time_window(opened, number % len(opened)))
  return {
    'name': name,
    'cold_ms': 1e3 * statistics.median(cold_s),
    'warm_ms': 1e3 * statistics.median(warm_s),
  }


def _drop_from_memory(root: epath.Path) -> None:
  """The kernel forgets what it holds of these files."""
  for path in _list_files(root):
    with path.open('rb') as f:
      os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _time_window(opened: sources.Episodes, number: int) -> float:
  """Seconds until the frames of a window in the middle of an episode are there."""
  start = time.perf_counter()
  episode = opened[number]
  for view in opened.record.views:
    for step in range(20, 117, opened.record.stride):
      episode.encoded[view.key][step]
  return time.perf_counter() - start


def measure_memory(root: epath.Path, batches: int) -> list[dict[str, Any]]:
  """Resident MiB ten times over a run."""
  config = contestants.make_config(find_converted(root), contestants.QUADRANTS.name, batch=1)
  process = psutil.Process()
  rows = []
  with contextlib.closing(pipeline.Data.open(config).train_batches()) as iterator:
    for done in range(1, batches + 1):
      next(iterator)
      if done % max(1, batches // 10) == 0:
        rss_mib = process.memory_info().rss / 2**20
        rows.append({'name': f'after {done} batches', 'rss_mib': rss_mib})
        print(f'after {done} batches: {rss_mib:.0f} MiB', file=sys.stderr)
  return rows


def show_table(rows: Sequence[dict[str, Any]]) -> str:
  """Names to the left, a column per number."""
  columns = [key for key in rows[0] if key != 'name']
  lines = [f'{"":38}' + ''.join(f'{key:>16}' for key in columns)]
  for row in rows:
    cells = [_show_number(row[key]) for key in columns]
    lines.append(f'{row["name"]:38}' + ''.join(f'{cell:>16}' for cell in cells))
  return '\n'.join(lines)


def _show_number(value: float) -> str:
  return f'{value:.3g}' if value < 100 else f'{value:.0f}'
