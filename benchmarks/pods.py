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
RUNS = {'v5p:4x4x4': ('v5p', 0.45), 'v6e:16x16': ('v6e', 0.40)}  # Layout of the config, least MFU.
MOST_FLOPS, MOST_WITHOUT_REMAT, MOST_ATTENTION = 1.40, 1.05, 1.15


def compiled(
  config: cfg.TrainConfig, where: chips.Slice, say: Callable[[str], None]
) -> dict[str, Any]:
  """The report of one quick compilation."""
  with tempfile.TemporaryDirectory(prefix='wam_jax_pods_') as directory:
    what = f'{config.name} on {where.name}'
    return report.make(
      config,
      where,
      compiler.compile_step(
        config, where, pathlib.Path(directory), say=lambda text: say(f'{what}: {text}')
      ),
    )


def find_smallest(
  config: cfg.TrainConfig, chip: str, say: Callable[[str], None]
) -> dict[str, Any] | None:
  """The report of the smallest slice that holds a step, at its most frugal; None where none
  does.
  """
  for where in chips.slices(chip):
    usable = where.chip.usable_gib * chips.GIB
    frugal = min(
      (
        c
        for c in search.choices(config, where)
        if dict(c.mesh)['tensor'] == dict(c.mesh)['data'] == 1
      ),
      key=lambda c: (c.bytes, c.seconds),
      default=None,
    )
    if frugal is None or 16 * search.count_parameters(config.model) / where.devices > usable:
      continue
    made = compiled(frugal.apply(config), where, say)
    if made['memory']['fits']:
      return made
  return None


def measure_without_remat(
  config: cfg.TrainConfig, where: chips.Slice, say: Callable[[str], None]
) -> dict[str, float]:
  """Executed FLOPs over the model's, of two layers of which all is kept for the backward pass.

  Attention's two backward kernels still compute logits again, nine products where the model has
  six; 'once' counts six.
  """
  model = dataclasses.replace(config.model, remat='none', num_layers=2)
  work = compiled(dataclasses.replace(config, model=model), where, say)['flops']
  return {
    'kernels': work['ratio'],
    'once': work['ratio'] - work['executed_kernels'] / 3 / work['model'],
  }


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
    m, e = made['memory'], made['estimate']
    mesh = ' '.join(f'{axis}={n}' for axis, n in made['mesh'].items() if n > 1)
    lines.append(
      f'{name:<16}{made["chips"]:>6}{m["total"] / chips.GIB:>9.2f}{m["usable"] / chips.GIB:>7.2f}'
      f'{e["step_s"]:>10.2f}{100 * e["mfu"]:>7.1f}  {made["topology"]} {mesh} remat={made["remat"]} '
      f'accumulate={made["accumulate"]}'
    )
  return '\n'.join(lines)


def show_speed(row: dict[str, Any]) -> str:
  made, least = row['report'], row['least_mfu']
  against = lambda value, limit, at_most: (
    f'{value:.3f} (target {"<=" if at_most else ">="} {limit:.2f}: '
    + ('met)' if (value <= limit) == at_most or value == limit else 'MISSED)')
  )
  return '\n'.join(
    [
      report.show(made),
      '',
      f'executed / model FLOPs       {against(made["flops"]["ratio"], MOST_FLOPS, True)}',
      f'  without rematerialisation  {against(row["without_remat"]["kernels"], MOST_WITHOUT_REMAT, True)}; '
      f'{row["without_remat"]["once"]:.3f} but for what the kernels of attention compute again',
      f'attention area               {against(made["attention"]["ratio"], MOST_ATTENTION, True)}',
      f'MFU                          {against(made["estimate"]["mfu"], least, False)}',
    ]
  )


def main(unused_argv: list[str]) -> None:
  say, found, texts = progress.Line(), {'fit': [], 'speed': []}, []
  if _PART.value in ('all', 'fit'):
    models = {'14B': droid_14b.get_config(), '5B': droid_5b.get_config()}
    for (name, given), chip in ((model, chip) for model in models.items() for chip in GENERATIONS):
      found['fit'].append(
        {
          'model': name,
          'chip': chip,
          'report': find_smallest(cfg.from_config_dict(given), chip, say),
        }
      )
    texts.append(show_fit(found['fit']))
  if _PART.value in ('all', 'speed'):
    for name, (layout, least) in RUNS.items():
      config, where = cfg.from_config_dict(droid_14b.get_config(layout)), chips.find(name)
      found['speed'].append(
        {
          'report': compiled(config, where, say),
          'least_mfu': least,
          'without_remat': measure_without_remat(config, where, say),
        }
      )
      texts.append(show_speed(found['speed'][-1]))
  say.close()
  print('\n\n'.join(texts))
  cli.write_json(found)


if __name__ == '__main__':
  cli.run(main)
