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

from benchmarks import provenance
from benchmarks.kills import work
from wam_jax import cli

_KILLS = flags.DEFINE_integer('kills', 20, 'Number of kills.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 300, 'Steps of the run.', lower_bound=20)
_SAVE_EVERY = flags.DEFINE_integer(
  'save_every', 10, 'Steps between its checkpoints.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the moments.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory for the runs; default: a temporary one.')
cli.define_json()


def main(unused_argv: list[str]) -> int:
  settings = work.Settings(
    kills=_KILLS.value, steps=_STEPS.value, save_every=_SAVE_EVERY.value, seed=_SEED.value
  )
  with tempfile.TemporaryDirectory(prefix='wam_jax_kills_') as scratch:
    root = pathlib.Path(_WORKDIR.value or scratch).expanduser().absolute()
    if any((root / name).exists() for name in ('straight', 'killed')):
      raise ValueError(f'--workdir={root} has runs already; pass an empty directory.')
    found = work.measure(_make_command(settings, root / 'programs'), root, settings, _say)
  print(work.show(found))
  provenance.write(found)
  return 1 if found['differences'] else 0


def _make_command(settings: work.Settings, programs: pathlib.Path) -> list[str]:
  """The run; what it compiles is kept in `programs`, so that a start takes seconds."""
  return [
    sys.executable,
    '-m',
    'wam_jax.train',
    '--config=configs/tiny.py:smoke',
    '--config.log_every=1',
    f'--config.steps={settings.steps}',
    f'--config.save_every={settings.save_every}',
    f'--compilation_cache={programs}',
  ]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
  cli.run(main)
