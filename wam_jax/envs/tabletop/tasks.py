"""What is asked on the tabletop: scenes, words, splits and the conditions that count as done.

Owns no physics and no drawing. A `Scenario` is everything that a seed decides about one episode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wam_jax.envs.tabletop import panel as panel_lib
from wam_jax.envs.tabletop import world as world_lib

COLORS = ('red', 'green', 'blue', 'yellow', 'purple', 'cyan')
SHAPES = tuple(world_lib.SHAPES)
SPLITS = ('train', 'unseen_task', 'unseen_look')

# Goals: distances between centres, metres, and how long they must hold.
REACH_RADIUS = 0.08
ZONE_RADIUS = 0.13
IN_ZONE = 0.10
TOGETHER = 0.20
DWELL_S = 0.4
FOLLOW_S = 0.8  # The same for what moves by itself, which also comes by.
# Starts: least distances between centres, metres.
START_DISTANCE = 0.25  # From the effector to every target.
ITEM_SPACING = 0.17
_ZONE_SPACING = 0.30
_ITEM_ZONE_SPACING = 0.23

PHRASES = {
  'reach': ('touch the {a}', 'reach the {a}', 'move to the {a}', 'go to the {a}'),
  'reach_shape': ('touch the {a}', 'reach the {a}', 'move to the {a}', 'go to the {a}'),
  'reach_any': (
    'touch any {c} object',
    'touch one of the {c} objects',
    'reach any of the {c} objects',
    'go to any {c} object',
  ),
  'reach_moving': ('touch the {a}', 'reach the {a}', 'move to the {a}', 'go to the {a}'),
  'push': (
    'push the {a} into the {z} zone',
    'push the {a} to the {z} zone',
    'slide the {a} to the {z} zone',
    'shove the {a} into the {z} zone',
  ),
  'place': (
    'put the {a} in the {z} zone',
    'place the {a} in the {z} zone',
    'carry the {a} to the {z} zone',
    'pick up the {a} and drop it in the {z} zone',
  ),
  'gather': (
    'bring the two {c} objects together',
    'gather the {c} objects',
    'put the {c} objects side by side',
    'collect the two {c} objects',
  ),
  'sort': (
    'sort the {c} and {d} objects by color',
    'put the {c} and {d} objects in the zones of their color',
    'bring the {c} and {d} objects to the matching zones',
  ),
  'press': (
    'press the {a} switch',
    'push the {a} switch',
    'turn the light {c}',
    'switch the light {c}',
  ),
  'press_any': (
    'press a switch',
    'press any switch',
    'press one of the switches',
    'push either switch',
  ),
}
TASKS = tuple(PHRASES)
PANEL_TASKS = ('press', 'press_any')
# How a switch is called by its colour.
SWITCH_COLORS = {'on': 'white', 'off': 'black'}


@dataclasses.dataclass(frozen=True)
class Zone:
  """A coloured target area, radius `ZONE_RADIUS`."""

  color: str
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Scenario:
  """One episode's start and goal.

  Attributes:
    task: one of `TASKS`.
    combination: what decides the split, for instance ('push', 'red', 'disc', 'blue').
    instruction: the lower-case words of the goal.
    items: targets first, then distractors.
    zones: the goal's first, then distractors.
    targets: the number of items that the task is about.
    tip: where the effector starts.
    drift_seed: seed of the way that the first item takes by itself; None where it stays.
    panel: the bar with switches, or None.
    wanted: the switches that may be pressed, equally good ones.
  """

  task: str
  combination: tuple[str, ...]
  instruction: str
  items: tuple[world_lib.Item, ...]
  zones: tuple[Zone, ...]
  targets: int
  tip: tuple[float, float]
  drift_seed: int | None = None
  panel: panel_lib.Panel | None = None
  wanted: tuple[str, ...] = ()


def held_out(combination: tuple[str, ...]) -> bool:
  """Whether a task combination belongs to the split `unseen_task`; the other splits never show it.

  Every colour, shape, zone and verb also occurs in combinations that are not held out.
  """
  task, *words = combination
  if task in PANEL_TASKS:
    named, front, white_end = words
    turn = list(panel_lib.FRONTS).index(front)
    is_far = white_end in ('right', 'below')
    return (turn + 2 * is_far + 3 * (named == 'black')) % 5 == 0
  index = [COLORS.index(w) if w in COLORS else SHAPES.index(w) for w in words]
  if task in ('reach', 'reach_shape', 'reach_moving'):
    color, shape = index
    return (color + 2 * shape) % 6 == 0
  if task in ('push', 'place'):
    color, shape, zone = index
    return (color + shape + 2 * zone + (task == 'place')) % 5 == 0
  if task in ('reach_any', 'gather'):
    color, *shapes = index
    return (color + sum(shapes)) % 5 == 0
  return sum(index) % 5 == 0


def sample(task: str, rng: np.random.Generator, split: str, max_distractors: int) -> Scenario:
  """A random scenario of `task` whose combination belongs to `split`."""
  if task in PANEL_TASKS:
    return _sample_panel(task, rng, split)
  while True:
    goal = _GOALS[task](rng)
    if held_out(goal.combination) == (split == 'unseen_task'):
      break
  while True:
    layout = _lay_out(goal, rng, max_distractors)
    if layout is not None:
      break
  return Scenario(
    task=task,
    combination=goal.combination,
    # A new combination is named in full: the shape is part of what is new.
    instruction=_say(goal, rng, named=split == 'unseen_task'),
    items=layout.items,
    zones=layout.zones,
    targets=len(goal.things),
    tip=layout.tip,
    # Drawn for this task alone: scenes of the others are what they were.
    drift_seed=int(rng.integers(1 << 62)) if task == 'reach_moving' else None,
  )


def _sample_panel(task: str, rng: np.random.Generator, split: str) -> Scenario:
  """A bar with switches alone on the table, and the tip in front of its middle: as far from the
  one as from the other.
  """
  while True:
    front = _pick(rng, tuple(panel_lib.FRONTS))[0]
    is_on_ahead = bool(rng.integers(2))
    wanted = panel_lib.SWITCHES if task == 'press_any' else _pick(rng, panel_lib.SWITCHES)
    named = 'any' if task == 'press_any' else SWITCH_COLORS[wanted[0]]
    combination = (task, named, front, _white_end(front, is_on_ahead))
    if held_out(combination) == (split == 'unseen_task'):
      break
  distance = float(rng.uniform(0.26, 0.31))
  x, y = panel_lib.FRONTS[front]
  # The tip and the ends of the bar stay on the table.
  along = float(rng.uniform(0.25, 0.75))
  across = float(rng.uniform(0.14, 0.86 - distance))
  across = across if x + y > 0 else 1 - across
  middle = (across, along) if x else (along, across)
  phrases = PHRASES[task]
  phrase = phrases[rng.integers(len(phrases))]
  return Scenario(
    task=task,
    combination=combination,
    instruction=phrase.format(a=named, c=wanted[0]),
    items=(),
    zones=(),
    targets=len(wanted),
    tip=(middle[0] + distance * x, middle[1] + distance * y),
    panel=panel_lib.Panel(*middle, front, is_on_ahead),
    wanted=wanted,
  )


def _white_end(front: str, is_on_ahead: bool) -> str:
  """The end of the bar where the white switch lies on the table, a key of `FRONTS`."""
  x, y = panel_lib.Panel(0.0, 0.0, front, is_on_ahead).switch('on')
  unit = (round(x / panel_lib.OFFSET), round(y / panel_lib.OFFSET))
  return next(name for name, vector in panel_lib.FRONTS.items() if vector == unit)


class _Layout(NamedTuple):
  """The part of a scenario that has places."""

  items: tuple[world_lib.Item, ...]
  zones: tuple[Zone, ...]
  tip: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Goal:
  """Words before places: `things` are (colour, shape) of the targets, `zones` colours of the goal
  zones.
  """

  task: str
  things: tuple[tuple[str, str], ...]
  zones: tuple[str, ...] = ()

  @property
  def combination(self) -> tuple[str, ...]:
    if self.task == 'sort':
      return (self.task, *sorted(color for color, _ in self.things))
    shapes = sorted(shape for _, shape in self.things)
    return (self.task, self.things[0][0], *shapes, *self.zones)


def _pick(rng, options, count=1):
  return tuple(options[i] for i in rng.choice(len(options), size=count, replace=False))


def _one_thing(task):
  return lambda rng: _Goal(task, ((_pick(rng, COLORS)[0], _pick(rng, SHAPES)[0]),))


def _thing_to_zone(task):
  def goal(rng):
    color, zone = _pick(rng, COLORS, 2)
    return _Goal(task, ((color, _pick(rng, SHAPES)[0]),), (zone,))

  return goal


def _two_alike(task):
  def goal(rng):
    (color,) = _pick(rng, COLORS)
    return _Goal(task, tuple((color, _pick(rng, SHAPES)[0]) for _ in range(2)))

  return goal


def _two_to_zones(rng):
  colors = _pick(rng, COLORS, 2)
  return _Goal('sort', tuple((color, _pick(rng, SHAPES)[0]) for color in colors), colors)


_GOALS: dict[str, Callable[[np.random.Generator], _Goal]] = {
  'reach': _one_thing('reach'),
  'reach_shape': _one_thing('reach_shape'),
  'reach_any': _two_alike('reach_any'),
  'reach_moving': _one_thing('reach_moving'),
  'push': _thing_to_zone('push'),
  'place': _thing_to_zone('place'),
  'gather': _two_alike('gather'),
  'sort': _two_to_zones,
}


def _say(goal: _Goal, rng: np.random.Generator, named: bool) -> str:
  phrases = PHRASES[goal.task]
  color, shape = goal.things[0]
  # Without the shape the colour alone must do, so only where no distractor can share it.
  full = named or goal.task == 'reach_shape' or rng.random() < 0.5
  noun = f'{color} {shape}' if full else f'{color} object'
  zone = goal.zones[0] if goal.zones else ''
  phrase = phrases[rng.integers(len(phrases))]
  return phrase.format(a=noun, c=color, d=goal.things[-1][0], z=zone)


def _distractors(goal: _Goal, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
  """Things that never fit the instruction; all colours differ from the targets', but for one in
  `reach_shape`.
  """
  taken = {color for color, _ in goal.things}
  colors = _pick(rng, [c for c in COLORS if c not in taken], min(count, 4))
  things = [(color, _pick(rng, SHAPES)[0]) for color in colors]
  if goal.task == 'reach_shape' and things:
    color, shape = goal.things[0]
    things[0] = color, _pick(rng, [s for s in SHAPES if s != shape])[0]
  return things


def _lay_out(goal, rng, max_distractors):
  """Places for everything, or None when the table got too crowded."""
  # One more thing than that would stand in the way of pushing.
  limit = min(max_distractors, 1) if goal.task == 'push' else max_distractors
  count = int(rng.integers(min(1, limit), limit + 1))
  things = list(goal.things) + _distractors(goal, rng, count)
  zones = _zone_places(goal, rng)
  if zones is None:
    return None
  tip = (float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.3, 0.7)))
  places = _mirrored_places(tip, rng) if goal.task == 'reach_any' else []
  for number in range(len(places), len(things)):
    place = _free_place(rng, goal, number, places, zones)
    if place is None:
      return None
    places.append(place)
  if goal.task != 'reach_any':
    tip = _tip_place(rng, places[: len(goal.things)])
  if tip is None:
    return None
  items = []
  for (color, shape), (x, y) in zip(things, places):
    items.append(world_lib.Item(color, shape, x, y, float(rng.uniform(-math.pi, math.pi))))
  return _Layout(tuple(items), zones, tip)


def _zone_places(goal, rng):
  colors = list(goal.zones)
  if not colors:
    return ()
  if len(colors) == 1:
    taken = {goal.zones[0], *(color for color, _ in goal.things)}
    colors += _pick(rng, [c for c in COLORS if c not in taken])
  zones: list[Zone] = []
  for color in colors:
    for _ in range(20):
      x, y = (float(v) for v in rng.uniform(0.17, 0.83, 2))
      if all(math.dist((x, y), (z.x, z.y)) >= _ZONE_SPACING for z in zones):
        zones.append(Zone(color, x, y))
        break
    else:
      return None
  return tuple(zones)


def _mirrored_places(tip, rng):
  """Left and right of the tip at exactly the same distance: neither target is better than the
  other.
  """
  reach, rise = float(rng.uniform(0.28, 0.32)), float(rng.uniform(-0.08, 0.08))
  return [(tip[0] - reach, tip[1] + rise), (tip[0] + reach, tip[1] + rise)]


def _free_place(rng, goal, number, places, zones):
  """A place for thing `number`, which has `places` before it; None if none is found soon."""
  is_pushed = goal.task == 'push' and number == 0
  # What is pushed needs room behind it.
  low, high = (0.22, 0.78) if is_pushed else (0.12, 0.88)
  for _ in range(20):
    x, y = (float(v) for v in rng.uniform(low, high, 2))
    if any(math.dist((x, y), p) < ITEM_SPACING for p in places):
      continue
    if any(math.dist((x, y), (z.x, z.y)) < _ITEM_ZONE_SPACING for z in zones):
      continue
    # What is to be gathered must not be together already.
    if goal.task == 'gather' and number == 1 and math.dist((x, y), places[0]) < 0.35:
      continue
    if goal.task == 'push' and number > 0 and _distance_to_path((x, y), places[0], zones[0]) < 0.24:
      continue
    return x, y
  return None


def _distance_to_path(point, start, zone):
  """Distance from `point` to the segment from `start`, begun a hand's width behind it, to the
  zone.
  """
  dx, dy = zone.x - start[0], zone.y - start[1]
  length = math.hypot(dx, dy)
  along = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / length
  along = min(max(along, -0.15), length)
  return math.dist(point, (start[0] + along * dx / length, start[1] + along * dy / length))


def _tip_place(rng, targets):
  for _ in range(50):
    tip = tuple(float(v) for v in rng.uniform(0.12, 0.88, 2))
    if all(math.dist(tip, target) >= START_DISTANCE for target in targets):
      return tip
  return None


def dwell_s(task: str) -> float:
  """How long the condition of a task must hold."""
  return FOLLOW_S if task == 'reach_moving' else DWELL_S


def satisfied(
  scenario: Scenario, world: world_lib.World, lamp: panel_lib.Lamp | None = None
) -> bool:
  """Whether the goal's condition holds at this instant; success asks for it during `dwell_s`."""
  task = scenario.task
  if lamp is not None:
    return lamp.state in scenario.wanted
  if task.startswith('reach'):
    return any(
      math.dist(world.tip, world.position(i)) < REACH_RADIUS for i in range(scenario.targets)
    )
  if world.holding is not None:
    return False
  if task == 'gather':
    return math.dist(world.position(0), world.position(1)) < TOGETHER
  return all(
    math.dist(world.position(i), (zone.x, zone.y)) < IN_ZONE
    for i, zone in zip(range(scenario.targets), scenario.zones)
  )
