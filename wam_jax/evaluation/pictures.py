"""Still pictures of what a model imagined beside what happened: film strips and action plots."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import imageio.v2 as imageio
import numpy as np
from matplotlib.figure import Figure  # Without pyplot: it has no state and needs no screen.

from wam_jax import drawing
from wam_jax import storage
from wam_jax.data import record as record_lib

_INK = (40, 40, 40)
_PAPER = 255
_CAPTION_ROWS = 22
_STRIP_GAP = 4  # Rows between the two pictures of a film strip.


@dataclasses.dataclass(frozen=True)
class ActionPair:
  """Two sequences of actions to be compared.

  Attributes:
    predicted, executed: [steps, U].
    names: the name of each of the U dimensions.
    begun: steps at which a chunk begins.
    labels: what the legend calls the two.
  """

  predicted: np.ndarray
  executed: np.ndarray
  names: Sequence[str]
  begun: Sequence[int]
  labels: tuple[str, str] = ('predicted', 'executed')


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
  picture = _add_caption(strip, f'{title}   (above: happened, below: imagined)')
  with storage.whole_file(path) as partial:
    imageio.imwrite(partial, picture)


def save_action_plot(
  path: pathlib.Path, actions: ActionPair, record: record_lib.Embodiment, title: str
) -> None:
  """PNG with one panel per action dimension over time; chunks are separated by grey lines.

  Args:
    record: that of the robot, for its control rate.
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
    for start in actions.begun:
      axis.axvline(start / record.control_hz, color='0.85', zorder=0)
    axis.set_ylabel(actions.names[u])
  axes[0].legend(loc='upper right', fontsize=8)
  axes[0].set_title(title, fontsize=10)
  axes[-1].set_xlabel('seconds')
  figure.tight_layout()
  with storage.whole_file(path) as partial:
    figure.savefig(partial, dpi=110)


def _stack_pair(real: np.ndarray, imagined: np.ndarray, rows: int) -> np.ndarray:
  """One column of a film strip, with a blank pixel to the right that grows with the frame."""
  blank_column = ((0, 0), (0, 1), (0, 0))
  above = drawing.enlarge(np.pad(real, blank_column, constant_values=_PAPER), rows)
  below = drawing.enlarge(np.pad(imagined, blank_column, constant_values=_PAPER), rows)
  gap = np.full((_STRIP_GAP, *above.shape[1:]), _PAPER, np.uint8)
  return np.concatenate([above, gap, below])


def _add_caption(picture: np.ndarray, text: str) -> np.ndarray:
  caption = np.full((_CAPTION_ROWS, picture.shape[1], 3), _PAPER, np.uint8)
  drawing.write(caption, text, (4, 3), 13, _INK)
  return np.concatenate([caption, picture])
