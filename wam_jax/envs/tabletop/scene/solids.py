"""Upright solids with bevelled edges, and the soft shadows that they throw.

Owns outlines, light and shading; knows nothing of the table. A solid is a convex outline between
two heights, so nearer sides hide farther ones when each is painted after what it may cover.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np

from wam_jax.envs.tabletop.scene import camera

LIGHT = np.array((-0.46, -0.30, 0.84))  # Towards the light; length 1.
_AMBIENT = 0.60
_DIFFUSE = 0.47
_HALF = LIGHT + np.array((0.0, math.sin(camera.TILT), math.cos(camera.TILT)))
_HALF /= np.linalg.norm(_HALF)  # Between the light and the camera: where surfaces glance.
_SHIFT = 4  # Bits of a pixel's fraction that OpenCV gets.


@dataclasses.dataclass(frozen=True)
class Solid:
  """What stands, or hovers, over the table.

  Attributes:
    outline_N2: its corners in order, metres; convex.
    low, high: the heights of its bottom and its top, metres.
    color: its RGB.
    bevel: the width of its slanted upper edge, metres.
    gloss: how much of the light it mirrors, 0 ... 1.
  """

  outline_N2: np.ndarray
  low: float
  high: float
  color: tuple[int, int, int]
  bevel: float = 0.006
  gloss: float = 0.35


@functools.lru_cache(maxsize=64)
def _round(start: float, stop: float, corners: int) -> np.ndarray:
  angles = np.linspace(start, stop, corners)
  return np.stack([np.cos(angles), np.sin(angles)], 1)


def disc(x: float, y: float, radius: float, corners: int = 32) -> np.ndarray:
  """[corners, 2]: the outline of a disc."""
  return (x, y) + radius * _round(0.0, 2 * math.pi * (1 - 1 / corners), corners)


def rod(start: tuple[float, float], stop: tuple[float, float], width: float) -> np.ndarray:
  """The outline of a rod with round ends."""
  along = math.atan2(stop[1] - start[1], stop[0] - start[0])
  turn = np.array(((math.cos(along), math.sin(along)), (-math.sin(along), math.cos(along))))
  end = width / 2 * _round(-math.pi / 2, math.pi / 2, 10)
  return np.concatenate([stop + end @ turn, start - end @ turn])


def round_corners(corners_N2: np.ndarray, radius: float) -> np.ndarray:
  """The outline with its corners, which go round as the clock does in the picture, rounded."""
  before = np.roll(corners_N2, 1, 0) - corners_N2
  after = np.roll(corners_N2, -1, 0) - corners_N2
  before /= np.linalg.norm(before, axis=1, keepdims=True)
  after /= np.linalg.norm(after, axis=1, keepdims=True)
  middle = before + after
  middle /= np.linalg.norm(middle, axis=1, keepdims=True)
  half = np.arccos(np.clip((before * after).sum(1), -1, 1)) / 2
  centre = corners_N2 + middle * (radius / np.sin(half))[:, None]
  first = np.arctan2(-middle[:, 1], -middle[:, 0]) - (math.pi / 2 - half)
  sweep = np.linspace(0, 1, 6) * (math.pi - 2 * half)[:, None]
  angles = first[:, None] + sweep
  arcs = centre[:, None] + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
  return arcs.reshape(-1, 2)


def shade(color: tuple[int, int, int], normal: np.ndarray, gloss: float) -> np.ndarray:
  """RGB [..., 3] of surfaces with these unit normals [..., 3] under the light."""
  facing = np.clip(normal @ LIGHT, 0, 1)[..., None]
  glance = np.clip(normal @ _HALF, 0, 1)[..., None] ** 24
  lit = np.array(color) * (_AMBIENT + _DIFFUSE * facing) + 110 * gloss * glance
  return np.clip(lit, 0, 255)


class Picture:
  """Solids on an image [size, size, 3], painted from below to above."""

  def __init__(self, image: np.ndarray):
    self.image = image
    self._size = image.shape[0]

  def flat(self, outline_N2: np.ndarray, height: float, color) -> None:
    """A thin mark, for instance on top of a solid."""
    self._fill(_raise(outline_N2, height), color)

  def solid(self, solid: Solid) -> None:
    """The visible sides, the slanted edge and the top."""
    outline_N2 = solid.outline_N2
    edge_N2 = np.roll(outline_N2, -1, 0) - outline_N2
    normal_N2 = np.stack([edge_N2[:, 1], -edge_N2[:, 0]], 1)
    normal_N2 /= np.maximum(np.linalg.norm(normal_N2, axis=1, keepdims=True), 1e-9)
    corner_N2 = normal_N2 + np.roll(normal_N2, 1, 0)
    corner_N2 /= np.maximum((corner_N2**2).sum(1, keepdims=True), 1e-9) / 2
    top_N2 = outline_N2 - solid.bevel * corner_N2

    bottom = _raise(outline_N2, solid.low)
    shoulder = _raise(outline_N2, solid.high - solid.bevel)
    top = _raise(top_N2, solid.high)
    # Whole at first, so that nothing shines through between the sides.
    everything = camera.project(np.concatenate([bottom, shoulder]), self._size)
    hull = cv2.convexHull(everything.astype(np.float32))[:, 0]
    self._fill_pixels(hull, shade(solid.color, np.array((0.0, 0.6, 0.0)), 0))
    self._band(bottom, shoulder, normal_N2, 0.0, solid)
    self._band(shoulder, top, normal_N2, 1.0, solid)
    self._fill(top, shade(solid.color, np.array((0.0, 0.0, 1.0)), solid.gloss))

  def shadows(self, thrown: list[Solid], softness: float, strength: float) -> None:
    """Darkens everything painted so far where `thrown` keep the light away.

    Args:
      softness: the width of the shadows' edges, metres.
      strength: the share of the light that is missing in the middle of one.
    """
    size = self._size // 4  # A soft edge needs few pixels.
    mask = np.zeros((size, size), np.uint8)
    for solid in thrown:
      reach = -LIGHT[:2] / LIGHT[2]
      points_N2 = np.concatenate(
        [
          solid.outline_N2 + max(solid.low, 0.0) * reach,
          solid.outline_N2 + solid.high * reach,
        ]
      )
      outline = cv2.convexHull(points_N2.astype(np.float32))[:, 0]
      pixels = camera.project(_raise(outline, 0.0), size)
      cv2.fillConvexPoly(mask, _fixed(pixels), 255, cv2.LINE_AA, _SHIFT)
    sigma = softness * size / camera.SPAN
    mask = cv2.GaussianBlur(mask, (0, 0), sigma)
    light = cv2.resize(255 - (strength * mask).astype(np.uint8), (self._size, self._size))
    cv2.multiply(self.image, cv2.merge([light, light, light]), dst=self.image, scale=1 / 255)

  def _band(self, below, above, normal_N2, slant: float, solid: Solid) -> None:
    """The sides between two rings of corners, those that face the camera."""
    normal = np.concatenate([normal_N2, np.full((len(normal_N2), 1), slant)], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    is_seen = (normal * (camera.POSITION - below)).sum(1) > 0
    colors = shade(solid.color, normal, solid.gloss)
    a, b = (camera.project(ring, self._size) for ring in (below, above))
    quads = _fixed(np.stack([a, np.roll(a, -1, 0), np.roll(b, -1, 0), b], 1)[is_seen])
    for quad, color in zip(quads, colors[is_seen].tolist()):
      cv2.fillConvexPoly(self.image, quad, color, cv2.LINE_8, _SHIFT)

  def _fill(self, points_N3, color) -> None:
    self._fill_pixels(camera.project(points_N3, self._size), color)

  def _fill_pixels(self, pixels_N2, color) -> None:
    cv2.fillConvexPoly(
      self.image, _fixed(pixels_N2), [float(c) for c in color], cv2.LINE_AA, _SHIFT
    )


def _raise(outline_N2: np.ndarray, height: float) -> np.ndarray:
  return np.concatenate([outline_N2, np.full((len(outline_N2), 1), height)], axis=1)


def _fixed(pixels_N2: np.ndarray) -> np.ndarray:
  """Pixels as OpenCV takes them: whole numbers of fractions, counted from the first's centre."""
  return np.rint((pixels_N2 - 0.5) * (1 << _SHIFT)).astype(np.int32)
