"""Diffusers directories: every bit there and back, opened by the libraries they are for, and what
is refused.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax.interop import own
from wam_jax.interop.dreamzero import layout as dreamzero_layout


def make_weights(model: cfg.ModelConfig) -> dict[str, np.ndarray]:
  """A random state dict of a DreamZero checkpoint that Diffusers has room for."""
  weights = tiny.prefixed(tiny.random_weights(model, 'dreamzero'))
  prefix = dreamzero_layout.PREFIXES['image']
  # CLIP's, which Diffusers leaves out and nothing reads: they come back as CLIP begins with them.
  weights[f'{prefix}visual.head'][...] = 0
  weights[f'{prefix}log_scale'][...] = np.log(1 / 0.07)
  return weights


def without_vocabulary(config: cfg.TrainConfig) -> cfg.ModelConfig:
  text = dataclasses.replace(config.model.text, tokenizer='')
  return dataclasses.replace(config.model, text=text)


@pytest.mark.parametrize('model', [tiny.I2V, tiny.TI2V])
def test_diffusers_directory_holds_every_bit(tmp_path, model):
  weights = make_weights(model)
  tiny.write_dreamzero(tmp_path / 'source', model, weights)
  (tmp_path / 'source' / 'tokenizer.json').write_text('{}')

  # Official, ours, Diffusers, ours, official.
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  pipeline = tmp_path / 'pipeline'
  conversions.export_to(tmp_path / 'run', pipeline, layout='diffusers', shard_bytes=100_000)
  conversions.import_from(pipeline, tmp_path / 'again')
  conversions.export_to(tmp_path / 'again', tmp_path / 'back')
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), weights)

  # What is not an array comes back as well: model, flow, sampling, robots and the vocabulary.
  first = own.open_workdir(tmp_path / 'run', None)
  second = own.open_workdir(tmp_path / 'again', None)
  assert without_vocabulary(first.config) == without_vocabulary(second.config) == model
  assert first.config.flow == second.config.flow
  assert first.config.sample == second.config.sample
  assert first.data == second.data
  assert (pipeline / 'tokenizer/tokenizer.json').read_text() == '{}'
  assert (tmp_path / 'again/tokenizer.json').exists()


@pytest.mark.parametrize('model', [tiny.I2V, tiny.TI2V])
def test_diffusers_and_transformers_open_the_export(tmp_path, model):
  torch = pytest.importorskip('torch', reason="pip install -e '.[torch]'")
  diffusers = pytest.importorskip('diffusers', reason="pip install -e '.[torch]'")
  transformers = pytest.importorskip('transformers', reason="pip install -e '.[torch]'")
  tiny.write_dreamzero(tmp_path / 'source', model)
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  pipeline = tmp_path / 'pipeline'
  conversions.export_to(tmp_path / 'run', pipeline, layout='diffusers')

  of_diffusers = {
    'transformer': diffusers.WanTransformer3DModel,
    'vae': diffusers.AutoencoderKLWan,
  }
  for folder, kind in of_diffusers.items():
    # By hand, because `from_pretrained` would need one more package.
    opened = kind.from_config(kind.load_config(pipeline / folder))
    weights = tiny.load(pipeline / folder)
    # It raises unless the names are those of the model, and the shapes.
    opened.load_state_dict(
      {name: torch.tensor(w.astype(np.float32)) for name, w in weights.items()}
    )

  of_transformers = {
    'text_encoder': transformers.UMT5EncoderModel,
    'image_encoder': transformers.CLIPVisionModel,
  }
  for folder, kind in of_transformers.items():
    opened, said = kind.from_pretrained(pipeline / folder, output_loading_info=True)
    for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
      assert not said[key], said
    # Heads cannot be told from shapes: 4 of the tiny text encoder, 16 of CLIP.
    assert opened.config.num_attention_heads in (4, 16)


def test_latents_of_another_mean_are_kept(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  conversions.export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers')
  conversions.edit_json(
    tmp_path / 'pipeline/vae/config.json', lambda c: c.update(latents_mean=[0.5] * 16)
  )
  conversions.import_from(tmp_path / 'pipeline', tmp_path / 'again')
  frozen = checkpoint.load_for_inference(tmp_path / 'again').frozen
  np.testing.assert_array_equal(frozen.tokenizer.mean_std_2C[0], np.full(16, 0.5, np.float32))

  conversions.export_to(tmp_path / 'again', tmp_path / 'pipeline2', layout='diffusers')
  exported = json.loads((tmp_path / 'pipeline2/vae/config.json').read_text())
  assert exported['latents_mean'] == [0.5] * 16
  # An official checkpoint has no place for them: the numbers are in its code.
  with pytest.raises(ValueError, match='other mean and deviation of latents'):
    conversions.export_to(tmp_path / 'again', tmp_path / 'back')


def remove_a_config(pipeline):
  (pipeline / 'transformer/config.json').unlink()


def remove_a_size(pipeline):
  conversions.edit_json(pipeline / 'vae/config.json', lambda c: c.pop('z_dim'))


def remove_weights(pipeline):
  for name in ('vae', 'text_encoder'):
    next((pipeline / name).glob('*.safetensors')).unlink()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (remove_a_config, 'transformer/config.json does not exist'),
    (remove_a_size, "lacks 'z_dim'; it must be of a Wan"),
    (
      remove_weights,
      r'is not whole:\n  .*text_encoder has neither model.safetensors.*\n'
      r'  .*vae has neither diffusion_pytorch_model',
    ),
  ],
)
def test_damaged_diffusers_directory(tmp_path, damage, message):
  tiny.write_dreamzero(tmp_path / 'source')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  conversions.export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers')
  damage(tmp_path / 'pipeline')
  with pytest.raises(ValueError, match=message):
    conversions.import_from(tmp_path / 'pipeline', tmp_path / 'again')
