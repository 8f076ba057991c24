"""The smallest real run: 60 steps of a one-layer model on two dozen tabletop episodes. Tests set
the paths.
"""

import dataclasses

from wam_jax import config as cfg


def get_config(arg: str = ''):
  if arg:
    raise ValueError(f'This config takes no argument, got {arg!r}.')
  c = cfg.base()
  c.name = 'test'
  c.steps = 60
  # One sample for each of the 8 devices that the tests simulate.
  c.batch_size = 8
  c.log_every = 2
  c.save_every = 10
  c.eval_every = 30
  c.keep = 2
  c.model.dim = 16
  c.model.mlp_dim = 32
  c.model.num_layers = 1
  c.model.action_hidden = 16
  c.model.text.dim = 16
  c.model.text.layers = 1
  c.model.tokenizer.fit_windows = 32
  c.data.embodiments = ('tabletop_disc',)
  c.data.mixture = {'disc': dataclasses.asdict(cfg.DatasetConfig(embodiment='tabletop_disc'))}
  c.optimizer.learning_rate = 1e-3
  c.optimizer.warmup_steps = 4
  # Over ten steps, so that averages follow within a run of sixty.
  c.optimizer.ema_decay = 0.9
  return c
