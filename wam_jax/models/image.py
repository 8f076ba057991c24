"""Image encoder of the first frame: the CLIP vision tower (ViT-H/14 as released), frozen."""

from __future__ import annotations

from typing import Any

import einops
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.models import attention
from wam_jax.models import layers
from wam_jax.models import tokenizer

# Mean and standard deviation of RGB in [0, 1] that CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-5  # Of CLIP's norms; Wan's own have 1e-6.


@flax.struct.dataclass
class ClipVision:
  """Frames to the tokens that image cross-attention reads. Source: DreamZero `WanImageEncoder`.

  Attributes:
    params: parameters of `ClipTower`, in any float dtype.
    config: sizes of the tower, and the dtype of the computation.
  """

  params: Any
  config: cfg.ImageConfig = flax.struct.field(pytree_node=False)

  def encode(self, frames_BIJ3: jax.Array) -> jax.Array:
    """[B, 1 + patches, D] in `config.dtype`: what enters the last block, class token first, without
    a final norm.

    Args:
      frames_BIJ3: uint8 [0, 255] or float [-1, 1] RGB of any size; squashed to a square.
    """
    pixels = preprocess(frames_BIJ3, self.config.size)
    return ClipTower(self.config).apply({'params': self.params}, pixels, method='penultimate')


def init(config: cfg.ImageConfig, key: jax.Array) -> ClipVision:
  """Random parameters boxed with their axis names; under `jax.eval_shape`, the shapes of a
  checkpoint's.
  """
  pixels = jnp.zeros((1, config.size, config.size, 3))
  return ClipVision(ClipTower(config).init(key, pixels)['params'], config)


class ClipTower(nn.Module):
  """Pixels of `preprocess` to tokens.

  `penultimate` is all that `ClipVision.encode` needs; the last block and the projection are there
  so that a checkpoint can be exported whole.
  """

  cfg: cfg.ImageConfig

  def setup(self):
    c = self.cfg
    if c.layers < 2 or c.size % c.patch or c.dim % c.heads:
      raise ValueError(
        f'model.image.layers={c.layers} must be at least 2, model.image.size={c.size} a multiple '
        f'of model.image.patch={c.patch}, and model.image.dim={c.dim} one of '
        f'model.image.heads={c.heads}.'
      )
    D = c.dim
    normal = nn.initializers.normal(D**-0.5)
    self.patch_embedding = layers.Einsum(
      'BHpWqC,pqCD->BHWD',
      (c.patch, c.patch, 3, D),
      ('norm', 'norm', 'channels', 'embed'),
      jnp.dtype(c.dtype),
      use_bias=False,
    )
    self.cls_embedding = self.param(
      'cls_embedding', layers.boxed(normal, ('embed',)), (D,), jnp.float32
    )
    self.pos_embedding = self.param(
      'pos_embedding', layers.boxed(normal, ('norm', 'embed')), (c.tokens, D), jnp.float32
    )
    self.pre_norm = layers.LayerNorm(EPS, affine=True)
    self.blocks = nn.scan(
      ClipBlock,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=c.layers - 1,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c)
    self.last_block = ClipBlock(c)
    self.projection = ClipProjection(c)

  def penultimate(self, pixels_BIJ3: jax.Array) -> jax.Array:
    """[B, T, D]: hidden state before the last block."""
    c = self.cfg
    dtype = jnp.dtype(c.dtype)
    B = pixels_BIJ3.shape[0]
    order = 'B (H p) (W q) C -> B H p W q C'
    patches = einops.rearrange(pixels_BIJ3, order, p=c.patch, q=c.patch)
    x_BTD = self.patch_embedding(patches).reshape(B, -1, c.dim)
    cls_B1D = jnp.broadcast_to(self.cls_embedding.astype(dtype), (B, 1, c.dim))
    x_BTD = jnp.concatenate([cls_B1D, x_BTD], 1) + self.pos_embedding.astype(dtype)
    x_BTD, _ = self.blocks(self.pre_norm(x_BTD), None)
    return x_BTD

  def last(self, pixels_BIJ3: jax.Array) -> jax.Array:
    """[B, T, D]: hidden state after the last block."""
    x_BTD, _ = self.last_block(self.penultimate(pixels_BIJ3), None)
    return x_BTD

  def __call__(self, pixels_BIJ3: jax.Array) -> jax.Array:
    """[B, O]: CLIP's embedding of the whole image, not normalised."""
    return self.projection(self.last(pixels_BIJ3)[:, 0])


