"""Meshes and logical axis rules: the only file that builds a PartitionSpec.

A parameter names its axes where it is made; the rules of the config say which mesh axes each name
is split over. Unknown names raise, so nothing is replicated by a typing error.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from wam_jax import chips
from wam_jax import config as cfg

Rules = Mapping[str, tuple[str, ...]]

# From the least to the most that is sent along them: slices are joined by the data-centre network.
AXES = ('slice', 'data', 'fsdp', 'seq', 'tensor')


class Active(NamedTuple):
  """The mesh that a computation is traced for, and the rules that split its arrays over it."""

  mesh: Mesh
  rules: Rules


# Context, not an argument, because activations are constrained deep inside the modules.
_ACTIVE: contextvars.ContextVar[Active | None] = contextvars.ContextVar('active_mesh', default=None)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Mesh over all devices with the named axes; one size may be -1, what is left.

  Its axes stand in the order of `AXES`, whatever the order of `sizes`. TPUs stand along them as
  they are linked, in a run as in a program that is compiled for a slice that is not there: 'slice'
  counts slices, which only the data-centre network joins, and the other axes lie in one of them.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or 'slice' is not the number of
      their slices.
  """
  devices = list(jax.devices() if devices is None else devices)
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
      f'nearest valid: {_list_meshes(sizes, len(devices))[0]}.'
    )
  left = len(devices) // given
  shape = {name: left if n == -1 else n for name, n in _order_axes(sizes).items()}
  groups = _split_slices(devices, shape['slice'])
  within = tuple(n for name, n in shape.items() if name != 'slice')
  return Mesh(np.stack([_arrange(group, within) for group in groups]), tuple(shape))


def _order_axes(sizes: Mapping[str, int]) -> dict[str, int]:
  """The sizes in the order of `AXES`, others behind them; one slice where nothing is said."""
  known = {name: sizes[name] for name in AXES if name in sizes}
  return {'slice': 1} | known | {name: n for name, n in sizes.items() if name not in AXES}


def _split_slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
  """The devices of each slice. Of other devices than TPUs any part may be called a slice."""
  if devices[0].platform != 'tpu':
    size = len(devices) // count
    return [list(devices[i * size : (i + 1) * size]) for i in range(count)]
  by_slice: dict[int, list[jax.Device]] = {}
  for device in devices:
    by_slice.setdefault(getattr(device, 'slice_index', None) or 0, []).append(device)
  if len(by_slice) != count:
    raise ValueError(
      f'config.mesh.slice={count}, and these {len(devices)} TPUs are of {len(by_slice)} slices; '
      f'set --config.mesh.slice={len(by_slice)}.'
    )
  return [by_slice[number] for number in sorted(by_slice)]


def _arrange(devices: Sequence[jax.Device], shape: Sequence[int]) -> np.ndarray:
  """The devices of one slice as an array of this shape, neighbours along its last axes linked."""
  if devices[0].platform != 'tpu':
    return np.asarray(devices).reshape(shape)
  # By place: the order of a list differs between a run and a description of the slice.
  devices = sorted(devices, key=lambda d: (*reversed(d.coords), d.core_on_chip))
  # By the name that JAX's table has: a chip has several, and ahead of time another than in a run.
  kinds = chips.of_kind(devices[0].device_kind).kinds
  handlers = [mesh_utils.device_kind_handler_dict.get(kind) for kind in kinds]
  arranged = next((handler(shape, devices) for handler in handlers if handler), None)
  if arranged is None:
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return arranged


def check_sizes(config: cfg.TrainConfig, mesh: Mesh) -> None:
  """Checks what the mesh has to divide, before anything is compiled. (Tokens need not divide: they
  are padded.)

  Raises:
    ValueError: sizes that it does not divide, all of them, each with the nearest valid one, and the
      nearest mesh that divides all.
  """
  problems = list_problems(config, mesh)
  if not problems:
    return
  for sizes in _list_meshes(mesh.shape, mesh.size):
    if not list_problems(config, jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))):
      flags = ' '.join(f'--config.mesh.{axis}={n}' for axis, n in sizes.items())
      problems.append(f'The nearest mesh for this config: {flags}')
      break
  raise ValueError('\n'.join(problems))


