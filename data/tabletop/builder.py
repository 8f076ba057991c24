"""Writes tabletop expert episodes as a TFDS dataset in RLDS form: ArrayRecord shards, no TensorFlow needed.

Owns episode recording, the on-disk layout and its checks. Each shard is a pure function of (parameters, split,
shard), so any number of worker processes writes the same bytes.
"""
from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, example_serializer, file_adapters

from wam_jax.envs import tabletop

NAME = 'tabletop'
VERSION = '1.0.0'
SPLITS = {'train': 'train', 'val': 'train', 'unseen_task': 'unseen_task', 'unseen_look': 'unseen_look'}
# Evaluation uses small reset seeds; datasets start above all of them, so no evaluated scene was trained on.
FIRST_SEED = 1 << 32
EPISODES_PER_SHARD = 250
MIN_EPISODE_S = 1.6
_TAIL_STEPS = 2
_ATTEMPTS = 20
_PARAMETERS = 'build.json'
_DESCRIPTION = 'Scripted expert episodes of the wam_jax tabletop world (data/tabletop/README.md).'


@dataclasses.dataclass(frozen=True)
class BuildConfig:
  """What decides every byte of the dataset.

  Attributes:
    embodiment: key of `tabletop.ROBOTS`.
    tasks: drawn uniformly per episode.
    episodes: of the split `train`.
    other_episodes: of each other split; 0 for 2 % of `episodes`, at least one.
    split_names: which splits to write.
    seed: another seed, other episodes.
    view_size: pixels of the square views.
    max_distractors: see `TabletopEnv`.
    noise: standard deviation of the expert's action noise.
  """

  embodiment: str = 'disc'
  tasks: tuple[str, ...] = ('reach',)
  episodes: int = 8000
  other_episodes: int = 0
  split_names: tuple[str, ...] = ('train', 'val')
  seed: int = 0
  view_size: int = 32
  max_distractors: int = 2
  noise: float = 0.05

  def __post_init__(self):
    problems = []
    if self.episodes < 1 or self.other_episodes < 0:
      problems.append(f'episodes={self.episodes} must be at least 1 and other_episodes={self.other_episodes} '
                      'at least 0')
    if not 0 <= self.seed < 1 << 20:
      problems.append(f'seed={self.seed} must be 0 ... {(1 << 20) - 1}')
    if not 0 <= self.noise <= 1:
      problems.append(f'noise={self.noise} must be 0 ... 1')
    unknown = [name for name in self.split_names if name not in SPLITS]
    if unknown or not self.split_names:
      problems.append(f'split_names={self.split_names} must be some of {tuple(SPLITS)}')
    for what, names in (('tasks', self.tasks), ('split_names', self.split_names)):
      if len(set(names)) < len(names):
        problems.append(f'{what}={names} repeats a name')
    if problems:
      raise ValueError('; '.join(problems) + '.')
    make_env(self, 'train')

  @property
  def name(self) -> str:
    """TFDS config name, for instance `disc_reach`."""
    return '_'.join((self.embodiment, *self.tasks))

  def count(self, split: str) -> int:
    """Episodes of a split."""
    return self.episodes if split == 'train' else self.other_episodes or max(1, round(0.02 * self.episodes))


def make_env(config: BuildConfig, split: str) -> tabletop.TabletopEnv:
  """The world that the episodes of a dataset split come from."""
  return tabletop.TabletopEnv(config.embodiment, config.tasks, SPLITS[split], config.view_size,
                              config.max_distractors)


def dataset_path(output: str | os.PathLike[str], config: BuildConfig) -> pathlib.Path:
  """Where `build` puts the dataset: OUTPUT/tabletop/CONFIG/1.0.0."""
  return pathlib.Path(output).expanduser() / NAME / config.name / VERSION


def make_features(config: BuildConfig) -> tfds.features.FeaturesDict:
  """RLDS features; images are PNG, so pixels are exact."""
  robot, feature = tabletop.ROBOTS[config.embodiment], tfds.features
  image = functools.partial(feature.Image, shape=(config.view_size, config.view_size, 3), encoding_format='png')
  return feature.FeaturesDict({
      'steps': feature.Dataset({
          'observation': {
              'top': image(), 'wrist': image(),
              'proprio': feature.Tensor(shape=(robot.proprio_dim,), dtype=np.float32),
          },
          'action': feature.Tensor(shape=(robot.action_dim,), dtype=np.float32),
          'language_instruction': feature.Text(),
          'is_first': feature.Scalar(np.bool_),
          'is_last': feature.Scalar(np.bool_),
          'is_terminal': feature.Scalar(np.bool_),
          'reward': feature.Scalar(np.float32),
          'discount': feature.Scalar(np.float32),
      }),
      'episode_metadata': {
          'seed': feature.Scalar(np.int64),
          'task': feature.Text(),
          'embodiment': feature.Text(),
          'success': feature.Scalar(np.bool_),
      },
  })


