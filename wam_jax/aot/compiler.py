"""Compiles the training step for a slice that is not there, in a process of its own, and keeps what
the compiler says.

libtpu holds TPU's compiler and needs no TPU for it. A process of its own, because libtpu reads its
settings from the environment, talks to stderr, and can be stopped only with the process: HLO and
the plan of memory are complete long before the machine code.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.aot import child

# Where there is no TPU: do not ask the cloud's metadata server what this machine is.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'none',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
_DUMPED = {
  'hlo': 'after_optimizations.txt',
  'buffers': 'after_optimizations-buffer-assignment.txt',
  'usage': 'after_optimizations-memory-usage-report.txt',
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler said.

  Attributes:
    hlo: text of the program.
    buffers: text about the buffers, as `memory` reads it.
    usage: text about the memory that they take.
    arguments: bytes per device of 'parameters', 'optimizer', 'average', 'encoders' and 'batch'.
    partitions: coordinates of each device of a slice, in the order of the program.
    mesh: axis name to size.
    attention: keys of a sample in the kernels of self-attention, padding included, and pairs that a
      device computes of them; 0 where it is no kernel.
    libtpu: version of the compiler.
    seconds: time that it took.
    analysis: bytes by kind as the finished program states them; empty where it stopped before the
      machine code.
    shortage: the compiler's message where the program does not fit.
  """

  hlo: str
  buffers: str
  usage: str
  arguments: dict[str, int]
  partitions: list[list[int]]
  mesh: dict[str, int]
  attention: tuple[int, int]
  libtpu: str
  seconds: float
  analysis: dict[str, int] = dataclasses.field(default_factory=dict)
  shortage: str = ''


def compile_step(
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  machine_code: bool = False,
  say: Callable[[str], None] = lambda _: None,
) -> Compiled:
  """Compiles `train_step.make_train_step` of this config for that slice.

  Args:
    directory: an empty directory, for what the compiler writes.
    machine_code: whether to go on after program and memory are decided, which takes many times as
      long.
    say: function that is told every second what is under way.
  Raises:
    ValueError: the config does not fit the slice, or there is no libtpu.
    RuntimeError: the compiler failed for another reason than memory.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      "Ahead-of-time compilation needs libtpu, which needs no TPU: pip install -e '.[aot]'."
    )
  request = {'config': cfg.to_dict(config), 'topology': where.topology, 'slices': where.count}
  start = time.monotonic()
  with child.start(__name__, request, directory, ENVIRONMENT) as process:
    for stage in _watch(process, directory, machine_code):
      say(f'{stage}, {time.monotonic() - start:.0f} s')
  answer = child.read_answer(directory, process.returncode)
  found = {key: _find(directory, ending) for key, ending in _DUMPED.items()}
  if not all(found.values()):
    raise RuntimeError(
      f'The compiler ended with code {process.returncode} before memory was planned:\n'
      f'{child.read_log(directory)}'
    )
  texts = {key: path.read_text() for key, path in found.items()}
  return Compiled(**texts, **answer, seconds=time.monotonic() - start)


def _watch(process: subprocess.Popen, directory: pathlib.Path, machine_code: bool) -> Iterator[str]:
  """Every second the stage that the process is in, until it has ended or has written enough."""
  sizes: list[int] = []
  while process.poll() is None:
    time.sleep(1)
    before = sizes
    found = [_find(directory, ending) for ending in _DUMPED.values()]
    sizes = [path.stat().st_size for path in found if path]
    # All files are there and no longer grow: nothing more is decided about program and memory.
    planned = len(sizes) == len(_DUMPED) and sizes == before
    if planned:
      yield 'machine code'
      if not machine_code:
        return
    else:
      yield 'optimizing' if (directory / 'answer.json').exists() else 'tracing'


def _find(directory: pathlib.Path, ending: str) -> pathlib.Path | None:
  """The compiler's file about the step; other programs are small ones that make constants."""
  return next(directory.glob(f'*jit_step*.{ending}'), None)


