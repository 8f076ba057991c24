"""Physics of the table on pymunk: items with friction against the table, an effector that presses
down or hovers.

Owns no robots (it sees only where the tip goes), no tasks and no drawing. The effector hovers while
its grip is open: it then touches nothing. Closing over an item lifts the item; closing beside one
lets the effector push it.
"""

from __future__ import annotations

import dataclasses
import math

import pymunk

GRAB_RADIUS = 0.05  # From tip to centre of an item that closing lifts, metres.
GRIP_SPEED = 5.0  # Openings per second: 0.1 s until the grip counts as closed.
_SUBSTEP_S = 0.02  # Of the physics.
# Share of its speed that an item keeps after one second: it slides about a centimetre, as a block
# on a table does.
_DAMPING = 1e-6
_MASS = 0.2  # Of every item, kg.
_FRICTION = 0.5  # Between items, walls and the effector.

_CORNERS = (0, 2 * math.pi / 3, 4 * math.pi / 3)  # Of the triangle, radians.
# Outlines about the centre, metres.
SHAPES = {
  'disc': None,
  'square': ((-0.062, -0.062), (0.062, -0.062), (0.062, 0.062), (-0.062, 0.062)),
  'triangle': tuple((0.085 * math.sin(a), -0.085 * math.cos(a)) for a in _CORNERS),
  'bar': ((-0.085, -0.04), (0.085, -0.04), (0.085, 0.04), (-0.085, 0.04)),
}
DISC_RADIUS = 0.07

_SOLID = pymunk.ShapeFilter()
_GHOST = pymunk.ShapeFilter(categories=0, mask=0)


@dataclasses.dataclass(frozen=True)
class Item:
  """A movable object at its start.

  Attributes:
    color: its key in `render.COLORS`.
    shape: its key in `SHAPES`.
    x, y: its centre, metres.
    angle: its turn, radians.
  """

  color: str
  shape: str
  x: float
  y: float
  angle: float = 0.0


def move_grip(grip: float, close: bool, duration_s: float) -> float:
  """Where a grip is that opened or closed for so long: 0 open ... 1 closed."""
  travel = GRIP_SPEED * duration_s
  return min(1.0, grip + travel) if close else max(0.0, grip - travel)


class World:
  """Items, walls and one effector.

  Attributes:
    tip: (x, y) of the effector.
    grip: 0 open (hovering) ... 1 closed (down); it counts as closed from 0.5.
    holding: index of the lifted item, or None.
  """

  def __init__(self, items: tuple[Item, ...], tip: tuple[float, float], tip_radius: float):
    self.tip = tip
    self.grip = 0.0
    self.holding: int | None = None
    self._space = pymunk.Space()
    self._space.damping = _DAMPING
    self._space.collision_slop = 1e-3
    edge = self._space.static_body
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    for a, b in zip(corners, corners[1:] + corners[:1]):
      self._space.add(pymunk.Segment(edge, a, b, 0.005))
    self._bodies: list[pymunk.Body] = []
    self._shapes: list[pymunk.Shape] = []
    for item in items:
      self._add(item)
    self._effector = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
    self._effector.position = tip
    self._effector_shape = pymunk.Circle(self._effector, tip_radius)
    self._effector_shape.friction = _FRICTION
    self._effector_shape.filter = _GHOST
    self._space.add(self._effector, self._effector_shape)
    self._offset = (0.0, 0.0)  # From the tip to the lifted item.
    self._carried: set[int] = set()  # Items that move by themselves.

  def _add(self, item: Item) -> None:
    outline = SHAPES[item.shape]
    is_disc = outline is None
    if is_disc:
      moment = pymunk.moment_for_circle(_MASS, 0, DISC_RADIUS)
    else:
      moment = pymunk.moment_for_poly(_MASS, outline)
    body = pymunk.Body(_MASS, moment)
    body.position = (item.x, item.y)
    body.angle = item.angle
    if is_disc:
      shape = pymunk.Circle(body, DISC_RADIUS)
    else:
      shape = pymunk.Poly(body, outline, radius=0.002)
    shape.friction = _FRICTION
    self._space.add(body, shape)
    self._bodies.append(body)
    self._shapes.append(shape)

  def carry(self, index: int, place: tuple[float, float]) -> None:
    """Puts an item somewhere; from now on nothing touches it or lifts it."""
    self._shapes[index].filter = _GHOST
    self._carried.add(index)
    self._bodies[index].position = place

  def pose(self, index: int) -> tuple[float, float, float]:
    """(x, y, angle) of an item."""
    body = self._bodies[index]
    x, y = body.position
    return x, y, body.angle

  def position(self, index: int) -> tuple[float, float]:
    """(x, y) of an item."""
    x, y = self._bodies[index].position
    return x, y

  @property
  def closed(self) -> bool:
    """Whether the effector is down."""
    return self.grip >= 0.5

  def step(self, tip: tuple[float, float], close: bool, duration_s: float) -> None:
    """Moves the effector to `tip` in a straight line over `duration_s`, opening or closing the grip
    meanwhile.
    """
    was_closed = self.closed
    self.grip = move_grip(self.grip, close, duration_s)
    if self.closed and not was_closed:
      self._close()
    elif was_closed and not self.closed:
      self._open()

    velocity = (tip[0] - self.tip[0]) / duration_s, (tip[1] - self.tip[1]) / duration_s
    self._effector.velocity = velocity
    substeps = max(1, round(duration_s / _SUBSTEP_S))
    for _ in range(substeps):
      self._space.step(duration_s / substeps)

    # Exactly there, whatever the rounding of the steps was.
    self._effector.velocity = 0.0, 0.0
    self._effector.position = self.tip = tip
    if self.holding is not None:
      body = self._bodies[self.holding]
      body.position = tip[0] + self._offset[0], tip[1] + self._offset[1]
      body.velocity = (0.0, 0.0)
      body.angular_velocity = 0.0

  def _close(self) -> None:
    distances = [math.dist(self.tip, body.position) for body in self._bodies]
    loose = [index for index in range(len(distances)) if index not in self._carried]
    nearest = min(loose, key=distances.__getitem__, default=None)
    if nearest is None or distances[nearest] > GRAB_RADIUS:
      self._effector_shape.filter = _SOLID
      return
    self.holding = nearest
    x, y = self._bodies[nearest].position
    self._offset = x - self.tip[0], y - self.tip[1]
    self._shapes[nearest].filter = _GHOST

  def _open(self) -> None:
    self._effector_shape.filter = _GHOST
    if self.holding is not None:
      self._shapes[self.holding].filter = _SOLID
      self.holding = None
