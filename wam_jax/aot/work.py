"""Adds up what one device executes in an XLA program.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: loops by the bound that their condition compares with, fusions and calls once per use.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from wam_jax.aot import hlo
from wam_jax.aot import loops
from wam_jax.aot import products
from wam_jax.aot import traffic

_KERNEL = 'custom_call_target="tpu_custom_call"'
# Names for what is there already: they neither compute nor move anything.
_NO_WORK = (
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
# What takes long enough to hide a collective behind it.
_LASTING = ('fusion', 'convolution', 'dot', 'custom-call', 'while')

KernelFlops = Callable[[hlo.Instruction, list[hlo.Array]], float | None]


@dataclasses.dataclass
class Collective:
  """All executions of one collective instruction by one device.

  Attributes:
    kind: one of `hlo.COLLECTIVES`.
    attributes: the instruction's attributes, its groups among them.
    bytes: size of the whole result at a device; of a reduce-scatter, of the whole input.
    times: number of executions.
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
    flops: FLOPs of matrix products.
    kernel_flops: FLOPs of custom kernels, by formula.
    bytes: traffic to and from HBM.
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


def count(
  program: hlo.Program, *, peak_flops: float, hbm_bytes_per_s: float, kernel_flops: KernelFlops
) -> Work:
  """Adds up the program.

  Args:
    peak_flops: FLOP/s of the device.
    hbm_bytes_per_s: bandwidth of the device's memory.
    kernel_flops: FLOPs of one execution of a custom kernel, given its inputs; None where they are
      not known.
  """
  counter = _Counter(program, peak_flops, hbm_bytes_per_s, kernel_flops)
  counter.visit(program.entry, times=1, aside=False)
  return counter.work


