"""Layers apart: the same policy, and no pass that copies a layer's weights."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.control import test_policy
from tests.control import test_split
from wam_jax import config as cfg
from wam_jax.aot import control
from wam_jax.aot import hlo
from wam_jax.control import apart
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.control import weights
from wam_jax.models import initial
from wam_jax.models import slots

# Hidden units that no number of tokens has.
MODEL = dataclasses.replace(test_policy.MODEL, mlp_dim=136)
FLASH = dataclasses.replace(test_policy.FLASH, action_steps=2, approximate_kept_video=True)


def live(sample, params, calls=4):
  """Actions and latents of the first calls of an episode, anchors among them."""
  brain = policy_lib.Policy(test_policy.MODEL, sample, cfg.FlowConfig())
  frozen = test_policy.fitted()
  frame = test_policy.FRAMES[:, 0]
  state = brain.reset(params, frozen, test_policy.TASK, frame, jax.random.key(0))
  given = []
  for call in range(calls):
    action, latents, state = brain.step(params, frozen, state, test_policy.observe(call))
    given += [action, latents]
  assert brain.traces == 1
  return given


@pytest.mark.parametrize('kernels', ['dense', 'cudnn'])
@pytest.mark.parametrize('sample', [test_policy.JOINT, FLASH], ids=['joint', 'kept video'])
def test_layers_apart_act_as_layers_in_one_array(sample, kernels, monkeypatch):
  stacked = jax.device_get(test_policy.random_params())
  want = live(sample, stacked)
  # What GPUs run, without their kernels.
  monkeypatch.setattr(slots, 'choose', lambda *_: kernels)
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  for g, w in zip(live(sample, apart.take(stacked)), want, strict=True):
    np.testing.assert_allclose(g, w, atol=1e-5)


@pytest.fixture
def narrow_layers_apart(monkeypatch):
  monkeypatch.setattr(apart, 'LEAST_WIDTH', 1)


@pytest.mark.parametrize('precision', ['int8', 'w8a8', 'fp8'])
def test_quantized_layers_are_the_same_apart(precision, monkeypatch):
  pytest.importorskip('qwix', reason="pip install -e '.[quant]'")
  sample = dataclasses.replace(test_policy.JOINT, precision=precision)
  place = lambda: weights.place(test_policy.random_params(), None, test_policy.MODEL, sample)[0]
  stacked = place()
  monkeypatch.setattr(apart, 'LEAST_WIDTH', 1)
  jax.tree.map(np.testing.assert_array_equal, place(), apart.take(stacked))


@pytest.mark.parametrize('mesh', ['data=2', 'tensor=2'])
def test_layers_apart_are_split_over_devices_too(mesh, narrow_layers_apart):
  alone, several = (test_split.Robots(test_split.KEPT, m) for m in ((), (mesh,)))
  assert len(several.params['blocks']) == test_split.MODEL.num_layers
  for got, want in zip(several.live(calls=3), alone.live(calls=3), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.usefixtures('narrow_layers_apart')
def test_what_was_placed_once_is_not_copied_again():
  sample = test_policy.JOINT
  placed, _ = weights.place(test_policy.random_params(), None, test_policy.MODEL, sample)
  again, _ = weights.place(placed, None, test_policy.MODEL, sample)
  assert len(placed['blocks']) == test_policy.MODEL.num_layers
  pointers = lambda params: [x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)]
  assert pointers(again) == pointers(placed)


@pytest.mark.usefixtures('narrow_layers_apart')
@pytest.mark.parametrize('precision', ['bfloat16', 'int8', 'fp8'])
def test_what_was_placed_wide_can_be_placed_narrow(precision):
  if precision != 'bfloat16':
    pytest.importorskip('qwix', reason="pip install -e '.[quant]'")
  sample = dataclasses.replace(test_policy.JOINT, precision=precision)
  wide, _ = weights.place(test_policy.random_params(), None, test_policy.MODEL)
  got, _ = weights.place(wide, None, test_policy.MODEL, sample)
  want, _ = weights.place(test_policy.random_params(), None, test_policy.MODEL, sample)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def list_copies(params):
  """Operations of `act` that write a kernel of the feed-forward layers anew."""
  brain = policy_lib.Policy(MODEL, FLASH, cfg.FlowConfig())
  arguments = (params, test_policy.fitted(), test_policy.TASK, test_policy.FRAMES[:, 0])
  memory, eyes = jax.eval_shape(brain.programs['reset'], *arguments, jax.random.key(0))
  asked = memory_lib.Asked(test_policy.PROPRIO[:, 0])
  lowered = brain.programs['act'].lower(params, memory, eyes.latents_BFHWC, np.int32(1), asked)
  program = hlo.parse(lowered.compile().as_text())
  kernel = MODEL.dim * MODEL.mlp_dim
  return control.list_weight_copies(program, {kernel, MODEL.num_layers * kernel})


def test_no_pass_copies_the_weights_of_a_layer():
  params = nn.unbox(initial.init(MODEL, jax.random.key(0)))
  assert list_copies(params)  # What layers in one array cost.
  assert not list_copies(apart.take(params))
