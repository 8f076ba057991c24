"""The arguments of a training step that nobody allocates."""

from __future__ import annotations

import dataclasses
import math

import jax

from tests import train_config
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import sharding
from wam_jax import train_step
from wam_jax.aot import abstract


def test_abstract_arguments_are_those_of_training():
  config = cfg.from_config_dict(train_config.get_config())
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:1])
  state, batch = abstract.arguments(config, mesh)
  fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
  # The others are for models with an overlap, and of features.
  assert {name: field.shape for name, field in fields.items() if field is not None} == {
    # Frame 0 and two chunks of two camera frames, both views side by side.
    'frames_BRIJ3': (8, 5, 32, 48, 3),
    'action_BAU': (8, 16, 4),
    'action_mask_BAU': (8, 16, 4),
    'proprio_BQX': (8, 2, 8),
    'chunk_mask_BQ': (8, 2),
    'prompt_ids_BP': (8, 16),
    'embodiment_B': (8,),
    'sample_B2': (8, 2),
  }
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  # Float32, all on the one device.
  assert sharding.bytes_per_device(state.params) == 4 * count
  step = train_step.make_train_step(config, mesh, jax.tree.map(lambda x: x.sharding, state))
  out, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(lambda x: x.shape, state)
  assert 'loss' in metrics


def test_large_models_are_given_features_and_frozen_encoders():
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:1])
  data = cfg.DataConfig(embodiments=('droid',))
  config = cfg.TrainConfig(model=presets.WAN2_1_I2V_14B, batch_size=128, data=data)
  state, batch = abstract.arguments(config, mesh)
  assert batch.frames_BRIJ3 is None
  # 352 x 640 pixels and 33 frames through a VAE of 8 x 8 x 4.
  assert batch.features.clean_BFHWC.shape == (128, 9, 44, 80, 16)
  assert batch.features.text_BPC.shape == (128, 512, 4096)
  assert batch.features.image_BIC.shape == (128, 257, 1280)
  # Billions of parameters, float32: Wan2.1-I2V-14B and the action modules.
  assert round(sharding.bytes_per_device(state.params) / 4e9, 3) == 16.484
  # umT5-XXL's encoder in bfloat16.
  assert 11e9 < sharding.bytes_per_device(state.frozen.text) < 12e9
