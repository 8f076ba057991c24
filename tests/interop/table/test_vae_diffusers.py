"""The VAEs against `diffusers.AutoencoderKLWan`, a second source, at tiny random sizes other than
the golden files'.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax.interop.table import rows
from wam_jax.interop.table import vae as table
from wam_jax.models import vae

pytest.importorskip('diffusers', reason="pip install -e '.[torch]'")
torch = pytest.importorskip('torch', reason="pip install -e '.[torch]'")

import diffusers  # noqa: E402

RESIDUAL = dict(
  is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16
)
TINY = {
  'wan2_1': dict(
    base_dim=4, z_dim=5, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True]
  ),
  'wan2_2': dict(
    base_dim=4,
    decoder_base_dim=6,
    z_dim=7,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    temperal_downsample=[False, True, True],
    **RESIDUAL,
  ),
}
FULL = {'wan2_1': {}, 'wan2_2': dict(base_dim=160, decoder_base_dim=256, z_dim=48, **RESIDUAL)}


def our_config(kind, c):
  return cfg.TokenizerConfig(
    kind=kind,
    channels=c.z_dim,
    vae=cfg.VAEConfig(
      encoder_dim=c.base_dim,
      decoder_dim=c.decoder_base_dim or c.base_dim,
      multipliers=tuple(c.dim_mult),
      blocks=c.num_res_blocks,
      temporal_down=tuple(c.temperal_downsample),
    ),
  )


def random_model(kind):
  torch.manual_seed(0)
  model = diffusers.AutoencoderKLWan(**TINY[kind]).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def to_torch(x_BFHWC):
  """Channels before frames, as theirs has them."""
  return torch.from_numpy(x_BFHWC.transpose(0, 4, 1, 2, 3))


def to_numpy(x_BCFHW):
  return x_BCFHW.numpy().transpose(0, 2, 3, 4, 1)


@pytest.mark.parametrize('kind', TINY)
def test_encode_and_decode(kind, request):
  theirs = random_model(kind)
  c = our_config(kind, theirs.config)
  weights = {name: w.numpy() for name, w in theirs.state_dict().items()}
  params = rows.to_params(table.rows(c, 'diffusers'), weights)
  # Theirs does not normalise.
  mean_std_2C = np.stack([np.zeros(c.channels), np.ones(c.channels)])
  ours = vae.WanVAE(params, c, mean_std_2C)

  # Nine frames are three latents: the first alone, then four each.
  rng = np.random.default_rng(0)
  size = 3 * ours.spatial, 2 * ours.spatial
  frames = rng.uniform(-1, 1, (2, 9, *size, 3)).astype(np.float32)
  latents = rng.normal(size=(2, 3, 3, 2, c.channels)).astype(np.float32)
  with torch.no_grad():
    mean = to_numpy(theirs.encode(to_torch(frames)).latent_dist.mean)
    decoded = to_numpy(theirs.decode(to_torch(latents)).sample)
  # Clamped pixels are alike whatever they were.
  assert np.mean(np.abs(decoded) < 1) > 0.5, 'Most decoded pixels must not be clamped.'
  parity.check(
    request, f'VAE {kind} encode (diffusers)', ours.encode(frames), mean, absolute=parity.ENCODERS
  )
  parity.check(
    request,
    f'VAE {kind} decode (diffusers)',
    ours.decode(latents),
    decoded,
    absolute=parity.ENCODERS,
  )


@pytest.mark.parametrize('kind', FULL)
def test_released_sizes_have_the_weights_of_the_table(kind):
  with torch.device('meta'):
    theirs = diffusers.AutoencoderKLWan(**FULL[kind])
  shapes = {name: tuple(w.shape) for name, w in theirs.state_dict().items()}
  listed = table.rows(our_config(kind, theirs.config), 'diffusers')
  assert rows.list_mismatches(listed, shapes) == []
