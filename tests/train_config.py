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
  c.steps, c.batch_size, c.log_every, c.save_every, c.eval_every, c.keep = 60, 8, 2, 10, 30, 2
  c.model.dim, c.model.mlp_dim, c.model.num_layers, c.model.action_hidden = 16, 32, 1, 16
  c.model.text.dim, c.model.text.layers = 16, 1
  c.model.tokenizer.fit_windows = 32
  c.data.embodiments = ('tabletop_disc',)
  c.data.mixture = {'disc': dataclasses.asdict(cfg.DatasetConfig(embodiment='tabletop_disc'))}
  c.optimizer.learning_rate, c.optimizer.warmup_steps, c.optimizer.ema_decay = 1e-3, 4, 0.9
  return c
