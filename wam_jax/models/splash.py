"""Attention on TPUs by Pallas's splash kernels, forward and backward, where whole blocks see whole
blocks.

Elsewhere the kernels are interpreted, slowly. On a mesh each device computes its samples, its heads
and its queries; keys and values come from all shards of 'tokens'.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info
from jax.sharding import NamedSharding

from wam_jax import sharding


def attend(
  q_BNTK,
  k_BNSK,
  v_BNSK,
  seen_BS,
  visible: tuple[tuple[bool, ...], ...],
  key_axis: str | None = None,
  name: str | None = None,
):
  """As `attention.attend`: the i-th block of queries sees the j-th of keys where `visible[i][j]`,
  and no unseen key.

  Args:
    seen_BS: bool, keys that are no padding.
    key_axis: logical axis that keys are split over: 'tokens', or None where all shards have all of
      them.
    name: by which a rematerialisation policy knows what the backward pass needs of the forward
      pass.
  """
  rows, columns = q_BNTK.shape[2] // len(visible), k_BNSK.shape[2] // len(visible[0])
  kernel = _kernel(np.asarray(visible), rows, columns, name)
  q_BNTK = (q_BNTK.astype(jnp.float32) * q_BNTK.shape[-1] ** -0.5).astype(q_BNTK.dtype)
  arrays = q_BNTK, k_BNSK, v_BNSK, seen_BS.astype(jnp.int32)
  active = sharding.active()
  if active is None:
    return _batched(kernel, *arrays)
  mesh, rules = active
  batch = (
    'batch' if len(q_BNTK) % sharding.shards_of('batch') == 0 else None
  )  # Initialisation runs one sample.
  spec = lambda *names: sharding.spec(mesh, rules, *names)
  queries, keys = spec(batch, 'act_heads', 'tokens'), spec(batch, 'act_heads', key_axis)

  def local(kernel, q, k, v, seen):
    if key_axis and rules[key_axis]:
      k, v = (jax.lax.all_gather(x, rules[key_axis], axis=2, tiled=True) for x in (k, v))
    return _batched(kernel, q, k, v, seen)

  kernel_specs = kernel.manual_sharding_spec(NamedSharding(mesh, spec('act_heads', 'tokens')))
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(kernel_specs, queries, keys, keys, spec(batch)),
    out_specs=queries,
    check_vma=False,
  )(kernel, *arrays)


def _kernel(visible, rows, columns, name):
  """Forward and backward kernels for one sample, split as the active mesh splits heads and tokens.

  Their maker takes a mask of pairs and cannot split one whose blocks are all or nothing.
  """
  heads, shards = sharding.shards_of('act_heads'), sharding.shards_of('tokens')
  forward = _walk(visible)
  backward = [_walk(share.T) for share in np.split(visible, shards)]
  longest = max(steps.shape[1] for steps, _ in backward)
  backward = [
    np.concatenate([np.pad(a, ((0, 0), (0, longest - a.shape[1])), mode).T for a in arrays])
    for arrays, mode in zip(zip(*backward), ('edge', 'constant'))
  ]

  def walk(steps, run):
    per_head = lambda a: jnp.asarray(np.broadcast_to(a, (heads, *a.shape)).astype(np.int32))
    return splash_attention_mask_info.MaskInfo(per_head(steps), None, per_head(run), None, None)

  sizes = splash_attention.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    block_q_dq=rows,
    block_kv_dq=columns,
  )
  return splash_attention_kernel.SplashAttentionKernel(
    walk(*forward),
    walk(*forward),
    walk(*backward),
    block_sizes=sizes,
    is_mqa=False,
    save_residuals=False,
    mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=name,
    mask_function=None,
    interpret=sharding.platform() != 'tpu',
  )


def _walk(visible):
  """(block of each step, whether to compute it: 2 or 0), [rows, steps]: a row's visible blocks, the
  last repeated.
  """
  number = visible.sum(1, keepdims=True)
  step = np.minimum(np.arange(max(1, number.max())), np.maximum(number - 1, 0))
  order = np.argsort(~visible, axis=1, kind='stable')
  return np.take_along_axis(order, step, 1), 2 * (np.arange(step.shape[1]) < number)


def _batched(kernel, q_BNTK, k_BNSK, v_BNSK, seen_BS):
  one = lambda q, k, v, seen: kernel(
    q, k, v, segment_ids=splash_attention.SegmentIds(jnp.ones(q.shape[1], jnp.int32), seen)
  )
  return jax.vmap(one)(q_BNTK, k_BNSK, v_BNSK, seen_BS)
