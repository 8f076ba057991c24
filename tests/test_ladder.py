"""The rungs of `benchmarks.control_step` compute the same chunk, and count what they do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.control_step import counting
from benchmarks.control_step import rungs
from benchmarks.control_step import work
from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import apart
from wam_jax.control import policy as policy_lib
from wam_jax.control import quantize

MACHINE = work.Machine(flops=1e9, bytes_per_s=1e9)


def make_config() -> cfg.TrainConfig:
  """Few and narrow layers, a history of a frame and two chunks of two frames."""
  config = work.make_config('tiny', layers=1)
  model = dataclasses.replace(
    config.model, dim=16, mlp_dim=32, action_hidden=8, frames_per_chunk=2, max_chunks=3
  )
  return dataclasses.replace(config, model=model)


def test_economies_leave_the_actions_as_they_were(monkeypatch):
  monkeypatch.setattr(apart, 'LEAST_WIDTH', 1)
  names = ('naive', 'cache', 'batched', 'flash1', 'sweep', 'apart')
  found = work.climb(make_config(), MACHINE, names=names, rounds=2)
  rows = found['rungs']
  assert set(rows) == set(names)
  compared = {name: row['error'] for name, row in rows.items() if 'error' in row}
  assert set(compared) == {'cache', 'batched', 'sweep', 'apart'}
  # Float32, sums in another order, over 16 guided steps.
  assert max(compared.values()) < 1e-4
  # Running the past again and again is what costs most; branches in a pass cost what they cost.
  assert rows['naive']['flops'] > 2 * rows['cache']['flops']
  # Each of the two branches runs its prompt again, at each of the steps.
  assert rows['cache']['flops'] > rows['batched']['flops']
  assert rows['batched']['flops'] > 10 * rows['flash1']['flops']


@pytest.mark.slow
def test_quantized_kernels_take_fewer_bytes_and_give_nearly_the_same_actions():
  found = work.climb(make_config(), MACHINE, names=('act_only4', 'quantized'), rounds=2)
  whole, quantized = found['rungs'].values()
  assert whole['flops'] == quantized['flops']
  # Eight kernels of heads and two of the feed-forward part lose three of four bytes a number, and
  # have four for each output; four passes read them.
  numbers, outputs = 8 * 16 * 16 + 2 * 16 * 32, 8 * 16 + 32 + 16
  assert whole['bytes'] - quantized['bytes'] == 4 * (3 * numbers - 4 * outputs)
  # Kernels have 8 bits.
  assert 1e-5 < quantized['error'] < 0.1


def test_a_quantized_rung_without_its_library_is_left_out_and_said_so(monkeypatch):
  monkeypatch.setattr(quantize.importlib.util, 'find_spec', lambda name: None)
  found = work.climb(make_config(), MACHINE, names=('quantized',), rounds=2)
  assert not found['rungs']
  assert "needs the package qwix: pip install -e '.[quant]'" in found['left_out']['quantized']


def test_layers_that_control_keeps_together_have_no_rung_and_it_is_said_so():
  found = work.climb(make_config(), MACHINE, names=('apart',), rounds=2)
  assert not found['rungs']
  assert 'layers of width 16 stay together on cpu' in found['left_out']['apart']


@pytest.mark.slow
def test_rungs_beyond_the_patience_of_a_machine_are_left_out_and_said_so():
  slow = work.Machine(flops=1.0, bytes_per_s=1.0)
  found = work.climb(make_config(), slow, names=('naive',), rounds=2)
  assert not found['rungs']
  assert 'FLOPs a chunk' in found['left_out']['naive']


def test_products_are_counted_as_often_as_they_run():
  x = jnp.ones((3, 4))

  def twice_in_a_loop_and_until_done(x):
    y, _ = jax.lax.scan(lambda y, _: (y @ jnp.ones((4, 4)), None), x, length=2)
    return jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ jnp.ones((4, 4)), y)

  once = 2 * 3 * 4 * 4
  assert counting.count_flops(twice_in_a_loop_and_until_done, x, evaluations=5) == (2 + 5) * once


def test_a_rung_slower_than_those_before_it_is_named():
  rows = {
    'sweep': {'p50_ms': 2.0},
    'pass1_actions4': {'p50_ms': 3.0},  # It is meant to take longer.
    'act_only4': {'p50_ms': 2.5},
  }
  assert rungs.list_slower(rows) == ['act_only4 by 25%']
  assert rungs.list_slower({**rows, 'act_only4': {'p50_ms': 2.09}}) == []


@pytest.mark.slow
def test_one_trace_a_program_over_a_thousand_chunks_with_resets_and_new_prompts():
  """A second trace would stop a robot for the time of a compilation."""
  sample = dataclasses.replace(test_policy.JOINT, history='sliding')
  brain = policy_lib.Policy(test_policy.MODEL, sample, cfg.FlowConfig())
  params, frozen = test_policy.random_params(), test_policy.fitted()
  rng = np.random.default_rng(0)
  state = None
  for chunk in range(1000):
    if chunk % 100 == 0:
      prompt_BP = rng.integers(1, 16, test_policy.PROMPT_BP.shape, dtype=np.int32)
      task = test_policy.TASK.replace(prompt_ids_BP=prompt_BP)
      key = jax.random.key(chunk)
      state = brain.reset(params, frozen, task, test_policy.FRAMES[:, 0], key)
    frames = rng.integers(0, 256, (2, test_policy.r, *test_policy.FRAMES.shape[2:]), dtype=np.uint8)
    seen = types.Observation(frames_BRIJ3=frames, proprio_BX=test_policy.PROPRIO[:, 0])
    action, _, state = brain.step(params, frozen, state, seen)
  assert np.isfinite(action).all()
  assert state.frames == 100
  assert brain.traced == dict.fromkeys(('reset', 'observe', 'anchor', 'begin', 'act'), 1)
