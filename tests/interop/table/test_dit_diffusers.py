"""The transformer against Diffusers' Wan transformer: all frames at once, one noise level, no
actions.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.interop.table import dit as table
from wam_jax.interop.table import rows
from wam_jax.models import attention
from wam_jax.models import wam

torch = pytest.importorskip('torch', reason="pip install -e '.[torch]'")
diffusers = pytest.importorskip('diffusers', reason="pip install -e '.[torch]'")

B, F, H, W = 2, 3, 4, 6
# Diffusers takes what stands before the last 512 tokens for the image's.
TEXT = 512
IMAGE = 5
TI2V = cfg.ModelConfig(
  dim=24,
  mlp_dim=40,
  num_heads=2,
  num_layers=2,
  freq_dim=16,
  action_dim=3,
  proprio_dim=4,
  action_hidden=8,
  frames_per_chunk=F,
  max_chunks=1,
  tokenizer=cfg.TokenizerConfig(channels=4),
  text=cfg.TextConfig(dim=10),
)
I2V = dataclasses.replace(TI2V, image_condition=True, image_dim=14, image_tokens=IMAGE)
CONFIGS = pytest.mark.parametrize('config', [I2V, TI2V], ids=['i2v', 'ti2v'])


def make_theirs(c):
  """Diffusers' model of the same shape, every weight random."""
  theirs = diffusers.WanTransformer3DModel(
    patch_size=(1, c.patch, c.patch),
    num_attention_heads=c.num_heads,
    attention_head_dim=c.head_dim,
    in_channels=c.in_channels,
    out_channels=c.tokenizer.channels,
    text_dim=c.text.dim,
    freq_dim=c.freq_dim,
    ffn_dim=c.mlp_dim,
    num_layers=c.num_layers,
    cross_attn_norm=True,
    eps=c.eps,
    image_dim=c.image_dim or None,
    added_kv_proj_dim=c.dim if c.image_dim else None,
  )
  generator = torch.Generator().manual_seed(0)
  for name, p in theirs.named_parameters():
    # Gains about 1, all else about 0; none is left at its start, where a swap would not show.
    is_gain = 'norm' in name and name.endswith('weight')
    p.data = is_gain + 0.2 * torch.randn(p.shape, generator=generator)
  return theirs.eval()


@CONFIGS
def test_the_transformer_computes_as_that_of_diffusers(config, request):
  theirs = make_theirs(config)
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  noisy_BFHWC = draw(B, F, H, W, 4)
  sigma_B = np.float32([0.7, 0.25])
  text_BPC = draw(B, TEXT, 10)
  condition_BFHWC = draw(B, F, H, W, 8) if config.image_dim else None
  image_BIC = draw(B, IMAGE, 14) if config.image_dim else None

  # Theirs takes both as channels of one input, before frames, and noise levels of 0 to 1000.
  given = noisy_BFHWC
  if condition_BFHWC is not None:
    given = np.concatenate([noisy_BFHWC, condition_BFHWC], -1)
  with torch.no_grad():
    want = theirs(
      torch.from_numpy(np.moveaxis(given, -1, 1).copy()),
      timestep=torch.from_numpy(1000 * sigma_B),
      encoder_hidden_states=torch.from_numpy(text_BPC),
      encoder_hidden_states_image=None if image_BIC is None else torch.from_numpy(image_BIC),
      return_dict=False,
    )[0]

  weights = {name: p.numpy() for name, p in theirs.state_dict().items()}
  params = rows.to_params(table.wan_rows(config, 'diffusers'), weights)
  model = wam.WorldActionModel(config)
  one_frame = (H // config.patch) * (W // config.patch)
  # Slots that stay empty: all frames are given at once.
  cache = attention.KVCache.empty(
    layers=config.num_layers,
    batch=B,
    heads=config.num_heads,
    slots=one_frame,
    head_dim=config.head_dim,
    dtype='float32',
  )

  @jax.jit
  def forward(params):
    apply = functools.partial(model.apply, {'params': params})
    prompt = apply(text_BPC, image_BIC, method='prompt_kv')
    video = types.Noisy(
      video_BFHWC=noisy_BFHWC,
      sigma_video_BF=np.repeat(sigma_B[:, None], F, axis=1),
    )
    first_frame = types.Condition(latents_BFHWC=condition_BFHWC)
    velocity, *_ = apply(
      cache, video, None, 0, prompt=prompt, condition=first_frame, method='denoise'
    )
    return velocity

  parity.check(
    request,
    f'DiT, Diffusers {"i2v" if config.image_dim else "ti2v"}',
    np.moveaxis(forward(params), -1, 1),
    want,
    absolute=parity.OUTPUTS,
  )


@CONFIGS
def test_every_weight_of_diffusers_has_one_row(config):
  """Every weight of Diffusers' model once, and the action modules beside it under names of their
  own.
  """
  theirs = {name: tuple(p.shape) for name, p in make_theirs(config).state_dict().items()}
  assert rows.list_mismatches(table.wan_rows(config, 'diffusers'), theirs) == []
  both = table.rows(config, 'diffusers')
  assert [row.path for row in both] == [row.path for row in table.rows(config, 'wan')]
  names = list_names(both)
  assert len(names) == len(set(names))
  others = [name for name in names if name not in theirs]
  assert others == list_names(table.action_rows(config))


def list_names(listed):
  return [name for row in listed for name in row.names]


def test_an_unknown_layout_is_told():
  with pytest.raises(ValueError, match="layout='keras' must be 'wan' or 'diffusers'"):
    table.rows(TI2V, 'keras')
