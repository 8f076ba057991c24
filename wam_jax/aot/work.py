"""Adds up what one device executes in an XLA program.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: loops by the bound that their condition compares with, fusions and calls once per use.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from wam_jax.aot import hlo
from wam_jax.aot import loops
from wam_jax.aot import products
from wam_jax.aot import traffic

_KERNELS = ('custom_call_target="tpu_custom_call"', 'custom_call_target="__cudnn$fmha')
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
  'send',
  'recv',
)
# What takes long enough to hide a collective behind it.
_LASTING = ('fusion', 'convolution', 'dot', 'custom-call', 'while')

# What the vector units do number by number.
# fmt: off
_ELEMENTWISE = (
  'abs', 'add', 'and', 'clamp', 'compare', 'convert', 'cosine', 'divide', 'exponential',
  'exponential-minus-one', 'floor', 'log', 'log-plus-one', 'logistic', 'maximum', 'minimum',
  'multiply', 'negate', 'not', 'or', 'power', 'reduce', 'rsqrt', 'select', 'sine', 'shift-left',
  'shift-right-logical', 'sign', 'sqrt', 'subtract', 'tanh', 'xor',
)
# fmt: on

KernelFlops = Callable[[hlo.Instruction, list[hlo.Array]], float | None]


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a device does in a second.

  Attributes:
    products, kernels: FLOPs of matrix products and of custom kernels.
    hbm: bytes to and from its memory.
    vector: numbers that its vector units take through one operation.
    narrow: FLOPs of products of two arrays of such a type, as 's8'; of others `products`.
  """

  products: float
  kernels: float
  hbm: float
  vector: float
  narrow: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Collective:
  """All executions of one collective instruction by one device.

  Attributes:
    kind: one of `hlo.COLLECTIVES`, or `hlo.BETWEEN_SLICES`.
    attributes: the instruction's attributes, its groups among them.
    bytes: size of the whole result at a device; of a reduce-scatter, of the whole input.
    times: number of executions.
    overlapped: whether the compiler put operations between its start and its end.
    sent: bytes that a device sends in one execution.
    seconds: time on the links of one execution.
    axes: axes of the torus whose links it takes.
  """

  kind: str
  attributes: str
  bytes: float
  times: int
  overlapped: bool
  sent: float = 0.0
  seconds: float = 0.0
  axes: frozenset[int] = frozenset()


# Sets what a collective takes of the links: `sent`, `seconds` and `axes`.
Links = Callable[[Collective], None]


@dataclasses.dataclass
class Work:
  """What one device does in one program.

  Attributes:
    flops: FLOPs of matrix products.
    narrow_flops: those of them that have a rate of their own, by type.
    kernel_flops: FLOPs of custom kernels, by formula.
    bytes: traffic to and from HBM.
    vector: numbers times operations outside of kernels.
    seconds: sum over operations of the longest of arithmetic, memory and vector units.
    waited_s: time in which nothing runs, by the order of the program, until a collective has ended.
    collectives: one entry per instruction.
    kernels: name to (executions, FLOPs; None where they are not known).
    unknown_loops: names of loops whose bound was not found, counted once.
  """

  flops: float = 0.0
  narrow_flops: dict[str, float] = dataclasses.field(default_factory=dict)
  kernel_flops: float = 0.0
  bytes: float = 0.0
  vector: float = 0.0
  seconds: float = 0.0
  waited_s: float = 0.0
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  kernels: dict[str, tuple[int, float | None]] = dataclasses.field(default_factory=dict)
  unknown_loops: list[str] = dataclasses.field(default_factory=list)


def count(program: hlo.Program, *, rates: Rates, kernel_flops: KernelFlops, links: Links) -> Work:
  """Adds up the program.

  Args:
    rates: what the device does in a second.
    kernel_flops: FLOPs of one execution of a custom kernel, given its inputs; None where they are
      not known.
    links: what sets what a collective takes of the interconnect.
  """
  counter = _Counter(program, rates, kernel_flops, links)
  counter.visit(program.entry, times=1, aside=False)
  return counter.work


class _Clock:
  """Time within one execution of a computation.

  Collectives that share an axis of the torus run one after the other.
  """

  def __init__(self):
    self.now = 0.0
    self._free: dict[int, float] = {}
    self._ends: dict[str, float] = {}

  def run(self, seconds: float) -> None:
    """Something runs that nothing else runs beside."""
    self.now += seconds

  def start(self, name: str, collective: Collective) -> None:
    """A collective begins when the links of its axes are free; `wait` knows it by `name`."""
    begin = max(self.now, *(self._free.get(axis, 0.0) for axis in collective.axes), 0.0)
    end = begin + collective.seconds
    self._free |= dict.fromkeys(collective.axes, end)
    self._ends[name] = max(end, self._ends.get(name, 0.0))

  def rename(self, old: str, new: str) -> None:
    """A collective under way goes on under another name."""
    if old in self._ends:
      self._ends[new] = self._ends.pop(old)

  def wait(self, name: str) -> float:
    """Seconds until the collective has ended; 0 of what is none."""
    waited = max(0.0, self._ends.pop(name, self.now) - self.now)
    self.now += waited
    return waited


