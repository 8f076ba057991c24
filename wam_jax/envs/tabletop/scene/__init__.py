"""The tabletop as people see it: the model's scene in depth, with materials, light and shadows.

What stands where is what physics says; the model's own views (`tabletop.render`) stay as they are.
Drawn at twice the asked resolution and averaged down, so that every edge is smooth.
"""

from __future__ import annotations

import cv2
import numpy as np

from wam_jax.envs.tabletop import panel as panel_lib
from wam_jax.envs.tabletop import render
from wam_jax.envs.tabletop import robots as robots_lib
from wam_jax.envs.tabletop import tasks as tasks_lib
from wam_jax.envs.tabletop import world as world_lib
from wam_jax.envs.tabletop.scene import figures
from wam_jax.envs.tabletop.scene import solids
from wam_jax.envs.tabletop.scene import surface

_OVERSAMPLING = 2


class Scene:
  """Pictures for people of one episode. The table is drawn once for each size."""

  def __init__(self, scenario: tasks_lib.Scenario, robot: robots_lib.Robot, look: render.Look):
    self._scenario = scenario
    self._robot = robot
    self._look = look
    self._still: dict[int, np.ndarray] = {}

  def image(
    self,
    size: int,
    world: world_lib.World,
    joints: robots_lib.Vector,
    lamp: panel_lib.Lamp | None = None,
  ) -> np.ndarray:
    """uint8 [size, size, 3] RGB of the whole table and what is around it, in plain light."""
    full = _OVERSAMPLING * size
    if size not in self._still:
      self._still[size] = surface.draw(self._scenario, self._look, full)
    picture = solids.Picture(self._still[size].copy())

    if lamp is not None:
      _paint(picture, figures.panel(self._scenario.panel, lamp, self._look), 0.010, 0.42)
    items = []
    for index, thing in enumerate(self._scenario.items):
      items.append(figures.item(index, thing, world, self._look))
    lying = [index for index in range(len(items)) if index != world.holding]
    # The nearer ones hide the farther ones.
    lying.sort(key=lambda index: world.position(index)[1])
    _paint(picture, [part for index in lying for part in items[index]], 0.010, 0.42)

    robot = figures.robot(self._robot.name, world, joints)
    held = [] if world.holding is None else items[world.holding]
    _paint(picture, held + robot, 0.016, 0.36)
    return cv2.resize(picture.image, (size, size), interpolation=cv2.INTER_AREA)


def _paint(picture: solids.Picture, figure: figures.Figure, softness, strength) -> None:
  """Shadows at first, then what throws them."""
  bodies = [part for part in figure if isinstance(part, solids.Solid)]
  picture.shadows(bodies, softness, strength)
  for part in figure:
    if isinstance(part, solids.Solid):
      picture.solid(part)
    else:
      picture.flat(part.outline_N2, part.height, part.color)
