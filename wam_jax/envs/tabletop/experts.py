"""Scripted experts that read the true state: feedback laws, so a slip, noise or a bad push is
simply corrected.

An expert decides where the tip should go and whether it should be down; the robot's inverse
kinematics turns that into an action, so one script per task serves every embodiment.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from wam_jax.envs.tabletop import drift as drift_lib
from wam_jax.envs.tabletop import env as env_lib
from wam_jax.envs.tabletop import tasks as tasks_lib

TOP_SPEED = 0.5  # Of the tip, m/s.
PUSH_SPEED = 0.25  # While an item is in front of it.
_GAIN = 0.5  # Of the distance to what moves by itself, each control step.
_ARRIVED = 0.02  # Metres from a place that count as there.
_BEHIND = 0.10  # From the edge of the tip to the centre of an item that is to be pushed.

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Move:
  """Where the tip should go next, whether the grip is closed, and the tip's top speed in m/s."""

  tip: Point
  close: bool
  speed: float = TOP_SPEED


@dataclasses.dataclass(frozen=True)
class Astray:
  """How an expert is led astray, now and then, by a wrong place and velocity of its target.

  A robot whose policy takes a while is committed meanwhile, to what may be wrong. An expert that is
  always right never shows how to go on from there.

  Attributes:
    longest_s: the longest time that it is led; at least a control step.
    apart_s: the longest time between two such times.
    error: standard deviation of the place, metres; that of the velocity is twice as much a second.
  """

  longest_s: float = 0.6
  apart_s: float = 1.1
  error: float = 0.1


def make_expert(
  env: env_lib.TabletopEnv, seed: int, noise: float = 0.05, astray: Astray | None = None
) -> Expert:
  """The expert of the episode that `env` was just reset to: a function of nothing that returns its
  next action.

  Args:
    env: stepped by the caller with the returned actions, or with others.
    seed: of the noise and of choices between equally good targets.
    noise: standard deviation of Gaussian noise on the actions (which span [-1, 1]).
    astray: how it is led astray where the target moves by itself; None for never.
  Raises:
    RuntimeError: `env` was not reset.
  """
  if env.scenario is None:
    raise RuntimeError('Call env.reset(seed) before make_expert(env, seed).')
  return Expert(env, seed, noise, astray)


class Expert:
  """The script of one episode. Made by `make_expert`.

  Attributes:
    is_led: whether the last action was led astray, and is not to be imitated.
  """

  def __init__(self, env: env_lib.TabletopEnv, seed: int, noise: float, astray: Astray | None):
    self._env = env
    self._noise = noise
    self._rng = np.random.default_rng((seed, 1))
    self._choice = int(self._rng.integers(env.scenario.targets))
    self._decoy = None
    if astray is not None and env.drift is not None:
      self._decoy = _Decoy(env, self._rng, astray)
    self.is_led = False

  def __call__(self) -> np.ndarray:
    """The next action, float32 [U]."""
    decoy = None if self._decoy is None else self._decoy.look()
    self.is_led = decoy is not None
    move = _plan(self._env, self._choice) if decoy is None else _follow(self._env, *decoy)
    action = np.array((*_deltas(self._env, move), 1.0 if move.close else -1.0))
    action += self._noise * self._rng.standard_normal(action.shape)
    return np.clip(action, -1, 1).astype(np.float32)


def _deltas(env, move: _Move) -> tuple[float, ...]:
  """Joint part of the action that brings the tip towards `move.tip`; slowed as a whole so that it
  stays straight.
  """
  robot = env.robot
  tip = env.world.tip
  distance = math.dist(tip, move.tip)
  share = min(1.0, move.speed / env.control_hz / max(distance, 1e-9))
  waypoint_x = tip[0] + share * (move.tip[0] - tip[0])
  waypoint_y = tip[1] + share * (move.tip[1] - tip[1])
  goal = robot.limit(robot.inverse(waypoint_x, waypoint_y))
  deltas = [(g - q) / d for g, q, d in zip(goal, env.joints, robot.max_delta)]
  excess = max(1.0, *(abs(delta) for delta in deltas))
  return tuple(delta / excess for delta in deltas)


def _plan(env, choice: int) -> _Move:
  scenario = env.scenario
  world = env.world
  task = scenario.task
  if env.lamp is not None:
    return _press(env, scenario.panel.switch(scenario.wanted[choice]))
  if env.drift is not None:
    return _follow(env, env.drift.place, env.drift.velocity)
  if task.startswith('reach'):
    return _Move(world.position(choice), False)
  if task == 'push':
    return _push(env, scenario.zones[0])
  if task == 'gather':
    return _gather(world, choice)
  for index, zone in zip(range(scenario.targets), scenario.zones):
    place = (zone.x, zone.y)
    is_held = world.holding == index
    is_outside = math.dist(world.position(index), place) > 0.7 * tasks_lib.IN_ZONE
    # While a wrongly grasped or half carried item is in hand, it comes first.
    if is_held or (world.holding is None and is_outside):
      return _carry(world, index, place)
  return _Move(world.tip, False)


