"""How long a step takes: at best, with everything at its peak, and to plan by, at the shares of the
peaks that others measured.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wam_jax import chips
from wam_jax.aot import efficiency
from wam_jax.aot import hlo
from wam_jax.aot import work as work_lib

BOUND_ASSUMPTIONS = (
  'matrix products and attention kernels run at the peak of the chip',
  'every operation takes the longer of its arithmetic and its HBM traffic, one after the other',
  'collectives run on rings over the torus axes of their group, at the full bandwidth of the links',
  'a collective beside which the compiler schedules other work is hidden by it; any other is '
  'waited for',
)
EXPECTED_ASSUMPTIONS = (
  'operations take the longest of arithmetic, HBM traffic and vector units, one after the other',
  'collectives that share an axis of the torus run one after the other; one is hidden as far as '
  'what the compiler put between its start and its end lasts',
)
ASSUMPTIONS = ('input, logging, evaluation and checkpoints take no time',)

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
class Bound:
  """Seconds per step and device, at the least.

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


@dataclasses.dataclass(frozen=True)
class Expected:
  """Seconds per step and device, to plan by.

  Attributes:
    products_s, kernels_s, memory_s, vector_s: all there is of each at the rate that is expected.
    operations_s: one operation after the other, each the longest of these.
    links_s: all collectives.
    waited_s: the part of `links_s` that the order of the program leaves nothing to run beside.
    lost_s: what the rest makes operations slower.
    step_s: the whole step.
    step_without_overlap_s: the same if no collective were hidden.
  """

  products_s: float
  kernels_s: float
  memory_s: float
  vector_s: float
  operations_s: float
  links_s: float
  waited_s: float
  lost_s: float
  step_s: float
  step_without_overlap_s: float


@dataclasses.dataclass(frozen=True)
class Subject:
  """A compiled program, and the slice that it runs on.

  Attributes:
    kernel_flops: see `work.count`.
    coordinates: place in its slice of each device of one slice, in the order of the program.
  """

  program: hlo.Program
  where: chips.Slice
  kernel_flops: work_lib.KernelFlops
  coordinates: Sequence[Sequence[int]]


def count_at_peak(subject: Subject) -> work_lib.Work:
  """The program's work, each at the peak of the chip."""
  # Peaks are a chip's, work is a device's.
  chip = subject.where.chip
  rates = work_lib.Rates(
    products=chip.flops / chip.devices,
    kernels=chip.flops / chip.devices,
    hbm=chip.hbm_bytes_per_s / chip.devices,
    vector=math.inf,
    narrow={hlo.NAMES[dtype]: flops / chip.devices for dtype, flops in chip.narrow_flops.items()},
  )
  return _count(subject, rates, share=1.0, hop_s=0.0)


def count_as_expected(subject: Subject) -> work_lib.Work:
  """The program's work, each at the share of the peak in `efficiency.TABLE`."""
  rates = expected_rates(subject.where.chip)
  share = efficiency.TABLE[subject.where.chip.name].links
  return _count(subject, rates, share=share, hop_s=efficiency.HOP_S)


def expected_rates(chip: chips.Chip) -> work_lib.Rates:
  """What a device of this chip is expected to do in a second."""
  shares = efficiency.TABLE[chip.name]
  return work_lib.Rates(
    products=shares.products * chip.flops / chip.devices,
    kernels=shares.kernels * chip.flops / chip.devices,
    hbm=shares.hbm * chip.hbm_bytes_per_s / chip.devices,
    vector=shares.vector_per_s / chip.devices,
  )


def _count(subject: Subject, rates: work_lib.Rates, share: float, hop_s: float) -> work_lib.Work:
  def links(one: work_lib.Collective) -> None:
    ring = measure(one, subject.where, subject.coordinates)
    one.sent = ring.sent
    one.seconds = ring.seconds / share + ring.hops * hop_s
    one.axes = ring.axes

  return work_lib.count(
    subject.program, rates=rates, kernel_flops=subject.kernel_flops, links=links
  )


def bound(work: work_lib.Work, where: chips.Slice) -> Bound:
  """The least time of a program that was counted at the peaks."""
  traffic = sum_traffic(work)
  chip = where.chip
  wide = work.flops - sum(work.narrow_flops.values())
  compute_s = (wide + work.kernel_flops) * chip.devices / chip.flops
  for dtype, flops in chip.narrow_flops.items():
    compute_s += work.narrow_flops.get(hlo.NAMES[dtype], 0.0) * chip.devices / flops
  memory_s = work.bytes * chip.devices / chip.hbm_bytes_per_s
  links_s = sum(total.seconds for total in traffic.values())
  exposed_s = sum(total.exposed_s for total in traffic.values())
  return Bound(
    compute_s=compute_s,
    memory_s=memory_s,
    operations_s=work.seconds,
    exposed_s=exposed_s,
    # Neither memory nor links can be busy longer than the step lasts.
    step_s=max(work.seconds + exposed_s, memory_s, links_s),
    traffic=traffic,
  )


