"""Bytes of HBM per device, as the compiler planned them."""

from __future__ import annotations

import dataclasses
import re

from wam_jax import chips
from wam_jax.aot import compiler

# A line as 'allocation 3: size 40, color 5, preallocated-temp:'.
_ALLOCATION = re.compile(r'^allocation \d+: size (\d+), (.*?):?$', re.M)
_COLOR = re.compile(r'color (\d+)')
_TOTAL = re.compile(r'Memory Space: default.*\n\s*Total bytes: (\d+)')
# Columns of a line of the usage report: cumulative size (share), size, two numbers, arrays.
_TEMPORARY = re.compile(r'^ +\S+\( *\d+%\); +(\S+); +\d+; +\d+; (.*)$', re.M)
_HBM, _HOST = 0, 5  # Colors are memory spaces; the host has what is offloaded.


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device.

  Attributes:
    arguments: state and batch, padded to tiles.
    reused: the part of the arguments that the outputs take the place of (the donated state).
    outputs: outputs that need room of their own.
    temporaries: activations, gradients, gathered weights; at the worst moment.
    program: machine code; 0 where it was not made.
    total: all of it, constants too, as the compiler adds it up.
    host: what is offloaded to the host's memory.
    usable: HBM that a program may use.
  """

  arguments: int
  reused: int
  outputs: int
  temporaries: int
  program: int
  total: int
  host: int
  usable: int

  @property
  def fits(self) -> bool:
    return self.total <= self.usable


def read(compiled: compiler.Compiled, chip: chips.Chip) -> Memory:
  """What the compiler planned, out of its texts."""
  arguments = reused = outputs = temporaries = host = 0
  for digits, what in _ALLOCATION.findall(compiled.buffers):
    size = int(digits)
    color = _COLOR.search(what)
    space = int(color[1]) if color else _HBM
    if space == _HOST:
      host += size
    if space != _HBM:
      continue
    is_output = 'maybe-live-out' in what or what.startswith('output')
    if 'parameter' in what:
      arguments += size
      reused += size if is_output else 0
    elif is_output:
      outputs += size
    elif 'preallocated-temp' in what:
      temporaries += size
  program = compiled.analysis.get('generated_code', 0)
  return Memory(
    arguments=arguments,
    reused=reused,
    outputs=outputs,
    temporaries=temporaries,
    program=program,
    total=int(_TOTAL.search(compiled.usage)[1]) + program,
    host=host,
    usable=int(chip.usable_gib * chips.GIB),
  )


def list_largest_temporaries(compiled: compiler.Compiled, number: int = 5) -> list[str]:
  """The compiler's lines about what takes most room at the worst moment."""
  lines = _TEMPORARY.findall(compiled.usage)
  return [f'{size}: {arrays}' for size, arrays in lines[:number]]
