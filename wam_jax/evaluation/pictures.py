"""Pictures of what a model imagined beside what happened: film strips, videos, action plots."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence

import cv2
import imageio.v2 as imageio
import numpy as np
from matplotlib.figure import Figure  # Without pyplot: it has no state and needs no screen.

from wam_jax.data import record as record_lib
from wam_jax.evaluation import closed_loop

_INK = (40, 40, 40)
_PAPER = 255
_CAPTION_ROWS = 22
_STRIP_GAP = 4  # Rows between the two pictures of a film strip.
_PANEL_GAP = 6  # Columns to the right of each panel of a video.


@dataclasses.dataclass(frozen=True)
class ActionPair:
  """Two sequences of actions to be compared.

  Attributes:
    predicted, executed: [steps, U].
    names: the name of each of the U dimensions.
    labels: what the legend calls the two.
  """

  predicted: np.ndarray
  executed: np.ndarray
  names: Sequence[str]
  labels: tuple[str, str] = ('predicted', 'executed')


def enlarge(frame_IJ3: np.ndarray, rows: int) -> np.ndarray:
  """`frame_IJ3` blown up to about `rows` rows by whole factors, every pixel a square."""
  factor = max(1, round(rows / frame_IJ3.shape[0]))
  return np.repeat(np.repeat(frame_IJ3, factor, axis=0), factor, axis=1)


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

  Args:
    rows: about so many rows of each frame, pixels.
    most: no more frames than these are shown.
  """
  columns = [_stack_pair(*pair, rows) for pair in list(zip(real, imagined))[:most]]
  strip = np.concatenate(columns, axis=1)
  imageio.imwrite(path, _add_caption(strip, f'{title}   (above: happened, below: imagined)'))


def save_video(
  path: pathlib.Path, episode: closed_loop.Episode, record: record_lib.Embodiment, title: str
) -> None:
  """MP4 of three panels: the scene, what the model sees, and what it imagined for the same moment.

  Args:
    episode: a recorded one.
    record: that of its robot, for the rates.
  """
  with warnings.catch_warnings():
    # The child that is forked runs the encoder, not JAX.
    warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
    options = {'fps': record.control_hz, 'macro_block_size': 2, 'quality': 8}
    with imageio.get_writer(path, **options) as writer:
      for step, scene in enumerate(episode.scene):
        rows = scene.shape[0]
        seen, imagined = _find_frames(episode, step // record.stride)
        panels = _set_side_by_side([scene, enlarge(seen, rows), enlarge(imagined, rows)])
        picture = _add_caption(panels, f'{title}   scene | seen | imagined')
        writer.append_data(_pad_to_even(picture))


def save_action_plot(
  path: pathlib.Path, actions: ActionPair, record: record_lib.Embodiment, title: str
) -> None:
  """PNG with one panel per action dimension over time; chunks are separated by grey lines.

  Args:
    record: that of the robot, for its control rate and chunks.
  """
  steps, U = actions.predicted.shape
  figure = Figure(figsize=(8, 1.6 * U + 0.8))
  axes = figure.subplots(U, 1, sharex=True, squeeze=False)[:, 0]
  seconds = np.arange(steps) / record.control_hz
  predicted_style = {'linestyle': '--', 'color': 'tab:orange', 'label': actions.labels[0]}
  executed_style = {'linestyle': '-', 'color': 'tab:blue', 'alpha': 0.7, 'label': actions.labels[1]}
  for u, axis in enumerate(axes):
    axis.plot(seconds, actions.predicted[:, u], **predicted_style)
    axis.plot(seconds, actions.executed[:, u], **executed_style)
    for start in range(0, steps, record.steps_per_chunk):
      axis.axvline(start / record.control_hz, color='0.85', zorder=0)
    axis.set_ylabel(actions.names[u])
  axes[0].legend(loc='upper right', fontsize=8)
  axes[0].set_title(title, fontsize=10)
  axes[-1].set_xlabel('seconds')
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def _stack_pair(real: np.ndarray, imagined: np.ndarray, rows: int) -> np.ndarray:
  """One column of a film strip, with a blank pixel to the right that grows with the frame."""
  blank_column = ((0, 0), (0, 1), (0, 0))
  above = enlarge(np.pad(real, blank_column, constant_values=_PAPER), rows)
  below = enlarge(np.pad(imagined, blank_column, constant_values=_PAPER), rows)
  gap = np.full((_STRIP_GAP, *above.shape[1:]), _PAPER, np.uint8)
  return np.concatenate([above, gap, below])


def _find_frames(episode: closed_loop.Episode, now: int) -> tuple[np.ndarray, np.ndarray]:
  """What the model had seen, and had imagined for then, by camera frame `now`."""
  seen = episode.seen[min(now, len(episode.seen) - 1)]
  if now == 0 or not episode.imagined:
    return seen, episode.seen[0]
  return seen, episode.imagined[min(now, len(episode.imagined)) - 1]


def _set_side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
  rows = max(panel.shape[0] for panel in panels)
  padded = []
  for panel in panels:
    margins = ((0, rows - panel.shape[0]), (0, _PANEL_GAP), (0, 0))
    padded.append(np.pad(panel, margins, constant_values=_PAPER))
  return np.concatenate(padded, axis=1)


def _add_caption(picture: np.ndarray, text: str) -> np.ndarray:
  caption = np.full((_CAPTION_ROWS, picture.shape[1], 3), _PAPER, np.uint8)
  cv2.putText(
    caption,
    text,
    org=(4, 15),
    fontFace=cv2.FONT_HERSHEY_SIMPLEX,
    fontScale=0.4,
    color=_INK,
    thickness=1,
    lineType=cv2.LINE_AA,
  )
  return np.concatenate([caption, picture])


def _pad_to_even(picture: np.ndarray) -> np.ndarray:
  """Sides padded to even lengths, as the video codec needs."""
  rows, columns, _ = picture.shape
  margins = ((0, rows % 2), (0, columns % 2), (0, 0))
  return np.pad(picture, margins, constant_values=_PAPER)
