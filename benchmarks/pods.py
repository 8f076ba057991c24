"""What fits which TPU slice, and how fast the DROID run can be there; compiled ahead of time, no
TPU needed.

  python -m benchmarks.pods [--part=fit|speed] [--json=FILE]

`fit`: for 14B and 5B, trained in full with float32 master weights and Adam state at a global batch
of 128, the smallest slice of each generation whose HBM holds a step. `speed`: the DROID 14B run on
v5p-128 and v6e-256, as its config lays it out, against the targets. Every row is the whole program
at full depth; only the FLOPs without rematerialisation, for which no slice has the memory, are
those of two layers. A quarter of an hour on two cores.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

from configs import droid_5b
from configs import droid_14b
from wam_jax import chips
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import progress
from wam_jax.aot import compiler
from wam_jax.aot import report
from wam_jax.aot import search

_PART = flags.DEFINE_enum('part', 'all', ('all', 'fit', 'speed'), 'Which of the two tables.')
cli.define_json()

GENERATIONS = ('v5e', 'v5p', 'v6e', 'tpu7x')
# Slice of a run to the layout that its config has for it, and the least MFU that is wanted.
RUNS = {'v5p:4x4x4': ('v5p', 0.45), 'v6e:16x16': ('v6e', 0.40)}
# Targets: executed over model FLOPs, the same without rematerialisation, computed over seen pairs.
MOST_FLOPS = 1.40
MOST_WITHOUT_REMAT = 1.05
MOST_ATTENTION = 1.15

# A lower bound, to rule slices out without compiling.
_STATE_BYTES = 16  # Of a parameter: weight, gradient, two moments of Adam, float32 each.

Say = Callable[[str], None]


def compile_once(config: cfg.TrainConfig, where: chips.Slice, say: Say) -> dict[str, Any]:
  """The report of one quick compilation."""

  def say_where(text: str) -> None:
    say(f'{config.name} on {where.name}: {text}')

  with tempfile.TemporaryDirectory(prefix='wam_jax_pods_') as directory:
    step = compiler.compile_step(config, where, pathlib.Path(directory), False, say=say_where)
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


def measure_speed(say: Say) -> list[dict[str, Any]]:
  """A row per run of `RUNS`."""
  rows = []
  for name, (layout, least_mfu) in RUNS.items():
    config = cfg.from_config_dict(droid_14b.get_config(layout))
    where = chips.find(name)
    rows.append(
      {
        'report': compile_once(config, where, say),
        'least_mfu': least_mfu,
        'without_remat': measure_without_remat(config, where, say),
      }
    )
  return rows


def show_fit(rows: list[dict[str, Any]]) -> str:
  lines = [
    f'{"smallest slice":<16}{"chips":>6}{"HBM GiB":>9}{"of":>7}{"s a step":>10}{"MFU %":>7}  layout'
  ]
  for row in rows:
    made = row['report']
    name = f'{row["model"]} {row["chip"]}'
    if made is None:
      lines.append(f'{name:<16}  none')
      continue
    memory, expected = made['memory'], made['expected']
    mesh = ' '.join(f'{axis}={n}' for axis, n in made['mesh'].items() if n > 1)
    lines.append(
      f'{name:<16}{made["chips"]:>6}'
      f'{memory["total"] / chips.GIB:>9.2f}{memory["usable"] / chips.GIB:>7.2f}'
      f'{expected["step_s"]:>10.2f}{100 * expected["mfu"]:>7.1f}'
      f'  {made["topology"]} {mesh} remat={made["remat"]} accumulate={made["accumulate"]}'
    )
  return '\n'.join(lines)


def show_speed(row: dict[str, Any]) -> str:
  made, without_remat = row['report'], row['without_remat']
  flops = _show_target(made['flops']['ratio'], '<=', MOST_FLOPS)
  kept = _show_target(without_remat['kernels'], '<=', MOST_WITHOUT_REMAT)
  area = _show_target(made['attention']['ratio'], '<=', MOST_ATTENTION)
  mfu = _show_target(made['expected']['mfu'], '>=', row['least_mfu'])
  lines = [
    report.show(made),
    '',
    f'executed / model FLOPs       {flops}',
    f'  without rematerialisation  {kept}; '
    f'{without_remat["once"]:.3f} but for what the kernels of attention compute again',
    f'attention area               {area}',
    f'MFU                          {mfu}',
  ]
  return '\n'.join(lines)


def _show_target(value: float, relation: str, limit: float) -> str:
  is_met = value <= limit if relation == '<=' else value >= limit
  return f'{value:.3f} (target {relation} {limit:.2f}: {"met" if is_met else "MISSED"})'


def main(unused_argv: list[str]) -> None:
  found = {'fit': [], 'speed': []}
  texts = []
  say = progress.Line()
  if _PART.value in ('all', 'fit'):
    found['fit'] = measure_fit(say)
    texts.append(show_fit(found['fit']))
  if _PART.value in ('all', 'speed'):
    found['speed'] = measure_speed(say)
    texts += [show_speed(row) for row in found['speed']]
  say.close()
  print('\n\n'.join(texts))
  cli.write_json(found)


if __name__ == '__main__':
  cli.run(main)
