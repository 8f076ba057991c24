"""Attention, its plan for a training window, rotary embedding and the key/value cache.

Heads stand before tokens, [B, N, T, K]: on CPU that is twice as fast as [B, T, N, K], forward and
backward.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sharding

# Finite, so a query with no key at all (padding) gives a mean, not NaN.
NEGATIVE = -1e30
# Tokens up to which 'auto' takes 'dense', and from which it takes 'splash' on TPUs.
MOST_DENSE = 512
LEAST_SPLASH = 4096
# Bytes of the keys of a layer's past that are copied beside new ones.
_SMALL_PAST = 128 * 1024
# Bytes of the logits of all heads of a pass.
_MOST_LOGITS = 256 * 1024 * 1024
# Queries or keys of a block of the splash kernels where no pattern says how many.
_MOST_SIDE = 512

# An array, or one of each session of a pass; see `KVCache`.
Each = jax.Array | tuple[jax.Array, ...]


@flax.struct.dataclass
class KVCache:
  """Keys (rotated) and values of committed clean frames; preallocated.

  Frame f lies in slot f mod (number of slots), so when the slots run out a new frame takes the
  place of the oldest. With a sink frame 0 stays for ever, and the others take turns in the slots
  after it.

  Sessions that go through a pass together keep arrays of their own: each of these is then a tuple
  of n, frames and places in the episode are [n], and row r of the pass is of session r mod n.

  Attributes:
    k, v: [L, B, N, S, K], S = frame slots * tokens per frame.
    frames: int32 scalar, frames committed so far, dropped ones included.
    sink_k: keys of frame 0 as at its own time, [L, B, N, tokens of a frame, K]; None without.
  """

  k: Each
  v: Each
  frames: jax.Array
  sink_k: Each | None = None

  @classmethod
  def empty(
    cls,
    *,
    layers: int,
    batch: int,
    heads: int,
    slots: int,
    head_dim: int,
    dtype,
    sink: int = 0,
  ) -> KVCache:
    """Cache without frames; `slots` counts tokens, `sink` those of frame 0 if that stays."""
    shape = (layers, batch, heads, slots, head_dim)
    sink_k = jnp.zeros((*shape[:3], sink, head_dim), dtype) if sink else None
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0), sink_k)

  @classmethod
  def join(cls, caches: Sequence[KVCache]) -> KVCache:
    """That of a pass of sessions, each of which keeps its arrays."""
    frames = jnp.stack([cache.frames for cache in caches])
    k, v, sink_k = (tuple(getattr(cache, x) for cache in caches) for x in ('k', 'v', 'sink_k'))
    return cls(k, v, frames, None if caches[0].sink_k is None else sink_k)

  def part(self) -> list[KVCache]:
    """Those of the sessions; undoes `join`."""
    sinks = self.sink_k or [None] * len(self.k)
    return [KVCache(*each) for each in zip(self.k, self.v, self.frames, sinks)]

  @property
  def slots(self) -> int:
    """S."""
    return each_session(self.k)[0].shape[3]

  def slot(self, frame: jax.Array | int, tokens: int) -> jax.Array | int:
    """First slot of a frame of so many tokens."""
    frames = self.slots // tokens
    if self.sink_k is None:
      return frame % frames * tokens
    turn = 1 + (frame - 1) % (frames - 1)
    return (turn if not isinstance(frame, int) else turn * (frame > 0)) * tokens

  def turn_sink(self, shift: jax.Array) -> KVCache:
    """The cache with frame 0 as seen `shift` frames later: as if it were that much newer."""

    def turn(k_LBNSK, sink_k_LBNTK, shift):
      angles_1R = time_angles(shift, k_LBNSK.shape[-1])
      turned = jnp.stack([rotate(k_BNTK, angles_1R) for k_BNTK in sink_k_LBNTK])
      return jax.lax.dynamic_update_slice_in_dim(k_LBNSK, turned, 0, axis=3)

    return self.replace(k=map_sessions(turn, self.k, self.sink_k, shift))

  def seen_from(
    self, start_frame: int | jax.Array, frames: int, window: int, tokens: int
  ) -> jax.Array:
    """[S] bool, [n, S] with starts of n sessions: cached tokens that `frames` new ones from
    `start_frame` on see.

    Args:
      window: number of the newest frames that are seen, the new ones included.
      tokens: number of tokens of a frame.
    """
    slots = self.slots // tokens
    start = jnp.asarray(start_frame)[..., None]
    dropped = jnp.maximum(0, start + frames - window)
    if self.sink_k is not None:
      # Frame 0 is one of the window, which has no more frames than it had in training.
      turn = start - 2 - (start - 2 - jnp.arange(slots - 1)) % (slots - 1)
      seen = jnp.concatenate([start > 0, turn + 1 > dropped], -1)
      return jnp.repeat(seen, tokens, axis=-1)
    newest = start - 1
    # The frame in each slot; negative where there is none yet.
    frame = newest - (newest - jnp.arange(slots)) % slots
    return jnp.repeat(frame >= dropped, tokens, axis=-1)


@flax.struct.dataclass(kw_only=True)
class Stays:
  """Tokens of a sweep whose keys and values take slots of the cache.

  Attributes:
    spans: (start, stop) of their places in the sweep, a span for each frame: XLA clamps an update
      that runs past the last slot, where frames wrap around.
    slots: int32, the first slot of each; [n] of n sessions.
  """

  spans: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
  slots: tuple[jax.Array | int, ...]

  def put(self, cached: Each, new_BNTK: jax.Array, layer: jax.Array) -> Each:
    """The cache with these tokens of one layer."""

    def put_session(x_LBNSK, new_BNTK, *slots):
      for (start, stop), slot in zip(self.spans, slots):
        new_1BNTK = new_BNTK[None, :, :, start:stop].astype(x_LBNSK.dtype)
        x_LBNSK = jax.lax.dynamic_update_slice(x_LBNSK, new_1BNTK, (layer, 0, 0, slot, 0))
      return x_LBNSK

    if isinstance(cached, tuple):
      new_BNTK = deal(new_BNTK, len(cached))
    return map_sessions(put_session, cached, new_BNTK, *self.slots)


def each_session(x: Each) -> tuple[jax.Array, ...]:
  """The arrays of the sessions of a pass."""
  return x if isinstance(x, tuple) else (x,)


def map_sessions(function: Callable[..., jax.Array], x: Each, *more: Any) -> Each:
  """`function` of each session's array, and of what it has of `more`; what has no axis all have."""
  if not isinstance(x, tuple):
    return function(x, *more)

  def pick(y, number: int):
    return y[number] if isinstance(y, tuple) or np.ndim(y) else y

  return tuple(function(one, *(pick(y, i) for y in more)) for i, one in enumerate(x))


