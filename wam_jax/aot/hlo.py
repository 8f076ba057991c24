"""Reads the text of a compiled XLA program and adds up what one device executes.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: loops by the bound that their condition compares with, fusions and calls once per use.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0}
_SHAPE = re.compile(r'\b(pred|token|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,<=]*)\](\{[^{}]*\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$')
_COMMENT = re.compile(r'/\*.*?\*/')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_NO_WORK = frozenset(
  (
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'iota',
    'domain',
    'add-dependency',
  )
)


@dataclasses.dataclass(frozen=True)
class Array:
  """Element type, sizes and memory of an array: space 0 is HBM, 1 is on chip, 5 is the host."""

  dtype: str
  sizes: tuple[int, ...]
  space: int = 0

  @property
  def elements(self) -> int:
    return math.prod(self.sizes)

  @property
  def bytes(self) -> float:
    bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(re.sub(r'\D', '', self.dtype) or 0)
    return self.elements * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation; `attributes` is what follows the operands."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """Of its result; several of a tuple."""
    return parse_shape(self.shape)

  @property
  def called(self) -> list[str]:
    """Computations it names."""
    branches = re.search(r'branch_computations=\{([^}]*)\}', self.attributes)
    more = [name.strip().lstrip('%') for name in branches[1].split(',')] if branches else []
    return _CALLED.findall(self.attributes) + more

  def called_as(self, role: str) -> str:
    """The computation named in `role=`."""
    return re.search(rf'\b{role}=%?([\w.\-]+)', self.attributes)[1]

  def sizes(self, attribute: str) -> tuple[int, ...]:
    """The numbers of `attribute={1,2}`; () without it."""
    found = re.search(rf'\b{attribute}=\{{([\d,]*)\}}', self.attributes)
    return tuple(int(n) for n in found[1].split(',') if n) if found else ()


@dataclasses.dataclass
class Collective:
  """All executions of one collective instruction by one device.

  Attributes:
    kind: of COLLECTIVES.
    attributes: of the instruction, its groups among them.
    bytes: of its whole result at a device; of a reduce-scatter, of its whole input.
    times: executions.
    overlapped: whether the compiler put operations between its start and its end.
  """

  kind: str
  attributes: str
  bytes: float
  times: int
  overlapped: bool


@dataclasses.dataclass
class Work:
  """What one device does in one program.

  Attributes:
    flops: of matrix products. kernel_flops: of custom kernels, by formula.
    bytes: to and from HBM.
    seconds: sum over operations of the longer of arithmetic and memory at the given peaks.
    collectives: one entry per instruction.
    kernels: name to (executions, FLOPs; None where they are not known).
    unknown_loops: names of loops whose bound was not found, counted once.
  """

  flops: float = 0.0
  kernel_flops: float = 0.0
  bytes: float = 0.0
  seconds: float = 0.0
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  kernels: dict[str, tuple[int, float | None]] = dataclasses.field(default_factory=dict)
  unknown_loops: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name, the entry's name and, per computation, instructions by name."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


def parse(text: str) -> Program:
  """The program in the text of an HLO module.

  Raises:
    ValueError: there is no entry computation in it.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif line == '}':
      current = None
    elif current is not None and ' = ' in line:
      instruction = _parse_line(line)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('The compiler dumped no HLO module with an entry computation.')
  return Program(computations, entry)


def parse_shape(text: str) -> tuple[Array, ...]:
  """The arrays of a shape, in order; nested tuples come out flat."""
  return tuple(
    Array(dtype, tuple(int(n.lstrip('<=')) for n in sizes.split(',') if n), _space(layout))
    for dtype, sizes, layout in _SHAPE.findall(text)
  )


def _space(layout: str) -> int:
  found = re.search(r'S\((\d+)\)', layout)
  return int(found[1]) if found else 0


def _parse_line(line: str) -> Instruction:
  name, rest = _COMMENT.sub('', line).strip().split(' = ', 1)
  is_root = name.startswith('ROOT ')
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  opcode, arguments = rest[end:].strip().split('(', 1)
  close = _closing('(' + arguments, 0) - 1
  inside = arguments[:close]
  operands = (
    tuple(part.split()[-1].lstrip('%') for part in _split(inside)) if opcode != 'constant' else ()
  )
  return Instruction(
    name.removeprefix('ROOT ').lstrip('%'),
    rest[:end],
    opcode,
    operands,
    inside,
    arguments[close + 1 :],
    is_root,
  )


def _closing(text: str, start: int) -> int:
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  raise ValueError(f'Unbalanced parentheses in {text[:80]!r}.')


