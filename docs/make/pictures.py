"""The pictures of the pages, each drawn from what the system computes: the masks that training
lays over attention, the slots of the cache, levels of noise as they are drawn and as they fall.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np

from docs.make import svg
from wam_jax import config as cfg
from wam_jax import flow
from wam_jax import masks
from wam_jax import sampler
from wam_jax.models import attention

KINDS = {
  masks.CLEAN: ('clean video', svg.CLEAN),
  masks.NOISY: ('noisy video', svg.NOISY),
  masks.ACTION: ('actions', svg.ACTION),
  masks.STATE: ('state', svg.STATE),
}
# A window of three chunks, small enough to see every token: two a frame, three actions a chunk.
CHUNKS = 3
MODEL = cfg.ModelConfig(frames_per_chunk=1, actions_per_chunk=3, max_chunks=CHUNKS)
LAYOUT = masks.training_layout(
  clean_frames=CHUNKS,  # Nothing attends to those of the last chunk.
  noisy_frames=range(1, 1 + CHUNKS),
  tokens_per_frame=2,
  frames_per_chunk=MODEL.frames_per_chunk,
  actions_per_chunk=MODEL.actions_per_chunk,
  states_per_chunk=1,
  chunks=CHUNKS,
)
CELL = 12


def draw_all() -> dict[str, str]:
  """Every picture by its name, as SVG."""
  return {
    'mask': draw_masks(),
    'cache': draw_caches(),
    'noise': draw_noise(),
    'passes': draw_passes(),
  }


def find_mask(video_sees: str) -> np.ndarray:
  """[T, T] bool: the mask of training for the window above."""
  model = cfg.ModelConfig(
    frames_per_chunk=MODEL.frames_per_chunk,
    actions_per_chunk=MODEL.actions_per_chunk,
    max_chunks=MODEL.max_chunks,
    video_sees=video_sees,
  )
  return attention.training_mask(model, LAYOUT)


def draw_masks() -> str:
  """Who sees whom, with video that sees its chunk's actions and with video that does not."""
  side = CELL * len(LAYOUT.kind)
  drawing = svg.Drawing(2 * side + 200, side + 120, 'Which token attends to which in training')
  for i, (video_sees, title) in enumerate(
    (('all', "model.video_sees='all'"), ('video', "model.video_sees='video'"))
  ):
    _draw_mask(drawing, 104 + i * (side + 70), 80, find_mask(video_sees), title, names=i == 0)
  _draw_legend(drawing, 104, side + 106)
  return drawing.finish()


def _draw_mask(drawing: svg.Drawing, left, top, mask_TS, title: str, names: bool) -> None:
  """One mask: a row for a token that looks, a square for each token that it sees."""
  side = CELL * len(mask_TS)
  drawing.text(left, 20, title, weight='bold', size=13)
  drawing.box(left, top, side, side, svg.GROUND)
  for row, column in np.argwhere(mask_TS):
    _, colour = KINDS[LAYOUT.kind[column]]
    drawing.box(left + CELL * column + 0.5, top + CELL * row + 0.5, CELL - 1, CELL - 1, colour)
  for start, stop, label, colour in _find_runs():
    edge = [(left, top + CELL * start), (left + side, top + CELL * start)]
    drawing.line(edge, svg.LINE)
    drawing.line([(left + CELL * start, top), (left + CELL * start, top + side)], svg.LINE)
    middle = CELL * (start + stop) / 2
    drawing.up(left + middle + 4, top - 6, label, size=10, fill=colour)
    if names:
      drawing.text(left - 6, top + middle + 4, label, size=10, fill=colour, anchor='end')


def _find_runs() -> list[tuple[int, int, str, str]]:
  """(start, stop, label, colour) of tokens of one kind and block."""
  runs = []
  start = 0
  pairs = zip(LAYOUT.kind.tolist(), LAYOUT.block.tolist())
  for (kind, block), group in itertools.groupby(pairs):
    stop = start + len(list(group))
    name, colour = KINDS[kind]
    label = f'frame {block}' if kind == masks.CLEAN else f'{name.split()[0]} {block}'
    runs.append((start, stop, label, colour))
    start = stop
  return runs


def _draw_legend(drawing: svg.Drawing, left, top) -> None:
  for i, (name, colour) in enumerate(KINDS.values()):
    drawing.box(left + 110 * i, top - 9, 10, 10, colour)
    drawing.text(left + 110 * i + 15, top, name, size=11)


# Chunks that an episode of the picture lasts.
CALLS = 8


def find_cached(history: str) -> list[list[int]]:
  """Frames that each chunk of an episode attends to in the cache, by the cache's own rules."""
  window = MODEL.window_frames
  slides = history == 'sliding'
  slots = window - 1
  empty = attention.KVCache.empty(
    layers=1,
    batch=1,
    heads=1,
    slots=slots,
    head_dim=2,
    dtype=np.float32,
    sink=1 if slides else 0,
  )
  found = []
  anchor = frame = 0  # The frame that is frame 0 of this history; the newest that is committed.
  for chunk in range(CALLS):
    # As `Policy.anchors_next`: a full history starts over with the newest frame, a window at each
    # call with that of a chunk ago.
    full = frame - anchor + 1 > (MODEL.max_chunks - 1) * MODEL.frames_per_chunk
    frame = chunk * MODEL.frames_per_chunk
    if history == 'reset' and full:
      anchor = frame
    elif history == 'window':
      anchor = max(0, frame - MODEL.frames_per_chunk)
    held = {}
    for number in range(frame - anchor + 1):
      held[int(empty.slot(number, 1))] = anchor + number
    seen = empty.seen_from(frame - anchor + 1, MODEL.frames_per_chunk, window, 1)
    found.append(sorted(held[slot] for slot in np.flatnonzero(np.asarray(seen)) if slot in held))
  return found


