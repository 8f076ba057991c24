"""Wan-AI's originals: encoders in `.pth` files, here or elsewhere, and action modules made new."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax.data import embodiments
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import layouts
from wam_jax.interop import own
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows as rows_lib


@pytest.mark.parametrize(
  ('model', 'with_image'), [(tiny.I2V, True), (tiny.TI2V, True), (tiny.TI2V, False)]
)
def test_wan_originals_get_new_action_modules(tmp_path, model, with_image):
  weights = tiny.write_wan(tmp_path / 'source', model, with_image)
  report = conversions.import_from(tmp_path / 'source', tmp_path / 'run', num_embodiments=2)
  # Fresh are the action modules, which Wan does not have, and where an image encoder is given to a
  # model without image condition, its attention to images.
  action = {name for row in dit.action_rows(model) for name in row.names}
  imaged = {name for name in report['fresh'] if 'img' in name}
  assert set(report['fresh']) - imaged == action
  assert bool(imaged) == (with_image and not model.image_condition)

  source = own.open_workdir(tmp_path / 'run', None)
  imported = source.config.model
  assert (imported.image_dim, imported.image.kind) == ((32, 'clip') if with_image else (0, 'none'))
  assert imported.num_embodiments == 2
  assert source.source['fresh'] == report['fresh']

  params = checkpoint.load_for_inference(tmp_path / 'run').params
  table = [row for row in dit.wan_rows(imported) if row.torch.format(0) not in imaged]
  conversions.assert_same_bits(rows_lib.to_weights(table, params), weights['dit'])
  assert_initialised(params, bool(imaged))

  # A second import draws the same new weights.
  conversions.import_from(tmp_path / 'source', tmp_path / 'again', num_embodiments=2)
  again = checkpoint.load_for_inference(tmp_path / 'again').params
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_the_robot_of_weights_that_know_none_may_be_named(tmp_path):
  tiny.write_wan(tmp_path / 'source', tiny.I2V)
  opened = layouts.open_source(epath.Path(tmp_path / 'source'), foreign.Options())
  droid = embodiments.get('droid')
  importing.import_checkpoint(
    opened, tmp_path / 'run', 'keep', statistics=True, vocabulary=None, record=droid
  )
  source = own.open_workdir(tmp_path / 'run', None)
  # Training goes on from its row; statistics are those of the data then.
  assert source.robots() == {'droid': robot_lib.Robot(id=0, record=droid, statistics=None)}
  assert source.config.data.embodiments == ('droid',)

  hand = embodiments.Slice(key='hand', start=0, stop=40, unit='rad')
  wide = dataclasses.replace(droid, action=(hand,))
  with pytest.raises(ValueError, match="'droid' has 40 action .* has room for 32 and 64"):
    importing.import_checkpoint(
      opened, tmp_path / 'wide', 'keep', statistics=True, vocabulary=None, record=wide
    )
  tiny.write_dreamzero(tmp_path / 'official')
  opened = layouts.open_source(epath.Path(tmp_path / 'official'), foreign.Options())
  with pytest.raises(ValueError, match='names its own robots, droid: leave out --embodiment'):
    importing.import_checkpoint(
      opened, tmp_path / 'two', 'keep', statistics=True, vocabulary=None, record=droid
    )


def assert_initialised(params, has_new_image_attention):
  """New weights have the distribution of the reference's."""
  mix = params['action_encoder']['mix']
  # Normal with a deviation of 0.02, which 4096 samples tell to about one percent.
  assert mix['w'].shape == (2, 64, 32)
  assert abs(float(np.std(mix['w'].astype(np.float32))) - 0.02) < 0.002
  assert not mix['b'].any()
  if not has_new_image_attention:
    return
  attention = params['blocks']['cross_attn']
  assert (attention['norm_k_image']['scale'] == 1).all()
  k = attention['k_image']['w'].astype(np.float32)
  assert k.shape == (3, 32, 2, 16)
  # Xavier uniform of 32 by 32.
  assert abs(np.abs(k).max() - (6 / 64) ** 0.5) < 0.01
  assert not np.array_equal(k[0], k[1])


def test_wan_encoders_may_lie_elsewhere(tmp_path):
  source = tmp_path / 'source'
  elsewhere = tmp_path / 'else'
  tiny.write_wan(source, tiny.I2V)
  elsewhere.mkdir()
  files = {'text': 'models_t5_umt5-xxl-enc-bf16.pth', 'tokenizer': 'Wan2.1_VAE.pth'}
  for name in files.values():
    (source / name).rename(elsewhere / name)
  message = (
    r'models_t5\*.pth is missing; .* pass --text_encoder=FILE .*\n'
    r'  \*VAE\*.pth is missing; .*--vae=FILE'
  )
  with pytest.raises(ValueError, match=message):
    conversions.import_from(source, tmp_path / 'run')

  encoders = {
    'text': epath.Path(elsewhere),
    'tokenizer': epath.Path(elsewhere / files['tokenizer']),
  }
  conversions.import_from(source, tmp_path / 'run', encoders=encoders)
  nowhere = {'text': epath.Path(tmp_path / 'nowhere')}
  with pytest.raises(ValueError, match='given for the text encoder, does not exist'):
    conversions.import_from(source, tmp_path / 'other', encoders=nowhere)