def _split(text: str) -> Iterator[str]:
  """Parts between the commas that stand in no bracket."""
  depth, start = 0, 0
  for match in re.finditer(r'[(){}\[\],]', text):
    if match[0] in '({[':
      depth += 1
    elif match[0] in ')}]':
      depth -= 1
    elif not depth:
      yield text[start : match.start()]
      start = match.end()
  if text[start:].strip():
    yield text[start:]


def product_flops(instruction: Instruction, inputs: list[Array]) -> float:
  """Of a `dot` or `convolution`; padding and holes of a convolution are not multiplied."""
  out = instruction.arrays[0]
  if instruction.opcode == 'dot':
    return (
      2
      * out.elements
      * math.prod(inputs[0].sizes[i] for i in instruction.sizes('lhs_contracting_dims'))
    )
  return _convolution_flops(instruction, inputs, out)


def _convolution_flops(instruction, inputs, out):
  lhs, rhs, result = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes).groups()
  window = dict(
    re.findall(r'(\w+)=(\S+)', re.search(r'window=\{([^}]*)\}|$', instruction.attributes)[1] or '')
  )
  products = (
    2
    * out.sizes[result.index('b')]
    * out.sizes[result.index('f')]
    * inputs[1].sizes[rhs.index('i')]
  )
  for axis in range(len(lhs) - 2):
    places = (labels.index(str(axis)) for labels in (lhs, rhs, result))
    sizes = (array.sizes[place] for array, place in zip((*inputs, out), places))
    settings = (
      int(window[key].split('x')[axis].split('_')[0]) if key in window else int(key != 'pad')
      for key in ('pad', 'stride', 'lhs_dilate', 'rhs_dilate')
    )
    products *= _count_valid(*sizes, *settings)
  return products


