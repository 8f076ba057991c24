"""Tiny world action model: reach what the words name, coupled noise. Needs no download and no accelerator.

python -m wam_jax.train --config=configs/tiny.py --workdir=DIR
"""
from wam_jax import config as cfg

DATA = '~/wam_jax_data'


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'tiny'
  c.steps, c.batch_size = 5000, 32
  c.log_every, c.save_every = 50, 500
  c.model.scan_unroll = 4
  c.data.embodiments = ('tabletop_disc',)
  c.data.mixture = {'tabletop_disc': dict(
      path=f'{DATA}/tabletop/disc_reach/1.0.0', split='train', embodiment='tabletop_disc', weight=1.0,
      prepare=f'data.tabletop --output={DATA} --embodiment=disc --tasks=reach --episodes=8000 --workers=2')}
  c.flow.shift, c.flow.weighting, c.flow.action_weight = 3.0, 'uniform', 4.0
  c.sample.shift, c.sample.steps = 3.0, 4
  o = c.optimizer
  o.learning_rate, o.warmup_steps, o.hold_fraction = 2e-3, 150, 0.5
  o.b1, o.b2, o.weight_decay, o.ema_decay = 0.9, 0.98, 0.01, 0.995
  return c
