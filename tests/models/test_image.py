"""The CLIP vision tower: the official module's numbers, its inputs, and the same numbers on a mesh
and in bfloat16.
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
from wam_jax.interop.table import image as table
from wam_jax.interop.table import rows
from wam_jax.models import image

TINY = cfg.ImageConfig(
  kind='clip', size=8, patch=4, dim=16, heads=4, layers=3, mlp_ratio=2, out_dim=6
)
# Neither square nor of the tower's size: it is resized.
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 10, 12, 3), np.uint8)


@pytest.fixture(scope='module')
def tiny():
  return nn.unbox(image.init(TINY, jax.random.key(0)))


def load(golden):
  g = golden.config
  # The released models have no others.
  assert (g['pool_type'], g['activation']) == ('token', 'gelu')
  assert (tuple(g['preprocess_mean']), tuple(g['preprocess_std'])) == (image.MEAN, image.STD)
  config = cfg.ImageConfig(
    kind='clip',
    size=g['image_size'],
    patch=g['patch_size'],
    dim=g['dim'],
    heads=g['num_heads'],
    layers=g['num_layers'],
    mlp_ratio=g['mlp_ratio'],
    out_dim=g['out_dim'],
  )
  weights = {f'visual.{name}': w for name, w in golden.below('w/').items()} | {
    'log_scale': np.float32(0)
  }
  return image.ClipVision(rows.to_params(table.rows(config, 'wan'), weights), config)


def test_golden_clip_vit(request, golden_clip_vit):
  raw_BIJ3 = golden_clip_vit['in/raw_video_minus1_1'].transpose(0, 1, 3, 4, 2)
  raw_BIJ3 = raw_BIJ3.reshape(-1, *raw_BIJ3.shape[2:])
  pixels_BIJ3 = golden_clip_vit['in/image_normalised'].transpose(0, 2, 3, 1)

  @jax.jit
  def run(model):
    size = model.config.size
    apply = lambda method: image.ClipTower(model.config).apply(
      {'params': model.params}, pixels_BIJ3, method=method
    )
    return {
      'sub/resized': image.resize_bicubic(raw_BIJ3, size, size).transpose(0, 3, 1, 2),
      'sub/preprocessed': image.preprocess(raw_BIJ3, size).transpose(0, 3, 1, 2),
      'out/penultimate': apply('penultimate'),
      'out/last': apply('last'),
      'out/encode_image': model.encode(raw_BIJ3),
    }

  got = run(load(golden_clip_vit))
  assert set(got) == {
    f'{kind}{name}' for kind in ('sub/', 'out/') for name in golden_clip_vit.below(kind)
  }
  for name, value in got.items():
    parity.check(
      request, f'CLIP {name.split("/")[1]}', value, golden_clip_vit[name], absolute=parity.ENCODERS
    )


def test_bicubic_by_hand():
  """Half the size: each output lies between its two middle inputs; weights -3/32, 19/32, 19/32,
  -3/32.
  """
  x_BIJC = np.array([0.0, 32, 64, 0, 0, 0]).reshape(1, 1, 6, 1)
  # The first output's outer left input is beyond the edge, which repeats the input there.
  want = [16 * 19 / 16 - 3 * 2, (64 * 19 - 32 * 3) / 32, 0 - 3 * 0]
  np.testing.assert_allclose(image.resize_bicubic(x_BIJC, 1, 3).reshape(-1), want, rtol=1e-6)


def test_bytes_and_floats_encode_the_same(tiny):
  encode = jax.jit(image.ClipVision.encode)
  as_float = FRAMES.astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(encode(tiny, FRAMES), encode(tiny, as_float), atol=1e-5)
  assert encode(tiny, FRAMES).shape == (2, TINY.tokens, TINY.dim)


def test_last_block_and_projection_are_not_needed(tiny):
  # The tower is read before its last block; training need not hold what follows.
  unused = ('last_block', 'projection')
  less = image.ClipVision({k: v for k, v in tiny.params.items() if k not in unused}, TINY)
  encode = jax.jit(image.ClipVision.encode)
  np.testing.assert_array_equal(encode(less, FRAMES), encode(tiny, FRAMES))


def test_bfloat16_encodes_as_float32_to_its_bits(tiny):
  """bfloat16 parameters and activations: float32's numbers to bfloat16's 8 bits."""
  half = image.ClipVision(
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params),
    dataclasses.replace(TINY, dtype='bfloat16'),
  )
  encode = jax.jit(image.ClipVision.encode)
  got, want = encode(half, FRAMES), encode(tiny, FRAMES)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.05 * np.abs(want).max())


def test_same_numbers_on_a_mesh(tiny):
  mesh, rules = sharding.make_mesh({'data': 1, 'fsdp': 2, 'tensor': 4, 'seq': 1}), cfg.DEFAULT_RULES
  abstract = jax.eval_shape(functools.partial(image.init, TINY), jax.random.key(0))
  placed = jax.device_put(tiny, sharding.state_shardings(abstract, mesh, rules))
  with sharding.activate(mesh, rules):
    got = jax.jit(lambda model, frames: model.encode(frames))(placed, FRAMES)
  want = jax.jit(image.ClipVision.encode)(tiny, FRAMES)
  np.testing.assert_allclose(got, want, atol=1e-5)  # Sums in another order.


def test_rows_and_abstract_parameters_have_the_same_shapes():
  released = cfg.ImageConfig(kind='clip')
  model = nn.unbox(jax.eval_shape(functools.partial(image.init, released), jax.random.key(0)))
  shapes = {row.path: row.shape for row in table.rows(released, 'wan')}
  leaves = jax.tree_util.tree_leaves_with_path(model.params)
  assert shapes == {'/'.join(key.key for key in path): leaf.shape for path, leaf in leaves}
  assert sum(leaf.size for _, leaf in leaves) == 632_076_801


def test_impossible_sizes_raise():
  with pytest.raises(ValueError, match='model.image.size=9 a multiple of model.image.patch=4'):
    image.init(dataclasses.replace(TINY, size=9), jax.random.key(0))
