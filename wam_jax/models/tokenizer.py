"""The video tokenizer that needs no download: principal components of space-time patches.

Causal in time like the Wan VAEs: the first frame is encoded alone (as a still of `temporal` equal frames), then each
latent frame shows the next `temporal` camera frames; a latent never depends on another group's frames.
"""
from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg


@flax.struct.dataclass
class PatchTokenizer:
  """Linear map between pixels in [-1, 1] and latents of unit variance; frozen once fitted.

  Attributes:
    mean_P: [t*s*s*3] mean patch. encode_PC, decode_CP: scaled principal directions and their inverse.
    temporal, spatial: t and s.
  """

  mean_P: jax.Array
  encode_PC: jax.Array
  decode_CP: jax.Array
  temporal: int = flax.struct.field(pytree_node=False)
  spatial: int = flax.struct.field(pytree_node=False)

  def encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """[B, 1 + k*t, I, J, 3] uint8 to [B, 1 + k, I/s, J/s, C] float32: frame 0 alone, then groups of t."""
    return jnp.concatenate(
        [self.encode_first(frames_BRIJ3[:, :1]), self.encode_next(frames_BRIJ3[:, 1:])], axis=1)

  def encode_first(self, frame_B1IJ3: jax.Array) -> jax.Array:
    """One frame, alone, to one latent frame."""
    return self.encode_next(jnp.repeat(frame_B1IJ3, self.temporal, axis=1))

  def encode_next(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """[B, k*t, I, J, 3] uint8, frames that continue a video, to [B, k, H, W, C]."""
    pixels = frames_BRIJ3.astype(jnp.float32) / 127.5 - 1
    return (_patches(pixels, self.temporal, self.spatial) - self.mean_P) @ self.encode_PC

  def decode(self, latents_BFHWC: jax.Array) -> jax.Array:
    """[B, 1 + k, H, W, C] to [B, 1 + k*t, I, J, 3] float32 in [-1, 1]; frame 0 is the mean of its still."""
    frames = self.decode_next(latents_BFHWC)
    first = jnp.mean(frames[:, :self.temporal], axis=1, keepdims=True)
    return jnp.concatenate([first, frames[:, self.temporal:]], axis=1)

  def decode_next(self, latents_BFHWC: jax.Array) -> jax.Array:
    """[B, k, H, W, C] to [B, k*t, I, J, 3] float32 in [-1, 1]."""
    B, F, H, W, _ = latents_BFHWC.shape
    t, s = self.temporal, self.spatial
    patches = (latents_BFHWC @ self.decode_CP + self.mean_P).reshape(B, F, H, W, t, s, s, 3)
    return jnp.clip(patches.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, F * t, H * s, W * s, 3), -1, 1)


def fit_patch_tokenizer(frames_BRIJ3: np.ndarray, config: cfg.TokenizerConfig) -> PatchTokenizer:
  """Tokenizer whose latents are the `channels` strongest principal components of the given windows' patches.

  Args:
    frames_BRIJ3: [B, 1 + k*t, I, J, 3] uint8.
  Raises:
    ValueError: more channels than a patch has numbers, or fewer distinct patches than channels.
  """
  t, s, C = config.temporal, config.spatial, config.channels
  if C > t * s * s * 3:
    raise ValueError(f'model.tokenizer.channels={C} exceeds the {t * s * s * 3} numbers of a patch.')
  still = np.repeat(frames_BRIJ3[:, :1], t, axis=1)
  pixels = np.concatenate([still, frames_BRIJ3[:, 1:]], axis=1).astype(np.float32) / 127.5 - 1
  patches_NP = np.asarray(_patches(pixels, t, s), np.float64).reshape(-1, t * s * s * 3)
  mean_P = patches_NP.mean(0)
  values, vectors_PP = np.linalg.eigh(np.cov(patches_NP - mean_P, rowvar=False))
  values, vectors_PC = values[::-1][:C], vectors_PP[:, ::-1][:, :C]
  if values[-1] <= 1e-9:
    raise ValueError(f'The frames vary in fewer than model.tokenizer.channels={C} directions; lower it.')
  std_C = np.sqrt(values)
  to32 = lambda x: jnp.asarray(x, jnp.float32)
  return PatchTokenizer(to32(mean_P), to32(vectors_PC / std_C), to32((vectors_PC * std_C).T), t, s)


def _patches(pixels, t: int, s: int):
  """[B, k*t, I, J, 3] to [B, k, I/s, J/s, t*s*s*3]; numpy or JAX."""
  B, R, I, J, _ = pixels.shape
  grouped = pixels.reshape(B, R // t, t, I // s, s, J // s, s, 3)
  return grouped.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, R // t, I // s, J // s, t * s * s * 3)
