"""Configs: every mistake is reported at once, before anything runs, and a config survives JSON."""

import dataclasses
import json

import pytest

from wam_jax import config as cfg
from wam_jax import presets


def make():
  c = cfg.base()
  c.data.embodiments = ('tabletop_disc',)
  c.data.mixture = {'disc': presets.tabletop_dataset(c, 'disc', 'reach', 10)}
  return c


def test_json_and_back():
  config = cfg.from_config_dict(make())
  assert cfg.from_config_dict(json.loads(json.dumps(cfg.to_dict(config)))) == config


def test_all_wrong_keys_are_listed():
  c = make().to_dict()
  c['lerning_rate'] = 1
  c['model']['dim'] = 'wide'
  c['model']['attention'] = 'some'
  # True is an int to Python, and so would pass for 1.0.
  c['optimizer']['clip_norm'] = True
  del c['seed']
  with pytest.raises(ValueError, match='The config has wrong keys or values') as error:
    cfg.from_config_dict(c)
  for text in (
    'config.lerning_rate does not exist',
    "config.model.dim='wide' must be of type int",
    "config.model.attention='some' must be one of ('auto', 'dense', 'chunks', 'splash')",
    'config.seed is missing',
    'config.optimizer.clip_norm=True must be of type float',
  ):
    assert text in str(error.value)


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('model.remat', 'all', r"model.remat='all' must be one of"),
    ('model.num_heads', 3, 'nearest valid dim: 66'),
    ('model.num_embodiments', 0, 'set it to 1'),
    ('model.num_heads', 0, 'model.num_heads=0: must be a number above 0'),
    ('model.max_chunks', 0, 'model.max_chunks=0: must be a number above 0'),
    ('model.proprio_dim', -1, 'model.proprio_dim=-1: must be 0 or more'),
    ('model.image_dim', 8, "must be what model.image.kind='none' gives"),
    ('flow.schedule', 'both', 'must be one of'),
    ('sample.steps', 0, 'must be at least 1'),
    ('data.mixture.disc.embodiment', 'tabletop_arm', 'is not in data.embodiments'),
  ],
)
def test_wrong_values_say_what_is_right(path, value, message):
  c = make()
  c.update_from_flattened_dict({path: value})
  with pytest.raises(ValueError, match=message):
    cfg.from_config_dict(c)


def test_smoke_keeps_its_data_apart():
  c = make()
  full = c.data.mixture.disc.path
  small = presets.smoke(c).data.mixture.disc
  assert (full, small.path) == (
    '~/wam_jax_data/tabletop/disc_reach/1.0.0',
    '~/wam_jax_data/smoke/tabletop/disc_reach/1.0.0',
  )
  assert '--output={root}/smoke ' in small.prepare
  # Else the smallest run would begin with minutes of data.
  assert '--episodes=20 ' in small.prepare


def test_named_datasets_have_every_key():
  keys = {field.name for field in dataclasses.fields(cfg.DatasetConfig)}
  c = make()
  made = presets.rlds_dataset(c, 'droid/1.0.1', 'droid', prepare='data.convert --output={path}')
  assert made.keys() == keys
  assert made['path'].get() == '~/wam_jax_data/droid/1.0.1'
  assert (made['split'], made['weight'], made['source']) == ('train', 1.0, '')
  assert presets.tabletop_dataset(c, 'disc', 'reach', 10).keys() == keys


