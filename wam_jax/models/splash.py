"""Attention on TPUs by Pallas's splash kernels, forward and backward, where whole blocks see whole
blocks.

Elsewhere the kernels are interpreted, slowly. On a mesh each device computes its samples, its heads
and its queries; keys and values come from all shards of 'tokens'.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info
from jax.sharding import NamedSharding

from wam_jax import sharding

# What the kernels call a block that is computed whole, one of which a mask hides a part, and one
# that is passed over.
_WHOLE, _PARTIAL, _SKIPPED = 2, 1, 0


class Pairs(NamedTuple):
  """Which blocks see each other.

  Attributes:
    visible: whether the i-th block of queries sees the j-th of keys.
    video: number of the first tokens of each block that see no others; None where they do. Queries
      and keys are of the same blocks then.
  """

  visible: tuple[tuple[bool, ...], ...]
  video: tuple[int, ...] | None = None


def attend(
  q_BNTK: jax.Array,
  k_BNSK: jax.Array,
  v_BNSK: jax.Array,
  seen_BS: jax.Array,
  pairs: Pairs,
  *,
  key_axis: str | None = None,
  name: str | None = None,
) -> jax.Array:
  """As `attention.attend`, of blocks that see each other.

  Args:
    seen_BS: bool, keys that are no padding.
    key_axis: logical axis that keys are split over, 'tokens'; None where all shards have all keys.
    name: what a rematerialisation policy calls the values that the backward pass needs of the
      forward pass.
  """
  rows = q_BNTK.shape[2] // len(pairs.visible)
  columns = k_BNSK.shape[2] // len(pairs.visible[0])
  kernel = _make_kernel(pairs, rows, columns, name)
  # The kernels do not scale their logits.
  q_BNTK = (q_BNTK.astype(jnp.float32) * q_BNTK.shape[-1] ** -0.5).astype(q_BNTK.dtype)
  arrays = q_BNTK, k_BNSK, v_BNSK, seen_BS.astype(jnp.int32)

  active = sharding.active()
  if active is None:
    return _run(kernel, *arrays)
  return _run_on_mesh(kernel, arrays, active, key_axis)


def _run_on_mesh(
  kernel: splash_attention_kernel.SplashAttentionKernel,
  arrays: tuple[jax.Array, ...],
  active: sharding.Active,
  key_axis: str | None,
) -> jax.Array:
  """`_run` by all devices: XLA cannot split a kernel, so each is told what its part is."""
  mesh, rules = active

  def spec(*names):
    return sharding.spec(mesh, rules, *names)

  def run_shard(kernel, q, k, v, seen):
    """What one device computes."""
    if key_axis and rules[key_axis]:
      k = jax.lax.all_gather(k, rules[key_axis], axis=2, tiled=True)
      v = jax.lax.all_gather(v, rules[key_axis], axis=2, tiled=True)
    return _run(kernel, q, k, v, seen)

  # Initialisation runs one sample, which no mesh divides.
  samples = len(arrays[0])
  batch = 'batch' if samples % sharding.shards_of('batch') == 0 else None
  queries = spec(batch, 'act_heads', 'tokens')
  keys = spec(batch, 'act_heads', key_axis)
  kernel_specs = kernel.manual_sharding_spec(NamedSharding(mesh, spec('act_heads', 'tokens')))
  run_all = jax.shard_map(
    run_shard,
    mesh=mesh,
    in_specs=(kernel_specs, queries, keys, keys, spec(batch)),
    out_specs=queries,
    check_vma=False,
  )
  return run_all(kernel, *arrays)


def _run(kernel, q_BNTK, k_BNSK, v_BNSK, seen_BS):
  """The kernel for each sample. Keys that are no padding are one segment, that of all queries."""

  def run_sample(q, k, v, seen):
    segments = splash_attention.SegmentIds(q=jnp.ones(q.shape[1], jnp.int32), kv=seen)
    return kernel(q, k, v, segment_ids=segments)

  return jax.vmap(run_sample)(q_BNTK, k_BNSK, v_BNSK, seen_BS)


def _make_kernel(pairs: Pairs, rows: int, columns: int, name: str | None):
  """Forward and backward kernels for one sample, split as the active mesh splits heads and tokens.

  The library's own maker takes a mask of all pairs, and cannot split one whose blocks are all or
  nothing.

  Args:
    rows, columns: numbers of queries and of keys of a block.
  """
  grid = _make_grid(pairs, rows)
  # In the backward pass to keys and values, keys stand first.
  turned = None if grid.masks is None else np.swapaxes(grid.masks, 1, 2)
  forward = _mask_info(_walk(grid), grid.masks)
  backward = _mask_info(_walk_back(grid, sharding.shards_of('tokens')), turned)
  sizes = splash_attention.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    block_q_dq=rows,
    block_kv_dq=columns,
  )
  return splash_attention_kernel.SplashAttentionKernel(
    fwd_mask_info=forward,
    dq_mask_info=forward,
    dkv_mask_info=backward,
    block_sizes=sizes,
    is_mqa=False,
    save_residuals=False,
    mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=name,
    mask_function=None,
    interpret=sharding.platform() != 'tpu',
  )


class _Grid(NamedTuple):
  """What the kernels do with each pair of blocks.

  Attributes:
    run: [rows, columns] _WHOLE, _PARTIAL or _SKIPPED.
    mask: [rows, columns] which of the masks hides a part of a block.
    masks: bool [number of masks, queries, keys], or None.
  """

  run: np.ndarray
  mask: np.ndarray
  masks: np.ndarray | None


def _make_grid(pairs: Pairs, side: int) -> _Grid:
  visible = np.asarray(pairs.visible)
  run = np.where(visible, _WHOLE, _SKIPPED)
  mask = np.zeros_like(run)
  if pairs.video is None:
    return _Grid(run, mask, None)

  # Blocks of the same shares have the same mask.
  numbers: dict[tuple[int, int], int] = {}
  for i, queries in enumerate(pairs.video):
    for j, keys in enumerate(pairs.video):
      if visible[i, j] and queries and keys < side:
        run[i, j] = _PARTIAL
        mask[i, j] = numbers.setdefault((queries, keys), len(numbers))
  if not numbers:
    return _Grid(run, mask, None)
  token = np.arange(side)
  masks = [(token >= queries)[:, None] | (token < keys) for queries, keys in numbers]
  return _Grid(run, mask, np.stack(masks))


class _Walk(NamedTuple):
  """The blocks that a kernel goes through for each block of its outputs.

  Attributes:
    block: [rows, steps] index of the block of each step, which is also what is fetched ahead.
    run: [rows, steps] what is done with it. Rows are of one length, so short ones end in skipped
      steps, which repeat the last block: it is not fetched again.
    mask: [rows, steps] index of the mask of each step.
  """

  block: np.ndarray
  run: np.ndarray
  mask: np.ndarray


def _walk(grid: _Grid) -> _Walk:
  """The visible blocks of each row, in order."""
  visible = grid.run != _SKIPPED
  number = visible.sum(1, keepdims=True)
  longest = max(1, number.max())
  step = np.minimum(np.arange(longest), np.maximum(number - 1, 0))
  visible_first = np.argsort(~visible, axis=1, kind='stable')
  block = np.take_along_axis(visible_first, step, 1)
  run = np.take_along_axis(grid.run, block, 1)
  return _Walk(
    block=block,
    run=np.where(np.arange(longest) < number, run, _SKIPPED),
    mask=np.take_along_axis(grid.mask, block, 1),
  )


def _walk_back(grid: _Grid, shards: int) -> _Walk:
  """The walk of the gradients of keys and values: for each block of keys, the queries that see it.

  A shard has all keys and its own share of queries, counted from 0. Steps stand along the first
  axis, one shard's after the other's, so that this is the axis that the mesh splits.
  """
  runs, numbers = np.split(grid.run, shards), np.split(grid.mask, shards)
  walks = [_walk(_Grid(run.T, mask.T, None)) for run, mask in zip(runs, numbers)]
  longest = max(walk.block.shape[1] for walk in walks)
  padded = []
  for walk in walks:
    missing = ((0, 0), (0, longest - walk.block.shape[1]))
    padded.append(
      _Walk(
        block=np.pad(walk.block, missing, mode='edge').T,
        run=np.pad(walk.run, missing, constant_values=_SKIPPED).T,
        mask=np.pad(walk.mask, missing, mode='edge').T,
      )
    )
  return _Walk(*map(np.concatenate, zip(*padded)))


def _mask_info(walk: _Walk, masks: np.ndarray | None) -> splash_attention_mask_info.MaskInfo:
  """A walk as the kernels take it: the same one for each shard of the heads."""
  heads = sharding.shards_of('act_heads')

  def per_head(numbers: np.ndarray) -> jax.Array:
    return jnp.asarray(np.broadcast_to(numbers, (heads, *numbers.shape)).astype(np.int32))

  return splash_attention_mask_info.MaskInfo(
    data_next=per_head(walk.block),
    mask_next=None if masks is None else per_head(walk.mask),
    block_mask=per_head(walk.run),
    partial_mask_blocks=None if masks is None else jnp.asarray(masks),
    q_sequence=None,
  )