def record_episode(env: tabletop.TabletopEnv, seed: int, noise: float) -> dict[str, Any]:
  """One expert episode as a TFDS example, images already encoded; `episode_metadata/success` may be False.

  It ends two steps after success but lasts at least 1.6 s, two chunks of every embodiment. Every step holds the
  observation and the action chosen at it; the last one's action is the expert's choice, never executed.
  """
  observation = env.reset(seed)
  act = tabletop.make_expert(env, seed, noise)
  shortest = math.ceil(MIN_EPISODE_S * env.control_hz)
  steps, tail = [], _TAIL_STEPS
  while True:
    action = act()
    done = len(steps) >= env.max_steps or (env.success and tail <= 0 and len(steps) >= shortest)
    steps.append(_step(observation, action, env, first=not steps, last=done))
    if done:
      break
    tail -= env.success
    observation = env.step(action)
  return {'steps': steps, 'episode_metadata': {
      'seed': seed, 'task': env.task, 'embodiment': env.embodiment, 'success': env.success}}


def _step(observation, action, env, first: bool, last: bool) -> dict[str, Any]:
  reached = last and env.success
  return {
      'observation': {'top': _png(observation['top']), 'wrist': _png(observation['wrist']),
                      'proprio': observation['proprio']},
      'action': action,
      'language_instruction': env.instruction,
      'is_first': first, 'is_last': last, 'is_terminal': reached,
      'reward': float(reached), 'discount': 0.0 if reached else 1.0,
  }


