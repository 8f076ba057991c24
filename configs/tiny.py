"""Tiny world action model: reach what the words name, coupled noise. Needs no download and no
accelerator.

python -m wam_jax.train --config=configs/tiny.py --workdir=DIR
"""

from wam_jax import config as cfg

# The order gives every robot its category in the model, so that runs on other robots can start from
# this one.
ROBOTS = ('disc', 'arm', 'cart', 'human')


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'tiny'
  c.steps, c.batch_size = 4000, 32
  c.log_every, c.save_every = 50, 500
  c.model.num_embodiments, c.model.scan_unroll = len(ROBOTS), 4
  c.data.embodiments = tuple(f'tabletop_{robot}' for robot in ROBOTS)
  c.data.mixture = {'disc': cfg.tabletop_dataset('disc', 'reach', 8000)}
  c.flow.shift, c.flow.weighting, c.flow.action_weight = 3.0, 'uniform', 4.0
  c.sample.shift, c.sample.steps = 3.0, 4
  o = c.optimizer
  o.learning_rate, o.warmup_steps, o.hold_fraction = 2e-3, 150, 0.5
  o.b1, o.b2, o.weight_decay, o.ema_decay = 0.9, 0.98, 0.01, 0.995
  return cfg.smoke(c) if arg == 'smoke' else c
