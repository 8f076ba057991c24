"""Attention, rotary embedding and the key/value cache.

Heads stand before tokens, [B, N, T, K]: on CPU that is twice as fast as [B, T, N, K], forward and backward.
"""
from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

NEGATIVE = -1e30  # finite, so a query with no key at all (padding) gives a mean, not NaN


@flax.struct.dataclass
class KVCache:
  """Keys (rotated) and values of committed clean frames; preallocated.

  Frame f lies in slot f mod (number of slots), so when the slots run out a new frame takes the place of the oldest.

  Attributes:
    k, v: [L, B, N, S, K], S = frame slots * tokens per frame.
    frames: int32 scalar, frames committed so far, dropped ones included.
  """

  k: jax.Array
  v: jax.Array
  frames: jax.Array

  @classmethod
  def empty(cls, layers: int, batch: int, heads: int, slots: int, head_dim: int, dtype) -> KVCache:
    """Cache without frames; `slots` counts tokens."""
    zeros = jnp.zeros((layers, batch, heads, slots, head_dim), dtype)
    return cls(zeros, zeros, jnp.int32(0))

  def write(self, k_LBNTK: jax.Array, v_LBNTK: jax.Array, start_frame, frames: int) -> KVCache:
    """Cache with whole frames written from `start_frame` on; frames after them count as not committed."""
    tokens = k_LBNTK.shape[3] // frames
    slots = self.k.shape[3] // tokens

    def put(cached, new):
      for i, frame in enumerate(jnp.split(new.astype(cached.dtype), frames, axis=3)):
        start = (start_frame + i) % slots * tokens
        cached = jax.lax.dynamic_update_slice_in_dim(cached, frame, start, axis=3)
      return cached

    return KVCache(put(self.k, k_LBNTK), put(self.v, v_LBNTK), jnp.int32(start_frame + frames))

  def seen_from(self, start_frame, frames: int, window: int, tokens: int) -> jax.Array:
    """[S] bool: cached tokens that `frames` new ones from `start_frame` on see.

    Args:
      window: newest frames that are seen, the new ones included. tokens: of a frame.
    """
    slots = self.k.shape[3] // tokens
    newest = start_frame - 1
    frame = newest - (newest - jnp.arange(slots)) % slots  # The one in each slot; negative where there is none yet.
    return jnp.repeat(frame >= jnp.maximum(0, start_frame + frames - window), tokens)


def attend(q_BNTK, k_BNSK, v_BNSK, mask=None):
  """softmax(q k^T / sqrt(K)) v with the softmax in float32; `mask` broadcasts to [B, N, T, S], True where seen."""
  logits_BNTS = jnp.einsum('BNTK,BNSK->BNTS', q_BNTK, k_BNSK, preferred_element_type=jnp.float32)
  logits_BNTS = logits_BNTS * q_BNTK.shape[-1] ** -0.5
  if mask is not None:
    logits_BNTS = jnp.where(mask, logits_BNTS, NEGATIVE)
  weights_BNTS = jax.nn.softmax(logits_BNTS, -1).astype(v_BNSK.dtype)
  return jnp.einsum('BNTS,BNSK->BNTK', weights_BNTS, v_BNSK)


def rotate(x_BNTK: jax.Array, angles_TR: jax.Array) -> jax.Array:
  """Rotary embedding of interleaved pairs (2i, 2i+1) by `angles_TR` [T, K/2], in float32.

  Source: DreamZero `rope_apply` (complex multiplication).
  """
  cos, sin = jnp.cos(angles_TR), jnp.sin(angles_TR)
  pairs = x_BNTK.astype(jnp.float32).reshape(*x_BNTK.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
  return turned.reshape(x_BNTK.shape).astype(x_BNTK.dtype)


def video_angles(start_frame, frames: int, rows: int, columns: int, head_dim: int):
  """[frames * rows * columns, K/2] float32 angles: pairs for time, then row, then column.

  Made on the host in float64 where `start_frame` is a Python integer.
  Source: DreamZero `rope_params`: d - 4 (d // 6) dimensions for time, 2 (d // 6) for each other axis.
  """
  side = 2 * (head_dim // 6)
  time = _angles(start_frame, frames, head_dim - 2 * side)[:, None, None]
  row = _angles(0, rows, side)[None, :, None]
  column = _angles(0, columns, side)[None, None]
  numbers = np if isinstance(time, np.ndarray) else jnp
  parts = [numbers.broadcast_to(a, (frames, rows, columns, a.shape[-1])) for a in (time, row, column)]
  return numbers.concatenate(parts, -1).reshape(-1, head_dim // 2)


def sequence_angles(start, length: int, head_dim: int):
  """[length, K/2] float32 angles of actions or of states, counted through the episode from its anchor."""
  return _angles(start, length, head_dim)


def _angles(start, length: int, width: int):
  frequency = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  return ((start + np.arange(length))[:, None] * frequency).astype(np.float32)
