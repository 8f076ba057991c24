"""config.json of the released models is understood, whether it says sizes or not."""

from __future__ import annotations

import pytest

from tests.interop import tiny
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.interop import foreign
from wam_jax.interop.dreamzero import config as config_lib


@pytest.mark.parametrize('model', [presets.WAN2_1_I2V_14B, presets.WAN2_2_TI2V_5B])
def test_released_configs_are_recognised(model):
  shapes = {}
  for part, table in foreign.make_tables(model, 'dreamzero').items():
    shapes[part] = {name: row.torch_shape for row in table for name in row.names}

  # As the official script writes it; with hardly anything said; as we export it.
  silent = {'diffusion_model_cfg': {'num_heads': model.num_heads, 'num_frame_per_block': 2}}
  if model.tokenizer.resize:
    silent |= {'target_video_height': 160, 'target_video_width': 320}
  exported = config_lib.make_config(cfg.TrainConfig(model=model), 880)
  heads = (
    config_lib.get_head(tiny.head(model)),
    silent,
    config_lib.get_head(exported),
  )
  for head in heads:
    assert config_lib.infer_model(head, shapes, bfloat16=True) == model
