"""Expert episodes of a simulated world in RLDS form: what the tabletop and Meta-World builders
share.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

# Evaluation uses small reset seeds; datasets start above all of them, so no evaluated scene was
# trained on.
FIRST_SEED = 1 << 32
ATTEMPTS = 20
TAIL_STEPS = 2


class World(Protocol):
  """What is recorded: `reset` has been called, `step(action)` returns the next observation."""

  embodiment: str
  task: str
  instruction: str
  control_hz: float
  max_steps: int
  success: bool

  def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
    """Views and 'proprio'."""


def make_features(
  views: tuple[str, ...], view_size: int, encoding_format: str, proprio_dim: int, action_dim: int
) -> tfds.features.FeaturesDict:
  """RLDS features of an episode with square views."""
  feature = tfds.features
  image = functools.partial(
    feature.Image, shape=(view_size, view_size, 3), encoding_format=encoding_format
  )
  return feature.FeaturesDict(
    {
      'steps': feature.Dataset(
        {
          'observation': {
            **{view: image() for view in views},
            'proprio': feature.Tensor(shape=(proprio_dim,), dtype=np.float32),
          },
          'action': feature.Tensor(shape=(action_dim,), dtype=np.float32),
          'language_instruction': feature.Text(),
          'is_first': feature.Scalar(np.bool_),
          'is_last': feature.Scalar(np.bool_),
          'is_terminal': feature.Scalar(np.bool_),
          'reward': feature.Scalar(np.float32),
          'discount': feature.Scalar(np.float32),
        }
      ),
      'episode_metadata': {
        'seed': feature.Scalar(np.int64),
        'task': feature.Text(),
        'embodiment': feature.Text(),
        'success': feature.Scalar(np.bool_),
      },
    }
  )


def record_episode(
  env: World,
  observation: dict[str, np.ndarray],
  act: Callable[[], np.ndarray],
  seed: int,
  shortest_s: float,
  encode: Callable[[np.ndarray], io.BytesIO],
) -> dict[str, Any]:
  """One episode as a TFDS example; `episode_metadata/success` may be False.

  It ends two steps after success but lasts at least `shortest_s`. Every step holds the observation
  and the action chosen at it; the last one's action is the expert's choice, never executed.

  Args:
    env: in the state that `reset(seed)` left.
    observation: that `reset` gave.
    act: gives the next action.
    encode: a view to the file that is stored.
  """
  shortest = math.ceil(shortest_s * env.control_hz)
  steps, tail = [], TAIL_STEPS
  while True:
    action = act()
    done = len(steps) >= env.max_steps or (env.success and tail <= 0 and len(steps) >= shortest)
    reached = done and env.success
    steps.append(
      {
        'observation': {
          key: value if key == 'proprio' else encode(value) for key, value in observation.items()
        },
        'action': action,
        'language_instruction': env.instruction,
        'is_first': not steps,
        'is_last': done,
        'is_terminal': reached,
        'reward': float(reached),
        'discount': 0.0 if reached else 1.0,
      }
    )
    if done:
      break
    tail -= env.success
    observation = env.step(action)
  return {
    'steps': steps,
    'episode_metadata': {
      'seed': seed,
      'task': env.task,
      'embodiment': env.embodiment,
      'success': env.success,
    },
  }


def first_success(
  record: Callable[[int], dict[str, Any]], entropy: tuple[int, ...], what: str
) -> dict[str, Any]:
  """The first successful one of an episode's own sequence of seeds.

  Args:
    record: seed to example.
    entropy: numbers that no other episode has.
    what: describes it, for the message.
  Raises:
    RuntimeError: the expert failed on all of them, which says that the world is broken.
  """
  for attempt in range(ATTEMPTS):
    episode = record(make_seed(*entropy, attempt))
    if episode['episode_metadata']['success']:
      return episode
  raise RuntimeError(f'The expert failed {ATTEMPTS} times at {what}.')


def make_seed(*entropy: int) -> int:
  """Reset seed in [2^32, 2^62]: a hash, so splits and dataset seeds do not overlap."""
  low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
  return FIRST_SEED + (int(high) << 29 | int(low) >> 3)
