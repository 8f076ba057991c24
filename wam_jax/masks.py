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
LARGEST_BLOCK, LANES = (
  1024,
  128,
)  # Sides of a block, in tokens: what fits a TPU's vector memory, and its lanes.


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
  clean_frames: int,
  noisy_frames: range,
  tokens_per_frame: int,
  frames_per_chunk: int,
  actions_per_chunk: int,
  states_per_chunk: int,
  chunks: int,
) -> Layout:
  """Layout of the teacher-forced sequence; `noisy_frames` are the latent frames that are
  denoised.
  """
  frame_block = lambda f: 0 if f == 0 else 1 + (f - 1) // frames_per_chunk
  parts = [
    (CLEAN, frame_block(f), f, 0) for f in range(clean_frames) for _ in range(tokens_per_frame)
  ]
  parts += [
    (NOISY, frame_block(f), f, 1 + i)
    for i, f in enumerate(noisy_frames)
    for _ in range(tokens_per_frame)
  ]
  base = 1 + len(noisy_frames)
  actions = chunks * actions_per_chunk
  parts += [(ACTION, 1 + j // actions_per_chunk, -1, base + j) for j in range(actions)]
  parts += [
    (STATE, 1 + j // states_per_chunk, -1, base + actions + j)
    for j in range(chunks * states_per_chunk)
  ]
  return Layout(*np.asarray(parts, np.int32).T)


def teacher_forcing(
  layout: Layout, *, frames_per_chunk: int, window_frames: int, state_rule: str
) -> np.ndarray:
  """[T, T] bool: chunk b sees the clean video before it and its own noisy video, actions and state,
  nothing later.

  Clean video is block-causal within the last `window_frames` frames (frame 0 always stays); noisy
  frame 0 sees itself; a state token sees the states of its chunk, or with `state_rule` 'chunk' what
  the actions of its chunk see.
  """
  kind_k, block_q, block_k = layout.kind[None, :], layout.block[:, None], layout.block[None, :]
  history = (layout.kind[:, None] == CLEAN) & _history(
    layout, CLEAN, frames_per_chunk, window_frames
  )
  in_chunk = ((kind_k == CLEAN) & (block_k < block_q)) | ((kind_k != CLEAN) & (block_k == block_q))
  return (
    history
    | _own(layout, NOISY)
    | (_chunk_queries(layout, state_rule) & in_chunk)
    | _own(layout, STATE)
  )


def without_clean(
  layout: Layout, *, frames_per_chunk: int, window_frames: int, state_rule: str
) -> np.ndarray:
  """[T, T] bool for one noisy copy of the video: chunk b sees it up to itself, in the window of
  `teacher_forcing`.
  """
  kind_k, block_q, block_k = layout.kind[None, :], layout.block[:, None], layout.block[None, :]
  history = _history(layout, NOISY, frames_per_chunk, window_frames)
  in_chunk = history | ((kind_k != NOISY) & (block_k == block_q))
  return _own(layout, NOISY) | (_chunk_queries(layout, state_rule) & in_chunk) | _own(layout, STATE)


def reference_global(layout: Layout, mask: np.ndarray) -> np.ndarray:
  """`mask` of `teacher_forcing` with two defects of the reference, which has them at max_chunk_size
  -1.

  A clean token after frame 0 sees only the tokens before it, even in its own chunk. In a sequence
  without actions that holds in frame 0 too, and noisy video sees all of the video, its own target
  included.
  """
  clean_q, index = (layout.kind == CLEAN)[:, None], np.arange(len(layout.kind))
  causal = index[:, None] >= index[None, :]
  if (layout.kind == ACTION).any():
    return mask & (~clean_q | (layout.block == 0)[:, None] | causal)
  return ~clean_q | (mask & causal)


def _history(layout, kind, frames_per_chunk, window_frames):
  """Video of one kind up to each query's block: frame 0 and the newest frames."""
  frame_k, block_q = layout.frame[None, :], layout.block[:, None]
  end_q = 1 + block_q * frames_per_chunk
  return (
    (layout.kind[None, :] == kind)
    & (layout.block[None, :] <= block_q)
    & ((frame_k == 0) | (frame_k >= end_q - window_frames))
  )


def _chunk_queries(layout, state_rule):
  """[T, 1]: tokens that see the whole chunk they belong to."""
  kinds = (NOISY, ACTION, STATE) if state_rule == 'chunk' else (NOISY, ACTION)
  return (np.isin(layout.kind, kinds) & (layout.block > 0))[:, None]


def _own(layout, kind):
  """Tokens of one kind and block, among themselves."""
  is_kind = layout.kind == kind
  return is_kind[:, None] & is_kind[None, :] & (layout.block[:, None] == layout.block[None, :])


class Units(NamedTuple):
  """Runs of tokens of one kind, block and frame: clean video by frames, then each block's noisy
  video, actions, states.

  Attributes:
    layout: one token per run.
    start, size: of each run in the sequence of `training_layout`.
  """

  layout: Layout
  start: np.ndarray
  size: np.ndarray

  @property
  def token(self) -> np.ndarray:
    """[T], index of the tokens in this order."""
    return np.concatenate([np.arange(a, a + n) for a, n in zip(self.start, self.size)])


class Part(NamedTuple):
  """The next `size` tokens see those of `keys`, (start, stop); `conditional`: some of these may be
  padding.
  """

  size: int
  keys: tuple[tuple[int, int], ...]
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
  """Blocks of `side` tokens that see whole blocks: the i-th the j-th where `visible[i][j]`."""

  side: int
  visible: tuple[tuple[bool, ...], ...]

  @property
  def area(self) -> int:
    """Pairs of tokens that are computed."""
    return int(np.sum(self.visible)) * self.side**2


def units(layout: Layout) -> Units:
  """The runs of a layout."""
  alike = np.stack([layout.kind, layout.block, layout.frame])
  start = np.flatnonzero(np.diff(alike, axis=1, prepend=-2).any(0))
  size = np.diff(start, append=alike.shape[1])
  order = np.lexsort((start, layout.block[start], layout.kind[start] != CLEAN))
  start, size = start[order], size[order]
  return Units(
    Layout(*(a[start] for a in (layout.kind, layout.block, layout.frame, layout.group))),
    start,
    size,
  )


def area(runs: Units, visible: np.ndarray) -> int:
  """Pairs of tokens that see each other, where `visible` says it of the runs."""
  return int(runs.size @ visible @ runs.size)


def chunk_plan(runs: Units, visible: np.ndarray, shards: int = 1) -> tuple[np.ndarray, Chunks]:
  """Order of the tokens, and which see which; no other pairs are computed.

  With `shards`, -1 for padding up to a multiple, which sees what the tokens before it see.
  """
  stop = np.cumsum(runs.size)
  start = stop - runs.size
  parts = []
  for rows in _alike(visible):
    seen = visible[rows.start]
    spans = np.flatnonzero(np.diff(seen, prepend=False, append=False)).reshape(-1, 2)
    parts.append(
      Part(
        int(runs.size[rows].sum()),
        tuple((int(start[a]), int(stop[b - 1])) for a, b in spans),
        bool((seen & (runs.layout.kind >= ACTION)).any()),
      )
    )
  order = pad_to_multiple(runs.token, shards)
  parts[-1] = parts[-1]._replace(size=parts[-1].size + len(order) - int(stop[-1]))
  return order, Chunks(tuple(parts))


def block_plan(runs: Units, visible: np.ndarray, shards: int = 1) -> tuple[np.ndarray, Blocks]:
  """Order of the tokens, -1 for padding, and blocks of them in `shards` equal shares of about equal
  work.

  The side is the largest with which `shards` times the busiest one computes at most 15 % more pairs
  than see each other, and at most 15 % of tokens are padding; where there is none, that with the
  fewest pairs.
  """
  plans = [_block_plan(runs, visible, side, shards) for side in range(LARGEST_BLOCK, 0, -LANES)]
  pairs = lambda blocks: (
    shards * max(np.sum(blocks.visible, 1).reshape(shards, -1).sum(1)) * blocks.side**2
  )
  most_pairs, most_tokens = 1.15 * area(runs, visible), 1.15 * runs.size.sum()
  good = [
    (order, blocks)
    for order, blocks in plans
    if pairs(blocks) <= most_pairs and len(order) <= most_tokens
  ]
  return good[0] if good else min(plans, key=lambda plan: pairs(plan[1]))


def pad_to_multiple(order: np.ndarray, multiple: int) -> np.ndarray:
  """`order` with -1 for padding at its end."""
  return np.pad(order, (0, -len(order) % multiple), constant_values=-1)


def _block_plan(runs, visible, side, shards):
  """`block_plan` for one side: runs that see and are seen alike stand together and are padded to
  whole blocks.
  """
  stop = np.cumsum(runs.size)
  pieces, sections = [], []
  for rows in _alike(np.concatenate([visible, visible.T], 1)):
    pieces.append(
      pad_to_multiple(
        runs.token[stop[rows.start] - runs.size[rows.start] : stop[rows.stop - 1]], side
      )
    )
    sections += [rows.start] * (len(pieces[-1]) // side)
  seen = visible[np.ix_(sections, sections)]
  spare = (
    -len(seen) % shards
  )  # Blocks of padding alone; they look at one block, so that nothing is divided by zero.
  seen = np.pad(seen, (0, spare))
  seen[len(sections) :, 0] = True
  share = _share(seen.sum(1), shards)
  order = pad_to_multiple(np.concatenate(pieces), side * shards).reshape(-1, side)[share].ravel()
  return order, Blocks(side, tuple(map(tuple, seen[np.ix_(share, share)].tolist())))


def _share(work, shards):
  """Indices of blocks, one shard's after the other's: the heaviest first go to the shard with the
  least so far.
  """
  shares = [[] for _ in range(shards)]
  for i in np.argsort(-work, kind='stable'):
    with_room = [share for share in shares if len(share) < len(work) // shards]
    min(with_room, key=lambda share: work[share].sum()).append(i)
  return np.concatenate([sorted(share) for share in shares])


def _alike(rows):
  """Slices of consecutive equal rows."""
  starts = [0, *(np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1), len(rows)]
  return [slice(a, b) for a, b in itertools.pairwise(starts)]
