"""Who attends to whom: token layouts and chunk-causal masks, from index arithmetic on the host.

Block 0 is frame 0; block b >= 1 is chunk b: its frames, its actions, its state.
Source: DreamZero `CausalWanSelfAttention`, specification of the teacher-forcing mask.
"""
from __future__ import annotations

import dataclasses

import numpy as np

CLEAN, NOISY, ACTION, STATE = range(4)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What each token of a sequence is: [clean video][noisy video][actions][states], frames in order.

  Attributes (numpy, [T] each):
    kind: CLEAN, NOISY, ACTION or STATE.
    block: 0 for frame 0, else 1 + chunk.
    frame: latent frame of a video token, -1 otherwise.
    group: tokens that share a noise level share a group: all clean ones 0, then each noisy frame, action and state.
  """

  kind: np.ndarray
  block: np.ndarray
  frame: np.ndarray
  group: np.ndarray


def training_layout(clean_frames: int, noisy_frames: range, tokens_per_frame: int, frames_per_chunk: int,
                    actions_per_chunk: int, states_per_chunk: int, chunks: int) -> Layout:
  """Layout of the teacher-forced sequence; `noisy_frames` are the latent frames that are denoised."""
  frame_block = lambda f: 0 if f == 0 else 1 + (f - 1) // frames_per_chunk
  parts = [(CLEAN, frame_block(f), f, 0) for f in range(clean_frames) for _ in range(tokens_per_frame)]
  parts += [(NOISY, frame_block(f), f, 1 + i) for i, f in enumerate(noisy_frames) for _ in range(tokens_per_frame)]
  base = 1 + len(noisy_frames)
  actions = chunks * actions_per_chunk
  parts += [(ACTION, 1 + j // actions_per_chunk, -1, base + j) for j in range(actions)]
  parts += [(STATE, 1 + j // states_per_chunk, -1, base + actions + j) for j in range(chunks * states_per_chunk)]
  return Layout(*np.asarray(parts, np.int32).T)


def teacher_forcing(layout: Layout, *, frames_per_chunk: int, window_frames: int, state_rule: str) -> np.ndarray:
  """[T, T] bool: chunk b sees the clean video before it and its own noisy video, actions and state, nothing later.

  Clean video is block-causal within the last `window_frames` frames (frame 0 always stays); noisy frame 0 sees
  itself; a state token sees the states of its chunk, or with `state_rule` 'chunk' what the actions of its chunk see.
  """
  kind_k, block_q, block_k = layout.kind[None, :], layout.block[:, None], layout.block[None, :]
  history = (layout.kind[:, None] == CLEAN) & _history(layout, CLEAN, frames_per_chunk, window_frames)
  in_chunk = ((kind_k == CLEAN) & (block_k < block_q)) | ((kind_k != CLEAN) & (block_k == block_q))
  return history | _own(layout, NOISY) | (_chunk_queries(layout, state_rule) & in_chunk) | _own(layout, STATE)


def without_clean(layout: Layout, *, frames_per_chunk: int, window_frames: int, state_rule: str) -> np.ndarray:
  """[T, T] bool for one noisy copy of the video: chunk b sees it up to itself, in the window of `teacher_forcing`."""
  kind_k, block_q, block_k = layout.kind[None, :], layout.block[:, None], layout.block[None, :]
  history = _history(layout, NOISY, frames_per_chunk, window_frames)
  in_chunk = history | ((kind_k != NOISY) & (block_k == block_q))
  return _own(layout, NOISY) | (_chunk_queries(layout, state_rule) & in_chunk) | _own(layout, STATE)


def reference_global(layout: Layout, mask: np.ndarray) -> np.ndarray:
  """`mask` of `teacher_forcing` with two defects of the reference, which has them at max_chunk_size -1.

  A clean token after frame 0 sees only the tokens before it, even in its own chunk. In a sequence without actions
  that holds in frame 0 too, and noisy video sees all of the video, its own target included.
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
  return (layout.kind[None, :] == kind) & (layout.block[None, :] <= block_q) & (
      (frame_k == 0) | (frame_k >= end_q - window_frames))


def _chunk_queries(layout, state_rule):
  """[T, 1]: tokens that see the whole chunk they belong to."""
  kinds = (NOISY, ACTION, STATE) if state_rule == 'chunk' else (NOISY, ACTION)
  return (np.isin(layout.kind, kinds) & (layout.block > 0))[:, None]


def _own(layout, kind):
  """Tokens of one kind and block, among themselves."""
  is_kind = layout.kind == kind
  return is_kind[:, None] & is_kind[None, :] & (layout.block[:, None] == layout.block[None, :])
