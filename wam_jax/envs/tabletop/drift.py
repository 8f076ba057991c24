"""How an item of the table moves by itself: straight on, back from the edges, with sudden turns.

Owns no physics and no drawing. What moves so is touched by nothing.
"""

from __future__ import annotations

import math

import numpy as np

SPEED = 0.15  # Of the item, m/s; the tips of the robots reach 0.5.
TURNS = 0.4  # A second, on average; the new direction has nothing to do with the old one.
_EDGE = 0.12  # Of the table, metres, that the item's centre keeps away from.

Point = tuple[float, float]


class Drift:
  """An item under way; deterministic by its seed, whatever the steps that it is moved by.

  Attributes:
    place: (x, y) of its centre now, metres.
    velocity: (x, y) now, m/s.
  """

  def __init__(self, place: tuple[float, float], seed: int, speed: float = SPEED):
    self._speed = speed
    self._rng = np.random.default_rng(seed)
    self.place = place
    self._turn()

  def advance(self, duration_s: float) -> tuple[float, float]:
    """The place after so many seconds."""
    while duration_s >= self._left_s:
      duration_s -= self._left_s
      self._move(self._left_s)
      self._turn()
    self._left_s -= duration_s
    self._move(duration_s)
    return self.place

  def _turn(self) -> None:
    angle = self._rng.uniform(-math.pi, math.pi)
    self.velocity = self._speed * math.cos(angle), self._speed * math.sin(angle)
    self._left_s = float(self._rng.exponential(1 / TURNS))

  def _move(self, duration_s: float) -> None:
    self.place, self.velocity = go_on(self.place, self.velocity, duration_s)


def go_on(place: Point, velocity: Point, duration_s: float) -> tuple[Point, Point]:
  """(place, velocity) after a time without turns."""
  (x, speed_x), (y, speed_y) = (_reflect(p, v, duration_s) for p, v in zip(place, velocity))
  return (x, y), (speed_x, speed_y)


def _reflect(position: float, speed: float, duration_s: float) -> tuple[float, float]:
  """(position, speed) along one axis after a time, between the edges."""
  width = 1 - 2 * _EDGE
  # Unfolded, a way between two mirrors is straight: two widths there and back are one period.
  unfolded = (position - _EDGE + speed * duration_s) % (2 * width)
  if unfolded <= width:
    return _EDGE + unfolded, speed
  return _EDGE + 2 * width - unfolded, -speed
