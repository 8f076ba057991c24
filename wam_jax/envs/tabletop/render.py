"""Fast software drawing of the tabletop with OpenCV, straight at the asked resolution.

Owns colours, looks, textures and cameras; reads the world and changes nothing. Points are given to
OpenCV in sixteenths of a pixel and edges are anti-aliased, so slow motion shows even at 32x32.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np

from wam_jax.envs.tabletop import panel as panel_lib
from wam_jax.envs.tabletop import robots as robots_lib
from wam_jax.envs.tabletop import tasks as tasks_lib
from wam_jax.envs.tabletop import world as world_lib

COLORS = {
  'red': (215, 35, 40),
  'green': (40, 170, 60),
  'blue': (40, 70, 225),
  'yellow': (245, 215, 35),
  'purple': (165, 50, 190),
  'cyan': (50, 210, 225),
}
VIEWS = ('top', 'wrist')
WRIST_SPAN = 0.4  # Metres that the wrist camera sees.
_MARGIN = 0.25  # Metres of floor around the table that it can see at its edges.
_FLOOR = (58, 60, 66)
_DARK = (25, 25, 28)
LIGHT = (250, 250, 250)
# Of the bar with switches, by the finish of a look; and of these.
BARS = {'flat': (88, 86, 98), 'rim': (112, 92, 74), 'dot': (64, 104, 98), 'band': (128, 76, 84)}
SWITCHES = {'on': LIGHT, 'off': (14, 14, 16)}
_STEEL = (112, 118, 128)
_BROWN = (105, 62, 35)
_SKIN = (240, 190, 155)
_SLEEVE = (60, 75, 70)
_SHIFT = 4  # Bits of a pixel's fraction that OpenCV gets.
_ANGLES = np.arange(24) * math.pi / 12
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


@dataclasses.dataclass(frozen=True)
class Look:
  """Appearance that carries no meaning.

  Attributes:
    table: the table top's RGB.
    texture: 'plain', 'grain', 'planks' (training) or 'checker', 'stripes', 'speckle' (unseen).
    finish: the items' surface, 'flat', 'rim' (training) or 'dot', 'band' (unseen).
    shade: the factor on the items' colours.
  """

  table: tuple[int, int, int]
  texture: str
  finish: str
  shade: float


_TABLES = {
  'train': ((214, 206, 192), (198, 203, 210), (188, 198, 184), (222, 214, 214)),
  'unseen_look': ((96, 100, 112), (238, 238, 242), (158, 128, 100)),
}
_TEXTURES = {
  'train': ('plain', 'grain', 'planks'),
  'unseen_look': ('checker', 'stripes', 'speckle'),
}
_FINISHES = {'train': ('flat', 'rim'), 'unseen_look': ('dot', 'band')}
_SHADES = {'train': (0.94, 1.0), 'unseen_look': (0.82,)}


def looks(split: str) -> tuple[Look, ...]:
  """All looks of a split; those of `unseen_look` share no table colour, texture or finish with the
  others.
  """
  key = split if split == 'unseen_look' else 'train'
  return tuple(
    Look(table, texture, finish, shade)
    for table in _TABLES[key]
    for texture in _TEXTURES[key]
    for finish in _FINISHES[key]
    for shade in _SHADES[key]
  )


@functools.lru_cache(maxsize=256)
def _surface(table: tuple[int, int, int], texture: str, scale: float, margin: float) -> np.ndarray:
  """Table top and floor around it as uint8 [n, n, 3], `scale` pixels a metre, `margin` metres of
  floor.
  """
  n = round((1 + 2 * margin) * scale)
  axis = (np.arange(n) + 0.5) / scale - margin
  x, y = np.meshgrid(axis, axis)
  brightness = TEXTURE_PATTERNS[texture](x, y)
  image = np.clip(np.array(table) + brightness[..., None], 0, 255)
  outside = (x < 0) | (x > 1) | (y < 0) | (y > 1)
  image[outside] = _FLOOR
  return image.astype(np.uint8)


# What a texture adds to the brightness at x, y (metres).


def _grain(x, y):
  return 7 * np.sin(2 * np.pi * (2.2 * y + 0.25 * np.sin(2 * np.pi * 0.8 * x)))


def _planks(x, y):
  return 9 * (np.floor(4 * x) % 2) - 4.5


def _checker(x, y):
  return 34 * ((np.floor(4 * x) + np.floor(4 * y)) % 2) - 17


def _stripes(x, y):
  return 20 * np.sign(np.sin(2 * np.pi * 3 * (x + y)))


def _speckle(x, y):
  grains = np.random.default_rng(0).normal(0, 16, (24, 24))
  row = np.clip((24 * y).astype(int), 0, 23)
  column = np.clip((24 * x).astype(int), 0, 23)
  return grains[row, column]


TEXTURE_PATTERNS = {
  'plain': lambda x, y: 0 * x,
  'grain': _grain,
  'planks': _planks,
  'checker': _checker,
  'stripes': _stripes,
  'speckle': _speckle,
}


class _Canvas:
  """Draws in metres on `image`, whose pixel (0, 0) begins at `origin`."""

  def __init__(self, image: np.ndarray, scale: float, origin: tuple[float, float]):
    self.image, self._scale, self._origin = image, scale, origin
    self._unit = scale * (1 << _SHIFT)

  def _point(self, x, y):
    half = 1 << (_SHIFT - 1)
    return (
      round((x - self._origin[0]) * self._unit) - half,
      round((y - self._origin[1]) * self._unit) - half,
    )

  def disc(self, x, y, radius, color):
    if radius * self._scale < 10:
      # OpenCV's own small circles come out as diamonds.
      outline = np.rint(radius * self._unit * _CIRCLE + self._point(x, y)).astype(np.int32)
      cv2.fillConvexPoly(self.image, outline, color, cv2.LINE_AA, _SHIFT)
      return
    cv2.circle(
      self.image,
      center=self._point(x, y),
      radius=round(radius * self._unit),
      color=color,
      thickness=cv2.FILLED,
      lineType=cv2.LINE_AA,
      shift=_SHIFT,
    )

  def polygon(self, points, color):
    outline = np.array([self._point(*p) for p in points], np.int32)
    cv2.fillConvexPoly(self.image, outline, color, cv2.LINE_AA, _SHIFT)

  def rod(self, start, stop, width, color):
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    length = max(math.hypot(dx, dy), 1e-9)
    # To the side, half as far as the rod is wide.
    side_x, side_y = -dy / length * width / 2, dx / length * width / 2
    corners = (
      (start[0] + side_x, start[1] + side_y),
      (stop[0] + side_x, stop[1] + side_y),
      (stop[0] - side_x, stop[1] - side_y),
      (start[0] - side_x, start[1] - side_y),
    )
    self.polygon(corners, color)


class Renderer:
  """Images of one episode. What never moves (table, zones) is drawn once per view and size."""

  def __init__(self, scenario: tasks_lib.Scenario, robot: robots_lib.Robot, look: Look):
    self._scenario = scenario
    self._robot = robot
    self._look = look
    self._still: dict[tuple[str, int], np.ndarray] = {}
    self._order = list(range(len(scenario.items)))
    if scenario.drift_seed is not None:
      self._order.append(self._order.pop(0))
    self._colors = [_scale(COLORS[item.color], look.shade) for item in scenario.items]

  def image(
    self, view: str, size: int, world: world_lib.World, joints: robots_lib.Vector
  ) -> np.ndarray:
    """uint8 [size, size, 3] RGB of the whole table ('top') or of 0.4 m around the tip ('wrist')."""
    if (view, size) not in self._still:
      self._still[view, size] = self._draw_still(view, size)
    still = self._still[view, size]
    if view == 'top':
      canvas = _Canvas(still.copy(), float(size), (0.0, 0.0))
    else:
      # The camera moves by whole pixels, so the table's texture stays as sharp as everything on it.
      scale = size / WRIST_SPAN
      column, row = (round((t - WRIST_SPAN / 2 + _MARGIN) * scale) for t in world.tip)
      crop = np.ascontiguousarray(still[row : row + size, column : column + size])
      canvas = _Canvas(crop, scale, (column / scale - _MARGIN, row / scale - _MARGIN))

    # From below to above: items, the one that drifts, the lifted one, the robot.
    for index in self._order:
      if index != world.holding:
        self._draw_item(canvas, index, world)
    if world.holding is not None:
      self._draw_item(canvas, world.holding, world)
    _ROBOT_DRAWERS[self._robot.name](canvas, world, joints)
    return canvas.image

  def _draw_still(self, view, size):
    if view == 'top':
      scale, margin = float(size), 0.0
    else:
      scale, margin = size / WRIST_SPAN, _MARGIN
    image = _surface(self._look.table, self._look.texture, scale, margin).copy()
    canvas = _Canvas(image, scale, (-margin, -margin))
    for zone in self._scenario.zones:
      color = COLORS[zone.color]
      tint = tuple(int(0.65 * t + 0.35 * c) for t, c in zip(self._look.table, color))
      canvas.disc(zone.x, zone.y, tasks_lib.ZONE_RADIUS, color)
      canvas.disc(zone.x, zone.y, tasks_lib.ZONE_RADIUS - 0.032, tint)
    if self._scenario.panel is not None:
      self._draw_panel(canvas, self._scenario.panel)
    return image

  def _draw_panel(self, canvas, panel):
    canvas.polygon(panel.corners, BARS[self._look.finish])
    for name, color in SWITCHES.items():
      canvas.disc(*panel.switch(name), panel_lib.RADIUS, color)

  def _draw_item(self, canvas, index, world):
    item = self._scenario.items[index]
    color = self._colors[index]
    finish = self._look.finish
    x, y, angle = pose = world.pose(index)
    # A lifted item is nearer to the camera.
    grow = 1.12 if index == world.holding else 1.0
    if finish == 'rim':
      _draw_shape(canvas, item.shape, pose, grow, _scale(color, 0.65))
      _draw_shape(canvas, item.shape, pose, 0.82 * grow, color)
    else:
      _draw_shape(canvas, item.shape, pose, grow, color)
    if finish == 'dot':
      canvas.disc(x, y, 0.018, LIGHT)
    elif finish == 'band':
      dx = 0.045 * math.cos(angle)
      dy = 0.045 * math.sin(angle)
      canvas.rod((x - dx, y - dy), (x + dx, y + dy), 0.02, _scale(color, 0.45))


def _scale(color: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
  return tuple(int(factor * channel) for channel in color)


def _draw_shape(canvas, shape, pose, grow, color):
  x, y, angle = pose
  outline = world_lib.SHAPES[shape]
  if outline is None:
    canvas.disc(x, y, world_lib.DISC_RADIUS * grow, color)
    return
  c = grow * math.cos(angle)
  s = grow * math.sin(angle)
  corners = [(x + c * px - s * py, y + s * px + c * py) for px, py in outline]
  canvas.polygon(corners, color)


def _draw_disc(canvas, world, joints):
  x, y = world.tip
  canvas.disc(x, y, 0.045, _DARK)
  canvas.disc(x, y, 0.018 * (1 - world.grip) + 0.01, LIGHT)


def _draw_arm(canvas, world, joints):
  elbow = robots_lib.arm_elbow(joints)
  canvas.rod(robots_lib.ARM_BASE, elbow, 0.07, _STEEL)
  canvas.rod(elbow, world.tip, 0.05, _STEEL)
  canvas.disc(*robots_lib.ARM_BASE, 0.13, _DARK)
  canvas.disc(*elbow, 0.042, _DARK)
  angle = joints[0] + joints[1]
  ahead = (math.sin(angle), -math.cos(angle))
  side = (math.cos(angle), math.sin(angle))
  spread = 0.042 - 0.026 * world.grip
  canvas.disc(*world.tip, 0.026, _DARK)
  for sign in (-1, 1):
    root_x = world.tip[0] + sign * spread * side[0]
    root_y = world.tip[1] + sign * spread * side[1]
    canvas.rod(world.tip, (root_x, root_y), 0.022, _DARK)
    tip_x = root_x + 0.05 * ahead[0]
    tip_y = root_y + 0.05 * ahead[1]
    canvas.rod((root_x, root_y), (tip_x, tip_y), 0.022, _DARK)


def _draw_cart(canvas, world, joints):
  x = joints[0]
  cart = (x, robots_lib.RAIL_Y)
  canvas.rod((-0.3, robots_lib.RAIL_Y), (1.3, robots_lib.RAIL_Y), 0.018, _DARK)
  canvas.rod(cart, world.tip, 0.03, _BROWN)
  left = (x - 0.08, robots_lib.RAIL_Y)
  right = (x + 0.08, robots_lib.RAIL_Y)
  canvas.rod(left, right, 0.075, _BROWN)
  canvas.disc(*world.tip, 0.042, _BROWN)
  canvas.disc(*world.tip, 0.02 * (1 - world.grip) + 0.004, LIGHT)


def _draw_human(canvas, world, joints):
  # The forearm comes in from the right, from wherever a person standing there would reach.
  x, y = world.tip
  shoulder = 1.35, 0.5 + 0.6 * (y - 0.5)
  angle = math.atan2(y - shoulder[1], x - shoulder[0])
  ahead = (math.cos(angle), math.sin(angle))
  side = (-math.sin(angle), math.cos(angle))
  wrist = (x - 0.05 * ahead[0], y - 0.05 * ahead[1])
  cuff = (x - 0.17 * ahead[0], y - 0.17 * ahead[1])
  canvas.rod(wrist, shoulder, 0.06, _SKIN)
  canvas.rod(cuff, shoulder, 0.085, _SLEEVE)
  canvas.disc(x - 0.02 * ahead[0], y - 0.02 * ahead[1], 0.046, _SKIN)
  # Fingers: offset from the middle of the hand, and how far an open one leans out. A closed hand
  # has them short and straight.
  length = 0.075 - 0.035 * world.grip
  for offset, lean in ((-0.034, -0.5), (-0.012, -0.15), (0.012, 0.15), (0.034, 0.6)):
    lean *= 1 - world.grip
    root_x = x + offset * side[0]
    root_y = y + offset * side[1]
    tip_x = root_x + length * (ahead[0] + lean * side[0])
    tip_y = root_y + length * (ahead[1] + lean * side[1])
    canvas.rod((root_x, root_y), (tip_x, tip_y), 0.018, _SKIN)


_ROBOT_DRAWERS = {'disc': _draw_disc, 'arm': _draw_arm, 'cart': _draw_cart, 'human': _draw_human}
