"""How often the loops of an XLA program turn.

A loop carries a tuple. Its condition compares an element of it, the counter, with a bound; its body
returns the tuple with something added to the counter. Both may be hidden in fusions, and the bound
may be carried too.
"""

from __future__ import annotations

import re

from wam_jax.aot import hlo


def count_turns(program: hlo.Program, loop: hlo.Instruction, place: str) -> int | None:
  """Turns of a `while` that stands in the computation `place`; None where they cannot be told."""
  around = program.computations[place]
  condition = program.computations[loop.called_as('condition')]
  compare, values = _find_comparison(program, condition)
  if compare is None:
    return None
  start = around[loop.operands[0]]
  numbers = [_number_at_start(value, start, around) for value in values]
  if None in numbers:
    return None

  # `counter < end` and its mirror image, `end > counter`.
  direction = re.search(r'direction=(\w+)', compare.attributes)[1]
  low, high = numbers if direction in ('LT', 'LE', 'NE') else reversed(numbers)
  inclusive = direction in ('LE', 'GE')

  # Whichever of the two values the body changes is the counter.
  body = program.computations[loop.called_as('body')]
  step = max(1, *(_added_each_turn(value, body) for value in values))
  return max(0, -(-(high - low + inclusive) // step))


def _find_comparison(
  program: hlo.Program, condition: hlo.Computation
) -> tuple[hlo.Instruction | None, list[hlo.Instruction]]:
  """(the comparison that a condition returns, the two values it compares); None without one.

  Where the comparison stands in a fusion, parameters are replaced by what the fusion is given.
  """
  root = hlo.find_root(condition)
  if root.opcode == 'compare':
    return root, [condition[name] for name in root.operands]
  if root.opcode != 'fusion':
    return None, []
  compare, values = _find_comparison(program, program.computations[root.called[0]])
  for i, value in enumerate(values):
    if value.opcode == 'parameter':
      values[i] = condition[root.operands[int(value.literal)]]
  return compare, values


def _number_at_start(
  value: hlo.Instruction, start: hlo.Instruction, around: hlo.Computation
) -> int | None:
  """The number that a value of the condition is before the first turn, if that is written out."""
  if value.opcode == 'get-tuple-element' and start.opcode == 'tuple':
    value = _find_origin(around, around[start.operands[_index(value)]])
  return _number(value)


def _added_each_turn(value: hlo.Instruction, body: hlo.Computation) -> int:
  """What a turn adds to a value of the condition; 0 where it is not the counter."""
  if value.opcode != 'get-tuple-element':
    return 0
  root = hlo.find_root(body)
  if root.opcode != 'tuple':
    return 0
  after = _find_origin(body, body[root.operands[_index(value)]])
  if after.opcode == 'add':
    added = [_number(body[operand]) for operand in after.operands]
    return next((abs(n) for n in added if n), 1)
  # What a fusion adds is not looked up: it is taken to be one, as in every scan.
  return 1 if after.opcode == 'fusion' else 0


def _find_origin(computation: hlo.Computation, value: hlo.Instruction) -> hlo.Instruction:
  """What `value` is a copy of."""
  copies = ('copy', 'bitcast', 'copy-done', 'copy-start', 'convert')
  while value.opcode in copies and value.operands:
    value = computation[value.operands[0]]
  return value


def _index(element: hlo.Instruction) -> int:
  """Which element of the tuple a `get-tuple-element` takes."""
  return int(re.search(r'index=(\d+)', element.attributes)[1])


def _number(value: hlo.Instruction) -> int | None:
  """The integer that a constant is; None for anything else."""
  if value.opcode == 'constant' and re.fullmatch(r'-?\d+', value.literal):
    return int(value.literal)
  return None
