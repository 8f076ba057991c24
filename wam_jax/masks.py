"""Who attends to whom: token layouts and chunk-causal masks, from index arithmetic on the host.

Block 0 is frame 0; block b >= 1 is chunk b: its frames, its actions, its state.
Source: DreamZero `CausalWanSelfAttention`, specification of the teacher-forcing mask.

A mask of all pairs of tokens is for tests and short sequences. Longer ones use that whole runs of
tokens see and are seen alike: `units` finds them, the same rules say which run sees which, and a
plan made of that is exact.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

CLEAN, NOISY, ACTION, STATE = range(4)
# Sides of a block, in tokens: what fits a TPU's vector memory, in steps of its lanes.
LARGEST_BLOCK = 1024
LANES = 128


@dataclasses.dataclass(frozen=True)
class Layout:
  """What each token of a sequence is: [clean video][noisy video][actions][states], frames in order.

  Attributes (numpy, [T] each):
    kind: CLEAN, NOISY, ACTION or STATE.
    block: 0 for frame 0, else 1 + chunk.
    frame: latent frame of a video token, -1 otherwise.
    group: tokens that share a noise level share a group: all clean ones 0, then each noisy frame,
      action and state.
  """

  kind: np.ndarray
  block: np.ndarray
  frame: np.ndarray
  group: np.ndarray


def training_layout(
  *,
  clean_frames: int,
  noisy_frames: range,
  tokens_per_frame: int,
  frames_per_chunk: int,
  actions_per_chunk: int,
  states_per_chunk: int,
  chunks: int,
) -> Layout:
  """Layout of the teacher-forced sequence.

  Args:
    clean_frames: number of clean latent frames, from frame 0 on.
    noisy_frames: the latent frames that are denoised.
    tokens_per_frame: number of tokens of each of both.
  """
  clean = np.repeat(np.arange(clean_frames), tokens_per_frame)
  noisy = np.repeat(np.asarray(noisy_frames, int), tokens_per_frame)
  action = np.arange(chunks * actions_per_chunk)
  state = np.arange(chunks * states_per_chunk)

  def block_of(frame):
    """Frame 0 stands alone; chunk 0 begins with frame 1."""
    return np.where(frame == 0, 0, 1 + (frame - 1) // frames_per_chunk)

  # Kind, block, frame and group of the tokens of each part.
  first_action = 1 + len(noisy_frames)
  noisy_group = 1 + np.repeat(np.arange(len(noisy_frames)), tokens_per_frame)
  parts = (
    (CLEAN, block_of(clean), clean, 0),
    (NOISY, block_of(noisy), noisy, noisy_group),
    (ACTION, 1 + action // max(1, actions_per_chunk), -1, first_action + action),
    (STATE, 1 + state // max(1, states_per_chunk), -1, first_action + len(action) + state),
  )
  columns = [np.stack(np.broadcast_arrays(*part)) for part in parts]
  kind, block, frame, group = np.concatenate(columns, axis=1).astype(np.int32)
  return Layout(kind=kind, block=block, frame=frame, group=group)


def teacher_forcing(
  layout: Layout,
  *,
  frames_per_chunk: int,
  window_frames: int,
  state_rule: str,
  video_sees: str = 'all',
) -> np.ndarray:
  """[T, T] bool: chunk b sees the clean video before it and its own noisy video, actions and state,
  nothing later.

  Clean video is block-causal within the last `window_frames` frames (frame 0 always stays); noisy
  frame 0 sees itself; a state token sees the states of its chunk, or with `state_rule` 'chunk' what
  the actions of its chunk see; with `video_sees` 'video' noisy video sees neither actions nor
  states.
  """
  is_clean_q, is_clean_k = _axes(layout.kind == CLEAN)
  block_q, block_k = _axes(layout.block)
  clean_past = is_clean_q & _history(layout, CLEAN, frames_per_chunk, window_frames)
  # Of clean video what lies before the chunk: its own is the target. Of all else the chunk's own.
  chunk = (is_clean_k & (block_k < block_q)) | (~is_clean_k & (block_k == block_q))
  mask = (
    clean_past
    | _own(layout, NOISY)
    | (_sees_chunk(layout, state_rule) & chunk)
    | _own(layout, STATE)
  )
  return _blind(layout, mask) if video_sees == 'video' else mask


def without_clean(
  layout: Layout,
  *,
  frames_per_chunk: int,
  window_frames: int,
  state_rule: str,
  video_sees: str = 'all',
) -> np.ndarray:
  """[T, T] bool for one noisy copy of the video: chunk b sees it up to itself, in the window of
  `teacher_forcing`.
  """
  _, is_noisy_k = _axes(layout.kind == NOISY)
  block_q, block_k = _axes(layout.block)
  # The past is noisy too, and ends with the chunk itself.
  past = _history(layout, NOISY, frames_per_chunk, window_frames)
  chunk = past | (~is_noisy_k & (block_k == block_q))
  mask = _own(layout, NOISY) | (_sees_chunk(layout, state_rule) & chunk) | _own(layout, STATE)
  return _blind(layout, mask) if video_sees == 'video' else mask


def reference_global(layout: Layout, mask: np.ndarray) -> np.ndarray:
  """`mask` of `teacher_forcing` with two defects of the reference, which has them at max_chunk_size
  -1.

  A clean token after frame 0 sees only the tokens before it, even in its own chunk. In a sequence
  without actions that holds in frame 0 too, and noisy video sees all of the video, its own target
  included.
  """
  is_clean_q, _ = _axes(layout.kind == CLEAN)
  block_q, _ = _axes(layout.block)
  index_q, index_k = _axes(np.arange(len(layout.kind)))
  causal = index_q >= index_k
  if (layout.kind == ACTION).any():
    return mask & (~is_clean_q | (block_q == 0) | causal)
  return ~is_clean_q | (mask & causal)


def _axes(values_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[T, 1] and [1, T]: a property of queries and the same of keys."""
  return values_T[:, None], values_T[None, :]


