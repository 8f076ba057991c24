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
ATTEMPTS = 20  # The experts fail at up to one seed in four; all of these, and the world is broken.
# Marks actions that are not to be imitated, for `given` of `config.DatasetConfig`.
GIVEN = 'given'
TAIL_STEPS = 2  # Steps after success: the model sees that the task is over.


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
  views: tuple[str, ...],
  view_size: int,
  encoding_format: str,
  proprio_dim: int,
  action_dim: int,
  has_given: bool = False,
) -> tfds.features.FeaturesDict:
  """RLDS features of an episode with square views; with the mark `GIVEN`, if asked for."""
  f = tfds.features
  image = functools.partial(
    f.Image, shape=(view_size, view_size, 3), encoding_format=encoding_format
  )
  steps = {
    'observation': {
      **{view: image() for view in views},
      'proprio': f.Tensor(shape=(proprio_dim,), dtype=np.float32),
    },
    'action': f.Tensor(shape=(action_dim,), dtype=np.float32),
    'language_instruction': f.Text(),
    'is_first': f.Scalar(np.bool_),
    'is_last': f.Scalar(np.bool_),
    'is_terminal': f.Scalar(np.bool_),
    'reward': f.Scalar(np.float32),
    'discount': f.Scalar(np.float32),
  }
  if has_given:
    steps[GIVEN] = f.Scalar(np.bool_)
  metadata = {
    'seed': f.Scalar(np.int64),
    'task': f.Text(),
    'embodiment': f.Text(),
    'success': f.Scalar(np.bool_),
  }
  return f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': metadata})


def record_episode(
  env: World,
  observation: dict[str, np.ndarray],
  *,
  act: Callable[[], np.ndarray],
  seed: int,
  shortest_s: float,
  encode: Callable[[np.ndarray], io.BytesIO],
  is_given: Callable[[], bool] | None = None,
) -> dict[str, Any]:
  """One episode as a TFDS example; `episode_metadata/success` may be False.

  It ends two steps after success but lasts at least `shortest_s`. Every step holds the observation
  and the action chosen at it; the last one's action is the expert's choice, never executed.

  Args:
    env: the world in the state that `reset(seed)` left.
    observation: what `reset` gave.
    act: gives the next action.
    encode: turns a view into the file that is stored.
    is_given: whether the action that `act` gave last is not to be imitated; None where all are.
  """
  shortest = math.ceil(shortest_s * env.control_hz)
  steps = []
  tail = TAIL_STEPS
  done = False
  while not done:
    action = act()
    is_complete = env.success and tail <= 0 and len(steps) >= shortest
    done = is_complete or len(steps) >= env.max_steps
    views = {key: encode(view) for key, view in observation.items() if key != 'proprio'}
    steps.append(
      {
        'observation': {**views, 'proprio': observation['proprio']},
        'action': action,
        'language_instruction': env.instruction,
        'is_first': not steps,
        'is_last': done,
        **_make_outcome(reached=done and env.success),
        **({GIVEN: is_given()} if is_given else {}),
      }
    )
    if not done:
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


def _make_outcome(reached: bool) -> dict[str, Any]:
  """What reinforcement learning asks for: a reward of 1, and no future, where the task is done."""
  return {
    'is_terminal': reached,
    'reward': float(reached),
    'discount': 0.0 if reached else 1.0,
  }


def record_success(
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
