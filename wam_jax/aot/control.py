"""The control step compiled for a machine that is not there: what it holds, copies and waits for.

`act` is compiled, which a robot waits for: it commits what was seen and denoises the next chunk. In
a process of its own, as `compiler` has it for the training step.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import extras
from wam_jax.aot import child
from wam_jax.aot import compiler
from wam_jax.aot import gpus
from wam_jax.aot import hlo
from wam_jax.aot import products

# Operations that make an array anew, whatever it was before.
COPIES = ('copy', 'copy-start', 'transpose', 'concatenate', 'pad', 'broadcast')


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler said of `act`.

  Attributes:
    held: bytes of a device of the 'weights', the 'state' and the 'cache' in it.
    kernels: numbers of elements that a device has of a kernel, in all layers and in one.
    sizes: numbers of 'slots' of the cache and of 'clean', 'video', 'register' tokens of a sweep.
    mesh: axis name to size.
    coordinates: place in the slice of each device.
    hlo: text of the program; empty, as what follows, where it does not fit.
    memory: bytes of a device: 'argument', 'output', 'alias', 'temp', 'generated_code'.
    order: axes of an array of the cache from the outermost to the innermost.
    seconds: time that the compiler took.
    shortage: the compiler's message where the program does not fit.
  """

  held: dict[str, int]
  kernels: list[int]
  sizes: dict[str, int]
  mesh: dict[str, int]
  coordinates: list[list[int]]
  hlo: str = ''
  memory: dict[str, int] = dataclasses.field(default_factory=dict)
  order: list[int] = dataclasses.field(default_factory=list)
  seconds: float = 0.0
  shortage: str = ''


def find(name: str) -> chips.Slice:
  """The machine called so: a GPU, as 'h200', or a TPU slice, as 'v6e:2x4'."""
  return gpus.GPUS.get(name) or chips.find(name)


def compile_act(config: cfg.TrainConfig, where: chips.Slice, directory: pathlib.Path) -> Compiled:
  """Compiles `act` for one robot, with the config's way of sampling, all devices being 'tensor'.

  Args:
    directory: an empty directory.
  Raises:
    ValueError: the config does not fit the machine, or the compiler is not installed.
    RuntimeError: the compiler failed for another reason than memory.
  """
  is_gpu = where.chip.name in gpus.GPUS
  missing = [name for name in _needed(is_gpu) if not extras.is_installed(name)]
  if missing:
    extra = 'aot-gpu' if is_gpu else 'aot'
    raise ValueError(
      f"{missing[0]} is not installed: pip install -e '.[{extra}]'; no device needed."
    )
  request = {
    'config': cfg.to_dict(config),
    'machine': where.chip.name if is_gpu else where.topology,
  }
  environment = gpus.ENVIRONMENT if is_gpu else compiler.ENVIRONMENT
  with child.start(__name__, request, directory, environment) as process:
    code = process.wait()
  answer = child.read_answer(directory, code)
  if 'shortage' in answer:
    return Compiled(**answer)
  return Compiled(**answer, hlo=(directory / 'program.txt').read_text())


def list_copies(program: hlo.Program, least: float, kernels: Collection[int] = ()) -> list[str]:
  """Operations that write an array of at least so many bytes that was there already.

  Args:
    kernels: numbers of elements of arrays that are not meant, as `list_weight_copies` has them.
  """
  is_meant = lambda array: array.bytes >= least and array.elements not in kernels
  return _list_copies(program, is_meant)


def list_weight_copies(program: hlo.Program, kernels: Collection[int]) -> list[str]:
  """Operations that write kernels anew: those of all layers, as when they transpose them, or one,
  as when they take it out of an array of all.

  Args:
    kernels: numbers of elements of these arrays at a device.
  """
  is_meant = lambda array: array.elements in kernels
  return _list_copies(program, is_meant, (*COPIES, 'slice', 'dynamic-slice'))


def _list_copies(
  program: hlo.Program,
  is_meant: Callable[[hlo.Array], bool],
  opcodes: Collection[str] = COPIES,
) -> list[str]:
  found = []
  for place, computation in _executed(program):
    for instruction in computation.values():
      root = _find_writer(program, instruction)
      # Not what is fetched ahead into the memory of the chip.
      written = [array for array in instruction.arrays[:1] if array.space == 0]
      if root.opcode in opcodes and any(map(is_meant, written)):
        found.append(f'{root.opcode} {instruction.shape} in {place}')
  return found


