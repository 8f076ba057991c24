"""The weight tables at the released sizes, by arithmetic alone."""

import math

import pytest

from wam_jax import presets
from wam_jax.interop.table import dit


@pytest.mark.parametrize(
  ('config', 'billions', 'weights'),
  [(presets.WAN2_1_I2V_14B, 16.484, 1317), (presets.WAN2_2_TI2V_5B, 5.607, 997)],
)
def test_released_sizes(config, billions, weights):
  """Source: specification of the released models, computed from the official modules."""
  table = dit.rows(config)
  assert round(sum(math.prod(row.shape) for row in table) / 1e9, 3) == billions
  names = [name for row in table for name in row.names]
  assert len(set(names)) == len(names) == weights
  assert len({row.path for row in table}) == len(table)


def test_names_and_shapes_are_those_of_a_published_checkpoint():
  """A few of the names and shapes of a published checkpoint."""
  shapes = {name: row.torch_shape for row in dit.rows(presets.WAN2_1_I2V_14B) for name in row.names}
  # 16 channels of noise, 4 of the mask and 16 of the first frame; patches of 1 x 2 x 2.
  assert shapes['patch_embedding.weight'] == (5120, 36, 1, 2, 2)
  assert shapes['time_projection.1.weight'] == (30720, 5120)
  assert shapes['blocks.39.ffn.0.weight'] == (13824, 5120)
  assert shapes['blocks.0.cross_attn.norm_k_img.weight'] == (5120,)
  assert shapes['head.modulation'] == (1, 2, 5120)
  assert shapes['img_emb.proj.3.weight'] == (5120, 1280)
  assert shapes['action_encoder.W2.W'] == (1, 10240, 5120)
  assert shapes['action_decoder.layer2.b'] == (1, 32)
