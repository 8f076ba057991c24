"""A bar with two switches, and the lamp over the table that they turn brighter or darker.

Owns where the switches are, what was pressed and the light; no words and no drawing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

OFFSET = 0.12  # From the middle of the bar to each switch, metres.
RADIUS = 0.06  # Of a switch: closing the grip within it presses it.
LENGTH = 0.44
WIDTH = 0.18
LIGHT = 0.25  # By which share everything in view turns brighter or darker.

SWITCHES = ('on', 'off')
JAMMED = 'jammed'
# Where the tip starts, seen from the bar; y points down.
FRONTS = {'below': (0, 1), 'left': (-1, 0), 'above': (0, -1), 'right': (1, 0)}

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Panel:
  """The bar at its place, for a whole episode.

  Attributes:
    x, y: its middle, metres.
    front: the side from which the tip comes, a key of `FRONTS`.
    is_on_ahead: whether the switch 'on' lies a quarter turn from the front as the clock goes in the
      image, and 'off' opposite; or the other way round.
  """

  x: float
  y: float
  front: str
  is_on_ahead: bool

  @property
  def along(self) -> tuple[int, int]:
    """Unit vector from the middle towards the end that a quarter turn from the front leads to."""
    x, y = FRONTS[self.front]
    return -y, x

  def switch(self, name: str) -> Point:
    """Centre of the switch 'on' or 'off', metres."""
    sign = 1 if (name == 'on') == self.is_on_ahead else -1
    x, y = self.along
    return self.x + sign * OFFSET * x, self.y + sign * OFFSET * y

  @property
  def corners(self) -> list[Point]:
    """Of the bar, in the order of the clock in the image."""
    half_x, half_y = (LENGTH / 2, WIDTH / 2) if self.along[0] else (WIDTH / 2, LENGTH / 2)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [(self.x + sx * half_x, self.y + sy * half_y) for sx, sy in signs]

  def press(self, tip: Point) -> str:
    """What closing the grip at `tip` does: the name of a switch, `JAMMED` elsewhere on the bar, ''
    beside it.
    """
    for name in SWITCHES:
      if math.dist(tip, self.switch(name)) <= RADIUS:
        return name
    (left, upper), _, (right, lower), _ = self.corners
    return JAMMED if left <= tip[0] <= right and upper <= tip[1] <= lower else ''


class Lamp:
  """What became of the panel in this episode: the first press decides for good.

  Attributes:
    state: '' before, then 'on', 'off' or `JAMMED`.
  """

  def __init__(self, panel: Panel, light: float):
    self.state = ''
    self._panel = panel
    self._light = light

  def press(self, tip: Point) -> None:
    """The grip has closed at `tip`."""
    self.state = self.state or self._panel.press(tip)

  def shine(self, image: np.ndarray) -> np.ndarray:
    """uint8 `image` in the present light."""
    turned = {'on': self._light, 'off': -self._light}.get(self.state, 0.0)
    if not turned:
      return image
    return np.clip((1 + turned) * image.astype(np.float32), 0, 255).astype(np.uint8)
