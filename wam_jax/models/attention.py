"""Attention, its plan for a training window, rotary embedding and the key/value cache.

Heads stand before tokens, [B, N, T, K]: on CPU that is twice as fast as [B, T, N, K], forward and
backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sharding

NEGATIVE = -1e30  # finite, so a query with no key at all (padding) gives a mean, not NaN
MOST_DENSE, LEAST_SPLASH = (
  512,
  4096,
)  # Tokens up to which 'auto' takes 'dense', and from which 'splash' on TPUs.


@flax.struct.dataclass
class KVCache:
  """Keys (rotated) and values of committed clean frames; preallocated.

  Frame f lies in slot f mod (number of slots), so when the slots run out a new frame takes the
  place of the oldest.

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
    """Cache with whole frames written from `start_frame` on; frames after them count as not
    committed.
    """
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
    frame = (
      newest - (newest - jnp.arange(slots)) % slots
    )  # The one in each slot; negative where there is none yet.
    return jnp.repeat(frame >= jnp.maximum(0, start_frame + frames - window), tokens)


def attend(q_BNTK, k_BNSK, v_BNSK, mask=None):
  """softmax(q k^T / sqrt(K)) v with the softmax in float32; `mask` broadcasts to [B, N, T, S], True
  where seen.
  """
  logits_BNTS = jnp.einsum('BNTK,BNSK->BNTS', q_BNTK, k_BNSK, preferred_element_type=jnp.float32)
  logits_BNTS = logits_BNTS * q_BNTK.shape[-1] ** -0.5
  if mask is not None:
    logits_BNTS = jnp.where(mask, logits_BNTS, NEGATIVE)
  weights_BNTS = jax.nn.softmax(logits_BNTS, -1).astype(v_BNSK.dtype)
  return jnp.einsum('BNTS,BNSK->BNTK', weights_BNTS, v_BNSK)


class Plan(NamedTuple):
  """How the tokens of a training window attend to each other.

  Attributes:
    order: [T] index of each token in the layout of `masks.training_layout`, -1 for padding.
    pattern: `masks.Chunks`, `masks.Blocks`, or None for a mask of all pairs.
    alone_T: bool, with `masks.Blocks`: tokens that see themselves alone, whatever the blocks say.
  """

  order: np.ndarray
  pattern: masks.Chunks | masks.Blocks | None
  alone_T: np.ndarray | None = None


def training_mask(
  c: cfg.ModelConfig, layout: masks.Layout, state_rule: str | None = None
) -> np.ndarray:
  """[T, T] bool: who sees whom in a training window, by the rules of the config."""
  everything = c.history_rule == 'reference_global'
  state_rule = state_rule or ('chunk' if c.state_rule == 'chunk' else 'self')
  common = dict(
    frames_per_chunk=c.frames_per_chunk,
    state_rule=state_rule,
    window_frames=len(layout.frame) if everything else c.window_frames,
  )
  if not (layout.kind == masks.CLEAN).any():
    return masks.without_clean(layout, **common)
  mask = masks.teacher_forcing(layout, **common)
  return masks.reference_global(layout, mask) if everything else mask


