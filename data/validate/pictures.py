"""Pictures of a dataset as PNG: a contact sheet of composite images, and plots of states and
actions.

Imported only where pictures are wanted: matplotlib comes with the extra `sim`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import axes
from matplotlib import figure
from matplotlib import patches

from data.validate import video
from wam_jax.data import normalize
from wam_jax.data import record as record_lib

DPI = 120
TRACES = 4  # Episodes drawn.
INK, FAINT, GREY = '0.2', '0.88', '0.5'
# Paul Tol's "bright": told apart by the colour-blind.
COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44')
FONT = dict(fontsize=8, color=INK)
SMALL = dict(fontsize=7, color=GREY)
TEXT_W, HEAD_H, GAP, MARGIN = 2.0, 1.2, 0.06, 0.1  # Inches of the contact sheet.
LINE_H = 0.17  # Inches of a line of text.


class _Sheet:
  """A figure on which things are placed in inches from the upper left corner."""

  def __init__(self, width: float, height: float):
    self.figure = figure.Figure(figsize=(width, height), dpi=DPI, facecolor='white')
    self._width = width
    self._height = height

  def add_axes(self, left: float, top: float, width: float, height: float) -> axes.Axes:
    return self.figure.add_axes(
      (
        left / self._width,
        1 - (top + height) / self._height,
        width / self._width,
        height / self._height,
      )
    )

  def add_text(self, left: float, top: float, text: str, va: str = 'top', **font) -> None:
    self.figure.text(left / self._width, 1 - top / self._height, text, va=va, **font)


def draw_sheet(record: record_lib.Embodiment, clips: Sequence[video.Clip], title: str) -> bytes:
  """A row of composite images per episode, beside its instruction; above them, which camera lies
  where. As PNG.
  """
  clips = [clip for clip in clips if clip.pictures]
  columns = max((len(clip.pictures) for clip in clips), default=1)
  rows_px, columns_px = record.composite
  cell_w = min(2.4, 11 / columns)
  cell_h = cell_w * rows_px / columns_px
  row_h = max(cell_h, 0.7) + 0.22  # Room for the text, and for the seconds below.
  sheet = _Sheet(
    width=TEXT_W + columns * (cell_w + GAP) + MARGIN, height=HEAD_H + len(clips) * row_h + MARGIN
  )

  layout_h = 0.95
  layout_w = min(2.4, layout_h * columns_px / rows_px)
  _draw_layout(sheet.add_axes(TEXT_W, MARGIN, layout_w, layout_h), record)
  sheet.add_text(MARGIN, MARGIN, textwrap.fill(title, 26), weight='bold', **FONT)

  for i, clip in enumerate(clips):
    top = HEAD_H + i * row_h
    lines = max(3, int(row_h / LINE_H) - 2)
    words = textwrap.fill(clip.text or '(no instruction)', 28, max_lines=lines)
    sheet.add_text(MARGIN, top, words, **FONT)
    length = f'episode {clip.episode}, {len(clip.state_TX)} steps'
    sheet.add_text(MARGIN, top + row_h - 0.2, length, va='bottom', **SMALL)

    for k, (step, image) in enumerate(sorted(clip.pictures.items())):
      left = TEXT_W + k * (cell_w + GAP)
      axis = sheet.add_axes(left, top, cell_w, cell_h)
      # Single pixels of a small image are seen, those of a large one are not.
      interpolation = 'nearest' if image.shape[0] < 200 else 'antialiased'
      axis.imshow(image, aspect='auto', interpolation=interpolation)
      axis.set_axis_off()
      sheet.add_text(left, top + cell_h + 0.02, f'{step / record.control_hz:.1f} s', **SMALL)
  return _to_png(sheet.figure)


def _draw_layout(axis: axes.Axes, record: record_lib.Embodiment) -> None:
  """The rectangles of the cameras, with their names."""
  rows, columns = record.composite
  axis.set(xlim=(0, columns), ylim=(rows, 0))
  axis.add_patch(patches.Rectangle((0, 0), columns, rows, color='0.3', lw=0))
  for view, color in zip(record.views, COLORS * len(record.views)):
    corner = (view.column, view.row)
    axis.add_patch(patches.Rectangle(corner, view.width, view.height, fc=color, ec='white', lw=1))
    letters = max(6, int(16 * view.width / columns))
    axis.text(
      view.column + view.width / 2,
      view.row + view.height / 2,
      '\n'.join(textwrap.wrap(view.key.replace('_', ' '), letters)),
      ha='center',
      va='center',
      fontsize=6,
      color='white',
    )
  axis.set_axis_off()


def draw_plots(
  record: record_lib.Embodiment,
  clips: Sequence[video.Clip],
  statistics: normalize.Statistics,
  part: str,
  title: str,
) -> bytes:
  """Per dimension of `part` ('state' or 'action'): traces of some episodes, and a histogram as the
  model sees it. As PNG.

  Behind an action lies, thin, the state from which it counts or that changes nothing.
  """
  slices, quantiles = getattr(record, part), getattr(statistics, part)
  shown = [clips[k] for k in video.spread(len(clips), TRACES)]
  seen_RN = np.concatenate([_normalize(record, clip, statistics, part) for clip in clips])
  names = record_lib.names(slices)
  units = [s.unit for s in slices for _ in range(s.width)]

  blocks = 1 if len(names) <= 8 else 2  # Side by side.
  lines = -(-len(names) // blocks)
  sheet = figure.Figure(
    figsize=(7 * blocks, 1.05 * lines + 0.9), dpi=DPI, facecolor='white', layout='constrained'
  )
  has_states = part == 'action' and _find_states(record).max() >= 0
  dotted = '; dotted: the state it goes with' if has_states else ''
  sheet.suptitle(f'{title}: {part}; grey: from 1 % to 99 %{dotted}', **FONT)

  grid = sheet.subplots(lines, 2 * blocks, squeeze=False, width_ratios=[4, 1] * blocks)
  for n in range(lines * blocks):
    block, line = divmod(n, lines)
    trace, histogram = grid[line, 2 * block : 2 * block + 2]
    if n >= len(names):
      trace.set_axis_off()
      histogram.set_axis_off()
      continue
    _draw_traces(trace, record, shown, part, n)
    # The quantiles of relative actions are of differences, which are not drawn.
    if part == 'state' or record.reference_columns[n] < 0:
      trace.axhspan(quantiles.q01[n], quantiles.q99[n], color='0.95', lw=0, zorder=0)
    trace.set_title(f'{names[n]}  {units[n]}', loc='left', pad=2, **FONT)
    histogram.hist(seen_RN[:, n], bins=41, range=(-1.05, 1.05), color=COLORS[0])
    histogram.set(xlim=(-1.1, 1.1), yticks=[])

    is_last = line == lines - 1 or n == len(names) - 1
    for axis, label in ((trace, 'seconds'), (histogram, 'normalized')):
      _tidy(axis)
      axis.tick_params(labelbottom=is_last)
      if is_last:
        axis.set_xlabel(label, **FONT)
  return _to_png(sheet)


def _draw_traces(
  axis: axes.Axes,
  record: record_lib.Embodiment,
  clips: Sequence[video.Clip],
  part: str,
  n: int,
) -> None:
  state = _find_states(record)[n] if part == 'action' else -1
  for clip, color in zip(clips, COLORS):
    rows_TN = clip.state_TX if part == 'state' else clip.action_TU
    seconds_T = np.arange(len(rows_TN)) / record.control_hz
    axis.plot(seconds_T, rows_TN[:, n], color=color, lw=1.1)
    if state >= 0:
      axis.plot(seconds_T, clip.state_TX[:, state], color=color, lw=0.8, ls=':')


def _find_states(record: record_lib.Embodiment) -> np.ndarray:
  """[U] state column that an action dimension counts from or that changes nothing; -1 for none."""
  return np.maximum(record.reference_columns, record.rest_columns)


def _tidy(axis: axes.Axes) -> None:
  axis.spines[['top', 'right']].set_visible(False)
  axis.spines[['left', 'bottom']].set_color('0.7')
  axis.tick_params(labelsize=7, colors='0.4', length=2)
  axis.grid(color=FAINT, lw=0.5)
  axis.set_axisbelow(True)


def _normalize(
  record: record_lib.Embodiment, clip: video.Clip, statistics: normalize.Statistics, part: str
) -> np.ndarray:
  """[rows, N] what the model is shown: of relative actions, all chunks of the episode."""
  if part == 'state':
    return statistics.state.normalize(clip.state_TX)
  if max(record.reference_columns) < 0:
    return statistics.action.normalize(clip.action_TU)
  steps = record.steps_per_chunk
  starts_Q = np.arange(len(clip.action_TU) - steps + 1)
  action_QSU = clip.action_TU[starts_Q[:, None] + np.arange(steps)]
  relative_QSU = normalize.subtract_reference(record, action_QSU, clip.state_TX[starts_Q])
  return statistics.action.normalize(relative_QSU.reshape(-1, record.action_dim))


def _to_png(sheet: figure.Figure) -> bytes:
  buffer = io.BytesIO()
  sheet.savefig(buffer, format='png')
  return buffer.getvalue()
