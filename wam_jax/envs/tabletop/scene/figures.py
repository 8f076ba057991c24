"""Items and robots as solids: what stands where, and how high, at one moment.

Heights are for people alone: physics knows only whether the effector is down, and what it holds.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from wam_jax.envs.tabletop import panel as panel_lib
from wam_jax.envs.tabletop import render
from wam_jax.envs.tabletop import robots
from wam_jax.envs.tabletop import world as world_lib
from wam_jax.envs.tabletop.scene import solids

ITEM_HEIGHT = 0.045
_BAR_HEIGHT = 0.016
_HOVER = 0.085  # Of the effector above the table while its grip is open.
_LIFT = 0.05  # Of what it holds.
_BULB = {
  '': (150, 146, 132),
  'on': (255, 222, 96),
  'off': (44, 42, 40),
  panel_lib.JAMMED: (226, 52, 36),
}
_DARK = (52, 54, 62)
_STEEL = (150, 157, 170)
_WHITE = (246, 247, 250)
_SHELL = (218, 222, 230)
_ORANGE = (236, 128, 40)
_WOOD = (142, 92, 56)
_SKIN = (236, 188, 156)
_NAIL = (246, 214, 196)
_SLEEVE = (70, 98, 120)


@dataclasses.dataclass(frozen=True)
class Mark:
  """A flat sign on top of a solid: an outline at a height, in a colour."""

  outline_N2: np.ndarray
  height: float
  color: tuple[int, int, int]


Figure = list[solids.Solid | Mark]  # From below to above.


def lift_of(world: world_lib.World) -> float:
  """How high the held item is: it rises while the grip closes."""
  return _LIFT * max(0.0, 2 * world.grip - 1)


def tip_height(world: world_lib.World) -> float:
  """The lower end of the effector: on what it holds, or over the table, down when closed."""
  if world.holding is not None:
    return ITEM_HEIGHT + lift_of(world)
  return 0.006 + _HOVER * (1 - world.grip)


def item(index: int, thing: world_lib.Item, world: world_lib.World, look: render.Look) -> Figure:
  """One item, on the table or lifted, in the finish of the episode's look."""
  x, y, angle = world.pose(index)
  low = lift_of(world) if index == world.holding else 0.0
  high = low + ITEM_HEIGHT
  color = _scale(render.COLORS[thing.color], look.shade)
  outline = _outline(thing.shape, x, y, angle)
  figure: Figure = [solids.Solid(outline, low, high, color, bevel=0.009)]
  if look.finish == 'rim':
    inner = (x, y) + 0.74 * (outline - (x, y))
    figure = [
      solids.Solid(outline, low, high, _scale(color, 0.7), bevel=0.009),
      Mark(inner, high, _scale(color, 1.04)),
    ]
  elif look.finish == 'dot':
    figure.append(Mark(solids.disc(x, y, 0.018), high, render.LIGHT))
  elif look.finish == 'band':
    across = np.array((0.045 * math.cos(angle), 0.045 * math.sin(angle)))
    middle = np.array((x, y))
    band = solids.rod(middle - across, middle + across, 0.02)
    figure.append(Mark(band, high, _scale(color, 0.45)))
  return figure


def panel(bar: panel_lib.Panel, lamp: panel_lib.Lamp, look: render.Look) -> Figure:
  """The bar with its switches, of which the pressed one is down, and a bulb that tells how it is
  between them: unlit, lit, out, or the red of a jam.
  """
  outline = solids.round_corners(np.array(bar.corners), 0.03)
  figure: Figure = [solids.Solid(outline, 0.0, _BAR_HEIGHT, render.BARS[look.finish], bevel=0.008)]
  # The nearer one hides the farther one.
  for name in sorted(panel_lib.SWITCHES, key=lambda name: bar.switch(name)[1]):
    high = _BAR_HEIGHT + (0.004 if name == lamp.state else 0.018)
    knob = solids.disc(*bar.switch(name), panel_lib.RADIUS)
    figure.append(solids.Solid(knob, _BAR_HEIGHT, high, render.SWITCHES[name], bevel=0.004))
  bulb = solids.disc(bar.x, bar.y, 0.026)
  color = _BULB[lamp.state]
  figure.append(solids.Solid(bulb, _BAR_HEIGHT, _BAR_HEIGHT + 0.012, color, bevel=0.006))
  return figure


def _outline(shape: str, x: float, y: float, angle: float) -> np.ndarray:
  corners = world_lib.SHAPES[shape]
  if corners is None:
    return solids.disc(x, y, world_lib.DISC_RADIUS)
  c, s = math.cos(angle), math.sin(angle)
  turned = np.array(corners) @ np.array(((c, s), (-s, c)))
  return solids.round_corners(turned + np.array((x, y)), 0.010)


