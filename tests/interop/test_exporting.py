"""What an export makes of a run: its averages, one category of action modules, its robots."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import yaml

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import robot as robot_lib
from wam_jax.interop import exporting
from wam_jax.interop import own
from wam_jax.interop.table import dit


@pytest.mark.parametrize(('has_averages', 'dtype'), [(True, 'keep'), (False, 'bfloat16')])
def test_export_of_a_run_takes_its_averages(tmp_path, has_averages, dtype):
  params, frozen, weights = conversions.make_trees(tiny.I2V)
  config = cfg.TrainConfig(model=tiny.I2V, data=cfg.DataConfig(embodiments=('droid',)))
  conversions.write_run(
    tmp_path / 'run',
    config,
    params,
    frozen,
    robots=[conversions.make_droid()],
    has_averages=has_averages,
  )
  back = tmp_path / 'back'
  report = conversions.export_to(tmp_path / 'run', back, dtype=dtype)
  assert (report['averaged'], report['step']) == (has_averages, 3)

  factor = 2 if has_averages else 1
  weights['dit'] = {name: w * factor for name, w in weights['dit'].items()}
  rounded = tiny.BF16 if dtype == 'bfloat16' else np.float32
  want = {name: w.astype(rounded) for name, w in tiny.prefixed(weights).items()}
  conversions.assert_same_bits(tiny.load(back), want)

  # What the official code reads beside the weights.
  conf = yaml.safe_load((back / 'experiment_cfg/conf.yaml').read_text())
  assert conf['save_lora_only'] is False
  assert conf['relative_action'] is True
  assert conf['relative_action_keys'] == ['joint_position']
  head = json.loads((back / 'config.json').read_text())['action_head_cfg']['config']
  assert head['train_architecture'] == 'full'
  assert head['skip_component_loading'] is True
  assert head['defer_lora_injection'] is False
  assert head['diffusion_model_cfg']['frame_seqlen'] == 880
  stored = json.loads((back / 'experiment_cfg/metadata.json').read_text())['oxe_droid']
  camera = stored['modalities']['video']['wrist_image_left']
  assert camera == {'resolution': [320, 180], 'channels': 3, 'fps': 15.0}
  # As `conversions` made them: 8 dimensions from 1 to 2, of which 7 are joints.
  q01 = stored['statistics']['action']['joint_position']['q01']
  assert q01 == np.linspace(1, 2, 8, dtype=np.float32)[:7].tolist()


def test_one_category_of_several_is_exported(tmp_path):
  model = dataclasses.replace(tiny.I2V, num_embodiments=3)
  params, frozen, weights = conversions.make_trees(model)
  data = cfg.DataConfig(embodiments=('droid', 'other', 'third'))
  conversions.write_run(
    tmp_path / 'run',
    cfg.TrainConfig(model=model, data=data),
    params,
    frozen,
    robots=[conversions.make_droid(), conversions.make_droid(2, name='other')],
    has_averages=False,
  )
  # By message the options that it refuses.
  refused = {
    r'no prompt for these robots:\n  other: its tag would be .other.': {},
    '--tag=yam names one robot, but there are droid, other': {'tag': 'yam'},
    '--embodiment=nobody has no statistics in .*; known are droid, other': {'embodiment': 'nobody'},
    'action modules for 3 embodiments, and there is room for one': {'layout': 'diffusers'},
    'for 3 embodiments, and there is room for one; pass --embodiment=NAME, one of droid, other': {
      'statistics': False
    },
  }
  for message, options in refused.items():
    with pytest.raises(ValueError, match=message):
      conversions.export_to(tmp_path / 'run', tmp_path / 'back', **options)

  conversions.export_to(tmp_path / 'run', tmp_path / 'back', embodiment='other', tag='oxe_droid')
  conversions.export_to(tmp_path / 'run', tmp_path / 'alone', embodiment='other', statistics=False)
  conversions.assert_same_bits(tiny.load(tmp_path / 'alone'), tiny.load(tmp_path / 'back'))
  # `other` has the third category of action modules; the rest of the weights is shared.
  action = {name for row in dit.action_rows(model) for name in row.names}
  for name in action:
    weights['dit'][name] = weights['dit'][name][2:]
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), tiny.prefixed(weights))


def make_source(workdir, config, robots=()):
  """A checkpoint without arrays: what is refused before any is read."""
  return own.Own(
    workdir=workdir,
    step=1,
    config=config,
    data=robot_lib.to_metadata(robots),
    source={},
    base={},
    lora=cfg.LoraConfig(),
    averaged=False,
    params={},
    frozen={},
  )


def test_robots_of_one_tag_are_exported_one_at_a_time(tmp_path):
  droid = conversions.make_droid()
  other = dataclasses.replace(droid, record=embodiments.get('droid_wan22'))
  source = make_source(tmp_path, cfg.TrainConfig(model=tiny.I2V), [droid, other])
  with pytest.raises(ValueError, match='droid, droid_wan22 share a tag of the reference'):
    exporting.export_checkpoint(source, tmp_path / 'back', exporting.Options())


def test_models_that_exist_only_here_are_refused(tmp_path):
  source = make_source(tmp_path, cfg.TrainConfig())
  with pytest.raises(
    ValueError, match=r"only here.*:\n  model.tokenizer.kind='patch'\n  model.text.kind='word'"
  ):
    exporting.export_checkpoint(source, tmp_path / 'back', exporting.Options())
