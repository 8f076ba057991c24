"""TPU chips and slices: what they can do, and which of them exist.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} for arithmetic, memory, interconnect
and slice shapes; usable HBM is what libtpu reports as available when a program does not fit. GPUs:
NVIDIA's data sheets.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation. A device is what JAX shows: a chip, or half of a tpu7x.

  Attributes:
    name: the generation, as 'v5p'.
    kinds: names that JAX gives its devices; the first one is libtpu's ahead of time.
    flops: bfloat16 multiply-adds of a chip per second, times two.
    narrow_flops: those of narrower types that it multiplies as they are.
    hbm_bytes_per_s: memory bandwidth of a chip.
    link_bytes_per_s: bandwidth of one interconnect link in one direction; a torus axis has two
      links.
    network_bytes_per_s: a chip's part of its host's data-centre network, in one direction.
    usable_gib: HBM of a device that a program may use.
    devices: number of devices of a chip.
    shapes: chips along each axis, as '2x4', of the slices that exist.
    config: libtpu's name of the way a chip is used.
    options: options of the compiler, with their sources in `_OPTIONS`.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  hbm_bytes_per_s: float
  link_bytes_per_s: float
  network_bytes_per_s: float
  usable_gib: float
  devices: int
  shapes: tuple[str, ...]
  config: str
  options: Mapping[str, bool | int]
  narrow_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  '2x2x1',
  '2x2x2',
  '2x2x4',
  '2x4x4',
  '4x4x4',
  '4x4x8',
  '4x8x8',
  '8x8x8',
  '8x8x16',
  '8x16x16',
  '16x16x16',
)

# Options of the compiler, of each generation no more than its users run in production; where users
# differ, the fewer. None of them lets a collective do arithmetic beside other work: that has given
# wrong sums and hung (`compiler_options` has the cases), so that gradients are waited for.
# axlearn: github.com/apple/axlearn, axlearn/common/compiler_options.py at 34aed43, 2026-07-08.
# MaxText: github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py at 05d3525.
_OPTIONS: Mapping[str, Mapping[str, bool | int]] = {
  # axlearn: "enabled by default starting on v5".
  'v4': {'xla_enable_async_all_gather': True, 'xla_enable_async_collective_permute': True},
  # MaxText, CF_FOR_ALL_GATHER, in all its configs of v5e: weights are gathered in stages between
  # the tiles of the product before. No other generation's compiler takes this since libtpu 0.0.52.
  'v5e': dict.fromkeys(
    (
      'xla_enable_async_all_gather',
      'xla_tpu_enable_async_collective_fusion',
      'xla_tpu_enable_async_collective_fusion_fuse_all_gather',
      'xla_tpu_enable_async_collective_fusion_multiple_steps',
      'xla_tpu_overlap_compute_collective_tc',
    ),
    True,
  ),
  # axlearn, and tpu-recipes (AI-Hypercomputer/tpu-recipes at ad1d8c0, 2026-07-13, Wan2.1-14B on
  # v5p-16), whose set for tpu7x hung there.
  'v5p': {'xla_enable_async_all_gather': True, 'xla_enable_async_collective_permute': True},
  # MaxText, ENABLE_SPARSECORE_OFFLOADING_FOR_1D_ALL_GATHER, in configs of v6e-256: sparse cores
  # gather weights. Without the fusion as maxdiffusion (run_wan_fast_inference.sh, 2026-07-27).
  'v6e': {
    'xla_sc_disable_megacore_partitioning': True,
    'xla_sc_enable_instruction_fusion': False,
    'xla_tpu_enable_all_gather_offload_tracing': True,
    'xla_tpu_enable_async_collective_fusion': False,
    'xla_tpu_enable_sparse_core_collective_offload_all_gather': True,
    'xla_tpu_enable_sparse_core_collective_offload_all_reduce': False,
    'xla_tpu_use_tc_device_shape_on_sc': True,
  },
  # axlearn: sparse cores gather weights, which is this compiler's default; that they also sum
  # gradients is its default too (libtpu 0.0.42), and what axlearn switched off (2026-02-10).
  'tpu7x': {
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather': False,
    'xla_tpu_enable_sparse_core_collective_offload_all_gather': True,
    'xla_tpu_enable_sparse_core_collective_offload_all_reduce': False,
    'xla_tpu_enable_sparse_core_collective_offload_reduce_scatter': False,
  },
}

# Of 25 GB/s a host of four chips. Source: jax-ml.github.io/scaling-book, "How to think about TPUs".
_NETWORK = 25e9 / 4

_ALL = (
  Chip(
    name='v4',
    kinds=('TPU v4',),
    flops=275e12,
    hbm_bytes_per_s=1228e9,
    link_bytes_per_s=50e9,
    network_bytes_per_s=_NETWORK,
    usable_gib=30.75,
    devices=1,
    shapes=_CUBES[:-1],
    config='megacore',
    options=_OPTIONS['v4'],
    narrow_flops={'int8': 275e12},
  ),
  Chip(
    name='v5e',
    kinds=('TPU v5 lite', 'TPU v5e'),
    flops=197e12,
    hbm_bytes_per_s=819e9,
    link_bytes_per_s=50e9,
    network_bytes_per_s=_NETWORK,
    usable_gib=15.75,
    devices=1,
    shapes=_FLAT,
    config='default',
    options=_OPTIONS['v5e'],
    narrow_flops={'int8': 394e12},
  ),
  Chip(
    name='v5p',
    kinds=('TPU v5', 'TPU v5p'),
    flops=459e12,
    hbm_bytes_per_s=2765e9,
    link_bytes_per_s=100e9,
    network_bytes_per_s=_NETWORK,
    usable_gib=95.74,
    devices=1,
    shapes=(*_CUBES, '16x16x24'),
    config='default',
    options=_OPTIONS['v5p'],
    narrow_flops={'int8': 918e12},
  ),
  Chip(
    name='v6e',
    kinds=('TPU v6 lite', 'TPU v6e'),
    flops=918e12,
    hbm_bytes_per_s=1638e9,
    link_bytes_per_s=100e9,
    network_bytes_per_s=_NETWORK,
    usable_gib=31.25,
    devices=1,
    shapes=_FLAT,
    config='default',
    options=_OPTIONS['v6e'],
    narrow_flops={'int8': 1836e12},
  ),
  Chip(
    name='tpu7x',
    kinds=('TPU7x',),
    flops=2307e12,
    hbm_bytes_per_s=7380e9,
    link_bytes_per_s=100e9,
    network_bytes_per_s=_NETWORK,
    usable_gib=94.75,
    devices=2,
    shapes=_CUBES,
    config='default',
    options=_OPTIONS['tpu7x'],
    narrow_flops={'float8_e4m3fn': 4614e12},
  ),
)
CHIPS = {chip.name: chip for chip in _ALL}

# bfloat16 FLOP/s without sparsity, by the name that JAX gives the device.
_GPUS = {
  'NVIDIA H200': 989e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips connected to each other, as 'v5p:4x4x4'; or several such slices, which only the
  data-centre network joins.

  Attributes:
    chip: its generation.
    shape: chips along each axis of a slice.
    count: number of slices.
  """

  chip: Chip
  shape: tuple[int, ...]
  count: int = 1

  @property
  def topology(self) -> str:
    """What libtpu and the flags call one of the slices, as 'v5p:4x4x4'."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def name(self) -> str:
    """As 'v5p:4x4x4', or '2 x v5p:4x4x4'."""
    return f'{self.count} x {self.topology}' if self.count > 1 else self.topology

  @property
  def chips(self) -> int:
    """Of all slices."""
    return self.count * math.prod(self.shape)

  @property
  def devices(self) -> int:
    return self.chips * self.chip.devices

  @property
  def accelerator(self) -> str:
    """What Cloud TPU calls it, as 'v5p-128': v4 and v5p by cores, of which a chip has two."""
    name = {'v5e': 'v5litepod'}.get(self.chip.name, self.chip.name)
    return f'{name}-{math.prod(self.shape) * (2 if self.chip.name in ("v4", "v5p") else 1)}'

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Whether the ends of each axis are connected: whole cubes of 64 chips, and axes of 16 of the
    flat generations.
    """
    if len(self.shape) == 3:
      return (all(n % 4 == 0 for n in self.shape),) * 3
    return tuple(n == 16 for n in self.shape)


