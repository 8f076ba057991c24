"""The camera that people look through: above the table and a little towards them.

Owns the projection alone. Points are metres: x to the right, y towards the viewer, z up from the
table top.
"""

from __future__ import annotations

import cv2
import numpy as np

TILT = np.radians(30.0)  # From straight above.
DISTANCE = 2.6  # From `TARGET`, metres.
TARGET = np.array((0.5, 0.515, 0.0))  # In the middle of the picture.
SPAN = 1.22  # Metres at the target that the picture is wide.

# Where the picture's axes point in the world, and where the camera stands.
_RIGHT = np.array((1.0, 0.0, 0.0))
_DOWN = np.array((0.0, np.cos(TILT), -np.sin(TILT)))
_FORWARD = np.array((0.0, -np.sin(TILT), -np.cos(TILT)))
POSITION = TARGET - DISTANCE * _FORWARD


def project(points_N3: np.ndarray, size: int) -> np.ndarray:
  """float64 [N, 2]: columns and rows in a picture of `size` pixels, from its upper left corner."""
  from_camera_N3 = points_N3 - POSITION
  scale_N = size / SPAN * DISTANCE / (from_camera_N3 @ _FORWARD)
  across_N2 = from_camera_N3 @ np.stack([_RIGHT, _DOWN], 1)
  return size / 2 + scale_N[:, None] * across_N2


def lay_out(image: np.ndarray, low: float, high: float, size: int) -> np.ndarray:
  """[size, size, 3]: a square picture of the plane of the table, seen by the camera.

  Args:
    image: [n, n, 3] of the square from (low, low) to (high, high), metres.
  """
  n = image.shape[0]
  corners = np.array([(low, low), (high, low), (high, high), (low, high)])
  ground = np.concatenate([corners, np.zeros((4, 1))], axis=1)
  there = project(ground, size).astype(np.float32)
  here = np.array([(0, 0), (n, 0), (n, n), (0, n)], np.float32)
  # Pixel centres lie half a pixel inside.
  warp = cv2.getPerspectiveTransform(here - 0.5, there - 0.5)
  return cv2.warpPerspective(
    image, warp, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
  )
