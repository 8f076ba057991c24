"""What `benchmarks.pods` measures: slices that hold a step, runs as their configs lay them out, and
what a layout has to send.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from configs import agibot_14b
from configs import droid_5b
from configs import droid_14b
from configs import droid_14b_flash
from configs import video_only_transfer
from configs import yam_fewshot
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import compiler
from wam_jax.aot import report
from wam_jax.aot import search
from wam_jax.data import shapes

GENERATIONS = ('v5e', 'v5p', 'v6e', 'tpu7x')


class Run(NamedTuple):
  """A config, the argument that lays it out, and the slice that it is laid out for."""

  config: ModuleType
  argument: str
  topology: str

  @property
  def name(self) -> str:
    name = self.config.__name__.removeprefix('configs.')
    return f'{name}:{self.argument}' if self.argument else name


_OF_14B = (droid_14b, droid_14b_flash, agibot_14b, yam_fewshot, video_only_transfer)
RUNS = (
  Run(droid_5b, '', 'v5p:2x2x4'),
  *(Run(config, 'v5p', 'v5p:4x4x4') for config in _OF_14B),
  *(Run(config, 'v6e', 'v6e:16x16') for config in _OF_14B),
)
# Targets: expected MFU by generation, executed over model FLOPs, the same without
# rematerialisation, computed over seen pairs, sent over needed bytes.
LEAST_MFU = {'v5p': 0.50, 'v6e': 0.40}
MOST_FLOPS = 1.40
MOST_WITHOUT_REMAT = 1.05
MOST_ATTENTION = 1.15
MOST_SENT = 1.10

# A lower bound, to rule slices out without compiling.
_STATE_BYTES = 16  # Of a parameter: weight, gradient, two moments of Adam, float32 each.

Say = Callable[[str], None]


def compile_once(
  config: cfg.TrainConfig, where: chips.Slice, say: Say, machine_code: bool = False
) -> dict[str, Any]:
  """The report of one compilation, to the plan of memory or to the end."""

  def say_where(text: str) -> None:
    say(f'{config.name} on {where.name}: {text}')

  with tempfile.TemporaryDirectory(prefix='wam_jax_pods_') as directory:
    step = compiler.compile_step(
      config, where, pathlib.Path(directory), machine_code, say=say_where
    )
    return report.make(config, where, step)


def find_smallest(config: cfg.TrainConfig, chip: str, say: Say) -> dict[str, Any] | None:
  """The report of the smallest slice that holds a step, at its most frugal; None where none
  does.
  """
  for where in chips.slices(chip):
    frugal = _find_most_frugal(config, where)
    usable = where.chip.usable_gib * chips.GIB
    state = _STATE_BYTES * search.count_parameters(config.model) / where.devices
    # What cannot fit need not be compiled.
    if frugal is None or state > usable:
      continue
    made = compile_once(frugal.apply(config), where, say)
    if made['memory']['fits']:
      return made
  return None


def _find_most_frugal(config: cfg.TrainConfig, where: chips.Slice) -> search.Choice | None:
  """The choice of least memory, then time, that shards everything over the axis fsdp."""
  choices = []
  for choice in search.choices(config, where):
    mesh = dict(choice.mesh)
    if mesh['tensor'] == mesh['data'] == 1:
      choices.append(choice)
  return min(choices, key=lambda choice: (choice.bytes, choice.seconds), default=None)


def measure_without_remat(
  config: cfg.TrainConfig, where: chips.Slice, say: Say
) -> dict[str, float]:
  """Executed FLOPs over the model's, of two layers of which all is kept for the backward pass.

  Attention's two backward kernels still compute logits again, nine products where the model has
  six; 'once' counts six.
  """
  # All forty layers with everything kept fit no slice.
  model = dataclasses.replace(config.model, remat='none', num_layers=2)
  work = compile_once(dataclasses.replace(config, model=model), where, say)['flops']
  return {
    'kernels': work['ratio'],
    'once': work['ratio'] - work['executed_kernels'] / 3 / work['model'],
  }


def measure_fit(say: Say) -> list[dict[str, Any]]:
  """A row per model and generation of chips."""
  rows = []
  for model, given in (('14B', droid_14b.get_config()), ('5B', droid_5b.get_config())):
    config = cfg.from_config_dict(given)
    for chip in GENERATIONS:
      made = find_smallest(config, chip, say)
      rows.append({'model': model, 'chip': chip, 'report': made})
  return rows


def measure_runs(say: Say, only: Sequence[str], machine_code: bool) -> list[dict[str, Any]]:
  """A row per run of `RUNS`.

  Raises:
    ValueError: one of `only` is no run.
  """
  names = [run.name for run in RUNS]
  if unknown := [name for name in only if name not in names]:
    raise ValueError(f'--only={",".join(unknown)} is no run; there are {", ".join(names)}.')
  rows = []
  for run in RUNS:
    if only and run.name not in only:
      continue
    config = cfg.from_config_dict(run.config.get_config(run.argument))
    where = chips.find(run.topology)
    made = compile_once(config, where, say, machine_code)
    row = {'run': run.name, 'report': made, 'needed': needed_bytes(config, made['mesh'])}
    if run.config is droid_14b:
      row['without_remat'] = measure_without_remat(config, where, say)
    rows.append(row)
  return rows


def needed_bytes(config: cfg.TrainConfig, mesh: Mapping[str, int]) -> dict[str, float]:
  """Bytes that a device has to send in a step, by what for; all in the dtype of activations.

  Weights are gathered over 'fsdp' twice in each pass of accumulation, forward and backward, their
  gradients scattered once and summed over the devices that have the same weights. 'tensor' sums
  three results of a block forward, and three gradients backward. 'seq' gathers keys and values,
  forward and backward, and scatters their gradients.
  """
  m = config.model
  size = 2 if m.dtype == 'bfloat16' else 4
  fsdp, tensor, seq = mesh['fsdp'], mesh['tensor'], mesh['seq']
  replicas = math.prod(mesh.values()) // (fsdp * tensor)
  weights = config.accumulate * size * search.count_parameters(m) / tensor
  shards = weights / fsdp

  # All passes together, on one device.
  tokens = flops.training_tokens(m, shapes.sizes(config).tokens_per_frame)
  samples = config.batch_size * tensor * seq / math.prod(mesh.values())
  activations = m.num_layers * size * samples * tokens * m.dim

  def rest(n: int) -> float:
    """The part of an array that the other devices of a ring have."""
    return (n - 1) / n

  return {
    'weights': 2 * weights * rest(fsdp),
    'gradients': weights * rest(fsdp) + 2 * shards * rest(replicas),
    'tensor': 6 * 2 * activations / seq * rest(tensor),
    'seq': 3 * 2 * activations / tensor * rest(seq),
  }
