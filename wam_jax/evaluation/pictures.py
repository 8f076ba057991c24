"""Pictures of what a model imagined beside what happened: film strips, videos, action plots."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence

import cv2
import imageio.v2 as imageio
import numpy as np
from matplotlib.figure import Figure  # Without pyplot: it has no state and needs no screen.

_INK, _PAPER = (40, 40, 40), 255
_LABEL = 22  # pixels of a caption line


def enlarge(frame_IJ3: np.ndarray, rows: int) -> np.ndarray:
  """`frame_IJ3` blown up to about `rows` rows by whole factors, every pixel a square."""
  factor = max(1, round(rows / frame_IJ3.shape[0]))
  return np.repeat(np.repeat(frame_IJ3, factor, 0), factor, 1)


def save_film_strip(
  path: pathlib.Path,
  real: Sequence[np.ndarray],
  imagined: Sequence[np.ndarray],
  title: str,
  rows: int = 96,
  most: int = 12,
) -> None:
  """PNG of two rows: frames that happened above the frames the model had imagined for the same
  moments.
  """
  pairs = list(zip(real, imagined))[:most]
  strip = np.concatenate(
    [
      np.concatenate(
        [enlarge(r, rows), np.full((4, *_width(r, rows)), _PAPER, np.uint8), enlarge(i, rows)]
      )
      for r, i in _spaced(pairs)
    ],
    axis=1,
  )
  imageio.imwrite(path, _captioned(strip, title + '   (above: happened, below: imagined)'))


def save_video(
  path: pathlib.Path,
  scene: Sequence[np.ndarray],
  seen: Sequence[np.ndarray],
  imagined: Sequence[np.ndarray],
  stride: int,
  fps: float,
  title: str,
) -> None:
  """MP4 of three panels: the scene, what the model sees, and what it imagined for the same moment.

  Args:
    scene: one picture per control step, from before the first. seen, imagined: one per `stride`
      steps.
    fps: control rate.
  """
  rows = scene[0].shape[0]
  with (
    warnings.catch_warnings(),
    imageio.get_writer(path, fps=fps, macro_block_size=2, quality=8) as writer,
  ):
    warnings.filterwarnings(
      'ignore', 'os.fork', RuntimeWarning
    )  # The child runs the encoder, not JAX.
    for step, picture in enumerate(scene):
      now = step // stride
      panels = [picture, enlarge(seen[min(now, len(seen) - 1)], rows)]
      dream = seen[0] if now == 0 or not imagined else imagined[min(now, len(imagined)) - 1]
      panels.append(enlarge(dream, rows))
      writer.append_data(_even(_captioned(_beside(panels), f'{title}   scene | seen | imagined')))


def save_action_plot(
  path: pathlib.Path,
  predicted: np.ndarray,
  executed: np.ndarray,
  names: Sequence[str],
  chunk: int,
  control_hz: float,
  title: str,
  labels=('predicted', 'executed'),
) -> None:
  """PNG with one panel per action dimension over time; chunks are separated by grey lines.

  Args:
    predicted, executed: [steps, U].
  """
  U = predicted.shape[1]
  figure = Figure(figsize=(8, 1.6 * U + 0.8))
  axes = figure.subplots(U, 1, sharex=True, squeeze=False)
  seconds = np.arange(len(predicted)) / control_hz
  for u, axis in enumerate(axes[:, 0]):
    axis.plot(seconds, predicted[:, u], '--', color='tab:orange', label=labels[0])
    axis.plot(seconds, executed[:, u], '-', color='tab:blue', alpha=0.7, label=labels[1])
    for start in range(0, len(predicted), chunk):
      axis.axvline(start / control_hz, color='0.85', zorder=0)
    axis.set_ylabel(names[u])
  axes[0, 0].legend(loc='upper right', fontsize=8)
  axes[0, 0].set_title(title, fontsize=10)
  axes[-1, 0].set_xlabel('seconds')
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def _spaced(pairs):
  """The pairs with a blank column to the right of each."""
  pad = lambda frame: np.pad(frame, ((0, 0), (0, 1), (0, 0)), constant_values=_PAPER)
  return [(pad(r), pad(i)) for r, i in pairs]


def _width(frame, rows):
  return enlarge(frame, rows).shape[1:]


def _beside(panels):
  rows = max(p.shape[0] for p in panels)
  padded = [
    np.pad(p, ((0, rows - p.shape[0]), (0, 6), (0, 0)), constant_values=_PAPER) for p in panels
  ]
  return np.concatenate(padded, axis=1)


def _captioned(picture, text):
  caption = np.full((_LABEL, picture.shape[1], 3), _PAPER, np.uint8)
  cv2.putText(caption, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _INK, 1, cv2.LINE_AA)
  return np.concatenate([caption, picture])


def _even(picture):
  """Sides padded to even lengths, as the video codec needs."""
  return np.pad(
    picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), constant_values=_PAPER
  )