class ClipBlock(nn.Module):
  """Pre-norm self-attention and feed-forward."""

  cfg: cfg.ImageConfig

  @nn.compact
  def __call__(self, x_BTD, _):
    c = self.cfg
    dtype = jnp.dtype(c.dtype)
    D, N = c.dim, c.heads
    K = D // N

    # One kernel makes queries, keys and values, as it is stored.
    h_BTD = layers.LayerNorm(EPS, affine=True, name='norm1')(x_BTD)
    axes = ('embed', 'norm', 'heads', 'head_dim')
    q, k, v = layers.Einsum('BTD,DiNK->iBNTK', (D, 3, N, K), axes, dtype, name='qkv')(h_BTD)
    y_BNTK = attention.attend(q, k, v)
    axes = ('heads', 'head_dim', 'embed')
    x_BTD = x_BTD + layers.Einsum('BNTK,NKD->BTD', (N, K, D), axes, dtype, name='o')(y_BNTK)

    h_BTD = layers.LayerNorm(EPS, affine=True, name='norm2')(x_BTD)
    mlp = layers.MLP(c.mlp_ratio * D, D, layers.gelu_erf, dtype, name='mlp')
    x_BTD = x_BTD + mlp(h_BTD)
    return sharding.shard(x_BTD, 'batch', None, 'act_embed'), None


class ClipProjection(nn.Module):
  """Class token to the embedding that CLIP compares with texts', whose temperature is
  `log_scale`.
  """

  cfg: cfg.ImageConfig

  @nn.compact
  def __call__(self, x_BD: jax.Array) -> jax.Array:
    D, O = self.cfg.dim, self.cfg.out_dim
    self.param('log_scale', layers.boxed(nn.initializers.zeros, ()), (), jnp.float32)
    head_DO = self.param(
      'head',
      layers.boxed(nn.initializers.normal(D**-0.5), ('embed', 'embed_out')),
      (D, O),
      jnp.float32,
    )
    x_BD = layers.LayerNorm(EPS, affine=True, name='norm')(x_BD)
    return x_BD @ head_DO.astype(self.cfg.dtype)


def preprocess(frames_BIJ3: jax.Array, size: int) -> jax.Array:
  """[B, size, size, 3] float32 with CLIP's mean and deviation of each colour, from frames as
  `encode` takes them.
  """
  pixels = resize_bicubic(tokenizer.to_pixels(frames_BIJ3), size, size)
  # From [-1, 1] to [0, 1], where CLIP's mean and deviation were measured.
  return (pixels / 2 + 0.5 - np.float32(MEAN)) / np.float32(STD)


def resize_bicubic(x_BIJC: jax.Array, rows: int, columns: int) -> jax.Array:
  """[B, rows, columns, C] float32 by cubic convolution: half-pixel centres, edges repeated, no
  antialiasing.

  Source: torch `interpolate(mode='bicubic', align_corners=False)`; values may leave the range of
  the input.
  """
  _, I, J, _ = x_BIJC.shape
  return jnp.einsum(
    'BIJC,iI,jJ->BijC',
    x_BIJC.astype(jnp.float32),
    _cubic_matrix(rows, I),
    _cubic_matrix(columns, J),
    precision=jax.lax.Precision.HIGHEST,
  )


def _cubic_matrix(out: int, size: int) -> np.ndarray:
  """[out, size] float32: what each input contributes to each output, the cubic kernel of parameter
  -0.75.

  Scale and centres are float32, rounded as in the source: over hundreds of pixels that shows in the
  fifth digit.
  """
  a = -0.75  # Torch's; Pillow's and JAX's cubic kernels have -0.5.
  scale = np.float32(size / out)
  centre = np.float64(scale) * (np.arange(out) + 0.5) - 0.5
  centre = centre.astype(np.float32)
  matrix = np.zeros((out, size))
  for tap in range(-1, 3):
    index = np.floor(centre).astype(int) + tap
    d = np.abs(centre - index)
    near = ((a + 2) * d - (a + 3)) * d * d + 1  # Up to one pixel away.
    far = (((d - 5) * d + 8) * d - 4) * a  # From one to two.
    weight = np.where(d <= 1, near, far)
    # Taps beyond the edge fall on the same pixel, and must add up there.
    inside = np.clip(index, 0, size - 1)
    np.add.at(matrix, (np.arange(out), inside), weight)
  return matrix.astype(np.float32)