def draw_caches() -> str:
  """What of an episode is remembered, chunk by chunk, with each history."""
  drawing = svg.Drawing(900, 80 + 24 * CALLS, 'Frames in the cache, chunk by chunk')
  for i, history in enumerate(('reset', 'sliding', 'window')):
    left = 80 + 275 * i
    drawing.text(left, 24, f"sample.history='{history}'", weight='bold', size=13)
    for call, seen in enumerate(find_cached(history)):
      top = 44 + 24 * call
      if i == 0:
        drawing.text(left - 10, top + 14, f'chunk {call + 1}', size=11, anchor='end')
      for frame in range(call + 1):
        opacity = 1.0 if frame in seen else 0.12
        drawing.box(left + 24 * frame, top, 20, 20, svg.CLEAN, opacity=opacity)
        ink = svg.PAPER if frame in seen else svg.FAINT
        drawing.text(left + 24 * frame + 10, top + 14, frame, size=11, fill=ink, anchor='middle')
      drawing.box(left + 24 * (call + 1), top, 20, 20, svg.NOISY)
      drawing.box(left + 24 * (call + 1) + 22, top, 8, 20, svg.ACTION)
  bottom = 68 + 24 * CALLS
  drawing.box(80, bottom - 9, 10, 10, svg.CLEAN)
  drawing.text(95, bottom, 'observed, in the cache', size=11)
  drawing.box(240, bottom - 9, 10, 10, svg.CLEAN, opacity=0.12)
  drawing.text(255, bottom, 'forgotten', size=11)
  drawing.box(340, bottom - 9, 10, 10, svg.NOISY)
  drawing.box(352, bottom - 9, 5, 10, svg.ACTION)
  drawing.text(362, bottom, 'imagined: the next chunk, its actions', size=11)
  return drawing.finish()


NOISES = {
  'coupled, shift 5': cfg.FlowConfig(schedule='coupled'),
  'Flash: Beta(7, 1) and uniform': cfg.FlowConfig(schedule='flash'),
  'Flash of configs/tiny_flash.py': cfg.FlowConfig(schedule='flash', video_at_noise=0.3),
}


def sample_noise(config: cfg.FlowConfig) -> np.ndarray:
  """[400, 2]: levels of the video and of the actions of as many chunks."""
  levels = flow.sample_levels(jax.random.key(0), batch=400, chunks=1, config=config)
  return np.stack([levels.video_BQ[:, 0], levels.action_BA[:, 0]], axis=1)


def draw_noise() -> str:
  """Levels of noise as training draws them."""
  side = 190
  drawing = svg.Drawing(3 * (side + 40) + 50, side + 90, 'Levels of noise of video and actions')
  for i, (title, config) in enumerate(NOISES.items()):
    left, top = 60 + i * (side + 40), 40
    drawing.text(left, 24, title, weight='bold', size=12)
    drawing.box(left, top, side, side, svg.GROUND)
    points = [
      (round(left + video * side), round(top + (1 - action) * side))
      for video, action in sample_noise(config).tolist()
    ]
    drawing.dots(points, svg.NOISY, radius=2.2)
    for share in (0, 1):
      drawing.text(left + share * side, top + side + 16, share, size=11, anchor='middle')
    middle = left + side / 2
    drawing.text(middle, top + side + 34, 'noise of the video', size=11, anchor='middle')
    if i == 0:
      for share in (0, 1):
        drawing.text(left - 6, top + (1 - share) * side + 4, share, size=11, anchor='end')
      drawing.up(left - 22, top + side / 2 + 55, 'noise of the actions', size=11)
  return drawing.finish()


WAYS = {
  'joint, 4 steps': cfg.SampleConfig(mode='joint', steps=4),
  'Flash, 1 step': cfg.SampleConfig(mode='flash', steps=1, video_final_sigma=0.0),
  'Flash, 1 pass, 4 of the actions': cfg.SampleConfig(mode='flash', steps=1, action_steps=4),
  'act_only, 4 steps': cfg.SampleConfig(mode='act_only', steps=4),
}


def find_levels(way: cfg.SampleConfig) -> tuple[np.ndarray | None, np.ndarray]:
  """Levels at which the network is run on the video (None where it never is) and on actions."""
  video, action = sampler.make_solvers(way)
  return None if way.mode == 'act_only' else video.told, action.told


def draw_passes() -> str:
  """The passes of a chunk, one under the other in time, with the level that each is told."""
  width = 200
  drawing = svg.Drawing(len(WAYS) * (width + 10) + 40, 236, 'Passes of one chunk')
  for i, (title, way) in enumerate(WAYS.items()):
    left = 30 + i * (width + 10)
    drawing.text(left, 24, title, weight='bold', size=12)
    video, action = find_levels(way)
    for step in range(len(action)):
      top = 42 + 40 * step
      if video is not None and step < len(video):
        drawing.box(left, top, 104, 30, svg.NOISY)
        drawing.text(left + 8, top + 19, f'video {video[step]:.2f}', size=11, fill=svg.PAPER)
      elif video is not None:
        drawing.box(left, top, 104, 30, svg.NOISY, opacity=0.12)
        drawing.text(left + 8, top + 19, 'kept', size=11, fill=svg.FAINT)
      drawing.box(left + 108, top, 78, 30, svg.ACTION)
      drawing.text(left + 116, top + 19, f'actions {action[step]:.2f}', size=11, fill=svg.PAPER)
  drawing.text(
    30,
    222,
    'Full colour: computed in that pass, at the level of noise shown. '
    'Kept: keys and values of the one pass.',
    size=11,
    fill=svg.FAINT,
  )
  return drawing.finish()
