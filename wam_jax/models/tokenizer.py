"""The video tokenizer that needs no download: principal components of space-time patches.

Causal in time and with the interface of the Wan VAEs: the first frame is encoded alone (as a still
of `temporal` equal frames), then each latent frame shows the next `temporal` camera frames. A
latent never depends on another group's frames, so the state of a stream is empty.
"""

from __future__ import annotations

from collections.abc import Callable

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

from wam_jax import config as cfg

_SMALL = 512  # Numbers of a patch whose components are those of all patches, in seconds.
_DRAWN = 8192  # Patches that stand for all where patches are larger.


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

  def cut(frames_RIJ3: np.ndarray) -> np.ndarray:
    """[N, P] float64 patches of a window."""
    # Frame 0 counts as it is encoded: as a still.
    still = np.repeat(frames_RIJ3[:1], t, axis=0)
    frames = np.concatenate([still, frames_RIJ3[1:]])
    pixels = frames[None].astype(np.float32) / 127.5 - 1
    return np.asarray(_to_patches(pixels, t, s), np.float64).reshape(-1, P)

  find = _find_components if P <= _SMALL else _estimate_components
  mean_P, variance_C, vectors_PC = find(frames_BRIJ3, cut, C)
  if not variance_C[-1] > 1e-9:  # NaN is no variance, either.
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


Cut = Callable[[np.ndarray], np.ndarray]  # [R, I, J, 3] uint8, a window, to its patches [N, P].


def _find_components(
  frames_BRIJ3: np.ndarray, cut: Cut, C: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(mean [P], largest variances [C], their directions [P, C]) of all patches."""
  # Window by window: all patches of large composites at once would be many times the pixels.
  count = len(frames_BRIJ3) * len(cut(frames_BRIJ3[0]))
  mean_P = sum(cut(frames_RIJ3).sum(0) for frames_RIJ3 in frames_BRIJ3) / count
  covariance_PP = np.zeros((len(mean_P), len(mean_P)))
  for frames_RIJ3 in frames_BRIJ3:
    centred_NP = cut(frames_RIJ3) - mean_P
    covariance_PP += centred_NP.T @ centred_NP / (count - 1)

  # `eigh` sorts by increasing variance.
  variance_P, vectors_PP = np.linalg.eigh(covariance_PP)
  return mean_P, variance_P[::-1][:C], vectors_PP[:, ::-1][:, :C]


def _estimate_components(
  frames_BRIJ3: np.ndarray, cut: Cut, C: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """As `_find_components`, of patches that are drawn from every window: a covariance of the
  thousands of numbers of a large patch would take minutes.
  """
  rng = np.random.default_rng(0)  # Every process finds the same.
  each = -(-_DRAWN // len(frames_BRIJ3))
  drawn = []
  for frames_RIJ3 in frames_BRIJ3:
    patches_NP = cut(frames_RIJ3).astype(np.float32)
    drawn.append(patches_NP[rng.permutation(len(patches_NP))[:each]])
  patches_NP = np.concatenate(drawn)
  mean_P = patches_NP.mean(0)
  patches_NP -= mean_P

  start_N = np.ones(min(patches_NP.shape), np.float32)
  _, std_C, vectors_CP = scipy.sparse.linalg.svds(patches_NP, k=C, v0=start_N)
  # It sorts by increasing size.
  variance_C = np.square(std_C[::-1]) / (len(patches_NP) - 1)
  return mean_P, variance_C, vectors_CP[::-1].T


def _to_patches(pixels, t: int, s: int):
  """[B, k*t, I, J, 3] to [B, k, I/s, J/s, t*s*s*3]; numpy or JAX."""
  order = 'B (F t) (H p) (W q) C -> B F H W (t p q C)'
  return einops.rearrange(pixels, order, t=t, p=s, q=s)
