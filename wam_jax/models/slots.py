"""Attention of a chunk to cached frames by fused kernels.

New keys take their slots among the cached ones, of one layer at a time, so that what a token sees
is the first so many keys: kernels take a number of keys where they would not take a mask, and
nothing makes an array of all pairs.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import sharding
from wam_jax.models import attention

Kernels = Literal['cudnn', 'splash', 'dense']


@flax.struct.dataclass(kw_only=True)
class Slots:
  """Where the tokens of a sweep lie: clean video, noisy video, actions, states, any of them absent.

  Attributes:
    clean, video, states: numbers of tokens; the actions are those before the states.
    video_sees_actions: whether the noisy video sees actions and states.
    state_sees_chunk: whether a state sees what actions see; else it sees the states.
    clean_at, video_at, register_at: int32, first slot of the clean video, of the noisy one and of
      actions and states, which have slots after those of all frames. These numbers and those below
      are [n] of n sessions in a pass, as `attention.KVCache` has them.
    clean_sees, chunk_sees: int32, number of the first slots that clean video sees, and that the
      chunk sees beside its actions and states.
    valid_BR: bool, actions and states that are no padding.
    pinned: number of the first slots, which stay where the others take turns; 0 where none do.
    oldest: int32, the slot after these that is the first in time.
  """

  clean: int = flax.struct.field(pytree_node=False)
  video: int = flax.struct.field(pytree_node=False)
  states: int = flax.struct.field(pytree_node=False)
  video_sees_actions: bool = flax.struct.field(pytree_node=False)
  state_sees_chunk: bool = flax.struct.field(pytree_node=False)
  clean_at: jax.Array | int
  video_at: jax.Array | int
  register_at: jax.Array | int
  clean_sees: jax.Array | int
  chunk_sees: jax.Array | int
  valid_BR: jax.Array
  pinned: int = flax.struct.field(pytree_node=False, default=0)
  oldest: jax.Array | int = 0


def attend(
  q_BNTK: jax.Array,
  past: tuple[jax.Array, jax.Array],
  own: tuple[jax.Array, jax.Array],
  slots: Slots,
  kernels: Kernels,
) -> jax.Array:
  """What the tokens of a sweep get of cached frames and of each other.

  Args:
    past: keys and values of a layer's cache, [B, N, S, K] each, with slots for the sweep's frames.
    own: those of the sweep, [B, N, T, K] each.
  """
  register = slots.valid_BR.shape[1]
  first = slots.clean + slots.video
  if slots.pinned:
    past = tuple(_order(x_BNSK, slots) for x_BNSK in past)
  past = tuple(_make_room(x_BNSK, register, q_BNTK.dtype) for x_BNSK in past)
  outputs = []

  def see(start: int, stop: int, number_B) -> jax.Array:
    """Of the queries from `start` to `stop`."""
    return attend_first(q_BNTK[:, :, start:stop], *past, number_B, kernels)

  if slots.clean:
    past = _put(past, own, 0, slots.clean, slots.clean_at)
    outputs.append(see(0, slots.clean, slots.clean_sees))
  if slots.video:
    past = _put(past, own, slots.clean, first, slots.video_at)
  if slots.video and not (register and slots.video_sees_actions):
    outputs.append(see(slots.clean, first, slots.chunk_sees))
  if register:
    ordered = tuple(_put_valid_first(x_BNTK[:, :, first:], slots.valid_BR) for x_BNTK in own)
    past = _put(past, ordered, 0, register, slots.register_at)
    valid_B = jnp.sum(slots.valid_BR, 1, dtype=jnp.int32)
    seen_B = _per_row(slots.chunk_sees, len(valid_B)) + valid_B
    start = slots.clean if slots.video_sees_actions else first
    y_BNTK = see(start, first + register, seen_B)
    if slots.states and not slots.state_sees_chunk:
      y_BNTK = _see_states_alone(y_BNTK, q_BNTK, own, slots)
    outputs.append(y_BNTK)
  return jnp.concatenate(outputs, axis=2) if len(outputs) > 1 else outputs[0]


def attend_first(
  q_BNTK: jax.Array, k_BNSK: jax.Array, v_BNSK: jax.Array, number_B, kernels: Kernels
) -> jax.Array:
  """`attention.attend` to the first `number_B` keys, at least one; a number for each sample, for
  each session or for all. Not by 'dense' kernels: there masks say what is seen.
  """
  number_B = _per_row(number_B, len(q_BNTK))
  if kernels == 'cudnn':
    return attend_cudnn(q_BNTK, k_BNSK, v_BNSK, number_B)
  return attention.attend_first(q_BNTK, k_BNSK, v_BNSK, number_B)


def attend_all(
  q_BNTK: jax.Array, k_BNSK: jax.Array, v_BNSK: jax.Array, kernels: Kernels
) -> jax.Array:
  """`attention.attend` to all keys."""
  return attend_first(q_BNTK, k_BNSK, v_BNSK, k_BNSK.shape[2], kernels)


def attend_cudnn(
  q_BNTK: jax.Array,
  k_BNSK: jax.Array,
  v_BNSK: jax.Array,
  number_B: jax.Array,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
  """`attend_first` by cuDNN's kernels, or with 'xla' without them."""
  q_BTNK, k_BSNK, v_BSNK = (jnp.swapaxes(x, 1, 2) for x in (q_BNTK, k_BNSK, v_BNSK))
  y_BTNK = jax.nn.dot_product_attention(
    q_BTNK, k_BSNK, v_BSNK, key_value_seq_lengths=number_B, implementation=implementation
  )
  return jnp.swapaxes(y_BTNK, 1, 2)


