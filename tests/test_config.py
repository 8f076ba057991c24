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
  made = presets.rlds_dataset(c, 'droid/1.0.1', 'droid', 'data.convert --output={path}')
  assert made.keys() == keys
  assert made['path'].get() == '~/wam_jax_data/droid/1.0.1'
  assert (made['split'], made['weight'], made['source']) == ('train', 1.0, '')
  assert presets.tabletop_dataset(c, 'disc', 'reach', 10).keys() == keys


def test_choices_are_those_of_the_types():
  assert cfg.list_choices(cfg.SampleConfig) == {
    'mode': ('joint', 'flash'),
    'solver': ('euler', 'unipc'),
    'observed': ('stream', 'fresh'),
  }
  with pytest.raises(ValueError, match="sample.mode='both' must be one of"):
    cfg.SampleConfig(mode='both')
  with pytest.raises(ValueError, match="model.text.kind='bert' must be one of"):
    cfg.ModelConfig(text=cfg.TextConfig(kind='bert'))
  with pytest.raises(ValueError, match="model.lora.targets='x' must be one of"):
    cfg.LoraConfig(targets=('q', 'x'))
