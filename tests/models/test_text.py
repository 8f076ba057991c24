"""UMT5: the official module's numbers, its buckets, padding, and the same numbers on a mesh and in
bfloat16.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.interop.table import rows
from wam_jax.interop.table import text as table
from wam_jax.models import text

TINY = cfg.TextConfig(
  kind='umt5',
  vocab=24,
  length=8,
  dim=16,
  layers=2,
  heads=4,
  attention_dim=24,
  mlp_dim=32,
  buckets=8,
  max_distance=16,
)
# 1 ends a prompt, 0 pads it.
IDS_BP = np.array([[5, 9, 3, 7, 7, 2, 1, 0], [4, 8, 1, 0, 0, 0, 0, 0]], np.int32)


@pytest.fixture(scope='module')
def tiny():
  return nn.unbox(text.init(TINY, jax.random.key(0)))


def load(golden):
  g = golden.config
  config = cfg.TextConfig(
    kind='umt5',
    vocab=g['vocab'],
    length=g['length'],
    dim=g['dim'],
    layers=g['num_layers'],
    heads=g['num_heads'],
    attention_dim=g['dim_attn'],
    mlp_dim=g['dim_ffn'],
    buckets=g['num_buckets'],
    max_distance=g['max_dist'],
  )
  assert g['eps'] == text.RMSNorm.eps
  weights = golden.below('w/')
  return text.UMT5(rows.to_params(table.rows(config, 'wan', g['shared_pos']), weights), config)


def test_golden_umt5(request, golden_umt5):
  ids_BP, mask_BP = golden_umt5['in/ids'], golden_umt5['in/mask']

  @jax.jit
  def run(model):
    shared = 'relative_bias' in model.params
    hidden, captured = text.UMT5Encoder(model.config, shared).apply(
      {'params': model.params},
      ids_BP,
      mask_BP,
      capture_intermediates=lambda module, _: isinstance(module, text.UMT5Block),
    )
    holder = model.params if shared else jax.tree.map(lambda x: x[0], model.params['blocks'])
    bias_table = holder['relative_bias']
    buckets = text.relative_buckets(
      ids_BP.shape[1], model.config.buckets, model.config.max_distance
    )
    return {
      'sub/relative_buckets': buckets,
      'sub/pos_bias_block0': text.relative_bias(bias_table, buckets)[None],
      'sub/after_block0': captured['intermediates']['blocks']['__call__'][0][0][0],
      'out/hidden': hidden,
      'out/hidden_nomask': model.hidden(ids_BP, np.ones_like(mask_BP)),
      'out/prompt_after_official_zeroing': text.zero_after_shortest(hidden, mask_BP),
      'encode': model.encode(ids_BP, mask_BP),
    }

  got = run(load(golden_umt5))
  encoded = got.pop('encode')
  assert set(got) == {
    f'{kind}{name}' for kind in ('sub/', 'out/') for name in golden_umt5.below(kind)
  }
  for name, value in got.items():
    exact = np.issubdtype(golden_umt5[name].dtype, np.integer)
    parity.check(
      request,
      f'UMT5 {name.split("/")[1]}',
      value,
      golden_umt5[name],
      absolute=0 if exact else parity.ENCODERS,
    )
  # Ours keeps each prompt whole where the reference cuts it at the shortest of the batch.
  parity.check(
    request,
    'UMT5 encode',
    encoded,
    golden_umt5['out/hidden'] * (mask_BP > 0)[..., None],
    absolute=parity.ENCODERS,
  )


def test_distances_fall_into_buckets_as_by_hand():
  """8 buckets, 4 a side: distances 0 and 1 exactly, then 2 to 5 and from 6 (2 * sqrt(16 / 2) = 5.7)
  on.
  """
  want_P = [0, 5, 6, 6, 6, 6, 7, 7, 7]
  buckets_PP = text.relative_buckets(9, 8, 16)
  np.testing.assert_array_equal(buckets_PP[0], want_P)
  np.testing.assert_array_equal(buckets_PP[:, 0], [0, 1, 2, 2, 2, 2, 3, 3, 3])


def test_padding_is_zero_and_changes_nothing(tiny):
  encode = jax.jit(text.UMT5.encode)
  encoded_BPD = np.asarray(encode(tiny, IDS_BP))
  np.testing.assert_array_equal(np.any(encoded_BPD != 0, -1), IDS_BP != 0)
  # The short prompt without its padding.
  alone_BPD = encode(tiny, IDS_BP[1:, :3])
  np.testing.assert_allclose(encoded_BPD[1:, :3], alone_BPD, atol=1e-5)  # Sums in another order.
  # A mask takes the place of the default, and what it hides is not seen.
  other_BP = np.where(IDS_BP == 0, 6, IDS_BP)
  np.testing.assert_array_equal(encode(tiny, other_BP, IDS_BP != 0), encoded_BPD)


def test_zero_after_shortest():
  x_BPD = np.ones((2, 8, 1))
  want_P = [1, 1, 1, 0, 0, 0, 0, 0]
  np.testing.assert_array_equal(
    text.zero_after_shortest(x_BPD, IDS_BP != 0)[..., 0], [want_P, want_P]
  )


def test_shared_bias_equals_the_same_table_in_every_layer(tiny):
  params = dict(tiny.params)
  blocks = dict(params['blocks'])
  table_RN = blocks.pop('relative_bias')[0]
  shared = text.UMT5(params | {'blocks': blocks, 'relative_bias': table_RN}, TINY)
  copied = text.UMT5(
    params | {'blocks': blocks | {'relative_bias': jnp.stack([table_RN] * TINY.layers)}}, TINY
  )
  encode = jax.jit(text.UMT5.encode)
  np.testing.assert_array_equal(encode(shared, IDS_BP), encode(copied, IDS_BP))


def test_bfloat16_encodes_as_float32_to_its_bits(tiny):
  """bfloat16 parameters and activations: float32's numbers to bfloat16's 8 bits."""
  half = text.UMT5(
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params),
    dataclasses.replace(TINY, dtype='bfloat16'),
  )
  encode = jax.jit(text.UMT5.encode)
  got, want = encode(half, IDS_BP), encode(tiny, IDS_BP)
  # Else the comparison below would be of float32 with itself.
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.05 * np.abs(want).max())


def test_same_numbers_on_a_mesh(tiny):
  mesh, rules = sharding.make_mesh({'data': 1, 'fsdp': 2, 'tensor': 4, 'seq': 1}), cfg.DEFAULT_RULES
  abstract = jax.eval_shape(functools.partial(text.init, TINY), jax.random.key(0))
  placed = jax.device_put(tiny, sharding.state_shardings(abstract, mesh, rules))
  with sharding.activate(mesh, rules):
    got = jax.jit(lambda model, ids_BP: model.encode(ids_BP))(placed, IDS_BP)
  want = jax.jit(text.UMT5.encode)(tiny, IDS_BP)
  np.testing.assert_allclose(got, want, atol=1e-5)  # Sums in another order.


def test_rows_and_abstract_parameters_have_the_same_shapes():
  released = cfg.TextConfig(kind='umt5', vocab=256384, length=512, dim=4096, layers=24)
  model = nn.unbox(jax.eval_shape(functools.partial(text.init, released), jax.random.key(0)))
  shapes = {row.path: row.shape for row in table.rows(released, 'wan')}
  leaves = jax.tree_util.tree_leaves_with_path(model.params)
  assert shapes == {'/'.join(key.key for key in path): leaf.shape for path, leaf in leaves}
  assert sum(leaf.size for _, leaf in leaves) == 5_680_910_336


@pytest.mark.parametrize('shared_bias', [False, True])
def test_weights_come_back_unchanged(shared_bias):
  wan = table.rows(TINY, 'wan', shared_bias)
  rng = np.random.default_rng(0)
  weights = {name: rng.normal(size=row.torch_shape) for row in wan for name in row.names}
  back = rows.to_weights(wan, rows.to_params(wan, weights))
  assert back.keys() == weights.keys()
  for name, w in weights.items():
    np.testing.assert_array_equal(back[name], w, err_msg=name)