def _png(image: np.ndarray) -> io.BytesIO:
  return io.BytesIO(cv2.imencode('.png', image[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes())


def successful_episode(env: tabletop.TabletopEnv, config: BuildConfig, split: str, index: int) -> dict[str, Any]:
  """Episode `index` of a split: the first success among its own sequence of seeds.

  Raises:
    RuntimeError: the expert failed on all of them, which says that the world is broken.
  """
  for attempt in range(_ATTEMPTS):
    seed = episode_seed(config.seed, split, index, attempt)
    episode = record_episode(env, seed, config.noise)
    if episode['episode_metadata']['success']:
      return episode
  raise RuntimeError(f'The expert failed {_ATTEMPTS} times at episode {index} of {split} with {config}.')


def episode_seed(seed: int, split: str, index: int, attempt: int) -> int:
  """Reset seed in [2^32, 2^62]: a hash, so splits and dataset seeds do not overlap."""
  entropy = (seed, tuple(SPLITS).index(split), index, attempt)
  low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
  return FIRST_SEED + (int(high) << 29 | int(low) >> 3)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """Part of the work: episodes `first ... first + count - 1` of `split` go to `path`."""

  split: str
  path: str
  first: int
  count: int


def _write_shard(config: BuildConfig, shard: _Shard, report: Callable[[int], None]) -> int:
  """Writes one ArrayRecord file; its payload bytes."""
  cv2.setNumThreads(1)
  features, env = make_features(config), make_env(config, shard.split)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  total = 0

  def examples() -> Iterator[tuple[int, bytes]]:
    nonlocal total
    for index in range(shard.first, shard.first + shard.count):
      example = features.encode_example(successful_episode(env, config, shard.split, index))
      # `features.serialize_example` leaves the order of the proto's map to the process; this fixes the bytes.
      record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
      total += len(record)
      report(1)
      yield index, record

  file_adapters.ArrayRecordFileAdapter.write_examples(shard.path, examples())
  return total


class _Progress:
  """Episodes done, rate and time left on stderr: rewritten in place on a terminal, else a line every ten seconds."""

  def __init__(self, total: int):
    self._total, self._done, self._start, self._shown = total, 0, time.monotonic(), time.monotonic()
    self._in_place = sys.stderr.isatty()

  def __call__(self, count: int) -> None:
    self._done += count
    now = time.monotonic()
    if now - self._shown < (0.5 if self._in_place else 10.0) and self._done < self._total:
      return
    self._shown = now
    rate = self._done / max(now - self._start, 1e-6)
    left = (self._total - self._done) / max(rate, 1e-6)
    line = f'{self._done}/{self._total} episodes, {rate:.0f}/s, {left:.0f} s left'
    finished = self._done == self._total
    sys.stderr.write((f'\r{line}   ' + '\n' * finished) if self._in_place else f'{line}\n')
    sys.stderr.flush()


def build(output: str | os.PathLike[str], config: BuildConfig, workers: int = 1) -> tuple[pathlib.Path, bool]:
  """Writes the dataset unless it is there; appears under its final name only when complete.

  Returns:
    Its path, and whether it was made by this call.
  Raises:
    ValueError: a dataset with other parameters is at that path; or `workers` below 1.
  """
  if workers < 1:
    raise ValueError(f'workers={workers} must be at least 1.')
  path = dataset_path(output, config)
  if path.exists():
    _check_same(path, config)
    return path, False
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{VERSION}.incomplete.', dir=path.parent))
  try:
    _write(partial, config, workers)
    partial.chmod(0o755)
    _publish(partial, path, config)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return path, True


def _publish(partial: pathlib.Path, path: pathlib.Path, config: BuildConfig) -> None:
  """Gives the dataset its name; when another process was first, its result is kept if it is the same."""
  try:
    partial.rename(path)
  except OSError:
    if not path.exists():
      raise
    _check_same(path, config)


def _check_same(path: pathlib.Path, config: BuildConfig) -> None:
  wanted = _plain(config)
  try:
    found = json.loads((path / _PARAMETERS).read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(f'{path} exists but was not written by data.tabletop ({error}); give another --output '
                     'or move it away.') from error
  differing = [f'{key}={found.get(key)!r} there, {value!r} asked' for key, value in wanted.items()
               if found.get(key) != value]
  if differing:
    raise ValueError(f'{path} was made with other parameters: ' + '; '.join(differing)
                     + '. Ask for the same ones, give another --output, or remove it.')


def _plain(config: BuildConfig) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def _write(directory: pathlib.Path, config: BuildConfig, workers: int) -> None:
  templates = {split: tfds.core.ShardedFileTemplate(
      data_dir=directory, dataset_name=NAME, split=split, filetype_suffix='array_record',
      template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE) for split in config.split_names}
  shards = [shard for split in config.split_names
            for shard in _plan_shards(split, config.count(split), templates[split])]
  sizes = _run(config, shards, workers)
  split_infos = []
  for split in config.split_names:
    mine = [(shard, size) for shard, size in zip(shards, sizes) if shard.split == split]
    split_infos.append(tfds.core.SplitInfo(
        name=split, shard_lengths=[shard.count for shard, _ in mine], num_bytes=sum(size for _, size in mine),
        filename_template=templates[split]))
  info = tfds.core.DatasetInfo(
      builder=dataset_info.DatasetIdentity(
          name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(directory), module_name='data.tabletop',
          config_name=config.name, config_description=_DESCRIPTION),
      features=make_features(config), description=_DESCRIPTION)
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  info.set_splits(tfds.core.splits.SplitDict(split_infos))
  info.write_to_directory(directory)
  (directory / _PARAMETERS).write_text(json.dumps(_plain(config), indent=2) + '\n')


def _plan_shards(split: str, episodes: int, template: tfds.core.ShardedFileTemplate) -> list[_Shard]:
  count = math.ceil(episodes / EPISODES_PER_SHARD)
  bounds = [episodes * i // count for i in range(count + 1)]
  return [_Shard(split, os.fspath(template.sharded_filepath(shard_index=i, num_shards=count)), first, last - first)
          for i, (first, last) in enumerate(itertools.pairwise(bounds))]


_report_queue: Any = None


def _start_worker(queue: Any) -> None:
  global _report_queue
  _report_queue = queue


def _work(config: BuildConfig, shard: _Shard) -> int:
  return _write_shard(config, shard, _report_queue.put)


def _run(config: BuildConfig, shards: list[_Shard], workers: int) -> list[int]:
  """Payload bytes of every shard, written in this process or in several."""
  progress = _Progress(sum(shard.count for shard in shards))
  workers = min(workers, len(shards))
  if workers == 1:
    return [_write_shard(config, shard, progress) for shard in shards]
  # Spawned, not forked: the caller may have started threads (JAX, grpc).
  context = multiprocessing.get_context('spawn')
  with context.Manager() as manager:
    queue = manager.Queue()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (queue,)) as pool:
      futures = [pool.submit(_work, config, shard) for shard in shards]
      try:
        while not all(future.done() for future in futures):
          concurrent.futures.wait(futures, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION)
          failed = [f for f in futures if f.done() and f.exception()]
          if failed:
            failed[0].result()
          while not queue.empty():
            progress(queue.get())
        while not queue.empty():
          progress(queue.get())
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
      return [future.result() for future in futures]