def _follow(env, place: Point, velocity: Point) -> _Move:
  """With what moves by itself, and some of the way to it."""
  step_s = 1 / env.control_hz
  x, y = env.world.tip
  return _Move(
    (
      x + step_s * velocity[0] + _GAIN * (place[0] - x),
      y + step_s * velocity[1] + _GAIN * (place[1] - y),
    ),
    False,
  )


class _Decoy:
  """What leads an expert astray, from time to time."""

  def __init__(self, env, rng: np.random.Generator, astray: Astray):
    self._env = env
    self._rng = rng
    self._astray = astray
    self._led_steps = 0
    self._free_steps = self._draw(astray.apart_s)

  def look(self) -> tuple[Point, Point] | None:
    """(place, velocity) that is taken for the target's now, or None; once a control step."""
    if self._free_steps:
      self._free_steps -= 1
      return None
    if not self._led_steps:
      self._begin()
    self._led_steps -= 1
    if not self._led_steps:
      self._free_steps = self._draw(self._astray.apart_s)
    seen = self._place, self._velocity
    self._place, self._velocity = drift_lib.go_on(*seen, 1 / self._env.control_hz)
    return seen

  def _begin(self) -> None:
    drift = self._env.drift
    error = self._astray.error
    self._led_steps = self._draw(self._astray.longest_s)
    x, y = drift.place + error * self._rng.standard_normal(2)
    speed_x, speed_y = drift.velocity + 2 * error * self._rng.standard_normal(2)
    self._place, self._velocity = (x, y), (speed_x, speed_y)

  def _draw(self, longest_s: float) -> int:
    """Control steps, at least one."""
    longest = max(1, round(longest_s * self._env.control_hz))
    return int(self._rng.integers(1, longest + 1))


def _press(env, switch: Point) -> _Move:
  """Straight to the switch; down there, and stay."""
  return _Move(switch, bool(env.lamp.state) or math.dist(env.world.tip, switch) < _ARRIVED)


def _carry(world, index: int, place: Point) -> _Move:
  """Pick up an item and let it go at `place`."""
  if world.holding == index:
    x, y = world.position(index)
    goal = world.tip[0] + place[0] - x, world.tip[1] + place[1] - y
    return _Move(goal, math.dist((x, y), place) > _ARRIVED)
  item = world.position(index)
  if world.holding is not None:
    return _Move(world.tip, False)
  if math.dist(world.tip, item) > 1.5 * _ARRIVED:
    return _Move(item, False)
  # Down beside the item, after a grasp that missed: open again before the next try.
  return _Move(item, not world.closed)


def _gather(world, choice: int) -> _Move:
  x, y = world.position(choice)
  anchor_x, anchor_y = world.position(1 - choice)
  distance = math.dist((x, y), (anchor_x, anchor_y))
  if world.holding is None and distance < 0.95 * tasks_lib.TOGETHER:
    return _Move(world.tip, False)
  # Side by side on the line between them, so that they do not overlap.
  gap = 0.165 / max(distance, 1e-9)
  place = (anchor_x + gap * (x - anchor_x), anchor_y + gap * (y - anchor_y))
  return _carry(world, choice, place)


def _push(env, zone: tasks_lib.Zone) -> _Move:
  """Lower behind the item, push it along the line to the zone; lift and come again whenever the
  line is lost.
  """
  world = env.world
  radius = env.robot.tip_radius
  x, y = world.position(0)
  dx, dy = zone.x - x, zone.y - y
  distance = math.hypot(dx, dy)
  if distance < 0.6 * tasks_lib.IN_ZONE or world.holding is not None:
    return _Move(world.tip, False)

  # Where the tip is in the frame of the push: u points from the item to the zone.
  ux, uy = dx / distance, dy / distance
  along = (world.tip[0] - x) * ux + (world.tip[1] - y) * uy
  across = (world.tip[0] - x) * -uy + (world.tip[1] - y) * ux
  behind = radius + _BEHIND
  if not world.closed:
    start = _clip_to_table(x - behind * ux, radius), _clip_to_table(y - behind * uy, radius)
    return _Move(start, close=math.dist(world.tip, start) < _ARRIVED)
  if along > -0.04 or along < -behind - 0.06 or abs(across) > 0.05:
    return _Move(world.tip, False)  # The line is lost.

  # Ahead along the line, and back onto it.
  ahead = max(PUSH_SPEED / env.control_hz, 0.02)
  goal_x = world.tip[0] + ahead * ux + across * uy
  goal_y = world.tip[1] + ahead * uy - across * ux
  return _Move((goal_x, goal_y), True, PUSH_SPEED)


def _clip_to_table(value: float, margin: float) -> float:
  return min(max(value, margin), 1 - margin)
