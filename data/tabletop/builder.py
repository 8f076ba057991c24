"""Makes tabletop expert episodes and has them written as a TFDS dataset in RLDS form.

Owns parameters, seeds, splits and recording; `data/rlds.py` writes.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data import expert
from data import rlds
from wam_jax.envs import tabletop

NAME = 'tabletop'
# A split of the dataset to the split of the world that its scenes come from.
SPLITS = {
  'train': 'train',
  'val': 'train',
  'unseen_task': 'unseen_task',
  'unseen_look': 'unseen_look',
}
EPISODES_PER_SHARD = 250
MIN_EPISODE_S = 1.6  # Two chunks of every tabletop robot.
_MOVING = 'reach_moving'
_MIN_MOVING_S = 4.0  # To follow is shown for longer than it counts.
# Where the target moves. Of what a robot is committed to while its policy thinks, some is wrong:
# that, and how it is mended, must be in the data.
_ASTRAY = tabletop.Astray()
_DESCRIPTION = 'Scripted expert episodes of the wam_jax tabletop world (data/tabletop/README.md).'


@dataclasses.dataclass(frozen=True)
class BuildConfig:
  """What decides every byte of the dataset.

  Attributes:
    embodiment: a key of `tabletop.ROBOTS`.
    tasks: the tasks, drawn uniformly per episode.
    episodes: the number of episodes of the split `train`.
    other_episodes: the number of each other split; 0 for 2 % of `episodes`, at least one.
    split_names: the splits to write.
    seed: another seed gives other episodes.
    view_size: the pixels of the square views.
    max_distractors: see `TabletopEnv`.
    noise: the standard deviation of the expert's action noise.
    light: see `TabletopEnv`; of the tasks with a lamp.
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
  light: float = tabletop.LIGHT

  def __post_init__(self):
    problems = []  # All of them are told at once.
    if self.episodes < 1 or self.other_episodes < 0:
      problems.append(
        f'episodes={self.episodes} must be at least 1 and other_episodes={self.other_episodes} '
        'at least 0'
      )
    if not 0 <= self.seed < 1 << 20:
      problems.append(f'seed={self.seed} must be 0 ... {(1 << 20) - 1}')
    if not 0 <= self.noise <= 1:
      problems.append(f'noise={self.noise} must be 0 ... 1')
    if self.light != tabletop.LIGHT and not self.has_lamp:
      problems.append(f'light={self.light} is for {tabletop.PANEL_TASKS}, not tasks={self.tasks}')
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
  def has_lamp(self) -> bool:
    """Whether any of the tasks is about switches."""
    return not set(self.tasks).isdisjoint(tabletop.PANEL_TASKS)

  @property
  def has_drift(self) -> bool:
    """Whether the target of any of the tasks moves."""
    return _MOVING in self.tasks

  @property
  def name(self) -> str:
    """TFDS config name, for instance `disc_reach`; another light than usual is part of it."""
    light = () if self.light == tabletop.LIGHT else (f'light{self.light:g}',)
    return '_'.join((self.embodiment, *self.tasks, *light))

  @property
  def parameters(self) -> dict[str, Any]:
    """What `build.json` keeps: all that decides the bytes, of these tasks. A dataset made by other
    rules of what drifts is another dataset, and is refused; one without lamp is as it was before
    there were lamps.
    """
    parameters = dataclasses.asdict(self)
    if not self.has_lamp:
      del parameters['light']
    if self.has_drift:
      parameters['drift'] = {'speed': tabletop.DRIFT_SPEED, 'shortest_s': _MIN_MOVING_S}
      parameters['astray'] = dataclasses.asdict(_ASTRAY)
    return parameters

  def count(self, split: str) -> int:
    """The number of episodes of a split."""
    if split == 'train':
      return self.episodes
    return self.other_episodes or max(1, round(0.02 * self.episodes))


def make_env(config: BuildConfig, split: str) -> tabletop.TabletopEnv:
  """The world that the episodes of a dataset split come from."""
  return tabletop.TabletopEnv(
    config.embodiment,
    config.tasks,
    split=SPLITS[split],
    view_size=config.view_size,
    max_distractors=config.max_distractors,
    conditions=tabletop.Conditions(light=config.light),
  )


def dataset_path(output: str | os.PathLike[str], config: BuildConfig) -> pathlib.Path:
  """Where `build` puts the dataset: OUTPUT/tabletop/CONFIG/1.0.0."""
  return rlds.make_output_path(output) / NAME / config.name / rlds.VERSION


def make_features(config: BuildConfig) -> tfds.features.FeaturesDict:
  """RLDS features; images are PNG, so pixels are exact."""
  robot = tabletop.ROBOTS[config.embodiment]
  return expert.make_features(
    ('top', 'wrist'),
    config.view_size,
    'png',
    robot.proprio_dim,
    robot.action_dim,
    has_given=config.has_drift,
  )


def record_episode(env: tabletop.TabletopEnv, seed: int, noise: float) -> dict[str, Any]:
  """One expert episode of at least 1.6 s, two chunks of every embodiment, of `reach_moving`
  of its whole time; see `expert.record_episode`.
  """
  observation = env.reset(seed)
  act = tabletop.make_expert(env, seed, noise, _ASTRAY)
  return expert.record_episode(
    env,
    observation,
    act=act,
    seed=seed,
    shortest_s=MIN_EPISODE_S if env.drift is None else _MIN_MOVING_S,
    encode=_to_png,
    is_given=(lambda: act.is_led) if _MOVING in env.tasks else None,
  )


def _to_png(image: np.ndarray) -> io.BytesIO:
  bgr = image[..., ::-1]
  fast = (cv2.IMWRITE_PNG_COMPRESSION, 1)
  return io.BytesIO(cv2.imencode('.png', bgr, fast)[1].tobytes())


def record_success(
  env: tabletop.TabletopEnv, config: BuildConfig, split: str, index: int
) -> dict[str, Any]:
  """Episode `index` of a split: the first success among its own sequence of seeds."""
  return expert.record_success(
    functools.partial(record_episode, env, noise=config.noise),
    entropy=(config.seed, tuple(SPLITS).index(split), index),
    what=f'episode {index} of {split} with {config}',
  )


def build(
  output: str | os.PathLike[str], config: BuildConfig, workers: int = 1
) -> tuple[pathlib.Path, bool]:
  """Writes the dataset unless it is there; appears under its final name only when complete.

  Returns:
    Its path, and whether it was made by this call.
  Raises:
    ValueError: a dataset with other parameters is at that path; or `workers` below 1.
  """
  path = dataset_path(output, config)
  dataset = rlds.Dataset(
    name=NAME,
    config=config.name,
    module='data.tabletop',
    description=_DESCRIPTION,
    features=make_features(config),
    open_split=functools.partial(_open_split, config),
    sizes={split: (1,) * config.count(split) for split in config.split_names},
    unit='episodes',
    shard_size=EPISODES_PER_SHARD,
    min_shards=1,
    parameters=config.parameters,
  )
  return path, rlds.write(path, dataset, workers)


def _open_split(config: BuildConfig, split: str) -> Callable[[int], dict[str, Any]]:
  return functools.partial(record_success, make_env(config, split), config, split)
