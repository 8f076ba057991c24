"""Which TPU slices hold a step, and what every run on pods takes there; compiled ahead of time.

  python -m benchmarks.pods [--part=fit|runs] [--only=droid_14b:v6e] [--plan] [--json=FILE]

Needs `pip install -e '.[aot]'` and no TPU. `runs`: each config that is meant for a pod, as it lays
itself out: how far it was compiled, HBM, the least time of a step and the time to plan by, and what
the collectives send against what the layout needs; for droid_14b also the targets. `fit`: for 14B
and 5B, trained in full with float32 master weights and Adam state at a global batch of 128, the
smallest slice of each generation whose HBM holds a step. Every row is the whole program at full
depth; only the FLOPs without rematerialisation, for which no slice has the memory, are those of two
layers. Machine code for all runs takes two hours on two cores; with --plan, which stops before it,
everything takes half an hour.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from benchmarks import provenance
from benchmarks.pods import work
from wam_jax import chips
from wam_jax import cli
from wam_jax import progress
from wam_jax.aot import report

_PART = flags.DEFINE_enum('part', 'all', ('all', 'fit', 'runs'), 'Which of the two tables.')
_ONLY = flags.DEFINE_list('only', [], 'Runs to compile, as droid_14b:v6e; all by default.')
_PLAN = flags.DEFINE_bool('plan', False, 'Stop when memory is planned, before machine code.')
cli.define_json()


def main(unused_argv: list[str]) -> None:
  found = {'fit': [], 'runs': []}
  texts = []
  say = progress.Line()
  if _PART.value in ('all', 'runs'):
    found['runs'] = work.measure_runs(say, _ONLY.value, machine_code=not _PLAN.value)
    texts.append(show_runs(found['runs']))
    texts += [show_targets(row) for row in found['runs'] if 'without_remat' in row]
  if _PART.value in ('all', 'fit'):
    found['fit'] = work.measure_fit(say)
    texts.append(show_fit(found['fit']))
  say.close()
  print('\n\n'.join(texts))
  provenance.write(found)


def show_fit(rows: list[dict[str, Any]]) -> str:
  lines = [
    f'{"smallest slice":<16}{"chips":>6}{"HBM GiB":>9}{"of":>7}{"expected s":>12}{"MFU %":>7}'
    '  layout'
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
      f'{expected["step_s"]:>12.2f}{100 * expected["mfu"]:>7.1f}'
      f'  {made["topology"]} {mesh} remat={made["remat"]} accumulate={made["accumulate"]}'
    )
  return '\n'.join(lines)


def show_runs(rows: list[dict[str, Any]]) -> str:
  lines = [
    f'{"run":<26}{"slice":<11}{"compiled to":<14}{"s":>5}{"HBM GiB":>9}{"of":>7}{"sent/needed":>13}'
    f'{"bound s":>9}{"MFU %":>7}{"expected s":>12}{"MFU %":>7}{"days":>6}'
  ]
  for row in rows:
    made = row['report']
    memory, bound, expected = made['memory'], made['bound'], made['expected']
    compiler_said = made['compiler']
    lines.append(
      f'{row["run"]:<26}{made["topology"]:<11}{compiler_said["reached"]:<14}'
      f'{compiler_said["seconds"]:>5.0f}'
      f'{memory["total"] / chips.GIB:>9.2f}{memory["usable"] / chips.GIB:>7.2f}'
      f'{_sent(made) / sum(row["needed"].values()):>13.3f}'
      f'{bound["step_s"]:>9.2f}{100 * bound["mfu"]:>7.1f}'
      f'{expected["step_s"]:>12.2f}{100 * expected["mfu"]:>7.1f}{expected["run_days"]:>6.1f}'
    )
  return '\n'.join(lines)


def _sent(made: dict[str, Any]) -> float:
  return sum(total['bytes'] for total in made['collectives'].values())


def show_targets(row: dict[str, Any]) -> str:
  made, without_remat, needed = row['report'], row['without_remat'], row['needed']
  flops_met = _show_target(made['flops']['ratio'], '<=', work.MOST_FLOPS)
  kept = _show_target(without_remat['kernels'], '<=', work.MOST_WITHOUT_REMAT)
  area = _show_target(made['attention']['ratio'], '<=', work.MOST_ATTENTION)
  sent = _show_target(_sent(made) / sum(needed.values()), '<=', work.MOST_SENT)
  chip = made['topology'].partition(':')[0]
  mfu = _show_target(made['expected']['mfu'], '>=', work.LEAST_MFU[chip])
  parts = ', '.join(f'{name} {part / 1e9:.1f}' for name, part in needed.items() if part)
  lines = [
    report.show(made),
    '',
    f'executed / model FLOPs       {flops_met}',
    f'  without rematerialisation  {kept}; '
    f'{without_remat["once"]:.3f} but for what the kernels of attention compute again',
    f'attention area               {area}',
    f'sent / needed by collectives {sent}; needed, GB: {parts}',
    f'expected MFU                 {mfu}',
  ]
  return '\n'.join(lines)


def _show_target(value: float, relation: str, limit: float) -> str:
  is_met = value <= limit if relation == '<=' else value >= limit
  return f'{value:.3f} (target {relation} {limit:.2f}: {"met" if is_met else "MISSED"})'


if __name__ == '__main__':
  cli.run(main)
