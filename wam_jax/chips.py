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
    hbm_bytes_per_s: memory bandwidth of a chip.
    link_bytes_per_s: bandwidth of one interconnect link in one direction; a torus axis has two
      links.
    usable_gib: HBM of a device that a program may use.
    devices: number of devices of a chip.
    shapes: chips along each axis, as '2x4', of the slices that exist.
    config: libtpu's name of the way a chip is used.
    options: options of the compiler that let collectives run beside arithmetic.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  hbm_bytes_per_s: float
  link_bytes_per_s: float
  usable_gib: float
  devices: int
  shapes: tuple[str, ...]
  config: str
  options: Mapping[str, bool | int]


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

# Weights are gathered in stages between the tiles of the matrix product before the one that needs
# them.
_GATHER = dict.fromkeys(
  (
    'xla_enable_async_all_gather',
    'xla_tpu_overlap_compute_collective_tc',
    'xla_tpu_enable_async_collective_fusion',
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather',
    'xla_tpu_enable_async_collective_fusion_multiple_steps',
  ),
  True,
)
# Gradients are summed likewise, each by itself. (Not scattered: libtpu 0.0.42 stops at a program
# with both.)
_REDUCE = dict.fromkeys(
  ('xla_enable_async_all_reduce', 'xla_tpu_enable_async_collective_fusion_fuse_all_reduce'), True
) | {'xla_jf_crs_combiner_threshold_in_bytes': 1}
# Or the sparse cores sum them, where the chip has those.
_SPARSE = {
  f'xla_tpu_enable_sparse_core_collective_offload_{kind}': True
  for kind in ('all_gather', 'all_reduce', 'reduce_scatter')
} | {'xla_tpu_enable_concurrent_sparse_core_offloading': True}

_ALL = (
  Chip(
    name='v4',
    kinds=('TPU v4',),
    flops=275e12,
    hbm_bytes_per_s=1228e9,
    link_bytes_per_s=50e9,
    usable_gib=30.75,
    devices=1,
    shapes=_CUBES[:-1],
    config='megacore',
    options=_GATHER | _REDUCE,
  ),
  Chip(
    name='v5e',
    kinds=('TPU v5 lite', 'TPU v5e'),
    flops=197e12,
    hbm_bytes_per_s=819e9,
    link_bytes_per_s=50e9,
    usable_gib=15.75,
    devices=1,
    shapes=_FLAT,
    config='default',
    options=_GATHER | _REDUCE,
  ),
  Chip(
    name='v5p',
    kinds=('TPU v5', 'TPU v5p'),
    flops=459e12,
    hbm_bytes_per_s=2765e9,
    link_bytes_per_s=100e9,
    usable_gib=95.74,
    devices=1,
    shapes=(*_CUBES, '16x16x24'),
    config='default',
    options=_GATHER | _SPARSE,
  ),
  Chip(
    name='v6e',
    kinds=('TPU v6 lite', 'TPU v6e'),
    flops=918e12,
    hbm_bytes_per_s=1638e9,
    link_bytes_per_s=100e9,
    usable_gib=31.25,
    devices=1,
    shapes=_FLAT,
    config='default',
    options=_GATHER | _SPARSE,
  ),
  Chip(
    name='tpu7x',
    kinds=('TPU7x',),
    flops=2307e12,
    hbm_bytes_per_s=7380e9,
    link_bytes_per_s=100e9,
    usable_gib=94.75,
    devices=2,
    shapes=_CUBES,
    config='default',
    options=_GATHER | _SPARSE,
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
  """Chips connected to each other, as 'v5p:4x4x4'."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  @property
  def devices(self) -> int:
    return self.chips * self.chip.devices

  @property
  def accelerator(self) -> str:
    """What Cloud TPU calls it, as 'v5p-128': v4 and v5p by cores, of which a chip has two."""
    name = {'v5e': 'v5litepod'}.get(self.chip.name, self.chip.name)
    return f'{name}-{self.chips * (2 if self.chip.name in ("v4", "v5p") else 1)}'

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


def find(name: str) -> Slice:
  """The slice called `name`, as 'v5p:4x4x4' or as Cloud TPU has it, 'v5p-128'.

  Raises:
    ValueError: there is none; the nearest are named.
  """
  known = [where for chip in CHIPS for where in slices(chip)]
  for where in known:
    if name in (where.name, where.accelerator):
      return where

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
