"""The training step that `benchmarks.step` times: its input, the comparison with PyTorch, and the
loop.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from benchmarks import contest
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.aot import abstract


def make_batch(config: cfg.TrainConfig, mesh: jax.sharding.Mesh) -> types.Batch:
  """Random numbers in the shapes that the config trains on; nothing is padding."""
  rng = np.random.default_rng(0)

  def draw(x):
    if x.dtype == bool:
      return np.ones(x.shape, bool)
    if x.dtype == np.uint8:
      return rng.integers(0, 256, x.shape, np.uint8)
    return (
      rng.normal(size=x.shape).astype(np.float32)
      if x.dtype == np.float32
      else np.ones(x.shape, x.dtype)
    )

  return jax.tree.map(draw, abstract.arguments(config, mesh)[1])


def start(config: cfg.TrainConfig) -> tuple[train_step.TrainState, types.Batch, Callable]:
  """A state, a batch, and the compiled step."""
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  batch = make_batch(config, mesh)
  state, shardings = train_step.init_state(
    config, mesh, train_step.fit_frozen(config.model, [batch])
  )
  return state, batch, train_step.make_train_step(config, mesh, shardings)


def compare(config: cfg.TrainConfig) -> dict[str, float]:
  """Loss of both and the largest difference between their gradients, relative to the largest
  gradient.

  Raises:
    ValueError: the config asks for what benchmarks/step/pytorch.py lacks, or they are not the same
      model.
  """
  m, f = config.model, config.flow
  for key, value, only in (
    ('model.text.kind', m.text.kind, 'word'),
    ('model.tokenizer.kind', m.tokenizer.kind, 'patch'),
    ('flow.schedule', f.schedule, 'coupled'),
    ('flow.weighting', f.weighting, 'uniform'),
    ('flow.action_mean', f.action_mean, 'real'),
  ):
    if value != only:
      raise ValueError(
        f'config.{key}={value!r} is not in benchmarks/step/pytorch.py; use {only!r}.'
      )
  import torch

  from benchmarks.step import pytorch

  state, batch, _ = start(config)
  params = jax.tree.map(
    lambda x: x + 0.02 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32),
    state.params,
  )  # Zeros of the start would hide gradients.
  key = jax.random.key(1)
  noise = train_step.sample_noise(config.model, config.flow, key, state.frozen, batch)
  loss, grads = jax.value_and_grad(
    lambda p: train_step.loss_fn(config, p, state.frozen, batch, noise)[0]
  )(params)
  trainer = pytorch.Trainer(config, params, state.frozen.tokenizer, batch)
  theirs = trainer.loss(jax.tree.map(lambda x: torch.from_numpy(np.array(x)), noise))
  theirs.backward()
  want = pytorch.weights(config.model, grads)
  error = max(
    float((p.grad - want[name]).abs().max()) for name, p in trainer.model.named_parameters()
  )
  largest = max(float(x.abs().max()) for x in want.values())
  found = {
    'wam_jax_loss': float(loss),
    'pytorch_loss': theirs.item(),
    'gradient_error': error / largest,
  }
  if (
    abs(found['wam_jax_loss'] / found['pytorch_loss'] - 1) > 1e-5 or found['gradient_error'] > 1e-4
  ):
    raise ValueError(f'benchmarks/step/pytorch.py is not the model of this config: {found}.')
  return found


def serve(config: cfg.TrainConfig, part: str, threads: int) -> None:
  """A contestant: steps for as long as it is asked to."""
  state, batch, step = start(config)
  if part == 'wam_jax':

    def one():
      nonlocal state
      state, metrics = step(state, batch)
      metrics['loss'].block_until_ready()
      return config.batch_size
  else:
    import torch

    from benchmarks.step import pytorch

    torch.set_num_threads(threads)
    trainer = pytorch.Trainer(
      config, state.params, state.frozen.tokenizer, batch, compiled=part == 'pytorch_compiled'
    )

    def one():
      trainer.step()
      return config.batch_size

  for _ in range(3):
    one()
  contest.serve(one)
