"""Bytes of HBM per device, as the compiler planned them."""

from __future__ import annotations

import dataclasses
import re

from wam_jax import chips
from wam_jax.aot import compiler

_ALLOCATION = re.compile(r'^allocation \d+: size (\d+), (.*?):?$', re.M)
_HOST = 5  # Memory space of what is offloaded.


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device.

  Attributes:
    arguments: state and batch, padded to tiles.
    reused: of these, what the outputs take the place of (the donated state).
    outputs: that need room of their own.
    temporaries: activations, gradients, gathered weights; at the worst moment.
    program: machine code; 0 where it was not made.
    total: all of it, constants too, as the compiler adds it up.
    host: offloaded to the host's memory.
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


def planned(compiled: compiler.Compiled, chip: chips.Chip) -> Memory:
  """What the compiler decided."""
  sums = dict.fromkeys(('arguments', 'reused', 'outputs', 'temporaries', 'host'), 0)
  for size, what in _ALLOCATION.findall(compiled.buffers):
    color = re.search(r'color (\d+)', what)
    if color and int(color[1]):
      sums['host'] += int(size) * (int(color[1]) == _HOST)
      continue
    live_out = 'maybe-live-out' in what or what.startswith('output')
    if 'parameter' in what:
      sums['arguments'] += int(size)
      sums['reused'] += int(size) * live_out
    elif live_out:
      sums['outputs'] += int(size)
    elif 'preallocated-temp' in what:
      sums['temporaries'] += int(size)
  total = int(re.search(r'Memory Space: default.*\n\s*Total bytes: (\d+)', compiled.usage)[1])
  program = compiled.analysis.get('generated_code', 0)
  return Memory(
    **sums, program=program, total=total + program, usable=int(chip.usable_gib * chips.GIB)
  )


def largest_temporaries(compiled: compiler.Compiled, number: int = 5) -> list[str]:
  """The compiler's lines about what takes most room at the worst moment."""
  lines = re.findall(r'^ +\S+\( *\d+%\); +(\S+); +\d+; +\d+; (.*)$', compiled.usage, re.M)
  return [f'{size}: {arrays}' for size, arrays in lines[:number]]
