"""Quantized control: which kernels, how many bytes, how far off, and who may not."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import types as python_types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from tests.control import test_policy
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.control import loaded
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.control import quantize
from wam_jax.control import weights
from wam_jax.models import quantized

MODEL = test_policy.MODEL
QUANTIZED = sorted(quantize.SCHEMES)
# Of a layer: q, k, v, o of self-attention, q and o of cross-attention, both of the feed-forward.
PRODUCTS = 8
# Beside them k and v of the prompt, which are projected once.
KERNELS = 10


def sampled(precision, **keys):
  return dataclasses.replace(test_policy.JOINT, precision=precision, **keys)


@functools.cache
def host_params():
  return jax.device_get(test_policy.random_params())


@functools.cache
def placed(precision):
  """Parameters of the test's model on the device."""
  return weights.place(host_params(), None, MODEL, sampled(precision))[0]


def brain_of(sample):
  return policy_lib.Policy(cfg.choose_dtype(MODEL, sample), sample, cfg.FlowConfig())


@functools.cache
def act(precision):
  """Actions and latents of an episode's first call."""
  params = placed(precision)
  brain = brain_of(sampled(precision))
  frozen = test_policy.fitted()
  frame = test_policy.FRAMES[:, 0]
  state = brain.reset(params, frozen, test_policy.TASK, frame, jax.random.key(0))
  action, latents, _ = brain.step(params, frozen, state, test_policy.observe(0))
  return np.asarray(action), np.asarray(latents)


def kernels_of(params):
  """Kernels of the layers that are quantized."""
  is_kernel = lambda x: isinstance(x, quantized.Kernel)
  return [x for x in jax.tree.leaves(params['blocks'], is_leaf=is_kernel) if is_kernel(x)]


def count_products(precision, **keys):
  """How many products of which types each loop over layers has, at reset and in `act`."""
  sample = sampled(precision, **keys)
  params = weights.narrow(host_params(), MODEL, sample)
  brain = brain_of(sample)
  arguments = (params, test_policy.fitted(), test_policy.TASK, test_policy.FRAMES[:, 0])
  key = jax.random.key(0)
  memory, eyes = jax.eval_shape(brain.programs['reset'], *arguments, key)
  asked = memory_lib.Asked(test_policy.PROPRIO[:, 0])
  given = (memory, eyes.latents_BFHWC, np.int32(1), asked)
  jaxpr = jax.make_jaxpr(brain.programs['act'])(params, *given)
  return [c for c in _walk(jaxpr.jaxpr, inside=False) if c]


def _walk(jaxpr, inside):
  """A counter of the types of products for each scan over the layers."""
  counted = collections.Counter()
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general' and inside:
      counted[tuple(x.aval.dtype.name for x in equation.invars)] += 1
    over_layers = equation.primitive.name == 'scan' and equation.params['length'] == 2
    for below in jax.extend.core.jaxprs_in_params(equation.params):
      found = list(_walk(getattr(below, 'jaxpr', below), over_layers or inside))
      if over_layers:
        yield from found
      elif inside:
        counted += sum(found, collections.Counter())
      else:
        yield from found
  if inside:
    yield counted


@pytest.mark.parametrize('precision', QUANTIZED)
def test_kernels_of_layers_are_one_byte_a_number_on_the_device(precision):
  params = placed(precision)
  kernels = kernels_of(params)
  assert len(kernels) == KERNELS
  dtype = jnp.dtype(quantize.SCHEMES[precision].dtype)
  for kernel in kernels:
    assert kernel.values.dtype == dtype
    assert weights.count_bytes(kernel.values) == kernel.values.size
    # A scale for each output of each layer, in the place of the kernel's summed axes.
    assert kernel.scale.dtype == jnp.float32
  saved = sum(kernel.values.nbytes - kernel.scale.nbytes for kernel in kernels)
  assert weights.count_bytes(params) == weights.count_bytes(placed('bfloat16')) - saved
  # What stays wide is as with bfloat16.
  assert params['blocks']['modulation'].dtype == jnp.bfloat16
  assert params['blocks']['norm3']['scale'].dtype == jnp.float32
  assert params['action_decoder']['out']['w'].dtype == jnp.bfloat16


@pytest.mark.parametrize('precision', QUANTIZED)
def test_a_kernel_is_within_half_a_step_of_what_it_was(precision):
  params = placed(precision)
  for path in ('self_attn/q', 'self_attn/o', 'ffn/in'):
    module, layer = path.split('/')
    kernel = params['blocks'][module][layer]['w']
    w = host_params()['blocks'][module][layer]['w']
    summed = tuple(range(1, 3 if layer == 'o' else 2))
    largest = np.abs(w).max(summed, keepdims=True)
    assert kernel.scale.shape == largest.shape  # Each layer and each output has one of its own.
    error = np.abs(np.asarray(kernel.values, np.float32) * kernel.scale - w)
    if precision == 'fp8':
      # Three bits behind the point, and below 2^-6 of the scale steps of 2^-9 of it.
      assert (error <= np.abs(w) / 16 + np.asarray(kernel.scale) * 2.0**-9).all()
    else:
      # 127.5 steps to the largest, so that this one is rounded by half a step, too.
      assert (error <= largest / 127.5 * 0.5001).all()
    assert error.max() > 0


