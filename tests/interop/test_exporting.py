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
from wam_jax.interop import foreign
from wam_jax.interop import own
from wam_jax.interop.dreamzero import serving
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
  # Training saw zeros in 4 of 12 action dimensions, where the official server feeds noise.
  assert report['notes'][0].startswith('training saw zeros in the padded action dimensions 8 to 11')
  weights['dit']['action_encoder.W1.W'][:, 8:] = 0
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
  assert json.loads((back / 'config.json').read_text())['torch_dtype'] == (
    'bfloat16' if dtype == 'bfloat16' else 'float32'
  )
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
  weights['dit']['action_encoder.W1.W'][:, 8:] = 0
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
    datasets=None,
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


def test_zeros_in_padded_dimensions_are_of_one_robot(tmp_path):
  droid = conversions.make_droid()
  narrow = conversions.make_droid(name='yam', action=droid.record.action[:1])
  config = cfg.TrainConfig(model=tiny.I2V)
  robots = {'oxe_droid': droid, 'yam': narrow}
  source = make_source(tmp_path, config, robots.values())
  with pytest.raises(ValueError, match=r'droid \(8\), yam \(7\): .*; pass --embodiment=NAME'):
    exporting._find_zeroed(source, robots, 0)
  # Exported alone, with or without its description, every robot has its own zeros.
  assert exporting._find_zeroed(source, {'yam': narrow}, 0) == {dit.ACTION_INPUT: 7}
  source = make_source(tmp_path, config, [droid])
  assert exporting._find_zeroed(source, {}, 0) == {dit.ACTION_INPUT: 8}
  # What was trained with noise there, as all that is released, is given back as it is.
  noisy = dataclasses.replace(config, flow=cfg.FlowConfig(mask_padded_noise=False))
  assert exporting._find_zeroed(make_source(tmp_path, noisy, [droid]), robots, 0) == {}


def test_the_server_is_told_apart_from_the_run():
  config = cfg.TrainConfig(model=tiny.I2V, flow=foreign.FLOW, sample=foreign.SAMPLE)
  (fetched,) = serving.list_notes(config, serving.Serving())
  assert 'Wan-AI/Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth (hub), google/umt5-xxl (hub)' in fetched
  assert fetched.endswith('with --text_encoder, --image_encoder, --vae, --tokenizer')
  # Of the second VAE there is another file.
  smaller = dataclasses.replace(config, model=tiny.TI2V)
  (fetched,) = serving.list_notes(smaller, serving.Serving())
  assert 'Wan-AI/Wan2.2-TI2V-5B/Wan2.2_VAE.pth (hub)' in fetched
  paths = dict(text='/m/t5.pth', image='/m/clip.pth', tokenizer='/m/vae.pth')
  known = serving.Serving(paths=paths | {serving.TOKENIZER: '/m/umt5'})
  (fetched,) = serving.list_notes(config, known)
  assert fetched.endswith('in their place: /m/t5.pth, /m/clip.pth, /m/vae.pth, /m/umt5')

  mine = dataclasses.replace(config, flow=cfg.FlowConfig(), sample=cfg.SampleConfig(mode='flash'))
  _, sampling, training = serving.list_notes(mine, known)
  assert "sample.solver='euler' ('unipc' there), sample.steps=4 (16 there)" in sampling
  assert 'mode' not in sampling
  alone = dataclasses.replace(
    config, flow=cfg.FlowConfig(video_hidden=0.2), sample=cfg.SampleConfig(mode='act_only')
  )
  _, sampling, _ = serving.list_notes(alone, known)
  assert sampling.endswith("sample.mode='act_only' ('joint' there)")
  assert training.endswith(
    "flow.action_mean='real' ('padded' there), flow.mask_padded_noise=True (False there)"
  )


def test_paths_of_the_serving_machine_are_in_the_files(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  paths = dict(text='/m/t5.pth', image='/m/clip.pth', tokenizer='/m/vae.pth')
  where = serving.Serving(paths=paths | {serving.TOKENIZER: '/m/umt5'})
  conversions.export_to(tmp_path / 'run', tmp_path / 'back', where=where)
  head = json.loads((tmp_path / 'back/config.json').read_text())['action_head_cfg']['config']
  assert head['text_encoder_cfg']['text_encoder_pretrained_path'] == '/m/t5.pth'
  assert head['image_encoder_cfg']['image_encoder_pretrained_path'] == '/m/clip.pth'
  assert head['vae_cfg']['vae_pretrained_path'] == '/m/vae.pth'
  assert head['diffusion_model_cfg']['diffusion_model_pretrained_path'] is None
  conf = yaml.safe_load((tmp_path / 'back/experiment_cfg/conf.yaml').read_text())
  assert conf['transforms']['oxe_droid']['transforms'][-1]['tokenizer_path'] == '/m/umt5'


def test_what_the_official_code_has_as_constants_is_compared(tmp_path):
  vae = dataclasses.replace(tiny.I2V.tokenizer.vae, blocks=3)
  model = dataclasses.replace(
    tiny.I2V,
    state_rule='self',
    video_sees='video',
    action_overlap=4,
    text=dataclasses.replace(tiny.I2V.text, max_distance=64),
    tokenizer=dataclasses.replace(tiny.I2V.tokenizer, vae=vae),
  )
  source = make_source(tmp_path, cfg.TrainConfig(model=model), [conversions.make_droid()])
  with pytest.raises(ValueError, match='only here') as refusal:
    exporting.export_checkpoint(source, tmp_path / 'back', exporting.Options())
  rules = ("model.state_rule='self'", "model.video_sees='video'", 'model.action_overlap=4: chunks')
  for setting in (*rules, 'model.text.max_distance=64', 'vae.blocks=3'):
    assert setting in str(refusal.value)


def test_models_that_exist_only_here_are_refused(tmp_path):
  source = make_source(tmp_path, cfg.TrainConfig())
  with pytest.raises(
    ValueError, match=r"only here.*:\n  model.tokenizer.kind='patch'\n  model.text.kind='word'"
  ):
    exporting.export_checkpoint(source, tmp_path / 'back', exporting.Options())
