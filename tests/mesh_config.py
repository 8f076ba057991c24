"""Four steps of the smallest run on a mixture of unequal weights, with heads for four devices."""

import dataclasses

from tests import train_config
from wam_jax import config as cfg


def get_config(arg: str = ''):
  c = train_config.get_config(arg)
  c.steps = 4
  c.log_every = 1
  c.save_every = 4
  c.eval_every = 2
  c.eval_batches = 2
  c.model.num_heads = 4
  # The same robot, three times as often.
  c.data.mixture.often = dataclasses.asdict(
    cfg.DatasetConfig(embodiment='tabletop_disc', weight=3.0)
  )
  return c
