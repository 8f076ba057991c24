"""FLOPs of the matrix products and convolutions of an XLA program; a multiply-add is two.

Padding and holes of a convolution are not multiplied. On TPUs most products are convolutions:
batches stand as spatial axes of which each output meets one kernel position.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from wam_jax.aot import hlo

_MIXED = 'mixed'


def count_by_type(
  program: hlo.Program, instruction: hlo.Instruction, place: str
) -> dict[str, float]:
  """FLOPs of a matrix product, or of those inside a fusion, by the type of its operands."""
  flops: dict[str, float] = collections.defaultdict(float)
  for dtype, one in list_all(program, instruction, place):
    flops[dtype] += one
  return dict(flops)


def list_all(
  program: hlo.Program, instruction: hlo.Instruction, place: str
) -> Iterator[tuple[str, float]]:
  """(type of both operands, FLOPs) of a matrix product, or of each inside a fusion."""
  if instruction.opcode in ('dot', 'convolution'):
    inputs = find_inputs(program, instruction, place)
    types = {array.dtype for array in inputs}
    yield types.pop() if len(types) == 1 else _MIXED, count_flops(instruction, inputs)
  elif instruction.opcode == 'fusion':
    (called,) = instruction.called
    for inner in program.computations[called].values():
      yield from list_all(program, inner, called)


def find_inputs(program: hlo.Program, instruction: hlo.Instruction, place: str) -> list[hlo.Array]:
  """The first array of each operand."""
  known = program.computations[place]
  operands = [known[name] for name in instruction.operands]
  return [operand.arrays[0] for operand in operands if operand.arrays]


def count_flops(instruction: hlo.Instruction, inputs: Sequence[hlo.Array]) -> int:
  """FLOPs of a `dot` or a `convolution` of two arrays."""
  if instruction.opcode == 'convolution':
    return _count_convolution(instruction, inputs)
  contracted = instruction.sizes('lhs_contracting_dims')
  return 2 * instruction.arrays[0].elements * math.prod(inputs[0].sizes[i] for i in contracted)


def _count_convolution(instruction: hlo.Instruction, inputs: Sequence[hlo.Array]) -> int:
  # As `dim_labels=b01f_01io->b01f`: a letter for each axis, b batch, f features, i and o in and out
  # of the kernel, digits for spatial axes.
  found = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  input_labels, kernel_labels, out_labels = found.groups()
  image, kernel = inputs
  out = instruction.arrays[0]
  window = _read_window(instruction.attributes)

  flops = 2
  flops *= out.sizes[out_labels.index('b')]
  flops *= out.sizes[out_labels.index('f')]
  flops *= kernel.sizes[kernel_labels.index('i')]
  # Spatial axes are independent: the pairs that meet along each of them multiply.
  for axis in range(len(input_labels) - 2):
    flops *= _count_valid(
      size=image.sizes[input_labels.index(str(axis))],
      kernel=kernel.sizes[kernel_labels.index(str(axis))],
      out=out.sizes[out_labels.index(str(axis))],
      low=_setting(window, 'pad', axis, default=0),
      stride=_setting(window, 'stride', axis, default=1),
      dilate=_setting(window, 'lhs_dilate', axis, default=1),
      kernel_dilate=_setting(window, 'rhs_dilate', axis, default=1),
    )
  return flops


def _read_window(attributes: str) -> dict[str, str]:
  """The settings in `window={size=3x3 pad=1_1x1_1}`; none where a product has no window."""
  found = re.search(r'window=\{([^}]*)\}', attributes)
  return dict(re.findall(r'(\w+)=(\S+)', found[1])) if found else {}


def _setting(window: dict[str, str], key: str, axis: int, default: int) -> int:
  """A setting's number for one axis; of padding, low_high, the low one: the high one is implied."""
  return int(window[key].split('x')[axis].split('_')[0]) if key in window else default


@functools.cache
def _count_valid(
  *, size: int, kernel: int, out: int, low: int, stride: int, dilate: int, kernel_dilate: int
) -> int:
  """Pairs of an output and a kernel position that meet an element of the input, along one axis.

  Output o and kernel position k meet place o * stride + k * kernel_dilate - low of the dilated and
  padded input. An element is there if the place is a multiple of `dilate` from 0 to
  (size - 1) * dilate. Sizes run to millions, since batches stand as spatial axes, so all k of an
  output, or all o of a kernel position, are counted at once.
  """
  last = (size - 1) * dilate
  if kernel_dilate == 1:
    # An output meets places k - begin: from 0 or the start of the kernel, to `last` or its end.
    begin = low - np.arange(out) * stride
    first = np.maximum(begin, 0)
    first += (begin - first) % dilate  # The next k whose place is no hole.
    most = np.minimum(kernel - 1, last + begin)
    return int(np.maximum((most - first) // dilate + 1, 0).sum())
  if dilate == 1:
    # The input has no holes: a kernel position meets consecutive outputs.
    begin = low - np.arange(kernel) * kernel_dilate
    first = -(-np.maximum(begin, 0) // stride)
    most = np.minimum((out - 1) * stride, last + begin) // stride
    return int(np.maximum(most - first + 1, 0).sum())
  # Both have holes, which only small convolutions do: pair by pair.
  place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilate - low
  return int(((place >= 0) & (place <= last) & (place % dilate == 0)).sum())
