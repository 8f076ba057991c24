"""Names and shapes of the VAEs' weights, in both layouts, at the released sizes; nothing is
allocated.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax.interop.table import rows
from wam_jax.interop.table import vae as table
from wam_jax.models import vae

FULL = {
  'wan2_1': cfg.TokenizerConfig(kind='wan2_1', channels=16),
  'wan2_2': cfg.TokenizerConfig(kind='wan2_2', channels=48, vae=cfg.VAEConfig(160, 256)),
}


def shapes(kind, layout='wan'):
  return {name: row.torch_shape for row in table.rows(FULL[kind], layout) for name in row.names}


# Arrays of the released checkpoints, and the numbers that these hold.
@pytest.mark.parametrize(
  'kind, tensors, numbers', [('wan2_1', 194, 126_892_531), ('wan2_2', 196, 704_688_668)]
)
@pytest.mark.parametrize('layout', table.LAYOUTS)
def test_one_row_per_parameter(kind, tensors, numbers, layout):
  params = jax.eval_shape(lambda key: vae.init(FULL[kind], key), jax.random.key(0)).params
  listed = table.rows(FULL[kind], layout)
  ours = {
    '/'.join(k.key for k in path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }
  assert {row.path: row.shape for row in listed} == ours
  assert len(listed) == len(shapes(kind, layout)) == tensors
  assert sum(map(math.prod, ours.values())) == numbers


def test_names_of_wan2_1():
  """The list of the released checkpoint: residual blocks, the others by position, and where
  channels change.
  """
  s = shapes('wan2_1')

  def of(side, suffix):
    """Shapes by position."""
    names = [name for name in s if name.startswith(side) and name.endswith(suffix)]
    return {int(name.split('.')[2]): s[name] for name in names}

  down, up = 'encoder.downsamples.', 'decoder.upsamples.'
  assert of(down, 'residual.0.gamma').keys() == {0, 1, 3, 4, 6, 7, 9, 10}
  assert of(down, 'shortcut.weight') == {3: (192, 96, 1, 1, 1), 6: (384, 192, 1, 1, 1)}
  assert of(down, 'resample.1.weight') == {
    2: (96, 96, 3, 3),
    5: (192, 192, 3, 3),
    8: (384, 384, 3, 3),
  }
  assert of(down, 'time_conv.weight') == {5: (192, 192, 3, 1, 1), 8: (384, 384, 3, 1, 1)}
  assert of(up, 'residual.6.weight').keys() == {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14}
  assert of(up, 'shortcut.weight') == {4: (384, 192, 1, 1, 1)}
  assert of(up, 'resample.1.weight') == {
    3: (192, 384, 3, 3),
    7: (192, 384, 3, 3),
    11: (96, 192, 3, 3),
  }
  assert of(up, 'time_conv.weight') == {3: (768, 384, 3, 1, 1), 7: (768, 384, 3, 1, 1)}
  for name, shape in {
    'encoder.conv1.weight': (96, 3, 3, 3, 3),
    'encoder.head.0.gamma': (384, 1, 1, 1),
    'encoder.head.2.weight': (32, 384, 3, 3, 3),
    'conv1.weight': (32, 32, 1, 1, 1),
    'conv2.weight': (16, 16, 1, 1, 1),
    'encoder.middle.0.residual.2.weight': (384, 384, 3, 3, 3),
    'encoder.middle.2.residual.3.gamma': (384, 1, 1, 1),
    'encoder.middle.1.norm.gamma': (384, 1, 1),
    'encoder.middle.1.to_qkv.weight': (1152, 384, 1, 1),
    'encoder.middle.1.proj.weight': (384, 384, 1, 1),
    'decoder.conv1.weight': (384, 16, 3, 3, 3),
    'decoder.middle.1.to_qkv.bias': (1152,),
    'decoder.head.0.gamma': (96, 1, 1, 1),
    'decoder.head.2.weight': (3, 96, 3, 3, 3),
  }.items():
    assert s[name] == shape, name


def test_names_of_wan2_2():
  s = shapes('wan2_2')
  # The channels in and out of the first convolution of each stage.
  block = 'encoder.downsamples.{0}.downsamples.0.residual.2.weight'
  assert [s[block.format(i)][1::-1] for i in range(4)] == [
    (160, 160),
    (160, 320),
    (320, 640),
    (640, 640),
  ]
  block = 'decoder.upsamples.{0}.upsamples.0.residual.2.weight'
  assert [s[block.format(i)][1::-1] for i in range(4)] == [
    (1024, 1024),
    (1024, 1024),
    (1024, 512),
    (512, 256),
  ]
  for name, shape in {
    # 12 channels are 3 of a patch of 2 x 2 pixels; 96 are mean and variance of 48.
    'encoder.conv1.weight': (160, 12, 3, 3, 3),
    'encoder.head.2.weight': (96, 640, 3, 3, 3),
    'conv1.weight': (96, 96, 1, 1, 1),
    'conv2.weight': (48, 48, 1, 1, 1),
    'encoder.downsamples.2.downsamples.2.time_conv.weight': (640, 640, 3, 1, 1),
    'decoder.conv1.weight': (1024, 48, 3, 3, 3),
    'decoder.head.2.weight': (12, 256, 3, 3, 3),
    'decoder.upsamples.1.upsamples.3.time_conv.weight': (2048, 1024, 3, 1, 1),
    'decoder.upsamples.2.upsamples.3.resample.1.weight': (512, 512, 3, 3),
  }.items():
    assert s[name] == shape, name


@pytest.mark.parametrize('layout', table.LAYOUTS)
@pytest.mark.parametrize('kind', FULL)
def test_import_then_export_is_identical(kind, layout):
  # Other sizes than released: three stages, and time halved in one of two.
  c = cfg.TokenizerConfig(
    kind=kind, channels=6, vae=cfg.VAEConfig(4, 8, (1, 2, 4), 2, (False, True))
  )
  rng = np.random.default_rng(0)
  listed = table.rows(c, layout)
  weights = {
    name: rng.normal(size=row.torch_shape).astype(np.float32)
    for row in listed
    for name in row.names
  }
  back = rows.to_weights(listed, rows.to_params(listed, weights))
  assert back.keys() == weights.keys()
  for name, weight in weights.items():
    np.testing.assert_array_equal(back[name], weight, err_msg=name)
