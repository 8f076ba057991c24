"""Tiny world action model for a world that moves while the policy thinks: reach an object that
drifts (`reach_moving`). From the weights of configs/tiny.py.

python -m wam_jax.train --config=configs/tiny_moving.py --workdir=DIR \
    --config.init_from=WORKDIR_OF_TINY
python -m benchmarks.latency --workdir=DIR
"""

from configs import tiny
from wam_jax import presets


def get_config(arg: str = ''):
  c = tiny.get_config()
  c.name = 'tiny_moving'
  c.steps = 3000
  c.data.mixture = {'disc': presets.tabletop_dataset(c, 'disc', 'reach_moving', 4000)}
  # Every chunk sees one before it, in which the object shows where it goes.
  c.sample.history = 'window'
  c.evaluation.tasks = ('reach_moving',)
  return presets.smoke(c) if arg == 'smoke' else c
