"""`TabletopEnv`: the closed-loop interface to one tabletop episode at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wam_jax.envs.tabletop import drift as drift_lib
from wam_jax.envs.tabletop import panel as panel_lib
from wam_jax.envs.tabletop import render as render_lib
from wam_jax.envs.tabletop import robots as robots_lib
from wam_jax.envs.tabletop import scene as scene_lib
from wam_jax.envs.tabletop import tasks as tasks_lib
from wam_jax.envs.tabletop import world as world_lib

# About 2.5 times the 90th percentile of the expert's time over all embodiments.
TIME_LIMIT_S = {
  'reach': 4.0,
  'reach_shape': 4.0,
  'reach_any': 2.4,
  'reach_moving': 4.0,
  'push': 9.0,
  'place': 8.0,
  'gather': 9.0,
  'sort': 14.0,
  # Pressed within 1.2 s, and so for 0.4 s: two chunks, of which the first decides.
  'press': 1.6,
  'press_any': 1.6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
  """What of the world can be set.

  Attributes:
    light: by which share a switch turns everything in view brighter or darker, 0 ... 1.
    drift_speed: of the target of `reach_moving`, m/s.
  """

  light: float = panel_lib.LIGHT
  drift_speed: float = drift_lib.SPEED

  def list_problems(self) -> list[str]:
    """What is wrong with them."""
    problems = []
    if not 0 <= self.light <= 1:
      problems.append(f'light={self.light} must be 0 ... 1')
    if not 0 <= self.drift_speed < math.inf:
      problems.append(f'drift_speed={self.drift_speed} must be 0 m/s or more')
    return problems


class TabletopEnv:
  """One table, one robot, one instruction per episode; deterministic by the seed of `reset`.

  Attributes:
    embodiment: the robot's key in `ROBOTS`.
    task, instruction: those of this episode.
    scenario: what the seed decided: start, goal and words.
    robot, world, joints: the true state, for experts and tests.
    drift: how the target moves by itself; None where it stays.
    lamp: what became of the switches; None where there are none.
    control_hz: control steps per second.
    success: whether the goal held for `tasks.dwell_s` at some time of this episode.
  """

  def __init__(
    self,
    embodiment: str,
    tasks: Sequence[str],
    split: str = 'train',
    view_size: int = 32,
    max_distractors: int = 2,
    *,
    conditions: Conditions = Conditions(),
    time_limit_s: float = 0.0,
  ):
    """Checks the choices; call `reset` before anything else.

    Args:
      embodiment: 'disc', 'arm', 'cart' or 'human'.
      tasks: names of `TASKS`; each episode draws one.
      split: 'train', 'unseen_task' (held-out combinations) or 'unseen_look' (held-out appearances).
      view_size: pixels of the square views in observations.
      max_distractors: one up to this many objects beside the task's own (none if 0; `push` has one
        at most).
      conditions: what of the world can be set.
      time_limit_s: of an episode; 0 for `TIME_LIMIT_S` of its task.
    Raises:
      ValueError: an unknown name or a number out of range; all of them.
    """
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    choices = [
      ('embodiment', embodiment, robots_lib.ROBOTS),
      ('split', split, tasks_lib.SPLITS),
      *(('task', task, tasks_lib.TASKS) for task in tasks),
    ]
    problems = []
    for what, value, known in choices:
      if value not in known:
        problems.append(f'{what}={value!r} must be one of {tuple(known)}')
    if not tasks:
      problems.append(f'tasks is empty; choose from {tasks_lib.TASKS}')
    if not 8 <= view_size <= 2048:
      problems.append(f'view_size={view_size} must be 8 ... 2048 pixels')
    if not 0 <= max_distractors <= 3:
      problems.append(f'max_distractors={max_distractors} must be 0 ... 3')
    problems += conditions.list_problems()
    if not 0 <= time_limit_s < math.inf:
      problems.append(f'time_limit_s={time_limit_s} must be 0, or seconds')
    if problems:
      raise ValueError('; '.join(problems) + '.')
    self.embodiment = embodiment
    self.tasks = tasks
    self.split = split
    self.robot = robots_lib.ROBOTS[embodiment]
    self.control_hz = self.robot.control_hz
    self._view_size = view_size
    self._max_distractors = max_distractors
    self._conditions = conditions
    self._time_limit_s = time_limit_s
    self._looks = render_lib.looks(split)
    self.scenario: tasks_lib.Scenario | None = None

  def reset(self, seed: int) -> dict[str, np.ndarray]:
    """Starts the episode of `seed`; the first observation.

    Returns:
      'top', 'wrist': uint8 [s, s, 3] RGB; 'proprio': float32 [X], see `proprio`.
    """
    # Everything about the episode is drawn from one generator, in this order.
    rng = np.random.default_rng(seed)
    task = self.tasks[int(rng.integers(len(self.tasks)))]
    self.scenario = tasks_lib.sample(task, rng, self.split, self._max_distractors)
    look = self._looks[int(rng.integers(len(self._looks)))]

    self.joints = self.robot.limit(self.robot.inverse(*self.scenario.tip))
    tip = self.robot.forward(self.joints)
    self.world = world_lib.World(self.scenario.items, tip, self.robot.tip_radius)
    self.drift: drift_lib.Drift | None = None
    if self.scenario.drift_seed is not None:
      place, seed = self.world.position(0), self.scenario.drift_seed
      self.drift = drift_lib.Drift(place, seed, self._conditions.drift_speed)
      self.world.carry(0, self.drift.place)
    self.lamp: panel_lib.Lamp | None = None
    if self.scenario.panel is not None:
      self.lamp = panel_lib.Lamp(self.scenario.panel, self._conditions.light)
    self._renderer = render_lib.Renderer(self.scenario, self.robot, look)
    self._scene = scene_lib.Scene(self.scenario, self.robot, look)
    self._steps = 0
    self._satisfied_steps = 0
    self.success = False
    return self._observe()

  def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
    """Applies one action and returns the observation after it.

    Args:
      action: [U] joint velocities and grip (above 0 closes), clipped to [-1, 1].
    Raises:
      ValueError: wrong shape, or not finite.
      RuntimeError: `reset` was not called.
    """
    if self.scenario is None:
      raise RuntimeError('Call reset(seed) before step(action).')
    action = np.asarray(action, np.float64)
    if action.shape != (self.robot.action_dim,):
      raise ValueError(
        f'action has shape {action.shape}; {self.embodiment} takes ({self.robot.action_dim},).'
      )
    values = action.tolist()
    if not all(map(math.isfinite, values)):
      raise ValueError(f'action={values} has entries that are not finite.')
    *deltas, grip = (min(max(value, -1.0), 1.0) for value in values)
    self.joints = self.robot.move(self.joints, tuple(deltas))
    was_closed, place = self.world.closed, self.world.tip
    self.world.step(self.robot.forward(self.joints), grip > 0, 1 / self.control_hz)
    if self.lamp is not None and self.world.closed and not was_closed:
      self.lamp.press(place)
    if self.drift is not None:
      self.world.carry(0, self.drift.advance(1 / self.control_hz))
    self._steps += 1

    # Passing by is not success: the goal must hold for a while.
    is_satisfied = tasks_lib.satisfied(self.scenario, self.world, self.lamp)
    self._satisfied_steps = self._satisfied_steps + 1 if is_satisfied else 0
    needed_steps = math.ceil(tasks_lib.dwell_s(self.task) * self.control_hz)
    self.success |= self._satisfied_steps >= needed_steps
    return self._observe()

  @property
  def instruction(self) -> str:
    """Lower-case words of this episode's goal."""
    return self.scenario.instruction

  @property
  def task(self) -> str:
    """Name of this episode's task."""
    return self.scenario.task

  @property
  def time_s(self) -> float:
    """Simulated time since reset."""
    return self._steps / self.control_hz

  @property
  def max_steps(self) -> int:
    """Time limit of this episode in control steps; before the first reset, of the longest task."""
    tasks = self.tasks if self.scenario is None else (self.task,)
    limit_s = self._time_limit_s or max(TIME_LIMIT_S[task] for task in tasks)
    return math.ceil(limit_s * self.control_hz)

  @property
  def action_dim(self) -> int:
    """U."""
    return self.robot.action_dim

  @property
  def proprio(self) -> np.ndarray:
    """float32 [X]: joints (metres, radians), for the arm also the tip, then grip in [0, 1] and
    holding, 0 or 1.
    """
    return self._describe(self.joints, self.world.tip, self.world.grip)

  def foretell(self, action_DU: np.ndarray) -> dict[str, np.ndarray]:
    """The state after these actions, by the keys of an observation: as commanded, whatever is in
    the way; what is held stays so.
    """
    joints, grip = self.joints, self.world.grip
    for *deltas, close in np.clip(np.asarray(action_DU, np.float64), -1, 1).tolist():
      joints = self.robot.move(joints, tuple(deltas))
      grip = world_lib.move_grip(grip, close > 0, 1 / self.control_hz)
    return {'proprio': self._describe(joints, self.robot.forward(joints), grip)}

  def _describe(self, joints: robots_lib.Vector, tip: tuple[float, float], grip: float):
    shown = tip if self.robot.proprio_tip else ()
    return np.array((*joints, *shown, grip, self.world.holding is not None), np.float32)

  def render(self, size: int, view: str = 'scene') -> np.ndarray:
    """uint8 [size, size, 3] RGB, drawn at that resolution.

    Args:
      view: 'scene' for people, with depth and light; 'top' or 'wrist' as the model sees them.
    Raises:
      ValueError: unknown view.
    """
    if view != 'scene' and view not in render_lib.VIEWS:
      raise ValueError(f"view={view!r} must be 'scene' or one of {render_lib.VIEWS}.")
    if view == 'scene':
      image = self._scene.image(size, self.world, self.joints, self.lamp)
    else:
      image = self._renderer.image(view, size, self.world, self.joints)
    return image if self.lamp is None else self.lamp.shine(image)

  def _observe(self) -> dict[str, np.ndarray]:
    views = {view: self.render(self._view_size, view) for view in render_lib.VIEWS}
    return {**views, 'proprio': self.proprio}
