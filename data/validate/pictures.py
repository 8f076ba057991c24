"""Pictures of a dataset as PNG: a contact sheet of composite images, and plots of states and
actions.

Imported only where pictures are wanted: matplotlib comes with the extra `sim`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import figure
from matplotlib import patches

from data.validate import video
from wam_jax.data import embodiments
from wam_jax.data import normalize

DPI = 120
TRACES = 4  # Episodes drawn.
INK, FAINT = '0.2', '0.88'
COLORS = (
  '#4477aa',
  '#ee6677',
  '#228833',
  '#ccbb44',
)  # Paul Tol's "bright": told apart by the colour-blind.
FONT = dict(fontsize=8, color=INK)


def contact_sheet(record: embodiments.Embodiment, clips: Sequence[video.Clip], title: str) -> bytes:
  """A row of composite images per episode, beside its instruction; above them, which camera lies
  where.
  """
  clips = [clip for clip in clips if clip.pictures]
  columns = max((len(clip.pictures) for clip in clips), default=1)
  cell_w = min(2.4, 11 / columns)  # inches
  cell_h, text_w, head_h, gap = cell_w * record.composite[0] / record.composite[1], 2.0, 1.2, 0.06
  row_h = max(cell_h, 0.7) + 0.22
  size = text_w + columns * (cell_w + gap) + 0.1, head_h + len(clips) * row_h + 0.1
  sheet = figure.Figure(figsize=size, dpi=DPI, facecolor='white')
  place = lambda left, top, width, height: sheet.add_axes(
    (left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1])
  )
  _draw_layout(
    place(text_w, 0.1, min(2.4, 0.95 * record.composite[1] / record.composite[0]), 0.95), record
  )
  sheet.text(
    0.1 / size[0], 1 - 0.1 / size[1], textwrap.fill(title, 26), va='top', weight='bold', **FONT
  )
  for i, clip in enumerate(clips):
    top = head_h + i * row_h
    words = textwrap.fill(
      clip.text or '(no instruction)', 28, max_lines=max(3, int(row_h / 0.17) - 2)
    )
    sheet.text(0.1 / size[0], 1 - top / size[1], words, va='top', **FONT)
    sheet.text(
      0.1 / size[0],
      1 - (top + row_h - 0.2) / size[1],
      f'episode {clip.episode}, {len(clip.state_TX)} steps',
      va='bottom',
      fontsize=7,
      color='0.5',
    )
    for k, (step, image) in enumerate(sorted(clip.pictures.items())):
      axis = place(text_w + k * (cell_w + gap), top, cell_w, cell_h)
      axis.imshow(
        image, aspect='auto', interpolation='nearest' if image.shape[0] < 200 else 'antialiased'
      )
      axis.set_axis_off()
      sheet.text(
        (text_w + k * (cell_w + gap)) / size[0],
        1 - (top + cell_h + 0.02) / size[1],
        f'{step / record.control_hz:.1f} s',
        va='top',
        fontsize=7,
        color='0.5',
      )
  return _png(sheet)


def _draw_layout(axis, record):
  """The rectangles of the cameras, with their names."""
  rows, columns = record.composite
  axis.set(xlim=(0, columns), ylim=(rows, 0))
  axis.add_patch(patches.Rectangle((0, 0), columns, rows, color='0.3', lw=0))
  for view, color in zip(record.views, COLORS * len(record.views)):
    axis.add_patch(
      patches.Rectangle(
        (view.column, view.row), view.width, view.height, fc=color, ec='white', lw=1
      )
    )
    name = '\n'.join(
      textwrap.wrap(view.key.replace('_', ' '), max(6, int(16 * view.width / columns)))
    )
    axis.text(
      view.column + view.width / 2,
      view.row + view.height / 2,
      name,
      ha='center',
      va='center',
      fontsize=6,
      color='white',
    )
  axis.set_axis_off()


def plots(
  record: embodiments.Embodiment,
  clips: Sequence[video.Clip],
  statistics: normalize.Statistics,
  part: str,
  title: str,
) -> bytes:
  """Per dimension of `part` ('state' or 'action'): traces of some episodes, and a histogram as the
  model sees it.

  Behind an action lies, thin, the state from which it counts or that changes nothing.
  """
  slices, quantiles = getattr(record, part), getattr(statistics, part)
  shown = [clips[k] for k in video.spread(len(clips), TRACES)]
  seen_RN = np.concatenate([_normalized(record, clip, statistics, part) for clip in clips])
  names, units = embodiments.names(slices), [s.unit for s in slices for _ in range(s.width)]
  blocks = 1 if len(names) <= 8 else 2  # Side by side.
  lines = -(-len(names) // blocks)
  sheet = figure.Figure(
    figsize=(7 * blocks, 1.05 * lines + 0.9), dpi=DPI, facecolor='white', layout='constrained'
  )
  dotted = (
    '; dotted: the state it goes with' if part == 'action' and _behind(record).max() >= 0 else ''
  )
  sheet.suptitle(f'{title}: {part}; grey: from 1 % to 99 %{dotted}', **FONT)
  axes = sheet.subplots(lines, 2 * blocks, squeeze=False, width_ratios=[4, 1] * blocks)
  for n in range(lines * blocks):
    trace, histogram = axes[n % lines, n // lines * 2 : n // lines * 2 + 2]
    if n >= len(names):
      trace.set_axis_off()
      histogram.set_axis_off()
      continue
    is_last = n % lines == lines - 1 or n == len(names) - 1
    _draw_traces(trace, record, shown, part, n)
    if (
      part == 'state' or record.reference_columns[n] < 0
    ):  # The quantiles of others are of differences.
      trace.axhspan(quantiles.q01[n], quantiles.q99[n], color='0.95', lw=0, zorder=0)
    trace.set_title(f'{names[n]}  {units[n]}', loc='left', pad=2, **FONT)
    histogram.hist(seen_RN[:, n], bins=41, range=(-1.05, 1.05), color=COLORS[0])
    histogram.set(xlim=(-1.1, 1.1), yticks=[])
    for axis, label in ((trace, 'seconds'), (histogram, 'normalized')):
      _tidy(axis)
      axis.tick_params(labelbottom=is_last)
      if is_last:
        axis.set_xlabel(label, **FONT)
  return _png(sheet)


def _draw_traces(axis, record, clips, part, n):
  behind = _behind(record)[n] if part == 'action' else -1
  for clip, color in zip(clips, COLORS):
    rows_TN = clip.state_TX if part == 'state' else clip.action_TU
    seconds_T = np.arange(len(rows_TN)) / record.control_hz
    axis.plot(seconds_T, rows_TN[:, n], color=color, lw=1.1)
    if behind >= 0:
      axis.plot(seconds_T, clip.state_TX[:, behind], color=color, lw=0.8, ls=':')


def _behind(record) -> np.ndarray:
  """[U] state column that an action dimension counts from or that changes nothing; -1 for none."""
  return np.maximum(record.reference_columns, record.rest_columns)


def _tidy(axis):
  axis.spines[['top', 'right']].set_visible(False)
  axis.spines[['left', 'bottom']].set_color('0.7')
  axis.tick_params(labelsize=7, colors='0.4', length=2)
  axis.grid(color=FAINT, lw=0.5)
  axis.set_axisbelow(True)


def _normalized(record, clip, statistics, part) -> np.ndarray:
  """[rows, N] what the model is shown: of relative actions, all chunks of the episode."""
  if part == 'state':
    return statistics.state.normalize(clip.state_TX)
  if max(record.reference_columns) < 0:
    return statistics.action.normalize(clip.action_TU)
  starts_Q = np.arange(len(clip.action_TU) - record.steps_per_chunk + 1)
  action_QSU = clip.action_TU[starts_Q[:, None] + np.arange(record.steps_per_chunk)]
  relative_QSU = normalize.subtract_reference(record, action_QSU, clip.state_TX[starts_Q])
  return statistics.action.normalize(relative_QSU.reshape(-1, record.action_dim))


def _png(sheet) -> bytes:
  buffer = io.BytesIO()
  sheet.savefig(buffer, format='png')
  return buffer.getvalue()
