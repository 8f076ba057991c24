"""UMT5 and CLIP against `transformers`, a source independent of the golden files, and their weights
both ways.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import parity
from wam_jax import config as cfg
from wam_jax.interop.table import image as image_table
from wam_jax.interop.table import rows
from wam_jax.interop.table import text as text_table
from wam_jax.models import image
from wam_jax.models import text

torch = pytest.importorskip('torch', reason="pip install -e '.[torch]'")
transformers = pytest.importorskip('transformers', reason="pip install -e '.[torch]'")

# Widths that differ from each other, and distances beyond the last bucket.
TEXT = cfg.TextConfig(
  kind='umt5',
  vocab=40,
  length=20,
  dim=16,
  layers=3,
  heads=4,
  attention_dim=24,
  mlp_dim=32,
  buckets=8,
  max_distance=10,
)
IMAGE = cfg.ImageConfig(
  kind='clip', size=12, patch=4, dim=16, heads=4, layers=3, mlp_ratio=2, out_dim=6
)


def randomize(module):
  """`module` with every parameter drawn anew, so that gains and biases count too; and its weights
  in NumPy.
  """
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.copy_(
        0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)
      )
  return module.eval(), {name: w.numpy() for name, w in module.state_dict().items()}


def assert_same_weights(got, want):
  assert set(got) == set(want)
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize('family', ['UMT5', 'T5'])
def test_the_text_encoder_computes_as_that_of_transformers(request, family, tmp_path):
  """T5 shares one bias table; it is the second source for `shared_bias`."""
  c = TEXT
  make = getattr(transformers, f'{family}EncoderModel')
  make_config = getattr(transformers, f'{family}Config')
  config = make_config(
    vocab_size=c.vocab,
    d_model=c.dim,
    d_kv=c.attention_dim // c.heads,
    d_ff=c.mlp_dim,
    num_layers=c.layers,
    num_heads=c.heads,
    relative_attention_num_buckets=c.buckets,
    relative_attention_max_distance=c.max_distance,
    feed_forward_proj='gated-gelu',
  )
  model, weights = randomize(make(config))
  # Embeddings that transformers lists under two names.
  for duplicate, name in text_table.TIED.items():
    np.testing.assert_array_equal(weights.pop(duplicate), weights[name])
  table = text_table.rows(c, 'diffusers', shared_bias=family == 'T5')
  ours = text.UMT5(rows.to_params(table, weights), c)

  ids_BP = np.random.default_rng(0).integers(1, c.vocab, (2, c.length))
  # A full prompt, and one of 7 tokens; what lies beyond is zero in ours.
  mask_BP = np.arange(c.length) < [[c.length], [7]]
  with torch.no_grad():
    given = torch.tensor(ids_BP), torch.tensor(mask_BP.astype(int))
    want_BPD = model(*given).last_hidden_state.numpy()
  parity.check(
    request,
    f'{family} (transformers)',
    jax.jit(text.UMT5.encode)(ours, ids_BP, mask_BP),
    want_BPD * mask_BP[..., None],
    absolute=parity.ENCODERS,
  )

  back = rows.to_weights(table, ours.params)
  assert_same_weights(back, weights)
  assert is_loaded_whole(make, model.config, back, tmp_path)


@pytest.mark.parametrize('projection', [True, False])
def test_the_image_encoder_computes_as_that_of_transformers(request, projection, tmp_path):
  c = IMAGE if projection else dataclasses.replace(IMAGE, out_dim=0)
  make = transformers.CLIPVisionModelWithProjection if projection else transformers.CLIPVisionModel
  config = transformers.CLIPVisionConfig(
    hidden_size=c.dim,
    intermediate_size=c.mlp_ratio * c.dim,
    projection_dim=IMAGE.out_dim,
    num_hidden_layers=c.layers,
    num_attention_heads=c.heads,
    image_size=c.size,
    patch_size=c.patch,
    hidden_act='gelu',
  )
  model, weights = randomize(make(config))
  if not projection:
    # Files have the prefix, and so had the class before transformers 5.
    short = {name.removeprefix('vision_model.'): w for name, w in weights.items()}
    weights = {f'vision_model.{name}': w for name, w in short.items()}
  table = image_table.rows(c, 'diffusers')
  params = image_table.complete(rows.to_params(table, image_table.fuse(table, weights)), IMAGE)

  pixels_BIJ3 = np.random.default_rng(0).normal(size=(2, c.size, c.size, 3)).astype(np.float32)
  with torch.no_grad():
    want = model(torch.tensor(pixels_BIJ3).permute(0, 3, 1, 2), output_hidden_states=True)
  apply = jax.jit(image.ClipTower(IMAGE).apply, static_argnames='method')
  parity.check(
    request,
    'CLIP penultimate (transformers)',
    apply({'params': params}, pixels_BIJ3, method='penultimate'),
    want.hidden_states[-2],
    absolute=parity.ENCODERS,
  )
  if projection:
    parity.check(
      request,
      'CLIP embedding (transformers)',
      apply({'params': params}, pixels_BIJ3),
      want.image_embeds,
      absolute=parity.ENCODERS,
    )

  back = image_table.split(rows.to_weights(table, params))
  assert_same_weights(back, weights)
  assert is_loaded_whole(make, model.config, back, tmp_path)
  # Through the other layout, too, where the weights that Diffusers lacks have a value.
  wan = image_table.rows(IMAGE, 'wan')
  again = rows.to_params(wan, rows.to_weights(wan, params))
  assert_same_weights(image_table.split(rows.to_weights(table, again)), weights)


def test_incomplete_attention_is_named():
  table = image_table.rows(IMAGE, 'diffusers')
  weights = image_table.split(
    {name: np.zeros(row.torch_shape, np.float32) for row in table for name in row.names}
  )
  prefix = 'vision_model.encoder.layers.1.self_attn'
  del weights[f'{prefix}.k_proj.weight']
  with pytest.raises(
    ValueError, match=rf'{prefix}.qkv_proj.weight is missing(.|\n)*{prefix}.q_proj.weight .* unexp'
  ):
    rows.to_params(table, image_table.fuse(table, weights))


def is_loaded_whole(make, config, weights, directory):
  """Whether `make.from_pretrained` finds each weight that it has in a directory of `weights`, and
  no other.
  """
  config.save_pretrained(directory)
  safetensors.numpy.save_file(
    {k: np.ascontiguousarray(w) for k, w in weights.items()},
    directory / 'model.safetensors',
    metadata={'format': 'pt'},
  )
  model, report = make.from_pretrained(directory, output_loading_info=True)
  state = {name.removeprefix('vision_model.'): w for name, w in model.state_dict().items()}
  want = {name.removeprefix('vision_model.'): w for name, w in weights.items()}
  same = all(np.array_equal(state[name], w) for name, w in want.items())
  return same and not report['missing_keys'] and not report['unexpected_keys']