def choose(dtype: jnp.dtype, head_dim: int, tokens: int) -> Kernels:
  """The kernels of the devices that run what is traced now.

  Args:
    dtype, head_dim: of queries and keys.
    tokens: number of queries and keys.
  """
  if attention.has_fused(dtype, head_dim):
    return 'cudnn'
  if sharding.platform() == 'tpu' and tokens >= attention.LEAST_SPLASH:
    return 'splash'
  return 'dense'


def _see_states_alone(y_BNTK, q_BNTK, own, slots: Slots) -> jax.Array:
  """`y_BNTK` with the states, its last tokens, seeing each other alone."""
  n = slots.states
  k_BNSK, v_BNSK = (x_BNTK[:, :, -n:] for x_BNTK in own)
  seen_BS = slots.valid_BR[:, None, None, -n:]
  states_BNSK = attention.attend(q_BNTK[:, :, -n:], k_BNSK, v_BNSK, seen_BS)
  return jnp.concatenate([y_BNTK[:, :, :-n], states_BNSK], axis=2)


def _order(x_BNSK: jax.Array, slots: Slots) -> jax.Array:
  """Slots in the order of time."""
  pinned, others = jnp.split(x_BNSK, [slots.pinned], axis=2)
  if np.ndim(slots.oldest):
    oldest_B = _per_row(slots.oldest, len(others))
    turned = jax.vmap(lambda x_NSK, oldest: jnp.roll(x_NSK, -oldest, axis=1))(others, oldest_B)
  else:
    turned = jnp.roll(others, -slots.oldest, axis=2)
  return jnp.concatenate([pinned, turned], axis=2)


def _per_row(number: jax.Array | int, rows: int) -> jax.Array:
  """[B] int32: what row r has, whose session is the r mod n th."""
  return jnp.resize(jnp.int32(number), rows)


def _make_room(x_BNSK: jax.Array, slots: int, dtype) -> jax.Array:
  return jnp.pad(x_BNSK.astype(dtype), ((0, 0), (0, 0), (0, slots), (0, 0)))


def _put(past, own, start: int, stop: int, slot):
  """Keys and values with those of some tokens of the sweep from `slot` on."""
  new = tuple(y_BNTK[:, :, start:stop] for y_BNTK in own)
  if not np.ndim(slot):
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(x_BNSK, y_BNTK, slot, axis=2)
      for x_BNSK, y_BNTK in zip(past, new)
    )
  done = []
  for x_BNSK, y_BNTK in zip(past, new):
    # One after the other, each in place.
    for row in range(len(x_BNSK)):
      at = (row, 0, slot[row % len(slot)], 0)
      x_BNSK = jax.lax.dynamic_update_slice(x_BNSK, y_BNTK[row : row + 1], at)
    done.append(x_BNSK)
  return tuple(done)


def _put_valid_first(x_BNRK: jax.Array, valid_BR: jax.Array) -> jax.Array:
  """What is no padding stands first, since kernels take a number of keys; their order changes no
  sum.
  """
  order_BR = jnp.argsort(~valid_BR, axis=1, stable=True)
  return jnp.take_along_axis(x_BNRK, order_BR[:, None, :, None], axis=2)
