"""The video tokenizer that needs no download: principal components of space-time patches.

Causal in time and with the interface of the Wan VAEs: the first frame is encoded alone (as a still
of `temporal` equal frames), then each latent frame shows the next `temporal` camera frames. A
latent never depends on another group's frames, so the state of a stream is empty.
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
    mean_P: [t*s*s*3] mean patch. encode_PC, decode_CP: scaled principal directions and their
      inverse.
    temporal, spatial: t and s.
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
    return jnp.concatenate([first, self.encode_more(stream, frames_BRIJ3[:, 1:])[0]], axis=1)

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
    return jnp.concatenate([first, self.decode_more(stream, latents_BFHWC[:, 1:])[0]], axis=1)

  def decode_start(self, latents_B1HWC: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """(the first frame of a video, the stream to go on with)."""
    return jnp.mean(self._decode(latents_B1HWC), axis=1, keepdims=True), ()

  def decode_more(self, stream: tuple[()], latents_BFHWC: jax.Array) -> tuple[jax.Array, tuple[()]]:
    """([B, k*t, I, J, 3] float32 in [-1, 1], stream) of the next k latent frames."""
    return self._decode(latents_BFHWC), stream

  def _encode(self, frames_BRIJ3):
    return (
      _patches(to_pixels(frames_BRIJ3), self.temporal, self.spatial) - self.mean_P
    ) @ self.encode_PC

  def _decode(self, latents_BFHWC):
    B, F, H, W, _ = latents_BFHWC.shape
    t, s = self.temporal, self.spatial
    patches = (latents_BFHWC @ self.decode_CP + self.mean_P).reshape(B, F, H, W, t, s, s, 3)
    return jnp.clip(
      patches.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, F * t, H * s, W * s, 3), -1, 1
    )


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
  t, s, C = config.temporal, config.spatial, config.channels
  if t * s * s * 3 < C:
    raise ValueError(
      f'model.tokenizer.channels={C} exceeds the {t * s * s * 3} numbers of a patch.'
    )
  still = np.repeat(frames_BRIJ3[:, :1], t, axis=1)
  pixels = np.concatenate([still, frames_BRIJ3[:, 1:]], axis=1).astype(np.float32) / 127.5 - 1
  patches_NP = np.asarray(_patches(pixels, t, s), np.float64).reshape(-1, t * s * s * 3)
  mean_P = patches_NP.mean(0)
  values, vectors_PP = np.linalg.eigh(np.cov(patches_NP - mean_P, rowvar=False))
  values, vectors_PC = values[::-1][:C], vectors_PP[:, ::-1][:, :C]
  if values[-1] <= 1e-9:
    raise ValueError(
      f'The frames vary in fewer than model.tokenizer.channels={C} directions; lower it.'
    )
  std_C = np.sqrt(values)
  to32 = lambda x: jnp.asarray(x, jnp.float32)
  return PatchTokenizer(to32(mean_P), to32(vectors_PC / std_C), to32((vectors_PC * std_C).T), t, s)


def _patches(pixels, t: int, s: int):
  """[B, k*t, I, J, 3] to [B, k, I/s, J/s, t*s*s*3]; numpy or JAX."""
  B, R, I, J, _ = pixels.shape
  grouped = pixels.reshape(B, R // t, t, I // s, s, J // s, s, 3)
  return grouped.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, R // t, I // s, J // s, t * s * s * 3)
