"""The transformer against Diffusers' Wan transformer: all frames at once, one noise level, no
actions.
"""

from __future__ import annotations

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

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

B, F, H, W, TEXT, IMAGE = (
  2,
  3,
  4,
  6,
  512,
  5,
)  # Diffusers takes what stands before the last 512 tokens for the image's.
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
I2V = cfg.ModelConfig(
  **{**vars(TI2V), 'image_condition': True, 'image_dim': 14, 'image_tokens': IMAGE}
)
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
    is_gain = 'norm' in name and name.endswith('weight')
    p.data = is_gain + 0.2 * torch.randn(p.shape, generator=generator)
  return theirs.eval()


@CONFIGS
def test_forward(config, request):
  theirs = make_theirs(config)
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  noisy, sigma_B, text_BPC = normal(B, F, H, W, 4), np.float32([0.7, 0.25]), normal(B, TEXT, 10)
  condition, image_BIC = (
    (normal(B, F, H, W, 8), normal(B, IMAGE, 14)) if config.image_dim else (None, None)
  )
  given = noisy if condition is None else np.concatenate([noisy, condition], -1)
  tensor = lambda x: None if x is None else torch.from_numpy(x)
  with torch.no_grad():
    want = theirs(
      tensor(np.moveaxis(given, -1, 1).copy()),
      tensor(1000 * sigma_B),
      tensor(text_BPC),
      tensor(image_BIC),
      return_dict=False,
    )[0]

  weights = {name: p.numpy() for name, p in theirs.state_dict().items()}
  params = rows.to_params(table.wan_rows(config, 'diffusers'), weights)
  model = wam.WorldActionModel(config)
  one_frame = (H // config.patch) * (W // config.patch)
  cache = attention.KVCache.empty(
    config.num_layers, B, config.num_heads, one_frame, config.head_dim, 'float32'
  )

  @jax.jit
  def forward(params):
    apply = lambda method, *args: model.apply({'params': params}, *args, method=method)
    prompt = apply('prompt_kv', text_BPC, image_BIC)
    video = types.Noisy(video_BFHWC=noisy, sigma_video_BF=np.repeat(sigma_B[:, None], F, 1))
    first_frame = types.Condition(latents_BFHWC=condition)
    return apply('denoise', cache, video, None, 0, prompt, first_frame)[0]

  parity.check(
    request,
    f'DiT, Diffusers {"i2v" if config.image_dim else "ti2v"}',
    np.moveaxis(forward(params), -1, 1),
    want,
    absolute=parity.OUTPUTS,
  )


@CONFIGS
def test_names_and_shapes(config):
  """Every weight of Diffusers' model once, and the action modules beside it under names of their
  own.
  """
  theirs = {name: tuple(p.shape) for name, p in make_theirs(config).state_dict().items()}
  assert rows.list_mismatches(table.wan_rows(config, 'diffusers'), theirs) == []
  both, wan = (table.rows(config, layout) for layout in ('diffusers', 'wan'))
  assert [row.path for row in both] == [row.path for row in wan]
  names = [name for row in both for name in row.names]
  assert len(names) == len(set(names))
  assert [name for name in names if name not in theirs] == [
    n for row in table.action_rows(config) for n in row.names
  ]


def test_unknown_layout():
  with pytest.raises(ValueError, match="layout='keras' must be 'wan' or 'diffusers'"):
    table.rows(TI2V, 'keras')