def make_plan(c: cfg.ModelConfig, layout: masks.Layout) -> Plan:
  """The plan of `c.attention` for the active mesh.

  Raises:
    ValueError: the mesh does not divide the heads or has more shards than the tokens can use.
  """
  tokens, kind = len(layout.kind), choose(c, len(layout.kind))
  heads, shards = sharding.shards_of('act_heads'), sharding.shards_of('tokens')
  if c.num_heads % heads:
    raise ValueError(
      f'model.num_heads={c.num_heads} must be divisible by the {heads} shards of the mesh axes of '
      f"config.rules['act_heads']; nearest valid: {_nearest(heads, lambda n: c.num_heads % n == 0)}."
    )
  if kind == 'dense':
    return Plan(masks.pad_to_multiple(np.arange(tokens), shards), None)
  units = masks.units(layout)
  if kind == 'chunks':
    return Plan(*masks.chunk_plan(units, training_mask(c, units.layout), shards))
  alone = c.state_rule != 'chunk'
  if alone and (units.size[units.layout.kind == masks.STATE] > 1).any():
    raise ValueError(
      "model.attention='splash' needs one state a chunk, or model.state_rule='chunk'; "
      "use model.attention='chunks'."
    )
  plans = functools.cache(
    functools.partial(masks.block_plan, units, training_mask(c, units.layout, 'chunk'))
  )
  fits = lambda n: len(plans(n)[0]) <= 1.5 * len(plans(1)[0])
  if not fits(shards):
    raise ValueError(
      f'{tokens} tokens cannot be split into the {shards} shards of the mesh axes of '
      f"config.rules['tokens']; nearest valid: {_nearest(shards, fits)}."
    )
  order, blocks = plans(shards)
  return Plan(order, blocks, (layout.kind[order] == masks.STATE) & (order >= 0) if alone else None)


def choose(c: cfg.ModelConfig, tokens: int) -> str:
  """The kind of attention, 'dense', 'chunks' or 'splash', of a training window of so many
  tokens.
  """
  if c.attention != 'auto':
    return c.attention
  if tokens <= MOST_DENSE or c.history_rule == 'reference_global':
    return 'dense'
  return 'splash' if tokens >= LEAST_SPLASH and sharding.platform() == 'tpu' else 'chunks'


def _nearest(shards: int, valid: Callable[[int], bool]) -> int:
  """The largest divisor of `shards` that is valid, 1 if none is."""
  return next(n for n in range(shards, 0, -1) if n == 1 or (shards % n == 0 and valid(n)))


def arrange(x: jax.Array, order: np.ndarray, axis: int = 1) -> jax.Array:
  """`x` taken at `order` along an axis, zero (or False) where it is -1; as slices, which cost less
  than a gather.
  """
  padding = order < 0
  breaks = (padding[1:] != padding[:-1]) | ~padding[1:] & (np.diff(order) != 1)
  pieces = []
  for run in np.split(order, np.flatnonzero(breaks) + 1):
    if run[0] < 0:
      pieces.append(jnp.zeros((*x.shape[:axis], len(run), *x.shape[axis + 1 :]), x.dtype))
    else:
      pieces.append(jax.lax.slice_in_dim(x, int(run[0]), int(run[-1]) + 1, axis=axis))
  return jnp.concatenate(pieces, axis) if len(pieces) > 1 else pieces[0]


def attend_chunks(q_BNTK, k_BNTK, v_BNTK, seen_BT, chunks: masks.Chunks, recompute: bool):
  """`attend` part by part: every query with the keys it sees, and no mask but that of padding among
  them.

  On a mesh the queries of each part are split over the axes of 'tokens' if these divide them, so
  that all shards do the same work.

  Args:
    seen_BT: bool, tokens that are no padding. recompute: the weights of a part, in the backward
      pass.
  """
  shard = lambda x, tokens=None: sharding.shard(x, 'batch', 'act_heads', tokens, 'head_dim')
  q_BNTK, k_BNTK, v_BNTK = shard(q_BNTK), shard(k_BNTK), shard(v_BNTK)
  one = jax.checkpoint(attend) if recompute else attend
  parts, start = [], 0
  for part in chunks.parts:
    keys = np.concatenate([np.arange(a, b) for a, b in part.keys])
    q = jax.lax.slice_in_dim(q_BNTK, start, start + part.size, axis=2)
    mask = arrange(seen_BT, keys)[:, None, None] if part.conditional else None
    split = None if part.size % sharding.shards_of('tokens') else 'tokens'
    parts.append(
      shard(one(shard(q, split), arrange(k_BNTK, keys, 2), arrange(v_BNTK, keys, 2), mask))
    )
    start += part.size
  return shard(shard(jnp.concatenate(parts, 2)), 'tokens')


