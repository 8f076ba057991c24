"""A training step of a small model on this machine's CPU, against the same step in PyTorch.

  python -m benchmarks.step [--config=configs/tiny.py] [--json=FILE]

The same weights, batch and noise go through both; loss and gradients are compared before anything is timed. Then the
contestants, a process each on the same cores, take turns: this project, PyTorch (the named baseline), and PyTorch by
torch.compile. A step is from a batch in memory to new weights: tokenizer, noise, loss, gradients, clipping, AdamW, mean
of the weights. Needs PyTorch (pip install -e '.[torch]'). The batch is random: no time depends on what it holds.
"""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks import contest
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.aot import abstract

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/tiny.py', 'Config file; any key can be set.')
_THREADS = flags.DEFINE_integer('threads', 2, 'Of each contestant, on so many cores.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each.', 1)
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Of a turn.', 0.01)
_PART = flags.DEFINE_enum('part', '', ('', 'wam_jax', 'pytorch', 'pytorch_compiled'),
                          'For the program itself: what this process works on.')
_JSON = flags.DEFINE_string('json', None, 'File for what is printed, as JSON.')

CONTESTANTS = ('pytorch', 'wam_jax', 'pytorch_compiled')


def make_batch(config: cfg.TrainConfig, mesh: jax.sharding.Mesh) -> types.Batch:
  """Random numbers in the shapes that the config trains on; nothing is padding."""
  rng = np.random.default_rng(0)

  def draw(x):
    if x.dtype == bool:
      return np.ones(x.shape, bool)
    if x.dtype == np.uint8:
      return rng.integers(0, 256, x.shape, np.uint8)
    return rng.normal(size=x.shape).astype(np.float32) if x.dtype == np.float32 else np.ones(x.shape, x.dtype)

  return jax.tree.map(draw, abstract.arguments(config, mesh)[1])


def start(config: cfg.TrainConfig) -> tuple[train_step.TrainState, types.Batch, Callable]:
  """A state, a batch, and the compiled step."""
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  batch = make_batch(config, mesh)
  state, shardings = train_step.init_state(config, mesh, train_step.fit_frozen(config, [batch]))
  return state, batch, train_step.make_train_step(config, mesh, shardings)


def compare(config: cfg.TrainConfig) -> dict[str, float]:
  """Loss of both and the largest difference between their gradients, relative to the largest gradient.

  Raises:
    ValueError: the config asks for what benchmarks/pytorch.py lacks, or they are not the same model.
  """
  m, f = config.model, config.flow
  for key, value, only in (
      ('model.text.kind', m.text.kind, 'word'), ('model.tokenizer.kind', m.tokenizer.kind, 'patch'),
      ('flow.schedule', f.schedule, 'coupled'), ('flow.weighting', f.weighting, 'uniform'),
      ('flow.action_mean', f.action_mean, 'real')):
    if value != only:
      raise ValueError(f'config.{key}={value!r} is not in benchmarks/pytorch.py; use {only!r}.')
  from benchmarks import pytorch

  import torch

  state, batch, _ = start(config)
  params = jax.tree.map(lambda x: x + 0.02 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32),
                        state.params)  # Zeros of the start would hide gradients.
  noise = train_step.sample_noise(config, jax.random.key(1), state.frozen, batch)
  loss, grads = jax.value_and_grad(lambda p: train_step.loss_fn(config, p, state.frozen, batch, noise)[0])(params)
  trainer = pytorch.Trainer(config, params, state.frozen.tokenizer, batch)
  theirs = trainer.loss(jax.tree.map(lambda x: torch.from_numpy(np.array(x)), noise))
  theirs.backward()
  want = pytorch.weights(config.model, grads)
  error = max(float((p.grad - want[name]).abs().max()) for name, p in trainer.model.named_parameters())
  largest = max(float(x.abs().max()) for x in want.values())
  found = {'wam_jax_loss': float(loss), 'pytorch_loss': theirs.item(), 'gradient_error': error / largest}
  if abs(found['wam_jax_loss'] / found['pytorch_loss'] - 1) > 1e-5 or found['gradient_error'] > 1e-4:
    raise ValueError(f'benchmarks/pytorch.py is not the model of this config: {found}.')
  return found


def work(config: cfg.TrainConfig, part: str, threads: int) -> None:
  """A contestant: steps for as long as it is asked to."""
  state, batch, step = start(config)
  if part == 'wam_jax':
    def one():
      nonlocal state
      state, metrics = step(state, batch)
      metrics['loss'].block_until_ready()
      return config.batch_size
  else:
    from benchmarks import pytorch

    import torch
    torch.set_num_threads(threads)
    trainer = pytorch.Trainer(config, state.params, state.frozen.tokenizer, batch, compiled=part == 'pytorch_compiled')
    def one():
      trainer.step()
      return config.batch_size
  for _ in range(3):
    one()
  contest.serve(one)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise ValueError(f'Unexpected arguments {argv[1:]}; every option starts with --.')
  config = cfg.from_config_dict(_CONFIG.value.to_dict())
  if _PART.value:
    cli.keep_memory()  # As the train command does; for all alike.
    return work(config, _PART.value, _THREADS.value)
  cores = sorted(os.sched_getaffinity(0))[:_THREADS.value]
  if len(cores) < _THREADS.value:
    raise ValueError(f'--threads={_THREADS.value} must be at most the {len(cores)} cores of this process.')
  same = compare(config)
  print(f'loss {same["wam_jax_loss"]:.6f}, in PyTorch {same["pytorch_loss"]:.6f}; gradients differ by '
        f'{same["gradient_error"]:.1e} of the largest\n\n{"":<20}{"steps/s":>9}{"samples/s":>11}{"ratio":>8}')
  arguments = [a for a in sys.argv[1:] if not a.startswith(('--json', '--rounds', '--seconds'))]
  rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
  with contextlib.ExitStack() as stack:
    contestants = {name: stack.enter_context(contest.Contestant(
        [sys.executable, '-m', 'benchmarks.step', f'--part={name}', *arguments], cores)) for name in CONTESTANTS}
    for _ in range(_ROUNDS.value):
      for name, contestant in contestants.items():
        turn = contestant.turn(_SECONDS.value * len(cores))
        rates[name].append(turn.samples / turn.wall_s)
  paired = lambda found: statistics.median(a / b for a, b in zip(found, rates['pytorch']))
  table = [{'name': name, 'samples_per_s': statistics.median(found), 'ratio': paired(found)}
           for name, found in rates.items()]
  for row in table:
    print(f'{row["name"]:<20}{row["samples_per_s"] / config.batch_size:>9.2f}{row["samples_per_s"]:>11.1f}'
          f'{row["ratio"]:>8.2f}')
  if _JSON.value:
    pathlib.Path(_JSON.value).expanduser().write_text(json.dumps({'same': same, 'table': table}, indent=2) + '\n')


if __name__ == '__main__':
  cli.run(main)
