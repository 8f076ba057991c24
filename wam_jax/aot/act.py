"""`act` traced for devices that are not there: its arguments as shapes, split as it is served."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.aot import abstract
from wam_jax.aot import compiler
from wam_jax.aot import gpus
from wam_jax.control import apart
from wam_jax.control import memory as memory_lib
from wam_jax.control import places
from wam_jax.control import policy as policy_lib
from wam_jax.control import quantize
from wam_jax.control import split as split_lib
from wam_jax.control import weights
from wam_jax.data import shapes
from wam_jax.models import quantized


@dataclasses.dataclass(frozen=True)
class Lowered:
  """The traced program and what it is given.

  Attributes:
    lowered: what `compile` compiles.
    params, memory: shapes with shardings.
    kernels, sizes: see `control.Compiled`.
  """

  lowered: Any
  params: Any
  memory: memory_lib.Memory
  kernels: list[int]
  sizes: dict[str, int]


def describe(where: chips.Slice) -> Sequence[jax.Device]:
  """Descriptions of the devices of a machine."""
  if where.chip.name in gpus.GPUS:
    return topologies.get_topology_desc(
      platform='cuda',
      topology_name='',
      topology='1x1x1',
      target_config=gpus.TARGETS[where.chip.name],
    ).devices
  return compiler.describe(where)


def lower(config: cfg.TrainConfig, where: chips.Slice) -> tuple[Lowered, Mesh]:
  """`act` for one robot on all devices of the machine.

  Raises:
    ValueError: its devices do not divide the model, or do not multiply what `sample.precision` has.
  """
  devices = describe(where)
  mesh = config.sample.mesh or (f'tensor={len(devices)}',)
  sample = dataclasses.replace(config.sample, mesh=mesh)
  config = dataclasses.replace(config, sample=sample, batch_size=1, accumulate=1)
  split = split_lib.make(config, devices)
  assert split is not None
  if split.mesh.size != len(devices):
    raise ValueError(
      f'sample.mesh={",".join(mesh)} (--mesh) is of {split.mesh.size} devices; {where.name} has '
      f'{len(devices)}.'
    )
  quantize.check_chip(config.sample.precision, where.chip)
  model = cfg.choose_dtype(config.model, config.sample)
  policy = policy_lib.Policy(model, config.sample, config.flow, split=split)
  split.check_rows(1, policy.branches)
  return _lower(config, split, policy), split.mesh


def _lower(config: cfg.TrainConfig, split: split_lib.Split, policy: policy_lib.Policy) -> Lowered:
  c = config.model
  frozen = abstract.frozen(c)
  params = weights.narrow(split.params(c), c, config.sample)
  kernels = count_kernels(params)
  if split.is_apart:
    params = apart.describe(params)
  memory, eyes = jax.eval_shape(policy.programs['reset'], params, frozen, *_task(config))
  whole = split.whole
  # As they lie in control.
  where = _place(params, split.platform)
  remembered = places.fill(places.place_memory(split, policy.order), memory)
  given = (
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params),
    memory,
    eyes.latents_BFHWC,
    jax.ShapeDtypeStruct((), np.int32),
    memory_lib.Asked(jax.ShapeDtypeStruct((1, c.proprio_dim), np.float32), prefix=_prefix(c)),
  )
  jitted = policy.compiled(
    'act',
    in_shardings=(where, remembered, whole, whole, whole),
  )
  tokens = shapes.sizes(config).tokens_per_frame
  chunk = c.frames_per_chunk * tokens
  has_video = config.sample.mode != 'act_only'
  memory = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    memory,
    places.fill(split.memory(), memory),
  )
  return Lowered(
    lowered=jitted.lower(*given),
    params=params,
    memory=memory,
    kernels=kernels,
    sizes={
      'slots': memory.cache.k.shape[3],
      'clean': chunk,
      'video': chunk if has_video else 0,
      'register': c.action_horizon + 1,
    },
  )


def _place(params: Any, platform: str) -> Any:
  """Where `weights.place` puts each parameter."""
  is_kernel = lambda x: isinstance(x, quantized.Kernel)

  def place(x: Any) -> Any:
    where = jax.tree.map(lambda part: part.sharding, x)
    return places.place_kernel(x, where, platform) if is_kernel(x) else where

  return jax.tree.map(place, params, is_leaf=is_kernel)


def _task(config: cfg.TrainConfig) -> tuple[types.Task, Any, Any]:
  """Shapes of what `reset` is given for one robot."""
  c = config.model
  array = jax.ShapeDtypeStruct
  ids_BP = array((1, c.text.length), np.int32)
  task = types.Task(
    prompt_ids_BP=ids_BP,
    embodiment_B=array((1,), np.int32),
    action_mask_BAU=array((1, c.action_horizon, c.action_dim), bool),
    negative_ids_BP=ids_BP if config.sample.is_guided else None,
  )
  size = shapes.sizes(config)
  frame_BIJ3 = array((1, size.rows, size.columns, 3), np.uint8)
  return task, frame_BIJ3, jax.eval_shape(lambda: jax.random.key(0))


def _prefix(c: cfg.ModelConfig) -> types.Prefix | None:
  """Shapes of what one robot is committed to; None of a model without overlap."""
  if not c.action_overlap:
    return None
  return types.Prefix(
    action_BDU=jax.ShapeDtypeStruct((1, c.action_overlap, c.action_dim), np.float32),
    length_B=jax.ShapeDtypeStruct((1,), np.int32),
  )


def count_kernels(params: Any) -> list[int]:
  """Numbers of elements that a device has of a kernel, in all layers and in one, each once.

  Args:
    params: of all layers in one array each.
  """
  found = set()
  for path, x in jax.tree_util.tree_leaves_with_path(params['blocks']):
    # A kernel's path is longer where it is quantized: scales are no larger than biases.
    names = [getattr(part, 'key', getattr(part, 'name', '')) for part in path]
    if 'w' in names and names[-1] != 'scale':
      elements = math.prod(x.sharding.shard_shape(x.shape))
      found |= {elements, elements // x.shape[0]}
  return sorted(found)
