"""An episode as a film: the scene, beside it what the model saw above what it had imagined, below
them its actions.

Owns the layout; what happened comes from `closed_loop.Episode`.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image

from wam_jax import drawing
from wam_jax import storage
from wam_jax.data import record as record_lib
from wam_jax.evaluation import closed_loop

HEAD_ROWS = 50
ACTION_ROWS = 84
GAP = 6
_BACKGROUND = (250, 250, 251)
_INK = (28, 32, 40)
_FAINT = (120, 126, 136)
_LINE = (222, 225, 230)
_SUCCESS = (24, 128, 72)
_FAILURE = (190, 48, 44)
# Of the dimensions of the action, one after the other.
_PALETTE = ((36, 99, 200), (226, 118, 30), (24, 148, 108), (178, 62, 150), (110, 110, 120))
_QUALITY = 55  # Of animated pictures: a few hundred kilobytes for ten seconds.
_SHIFT = 4  # Bits of a pixel's fraction that OpenCV gets.


def save_mp4(
  path: pathlib.Path, episode: closed_loop.Episode, record: record_lib.Embodiment
) -> None:
  """The film of a recorded episode at the robot's rate; its last picture stays for a second.

  Raises:
    OSError: it cannot be written, and is not there.
  """
  with (
    storage.whole_file(path) as partial,
    contextlib.closing(drawing.Mp4(partial, record.control_hz)) as writer,
  ):
    for picture in draw(episode, record):
      writer.append_data(picture)
    for _ in range(round(record.control_hz)):
      writer.append_data(picture)


def save_webp(
  path: pathlib.Path, episode: closed_loop.Episode, record: record_lib.Embodiment, every: int = 1
) -> None:
  """The film as an animated picture, which a page shows as it is; its last one stays for a second
  and a half.

  Args:
    every: only one in so many pictures is kept, and the last.
  """
  drawn = list(draw(episode, record))
  kept = [*drawn[:-1:every], drawn[-1]]
  pictures = [Image.fromarray(picture) for picture in kept]
  milliseconds = round(1000 * every / record.control_hz)
  pictures[0].save(
    path,
    save_all=True,
    append_images=pictures[1:],
    duration=[milliseconds] * (len(pictures) - 1) + [1500],
    loop=0,
    quality=_QUALITY,
    method=4,
  )


def draw(episode: closed_loop.Episode, record: record_lib.Embodiment) -> Iterator[np.ndarray]:
  """A picture [rows, columns, 3] of even sides for every control step, the first before any action.

  Args:
    episode: a recorded one.
    record: that of its robot, for the rates and the names of its actions.
  """
  for step, scene in enumerate(episode.scene):
    seen, imagined = find_frames(episode, step // record.stride)
    half = (scene.shape[0] - GAP) // 2
    column = [_show(seen, half, 'model sees'), _show(imagined, half, 'model imagined')]
    if not episode.imagined:
      column = column[:1]
    body = _join([scene, _stack(column)])
    columns = body.shape[1]
    parts = (
      _draw_head(episode, record, step, columns),
      body,
      _draw_actions(episode, record, step, columns),
    )
    yield drawing.make_even(np.concatenate(parts), _BACKGROUND)


def find_frames(episode: closed_loop.Episode, now: int) -> tuple[np.ndarray, np.ndarray]:
  """What the model had seen, and had imagined for then, by camera frame `now`."""
  seen = episode.seen[min(now, len(episode.seen) - 1)]
  if now == 0 or not episode.imagined:
    return seen, episode.seen[0]
  return seen, episode.imagined[min(now, len(episode.imagined)) - 1]


def _show(frame_IJ3: np.ndarray, rows: int, words: str) -> np.ndarray:
  """A frame of the model at exactly `rows` rows, with its label."""
  shown = drawing.enlarge(frame_IJ3, rows)
  columns = round(shown.shape[1] * rows / shown.shape[0])
  shown = cv2.resize(shown, (columns, rows), interpolation=cv2.INTER_AREA)
  if rows >= 64:
    drawing.label(shown, words)
  return shown


def _blank(rows: int, columns: int) -> np.ndarray:
  return np.full((rows, columns, 3), _BACKGROUND, np.uint8)


def _stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """One below the other, with a gap between them."""
  parts = []
  for picture in pictures:
    parts += [_blank(GAP, picture.shape[1]), picture]
  return np.concatenate(parts[1:])


def _join(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """Side by side, with a gap between them."""
  rows = max(picture.shape[0] for picture in pictures)
  parts = []
  for picture in pictures:
    below = _blank(rows - picture.shape[0], picture.shape[1])
    parts += [_blank(rows, GAP), np.concatenate([picture, below])]
  return np.concatenate(parts[1:], axis=1)


def _draw_head(episode, record, step: int, columns: int) -> np.ndarray:
  """The instruction, whose scene it is, and how it went by this step."""
  head = _blank(HEAD_ROWS, columns)
  drawing.write(head, episode.instruction, (8, 3), 21, _INK)
  now = step / record.control_hz
  where = f'{record.name}, scene {episode.seed}, {now:.1f} s'
  drawing.write(head, where, (8, 30), 13, _FAINT)
  outcome = _tell_outcome(episode, record, step)
  if outcome:
    words, color = outcome
    drawing.write(head, words, (columns - 8, 29), 15, color, anchor='ra')
  return head


def _tell_outcome(episode, record, step: int) -> tuple[str, tuple[int, int, int]] | None:
  """Words and their colour, once it is known."""
  if episode.success and step >= round(episode.seconds * record.control_hz):
    return f'done after {episode.seconds:.1f} s', _SUCCESS
  if not episode.success and step == len(episode.scene) - 1:
    return f'not done in {episode.seconds:.1f} s', _FAILURE
  return None


def _draw_actions(episode, record, step: int, columns: int) -> np.ndarray:
  """The actions over the episode: those executed, and pale those of the chunk under way."""
  strip = _blank(ACTION_ROWS, columns)
  plot = strip[GAP : ACTION_ROWS - 22]
  steps = len(episode.done)
  if not steps:
    return strip
  action_SU = np.stack(episode.done)
  limit = max(1.0, float(np.abs(action_SU).max()))
  joints = [*episode.begun, steps]
  for start in joints:
    column = round(start * (columns - 1) / steps)
    plot[:, column] = _LINE
  plot[len(plot) // 2] = _LINE
  under_way = [end for start, end in itertools.pairwise(joints) if start < max(step, 1) <= end]
  # Nothing is under way before the first chunk, and with who acts without any.
  chunk_end = max(under_way, default=step)
  for u, value_S in enumerate(action_SU.T):
    color = np.array(_PALETTE[u % len(_PALETTE)])
    pale = color + 0.65 * (np.array(_BACKGROUND) - color)
    _draw_steps(plot, value_S[:chunk_end] / limit, steps, pale)
    _draw_steps(plot, value_S[:step] / limit, steps, color)
  plot[:, round(step * (columns - 1) / steps)] = _INK
  _name_actions(strip, record)
  return strip


def _draw_steps(plot: np.ndarray, value_S: np.ndarray, steps: int, color: np.ndarray) -> None:
  """Values in [-1, 1], each held for its control step, of which `plot` is `steps` wide."""
  rows, columns, _ = plot.shape
  edges = np.repeat(np.arange(len(value_S) + 1), 2)[1:-1] * (columns - 1) / steps
  heights = (rows - 1) * (0.5 - 0.46 * np.repeat(value_S, 2))
  line = np.rint(np.stack([edges, heights], 1) * (1 << _SHIFT)).astype(np.int32)
  if len(line):
    # OpenCV writes into memory that lies in one piece; rows of a picture do.
    cv2.polylines(plot, [line], False, color.tolist(), 2, cv2.LINE_AA, _SHIFT)


def _name_actions(strip: np.ndarray, record: record_lib.Embodiment) -> None:
  """The legend below the plot, as much of it as there is room for."""
  names = [name for name, _ in zip(record_lib.names(record.action), range(12))]
  room = (strip.shape[1] - 70) // max(len(names), 1)
  drawing.write(strip, 'actions', (8, ACTION_ROWS - 19), 13, _FAINT)
  for u, name in enumerate(names):
    color = _PALETTE[u % len(_PALETTE)]
    at = (70 + u * room, ACTION_ROWS - 19)
    piece = strip[:, at[0] : at[0] + room]
    drawing.write(piece, name, (0, at[1]), 13, color)
