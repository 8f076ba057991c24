"""Reach, place and push with three robots, and a human hand that has video only; a curriculum from
configs/tiny.py.

python -m wam_jax.train --config=configs/tiny_tasks.py --workdir=DIR \
    --config.init_from=WORKDIR_OF_TINY
"""

from configs import tiny
from wam_jax import presets

TASKS = 'reach,place,push'


def get_config(arg: str = ''):
  c = tiny.get_config()
  c.name = 'tiny_tasks'
  c.steps = 10_000
  c.save_every = 1000
  c.model.actions_per_chunk = 12  # The arm's 15 Hz; the others fill fewer rows.
  c.data.mixture = {
    robot: presets.tabletop_dataset(c, robot, TASKS, 3000) for robot in ('disc', 'arm', 'cart')
  }
  c.data.mixture.human = presets.tabletop_dataset(c, 'human', TASKS, 1000, weight=0.3)
  c.evaluation.tasks = tuple(TASKS.split(','))
  return presets.smoke(c) if arg == 'smoke' else c
