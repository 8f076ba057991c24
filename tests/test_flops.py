"""FLOPs by formula: by hand, the products of the traced program, XLA's own count, the published
design.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import train_config
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import masks
from wam_jax import presets
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.aot import abstract
from wam_jax.aot import hlo
from wam_jax.aot import work as work_lib
from wam_jax.models import attention

CELLS = 6  # Tokens of a latent frame of `BATCH`: 2 rows of 3.


def make_config(**model):
  c = train_config.get_config()
  c.model.update(dict(num_layers=3, attention='dense', frames_per_chunk=2) | model)
  c.model.tokenizer.temporal = 1
  return cfg.from_config_dict(c)


def lower(config, function):
  """`function` of (params, batch of one sample with ready latents), traced for one device."""
  c = config.model
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:1])
  state, batch = abstract.arguments(dataclasses.replace(config, batch_size=1), mesh)
  latents = jax.ShapeDtypeStruct(
    (1, 1 + c.max_chunks * c.frames_per_chunk, 4, 6, c.tokenizer.channels), jnp.float32
  )
  batch = batch.replace(frames_BRIJ3=None, features=types.Features(clean_BFHWC=latents))
  return jax.jit(functools.partial(function, config)).lower(state.params, batch)


def loss(config, params, batch):
  key = jax.random.key(0)
  noise = train_step.sample_noise(config.model, config.flow, key, None, batch)
  return train_step.loss_fn(config, params, None, batch, noise)[0]


def gradient(config, params, batch):
  return jax.grad(functools.partial(loss, config))(params, batch)


def products(lowered) -> float:
  """FLOPs of all matrix products of a traced program."""
  program = hlo.parse(lowered.compiler_ir('hlo').as_hlo_text())
  work = work_lib.count(
    program,
    rates=work_lib.Rates(products=1.0, kernels=1.0, hbm=1.0, vector=1.0),
    kernel_flops=lambda *_: None,
    links=lambda _: None,
  )
  assert not work.unknown_loops
  return work.flops


@pytest.mark.parametrize('first', [False, True])
def test_products_of_the_traced_program_are_the_formula(first):
  config = make_config(predict_first_frame=first)
  c = config.model
  work = flops.total(flops.training(c, CELLS))
  # The dense path computes all pairs, seen or not.
  all_pairs = flops.training_tokens(c, CELLS) ** 2 - flops.training_pairs(c, CELLS)
  # Two products of a pair, 2 FLOPs a number each.
  extra = 4 * c.num_layers * c.dim * all_pairs
  assert products(lower(config, loss)) == work.forward + extra
  # Backward, each product has two of its size.
  assert products(lower(config, gradient)) == work.train + 3 * extra


def test_attention_by_chunks_computes_exactly_the_pairs():
  config = make_config(attention='chunks')
  c = config.model
  tokens = flops.training_tokens(c, CELLS)
  groups = int(flops.training_layout(c, CELLS).group.max()) + 1
  # Each token gets the modulation of its group by a product.
  spread = 6 * 2 * c.num_layers * tokens * groups * c.dim
  assert products(lower(config, loss)) == flops.total(flops.training(c, CELLS)).forward + spread


def test_remat_is_work_that_the_formula_does_not_count():
  config = make_config(remat='block')
  once = products(lower(make_config(), gradient))
  again = products(lower(config, gradient))
  # Forward, forward again, and twice that backward: 4/3, but for what lies outside the blocks.
  assert 1.2 < again / once < 4 / 3


def test_xla_counts_the_same_but_for_elementwise_work():
  # Wide, so that products outweigh the rest; one layer, since XLA counts a loop's body once.
  config = make_config(num_layers=1, dim=128, mlp_dim=512, num_heads=2, action_hidden=128)
  c = config.model
  all_pairs = flops.training_tokens(c, CELLS) ** 2 - flops.training_pairs(c, CELLS)
  expected = flops.total(flops.training(c, CELLS)).forward + 4 * c.dim * all_pairs
  assert 1.0 < lower(config, loss).cost_analysis()['flops'] / expected < 1.1


def test_the_step_of_training_is_counted_as_by_hand():
  c = make_config().model  # D 16, M 32, 3 layers; 2 chunks of 2 frames, 8 actions and a state.
  assert flops.training_tokens(c, CELLS) == 3 * 6 + 4 * 6 + 16 + 2
  # Clean: frame 0, and the 3 frames of block 1 seen by its 2. Noisy with actions: 12 + 8 own tokens
  # and the state, and 1 or 3 clean frames. States: themselves.
  assert flops.training_pairs(c, CELLS) == 6 * 6 + 12 * 18 + 20 * (21 + 6) + 20 * (21 + 18) + 2
  parts = flops.training(c, CELLS)
  assert parts['feed-forward'] == (2 * 3 * 60 * 2 * 16 * 32, 3 * 2 * 3 * 60 * 2 * 16 * 32)
  assert parts['attention'] == (4 * 3 * 1574 * 16, 12 * 3 * 1574 * 16)
  assert parts['patches'] == (
    2 * 42 * 48 * 16 + 2 * 24 * 16 * 48,
    4 * 42 * 48 * 16 + 6 * 24 * 16 * 48,
  )


@pytest.mark.parametrize(
  'model',
  [
    {},
    {'predict_first_frame': True},
    {'state_rule': 'chunk'},
    {'frames_per_chunk': 1, 'max_chunks': 3},
    {'history_rule': 'reference_global'},
    {'actions_per_chunk': 5, 'max_chunks': 1},
  ],
)
def test_pairs_are_those_of_the_dense_mask(model):
  c = make_config(**model).model
  for chunks in (1, 2, 4):
    mask = attention.training_mask(c, flops.training_layout(c, 5, chunks))
    assert flops.training_pairs(c, 5, chunks) == mask.sum()


def test_the_design_of_14b():
  parts = flops.control(presets.WAN2_1_I2V_14B, 880)
  seen = sum(parts[name].forward for name in ('attention', 'prompt attention'))
  assert round(seen / 1e12, 1) == 12.7
  assert round((flops.total(parts).forward - seen) / 1e12, 1) == 42.7
  c = presets.WAN2_1_I2V_14B
  layout = flops.training_layout(c, 880)
  kinds = (masks.CLEAN, masks.NOISY, masks.ACTION, masks.STATE)
  assert [int((layout.kind == kind).sum()) for kind in kinds] == [6160, 7920, 96, 4]
  # Each parameter that meets every token multiplies it once: 6 N D operations and attention.
  whole = flops.total(flops.training(c, 880)).train
  by_parameters = 6 * 14180 * 40 * (6 * 5120**2 + 2 * 5120 * 13824)
  np.testing.assert_allclose(by_parameters + parts_of_attention(c), whole, rtol=0.01)


def parts_of_attention(c):
  parts = flops.training(c, 880)
  return parts['attention'].train + parts['prompt attention'].train