# Of the largest action or latent; bfloat16 itself is off by 0.002 and 0.007.
LEAST, MOST = 1e-4, {'int8': 0.02, 'w8a8': 0.03, 'fp8': 0.1}


@pytest.mark.parametrize('precision', QUANTIZED)
def test_quantized_control_is_near_bfloat16_and_not_the_same(precision):
  for got, want in zip(act(precision), act('bfloat16'), strict=True):
    error = np.abs(got - want).max() / np.abs(want).max()
    assert LEAST < error < MOST[precision]


def test_the_models_own_precision_changes_nothing():
  for got, want in zip(act('float32'), act('model'), strict=True):
    np.testing.assert_array_equal(got, want)
  leaves = zip(jax.tree.leaves(placed('model')), jax.tree.leaves(host_params()), strict=True)
  assert all(got.dtype == want.dtype for got, want in leaves)


@pytest.mark.parametrize('precision', ['w8a8', 'fp8'])
def test_eight_products_a_layer_are_narrow_and_attention_is_not(precision):
  dtype = quantize.SCHEMES[precision].dtype
  loops = count_products(precision)
  # The sweep, and the pass of the other step.
  assert len(loops) == 2
  wide = count_products('bfloat16')
  for narrow, whole in zip(loops, wide, strict=True):
    assert narrow[dtype, dtype] == PRODUCTS
    # Queries with keys, weights with values, of the past, of the chunk and of the prompt.
    attention = narrow - collections.Counter({(dtype, dtype): PRODUCTS})
    assert sum(attention.values()) == sum(whole.values()) - PRODUCTS
    assert not any(dtype in types for types in attention)


def test_int8_weights_multiply_in_bfloat16():
  for loop in count_products('int8'):
    assert not any('int8' in types for types in loop)


def test_rules_choose_kernels():
  (sweep, _) = count_products('w8a8', quantized=('blocks/ffn',))
  assert sweep['int8', 'int8'] == 2
  (sweep, _) = count_products('w8a8', quantized=('blocks/*/q', 'blocks/self_attn/k'))
  assert sweep['int8', 'int8'] == 3


@pytest.mark.parametrize(
  'rule',
  ['block', 'blocks/self_attn/attention', 'blocks/norm3', 'blocks/*/b', 'action_decoder', 'q'],
)
def test_a_rule_that_matches_no_kernel_is_refused_before_anything_runs(rule):
  config = cfg.TrainConfig(model=MODEL, sample=sampled('fp8', quantized=('blocks/ffn', rule)))
  message = f"no kernel of the layers matches '{rule.replace('*', '[*]')}'; use 'blocks'"
  with pytest.raises(ValueError, match=message):
    loaded.LoadedPolicy(config, host_params(), test_policy.fitted())


def test_no_rule_is_refused():
  with pytest.raises(ValueError, match='an empty tuple'):
    weights.narrow(host_params(), MODEL, sampled('int8', quantized=()))


def device(kind, platform='gpu', capability=''):
  return python_types.SimpleNamespace(
    device_kind=kind, platform=platform, compute_capability=capability
  )


def test_machines_that_cannot_multiply_a_type_are_refused_by_name():
  a100 = device('NVIDIA A100-SXM4-80GB', capability='8.0')
  with pytest.raises(ValueError, match=r'A100.*8\.0.*does not multiply float8_e4m3fn.*fp8'):
    quantize.check_device('fp8', a100)
  with pytest.raises(ValueError, match="v6e does not multiply float8.*Take 'int8'"):
    quantize.check_device('fp8', device('TPU v6 lite', platform='tpu'))
  for precision in ('float32', 'bfloat16', 'int8', 'w8a8'):
    quantize.check_device(precision, a100)
    quantize.check_device(precision, device('TPU v6 lite', platform='tpu'))
  quantize.check_device('fp8', device('NVIDIA H200', capability='9.0'))
  quantize.check_device('fp8', jax.devices()[0])
  with pytest.raises(ValueError, match='v5p does not multiply float8'):
    quantize.check_chip('fp8', chips.CHIPS['v5p'])


def test_the_library_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(quantize.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[quant\]'"):
    weights.narrow(host_params(), MODEL, sampled('int8'))
  weights.narrow(host_params(), MODEL, sampled('bfloat16'))  # Needs none.


def test_quantized_weights_are_shared_by_the_policies_that_are_given_them():
  config = cfg.TrainConfig(model=MODEL, sample=sampled('w8a8'))
  one = loaded.LoadedPolicy(config, host_params(), test_policy.fitted())
  other = loaded.LoadedPolicy(config, one.params, one.frozen)
  pairs = zip(*(jax.tree.leaves(p.params) for p in (one, other)), strict=True)
  assert all(a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in pairs)


def test_weights_are_never_twice_in_memory():
  """The host holds what it was given and one kernel more; here the device is the host, too."""
  # In a process of its own: what others have freed here, the allocator may keep or use.
  done = programs.run('tests.quantized_memory')
  assert done.returncode == 0, done.stderr
  whole, layer, kept, grown = json.loads(done.stdout)
  assert kept < 0.27 * whole
  # What is kept, one stack on its way to the device, and a few layers for the rounding.
  assert kept <= grown < kept + whole / 2 / 4 + 5 * layer < whole
