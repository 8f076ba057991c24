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
    device_kind: as JAX names it.
    flops: bfloat16 multiply-adds of a chip per second, times two.
    hbm_bytes_per_s: of a chip.
    link_bytes_per_s: of one interconnect link in one direction; a torus axis has two links.
    usable_gib: HBM of a device that a program may use.
    devices: per chip.
    shapes: of the slices that exist.
    config: libtpu's name of the way a chip is used.
    options: of the compiler, that let collectives run beside arithmetic.
  """

  name: str
  device_kind: str
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

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      'v4', 'TPU v4', 275e12, 1228e9, 50e9, 30.75, 1, _CUBES[:-1], 'megacore', _GATHER | _REDUCE
    ),
    Chip('v5e', 'TPU v5 lite', 197e12, 819e9, 50e9, 15.75, 1, _FLAT, 'default', _GATHER | _REDUCE),
    Chip(
      'v5p',
      'TPU v5',
      459e12,
      2765e9,
      100e9,
      95.74,
      1,
      (*_CUBES, '16x16x24'),
      'default',
      _GATHER | _SPARSE,
    ),
    Chip(
      'v6e', 'TPU v6 lite', 918e12, 1638e9, 100e9, 31.25, 1, _FLAT, 'default', _GATHER | _SPARSE
    ),
    Chip('tpu7x', 'TPU7x', 2307e12, 7380e9, 100e9, 94.75, 2, _CUBES, 'default', _GATHER | _SPARSE),
  )
}

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
  def wraps(self) -> tuple[bool, ...]:
    """Per axis, whether its ends are connected: whole cubes of 64 chips, and axes of 16 of the flat
    generations.
    """
    if len(self.shape) == 3:
      return (all(n % 4 == 0 for n in self.shape),) * 3
    return tuple(n == 16 for n in self.shape)


def slices(chip: str) -> list[Slice]:
  """All slices of a generation, small ones first."""
  return [Slice(CHIPS[chip], tuple(map(int, shape.split('x')))) for shape in CHIPS[chip].shapes]


def find(name: str) -> Slice:
  """The slice called `name`.

  Raises:
    ValueError: there is none; the nearest are named.
  """
  everything = {s.name: s for chip in CHIPS for s in slices(chip)}
  if name in everything:
    return everything[name]
  chip = name.split(':')[0].split('-')[0]
  if chip not in CHIPS:
    chip = difflib.get_close_matches(chip, CHIPS, 1, 0)[0]
  numbers = [
    int(n) for n in re.findall(r'\d+', name.partition(':')[2] or name.partition('-')[2])
  ] or [1]
  near = [
    s.name
    for s in sorted(
      slices(chip), key=lambda s: abs(math.log(s.chips / max(1, math.prod(numbers))))
    )[:3]
  ]
  raise ValueError(
    f'--topology={name} does not exist; nearest: {", ".join(near)}. {chip} has '
    f'{", ".join(CHIPS[chip].shapes)}; there are also {", ".join(n for n in CHIPS if n != chip)}.'
  )


def peak_flops(device_kind: str) -> float:
  """Dense bfloat16 FLOP/s of a device of this kind, as JAX names it; 0 where it is not known."""
  tpus = {chip.device_kind: chip.flops / chip.devices for chip in CHIPS.values()}
  return (tpus | _GPUS).get(device_kind, 0.0)


def compiler_options(device_kind: str) -> dict[str, bool | int]:
  """Of a kind of device, as JAX names it; none for other than TPUs."""
  return next(
    (dict(chip.options) for chip in CHIPS.values() if chip.device_kind == device_kind), {}
  )
