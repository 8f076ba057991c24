"""Kinematics of the tabletop robots: joint limits, speeds, where the tip is and how to bring it
somewhere.

Owns no physics and no drawing. Lengths are metres on the table [0, 1]^2, x to the right and y DOWN
as in the image; angles are radians.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

Vector = tuple[float, ...]

ARM_BASE = (0.5, 1.08)  # Of the arm, just off the table at the bottom of the image.
ARM_LINK = 0.58  # Length of each of its two links.
RAIL_Y = 0.04  # Where the cart runs, at the top.
CART_LEAN = 0.8  # Radians that its pole leans for a metre of the tip from the middle.


@dataclasses.dataclass(frozen=True)
class Robot:
  """One embodiment.

  Attributes:
    name: its key in `ROBOTS`.
    control_hz: actions per second.
    tip_radius: radius of the effector's contact disc, metres.
    low, high: the limits of the joints.
    max_delta: joint change of an action of 1, per control step; the action has one more entry, the
      grip.
    forward: the map from joints to the tip (x, y).
    inverse: the map from a tip (x, y) to joints; continuous over the table, so that following a
      straight line of tips works.
    proprio_joints: whether proprioception starts with the joints themselves.
    proprio_tip: whether it has the tip position (after the joints).
  """

  name: str
  control_hz: float
  tip_radius: float
  low: Vector
  high: Vector
  max_delta: Vector
  forward: Callable[[Vector], tuple[float, float]]
  inverse: Callable[[float, float], Vector]
  proprio_joints: bool = True
  proprio_tip: bool = False

  @property
  def action_dim(self) -> int:
    """Joints and the grip."""
    return len(self.max_delta) + 1

  @property
  def proprio_dim(self) -> int:
    """Length of `proprio`."""
    return len(self.low) * self.proprio_joints + 2 * self.proprio_tip + 2

  def move(self, joints: Vector, action: Vector) -> Vector:
    """Joints after one control step of `action` (entries in [-1, 1]), kept inside limits and over
    the table.
    """
    moved = []
    for joint, entry, delta in zip(joints, action, self.max_delta):
      moved.append(joint + entry * delta)
    moved = self.limit(moved)
    x, y = self.forward(moved)
    inside = (_clip_to_table(x, self.tip_radius), _clip_to_table(y, self.tip_radius))
    return moved if inside == (x, y) else self.limit(self.inverse(*inside))

  def limit(self, joints: Sequence[float]) -> Vector:
    """`joints` clipped to their limits."""
    return tuple(min(max(q, low), high) for q, low, high in zip(joints, self.low, self.high))


def arm_elbow(joints: Vector) -> tuple[float, float]:
  """Elbow position of the two-link arm; angle 0 points up the image."""
  return ARM_BASE[0] + ARM_LINK * math.sin(joints[0]), ARM_BASE[1] - ARM_LINK * math.cos(joints[0])


def _arm_forward(joints):
  x, y = arm_elbow(joints)
  angle = joints[0] + joints[1]
  return x + ARM_LINK * math.sin(angle), y - ARM_LINK * math.cos(angle)


def _arm_inverse(x, y):
  # Equal links: the triangle base-elbow-tip is isosceles. The elbow is always on the left.
  dx, dy = x - ARM_BASE[0], ARM_BASE[1] - y
  bend = 2 * math.acos(min(1.0, math.hypot(dx, dy) / (2 * ARM_LINK)))
  return math.atan2(dx, dy) - bend / 2, bend


def _cart_forward(joints):
  cart, angle, length = joints
  return cart + length * math.sin(angle), RAIL_Y + length * math.cos(angle)


def _cart_inverse(x, y):
  # Three joints for two coordinates: the pole leans outwards in proportion to how far the tip is
  # from the middle.
  angle = CART_LEAN * (x - 0.5)
  length = (y - RAIL_Y) / math.cos(angle)
  return x - length * math.sin(angle), angle, length


def _point_forward(joints):
  x, y = joints
  return x, y


def _point_inverse(x, y):
  return x, y


def _clip_to_table(value: float, margin: float) -> float:
  return min(max(value, margin), 1 - margin)


_DISC = Robot(
  name='disc',
  control_hz=10.0,
  tip_radius=0.045,
  low=(0.05, 0.05),
  high=(0.95, 0.95),
  max_delta=(0.05, 0.05),
  forward=_point_forward,
  inverse=_point_inverse,
)
_ARM = Robot(
  name='arm',
  control_hz=15.0,
  tip_radius=0.04,
  low=(-3.0, 0.1),
  high=(1.7, 2.95),
  max_delta=(0.06, 0.06),
  forward=_arm_forward,
  inverse=_arm_inverse,
  proprio_tip=True,
)
_CART = Robot(
  name='cart',
  control_hz=5.0,
  tip_radius=0.04,
  low=(0.05, -0.8, 0.02),
  high=(0.95, 0.8, 1.2),
  max_delta=(0.1, 0.2, 0.1),
  forward=_cart_forward,
  inverse=_cart_inverse,
)
# The disc's kinematics with a hand instead: videos of it have no actions.
_HUMAN = dataclasses.replace(_DISC, name='human', tip_radius=0.05)

ROBOTS = {robot.name: robot for robot in (_DISC, _ARM, _CART, _HUMAN)}
