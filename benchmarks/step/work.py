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

_WARM_UP = 3  # Steps before any is timed: compilation, memory.


def make_batch(config: cfg.TrainConfig, mesh: jax.sharding.Mesh) -> types.Batch:
  """Random numbers in the shapes that the config trains on; nothing is padding."""
  rng = np.random.default_rng(0)

  def draw(x):
    if x.dtype == np.uint8:
      return rng.integers(0, 256, x.shape, np.uint8)
    if x.dtype == np.float32:
      return rng.normal(size=x.shape).astype(np.float32)
    return np.ones(x.shape, x.dtype)

  _, batch = abstract.arguments(config, mesh)
  return jax.tree.map(draw, batch)


def start(config: cfg.TrainConfig) -> tuple[train_step.TrainState, types.Batch, Callable]:
  """A state, a batch, and the compiled step."""
  # One device: PyTorch's step has one, too.
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  batch = make_batch(config, mesh)
  frozen = train_step.fit_frozen(config.model, [batch])
  state, shardings = train_step.init_state(config, mesh, frozen)
  return state, batch, train_step.make_train_step(config, mesh, shardings)


def compare(config: cfg.TrainConfig) -> dict[str, float]:
  """Loss of both and the largest difference between their gradients, relative to the largest
  gradient.

  Raises:
    ValueError: the config asks for what benchmarks/step/pytorch.py lacks, or they are not the same
      model.
  """
  _check_is_covered(config)
  pytorch = _import_pytorch()
  state, batch, _ = start(config)

  # Weights that start at zero would hide the gradients of those behind them.
  def disturb(x):
    return x + 0.02 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)

  params = jax.tree.map(disturb, state.params)
  key = jax.random.key(1)
  noise = train_step.sample_noise(config.model, config.flow, key, state.frozen, batch)

  def compute_loss(params):
    loss, _ = train_step.loss_fn(config, params, state.frozen, batch, noise)
    return loss

  loss, grads = jax.value_and_grad(compute_loss)(params)
  want = pytorch.make_weights(config.model, grads)

  trainer = pytorch.Trainer(config, params, state.frozen.tokenizer, batch)
  their_loss = trainer.loss(jax.tree.map(pytorch.to_tensor, noise))
  their_loss.backward()
  got = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}

  error = max(float((got[name] - want[name]).abs().max()) for name in got)
  largest = max(float(x.abs().max()) for x in want.values())
  found = {
    'wam_jax_loss': float(loss),
    'pytorch_loss': their_loss.item(),
    'gradient_error': error / largest,
  }
  loss_error = abs(found['wam_jax_loss'] / found['pytorch_loss'] - 1)
  # Float32 sums in another order stay below; another model would be far above.
  if loss_error > 1e-5 or found['gradient_error'] > 1e-4:
    raise ValueError(f'benchmarks/step/pytorch.py is not the model of this config: {found}.')
  return found


def serve(config: cfg.TrainConfig, part: str, threads: int) -> None:
  """A contestant: steps for as long as it is asked to.

  Args:
    part: 'wam_jax', 'pytorch' or 'pytorch_compiled'.
    threads: those that PyTorch uses; XLA takes all cores of the process.
  """
  if part == 'wam_jax':
    take_step = _start_ours(config)
  else:
    take_step = _start_pytorch(config, threads, compiled=part == 'pytorch_compiled')

  def work():
    take_step()
    return config.batch_size

  for _ in range(_WARM_UP):
    work()
  contest.serve(work)


def _start_ours(config: cfg.TrainConfig) -> Callable[[], None]:
  state, batch, step = start(config)

  def take_step():
    nonlocal state
    state, metrics = step(state, batch)
    # JAX returns before it has computed.
    metrics['loss'].block_until_ready()

  return take_step


def _start_pytorch(config: cfg.TrainConfig, threads: int, compiled: bool) -> Callable[[], None]:
  pytorch = _import_pytorch()
  import torch

  # As many as the cores that this contestant has; the default is by the whole machine.
  torch.set_num_threads(threads)
  state, batch, _ = start(config)
  trainer = pytorch.Trainer(config, state.params, state.frozen.tokenizer, batch, compiled)
  return trainer.step


def _check_is_covered(config: cfg.TrainConfig) -> None:
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


def _import_pytorch():
  """benchmarks/step/pytorch.py; here, since our own contestant needs no PyTorch."""
  try:
    from benchmarks.step import pytorch
  except ModuleNotFoundError as error:
    raise ValueError(
      f"The baseline needs the package {error.name}: pip install -e '.[torch]'."
    ) from error
  return pytorch
