"""The policy server: the wire, pings, overload, hostile clients, and a real one that is soaked.

python -m benchmarks.serving [--part=wire,pings,overload,hostile] [--json=FILE]
python -m benchmarks.serving --part=clients,passes,soak,watched --workdir=DIR

`wire` is against a bare echo and against what the servers of openpi and RoboArena do, in turns in
one run. `clients` and `soak` start `wam_jax.serve` on the checkpoint in --workdir: eight clients
against one, of a server that computes sessions together and of one that does not; clients that
come, go and die; and what it costs that somebody watches. `passes` is of the engine alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags

from wam_jax import cli

with cli.needs('serve'):
  from benchmarks.serving import passes
  from benchmarks.serving import real
  from benchmarks.serving import watched
  from benchmarks.serving import work

_PARTS = {
  'wire': lambda: work.measure_wire(_ROUNDS.value),
  'pings': lambda: work.measure_pings(2.0, pings=1000),
  'overload': lambda: work.measure_overload(_SECONDS.value),
  'hostile': lambda: work.measure_hostile(_MESSAGES.value, _MESSAGES.value // 10),
  'clients': lambda: real.measure_clients(_WORKDIR.value, _SECONDS.value / 6),
  'passes': lambda: passes.measure(_WORKDIR.value, _ROUNDS.value),
  'watched': lambda: watched.measure(_WORKDIR.value, _ROUNDS.value),
  'soak': lambda: real.measure_soak(_WORKDIR.value, _STEPS.value),
}
_PART = flags.DEFINE_list('part', 'wire,pings,overload,hostile', f'Of {", ".join(_PARTS)}.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', 300, 'Round trips of `wire`, chunks of `watched` and `passes`.', 1
)
_SECONDS = flags.DEFINE_float('seconds', 60.0, 'Of `overload`.', 0.1)
_MESSAGES = flags.DEFINE_integer('messages', 100_000, 'Of `hostile`; frames are a tenth.', 10)
_STEPS = flags.DEFINE_integer('steps', 10_000, 'Chunks of `soak`.', 10)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Of the checkpoint of all that need one.')
cli.define_json()


def main(unused_argv: Sequence[str]) -> None:
  parts = cli.read_names(_PART, _PARTS)
  if {'clients', 'passes', 'soak', 'watched'} & set(parts) and not _WORKDIR.value:
    raise ValueError('--part=clients, passes, soak and watched need --workdir=DIR of a checkpoint.')
  report = {}
  for part in parts:
    report[part] = _PARTS[part]()
    print(f'{part}: {json.dumps(report[part], indent=2)}', flush=True)
  cli.write_json(report)


if __name__ == '__main__':
  cli.run(main)