@dataclasses.dataclass
class _Stages:
  """A collective inside the fusions that it runs beside, and the time that these take."""

  collective: Collective
  beside_s: float = 0.0


class _Counter:
  """Walks through a program from its entry, adding to `work` what each instruction costs.

  A computation is visited once for each instruction that runs it, with the number of times that
  happens in all. `place` is the name of the computation that an instruction stands in: operands
  are names there. What runs `aside`, beside other operations, costs FLOPs and traffic but no time.
  """

  def __init__(self, program: hlo.Program, rates: Rates, kernel_flops: KernelFlops, links: Links):
    self.work = Work()
    self._program = program
    self._rates = rates
    self._kernel_flops = kernel_flops
    self._links = links
    # Collectives inside fusions, by place and channel.
    self._fused: dict[tuple[str, str], _Stages] = {}

  def visit(self, place: str, times: int, aside: bool) -> float:
    """Counts a computation that runs `times` times, with all that it calls; seconds of once."""
    clock = _Clock()
    waited_s = 0.0
    instructions = list(self._program.computations[place].values())
    for position, instruction in enumerate(instructions):
      is_async = instruction.kind != instruction.opcode
      overlapped = aside or _is_overlapped(instructions, position)

      if instruction.opcode == 'while':
        turns = self._count_turns(instruction, place)
        clock.run(turns * self.visit(instruction.called_as('body'), times * turns, aside))
      elif instruction.opcode == 'async-start':
        for called in instruction.called:
          for collective in self._visit_aside(called, times, overlapped):
            clock.start(instruction.name, collective)
      elif instruction.opcode in ('call', 'conditional'):
        # Which branch of a conditional runs is not known here: all of them count.
        for called in instruction.called:
          clock.run(self.visit(called, times, overlapped))
      elif instruction.is_sent_between_slices:
        # It ends where its result is there.
        result = _find_result(instructions, instruction)
        overlapped = aside or _is_overlapped(instructions, instructions.index(result))
        collective = self._add_collective(instruction, place, hlo.BETWEEN_SLICES, times, overlapped)
        clock.start(result.name, collective)
      elif instruction.is_collective:
        collective = self._add_collective(instruction, place, instruction.kind, times, overlapped)
        clock.start(instruction.name, collective)
        if not is_async:
          waited_s += clock.wait(instruction.name)
      elif instruction.opcode.endswith('-update'):
        clock.rename(instruction.operands[0], instruction.name)
      elif instruction.opcode.endswith('-done'):
        # What it did was counted where it started.
        waited_s += clock.wait(instruction.operands[0])
      elif instruction.opcode not in _NO_WORK:
        clock.run(self._add_operation(instruction, place, times, aside or is_async))

    fused_s = self._wait_for_fused(place)
    clock.run(fused_s)
    if not aside:
      self.work.waited_s += times * (waited_s + fused_s)
    return clock.now

  def _visit_aside(self, called: str, times: int, overlapped: bool) -> list[Collective]:
    """Counts what an asynchronous call runs; its collectives."""
    before = len(self.work.collectives)
    waited_s = self.work.waited_s
    self.visit(called, times, overlapped)
    # They are waited for where the call is done, not here.
    self.work.waited_s = waited_s
    return self.work.collectives[before:]

  def _wait_for_fused(self, place: str) -> float:
    """Seconds by which collectives inside fusions of this computation outlast those fusions."""
    return sum(
      max(0.0, stages.collective.seconds - stages.beside_s)
      for (where, _), stages in self._fused.items()
      if where == place
    )

  def _count_turns(self, loop: hlo.Instruction, place: str) -> int:
    turns = loops.count_turns(self._program, loop, place)
    if turns is None:
      self.work.unknown_loops.append(loop.name)
      return 1
    return turns

  def _add_operation(
    self, instruction: hlo.Instruction, place: str, times: int, aside: bool
  ) -> float:
    """Counts arithmetic, memory traffic and vector units, which overlap: the longest is the time.

    Returns the seconds of one execution, 0 of what runs aside.
    """
    flops = products.count_by_type(self._program, instruction, place)
    kernel_flops = self._add_kernel(instruction, place, times)
    moved = traffic.count_bytes(self._program, instruction, place)
    vector = self._count_elementwise(instruction, place)

    self.work.flops += times * sum(flops.values())
    self.work.kernel_flops += times * kernel_flops
    self.work.bytes += times * moved
    self.work.vector += times * vector
    rates = self._rates
    arithmetic_s = kernel_flops / rates.kernels
    for dtype, flops_of in flops.items():
      arithmetic_s += flops_of / rates.narrow.get(dtype, rates.products)
      if dtype in rates.narrow:
        narrow = self.work.narrow_flops.get(dtype, 0.0)
        self.work.narrow_flops[dtype] = narrow + times * flops_of
    seconds = 0.0 if aside else max(arithmetic_s, moved / rates.hbm, vector / rates.vector)
    self.work.seconds += times * seconds
    if instruction.opcode == 'fusion':
      self._add_fused_collectives(instruction, place, times, seconds)
    return seconds

  def _count_elementwise(self, instruction: hlo.Instruction, place: str) -> float:
    """Numbers times operations of the vector units, in an operation or in those inside a fusion."""
    if instruction.opcode == 'fusion':
      (called,) = instruction.called
      fused = self._program.computations[called].values()
      return sum(self._count_elementwise(inner, called) for inner in fused)
    if instruction.opcode not in _ELEMENTWISE:
      return 0.0
    arrays = instruction.arrays
    if instruction.opcode == 'reduce':
      arrays = self._program.computations[place][instruction.operands[0]].arrays
    return sum(array.elements for array in arrays)

  def _add_kernel(self, instruction: hlo.Instruction, place: str, times: int) -> float:
    """Lists a custom kernel; FLOPs of one execution, 0 of what is none or has no formula."""
    if not any(kernel in instruction.attributes for kernel in _KERNELS):
      return 0.0
    flops = self._kernel_flops(instruction, self._inputs(instruction, place))
    name = re.sub(r'[.\d]+$', '', instruction.name)  # All uses of one kernel together.
    executions, total = self.work.kernels.get(name, (0, 0.0))
    total = None if flops is None else total + times * flops
    self.work.kernels[name] = executions + times, total
    return flops or 0.0

  def _inputs(self, instruction: hlo.Instruction, place: str) -> list[hlo.Array]:
    """The first array of each operand."""
    return products.find_inputs(self._program, instruction, place)

  def _add_collective(
    self, instruction: hlo.Instruction, place: str, kind: str, times: int, overlapped: bool
  ) -> Collective:
    known = self._program.computations[place]
    arrays: Sequence[hlo.Array] = instruction.arrays
    if instruction.opcode == 'reduce-scatter':
      arrays = [array for name in instruction.operands for array in known[name].arrays]
    elif instruction.opcode == 'send':
      arrays = arrays[:1]  # With an address and a token.
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
    self._links(collective)
    self.work.collectives.append(collective)
    return collective

  def _add_fused_collectives(
    self, fusion: hlo.Instruction, place: str, times: int, seconds: float
  ) -> None:
    """Counts a collective that runs inside fusions once, though each of its stages names it.

    Args:
      seconds: time of the fusion.
    """
    (called,) = fusion.called
    fused = self._program.computations[called]
    for inner in fused.values():
      if inner.opcode == 'fusion':
        self._add_fused_collectives(inner, place, times, seconds)
      if not inner.is_collective:
        continue

      channel = re.search(r'channel_id=(\d+)', inner.attributes)
      key = (place, channel[1] if channel else inner.name)
      if key not in self._fused:
        # On TPUs a sum of which each device keeps its slice is a fusion of both.
        scattered = inner.kind == 'all-reduce' and hlo.find_root(fused).opcode == 'dynamic-slice'
        kind = 'reduce-scatter' if scattered else inner.kind
        self._fused[key] = _Stages(self._add_collective(inner, called, kind, times, False))
      if 'async_collective_fusion' in called:
        # One stage with a product beside it hides the whole, at best.
        self._fused[key].collective.overlapped = True
        self._fused[key].beside_s += seconds


def _find_result(instructions: Sequence[hlo.Instruction], sent: hlo.Instruction) -> hlo.Instruction:
  """The `recv` of what comes back for a `send` between slices."""
  results = (i for i in instructions if i.opcode == 'recv' and i.rendezvous == sent.rendezvous)
  return next(results)


def _is_overlapped(instructions: Sequence[hlo.Instruction], position: int) -> bool:
  """Whether operations stand between the start of a collective and its end."""
  start = instructions[position]
  if not start.opcode.endswith(('-start', 'recv')):
    return False
  for instruction in instructions[position + 1 :]:
    if start.name in instruction.operands:
      return False
    if instruction.opcode in _LASTING:
      return True
  return False
