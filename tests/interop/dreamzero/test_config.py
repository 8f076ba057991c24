"""config.json of the released models is understood, whether it says sizes or not."""

from __future__ import annotations

import dataclasses

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
  exported = config_lib.make_config(cfg.TrainConfig(model=model), 880, {})
  heads = (
    config_lib.get_head(tiny.head(model)),
    silent,
    config_lib.get_head(exported),
  )
  for head in heads:
    assert config_lib.infer_model(head, shapes, bfloat16=True) == model


def infer(**changes):
  """The model of the smaller tiny head with `changes`, the transformer's in `dit`."""
  head = config_lib.get_head(tiny.head(tiny.TI2V))
  head['diffusion_model_cfg'] |= changes.pop('dit', {})
  head |= changes
  shapes = {}
  for part, table in foreign.make_tables(tiny.TI2V, 'dreamzero').items():
    shapes[part] = {name: row.torch_shape for row in table for name in row.names}
  return config_lib.infer_model(head, shapes, bfloat16=False)


def test_no_limit_to_what_is_seen_is_the_global_rule():
  # 41 frames are 5 chunks of 8 after the first.
  model = infer(dit={'max_chunk_size': -1}, num_frames=41)
  assert model == dataclasses.replace(tiny.TI2V, history_rule='reference_global', max_chunks=5)
  # And back: the file says -1, and reads the same.
  exported = config_lib.make_config(cfg.TrainConfig(model=model), 880, {})
  head = config_lib.get_head(exported)
  assert (head['diffusion_model_cfg']['max_chunk_size'], head['num_frames']) == (-1, 41)


@pytest.mark.parametrize(('tokens', 'resize'), [(50, (176, 320)), (55, (176, 320)), (880, ())])
def test_frames_of_the_smaller_model_are_resized_without_a_word(tokens, resize):
  silent = dict(target_video_height=None, target_video_width=None)
  assert infer(dit={'frame_seqlen': tokens}, **silent).tokenizer.resize == resize
  # What is said counts.
  assert infer(dit={'frame_seqlen': tokens}).tokenizer.resize == (160, 320)


def test_short_frames_matter_to_the_image_condition_alone():
  # This model has none, so that no frame of it is missing.
  assert infer(num_frames=17).max_chunks == 4


def test_emphasis_on_high_noise_there_and_back():
  fields = config_lib.make_flow_and_sample(
    {'use_high_noise_emphasis': True, 'high_noise_beta_alpha': 5.0}
  )
  assert (fields['flow'].schedule, fields['flow'].video_beta) == ('coupled_beta', 5.0)
  config = cfg.TrainConfig(model=tiny.TI2V, **fields)
  head = config_lib.get_head(config_lib.make_config(config, 880, {}))
  assert config_lib.make_flow_and_sample(head) == fields
  # Where both are asked for, the official code draws apart.
  both = {'use_high_noise_emphasis': True, 'decouple_video_action_noise': True}
  assert config_lib.make_flow_and_sample(both)['flow'].schedule == 'decoupled'


def test_what_is_not_said_is_told():
  assert [note.split(',')[0] for note in config_lib.list_notes({})] == [
    'config.json does not say `tiled`'
  ]
  head = {'tiled': False, 'diffusion_model_cfg': {'frame_seqlen': 50}}
  assert 'resizes them to 176 x 320' in config_lib.list_notes(head)[0]
  assert config_lib.list_notes(head | {'target_video_height': 1, 'target_video_width': 1}) == ()
