"""A stand-in for the compiled update that tests of the loop use: it compiles at once and its loss shows the batch.

  python -m tests.counting_step PORT PROCESS_ID WORKDIR DATASET

runs the training loop with it as one of two processes.
"""
from __future__ import annotations

import pathlib
import sys
import time

import jax
import jax.numpy as jnp

from tests import train_config
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train
from wam_jax import train_step


def make_config(dataset: str) -> cfg.TrainConfig:
  """`train_config` on `dataset`, with no held-out loss, which would compile the model."""
  c = train_config.get_config()
  c.eval_every, c.data.mixture.disc.path = 0, dataset
  return cfg.from_config_dict(c)


def make_train_step(config: cfg.TrainConfig, mesh: jax.sharding.Mesh, shardings):
  """Counts; the loss is the mean action of the batch over all hosts, and changes with the order of samples."""
  del shardings
  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  mean = jax.jit(lambda action, sample: jnp.mean(action) + jnp.mean(sample), in_shardings=batch_sharding)

  def step(state, batch):
    time.sleep(0.02)
    loss = mean(batch.action_BAU, batch.sample_B2)
    return state.replace(step=state.step + 1), {'loss': loss}

  return step


if __name__ == '__main__':
  port, process_id, workdir, dataset = sys.argv[1:]
  jax.distributed.initialize(f'localhost:{port}', 2, int(process_id))
  train_step.make_train_step = make_train_step
  train.train(make_config(dataset), pathlib.Path(workdir))
