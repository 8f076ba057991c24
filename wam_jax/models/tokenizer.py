"""The video tokenizer that needs no download: principal components of space-time patches.

Causal in time and with the interface of the Wan VAEs: the first frame is encoded alone (as a still
of `temporal` equal frames), then each latent frame shows the next `temporal` camera frames. A
latent never depends on another group's frames, so the state of a stream is empty.
"""

from __future__ import annotations

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg


@flax.struct.dataclass
class PatchTokenizer:
  """Linear map between pixels in [-1, 1] and latents of unit variance; frozen once fitted.

  Attributes:
    mean_P: mean patch, of P = t*s*s*3 numbers.
    encode_PC, decode_CP: scaled principal directions, and their inverse.
    temporal, spatial: t camera frames, s rows and s columns of pixels of a patch.
  """

  mean_P: jax.Array
  encode_PC: jax.Array
  decode_CP: jax.Array
  temporal: int = flax.struct.field(pytree_node=False)
  spatial: int = flax.struct.field(pytree_node=False)

  def encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """[B, 1 + k*t, I, J, 3] to [B, 1 + k, I/s, J/s, C] float32: frame 0 alone, then groups of t.

    Frames are uint8 [0, 255], or float32 [-1, 1].
    """
    first, stream = self.encode_start(frames_BRIJ3[:, :1])
    more, _ = self.encode_more(stream, frames_BRIJ3[:, 1:])
    return jnp.concatenate([first, more], axis=1)

  def encode_start(self, frame_B1IJ3: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """(the latent frame of a video's first frame, the stream to go on with)."""
    return self._encode(jnp.repeat(frame_B1IJ3, self.temporal, axis=1)), ()

  def encode_more(self, stream: tuple[()], frames_BRIJ3: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """([B, k, H, W, C], stream) of the next k*t frames."""
    return self._encode(frames_BRIJ3), stream

  def decode(self, latents_BFHWC: jax.Array) -> jax.Array:
    """[B, 1 + k, H, W, C] to [B, 1 + k*t, I, J, 3] float32 in [-1, 1]; frame 0 is the mean of its
    still.
    """
    first, stream = self.decode_start(latents_BFHWC[:, :1])
    more, _ = self.decode_more(stream, latents_BFHWC[:, 1:])
    return jnp.concatenate([first, more], axis=1)

  def decode_start(self, latents_B1HWC: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """(the first frame of a video, the stream to go on with)."""
    return jnp.mean(self._decode(latents_B1HWC), axis=1, keepdims=True), ()

  def decode_more(self, stream: tuple[()], latents_BFHWC: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """([B, k*t, I, J, 3] float32 in [-1, 1], stream) of the next k latent frames."""
    return self._decode(latents_BFHWC), stream

  def _encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    patches_BFHWP = _to_patches(to_pixels(frames_BRIJ3), self.temporal, self.spatial)
    return (patches_BFHWP - self.mean_P) @ self.encode_PC

  def _decode(self, latents_BFHWC: jax.Array) -> jax.Array:
    patches_BFHWP = latents_BFHWC @ self.decode_CP + self.mean_P
    t = self.temporal
    s = self.spatial
    order = 'B F H W (t p q C) -> B (F t) (H p) (W q) C'
    frames_BRIJ3 = einops.rearrange(patches_BFHWP, order, t=t, p=s, q=s, C=3)
    return jnp.clip(frames_BRIJ3, -1, 1)


def to_pixels(frames: jax.Array) -> jax.Array:
  """uint8 [0, 255] to float32 [-1, 1]; what is float already stays as it is."""
  return frames.astype(jnp.float32) / 127.5 - 1 if frames.dtype == jnp.uint8 else frames


def fit_patch_tokenizer(frames_BRIJ3: np.ndarray, config: cfg.TokenizerConfig) -> PatchTokenizer:
  """Tokenizer whose latents are the `channels` strongest principal components of the given windows'
  patches.

  Args:
    frames_BRIJ3: [B, 1 + k*t, I, J, 3] uint8.
  Raises:
    ValueError: more channels than a patch has numbers, or fewer distinct patches than channels.
  """
  t = config.temporal
  s = config.spatial
  C = config.channels
  P = t * s * s * 3
  if P < C:
    raise ValueError(f'model.tokenizer.channels={C} exceeds the {P} numbers of a patch.')

  # Frame 0 counts as it is encoded: as a still.
  still = np.repeat(frames_BRIJ3[:, :1], t, axis=1)
  frames = np.concatenate([still, frames_BRIJ3[:, 1:]], axis=1)
  pixels = frames.astype(np.float32) / 127.5 - 1
  patches_NP = np.asarray(_to_patches(pixels, t, s), np.float64).reshape(-1, P)

  # `eigh` sorts by increasing variance.
  mean_P = patches_NP.mean(0)
  variance_P, vectors_PP = np.linalg.eigh(np.cov(patches_NP - mean_P, rowvar=False))
  variance_C = variance_P[::-1][:C]
  vectors_PC = vectors_PP[:, ::-1][:, :C]
  if variance_C[-1] <= 1e-9:
    raise ValueError(
      f'The frames vary in fewer than model.tokenizer.channels={C} directions; lower it.'
    )

  # Unit variance, as noise has: one schedule of noise levels then serves all channels.
  std_C = np.sqrt(variance_C)
  return PatchTokenizer(
    mean_P=jnp.asarray(mean_P, jnp.float32),
    encode_PC=jnp.asarray(vectors_PC / std_C, jnp.float32),
    decode_CP=jnp.asarray((vectors_PC * std_C).T, jnp.float32),
    temporal=t,
    spatial=s,
  )


def _to_patches(pixels, t: int, s: int):
  """[B, k*t, I, J, 3] to [B, k, I/s, J/s, t*s*s*3]; numpy or JAX."""
  order = 'B (F t) (H p) (W q) C -> B F H W (t p q C)'
  return einops.rearrange(pixels, order, t=t, p=s, q=s)
