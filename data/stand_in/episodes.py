"""Episodes with the keys, sizes and rates of DROID 1.0.1, of the simulated arm.

Owns what a step holds; `data/rlds.py` writes, and the world is `wam_jax/envs/tabletop`.
"""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data import expert
from data import rlds
from wam_jax.envs import tabletop

ROWS, COLUMNS = 180, 320  # Of each camera.
JOINTS = 7
SHORTEST_S = 7.0  # A window of training is 6.6 s.
NOISE = 0.05  # Of the expert's actions, as in the tabletop's datasets.
# The simulated arm has two joints: these, and five mixtures, so that each number moves.
_MIX = np.stack([np.cos(np.arange(JOINTS)), np.sin(np.arange(JOINTS))], axis=1)
_DESCRIPTION = "Episodes of the simulated arm under DROID's keys (data/stand_in/README.md)."


def build(output: pathlib.Path, episodes: int, seed: int) -> pathlib.Path:
  """Writes OUTPUT/droid/1.0.0 unless it is there; returns its path.

  Raises:
    ValueError: a dataset with other parameters is at that path.
  """
  path = rlds.make_output_path(output) / 'droid' / rlds.VERSION
  dataset = rlds.Dataset(
    name='droid',
    config='',
    module='data.stand_in',
    description=_DESCRIPTION,
    features=make_features(),
    open_split=functools.partial(_open_split, seed),
    sizes={'train': (1,) * episodes},
    unit='episodes',
    shard_size=episodes,
    min_shards=1,
    parameters={'episodes': episodes, 'seed': seed},
  )
  rlds.write(path, dataset)
  return path


def make_features() -> tfds.features.FeaturesDict:
  """What the record `droid` reads, and the flags of RLDS."""
  f = tfds.features
  image = f.Image(shape=(ROWS, COLUMNS, 3), dtype=np.uint8, encoding_format='jpeg')
  arm = {
    'joint_position': f.Tensor(shape=(JOINTS,), dtype=np.float64),
    'gripper_position': f.Tensor(shape=(1,), dtype=np.float64),
  }
  cameras = ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
  steps = {
    'observation': {**arm, **dict.fromkeys(cameras, image)},
    'action_dict': arm,
    'language_instruction': f.Text(),
    'language_instruction_2': f.Text(),
    'language_instruction_3': f.Text(),
    'is_first': f.Scalar(np.bool_),
    'is_last': f.Scalar(np.bool_),
    'is_terminal': f.Scalar(np.bool_),
    'reward': f.Scalar(np.float32),
    'discount': f.Scalar(np.float32),
  }
  metadata = {'recording_folderpath': f.Text(), 'file_path': f.Text()}
  return f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': metadata})


def _open_split(seed: int, unused_split: str) -> Callable[[int], dict[str, Any]]:
  env = tabletop.TabletopEnv('arm', ('place',))
  return functools.partial(_make_episode, env, seed)


def _make_episode(env: tabletop.TabletopEnv, seed: int, index: int) -> dict[str, Any]:
  """One DROID episode as a TFDS example."""
  recorded = expert.record_success(
    functools.partial(_record, env), entropy=(seed, index), what=f'episode {index}'
  )
  place = f'stand_in/success/episode_{index}'
  return {
    'steps': _rename(recorded['steps'], recorded['views']),
    'episode_metadata': {
      'recording_folderpath': f'{place}/recordings/MP4',
      'file_path': f'{place}/trajectory.h5',
    },
  }


def _record(env: tabletop.TabletopEnv, seed: int) -> dict[str, Any]:
  """An episode as the tabletop's, with what three cameras saw at each step as `views`."""
  observation = env.reset(seed)
  choose = tabletop.make_expert(env, seed, NOISE)
  views = []

  def act() -> np.ndarray:
    views.append(_look(env))
    return choose()

  # The world's own views are not kept.
  episode = expert.record_episode(
    env,
    observation,
    act=act,
    seed=seed,
    shortest_s=SHORTEST_S,
    encode=lambda view: io.BytesIO(),
  )
  return episode | {'views': views}


def _look(env: tabletop.TabletopEnv) -> dict[str, io.BytesIO]:
  """Two cameras on opposite sides of the table, and one on the wrist."""
  scene = env.render(COLUMNS)
  return {
    'exterior_image_1_left': _encode(scene),
    'exterior_image_2_left': _encode(scene[::-1, ::-1]),
    'wrist_image_left': _encode(env.render(COLUMNS, 'wrist')),
  }


def _encode(square: np.ndarray) -> io.BytesIO:
  bgr = cv2.resize(square, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)[..., ::-1]
  return io.BytesIO(cv2.imencode('.jpg', bgr)[1].tobytes())


def _rename(
  steps: list[dict[str, Any]], views: list[dict[str, io.BytesIO]]
) -> list[dict[str, Any]]:
  """The steps of a tabletop episode with DROID's keys; what is commanded is where the arm is one
  step later, and a grip that closes or opens.
  """
  arms_T = [_describe(step['observation']['proprio']) for step in steps]
  renamed = []
  for step, seen, arm, later in zip(steps, views, arms_T, [*arms_T[1:], arms_T[-1]]):
    words = step['language_instruction']
    closes = float(step['action'][-1] > 0)
    commanded = later | {'gripper_position': np.array([closes])}
    flags = {key: step[key] for key in ('is_first', 'is_last', 'is_terminal', 'reward', 'discount')}
    renamed.append(
      {
        'observation': {**arm, **seen},
        'action_dict': commanded,
        'language_instruction': words,
        'language_instruction_2': words,
        'language_instruction_3': words,
        **flags,
      }
    )
  return renamed


def _describe(proprio_X: np.ndarray) -> dict[str, np.ndarray]:
  """Joints and gripper, 0 open, 1 closed, of the arm's proprioception."""
  joints = proprio_X[:2].astype(np.float64)
  return {'joint_position': _MIX @ joints, 'gripper_position': proprio_X[-2:-1].astype(np.float64)}
