"""Bytes that the operations of an XLA program move to and from HBM.

An operation reads its operands and writes its result, once each. What it only slices or updates in
place counts as the slice: a scan over layers would otherwise read all layers in every turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from wam_jax.aot import hlo


def count_bytes(program: hlo.Program, instruction: hlo.Instruction, place: str) -> float:
  """Traffic of one execution of an operation that stands in the computation `place`."""
  known = program.computations[place]
  operands = [known[name] for name in instruction.operands]
  if instruction.opcode == 'fusion':
    (called,) = instruction.called
    read = sum(
      _count_read(program, called, number)
      for number, operand in enumerate(operands)
      if _in_hbm(operand)
    )
    return read + _count_written(program.computations[called], instruction)
  if instruction.opcode in ('dynamic-slice', 'slice', 'gather', 'copy-start'):
    return 2 * _hbm_bytes(instruction.arrays[:1])
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * _hbm_bytes(operands[1].arrays)
  return _hbm_bytes(instruction.arrays) + sum(_hbm_bytes(operand.arrays) for operand in operands)


def _count_read(program: hlo.Program, fusion: str, number: int) -> float:
  """Bytes that a fusion reads of its operand `number`: at most all of it, once."""
  known = program.computations[fusion]
  for parameter in known.values():
    if parameter.opcode == 'parameter' and parameter.literal == str(number):
      whole = sum(array.bytes for array in parameter.arrays)
      return min(_count_uses(program, known, parameter), whole)
  return 0.0


def _count_uses(program: hlo.Program, known: hlo.Computation, value: hlo.Instruction) -> float:
  """Bytes of `value` that the instructions of a fusion take, each for itself."""
  total = 0.0
  for user in known.values():
    if value.name not in user.operands:
      continue
    if user.opcode in ('dynamic-slice', 'slice', 'gather'):
      total += user.arrays[0].bytes
    elif user.opcode == 'bitcast':
      total += _count_uses(program, known, user)
    elif user.opcode == 'fusion':
      total += _count_read(program, user.called[0], user.operands.index(value.name))
    elif user.is_collective:
      pass  # Traffic of the interconnect.
    elif user.opcode == 'tuple':
      pass  # Handed on untouched.
    elif user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name:
      pass  # Updated in place: what is written counts as written.
    elif value.arrays:
      total += value.arrays[0].bytes
  return total


def _count_written(fused: hlo.Computation, fusion: hlo.Instruction) -> float:
  """Bytes of a fusion's results, given the computation inside it."""
  root = hlo.find_root(fused)
  parts = [fused[name] for name in root.operands] if root.opcode == 'tuple' else [root]
  total = 0.0
  for part, array in zip(parts, fusion.arrays):
    while part.opcode == 'bitcast':
      part = fused[part.operands[0]]
    handed_on = part.opcode == 'parameter'
    if handed_on or part.is_collective or array.space != 0:
      continue
    if part.opcode == 'dynamic-update-slice':
      update = fused[part.operands[1]]
      total += update.arrays[0].bytes
    else:
      total += array.bytes
  return total


def _in_hbm(instruction: hlo.Instruction) -> bool:
  return any(array.space == 0 for array in instruction.arrays)


def _hbm_bytes(arrays: Iterable[hlo.Array]) -> float:
  return sum(array.bytes for array in arrays if array.space == 0)
