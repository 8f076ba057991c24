"""Bytes, error and success of one checkpoint in float32, bfloat16 and quantized, on the tabletop.

python -m benchmarks.precision --workdir=DIR [--precisions=bfloat16,int8,...] [--json=FILE]

The first precision is the baseline. It acts in some scenes in which the others see what it sees,
each with a cache of its own, and their actions are compared; then each acts by itself, all in the
same scenes with the same noise. Bytes are those of the device's buffers. No speed: a processor
multiplies bytes and bfloat16 by conversion, which accelerators do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import acting
from benchmarks import provenance
from benchmarks.precision import work
from wam_jax import checkpoint
from wam_jax import cli
from wam_jax.control import agent as agent_lib

_PRECISIONS = ('bfloat16', 'float32', 'int8', 'w8a8', 'fp8')

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the checkpoint.', required=True)
_CHOSEN = flags.DEFINE_list('precisions', list(_PRECISIONS), 'Which, the first one the baseline.')
_EPISODES = flags.DEFINE_integer('episodes', 200, 'Scenes in which each acts; 0 for none.', 0)
_COMPARED = flags.DEFINE_integer('compared', 50, 'Scenes in which actions are compared.', 1)
_BATCH = flags.DEFINE_integer('batch', 50, 'Episodes side by side.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'The first seed of scenes and noise.', 0)
cli.define_json()


def main(unused_argv: Sequence[str]) -> None:
  chosen = cli.read_names(_CHOSEN, _PRECISIONS)
  trained = checkpoint.load_for_inference(_WORKDIR.value)
  robot = acting.find_robot(trained.metadata, _WORKDIR.value)
  config = trained.config
  evaluation = dataclasses.replace(config.evaluation, batch=_BATCH.value)
  scenes = lambda count: range(_SEED.value, _SEED.value + count)

  beside = work.Beside(trained, chosen)
  agent = agent_lib.ModelAgent(beside, config.model, robot)
  acting.play(agent, robot, evaluation, scenes(_COMPARED.value))
  rows = {}
  for name, errors in beside.compare().items():
    rows[name] = {**beside.count_bytes(name), **errors}
    if _EPISODES.value:
      policy = beside.others.get(name) or agent_lib.TimedPolicy(*work.place(trained, name))
      agent = agent_lib.ModelAgent(policy, config.model, robot)
      rows[name] |= acting.play(agent, robot, evaluation, scenes(_EPISODES.value))
    print(_show(name, rows[name], rows[chosen[0]]), flush=True)
  report = {'workdir': _WORKDIR.value, 'step': trained.step, 'seed': _SEED.value}
  provenance.write({**report, 'sample': vars(config.sample), 'precisions': rows})


def _show(name: str, row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
  parts = [
    f'{name:<10}',
    f'{row["bytes"] / 1e6:>8.2f} MB {row["bytes"] / baseline["bytes"]:.2f}x',
    f'layers {row["layers"] / 1e6:>8.2f} MB {row["layers"] / baseline["layers"]:.2f}x',
    f'actions off by {row["relative_error"]:.2%} (p95 {row["p95_error"]:.4f})',
  ]
  if 'rate' in row:
    parts.append(f'{row["successes"]}/{row["episodes"]} [{row["low"]:.1%}, {row["high"]:.1%}]')
    parts.append(f'{row["mean_seconds"] or float("nan"):.2f} s')
  return '  '.join(parts)


if __name__ == '__main__':
  cli.run(main)
