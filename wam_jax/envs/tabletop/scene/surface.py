"""What never moves in an episode: the floor, the table with its material, and the zones on it."""

from __future__ import annotations

import cv2
import numpy as np

from wam_jax.envs.tabletop import render
from wam_jax.envs.tabletop import tasks
from wam_jax.envs.tabletop.scene import camera
from wam_jax.envs.tabletop.scene import solids

_LOW, _HIGH = -0.6, 1.6  # Of the floor that is painted, metres.
_RIM = 0.022  # Width of the table's frame, outside of where things can be.
_FLOOR = (66, 71, 80)
_THICKNESS = 0.045  # Of the table top.


def draw(scenario: tasks.Scenario, look: render.Look, size: int) -> np.ndarray:
  """uint8 [size, size, 3]: the table as the camera sees it, before anything stands on it."""
  n = round(1.5 * size)
  axis = _LOW + (np.arange(n) + 0.5) * (_HIGH - _LOW) / n
  x, y = np.meshgrid(axis, axis)
  ground = _paint_floor(x, y)
  # Behind the table top, so that its side shows below the near edge.
  picture = solids.Picture(camera.lay_out(ground.astype(np.uint8), _LOW, _HIGH, size))
  frame = np.array([(-_RIM, -_RIM), (1 + _RIM, -_RIM), (1 + _RIM, 1 + _RIM), (-_RIM, 1 + _RIM)])
  wood = tuple(int(0.72 * c) for c in look.table)
  slab = solids.Solid(
    solids.round_corners(frame, 0.03), -_THICKNESS, 0.0, wood, bevel=0.006, gloss=0.1
  )
  picture.solid(slab)

  top = camera.lay_out(_paint_top(x, y, scenario, look).astype(np.uint8), _LOW, _HIGH, size)
  mask = np.zeros((size, size), np.uint8)
  inside = solids.round_corners(np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]), 0.014)
  solids.Picture(mask).flat(inside, 0.0, (255,))
  share = mask[..., None] / 255
  return (share * top + (1 - share) * picture.image).astype(np.uint8)


def _paint_floor(x, y) -> np.ndarray:
  """Dark, lighter towards the light, with the shadow of the table on it."""
  lit = 1.08 - 0.30 * np.hypot(x - 0.2, y - 0.2)
  inside = ((x > -0.02) & (x < 1.10) & (y > -0.02) & (y < 1.10)).astype(np.float32)
  shadow = cv2.GaussianBlur(inside, (0, 0), 0.035 * len(x) / (_HIGH - _LOW))
  return np.clip(np.array(_FLOOR) * (lit * (1 - 0.55 * shadow))[..., None], 0, 255)


def _paint_top(x, y, scenario: tasks.Scenario, look: render.Look) -> np.ndarray:
  """The table's colour and pattern as the model sees them, with fibres and light, and the zones."""
  brightness = render.TEXTURE_PATTERNS[look.texture](x, y) + _MATERIALS[look.texture](x, y)
  image = np.array(look.table) + brightness[..., None]
  for zone in scenario.zones:
    image = _paint_zone(image, x, y, zone, look)
  lit = 1.06 - 0.16 * np.hypot(x - 0.15, y - 0.1)
  return np.clip(image * lit[..., None], 0, 255)


def _paint_zone(image, x, y, zone: tasks.Zone, look: render.Look) -> np.ndarray:
  """A ring and a thin coat of its colour, through which the table shows."""
  color = np.array(render.COLORS[zone.color])
  distance = np.hypot(x - zone.x, y - zone.y)
  pixel = x[0, 1] - x[0, 0]
  coat = _step_down(distance, tasks.ZONE_RADIUS, pixel)
  ring = coat - _step_down(distance, tasks.ZONE_RADIUS - 0.022, pixel)
  share = (0.36 * coat + 0.56 * ring)[..., None]
  return image * (1 - share) + color * share


def _step_down(distance, edge: float, pixel: float):
  """1 inside of `edge`, 0 outside, over the width of a pixel."""
  return np.clip((edge - distance) / pixel + 0.5, 0, 1)


# What the eye sees of the material from near, added to the brightness at x, y (metres).


def _noise(x, y, rows: int, columns: int, seed: int):
  """Smooth random numbers of mean 0 and deviation 1, `rows` and `columns` a metre."""
  metres = _HIGH - _LOW
  grid = np.random.default_rng(seed).standard_normal(
    (
      max(2, round(rows * metres)),
      max(2, round(columns * metres)),
    )
  )
  return cv2.resize(grid, (x.shape[1], x.shape[0]), interpolation=cv2.INTER_CUBIC)


def _wood(x, y):
  return 2.6 * _noise(x, y, 90, 4, 1) + 1.6 * _noise(x, y, 190, 10, 2)


def _boards(x, y):
  """Fibres along the planks, and a dark joint between two."""
  fibres = 2.4 * _noise(x, y, 4, 90, 3) + 1.4 * _noise(x, y, 10, 190, 4)
  from_joint = np.abs(4 * x - np.round(4 * x)) / 4
  return fibres - 26 * np.clip(1 - from_joint / 0.0035, 0, 1)


def _matte(x, y):
  return 1.6 * _noise(x, y, 160, 160, 5)


_MATERIALS = {
  'plain': _matte,
  'grain': _wood,
  'planks': _boards,
  'checker': _matte,
  'stripes': _matte,
  'speckle': _matte,
}
