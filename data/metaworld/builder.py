"""Makes Meta-World expert episodes and has them written as a TFDS dataset in RLDS form.

Owns parameters, seeds and splits; `data/expert.py` records and `data/rlds.py` writes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import expert
from data import rlds
from data import video
from wam_jax.envs import metaworld

NAME = 'metaworld'
SPLITS = 'train', 'val'
EPISODES_PER_SHARD = 100
MIN_EPISODE_S = 0.8  # Two chunks of the embodiment `metaworld`.
_DESCRIPTION = 'Scripted expert episodes of Meta-World (data/metaworld/README.md).'


@dataclasses.dataclass(frozen=True)
class BuildConfig:
  """What decides every byte of the dataset.

  Attributes:
    tasks: names of `metaworld.TASKS`.
    episodes: the number of episodes of each task in the split `train`.
    val_episodes: the number of each task in the split `val`; other seeds, the same tasks.
    seed: another seed gives other episodes.
    view_size: the pixels of the square views.
    noise: the standard deviation of the expert's action noise.
    backend: what draws, 'egl' or 'osmesa'.
  """

  tasks: tuple[str, ...] = tuple(metaworld.TASKS)
  episodes: int = 20
  val_episodes: int = 1
  seed: int = 0
  view_size: int = 128
  noise: float = 0.1
  backend: str = 'egl'

  def __post_init__(self):
    problems = []  # All of them are told at once.
    if self.episodes < 1 or self.val_episodes < 1:
      problems.append(
        f'episodes={self.episodes} and val_episodes={self.val_episodes} must be at least 1'
      )
    if not 0 <= self.seed < 1 << 20:
      problems.append(f'seed={self.seed} must be 0 ... {(1 << 20) - 1}')
    if not 0 <= self.noise <= 1:
      problems.append(f'noise={self.noise} must be 0 ... 1')
    if len(set(self.tasks)) < len(self.tasks):
      problems.append(f'tasks={self.tasks} repeats a name')
    if problems:
      raise ValueError('; '.join(problems) + '.')
    make_env(self, self.tasks)

  @property
  def name(self) -> str:
    """TFDS config name: `all`, the tasks, or, of more than three, their number and a hash."""
    if set(self.tasks) == set(metaworld.TASKS):
      return 'all'
    names = '_'.join(self.tasks)
    digest = hashlib.sha256(names.encode()).hexdigest()
    return names if len(self.tasks) <= 3 else f'{len(self.tasks)}_tasks_{digest[:8]}'

  def count(self, split: str) -> int:
    """The number of episodes of each task in a split."""
    return self.episodes if split == 'train' else self.val_episodes


def make_env(config: BuildConfig, tasks: tuple[str, ...]) -> metaworld.MetaworldEnv:
  """The world that the episodes come from."""
  return metaworld.MetaworldEnv(tasks, config.view_size, config.backend)


def build(
  output: str | os.PathLike[str], config: BuildConfig, workers: int = 1
) -> tuple[pathlib.Path, bool]:
  """Writes the dataset to OUTPUT/metaworld/CONFIG/1.0.0 unless it is there; see `rlds.write`.

  Returns:
    Its path, and whether it was made by this call.
  Raises:
    ValueError: a dataset with other parameters is at that path; `workers` below 1; or nothing can
      be drawn.
  """
  path = rlds.make_output_path(output) / NAME / config.name / rlds.VERSION
  dataset = rlds.Dataset(
    name=NAME,
    config=config.name,
    module='data.metaworld',
    description=_DESCRIPTION,
    features=make_features(config),
    open_split=functools.partial(_open_split, config),
    sizes={split: (1,) * (config.count(split) * len(config.tasks)) for split in SPLITS},
    unit='episodes',
    shard_size=EPISODES_PER_SHARD,
    min_shards=rlds.MIN_SHARDS,
    parameters=dataclasses.asdict(config),
  )
  return path, rlds.write(path, dataset, workers)


def make_features(config: BuildConfig) -> tfds.features.FeaturesDict:
  """RLDS features; images are JPEG."""
  return expert.make_features(
    metaworld.VIEWS, config.view_size, 'jpeg', proprio_dim=4, action_dim=4
  )


def _open_split(config: BuildConfig, split: str) -> Callable[[int], dict[str, Any]]:
  """Episodes are ordered by task, so that a world is loaded once for all of its episodes in a
  shard.
  """

  @functools.lru_cache(maxsize=1)
  def load_world(task: str) -> metaworld.MetaworldEnv:
    return make_env(config, (task,))

  def make_episode(index: int) -> dict[str, Any]:
    task = config.tasks[index // config.count(split)]
    return record_success(load_world(task), config, split, index)

  return make_episode


def record_success(
  env: metaworld.MetaworldEnv, config: BuildConfig, split: str, index: int
) -> dict[str, Any]:
  """Episode `index` of a split: the first success among its own sequence of seeds."""
  return expert.record_success(
    functools.partial(record_episode, env, noise=config.noise),
    entropy=(config.seed, SPLITS.index(split), index),
    what=f'episode {index} of {split} with {config}',
  )


def record_episode(env: metaworld.MetaworldEnv, seed: int, noise: float) -> dict[str, Any]:
  """One expert episode of at least 0.8 s; see `expert.record_episode`."""
  observation = env.reset(seed)
  return expert.record_episode(
    env,
    observation,
    act=metaworld.make_expert(env, seed, noise),
    seed=seed,
    shortest_s=MIN_EPISODE_S,
    encode=_to_jpeg,
  )


def _to_jpeg(image: np.ndarray) -> io.BytesIO:
  bgr = image[..., ::-1]
  return video.to_jpeg(bgr)