def _history(layout: Layout, kind: int, frames_per_chunk: int, window_frames: int) -> np.ndarray:
  """[T, T]: video of one kind up to each query's block: frame 0 and the newest frames."""
  _, is_kind_k = _axes(layout.kind == kind)
  _, frame_k = _axes(layout.frame)
  block_q, block_k = _axes(layout.block)
  end_q = 1 + block_q * frames_per_chunk  # The first frame after the block.
  in_window = (frame_k == 0) | (frame_k >= end_q - window_frames)
  return is_kind_k & (block_k <= block_q) & in_window


def _sees_chunk(layout: Layout, state_rule: str) -> np.ndarray:
  """[T, 1]: tokens that see the whole chunk they belong to."""
  kinds = (NOISY, ACTION, STATE) if state_rule == 'chunk' else (NOISY, ACTION)
  sees, _ = _axes(np.isin(layout.kind, kinds) & (layout.block > 0))
  return sees


def _own(layout: Layout, kind: int) -> np.ndarray:
  """[T, T]: tokens of one kind and block, among themselves."""
  is_kind_q, is_kind_k = _axes(layout.kind == kind)
  block_q, block_k = _axes(layout.block)
  return is_kind_q & is_kind_k & (block_q == block_k)


def _blind(layout: Layout, mask: np.ndarray) -> np.ndarray:
  """`mask` where noisy video sees video alone."""
  is_noisy_q, _ = _axes(layout.kind == NOISY)
  _, is_video_k = _axes(np.isin(layout.kind, (CLEAN, NOISY)))
  return mask & (~is_noisy_q | is_video_k)


class Units(NamedTuple):
  """Runs of tokens of one kind, block and frame: clean video by frames, then each block's noisy
  video, actions, states.

  Attributes:
    layout: layout of a sequence that has one token for each run.
    start, size: place of each run in the sequence of `training_layout`.
  """

  layout: Layout
  start: np.ndarray
  size: np.ndarray

  @property
  def token(self) -> np.ndarray:
    """[T] index of the tokens in this order."""
    return np.concatenate([np.arange(a, a + n) for a, n in zip(self.start, self.size)])


class Part(NamedTuple):
  """Consecutive tokens that see the same keys.

  Attributes:
    size: number of the tokens, which follow those of the part before.
    keys: (start, stop) of the runs of tokens that they see.
    certain: number of the first keys that are padding in no sample.
    conditional: whether some of the keys may be padding.
  """

  size: int
  keys: tuple[tuple[int, int], ...]
  certain: int
  conditional: bool


