"""Makes stand-ins for what is too large to have at hand: a small random checkpoint in the layout of
the released ones, and episodes with DROID's keys.

python -m data.stand_in --output=~/wam/stand_in

The weights have learnt nothing, and the episodes are of the simulated arm: to try commands, not to
measure. OUTPUT/droid/1.0.0 is the dataset, OUTPUT/dreamzero the checkpoint, whose statistics are
those of the dataset.
"""

from __future__ import annotations

from absl import flags

from data.stand_in import checkpoint
from wam_jax import cli
from wam_jax.data import embodiments
from wam_jax.data import robot as robot_lib
from wam_jax.data import scan
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import texts

with cli.needs('sim'):
  from data.stand_in import episodes

_OUTPUT = flags.DEFINE_string('output', None, 'Directory of both.', required=True)
_EPISODES = flags.DEFINE_integer('episodes', 4, 'Of the dataset, some 8 s each.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives others.', lower_bound=0)


def main(unused_argv: list[str]) -> None:
  dataset = episodes.build(_OUTPUT.value, _EPISODES.value, _SEED.value)
  print(f'episodes: {dataset}')
  output = dataset.parent.parent / 'dreamzero'
  if output.exists():
    print(f'checkpoint: {output}, already there')
    return
  record = embodiments.get('droid_wan22')
  recorded = sources.Episodes(str(dataset), 'train', record)
  found = statistics.Finding(recorded)
  # All that a run would otherwise find out before its first step.
  scan.complete([found, scan.Spans(recorded), scan.Names(recorded), texts.Texts(recorded)])
  robot = robot_lib.Robot(id=0, record=record, statistics=found.statistics, center_crop=True)
  checkpoint.write(output, robot, _SEED.value)
  print(f'checkpoint: {output}')


if __name__ == '__main__':
  cli.run(main)