def _find_writer(program: hlo.Program, instruction: hlo.Instruction) -> hlo.Instruction:
  """What writes the result of an instruction, which of a fusion is inside of it."""
  if instruction.opcode != 'fusion':
    return instruction
  computation = program.computations[instruction.called[0]]
  writer = hlo.find_root(computation)
  while writer.opcode == 'bitcast':
    writer = computation[writer.operands[0]]
  return writer


def list_logits(program: hlo.Program, sizes: dict[str, int]) -> list[str]:
  """Arrays that a chunk of video tokens and all slots span."""
  queries = {sizes['clean'], sizes['video'], sizes['clean'] + sizes['video']}
  queries |= {n + sizes['register'] for n in queries}
  queries.discard(0)
  found = []
  for place, computation in _executed(program):
    for instruction in computation.values():
      for array in instruction.arrays:
        spans_slots = any(sizes['slots'] <= n <= 1.1 * sizes['slots'] + 1024 for n in array.sizes)
        if spans_slots and queries & set(array.sizes):
          found.append(f'{array.dtype}{list(array.sizes)} of {instruction.opcode} in {place}')
  return found


def count_calls(program: hlo.Program) -> dict[str, int]:
  """How often each kind of custom kernel stands in the program."""
  calls: dict[str, int] = {}
  for _, computation in _executed(program):
    for instruction in computation.values():
      if instruction.opcode == 'custom-call':
        target = instruction.attributes.split('custom_call_target="')[1].split('"')[0]
        calls[target] = calls.get(target, 0) + 1
  return calls


def list_products(program: hlo.Program) -> list[dict[str, Any]]:
  """Products of arrays of one byte a number: for each computation that has some and each such type
  the 'dtype' as NumPy calls it, their 'count', their 'flops' and the name of the 'place'.
  """
  found = []
  for place, computation in _executed(program):
    by_type: dict[str, list[float]] = {}
    for instruction in computation.values():
      for dtype, flops in products.list_all(program, instruction, place):
        by_type.setdefault(dtype, []).append(flops)
    found += [
      {'dtype': dtype, 'count': len(by_type[name]), 'flops': sum(by_type[name]), 'place': place}
      for dtype, name in hlo.NAMES.items()
      if name in by_type
    ]
  return found


def _executed(program: hlo.Program):
  """The computations that run for themselves; what stands in a fusion makes no array."""
  fused = {
    name
    for computation in program.computations.values()
    for instruction in computation.values()
    if instruction.opcode in ('fusion', 'reduce', 'scatter', 'sort', 'all-reduce')
    for name in instruction.called
  }
  return [pair for pair in program.computations.items() if pair[0] not in fused]


def _needed(is_gpu: bool) -> tuple[str, ...]:
  return ('jax_cuda13_plugin', 'nvidia.cudnn') if is_gpu else ('libtpu',)


def _main(directory: pathlib.Path) -> None:
  """What the other process does."""
  request = child.read_request(directory)
  try:
    lowered, answer = _lower(cfg.from_config_dict(request['config']), find(request['machine']))
  except ValueError as e:
    child.tell(directory, mistake=str(e))
    return
  start = time.monotonic()
  compiled = child.compile(lowered, directory, answer)
  if compiled is None:
    return
  seconds = time.monotonic() - start
  (directory / 'program.txt').write_text(compiled.as_text())
  child.tell(
    directory,
    **answer,
    memory=child.count_bytes(compiled),
    order=_find_order(compiled),
    seconds=seconds,
  )


def _find_order(compiled: Any) -> list[int]:
  _, memory, *_ = compiled.input_formats[0]
  return [int(axis) for axis in memory.cache.k.layout.major_to_minor]


def _lower(config: cfg.TrainConfig, where: chips.Slice) -> tuple[Any, dict[str, Any]]:
  """The traced program, and what is known before it is compiled."""
  # Here, because the process that watches needs none of it.
  import jax

  jax.config.update('jax_platforms', 'cpu')  # Constants are made on the processor.
  from wam_jax import sharding
  from wam_jax.aot import act

  program, mesh = act.lower(config, where)
  held = {
    'weights': sharding.bytes_per_device(program.params),
    'state': sharding.bytes_per_device(program.memory),
    'cache': sharding.bytes_per_device((program.memory.cache.k, program.memory.cache.v)),
  }
  return program.lowered, {
    'held': held,
    'kernels': program.kernels,
    'sizes': program.sizes,
    'mesh': {name: int(n) for name, n in mesh.shape.items()},
    'coordinates': [[*map(int, getattr(d, 'coords', [0]))] for d in mesh.devices.flat],
  }


if __name__ == '__main__':
  _main(pathlib.Path(sys.argv[1]))