@dataclasses.dataclass(frozen=True)
class Chunks:
  """Parts of consecutive tokens that see the same keys."""

  parts: tuple[Part, ...]

  @property
  def area(self) -> int:
    """Pairs of tokens that are computed."""
    return sum(part.size * (stop - start) for part in self.parts for start, stop in part.keys)


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Blocks of `side` tokens that see whole blocks: the i-th the j-th where `visible[i][j]`.

  Attributes:
    video: number of the first tokens of each block that are video, which sees no others; None where
      video sees all that its block sees.
  """

  side: int
  visible: tuple[tuple[bool, ...], ...]
  video: tuple[int, ...] | None = None

  @property
  def area(self) -> int:
    """Pairs of tokens that are computed."""
    return int(np.sum(self.visible)) * self.side**2


def units(layout: Layout) -> Units:
  """The runs of a layout."""
  # Where any property changes, a run begins; -2 is no kind, block or frame, so one begins at 0.
  properties = np.stack([layout.kind, layout.block, layout.frame])
  start = np.flatnonzero(np.diff(properties, axis=1, prepend=-2).any(0))
  size = np.diff(start, append=properties.shape[1])

  # Clean video first, then block by block, so that what a chunk sees stands together.
  order = np.lexsort((start, layout.block[start], layout.kind[start] != CLEAN))
  start = start[order]
  size = size[order]
  of_runs = Layout(
    kind=layout.kind[start],
    block=layout.block[start],
    frame=layout.frame[start],
    group=layout.group[start],
  )
  return Units(of_runs, start, size)


def area(runs: Units, visible: np.ndarray) -> int:
  """Pairs of tokens that see each other, where `visible` says it of the runs."""
  return int(runs.size @ visible @ runs.size)


def chunk_plan(
  runs: Units, visible: np.ndarray, shards: int = 1, first_padded: int = ACTION
) -> tuple[np.ndarray, Chunks]:
  """Order of the tokens, and which see which; no other pairs are computed.

  With `shards`, -1 for padding up to a multiple, which sees what the tokens before it see.

  Args:
    first_padded: the first kind of tokens that may be padding: videos are whole, robots' dimensions
      need not be; NOISY where some samples hide their noisy video.
  """
  stop = np.cumsum(runs.size)
  start = stop - runs.size
  may_be_padding = runs.layout.kind >= first_padded
  parts = []
  for rows in _find_alike(visible):
    seen = visible[rows.start]
    spans = np.flatnonzero(np.diff(seen, prepend=False, append=False)).reshape(-1, 2)
    part = Part(
      size=int(runs.size[rows].sum()),
      keys=tuple((int(start[first]), int(stop[end - 1])) for first, end in spans),
      certain=int(runs.size[seen][: _count_first(~may_be_padding[seen])].sum()),
      conditional=bool((seen & may_be_padding).any()),
    )
    parts.append(part)
  order = pad_to_multiple(runs.token, shards)
  padding = len(order) - int(stop[-1])
  parts[-1] = parts[-1]._replace(size=parts[-1].size + padding)
  return order, Chunks(tuple(parts))


def block_plan(runs: Units, visible: np.ndarray, shards: int = 1) -> tuple[np.ndarray, Blocks]:
  """Order of the tokens, -1 for padding, and blocks of them in `shards` equal shares of about equal
  work.

  The side is the largest with which `shards` times the busiest one computes at most 15 % more pairs
  than see each other, and at most 15 % of tokens are padding; where there is none, that with the
  fewest pairs.
  """

  def count_pairs(blocks: Blocks) -> int:
    """What all shards together wait for: each of them as long as the busiest one."""
    work = np.sum(blocks.visible, 1).reshape(shards, -1).sum(1)
    return shards * max(work) * blocks.side**2

  plans = [_block_plan(runs, visible, side, shards) for side in range(LARGEST_BLOCK, 0, -LANES)]
  most_pairs = 1.15 * area(runs, visible)
  most_tokens = 1.15 * runs.size.sum()
  for order, blocks in plans:
    if count_pairs(blocks) <= most_pairs and len(order) <= most_tokens:
      return order, blocks
  return min(plans, key=lambda plan: count_pairs(plan[1]))


def count_video(layout: Layout, order: np.ndarray, side: int) -> tuple[int, ...]:
  """`Blocks.video` of blocks of `side` tokens in this order; `side` where nothing is but video and
  padding.
  """
  is_other = (layout.kind >= ACTION)[order] & (order >= 0)
  return tuple(_count_first(~block) for block in is_other.reshape(-1, side))


def pad_to_multiple(order: np.ndarray, multiple: int) -> np.ndarray:
  """`order` with -1 for padding at its end."""
  return np.pad(order, (0, -len(order) % multiple), constant_values=-1)


def _block_plan(
  runs: Units, visible: np.ndarray, side: int, shards: int
) -> tuple[np.ndarray, Blocks]:
  """`block_plan` for one side."""
  # Runs that see and are seen alike stand together and are padded to whole blocks.
  stop = np.cumsum(runs.size)
  start = stop - runs.size
  pieces = []
  run_of_block = []
  for rows in _find_alike(np.concatenate([visible, visible.T], 1)):
    tokens = runs.token[start[rows.start] : stop[rows.stop - 1]]
    pieces.append(pad_to_multiple(tokens, side))
    run_of_block += [rows.start] * (len(pieces[-1]) // side)
  order = pad_to_multiple(np.concatenate(pieces), side * shards)

  # Blocks of padding alone fill up the last share; they look at one block, so that nothing is
  # divided by zero.
  used = len(run_of_block)
  seen = np.pad(visible[np.ix_(run_of_block, run_of_block)], (0, -used % shards))
  seen[used:, 0] = True

  share = _share_out(seen.sum(1), shards)
  seen = seen[np.ix_(share, share)]
  order = order.reshape(-1, side)[share].ravel()
  return order, Blocks(side, tuple(map(tuple, seen.tolist())))


def _share_out(work: np.ndarray, shards: int) -> np.ndarray:
  """Indices of blocks, one shard's after the other's: the heaviest first go to the shard with the
  least so far.
  """
  shares: list[list[int]] = [[] for _ in range(shards)]
  for block in np.argsort(-work, kind='stable'):
    with_room = [share for share in shares if len(share) < len(work) // shards]
    min(with_room, key=lambda share: work[share].sum()).append(block)
  return np.concatenate([sorted(share) for share in shares])


def _count_first(true: np.ndarray) -> int:
  """How many are True before the first that is not."""
  return int(np.argmin(np.append(true, False)))


def _find_alike(rows: np.ndarray) -> list[slice]:
  """Slices of consecutive equal rows."""
  differs = (rows[1:] != rows[:-1]).any(1)  # From the row before.
  changes = np.flatnonzero(differs) + 1
  bounds = [0, *changes, len(rows)]
  return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