def _main(directory: pathlib.Path) -> None:
  """What the other process does: compiles, and tells what it knows as soon as it knows it."""
  request = child.read_request(directory)
  try:
    where = chips.find(request['topology'], request['slices'])
    lowered, answer = _lower(cfg.from_config_dict(request['config']), where)
  except ValueError as e:
    child.tell(directory, mistake=str(e))
    return
  child.tell(directory, **answer)

  options = {'xla_dump_to': str(directory), 'xla_dump_hlo_as_text': True}
  compiled = child.compile(lowered, directory, answer, options)
  if compiled is not None:
    child.tell(directory, **answer, analysis=child.count_bytes(compiled))


def _lower(config: cfg.TrainConfig, where: chips.Slice) -> tuple[Any, dict[str, Any]]:
  """The traced step, and what is known before it is compiled."""
  # Here, because the process that watches needs none of it.
  import jax

  from wam_jax import compiler_options
  from wam_jax import sharding
  from wam_jax import train_step
  from wam_jax.aot import abstract

  devices = describe(where)
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_sizes(config, mesh)
  compiler_options.try_out(train_step.make_options(config, mesh), devices[0])
  state, batch = abstract.arguments(config, mesh)
  step = train_step.make_train_step(config, mesh, jax.tree.map(lambda x: x.sharding, state))
  with sharding.activate(mesh, config.rules):
    attention = _attention(config)
    lowered = step.__wrapped__.lower(state, batch)  # The jitted function inside.

  parts = {
    'parameters': state.params,
    'optimizer': state.opt_state,
    'average': state.ema_params,
    'encoders': state.frozen,
    'batch': batch,
  }
  import libtpu

  return lowered, {
    'arguments': {name: sharding.bytes_per_device(tree) for name, tree in parts.items()},
    'partitions': [[*map(int, d.coords)] for d in mesh.devices[0].flat],
    'mesh': {name: int(n) for name, n in mesh.shape.items()},
    'attention': attention,
    'libtpu': libtpu.__version__,
  }


def describe(where: chips.Slice) -> list[Any]:
  """Devices of a slice that is not there, for which a process with `ENVIRONMENT` compiles."""
  import jax
  from jax.experimental import topologies

  # Constants are made on the processor; the slice is a description, no backend.
  jax.config.update('jax_platforms', 'cpu')
  no_axis = (False,) * (3 - len(where.wraps))
  # One slice is described without a number, as ever.
  several = {'num_slices': where.count} if where.count > 1 else {}
  # The compiler takes hosts for squares of four chips, of which a single chip is no part.
  alone = {'chips_per_host_bounds': (1, 1, 1)} if math.prod(where.shape) == 1 else {}
  topology = topologies.get_topology_desc(
    platform='tpu',
    topology_name=where.topology,
    wrap=where.wraps + no_axis,
    chip_config_name=where.chip.config,
    **several,
    **alone,
  )
  return list(topology.devices)


def _attention(config: cfg.TrainConfig) -> tuple[int, int]:
  """`Compiled.attention` of the active mesh: pairs of the busiest of its shards of 'tokens'."""
  from wam_jax import flops
  from wam_jax import masks
  from wam_jax import sharding
  from wam_jax.data import shapes
  from wam_jax.models import attention

  layout = flops.training_layout(config.model, shapes.sizes(config).tokens_per_frame)
  plan = attention.make_plan(config.model, layout)
  if not isinstance(plan.pattern, masks.Blocks):
    return 0, 0
  blocks_seen = np.sum(plan.pattern.visible, 1)
  by_shard = blocks_seen.reshape(sharding.shards_of('tokens'), -1).sum(1)
  return len(plan.order), int(by_shard.max()) * plan.pattern.side**2


if __name__ == '__main__':
  _main(pathlib.Path(sys.argv[1]))
