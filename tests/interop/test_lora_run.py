"""Adapters trained on an imported checkpoint, evaluated and exported: merged weights act alike."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from tests.data import published
from tests.interop import test_imported_run as programs
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import finetuning
from wam_jax import items
from wam_jax import train_step
from wam_jax import types
from wam_jax.interop import exporting
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import inspection
from wam_jax.interop import layouts
from wam_jax.interop import own


def import_from(source: pathlib.Path, target: pathlib.Path, vocabulary: pathlib.Path) -> None:
  opened = layouts.open_source(epath.Path(source), foreign.Options())
  importing.import_checkpoint(opened, target, 'keep', True, epath.Path(vocabulary))


def predict(config, params):
  """The velocities of a random window of four by four latents."""
  c = config.model
  F = 1 + c.max_chunks * c.frames_per_chunk
  A = c.max_chunks * c.actions_per_chunk
  C = c.tokenizer.channels
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal((1, *shape)).astype(np.float32)

  window = train_step.Window(
    clean_BFHWC=draw(F, 4, 4, C),
    frame_mask_BF=np.ones((1, F), bool),
    action_BAU=draw(A, c.action_dim),
    action_mask_BAU=np.ones((1, A, c.action_dim), bool),
    body=types.Body(
      proprio_BSX=draw(c.max_chunks, c.proprio_dim),
      embodiment_B=np.zeros(1, np.int32),
      valid_BA=np.ones((1, A), bool),
    ),
    text_BPC=draw(c.text.length, c.text.dim),
    condition=types.Condition(
      image_BIC=draw(c.image_tokens, c.image_dim),
      latents_BFHWC=draw(F, 4, 4, C + 4),
    ),
  )
  noise = train_step.Noise(
    sigma_BF=np.full((1, F), 0.5, np.float32),
    sigma_BA=np.full((1, A), 0.5, np.float32),
    video_BFHWC=draw(F, 4, 4, C),
    action_BAU=draw(A, c.action_dim),
  )
  return jax.jit(functools.partial(train_step.predict, c, config.flow))(params, window, noise)


@pytest.mark.slow
def test_adapters_there_and_back(tmp_path):
  tiny.write_dreamzero(tmp_path / 'official')
  vocabulary = tmp_path / 'spiece.model'
  programs.write_vocabulary(vocabulary)
  dataset = published.write(tmp_path / 'data', 'droid', [100, 90])
  base = tmp_path / 'imported'
  tuned = tmp_path / 'tuned'
  back = tmp_path / 'back'
  import_from(tmp_path / 'official', base, vocabulary)
  flags = (
    f'--config=tests/interop/imported_config.py:{base}',
    f'--workdir={tuned}',
    f'--config.data.mixture.droid.path={dataset}',
    f'--config.model.text.tokenizer={vocabulary}',
    '--config.model.lora.rank=2',
    '--config.trainable=lora',
    # Two steps must change outputs beyond rounding.
    '--config.optimizer.learning_rate=0.05',
    '--config.optimizer.warmup_steps=1',
  )
  programs.run('wam_jax.train', *flags)
  assert 'open loop on 2 windows' in programs.run('wam_jax.evaluate', f'--workdir={tuned}')
  said = inspection.show(inspection.inspect(epath.Path(tuned), foreign.Options(), None))
  assert '30 adapters of rank 2, alpha 4' in said
  assert f'started from step 0 of {base}, weights of hash' in said

  # There and back: adapters merged into an export, which is imported once more.
  source = own.open_workdir(tuned, None)
  report = exporting.export_checkpoint(source, tmp_path / 'exported', exporting.Options())
  assert 'averaged weights, 30 LoRA adapters merged' in exporting.show(report)
  import_from(tmp_path / 'exported', back, vocabulary)

  place = tuned / 'checkpoints' / '2'
  averages = items.load_whole(place / 'ema_params')
  assert not averages['blocks'].keys() & {'norm3', 'modulation'}
  params = finetuning.overlay(items.load_whole(place / 'params'), averages)

  # The same random window by the base with adapters, by the merged weights, and by the base alone.
  adapted = checkpoint.load_newest(tuned, None, lambda place, config, _: config)
  plain = finetuning.merged_config(adapted)
  want = predict(adapted, params)
  got = predict(plain, checkpoint.load_for_inference(back).params)
  before = predict(plain, checkpoint.load_for_inference(base).params)
  for got_one, want_one, before_one in zip(got, want, before, strict=True):
    scale = np.abs(want_one).max()
    # Sums in another order.
    np.testing.assert_allclose(got_one, want_one, atol=1e-5 * scale)
    # The adapters have learnt something.
    assert np.abs(want_one - before_one).max() > 1e-2 * scale