class _Counter:
  """Walks through a program from its entry, adding to `work` what each instruction costs.

  A computation is visited once for each instruction that runs it, with the number of times that
  happens in all. `place` is the name of the computation that an instruction stands in: operands
  are names there. What runs `aside`, beside other operations, costs FLOPs and traffic but no time.
  """

  def __init__(
    self,
    program: hlo.Program,
    peak_flops: float,
    hbm_bytes_per_s: float,
    kernel_flops: KernelFlops,
  ):
    self.work = Work()
    self._program = program
    self._peak_flops = peak_flops
    self._hbm_bytes_per_s = hbm_bytes_per_s
    self._kernel_flops = kernel_flops
    # Collectives inside fusions, by place and channel.
    self._fused: dict[tuple[str, str], Collective] = {}

  def visit(self, place: str, times: int, aside: bool) -> None:
    """Counts a computation that runs `times` times, with all that it calls."""
    instructions = list(self._program.computations[place].values())
    for position, instruction in enumerate(instructions):
      is_async = instruction.kind != instruction.opcode
      overlapped = aside or _is_overlapped(instructions, position)

      if instruction.opcode == 'while':
        turns = self._count_turns(instruction, place)
        self.visit(instruction.called_as('body'), times * turns, aside)
      elif instruction.opcode in ('call', 'async-start', 'conditional'):
        # Which branch of a conditional runs is not known here: all of them count.
        for called in instruction.called:
          self.visit(called, times, overlapped)
      elif instruction.is_collective:
        self._add_collective(instruction, place, instruction.kind, times, overlapped)
      elif instruction.opcode.endswith(('-done', '-update')):
        pass  # Counted where it started.
      elif instruction.opcode not in _NO_WORK:
        self._add_operation(instruction, place, times, aside or is_async)

  def _count_turns(self, loop: hlo.Instruction, place: str) -> int:
    turns = loops.count_turns(self._program, loop, place)
    if turns is None:
      self.work.unknown_loops.append(loop.name)
      return 1
    return turns

  def _add_operation(
    self, instruction: hlo.Instruction, place: str, times: int, aside: bool
  ) -> None:
    """Counts arithmetic and memory traffic, which overlap: the longer one is the time."""
    if instruction.opcode == 'fusion':
      self._add_fused_collectives(instruction, place, times)
    flops = self._count_products(instruction, place)
    kernel_flops = self._add_kernel(instruction, place, times)
    moved = times * traffic.count_bytes(self._program, instruction, place)

    self.work.flops += times * flops
    self.work.kernel_flops += times * kernel_flops
    self.work.bytes += moved
    if not aside:
      compute_s = times * (flops + kernel_flops) / self._peak_flops
      self.work.seconds += max(compute_s, moved / self._hbm_bytes_per_s)

  def _count_products(self, instruction: hlo.Instruction, place: str) -> float:
    """FLOPs of a matrix product, or of those inside a fusion."""
    if instruction.opcode in ('dot', 'convolution'):
      return products.count_flops(instruction, self._inputs(instruction, place))
    if instruction.opcode != 'fusion':
      return 0.0
    (called,) = instruction.called
    fused = self._program.computations[called].values()
    return sum(self._count_products(inner, called) for inner in fused)

  def _add_kernel(self, instruction: hlo.Instruction, place: str, times: int) -> float:
    """Lists a custom kernel; FLOPs of one execution, 0 of what is none or has no formula."""
    if _KERNEL not in instruction.attributes:
      return 0.0
    flops = self._kernel_flops(instruction, self._inputs(instruction, place))
    name = re.sub(r'[.\d]+$', '', instruction.name)  # All uses of one kernel together.
    executions, total = self.work.kernels.get(name, (0, 0.0))
    total = None if flops is None else total + times * flops
    self.work.kernels[name] = executions + times, total
    return flops or 0.0

  def _inputs(self, instruction: hlo.Instruction, place: str) -> list[hlo.Array]:
    """The first array of each operand."""
    known = self._program.computations[place]
    operands = [known[name] for name in instruction.operands]
    return [operand.arrays[0] for operand in operands if operand.arrays]

  def _add_collective(
    self, instruction: hlo.Instruction, place: str, kind: str, times: int, overlapped: bool
  ) -> Collective:
    known = self._program.computations[place]
    arrays: Sequence[hlo.Array] = instruction.arrays
    if instruction.opcode == 'reduce-scatter':
      arrays = [array for name in instruction.operands for array in known[name].arrays]
    elif instruction.opcode.endswith('-start'):
      # The result is (inputs, outputs, flags); flags are single integers.
      arrays = [array for array in arrays if array.dtype not in ('u32', 's32') or array.sizes]
      arrays = arrays[len(arrays) // 2 :] if len(arrays) > 1 else arrays
    collective = Collective(
      kind=kind,
      attributes=instruction.attributes,
      bytes=sum(array.bytes for array in arrays),
      times=times,
      overlapped=overlapped,
    )
    self.work.collectives.append(collective)
    return collective

  def _add_fused_collectives(self, fusion: hlo.Instruction, place: str, times: int) -> None:
    """Counts a collective that runs inside fusions once, though each of its stages names it."""
    (called,) = fusion.called
    fused = self._program.computations[called]
    for inner in fused.values():
      if inner.opcode == 'fusion':
        self._add_fused_collectives(inner, place, times)
      if not inner.is_collective:
        continue

      channel = re.search(r'channel_id=(\d+)', inner.attributes)
      key = (place, channel[1] if channel else inner.name)
      if key not in self._fused:
        # On TPUs a sum of which each device keeps its slice is a fusion of both.
        scattered = inner.kind == 'all-reduce' and hlo.find_root(fused).opcode == 'dynamic-slice'
        kind = 'reduce-scatter' if scattered else inner.kind
        self._fused[key] = self._add_collective(inner, called, kind, times, overlapped=False)
      # One stage with a product beside it hides the whole.
      self._fused[key].overlapped |= 'async_collective_fusion' in called


def _is_overlapped(instructions: Sequence[hlo.Instruction], position: int) -> bool:
  """Whether operations stand between the start of a collective and its end."""
  start = instructions[position]
  if not start.opcode.endswith('-start'):
    return False
  for instruction in instructions[position + 1 :]:
    if start.name in instruction.operands:
      return False
    if instruction.opcode in _LASTING:
      return True
  return False
