"""Tiny world action model: reach what the words name, coupled noise. Needs no download and no
accelerator.

python -m wam_jax.train --config=configs/tiny.py --workdir=DIR
"""

from wam_jax import config as cfg
from wam_jax import presets

# The order gives every robot its category in the model, so that runs on other robots can start from
# this one.
ROBOTS = ('disc', 'arm', 'cart', 'human')


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'tiny'
  c.steps = 4000
  c.batch_size = 32
  c.log_every = 50
  c.save_every = 500

  c.model.num_embodiments = len(ROBOTS)
  c.model.scan_unroll = 4  # No loop over layers: faster on CPU.

  c.data.embodiments = tuple(f'tabletop_{robot}' for robot in ROBOTS)
  c.data.mixture = {'disc': presets.tabletop_dataset(c, 'disc', 'reach', 8000)}

  presets.train_small(c)
  c.optimizer.learning_rate = 2e-3
  return presets.smoke(c) if arg == 'smoke' else c
