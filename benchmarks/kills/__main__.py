"""SIGKILL at random moments: a run that is killed and started again must end as one that nobody
touched.

  python -m benchmarks.kills [--kills=20] [--steps=300] [--json=FILE]

Trains a tiny model twice, straight and killed; a killed run is started again by the same command. A
third of the kills come while a checkpoint is being written, a fifth in the first seconds (start,
restore, compilation), the others at any step. At the end metrics.jsonl must have the same bytes and
the last checkpoint the same arrays; exits with status 1 if not.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from absl import flags

from benchmarks.kills import work
from wam_jax import cli

_KILLS = flags.DEFINE_integer('kills', 20, 'How many.', 1)
_STEPS = flags.DEFINE_integer('steps', 300, 'Of the run.', 20)
_SAVE_EVERY = flags.DEFINE_integer('save_every', 10, 'Steps between its checkpoints.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory for the runs; default: a temporary one.')
cli.define_json()


def main(unused_argv: list[str]) -> int:
  command = [
    sys.executable,
    '-m',
    'wam_jax.train',
    '--config=configs/tiny.py:smoke',
    '--config.log_every=1',
    f'--config.steps={_STEPS.value}',
    f'--config.save_every={_SAVE_EVERY.value}',
  ]
  with tempfile.TemporaryDirectory(prefix='wam_jax_kills_') as scratch:
    root = pathlib.Path(_WORKDIR.value or scratch).expanduser().absolute()
    if any((root / name).exists() for name in ('straight', 'killed')):
      raise ValueError(f'--workdir={root} has runs already; pass an empty directory.')
    found = work.measure(
      [*command, f'--compilation_cache={root / "programs"}'],
      root,
      _KILLS.value,
      _STEPS.value,
      _SAVE_EVERY.value,
      _SEED.value,
      lambda line: print(line, file=sys.stderr, flush=True),
    )
  print(work.show(found))
  cli.write_json(found)
  return 1 if found['differences'] else 0


if __name__ == '__main__':
  cli.run(main)
