"""Linear layers whose gradients stay in float32 from the product on."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.models import layers

B, T, D, M = 2, 2048, 8, 6
ROBOTS = jnp.int32([1, 0])
LAYERS = {
  'heads': (
    functools.partial(layers.Einsum, 'BTD,DNK->BNTK', (D, 2, 3), ('embed', 'heads', 'head_dim')),
    (),
  ),
  'robots': (functools.partial(layers.CategoryDense, 2, M), (ROBOTS,)),
  'mlp': (functools.partial(layers.MLP, M, D, jax.nn.silu), ()),
}


def gradients(name, dtype, gradient_dtype):
  """Of random weights, with random numbers that both dtypes have."""
  make, more = LAYERS[name]
  layer = make(dtype=dtype, gradient_dtype=gradient_dtype)
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.float32(jnp.bfloat16(rng.normal(size=shape)))

  x = draw(B, T, D)
  shapes = jax.eval_shape(lambda: nn.unbox(layer.init(jax.random.key(0), x, *more)))
  params = jax.tree.map(lambda p: draw(*p.shape) / 4, shapes)
  out = jax.eval_shape(lambda: layer.apply(params, x, *more))
  weight = draw(*out.shape)
  loss = lambda params: jnp.sum(layer.apply(params, x, *more).astype(jnp.float32) * weight)
  return jax.jit(jax.grad(loss))(params)['params']


@pytest.mark.parametrize('name', LAYERS)
def test_float32_changes_no_gradient_of_a_float32_model(name):
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
  jax.tree.map(close, gradients(name, 'float32', 'float32'), gradients(name, 'float32', 'model'))


@pytest.mark.parametrize('name', ['heads', 'robots'])
def test_gradients_are_not_rounded_to_the_dtype_of_the_model(name):
  """Of one product, whose inputs are the same in both dtypes."""
  exact = gradients(name, 'float32', 'model')
  wide = gradients(name, 'bfloat16', 'float32')
  rounded = gradients(name, 'bfloat16', 'model')
  for key, want in exact.items():
    scale = np.abs(want).max()
    assert np.abs(wide[key] - want).max() < 1e-5 * scale
    assert np.abs(rounded[key] - want).max() > 1e-4 * scale