def interleave(x: Each) -> jax.Array:
  """Rows of all sessions as a pass has them: first the first of each."""
  if not isinstance(x, tuple):
    return x
  return jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:])


def deal(x_B: jax.Array, sessions: int) -> tuple[jax.Array, ...]:
  """The rows of each session of a pass; undoes `interleave`."""
  return tuple(x_B[number::sessions] for number in range(sessions))


def spread(x: jax.Array, rows: int, rank: int) -> jax.Array:
  """For each of the rows of a pass what its session has; as it is where all have the same.

  Args:
    x: of `rank` axes, before which there is one of the sessions or none.
  """
  if x.ndim == rank:
    return x
  return jnp.tile(x, (rows // len(x),) + (1,) * rank)


def read_layer(cached: Each, layer: jax.Array, rows: int) -> jax.Array:
  """Keys or values of a layer, [B, N, S, K]; of the first `rows` where a pass has not all."""
  each = each_session(cached)
  of_layer = tuple(
    jax.lax.dynamic_index_in_dim(x_LBNSK, layer, keepdims=False)[: rows // len(each)]
    for x_LBNSK in each
  )
  return interleave(of_layer) if isinstance(cached, tuple) else of_layer[0]


def attend(
  q_BNTK: jax.Array, k_BNSK: jax.Array, v_BNSK: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v, with the softmax in float32.

  Args:
    mask: bool, broadcasts to [B, N, T, S], True where a key is seen; None where all are.
  """
  logits_BNTS = jnp.einsum('BNTK,BNSK->BNTS', q_BNTK, k_BNSK, preferred_element_type=jnp.float32)
  logits_BNTS = logits_BNTS * q_BNTK.shape[-1] ** -0.5
  if mask is not None:
    logits_BNTS = jnp.where(mask, logits_BNTS, NEGATIVE)
  weights_BNTS = jax.nn.softmax(logits_BNTS, -1).astype(v_BNSK.dtype)
  return jnp.einsum('BNTS,BNSK->BNTK', weights_BNTS, v_BNSK)


def attend_after(
  q_BNTK: jax.Array,
  past_k_BNSK: jax.Array,
  past_v_BNSK: jax.Array,
  k_BNTK: jax.Array,
  v_BNTK: jax.Array,
  mask: jax.Array,
) -> jax.Array:
  """`attend` to a past and to oneself, whose keys are not put behind those of the past: that would
  copy a layer's cache. A small one is copied, which costs less than every operation twice. Of many
  pairs the heads take turns: logits of all would be more than the rest of the pass holds.

  Args:
    mask: bool, [B, 1, T, S + T] or what broadcasts to it: the past, then the queries' own keys.
  """
  if past_k_BNSK.size * past_k_BNSK.dtype.itemsize <= _SMALL_PAST:
    join = lambda past, own: jnp.concatenate([past.astype(own.dtype), own], 2)
    return attend(q_BNTK, join(past_k_BNSK, k_BNTK), join(past_v_BNSK, v_BNTK), mask)
  arrays = (q_BNTK, past_k_BNSK, past_v_BNSK, k_BNTK, v_BNTK)
  B, N, T, _ = q_BNTK.shape
  if 4 * B * N * T * (past_k_BNSK.shape[2] + T) <= _MOST_LOGITS:
    return _attend_to_both(*arrays, mask)
  by_head = tuple(jnp.moveaxis(x_BNTK[:, :, None], 1, 0) for x_BNTK in arrays)
  y_NB1TK = jax.lax.map(lambda head: _attend_to_both(*head, mask), by_head)
  return jnp.moveaxis(y_NB1TK[:, :, 0], 0, 1)


def _attend_to_both(q_BNTK, past_k_BNSK, past_v_BNSK, k_BNTK, v_BNTK, mask) -> jax.Array:
  """`attend_after`, with logits of all pairs and one softmax over both parts."""
  S = past_k_BNSK.shape[2]

  def logits(k_BNSK, seen):
    logits_BNTS = jnp.einsum(
      'BNTK,BNSK->BNTS',
      q_BNTK,
      k_BNSK.astype(q_BNTK.dtype),
      preferred_element_type=jnp.float32,
    )
    return jnp.where(seen, logits_BNTS * q_BNTK.shape[-1] ** -0.5, NEGATIVE)

  past_BNTS = logits(past_k_BNSK, mask[..., :S])
  own_BNTT = logits(k_BNTK, mask[..., S:])
  # One softmax over both.
  largest_BNT1 = jnp.maximum(
    jnp.max(past_BNTS, -1, keepdims=True), jnp.max(own_BNTT, -1, keepdims=True)
  )
  past_BNTS = jnp.exp(past_BNTS - largest_BNT1)
  own_BNTT = jnp.exp(own_BNTT - largest_BNT1)
  total_BNT1 = jnp.sum(past_BNTS, -1, keepdims=True) + jnp.sum(own_BNTT, -1, keepdims=True)

  def add_up(weights_BNTS, v_BNSK):
    dtype = v_BNTK.dtype
    return jnp.einsum(
      'BNTS,BNSK->BNTK',
      (weights_BNTS / total_BNT1).astype(dtype),
      v_BNSK.astype(dtype),
      preferred_element_type=jnp.float32,
    )

  return (add_up(past_BNTS, past_v_BNSK) + add_up(own_BNTT, v_BNTK)).astype(v_BNTK.dtype)


def attend_fused(
  q_BNTK: jax.Array,
  k_BNSK: jax.Array,
  v_BNSK: jax.Array,
  seen_BS: jax.Array | None = None,
  certain: int = 0,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
  """`attend` by cuDNN's kernels, which keep no logits; where `is_fused` says so.

  Args:
    seen_BS: bool, keys that are seen, of each sample one or more; None where all are.
    certain: number of the first keys that all samples see.
    implementation: 'xla' for the same without the kernels.
  """
  B, _, T, _ = q_BNTK.shape
  S = k_BNSK.shape[2]
  lengths_B = jnp.full(B, S, jnp.int32) if S % 2 else None
  if seen_BS is not None:
    # The kernels take a number of keys, and the order of keys changes no sum: those come first.
    order_BS = jnp.argsort(~seen_BS[:, certain:], axis=1, stable=True)[:, None, :, None]

    def sort(x_BNSK):
      rest = jnp.take_along_axis(x_BNSK[:, :, certain:], order_BS, axis=2)
      return jnp.concatenate([x_BNSK[:, :, :certain], rest], 2)

    k_BNSK, v_BNSK = sort(k_BNSK), sort(v_BNSK)
    lengths_B = jnp.sum(seen_BS, 1, dtype=jnp.int32)

  def make_even(x_BNTK):
    """[B, T, N, K]; with gradients the kernels want even numbers of queries and of keys."""
    odd = x_BNTK.shape[2] % 2
    return jnp.swapaxes(jnp.pad(x_BNTK, ((0, 0), (0, 0), (0, odd), (0, 0))), 1, 2)

  q_BTNK, k_BSNK, v_BSNK = map(make_even, (q_BNTK, k_BNSK, v_BNSK))
  y_BTNK = jax.nn.dot_product_attention(
    q_BTNK, k_BSNK, v_BSNK, key_value_seq_lengths=lengths_B, implementation=implementation
  )
  return jnp.swapaxes(y_BTNK[:, :T], 1, 2)


def has_fused(dtype: jnp.dtype, head_dim: int) -> bool:
  """Whether cuDNN has kernels for such queries and keys where what is traced now runs: halves on
  GPUs.
  """
  halves = dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
  return halves and sharding.platform() in ('gpu', 'cuda')


def is_fused(q_BNTK: jax.Array) -> bool:
  """Whether `attend_fused` has kernels for these queries, whose tokens must not be split."""
  return has_fused(q_BNTK.dtype, q_BNTK.shape[-1]) and sharding.shards_of('tokens') == 1


class Plan(NamedTuple):
  """How the tokens of a training window attend to each other.

  Attributes:
    order: [T] index of each token in the layout of `masks.training_layout`, -1 for padding.
    pattern: which runs or blocks of tokens see each other; None for a mask of all pairs.
    alone_T: bool, with `masks.Blocks`: tokens that see themselves alone, whatever the blocks say.
  """

  order: np.ndarray
  pattern: masks.Chunks | masks.Blocks | None
  alone_T: np.ndarray | None = None


def training_mask(
  c: cfg.ModelConfig, layout: masks.Layout, state_rule: str | None = None
) -> np.ndarray:
  """[T, T] bool: who sees whom in a training window, by the rules of the config.

  Args:
    state_rule: rule of `masks.teacher_forcing` for states; by default that of the config.
  """
  if state_rule is None:
    # 'reference' is 'self' in training, which this mask is for, and 'chunk' in control.
    state_rule = 'chunk' if c.state_rule == 'chunk' else 'self'
  everything = c.history_rule == 'reference_global'
  has_clean = (layout.kind == masks.CLEAN).any()
  make = masks.teacher_forcing if has_clean else masks.without_clean
  mask = make(
    layout,
    frames_per_chunk=c.frames_per_chunk,
    window_frames=len(layout.frame) if everything else c.window_frames,
    state_rule=state_rule,
    video_sees=c.video_sees,
  )
  return masks.reference_global(layout, mask) if everything and has_clean else mask


def make_plan(c: cfg.ModelConfig, layout: masks.Layout, hides_video: bool = False) -> Plan:
  """The plan of `c.attention` for the active mesh.

  Args:
    hides_video: whether noisy video may be padding, as actions and states may.
  Raises:
    ValueError: the mesh does not divide the heads or has more shards than the tokens can use.
  """
  heads = sharding.shards_of('act_heads')
  if c.num_heads % heads:
    nearest = _nearest(heads, lambda n: c.num_heads % n == 0)
    raise ValueError(
      f'model.num_heads={c.num_heads} must be divisible by the {heads} shards of the mesh axes of '
      f"config.rules['act_heads']; nearest valid: {nearest}."
    )

  tokens = len(layout.kind)
  shards = sharding.shards_of('tokens')
  kind = choose(c, tokens)
  if kind == 'dense':
    return Plan(masks.pad_to_multiple(np.arange(tokens), shards), pattern=None)
  if kind == 'chunks':
    units = masks.units(layout)
    first_padded = masks.NOISY if hides_video else masks.ACTION
    visible = training_mask(c, units.layout)
    order, chunks = masks.chunk_plan(units, visible, shards, first_padded)
    return Plan(order, chunks)
  return _plan_blocks(c, layout, shards)


def _plan_blocks(c: cfg.ModelConfig, layout: masks.Layout, shards: int) -> Plan:
  """The plan of the splash kernels."""
  units = masks.units(layout)
  alone = c.state_rule != 'chunk'
  if alone and (units.size[units.layout.kind == masks.STATE] > 1).any():
    raise ValueError(
      "model.attention='splash' needs one state a chunk, or model.state_rule='chunk'; "
      "use model.attention='chunks'."
    )
  # A block of a single state would be 127 parts padding: states stand with their chunk and are laid
  # out as if they saw it; a state that sees itself alone is its own value, which `alone_T` says.
  # So is video that does not see actions; the kernels hide these from it in the blocks they share.
  sees_all = dataclasses.replace(c, video_sees='all')
  visible = training_mask(sees_all, units.layout, state_rule='chunk')

  @functools.cache
  def plan_for(shards: int) -> tuple[np.ndarray, masks.Blocks]:
    return masks.block_plan(units, visible, shards)

  def fits(shards: int) -> bool:
    """Whether padding to equal shares costs less than half as many tokens again."""
    return len(plan_for(shards)[0]) <= 1.5 * len(plan_for(1)[0])

  if not fits(shards):
    raise ValueError(
      f'{len(layout.kind)} tokens cannot be split into the {shards} shards of the mesh axes of '
      f"config.rules['tokens']; nearest valid: {_nearest(shards, fits)}."
    )
  order, blocks = plan_for(shards)
  if c.video_sees == 'video':
    video = masks.count_video(layout, order, blocks.side)
    blocks = dataclasses.replace(blocks, video=video)
  is_state_T = (layout.kind[order] == masks.STATE) & (order >= 0)
  return Plan(order, blocks, alone_T=is_state_T if alone else None)


def choose(c: cfg.ModelConfig, tokens: int) -> str:
  """The kind of attention of a window of `tokens` tokens: 'dense', 'chunks' or 'splash'."""
  if c.attention != 'auto':
    return c.attention
  if tokens <= MOST_DENSE or c.history_rule == 'reference_global':
    return 'dense'
  return 'splash' if tokens >= LEAST_SPLASH and sharding.platform() == 'tpu' else 'chunks'


def _nearest(shards: int, valid: Callable[[int], bool]) -> int:
  """The largest divisor of `shards` that is valid, 1 if none is."""
  divisors = [n for n in range(shards, 1, -1) if shards % n == 0]
  return next((n for n in divisors if valid(n)), 1)


def arrange(x: jax.Array, order: np.ndarray, axis: int = 1) -> jax.Array:
  """`x` taken at `order` along an axis, zero (or False) where that is -1.

  Put together from slices, which cost less than a gather.
  """
  padding = order < 0
  # A run ends where padding begins or ends, and where the next index is not the following one.
  turns = padding[1:] != padding[:-1]
  jumps = ~padding[1:] & (np.diff(order) != 1)
  runs = np.split(order, np.flatnonzero(turns | jumps) + 1)

  pieces = []
  for run in runs:
    first, last = int(run[0]), int(run[-1])
    if first < 0:
      shape = list(x.shape)
      shape[axis] = len(run)
      pieces.append(jnp.zeros(shape, x.dtype))
    else:
      pieces.append(jax.lax.slice_in_dim(x, first, last + 1, axis=axis))
  return jnp.concatenate(pieces, axis) if len(pieces) > 1 else pieces[0]


def attend_chunks(
  q_BNTK: jax.Array,
  k_BNTK: jax.Array,
  v_BNTK: jax.Array,
  seen_BT: jax.Array,
  chunks: masks.Chunks,
  recompute: bool,
) -> jax.Array:
  """`attend` part by part: every query meets the keys it sees, and no mask but that of padding.

  On GPUs by fused kernels, `is_fused`, which keep nothing that would be recomputed. On a mesh the
  queries of each part are split over the axes of 'tokens' if these divide them, so
  that all shards do the same work.

  Args:
    seen_BT: bool, tokens that are no padding.
    recompute: whether the backward pass computes the weights of a part again.
  """

  def shard(x_BNTK, tokens=None):
    return sharding.shard(x_BNTK, 'batch', 'act_heads', tokens, 'head_dim')

  attend_part = jax.checkpoint(attend) if recompute else attend
  q_BNTK = shard(q_BNTK)
  k_BNTK = shard(k_BNTK)
  v_BNTK = shard(v_BNTK)
  outputs = []
  start = 0
  for part in chunks.parts:
    keys = np.concatenate([np.arange(first, stop) for first, stop in part.keys])
    seen_BS = arrange(seen_BT, keys) if part.conditional else None
    split = None if part.size % sharding.shards_of('tokens') else 'tokens'
    arrays = (
      shard(jax.lax.slice_in_dim(q_BNTK, start, start + part.size, axis=2), split),
      arrange(k_BNTK, keys, axis=2),
      arrange(v_BNTK, keys, axis=2),
    )
    # Of a part that may see nothing at all the kernels would make NaN.
    if is_fused(q_BNTK) and part.certain:
      y_BNTK = attend_fused(*arrays, seen_BS=seen_BS, certain=part.certain)
    else:
      y_BNTK = attend_part(*arrays, None if seen_BS is None else seen_BS[:, None, None])
    outputs.append(shard(y_BNTK, split))
    start += part.size
  # Whole before it is split again: parts do not end where shards do.
  return shard(shard(jnp.concatenate(outputs, 2)), 'tokens')


def attend_blocks(
  q_BNTK: jax.Array,
  k_BNTK: jax.Array,
  v_BNTK: jax.Array,
  seen_BT: jax.Array,
  blocks: masks.Blocks,
  name: str,
) -> jax.Array:
  """`attend` where blocks of tokens see whole blocks; see `splash.attend`."""
  splash = _load_splash()
  pairs = splash.Pairs(blocks.visible, blocks.video)
  return splash.attend(q_BNTK, k_BNTK, v_BNTK, seen_BT, pairs, key_axis='tokens', name=name)


def attend_first(
  q_BNTK: jax.Array,
  k_BNSK: jax.Array,
  v_BNSK: jax.Array,
  number_B: jax.Array | None = None,
  side: int | None = None,
) -> jax.Array:
  """`attend` to the first `number_B` keys of each sample, at least one, by the same kernels; to all
  where it is None.

  Args:
    side: number of queries of a block, which by default is chosen as that of keys is.
  """
  B, _, S, _ = k_BNSK.shape
  T = q_BNTK.shape[2]
  width = _choose_side(S)
  side = side or _choose_side(T)
  q_BNTK = _pad_tokens(q_BNTK, side)
  k_BNSK = _pad_tokens(k_BNSK, width)
  v_BNSK = _pad_tokens(v_BNSK, width)

  number_B1 = S if number_B is None else number_B[:, None]
  seen_BS = jnp.broadcast_to(np.arange(k_BNSK.shape[2]) < number_B1, (B, k_BNSK.shape[2]))
  row = (True,) * (k_BNSK.shape[2] // width)
  splash = _load_splash()
  pairs = splash.Pairs((row,) * (q_BNTK.shape[2] // side))
  return splash.attend(q_BNTK, k_BNSK, v_BNSK, seen_BS, pairs)[:, :, :T]


def _choose_side(tokens: int) -> int:
  return min(_MOST_SIDE, tokens + -tokens % masks.LANES)


def _pad_tokens(x_BNTK: jax.Array, multiple: int) -> jax.Array:
  missing = -x_BNTK.shape[2] % multiple
  if not missing:
    return x_BNTK  # Whose tokens may be split: no operation that would have to be.
  return jnp.pad(x_BNTK, ((0, 0), (0, 0), (0, missing), (0, 0)))


def _load_splash():
  # Here, because Pallas takes half a second to import that most programs need not spend.
  from wam_jax.models import splash

  return splash


def rotate(x_BNTK: jax.Array, angles_TR: jax.Array) -> jax.Array:
  """Rotary embedding of interleaved pairs (2i, 2i+1) by `angles_TR` [T, K/2], in float32; or
  [B, 1, T, K/2], where samples have their own.

  Source: DreamZero `rope_apply` (complex multiplication).
  """
  cos = jnp.cos(angles_TR)
  sin = jnp.sin(angles_TR)
  x = x_BNTK.astype(jnp.float32)
  pairs = x.reshape(*x.shape[:-1], -1, 2)
  even = pairs[..., 0]
  odd = pairs[..., 1]
  turned = jnp.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
  return turned.reshape(x_BNTK.shape).astype(x_BNTK.dtype)


def rotate_by_product(x_BNTK: jax.Array, angles_TR: jax.Array) -> jax.Array:
  """`rotate` in a third of the memory traffic on TPUs: a product exchanges the partners of a pair.

  Its matrix holds 1 and -1, so that at the highest precision it is exact.
  """
  K = x_BNTK.shape[-1]
  even = np.arange(0, K, 2)
  odd = np.arange(1, K, 2)
  exchange_KK = np.zeros((K, K), x_BNTK.dtype)
  exchange_KK[even, odd] = 1
  exchange_KK[odd, even] = -1
  partner = jnp.einsum(
    'BNTK,KJ->BNTJ',
    x_BNTK,
    exchange_KK,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  cos = jnp.repeat(jnp.cos(angles_TR), 2, axis=-1)
  sin = jnp.repeat(jnp.sin(angles_TR), 2, axis=-1)
  return (x_BNTK.astype(jnp.float32) * cos + partner * sin).astype(x_BNTK.dtype)


def video_angles(
  start_frame: int | jax.Array, frames: int, rows: int, columns: int, head_dim: int
) -> np.ndarray | jax.Array:
  """[frames * rows * columns, K/2] float32 angles: pairs for time, then row, then column; before
  them the axes of `start_frame`.

  Made on the host in float64 where `start_frame` is a Python integer.
  Source: DreamZero `rope_params`: d - 4 (d // 6) dimensions for time, 2 (d // 6) for each other
  axis.
  """
  side = 2 * (head_dim // 6)
  time = _angles(start_frame, frames, head_dim - 2 * side)[..., None, None, :]
  row = _angles(0, rows, side)[:, None]
  column = _angles(0, columns, side)
  numbers = np if isinstance(time, np.ndarray) else jnp
  starts = time.shape[:-4]
  parts = [
    numbers.broadcast_to(angles, (*starts, frames, rows, columns, angles.shape[-1]))
    for angles in (time, row, column)
  ]
  return numbers.concatenate(parts, -1).reshape(*starts, -1, head_dim // 2)


def sequence_angles(start: int | jax.Array, length: int, head_dim: int) -> np.ndarray | jax.Array:
  """[length, K/2] float32 angles of actions or states, counted in the episode from its anchor."""
  return _angles(start, length, head_dim)


def _angles(start: int | jax.Array, length: int, width: int) -> np.ndarray | jax.Array:
  """[length, width / 2] float32, with frequencies from 1 down to nearly 1 / 10,000; before them the
  axes of `start`.
  """
  frequency = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  if isinstance(start, (int, np.integer)):
    return ((start + np.arange(length))[:, None] * frequency).astype(np.float32)
  # In parts of a turn as integers, which wrap around by themselves: differences of positions stay
  # exact however long an episode lasts.
  turns = np.round(frequency / (2 * np.pi) * 2.0**32).astype(np.uint32)
  position = (jnp.asarray(start)[..., None] + np.arange(length)).astype(jnp.uint32)
  return (position[..., None] * turns).astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)


def time_angles(frames: int | jax.Array, head_dim: int) -> np.ndarray | jax.Array:
  """[1, K/2] angles of video that is later by some frames, at the same place in the image; before
  them the axes of `frames`.
  """
  width = head_dim - 4 * (head_dim // 6)
  numbers = np if isinstance(frames, (int, np.integer)) else jnp
  rest = (head_dim - width) // 2
  angles = _angles(frames, 1, width)
  return numbers.pad(angles, [(0, 0)] * (angles.ndim - 1) + [(0, rest)])