def attend_blocks(q_BNTK, k_BNTK, v_BNTK, seen_BT, blocks: masks.Blocks, name: str):
  """`attend` where blocks of tokens see whole blocks; see `splash.attend`."""
  return _splash().attend(q_BNTK, k_BNTK, v_BNTK, seen_BT, blocks.visible, 'tokens', name)


def attend_all(q_BNTK, k_BNSK, v_BNSK, side: int):
  """`attend` without a mask by the same kernels: blocks of `side` queries and of at most 512 keys,
  which are padded.
  """
  B, _, S, _ = k_BNSK.shape
  width = min(512, S + -S % masks.LANES)
  k_BNSK, v_BNSK = (jnp.pad(x, ((0, 0), (0, 0), (0, -S % width), (0, 0))) for x in (k_BNSK, v_BNSK))
  seen_BS = jnp.broadcast_to(np.arange(k_BNSK.shape[2]) < S, (B, k_BNSK.shape[2]))
  visible = ((True,) * (k_BNSK.shape[2] // width),) * (q_BNTK.shape[2] // side)
  return _splash().attend(q_BNTK, k_BNSK, v_BNSK, seen_BS, visible)


def _splash():
  from wam_jax.models import (
    splash,
  )  # Here, because Pallas takes half a second that most programs need not spend.

  return splash


def rotate(x_BNTK: jax.Array, angles_TR: jax.Array) -> jax.Array:
  """Rotary embedding of interleaved pairs (2i, 2i+1) by `angles_TR` [T, K/2], in float32.

  Source: DreamZero `rope_apply` (complex multiplication).
  """
  cos, sin = jnp.cos(angles_TR), jnp.sin(angles_TR)
  pairs = x_BNTK.astype(jnp.float32).reshape(*x_BNTK.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
  return turned.reshape(x_BNTK.shape).astype(x_BNTK.dtype)


def rotate_by_product(x_BNTK: jax.Array, angles_TR: jax.Array) -> jax.Array:
  """`rotate` with the partners of a pair exchanged by a matrix of ones: a third of the memory
  traffic on TPUs.
  """
  K = x_BNTK.shape[-1]
  exchange_KK = np.zeros((K, K), x_BNTK.dtype)
  exchange_KK[np.arange(0, K, 2), np.arange(1, K, 2)] = 1
  exchange_KK[np.arange(1, K, 2), np.arange(0, K, 2)] = -1
  partner = jnp.einsum(
    'BNTK,KJ->BNTJ',
    x_BNTK,
    exchange_KK,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  cos, sin = (jnp.repeat(f(angles_TR), 2, axis=-1) for f in (jnp.cos, jnp.sin))
  return (x_BNTK.astype(jnp.float32) * cos + partner * sin).astype(x_BNTK.dtype)


def video_angles(start_frame, frames: int, rows: int, columns: int, head_dim: int):
  """[frames * rows * columns, K/2] float32 angles: pairs for time, then row, then column.

  Made on the host in float64 where `start_frame` is a Python integer.
  Source: DreamZero `rope_params`: d - 4 (d // 6) dimensions for time, 2 (d // 6) for each other
  axis.
  """
  side = 2 * (head_dim // 6)
  time = _angles(start_frame, frames, head_dim - 2 * side)[:, None, None]
  row = _angles(0, rows, side)[None, :, None]
  column = _angles(0, columns, side)[None, None]
  numbers = np if isinstance(time, np.ndarray) else jnp
  parts = [
    numbers.broadcast_to(a, (frames, rows, columns, a.shape[-1])) for a in (time, row, column)
  ]
  return numbers.concatenate(parts, -1).reshape(-1, head_dim // 2)


def sequence_angles(start, length: int, head_dim: int):
  """[length, K/2] float32 angles of actions or of states, counted through the episode from its
  anchor.
  """
  return _angles(start, length, head_dim)


def _angles(start, length: int, width: int):
  frequency = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  return ((start + np.arange(length))[:, None] * frequency).astype(np.float32)