@pytest.mark.parametrize(
  'group, values, message',
  [
    (cfg.FlowConfig, dict(levels=0), 'flow.levels=0 must be at least 1'),
    (
      cfg.FlowConfig,
      dict(shift=0.0, video_beta=-7.0),
      'flow.shift=0.0, flow.video_beta=-7.0: must',
    ),
    (
      cfg.FlowConfig,
      dict(flash_shift=float('nan')),
      'flow.flash_shift=nan: must be a number above',
    ),
    (cfg.FlowConfig, dict(video_at_noise=1.1), 'flow.video_at_noise=1.1: must be from 0 to 1'),
    (cfg.FlowConfig, dict(video_hidden=-0.1), 'flow.video_hidden=-0.1: must be from 0 to 1'),
    (cfg.FlowConfig, dict(action_weight=-1.0), 'flow.action_weight=-1.0: must be 0 or more'),
    (cfg.SampleConfig, dict(shift=float('inf')), 'sample.shift=inf: must be a number above 0'),
    (cfg.SampleConfig, dict(action_shift=0.0), 'sample.action_shift=0.0: must be a number above 0'),
    (cfg.SampleConfig, dict(video_final_sigma=1.5), 'sample.video_final_sigma=1.5: must be from 0'),
    (cfg.SampleConfig, dict(mode='flash', action_steps=-1), 'sample.action_steps=-1 must be 0'),
    (cfg.SampleConfig, dict(action_steps=4), "sample.action_steps=4 needs sample.mode='flash'"),
    (
      cfg.SampleConfig,
      dict(mode='act_only', evaluate_steps=(0, 1)),
      r'sample.evaluate_steps=\(0, 1\) are steps of video and actions together',
    ),
  ],
)
def test_noise_and_sampling_out_of_range_are_refused(group, values, message):
  with pytest.raises(ValueError, match=message):
    group(**values)


def test_sampling_must_fit_the_model_and_its_training():
  c = make()
  c.sample.mode = 'flash'
  c.sample.steps = 1
  c.sample.action_steps = 4
  with pytest.raises(ValueError, match="model.video_sees='all' they follow the actions"):
    cfg.from_config_dict(c)
  c.sample.approximate_kept_video = True
  cfg.from_config_dict(c)
  c.sample.steps = 2
  with pytest.raises(ValueError, match='is for one step of the video, not for sample.steps=2'):
    cfg.from_config_dict(c)
  c.model.video_sees = 'video'
  cfg.from_config_dict(c)
  c.sample.mode = 'act_only'
  with pytest.raises(ValueError, match='flow.video_hidden=0 never met in training'):
    cfg.from_config_dict(c)


def test_training_weighs_the_level_that_one_step_is_taken_from():
  one = cfg.SampleConfig(mode='flash', steps=1)
  with pytest.raises(ValueError, match="flow.weighting='bump' is 0 at noise level 1"):
    cfg.check_weights(cfg.FlowConfig(), one)
  cfg.check_weights(cfg.FlowConfig(weighting='uniform'), one)
  cfg.check_weights(cfg.FlowConfig(), dataclasses.replace(one, steps=2))
  cfg.check_weights(cfg.FlowConfig(), dataclasses.replace(one, mode='act_only', action_steps=4))


def test_choices_are_those_of_the_types():
  assert cfg.list_choices(cfg.SampleConfig) == {
    'mode': ('joint', 'flash', 'act_only'),
    'solver': ('euler', 'unipc'),
    'reuse': ('steps', 'cosine'),
    'observed': ('stream', 'fresh'),
    'history': ('reset', 'sliding', 'window'),
    'precision': ('model', 'float32', 'bfloat16', 'int8', 'w8a8', 'fp8'),
    'anchor': ('newest', 'reference'),
  }
  with pytest.raises(ValueError, match="sample.mode='both' must be one of"):
    cfg.SampleConfig(mode='both')
  with pytest.raises(ValueError, match="model.text.kind='bert' must be one of"):
    cfg.ModelConfig(text=cfg.TextConfig(kind='bert'))
  with pytest.raises(ValueError, match="model.lora.targets='x' must be one of"):
    cfg.LoraConfig(targets=('q', 'x'))


@pytest.mark.parametrize('overlap', [-1, 9])
def test_an_overlap_is_at_most_a_chunk(overlap):
  with pytest.raises(ValueError, match=rf'action_overlap={overlap} must be 0, .* or at most .*=8'):
    cfg.ModelConfig(action_overlap=overlap)
  assert cfg.ModelConfig(action_overlap=8).action_horizon == 16
