"""Meshes and logical axis rules: the only file that builds a PartitionSpec.

A parameter names its axes where it is made; the rules of the config say which mesh axes each name
is split over. Unknown names raise, so nothing is replicated by a typing error.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from wam_jax import config as cfg

Rules = Mapping[str, tuple[str, ...]]


class Active(NamedTuple):
  """The mesh that a computation is traced for, and the rules that split its arrays over it."""

  mesh: Mesh
  rules: Rules


# Context, not an argument, because activations are constrained deep inside the modules.
_ACTIVE: contextvars.ContextVar[Active | None] = contextvars.ContextVar('active_mesh', default=None)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """Mesh over all devices with the named axes; one size may be -1, what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  given = math.prod(n for n in sizes.values() if n != -1)
  free = [name for name, n in sizes.items() if n == -1]
  possible = given > 0 and min(sizes.values(), default=1) >= -1
  if free:
    fits = possible and len(free) == 1 and len(devices) % given == 0
  else:
    fits = possible and given == len(devices)
  if not fits:
    raise ValueError(
      f'mesh={dict(sizes)} does not fit {len(devices)} devices: fixed sizes multiply to {given}; '
      f'they must divide {len(devices)}, with exactly one size -1 or a product of {len(devices)}; '
      f'nearest valid: {_nearest_mesh(sizes, len(devices))}.'
    )
  left = len(devices) // given
  shape = [left if n == -1 else n for n in sizes.values()]
  return Mesh(np.asarray(devices).reshape(shape), tuple(sizes))


def check_sizes(config: cfg.TrainConfig, mesh: Mesh) -> None:
  """Checks what the mesh has to divide, before anything is compiled. (Tokens need not divide: they
  are padded.)

  Raises:
    ValueError: sizes that it does not divide, all of them, each with the nearest valid one.
  """
  shards = {name: _parts(mesh, spec(mesh, config.rules, name)[0]) for name in config.rules}
  problems = []

  # A size is an axis of parameters and of activations, which the rules may split differently.
  axes = {'num_heads': ('heads', 'act_heads'), 'mlp_dim': ('mlp', 'act_mlp'), 'dim': ('embed',)}
  for key, names in axes.items():
    size = getattr(config.model, key)
    name = max(names, key=lambda name: shards[name])
    if size % shards[name]:
      problems.append(
        f'model.{key}={size} must be divisible by {shards[name]}, the devices that '
        f'{" * ".join(config.rules[name])} of config.mesh spreads it over; nearest valid: '
        f'{_nearest_divisor(size, shards[name])} of them.'
      )

  # Every device has an equal share of every pass of accumulation, every host of the batch.
  hosts = len({device.process_index for device in mesh.devices.flat})
  parts = math.lcm(config.accumulate * shards['batch'], hosts)
  if config.batch_size % parts:
    problems.append(
      f'config.batch_size={config.batch_size} must be divisible by {parts}, '
      f'config.accumulate={config.accumulate} times the {shards["batch"]} devices that '
      f'{" * ".join(config.rules["batch"])} of config.mesh spreads it over, on {hosts} hosts; '
      f'nearest valid: {max(1, round(config.batch_size / parts)) * parts}.'
    )
  if problems:
    raise ValueError('\n'.join(problems))