def list_problems(config: cfg.TrainConfig, mesh: Mesh | jax.sharding.AbstractMesh) -> list[str]:
  """What `check_sizes` finds of this mesh, each with the nearest size."""
  shards = {name: _parts(mesh, spec(mesh, config.rules, name)[0]) for name in config.rules}
  problems = []

  # Links between slices are far slower than those inside.
  over_slices = sorted(name for name, axes in config.rules.items() if 'slice' in axes)
  if mesh.shape['slice'] > 1 and over_slices != ['batch']:
    problems.append(
      f'config.mesh.slice={mesh.shape["slice"]} needs config.rules that split "batch" over "slice" '
      f'and nothing else; these split {over_slices}: set '
      "--config.rules.batch=\"('slice', 'data', 'fsdp')\"."
    )

  # A size is an axis of parameters and of activations, which the rules may split differently.
  m = config.model
  sizes = {
    'num_heads': (m.num_heads, ('heads', 'act_heads')),
    'mlp_dim': (m.mlp_dim, ('mlp', 'act_mlp')),
    'dim': (m.dim, ('embed', 'mlp')),
    'action_hidden': (m.action_hidden, ('mlp',)),
    'text.dim': (m.text.dim, ('embed',)),
    'image_dim': (m.image_dim, ('embed', 'mlp')),
  }
  for key, (size, names) in sizes.items():
    name = max(names, key=lambda name: (size % shards[name] > 0, shards[name]))
    if size % shards[name]:
      problems.append(
        f'model.{key}={size} must be divisible by {shards[name]}, the devices that '
        f'{" * ".join(config.rules[name])} of the mesh spreads it over; nearest valid: '
        f'{_nearest_divisor(size, shards[name])} of them.'
      )

  # Every device has an equal share of every pass of accumulation. Hosts need not: those whose
  # devices share a row all read it.
  parts = config.accumulate * shards['batch']
  if config.batch_size % parts:
    problems.append(
      f'config.batch_size={config.batch_size} must be divisible by {parts}, '
      f'config.accumulate={config.accumulate} times the {shards["batch"]} devices that '
      f'{" * ".join(config.rules["batch"])} of the mesh spreads it over; '
      f'nearest valid: {max(1, round(config.batch_size / parts)) * parts}.'
    )
  return problems


def _list_meshes(sizes: Mapping[str, int], devices: int) -> list[dict[str, int]]:
  """All sizes of the same axes that multiply to `devices`, those first that differ from `sizes` by
  small factors. The number of slices is what it is.
  """
  axes = list(sizes) or ['data']
  wanted = [sizes.get(axis, -1) for axis in axes]

  def list_sizes(axis: str, want: int) -> list[int]:
    return [want] if axis == 'slice' and want > 0 and devices % want == 0 else _divisors(devices)

  choices = itertools.product(*map(list_sizes, axes, wanted))
  fitting = [choice for choice in choices if math.prod(choice) == devices]

  def distance(choice: tuple[int, ...]) -> float:
    factors = [n / want for n, want in zip(choice, wanted) if want > 0]  # -1 may be anything.
    return sum(abs(math.log(factor)) for factor in factors)

  return [dict(zip(axes, choice)) for choice in sorted(fitting, key=distance)]


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


@contextlib.contextmanager
def inactive() -> Iterator[None]:
  """While active, nothing is constrained: within `activate`, for what every device has whole."""
  token = _ACTIVE.set(None)
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


def drop_axis(split: NamedSharding) -> NamedSharding:
  """That of an array without its first axis, which is not split."""
  return NamedSharding(split.mesh, PartitionSpec(*split.spec[1:]))


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
  """Sharding of host batches: leading axis split over the axes of 'batch'."""
  return NamedSharding(mesh, spec(mesh, rules, 'batch'))


@dataclasses.dataclass(frozen=True)
class HostBatch:
  """What one process reads of the batch of all, and how it becomes their one array.

  Which rows those are follows from the mesh alone: they need not be neighbours, and processes whose
  devices hold the same rows (other parts of 'tensor' or 'seq') read the same.

  Attributes:
    split: the sharding of the whole batch.
    size: its number of rows.
  """

  split: NamedSharding
  size: int

  @functools.cached_property
  def rows(self) -> tuple[int, ...]:
    """The rows on devices of this process, ascending."""
    held = self.split.addressable_devices_indices_map((self.size,)).values()
    return tuple(sorted({row for index in held for row in range(self.size)[index[0]]}))

  def place(self, batch: Any) -> Any:
    """Global arrays from those of this process: a tree of arrays of `rows`."""
    return jax.tree.map(self._place, batch)

  def _place(self, x: np.ndarray) -> jax.Array:
    if len(x) != len(self.rows):
      raise ValueError(f'{len(x)} rows were read where the mesh has {len(self.rows)} here.')

    def part(index: tuple[slice, ...]) -> np.ndarray:
      wanted = range(self.size)[index[0]]
      first = self.rows.index(wanted.start)
      return x[first : first + len(wanted)]  # A device's rows are neighbours, here as in the whole.

    return jax.make_array_from_callback((self.size, *x.shape[1:]), self.split, part)


def host_batch(config: cfg.TrainConfig, mesh: Mesh) -> HostBatch:
  """The part of this process in each batch of `config`."""
  return HostBatch(batch_sharding(mesh, config.rules), config.batch_size)


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
  """Bytes that each device holds of a tree of arrays with shardings, random keys too, be they
  abstract.

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
