"""Reads the text of a compiled XLA program: computations, instructions, arrays.

What they cost is not this file's business: see `work`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Operations between devices.
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

# An all-reduce over slices, which hosts do for their devices over the data-centre network. The
# program has all other collectives inside of a slice.
BETWEEN_SLICES = 'between-slices'

# Bits of an element where its type's name does not say them. A `pred` takes a whole byte.
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0}
# NumPy's types of one byte, as a program spells them.
NAMES = {'int8': 's8', 'float8_e4m3fn': 'f8e4m3fn'}
_SHAPE = re.compile(r'\b(pred|token|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,<=]*)\](\{[^{}]*\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$')
_COMMENT = re.compile(r'/\*.*?\*/')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
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
    """Size before padding to tiles."""
    digits = re.sub(r'\D', '', self.dtype)
    return self.elements * _BITS.get(self.dtype, int(digits or 0)) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: name in the computation, without the leading %.
    shape: the text of its result's type.
    opcode: the operation, as 'fusion'.
    operands: names of the instructions it takes.
    literal: the text between its parentheses: the value of a constant, the number of a parameter.
    attributes: the text after its operands.
    is_root: whether the computation returns it.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of its result; several where that is a tuple."""
    return parse_shape(self.shape)

  @property
  def kind(self) -> str:
    """The operation; of the start of an asynchronous one, the operation that starts."""
    return self.opcode.removesuffix('-start')

  @property
  def is_collective(self) -> bool:
    return self.kind in COLLECTIVES

  @property
  def is_sent_between_slices(self) -> bool:
    """Whether hosts take an array here for devices of other slices; a `recv` brings the result."""
    return self.opcode == 'send' and '_xla_megascale_transfer_type' in self.attributes

  @property
  def rendezvous(self) -> str:
    """What a `send` and the `recv` of its result have in common; '' of others."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def called(self) -> list[str]:
    """Names of the computations it runs."""
    names = _CALLED.findall(self.attributes)
    if branches := re.search(r'branch_computations=\{([^}]*)\}', self.attributes):
      names += [name.strip().lstrip('%') for name in branches[1].split(',')]
    return names

  def called_as(self, role: str) -> str:
    """The computation named in `role=`."""
    return re.search(rf'\b{role}=%?([\w.\-]+)', self.attributes)[1]

  def sizes(self, attribute: str) -> tuple[int, ...]:
    """The numbers of `attribute={1,2}`; () without it."""
    found = re.search(rf'\b{attribute}=\{{([\d,]*)\}}', self.attributes)
    return tuple(int(n) for n in found[1].split(',') if n) if found else ()


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """A whole HLO module.

  Attributes:
    computations: computations by name, each of them instructions by name, in their order.
    entry: name of the computation that the program begins with.
  """

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Program:
  """The program in the text of an HLO module.

  Raises:
    ValueError: there is no entry computation in it.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry = ''
  current = None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      is_entry, name = header.groups()
      current = computations.setdefault(name, {})
      entry = name if is_entry else entry
    elif line == '}':
      current = None
    elif current is not None and ' = ' in line:
      instruction = _parse_line(line)
      for operand in instruction.operands:
        if '#' in operand and operand not in current:
          current[operand] = _take_element(current, operand)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('The compiler dumped no HLO module with an entry computation.')
  return Program(computations, entry)


def parse_shape(text: str) -> tuple[Array, ...]:
  """The arrays of a shape, in order; nested tuples come out flat."""
  arrays = []
  for dtype, sizes, layout in _SHAPE.findall(text):
    # `<=` stands before the bound of an axis whose size varies.
    numbers = tuple(int(n.lstrip('<=')) for n in sizes.split(',') if n)
    space = re.search(r'S\((\d+)\)', layout)
    arrays.append(Array(dtype, numbers, int(space[1]) if space else 0))
  return tuple(arrays)


def find_root(computation: Computation) -> Instruction:
  """The instruction whose value a computation returns."""
  return next(instruction for instruction in computation.values() if instruction.is_root)


def _parse_line(line: str) -> Instruction:
  """`ROOT %name = shape opcode(operands), attributes`."""
  name, rest = _COMMENT.sub('', line).strip().split(' = ', 1)

  # The shape of a tuple has spaces and parentheses of its own.
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape = rest[:end]

  opcode, arguments = rest[end:].strip().split('(', 1)
  close = _closing('(' + arguments) - 1
  inside = arguments[:close]
  operands: tuple[str, ...] = ()
  if opcode != 'constant':
    operands = tuple(part.split()[-1].lstrip('%') for part in _split(inside))
  return Instruction(
    name=name.removeprefix('ROOT ').lstrip('%'),
    shape=shape,
    opcode=opcode,
    operands=operands,
    literal=inside,
    attributes=arguments[close + 1 :],
    is_root=name.startswith('ROOT '),
  )


def _take_element(computation: Computation, operand: str) -> Instruction:
  """What `name#1` stands for, as newer compilers write it: an element of a tuple."""
  name, index = operand.split('#')
  shapes = list(_split(computation[name].shape[1:-1]))
  return Instruction(
    name=operand,
    shape=shapes[int(index)].strip(),
    opcode='get-tuple-element',
    operands=(name,),
    literal=name,
    attributes=f', index={index}',
    is_root=False,
  )


def _closing(text: str) -> int:
  """Where the parenthesis closes that `text` begins with."""
  depth = 0
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  raise ValueError(f'Unbalanced parentheses in {text[:80]!r}.')


def _split(text: str) -> Iterator[str]:
  """Parts between the commas that stand in no bracket."""
  depth = 0
  start = 0
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