def _scale(color: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
  return tuple(min(255, int(factor * channel)) for channel in color)


def robot(name: str, world: world_lib.World, joints: robots.Vector) -> Figure:
  """The robot of this name, its parts from below to above."""
  return _ROBOTS[name](world, joints)


def _disc(world, joints) -> Figure:
  x, y = world.tip
  z = tip_height(world)
  return [
    solids.Solid(solids.disc(x, y, 0.045), z, z + 0.034, _DARK, bevel=0.010),
    solids.Solid(solids.disc(x, y, 0.030), z + 0.034, z + 0.046, _STEEL, bevel=0.005, gloss=0.8),
    Mark(solids.disc(x, y, 0.021), z + 0.046, _DARK),
    # The lamp tells the grip, as in the model's view.
    Mark(solids.disc(x, y, 0.009 + 0.010 * (1 - world.grip)), z + 0.0465, _WHITE),
  ]


def _arm(world, joints) -> Figure:
  elbow = robots.arm_elbow(joints)
  x, y = world.tip
  z = tip_height(world)
  link = z + 0.075
  figure = _gripper(world, joints[0] + joints[1], z)
  figure += [
    solids.Solid(solids.disc(x, y, 0.020), z + 0.02, link, _DARK),
    solids.Solid(solids.rod(elbow, (x, y), 0.050), link, link + 0.036, _SHELL, bevel=0.014),
    solids.Solid(solids.disc(x, y, 0.030), link + 0.02, link + 0.044, _DARK, bevel=0.008),
    solids.Solid(solids.disc(*robots.ARM_BASE, 0.125), -0.04, 0.10, _DARK, bevel=0.012),
    solids.Solid(solids.disc(*elbow, 0.040), link - 0.004, link + 0.05, _DARK, bevel=0.010),
    solids.Solid(
      solids.rod(robots.ARM_BASE, elbow, 0.068), link + 0.05, link + 0.088, _SHELL, bevel=0.016
    ),
    solids.Solid(
      solids.disc(*elbow, 0.026), link + 0.088, link + 0.096, _ORANGE, bevel=0.005, gloss=0.6
    ),
    solids.Solid(
      solids.disc(*robots.ARM_BASE, 0.05), link + 0.088, link + 0.1, _ORANGE, bevel=0.006
    ),
  ]
  return figure


def _gripper(world, angle: float, z: float) -> Figure:
  """Two fingers at the tip, apart as far as the grip is open."""
  x, y = world.tip
  ahead = np.array((math.sin(angle), -math.cos(angle)))
  side = np.array((math.cos(angle), math.sin(angle)))
  spread = 0.042 - 0.026 * world.grip
  figure: Figure = [
    solids.Solid(
      solids.rod((x, y) - spread * side, (x, y) + spread * side, 0.024), z, z + 0.024, _STEEL
    )
  ]
  for sign in (-1, 1):
    root = (x, y) + sign * spread * side
    finger = solids.rod(root, root + 0.05 * ahead, 0.020)
    figure.append(solids.Solid(finger, z, z + 0.026, _DARK, bevel=0.005))
  return figure


def _cart(world, joints) -> Figure:
  x, rail = joints[0], robots.RAIL_Y
  tip_x, tip_y = world.tip
  z = tip_height(world)
  beam = z + 0.062
  body = np.array(
    [
      (x - 0.08, rail - 0.037),
      (x + 0.08, rail - 0.037),
      (x + 0.08, rail + 0.037),
      (x - 0.08, rail + 0.037),
    ]
  )
  return [
    solids.Solid(solids.rod((-0.3, rail), (1.3, rail), 0.020), 0.035, 0.055, _STEEL, gloss=0.7),
    solids.Solid(solids.disc(tip_x, tip_y, 0.042), z, z + 0.034, _DARK, bevel=0.010),
    solids.Solid(solids.disc(tip_x, tip_y, 0.020), z + 0.034, beam, _STEEL),
    solids.Solid(solids.round_corners(body, 0.014), 0.04, beam + 0.002, _ORANGE, bevel=0.010),
    solids.Solid(
      solids.rod((x, rail), (tip_x, tip_y), 0.032), beam, beam + 0.026, _WOOD, bevel=0.008
    ),
    solids.Solid(solids.disc(x, rail, 0.022), beam + 0.026, beam + 0.036, _DARK),
    solids.Solid(solids.disc(tip_x, tip_y, 0.024), beam + 0.02, beam + 0.034, _DARK, bevel=0.005),
    Mark(solids.disc(tip_x, tip_y, 0.005 + 0.012 * (1 - world.grip)), beam + 0.0345, _WHITE),
  ]


def _human(world, joints) -> Figure:
  # From the right, as in the model's view.
  x, y = world.tip
  z = tip_height(world)
  shoulder = np.array((1.35, 0.5 + 0.6 * (y - 0.5)))
  angle = math.atan2(y - shoulder[1], x - shoulder[0])
  ahead = np.array((math.cos(angle), math.sin(angle)))
  side = np.array((-math.sin(angle), math.cos(angle)))
  palm = (x, y) - 0.02 * ahead
  figure: Figure = []
  length = 0.075 - 0.035 * world.grip
  for offset, lean in ((-0.034, -0.5), (-0.012, -0.15), (0.012, 0.15), (0.034, 0.6)):
    root = (x, y) + offset * side
    tip = root + length * (ahead + lean * (1 - world.grip) * side)
    figure.append(solids.Solid(solids.rod(root, tip, 0.021), z, z + 0.02, _SKIN, 0.008, 0.1))
    figure.append(Mark(solids.disc(*(tip + 0.002 * ahead), 0.006, 12), z + 0.0205, _NAIL))
  figure += [
    solids.Solid(solids.rod(palm - 0.02 * ahead, palm, 0.088), z, z + 0.034, _SKIN, 0.016, 0.1),
    solids.Solid(solids.rod(palm, shoulder, 0.058), z + 0.004, z + 0.044, _SKIN, 0.018, 0.1),
    solids.Solid(
      solids.rod((x, y) - 0.17 * ahead, shoulder, 0.088), z, z + 0.056, _SLEEVE, 0.02, 0.05
    ),
  ]
  return figure


_ROBOTS = {'disc': _disc, 'arm': _arm, 'cart': _cart, 'human': _human}
