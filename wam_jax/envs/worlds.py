"""The interface of every simulated world, and how one is made by the name of its robot.

Whatever runs episodes depends on `Env` alone. A world names its views and its state as the robot's
record in `data.embodiments` does, so an observation serves `Robot.observe` as both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

TABLETOP = 'tabletop_'  # Begins the names of the robots of the tabletop.
METAWORLD = 'metaworld'
# What begins the names of the robots of each world, by what `config.evaluation.env` calls it.
WORLDS = {'tabletop': TABLETOP, 'metaworld': METAWORLD}


@runtime_checkable
class Env(Protocol):
  """One robot in one world, an episode at a time; deterministic by the seed of `reset`.

  Everything but `reset`, `control_hz` and `action_dim` needs an episode.

  Attributes:
    control_hz: control steps per second of simulated time.
    action_dim: U.
    task: the name of the episode's task.
    instruction: the lower-case words of its goal.
    max_steps: its time limit in control steps.
    time_s: simulated time since its start.
    success: whether its goal was reached at some time.
  """

  control_hz: float
  success: bool

  @property
  def action_dim(self) -> int: ...

  @property
  def task(self) -> str: ...

  @property
  def instruction(self) -> str: ...

  @property
  def max_steps(self) -> int: ...

  @property
  def time_s(self) -> float: ...

  def reset(self, seed: int) -> dict[str, np.ndarray]:
    """Starts the episode of `seed`; the first observation: a uint8 [s, s, 3] RGB image of each
    view, and `proprio`, float32 [X].
    """

  def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
    """Applies one action [U], clipped to [-1, 1]; the observation after it.

    Raises:
      ValueError: wrong shape, or not finite.
      RuntimeError: `reset` was not called.
    """

  def render(self, size: int) -> np.ndarray:
    """uint8 [size, size, 3] RGB of the whole scene, for people; draws at that resolution."""


@runtime_checkable
class Foretelling(Protocol):
  """A world whose robot's commands say where it will be."""

  def foretell(self, action_DU: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of an observation's state after actions [D, U], as commanded."""


def make(name: str, tasks: Sequence[str], **options) -> Env:
  """The world of the robot whose record has this name.

  Args:
    tasks: names of the world's tasks; each episode draws one.
    options: more arguments of `TabletopEnv` or `MetaworldEnv`; 'conditions' as a mapping.
  Raises:
    ValueError: no world has this robot, an option is wrong, or the world's package is not
      installed.
  """
  # Each world is imported where it is asked for: none needs the packages of the others.
  if name.startswith(TABLETOP):
    try:
      from wam_jax.envs import tabletop
    except ModuleNotFoundError as error:
      raise ValueError(
        f"The tabletop needs the package {error.name}: pip install -e '.[sim]'."
      ) from error
    conditions = tabletop.Conditions(**options.pop('conditions', {}))
    name = name.removeprefix(TABLETOP)
    return tabletop.TabletopEnv(name, tasks, conditions=conditions, **options)
  if name == METAWORLD:
    from wam_jax.envs import metaworld

    return metaworld.MetaworldEnv(tasks, **options)
  raise ValueError(f'name={name!r} must be {METAWORLD!r} or begin with {TABLETOP!r}.')


def make_expert(env: Env, seed: int, noise: float) -> Callable[[], np.ndarray]:
  """The scripted expert of a world in the episode that was just started: gives the next action [U].

  Args:
    env: made by `make`.
    seed: that of the noise, and of choices between equally good ways.
    noise: standard deviation of what is added to each action.
  """
  from wam_jax.envs import metaworld

  if isinstance(env, metaworld.MetaworldEnv):
    return metaworld.make_expert(env, seed, noise)
  from wam_jax.envs import tabletop

  return tabletop.make_expert(env, seed, noise)
