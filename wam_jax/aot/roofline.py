"""How long a step takes at best: arithmetic at the chip's peak, memory and interconnect at their
full bandwidth.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from wam_jax import chips
from wam_jax.aot import work as work_lib

ASSUMPTIONS = (
  'matrix products and attention kernels run at the peak of the chip',
  'every operation takes the longer of its arithmetic and its HBM traffic, one after the other',
  'collectives run on rings over the torus axes of their group, at the full bandwidth of the links',
  'a collective beside which the compiler schedules other work is hidden by it; any other is '
  'waited for',
  'latencies, input, logging and checkpoints take no time',
)

_MESH_GROUPS = re.compile(
  r'replica_groups=mesh\[([^\]]*)\]'
  r'(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}'
)


@dataclasses.dataclass
class Traffic:
  """All collectives of one kind in a step.

  Attributes:
    count: number of executions.
    bytes: bytes that a device sends.
    seconds: time on the links.
    exposed_s: the part of the time in which nothing else is done.
  """

  count: int = 0
  bytes: float = 0.0
  seconds: float = 0.0
  exposed_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds per step and device.

  Attributes:
    compute_s: all FLOPs at the peak.
    memory_s: all HBM traffic at full bandwidth.
    operations_s: one operation after the other, each the longer of both.
    exposed_s: collectives that are waited for.
    step_s: the whole step.
    traffic: collectives by their kind.
  """

  compute_s: float
  memory_s: float
  operations_s: float
  exposed_s: float
  step_s: float
  traffic: dict[str, Traffic]


def estimate(
  work: work_lib.Work, where: chips.Slice, coordinates: Sequence[Sequence[int]]
) -> Estimate:
  """The least time of a counted program.

  Args:
    coordinates: place in the slice of each device, in the order of the program.
  """
  traffic: dict[str, Traffic] = collections.defaultdict(Traffic)
  for one in work.collectives:
    sent, seconds = _ring(one, where, coordinates)
    total = traffic[one.kind]
    total.count += one.times
    total.bytes += one.times * sent
    total.seconds += one.times * seconds
    total.exposed_s += 0 if one.overlapped else one.times * seconds

  # Peaks are a chip's, work is a device's.
  chip = where.chip
  compute_s = (work.flops + work.kernel_flops) * chip.devices / chip.flops
  memory_s = work.bytes * chip.devices / chip.hbm_bytes_per_s
  links_s = sum(total.seconds for total in traffic.values())
  exposed_s = sum(total.exposed_s for total in traffic.values())
  return Estimate(
    compute_s=compute_s,
    memory_s=memory_s,
    operations_s=work.seconds,
    exposed_s=exposed_s,
    # Neither memory nor links can be busy longer than the step lasts.
    step_s=max(work.seconds + exposed_s, memory_s, links_s),
    traffic=dict(traffic),
  )


def _ring(
  one: work_lib.Collective, where: chips.Slice, coordinates: Sequence[Sequence[int]]
) -> tuple[float, float]:
  """(bytes that a device sends, seconds) of one execution.

  All-to-all on a ring needs a quarter of the time of gathering the same arrays everywhere.
  Source: jax-ml.github.io/scaling-book, "Sharded matrices".
  """
  link = where.chip.link_bytes_per_s / where.chip.devices
  if one.kind == 'collective-permute':
    return one.bytes, one.bytes / link
  members = group(one.attributes, len(coordinates))
  n = len(members)
  if n == 1:
    return 0.0, 0.0
  places = np.asarray([coordinates[i] for i in members])
  bandwidth = link * _directions(where, places)
  # A device sends on all but its own part.
  share = one.bytes * (n - 1) / n
  if one.kind == 'all-to-all':
    return share, one.bytes * n / 4 / bandwidth
  # A sum is scattered, then gathered.
  sent = share * (2 if one.kind == 'all-reduce' else 1)
  return sent, sent / bandwidth


def _directions(where: chips.Slice, places: np.ndarray) -> int:
  """Links that a device of a group sends on at once: two along a whole axis that wraps, one along
  any other.
  """
  count = 0
  for axis, (size, wraps) in enumerate(zip(where.shape, where.wraps)):
    spanned = len(set(places[:, axis].tolist()))
    if spanned > 1:
      count += 2 if wraps and spanned == size else 1
  return max(count, 1)


def group(attributes: str, devices: int) -> list[int]:
  """Devices, by their number in the program, of the first group of a collective.

  The text has one of three forms: {{0,1},{2,3}}, [2,2]<=[4] (perhaps T(...)), or mesh['a'=2,'b'=2]
  {'b'}, perhaps with device_ids=([2,2]T(1,0)) between. Without any, all devices are one group.

  Raises:
    ValueError: the text has another form.
  """
  if found := _MESH_GROUPS.search(attributes):
    axes, dims, order, named = found.groups()
    return _mesh_group(axes, named, _number(dims or str(devices), order))
  if found := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes):
    shape, dims, order = found.groups()
    return _number(dims, order).reshape(_read_numbers(shape))[0].tolist()
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    return [int(n) for n in found[1].split(',')]
  if re.search(r'replica_groups=(?!\{\})', attributes):
    raise ValueError(f'Groups of devices in a form that is not known: {attributes[:200]}')
  return list(range(devices))


def _number(dims: str, order: str | None) -> np.ndarray:
  """Devices counted through an array of sizes `dims`, whose axes then change places."""
  sizes = _read_numbers(dims)
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  return numbers.transpose(_read_numbers(order)) if order else numbers


def _read_numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


def _mesh_group(axes: str, named: str, devices: np.ndarray) -> list[int]:
  """The first group over the `named` axes of a mesh.

  Args:
    axes: sizes, as "'a'=2,'b'=8".
    named: whole axes, as "'a'", or parts of them, as "'b':(2)4": of 'b', seen as 2 x 4 x rest, the
      part of 4.
    devices: their numbers in the order in which they fill the mesh.
  """
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", axes)}
  numbers = devices.reshape(tuple(sizes.values()))
  parts = {}
  for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named):
    parts[name] = int(before or 1), int(size or sizes[name])
  index = []
  for name, n in sizes.items():
    before, size = parts.get(name, (1, 1))
    rest = n // (before * size)
    index.append(np.arange(size) * rest)
  return numbers[np.ix_(*index)].ravel().tolist()