def expect(work: work_lib.Work, where: chips.Slice) -> Expected:
  """The time to plan by of a program that was counted as expected."""
  rates = expected_rates(where.chip)
  links_s = sum(one.times * one.seconds for one in work.collectives)
  hidden_s = max(0.0, links_s - work.waited_s)
  lost_s = efficiency.LOST_BESIDE * hidden_s
  return Expected(
    products_s=work.flops / rates.products,
    kernels_s=work.kernel_flops / rates.kernels,
    memory_s=work.bytes / rates.hbm,
    vector_s=work.vector / rates.vector,
    operations_s=work.seconds,
    links_s=links_s,
    waited_s=work.waited_s,
    lost_s=lost_s,
    step_s=work.seconds + work.waited_s + lost_s,
    step_without_overlap_s=work.seconds + links_s,
  )


def sum_traffic(work: work_lib.Work) -> dict[str, Traffic]:
  """Collectives by their kind."""
  traffic: dict[str, Traffic] = collections.defaultdict(Traffic)
  for one in work.collectives:
    total = traffic[one.kind]
    total.count += one.times
    total.bytes += one.times * one.sent
    total.seconds += one.times * one.seconds
    total.exposed_s += 0 if one.overlapped else one.times * one.seconds
  return dict(traffic)


class Ring(NamedTuple):
  """What one execution of a collective takes.

  Attributes:
    sent: bytes that a device sends.
    seconds: time at the full bandwidth of the links.
    hops: from device to device in turn.
    axes: axes of the torus that it spans; one more for the network between slices.
  """

  sent: float = 0.0
  seconds: float = 0.0
  hops: int = 0
  axes: frozenset[int] = frozenset()


def measure(
  one: work_lib.Collective, where: chips.Slice, coordinates: Sequence[Sequence[int]]
) -> Ring:
  """What a collective takes on rings.

  All-to-all on a ring needs a quarter of the time of gathering the same arrays everywhere.
  Source: jax-ml.github.io/scaling-book, "Sharded matrices".
  """
  link = where.chip.link_bytes_per_s / where.chip.devices
  if one.kind == 'collective-permute':
    # Between neighbours, on whichever axis.
    return Ring(one.bytes, one.bytes / link, hops=1, axes=frozenset(range(len(where.shape))))
  if one.kind == hlo.BETWEEN_SLICES:
    # Each device sends on its part of a sum over the slices, twice.
    sent = 2 * one.bytes * (where.count - 1) / where.count
    network = where.chip.network_bytes_per_s / where.chip.devices
    return Ring(sent, sent / network, hops=2, axes=frozenset({len(where.shape)}))
  members = group(one.attributes, len(coordinates))
  n = len(members)
  if n == 1:
    return Ring()
  places = np.asarray([coordinates[i] for i in members])
  axes = frozenset(axis for axis in range(len(where.shape)) if _spanned(places, axis) > 1)
  bandwidth = link * _directions(where, places)
  hops = _hops(where, places)
  # A device sends on all but its own part.
  share = one.bytes * (n - 1) / n
  if one.kind == 'all-to-all':
    return Ring(share, one.bytes * n / 4 / bandwidth, hops, axes)
  # A sum is scattered, then gathered.
  passes = 2 if one.kind == 'all-reduce' else 1
  sent = passes * share
  return Ring(sent, sent / bandwidth, passes * hops, axes)


def _directions(where: chips.Slice, places: np.ndarray) -> int:
  """Links that a device of a group sends on at once: two along a whole axis that wraps, one along
  any other.
  """
  count = 0
  for axis, (size, wraps) in enumerate(zip(where.shape, where.wraps)):
    spanned = _spanned(places, axis)
    if spanned > 1:
      count += 2 if wraps and spanned == size else 1
  return max(count, 1)


def _hops(where: chips.Slice, places: np.ndarray) -> int:
  """Hops to the farthest device of a group: half around a whole axis that wraps, to the end of any
  other.
  """
  hops = 0
  for axis, (size, wraps) in enumerate(zip(where.shape, where.wraps)):
    spanned = _spanned(places, axis)
    hops += spanned // 2 if wraps and spanned == size else spanned - 1
  return max(hops, 1)


def _spanned(places: np.ndarray, axis: int) -> int:
  """Number of different coordinates along an axis."""
  return len(set(places[:, axis].tolist()))


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