def _nearest_mesh(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
  """The sizes that multiply to `devices` and differ from `sizes` by the smallest factors."""
  axes = list(sizes) or ['data']
  wanted = [sizes.get(axis, -1) for axis in axes]
  choices = itertools.product(_divisors(devices), repeat=len(axes))
  fitting = [choice for choice in choices if math.prod(choice) == devices]

  def distance(choice: tuple[int, ...]) -> float:
    factors = [n / want for n, want in zip(choice, wanted) if want > 0]  # -1 may be anything.
    return sum(abs(math.log(factor)) for factor in factors)

  return dict(zip(axes, min(fitting, key=distance)))


def _nearest_divisor(size: int, wanted: int) -> int:
  return min(_divisors(size), key=lambda n: abs(n - wanted))


def _divisors(size: int) -> list[int]:
  return [n for n in range(1, size + 1) if size % n == 0]


@contextlib.contextmanager
def activate(mesh: Mesh, rules: Rules) -> Iterator[None]:
  """While active, `shard` constrains activations to this mesh by these rules."""
  token = _ACTIVE.set(Active(mesh, rules))
  try:
    yield
  finally:
    _ACTIVE.reset(token)


def active() -> Active | None:
  """What `activate` has made active; None outside of it."""
  return _ACTIVE.get()


def platform() -> str:
  """Platform of the devices that run what is traced now: 'cpu', 'gpu' or 'tpu'."""
  current = active()
  if current is None:
    return jax.default_backend()
  # Not JAX's default: a program for TPUs can be compiled where there is none.
  return current.mesh.devices.flat[0].platform


def shards_of(name: str) -> int:
  """Number of parts that the active mesh splits a logical axis into; 1 where no mesh is active."""
  current = active()
  if current is None:
    return 1
  return math.prod(current.mesh.shape[axis] for axis in current.rules[name])


def shard(x: jax.Array, *names: str | None) -> jax.Array:
  """`x` constrained to the rules' split of its axes; `x` itself when no mesh is active."""
  current = active()
  if current is None:
    return x
  split = NamedSharding(current.mesh, spec(current.mesh, current.rules, *names))
  return jax.lax.with_sharding_constraint(x, split)


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
  """Sharding of host batches: leading axis split over the axes of 'batch'."""
  return NamedSharding(mesh, spec(mesh, rules, 'batch'))


def state_shardings(boxed: Any, mesh: Mesh, rules: Rules) -> Any:
  """NamedSharding of each leaf of an abstract tree with logical boxes, same structure as the
  unboxed tree.

  Raises:
    ValueError: an axis name without a rule, or an axis that its mesh axes do not divide.
  """
  problems: list[str] = []

  def is_boxed(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)

  # Leaves without a box, such as counters of the optimizer, are replicated.
  def make(path: Any, leaf: Any) -> NamedSharding:
    names = leaf.names if is_boxed(leaf) else ()
    shape = leaf.value.shape if is_boxed(leaf) else leaf.shape
    split = spec(mesh, rules, *names)
    for size, axes in zip(shape, split):
      parts = _parts(mesh, axes)
      if size % parts:
        where = jax.tree_util.keystr(path)
        problems.append(f'{where} {shape}: axis of {size} over {axes} = {parts}')
    return NamedSharding(mesh, split)

  shardings = jax.tree_util.tree_map_with_path(make, boxed, is_leaf=is_boxed)
  if problems:
    raise ValueError(
      f'mesh {dict(mesh.shape)} does not divide:\n  '
      + '\n  '.join(problems[:10])
      + '\nChoose mesh sizes that divide these, or change `rules`.'
    )
  return shardings


def frozen_shardings(tree: Any, mesh: Mesh, rules: Rules, least: int = 2**20) -> Any:
  """NamedSharding of each leaf of a tree without logical names: the frozen encoders.

  An array of at least `least` bytes is split along its longest axis that the mesh axes of the rule
  'frozen' divide; others are replicated.
  """
  (axes,) = spec(mesh, rules, 'frozen')
  parts = _parts(mesh, axes)

  def make(leaf: Any) -> NamedSharding:
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
    if parts == 1 or not fitting or leaf.size * leaf.dtype.itemsize < least:
      return NamedSharding(mesh, PartitionSpec())
    longest = max(fitting, key=lambda axis: leaf.shape[axis])
    split = [None] * leaf.ndim
    split[longest] = axes
    return NamedSharding(mesh, PartitionSpec(*split))

  return jax.tree.map(make, tree)


def place(tree: Any, shardings: Any) -> Any:
  """The arrays of `tree`, which every host holds whole, as arrays of these shardings; each host
  puts the parts of its own devices there. What has its sharding already stays as it is.
  """

  # Not jax.device_put: over several hosts it gathers a copy of every host's array on each device,
  # to see that they are equal.
  def make(x: Any, split: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == split:
      return x
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, split, lambda index: whole[index])

  return jax.tree.map(make, tree, shardings)


def bytes_per_device(tree: Any) -> int:
  """Bytes that each device holds of a tree of arrays with shardings, be they abstract.

  Arrays as they are; TPUs pad them to tiles.
  """
  held = 0
  for x in jax.tree.leaves(tree):
    held += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return held


def spec(mesh: Mesh, rules: Rules, *names: str | None) -> PartitionSpec:
  """How the rules split an array over the mesh, given the logical name of each axis, None for
  whole.

  Raises:
    ValueError: a name without a rule, or a rule that names an axis the mesh has not.
  """
  unknown = [n for n in names if n is not None and n not in rules]
  if unknown:
    raise ValueError(f'No rule for the axis names {unknown}; config.rules has {sorted(rules)}.')
  absent = sorted({a for n in names if n for a in rules[n] if a not in mesh.shape})
  if absent:
    raise ValueError(
      f'config.rules name mesh axes {absent}, but the mesh has {list(mesh.shape)}; add them to '
      'config.mesh (size 1 if unused) or change the rules.'
    )
  return PartitionSpec(*(rules[n] or None if n else None for n in names))


def _parts(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
  """Number of parts that an entry of a PartitionSpec splits an axis into."""
  if entry is None:
    return 1
  axes = (entry,) if isinstance(entry, str) else entry
  return math.prod(mesh.shape[axis] for axis in axes)
