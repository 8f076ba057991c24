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
  itself; a state token sees itself, or with `state_rule` 'chunk' what the actions of its chunk see.
  """
  kind_q, kind_k = layout.kind[:, None], layout.kind[None, :]
  block_q, block_k = layout.block[:, None], layout.block[None, :]
  frame_k = layout.frame[None, :]
  end_q = 1 + block_q * frames_per_chunk
  clean = (kind_q == CLEAN) & (kind_k == CLEAN) & (block_k <= block_q) & (
      (frame_k == 0) | (frame_k >= end_q - window_frames))
  in_chunk = ((kind_k == CLEAN) & (block_k < block_q)) | ((kind_k != CLEAN) & (block_k == block_q))
  first = (kind_q == NOISY) & (block_q == 0) & (kind_k == NOISY) & (block_k == 0)
  chunk_kinds = (NOISY, ACTION, STATE) if state_rule == 'chunk' else (NOISY, ACTION)
  chunk = np.isin(kind_q, chunk_kinds) & (block_q > 0) & in_chunk
  state = (kind_q == STATE) & (kind_k == STATE) & (block_q == block_k)
  return clean | first | chunk | state
