"""Where the results of a program and its weights lie, and in which order of their axes.

That order is the one in which programs read and write them: in another one each call would turn
the whole cache around, or all weights. `wam_jax.compile --program=control` says what they copy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format
from jax.experimental.layout import Layout
from jax.sharding import SingleDeviceSharding

from wam_jax import config as cfg
from wam_jax.control import memory as memory_lib
from wam_jax.control import split as split_lib
from wam_jax.models import attention
from wam_jax.models import quantized

# Of [L, G, N, S, K] from the outermost to the innermost axis: what XLA chooses for cuDNN's kernels,
# for one row and for more.
SLOTS_FIRST = (3, 0, 1, 2, 4)
SLOTS_BEFORE_HEADS = (0, 1, 3, 2, 4)


def choose_order(model: cfg.ModelConfig, branches: int) -> tuple[int, ...] | None:
  """The order of the cache's axes for one robot where what is traced now runs; None for theirs.

  Args:
    branches: of guidance.
  """
  if not attention.has_fused(jnp.dtype(model.dtype), model.head_dim):
    return None
  return SLOTS_FIRST if branches == 1 else SLOTS_BEFORE_HEADS


def place(kinds: Any, split: split_lib.Split | None, order: tuple[int, ...] | None) -> Any:
  """`jax.jit`'s `out_shardings` of a program; None where nothing is to be said.

  Args:
    kinds: a tree of names of what it gives, of which 'memory' is a `Memory`.
    order: as `choose_order` has it.
  """
  if split is None and order is None:
    return None
  memory = place_memory(split, order)
  other = None if split is None else split.whole
  return jax.tree.map(lambda kind: memory if kind == 'memory' else other, kinds)


def place_memory(split: split_lib.Split | None, order: tuple[int, ...] | None) -> memory_lib.Memory:
  """Where each part of what is remembered lies; None for anywhere."""
  memory = _ANYWHERE if split is None else split.memory()
  if order is None:
    return memory
  where: Any = memory.cache.k or SingleDeviceSharding(jax.devices()[0])
  lies: Any = Format(Layout(order), where)
  cache = dataclasses.replace(memory.cache, k=lies, v=lies)
  return dataclasses.replace(memory, cache=cache)


def place_kernel(kernel: quantized.Kernel, where: quantized.Kernel | None, platform: str) -> Any:
  """Where a layer's quantized kernel lies: on GPUs products of bytes take it with what is summed
  over innermost.

  Args:
    kernel: arrays or shapes.
    where: its shardings; None for one device.
  """
  if platform != 'gpu' or not kernel.rounds_inputs:
    return where  # As it is; without rounded inputs it is widened.
  if where is None:
    here: Any = SingleDeviceSharding(jax.devices()[0])
    where = quantized.Kernel(values=here, scale=here, rounds_inputs=kernel.rounds_inputs)
  is_summed = [size == 1 for size in kernel.scale.shape]
  order = sorted(range(len(is_summed)), key=is_summed.__getitem__)
  lies: Any = Format(Layout(tuple(order)), cast(Any, where.values))
  return dataclasses.replace(where, values=lies)


def fill(where: memory_lib.Memory, memory: memory_lib.Memory) -> memory_lib.Memory:
  """The place of each array of `memory`, of that of each part."""
  # Of what is not there, None, there is no place.
  return jax.tree.map(lambda place, part: jax.tree.map(lambda _: place, part), where, memory)


_ANYWHERE = memory_lib.describe(heads=None, prompt=None, rows=None, other=None)