def slices(chip: str) -> list[Slice]:
  """All slices of a generation, small ones first."""
  shapes = [tuple(map(int, shape.split('x'))) for shape in CHIPS[chip].shapes]
  return [Slice(CHIPS[chip], shape) for shape in shapes]


def find(name: str, count: int = 1) -> Slice:
  """The slice called `name`, as 'v5p:4x4x4' or as Cloud TPU has it, 'v5p-128'; or `count` of them.

  Raises:
    ValueError: there is none; the nearest are named.
  """
  known = [where for chip in CHIPS for where in slices(chip)]
  for where in known:
    if name in (where.name, where.accelerator):
      return dataclasses.replace(where, count=count)

  chip = re.split('[:-]', name)[0]
  if chip not in CHIPS:
    chip = difflib.get_close_matches(chip, CHIPS, n=1, cutoff=0)[0]
  size = name.partition(':')[2] or name.partition('-')[2]
  wanted = max(1, math.prod(int(n) for n in re.findall(r'\d+', size)))
  by_distance = sorted(slices(chip), key=lambda where: abs(math.log(where.chips / wanted)))
  nearest = ', '.join(where.name for where in by_distance[:3])
  others = ', '.join(other for other in CHIPS if other != chip)
  raise ValueError(
    f'--topology={name} does not exist; nearest: {nearest}. {chip} has '
    f'{", ".join(CHIPS[chip].shapes)}; there are also {others}.'
  )


def of_kind(device_kind: str) -> Chip | None:
  """The chip of a device, by any name that JAX has for it; None for other than TPUs.

  Raises:
    ValueError: a TPU that is not in the table.
  """
  wanted = _plain_kind(device_kind)
  for chip in CHIPS.values():
    if wanted in map(_plain_kind, chip.kinds):
      return chip
  if not wanted.startswith('tpu'):
    return None
  known = ', '.join(f'{chip.name} ({", ".join(chip.kinds)})' for chip in CHIPS.values())
  raise ValueError(
    f'The devices here are {device_kind!r}, a TPU that is not known; known: {known}. If it is one '
    "of these under another name, add the name to that chip's `kinds` in wam_jax/chips.py; else "
    'add the chip there: its speed is needed for MFU, its compiler options may be {}.'
  )


def _plain_kind(device_kind: str) -> str:
  return device_kind.lower().replace(' ', '')


def peak_flops(device_kind: str) -> float:
  """Dense bfloat16 FLOP/s of a device of this kind, as JAX names it; 0 where it is not known.

  Raises:
    ValueError: as `of_kind`.
  """
  chip = of_kind(device_kind)
  return chip.flops / chip.devices if chip else _GPUS.get(device_kind, 0.0)


def compiler_options(device_kind: str) -> dict[str, bool | int]:
  """Options for a kind of device, as JAX names it; none for other than TPUs.

  Raises:
    ValueError: as `of_kind`.
  """
  chip = of_kind(device_kind)
  return dict(chip.options) if chip else {}