@functools.cache
def _count_valid(
  size: int, kernel: int, out: int, low: int, stride: int, dilate: int, kernel_dilate: int
) -> int:
  """Pairs of an output o and a kernel position k that meet an element of the input, not padding or
  a hole.

  That is where o * stride + k * kernel_dilate - low is a multiple of `dilate` from 0 to (size - 1)
  * dilate. Sizes run to millions, since batches stand as spatial axes, so all k of an output, or
    all o of a kernel position, count at once.
  """
  last = (size - 1) * dilate
  if kernel_dilate == 1:
    begin = low - np.arange(out) * stride
    first = np.maximum(begin, 0)
    first += (begin - first) % dilate
    return int(np.maximum((np.minimum(kernel - 1, last + begin) - first) // dilate + 1, 0).sum())
  if dilate == 1:
    begin = low - np.arange(kernel) * kernel_dilate
    first = -(-np.maximum(begin, 0) // stride)
    return int(
      np.maximum(np.minimum((out - 1) * stride, last + begin) // stride - first + 1, 0).sum()
    )
  place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilate - low
  return int(((place >= 0) & (place <= last) & (place % dilate == 0)).sum())


def count(
  program: Program,
  peak_flops: float,
  hbm_bytes_per_s: float,
  kernel_flops: Callable[[Instruction, list[Array]], float | None],
) -> Work:
  """Adds up the program.

  Args:
    peak_flops, hbm_bytes_per_s: of the device.
    kernel_flops: of one execution of a custom kernel, given its inputs; None where it is not known.
  """
  counter = _Counter(program, peak_flops, hbm_bytes_per_s, kernel_flops)
  counter.visit(program.entry, 1)
  return counter.work


class _Counter:
  def __init__(self, program, peak_flops, hbm_bytes_per_s, kernel_flops):
    self._program, self._peak, self._bandwidth, self._kernel_flops = (
      program,
      peak_flops,
      hbm_bytes_per_s,
      kernel_flops,
    )
    self._fused: dict[tuple[str, str], Collective] = {}
    self.work = Work()

  def visit(self, name: str, times: int, aside: bool = False) -> None:
    """Counts a computation that runs `times` times, with all that it calls; `aside`: beside other
    operations.
    """
    instructions = list(self._program.computations[name].values())
    for position, instruction in enumerate(instructions):
      kind, overlapped = (
        instruction.opcode.removesuffix('-start'),
        aside or _is_overlapped(instructions, position),
      )
      if instruction.opcode == 'while':
        self.visit(instruction.called_as('body'), times * self._trips(instruction, name), aside)
      elif instruction.opcode in ('call', 'async-start', 'conditional'):
        for called in instruction.called:
          self.visit(called, times, overlapped)
      elif kind in COLLECTIVES:
        self._add_collective(instruction, self._program.computations[name], kind, times, overlapped)
      elif instruction.opcode not in _NO_WORK and not instruction.opcode.endswith(
        ('-done', '-update')
      ):
        self._add_operation(instruction, name, times, aside or kind != instruction.opcode)

  def _add_operation(self, instruction, name, times, aside):
    flops = self._flops(instruction, name)
    if instruction.opcode == 'fusion':
      self._add_fused_collectives(instruction, name, times)
    kernel = 0.0
    if instruction.attributes.find('custom_call_target="tpu_custom_call"') >= 0:
      found = self._kernel_flops(instruction, self._inputs(instruction, name))
      kernel = found or 0.0
      target = re.sub(r'[.\d]+$', '', instruction.name)
      executions, total = self.work.kernels.get(target, (0, 0.0))
      self.work.kernels[target] = (
        executions + times,
        None if found is None else total + times * kernel,
      )
    moved = times * self._bytes(instruction, name)
    self.work.flops += times * flops
    self.work.kernel_flops += times * kernel
    self.work.bytes += moved
    if not aside:
      self.work.seconds += max(times * (flops + kernel) / self._peak, moved / self._bandwidth)

  def _flops(self, instruction, name) -> float:
    if instruction.opcode in ('dot', 'convolution'):
      return product_flops(instruction, self._inputs(instruction, name))
    if instruction.opcode != 'fusion':
      return 0.0
    (called,) = instruction.called
    return sum(self._flops(inner, called) for inner in self._program.computations[called].values())

  def _inputs(self, instruction, name) -> list[Array]:
    """The first array of each operand."""
    known = self._program.computations[name]
    return [known[operand].arrays[0] for operand in instruction.operands if known[operand].arrays]

  def _bytes(self, instruction, name) -> float:
    """To and from HBM; of an array that is only sliced or updated in place, the slice."""
    if instruction.opcode == 'fusion':
      (called,) = instruction.called
      inputs = sum(
        self._read(called, i)
        for i, _ in enumerate(instruction.operands)
        if _in_hbm(self._program.computations[name][instruction.operands[i]])
      )
      return inputs + self._written(called, instruction)
    known = self._program.computations[name]
    if instruction.opcode in ('dynamic-slice', 'slice', 'gather', 'copy-start'):
      return 2 * _hbm_bytes(instruction.arrays[:1])
    if instruction.opcode == 'dynamic-update-slice':
      return 2 * _hbm_bytes(known[instruction.operands[1]].arrays)
    return _hbm_bytes(instruction.arrays) + sum(
      _hbm_bytes(known[operand].arrays) for operand in instruction.operands
    )

  def _read(self, computation: str, number: int) -> float:
    """Bytes that a fusion reads of its operand `number`."""
    known = self._program.computations[computation]
    parameter = next(
      (i for i in known.values() if i.opcode == 'parameter' and i.literal == str(number)), None
    )
    return (
      0.0
      if parameter is None
      else min(self._uses(known, parameter), sum(a.bytes for a in parameter.arrays))
    )

  def _uses(self, known, value) -> float:
    total = 0.0
    for user in known.values():
      if value.name not in user.operands:
        continue
      if user.opcode in ('dynamic-slice', 'slice', 'gather'):
        total += user.arrays[0].bytes
      elif user.opcode == 'bitcast':
        total += self._uses(known, user)
      elif user.opcode == 'fusion':
        total += self._read(user.called[0], user.operands.index(value.name))
      elif user.opcode.removesuffix('-start') in COLLECTIVES or user.opcode == 'tuple':
        pass  # Traffic of the interconnect, or handed on untouched.
      elif user.opcode != 'dynamic-update-slice' or user.operands[0] != value.name:
        total += value.arrays[0].bytes if value.arrays else 0
    return total

  def _written(self, computation: str, instruction) -> float:
    known = self._program.computations[computation]
    root = next(i for i in known.values() if i.is_root)
    parts = [known[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    total = 0.0
    for part, array in zip(parts, instruction.arrays):
      while part.opcode == 'bitcast':
        part = known[part.operands[0]]
      if part.opcode == 'parameter' or part.opcode.removesuffix('-start') in COLLECTIVES:
        continue
      updated = part.opcode == 'dynamic-update-slice'
      total += _hbm_bytes([array]) and (
        known[part.operands[1]].arrays[0].bytes if updated else array.bytes
      )
    return total

  def _add_collective(self, instruction, known, kind, times, overlapped):
    arrays = instruction.arrays
    if instruction.opcode == 'reduce-scatter':
      arrays = [array for operand in instruction.operands for array in known[operand].arrays]
    elif instruction.opcode.endswith('-start'):  # (inputs, outputs, flags)
      arrays = [a for a in arrays if a.dtype not in ('u32', 's32') or a.sizes]
      arrays = arrays[len(arrays) // 2 :] if len(arrays) > 1 else arrays
    one = Collective(kind, instruction.attributes, sum(a.bytes for a in arrays), times, overlapped)
    self.work.collectives.append(one)
    return one

  def _add_fused_collectives(self, instruction, name, times):
    """A collective that runs inside fusions counts once, though each of its stages names it."""
    (called,) = instruction.called
    inside = self._program.computations[called]
    for inner in inside.values():
      kind = inner.opcode.removesuffix('-start')
      if inner.opcode == 'fusion':
        self._add_fused_collectives(inner, name, times)
      elif kind in COLLECTIVES:
        channel = re.search(r'channel_id=(\d+)', inner.attributes)
        key = (name, channel[1] if channel else inner.name)
        if key not in self._fused:
          scattered = kind == 'all-reduce' and any(
            i.opcode == 'dynamic-slice' and i.is_root for i in inside.values()
          )
          self._fused[key] = self._add_collective(
            inner, inside, 'reduce-scatter' if scattered else kind, times, False
          )
        self._fused[key].overlapped |= 'async_collective_fusion' in called

  def _trips(self, loop: Instruction, name: str) -> int:
    """How often a loop runs, from the comparison of its counter and what each turn adds to it."""
    start = self._program.computations[name][loop.operands[0]]
    compare, values = self._comparison(self._program.computations[loop.called_as('condition')])
    bounds = [self._first_value(value, start, name) for value in values]
    if compare is None or None in bounds:
      self.work.unknown_loops.append(loop.name)
      return 1
    direction = re.search(r'direction=(\w+)', compare.attributes)[1]
    low, high = bounds if direction in ('LT', 'LE', 'NE') else reversed(bounds)
    step = max(1, *(self._step(value, loop) for value in values))
    return max(0, -(-(high - low + (direction in ('LE', 'GE'))) // step))

  def _comparison(self, known):
    """The comparison that a loop's condition gives, with the instructions outside of any fusion
    that it compares.
    """
    root = next(i for i in known.values() if i.is_root)
    if root.opcode == 'fusion':
      compare, values = self._comparison(self._program.computations[root.called[0]])
      return compare, [
        known[root.operands[int(v.literal)]] if v.opcode == 'parameter' else v for v in values
      ]
    return (
      (root, [known[name] for name in root.operands]) if root.opcode == 'compare' else (None, [])
    )

  def _first_value(self, value, start, name) -> int | None:
    """The number that a value of a loop's condition is when the loop begins with the state
    `start`.
    """
    known = self._program.computations[name]
    if value.opcode == 'get-tuple-element' and start.opcode == 'tuple':
      value = _behind(known, known[start.operands[_index(value)]])
    return _number(value)

  def _step(self, value, loop) -> int:
    """What a turn adds to a value of a loop's condition; 0 where that is not its counter."""
    if value.opcode != 'get-tuple-element':
      return 0
    known = self._program.computations[loop.called_as('body')]
    root = next(i for i in known.values() if i.is_root)
    if root.opcode != 'tuple':
      return 0
    after = _behind(known, known[root.operands[_index(value)]])
    added = [_number(known[operand]) for operand in after.operands] if after.opcode == 'add' else []
    return next((abs(n) for n in added if n), 1 if after.opcode in ('add', 'fusion') else 0)


def _behind(known, value):
  """What `value` is a copy of."""
  while (
    value.opcode in ('copy', 'bitcast', 'copy-done', 'copy-start', 'convert') and value.operands
  ):
    value = known[value.operands[0]]
  return value


def _index(element) -> int:
  return int(re.search(r'index=(\d+)', element.attributes)[1])


def _number(value) -> int | None:
  return (
    int(value.literal)
    if value.opcode == 'constant' and re.fullmatch(r'-?\d+', value.literal)
    else None
  )


def _is_overlapped(instructions, position) -> bool:
  """Whether operations stand between the start of a collective and its end."""
  start = instructions[position]
  if not start.opcode.endswith('-start'):
    return False
  for instruction in instructions[position + 1 :]:
    if start.name in instruction.operands:
      return False
    if instruction.opcode in ('fusion', 'convolution', 'dot', 'custom-call', 'while'):
      return True
  return False


def _in_hbm(instruction) -> bool:
  return any(array.space == 0 for array in instruction.arrays)


def _hbm_bytes(arrays) -> float:
  return sum(array.bytes for array in arrays if array.space == 0)
