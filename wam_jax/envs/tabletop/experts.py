"""Scripted experts that read the true state: feedback laws, so a slip, noise or a bad push is
simply corrected.

An expert decides where the tip should go and whether it should be down; the robot's inverse
kinematics turns that into an action, so one script per task serves every embodiment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from wam_jax.envs.tabletop import env as env_lib
from wam_jax.envs.tabletop import tasks as tasks_lib

TOP_SPEED = 0.5
PUSH_SPEED = 0.25
_ARRIVED = 0.02
_BEHIND = 0.10

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Move:
  """Where the tip should go next, whether the grip is closed, and the tip's top speed in m/s."""

  tip: Point
  close: bool
  speed: float = TOP_SPEED


def make_expert(
  env: env_lib.TabletopEnv, seed: int, noise: float = 0.05
) -> Callable[[], np.ndarray]:
  """A function that returns the expert's next action, float32 [U], for the episode that `env` was
  just reset to.

  Args:
    env: stepped by the caller with the returned actions, or with others.
    seed: of the noise and of choices between equally good targets.
    noise: standard deviation of Gaussian noise on the actions (which span [-1, 1]).
  Raises:
    RuntimeError: `env` was not reset.
  """
  if env.scenario is None:
    raise RuntimeError('Call env.reset(seed) before make_expert(env, seed).')
  rng = np.random.default_rng((seed, 1))
  choice = int(rng.integers(env.scenario.targets))

  def act() -> np.ndarray:
    move = _plan(env, choice)
    action = np.array((*_deltas(env, move), 1.0 if move.close else -1.0))
    return np.clip(action + noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)

  return act


def _deltas(env, move: _Move) -> tuple[float, ...]:
  """Joint part of the action that brings the tip towards `move.tip`; slowed as a whole so that it
  stays straight.
  """
  robot, tip = env.robot, env.world.tip
  distance = math.dist(tip, move.tip)
  share = min(1.0, move.speed / env.control_hz / max(distance, 1e-9))
  waypoint = tip[0] + share * (move.tip[0] - tip[0]), tip[1] + share * (move.tip[1] - tip[1])
  goal = robot.limit(robot.inverse(*waypoint))
  deltas = [(g - q) / d for g, q, d in zip(goal, env.joints, robot.max_delta)]
  excess = max(1.0, *(abs(d) for d in deltas))
  return tuple(d / excess for d in deltas)


def _plan(env, choice: int) -> _Move:
  scenario, world = env.scenario, env.world
  task = scenario.task
  if task in ('reach', 'reach_shape', 'reach_any'):
    return _Move(world.position(choice), False)
  if task == 'push':
    return _push(env, scenario.zones[0])
  if task == 'gather':
    return _gather(world, choice)
  for index, zone in zip(range(scenario.targets), scenario.zones):
    # While a wrongly grasped or half carried item is in hand, it comes first.
    if world.holding in (None, index) and (
      world.holding == index
      or math.dist(world.position(index), (zone.x, zone.y)) > 0.7 * tasks_lib.IN_ZONE
    ):
      return _carry(world, index, (zone.x, zone.y))
  return _Move(world.tip, False)


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
  mover, anchor = choice, 1 - choice
  (x, y), (ax, ay) = world.position(mover), world.position(anchor)
  distance = math.dist((x, y), (ax, ay))
  if world.holding is None and distance < 0.95 * tasks_lib.TOGETHER:
    return _Move(world.tip, False)
  gap = 0.165 / max(distance, 1e-9)
  return _carry(world, mover, (ax + gap * (x - ax), ay + gap * (y - ay)))


def _push(env, zone: tasks_lib.Zone) -> _Move:
  """Lower behind the item, push it along the line to the zone; lift and come again whenever the
  line is lost.
  """
  world, radius = env.world, env.robot.tip_radius
  x, y = world.position(0)
  dx, dy = zone.x - x, zone.y - y
  distance = math.hypot(dx, dy)
  if distance < 0.6 * tasks_lib.IN_ZONE or world.holding is not None:
    return _Move(world.tip, False)
  ux, uy = dx / distance, dy / distance
  behind = radius + _BEHIND
  start = tuple(min(max(v, radius), 1 - radius) for v in (x - behind * ux, y - behind * uy))
  along = (world.tip[0] - x) * ux + (world.tip[1] - y) * uy
  across = (world.tip[0] - x) * -uy + (world.tip[1] - y) * ux
  if not world.closed:
    arrived = math.dist(world.tip, start) < _ARRIVED
    return _Move(start, arrived)
  if along > -0.04 or along < -behind - 0.06 or abs(across) > 0.05:
    return _Move(world.tip, False)
  ahead = max(PUSH_SPEED / env.control_hz, 0.02)
  goal = (world.tip[0] + ahead * ux + across * uy, world.tip[1] + ahead * uy - across * ux)
  return _Move(goal, True, PUSH_SPEED)
