"""Sizes are recognised from weights: those of the official modules' golden files."""

from __future__ import annotations

import dataclasses

from wam_jax import presets
from wam_jax.interop import sizes
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows as rows_lib
from wam_jax.interop.table import text
from wam_jax.interop.table import vae


def list_shapes(golden):
  return {name: w.shape for name, w in golden.below('w/').items()}


def assert_table_fits(table, golden):
  assert rows_lib.list_mismatches(table, list_shapes(golden)) == []


def test_golden_dit_is_recognised_at_its_sizes(golden_dit):
  said = golden_dit.config
  shapes = list_shapes(golden_dit)
  released = presets.WAN2_1_I2V_14B
  others = {
    'num_frames': 33,
    'tokenizer': dataclasses.replace(released.tokenizer, channels=said['out_dim']),
    'text': dataclasses.replace(released.text, dim=said['text_dim']),
    'image': dataclasses.replace(released.image, dim=said['image_embed_dim']),
  }
  assert_table_fits(dit.rows(sizes.infer_model(said, shapes, **others)), golden_dit)
  # Only heads and latent channels are said; the other sizes are in the shapes.
  silent = {key: said[key] for key in ('num_heads', 'out_dim')}
  assert_table_fits(dit.rows(sizes.infer_model(silent, shapes, **others)), golden_dit)


def test_golden_vae21_is_recognised_at_its_sizes(golden_vae21):
  assert_vae_fits(golden_vae21, 'wan2_1')


def test_golden_vae22_is_recognised_at_its_sizes(golden_vae22):
  assert_vae_fits(golden_vae22, 'wan2_2')


def assert_vae_fits(golden, kind):
  config = sizes.infer_tokenizer({}, list_shapes(golden), resize=(), dtype='float32')
  assert config.kind == kind
  assert config.channels == golden.config['z_dim']
  assert config.vae.encoder_dim == golden.config['dim']
  assert_table_fits(vae.rows(config, 'wan'), golden)


def test_golden_umt5_is_recognised_at_its_sizes(golden_umt5):
  said = golden_umt5.config
  config = sizes.infer_text({}, list_shapes(golden_umt5), 8, 'float32')
  assert config.heads == said['num_heads']
  assert config.buckets == said['num_buckets']
  assert_table_fits(text.rows(config, 'wan', said['shared_pos']), golden_umt5)
