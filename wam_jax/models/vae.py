"""The Wan 2.1 and 2.2 video VAEs: frames to latents and back, streaming and causal in time.

Frame 0 is encoded alone, then groups of `temporal` frames; one latent frame is decoded at a time.
What the network remembers between two groups is the state of a stream, so new frames alone can be
encoded. The network itself is in `vae_network`.
Source: DreamZero `VideoVAE_` and `VideoVAE38_`.
"""

from __future__ import annotations

from typing import Any

import einops
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax.models import vae_network

State = vae_network.State

# Mean and standard deviation of the released VAEs' latents, by the number of channels; checkpoints
# do not hold them.
# fmt: off
RELEASED = {
  16: (
    (
      -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
      0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    (
      2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
      3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
  ),
  48: (
    (
      -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
      -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
      -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
      -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
      -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
      0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    (
      0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
      0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
      0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
      0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
      0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
      0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
  ),
}
# fmt: on


@flax.struct.dataclass
class WanVAE:
  """A frozen VAE; a pytree of its parameters. Every method is compiled once per shape.

  Frames are [B, R, I, J, 3], uint8 [0, 255] or float [-1, 1]; latents [B, F, H, W, C] float32. A
  stream is a dict of arrays of static shapes: what to go on with after the frames or latents so
  far.

  Attributes:
    params: nested dict, in any float dtype.
    config: the config of the network; `kind`, `channels`, `dtype` and `vae` are read.
    mean_std_2C: mean and standard deviation of the latents; None for the released ones.
  """

  params: Any
  config: cfg.TokenizerConfig = flax.struct.field(pytree_node=False)
  mean_std_2C: jax.Array | None = None

  @property
  def temporal(self) -> int:
    """Frames per latent frame."""
    return vae_network.temporal(self.config)

  @property
  def spatial(self) -> int:
    """Pixels per latent cell, both directions."""
    return vae_network.spatial(self.config)

  @jax.jit
  def encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """Normalised latents [B, 1 + k, H, W, C] of 1 + k * temporal frames.

    They are the mean of the posterior, not a sample of it.
    """
    first, stream = self.encode_start(frames_BRIJ3[:, :1])
    more, _ = self.encode_more(stream, frames_BRIJ3[:, 1:])
    return jnp.concatenate([first, more], 1)

  @jax.jit
  def encode_start(self, frame_B1IJ3: jax.Array) -> tuple[jax.Array, State]:
    """(latents [B, 1, H, W, C] of a video's first frame, stream)."""
    self._check_frames(frame_B1IJ3)
    mean, stream = self._apply('encode', frame_B1IJ3, None)
    return self._normalise(mean), stream

  @jax.jit
  def encode_more(self, stream: State, frames_BRIJ3: jax.Array) -> tuple[jax.Array, State]:
    """(latents [B, k, H, W, C] of the next k * temporal frames, stream)."""
    self._check_frames(frames_BRIJ3)
    frames = frames_BRIJ3.shape[1]
    if frames % self.temporal:
      raise ValueError(
        f'{frames} frames after the first one must be a multiple of {self.temporal}, '
        f'the frames per latent; drop the last {frames % self.temporal}.'
      )
    mean, stream = self._scan('encode', stream, frames_BRIJ3, self.temporal)
    return self._normalise(mean), stream

  @jax.jit
  def decode(self, latents_BFHWC: jax.Array) -> jax.Array:
    """Frames [B, 1 + k * temporal, I, J, 3] float32 in [-1, 1] of 1 + k latent frames."""
    return jnp.clip(self.decode_unclamped(latents_BFHWC), -1, 1)

  @jax.jit
  def decode_unclamped(self, latents_BFHWC: jax.Array) -> jax.Array:
    """`decode` as the network gives it, which may leave [-1, 1]."""
    latents_BFHWC = self.unnormalise(latents_BFHWC)
    first, stream = self._apply('decode', latents_BFHWC[:, :1], None)
    more, _ = self._scan('decode', stream, latents_BFHWC[:, 1:], 1)
    return jnp.concatenate([first, more], 1)

  @jax.jit
  def decode_start(self, latents_B1HWC: jax.Array) -> tuple[jax.Array, State]:
    """(the first frame [B, 1, I, J, 3] of a video, stream)."""
    frame, stream = self._apply('decode', self.unnormalise(latents_B1HWC), None)
    return jnp.clip(frame, -1, 1), stream

  @jax.jit
  def decode_more(self, stream: State, latents_BFHWC: jax.Array) -> tuple[jax.Array, State]:
    """(frames [B, k * temporal, I, J, 3] of the next k latent frames, stream)."""
    frames, stream = self._scan('decode', stream, self.unnormalise(latents_BFHWC), 1)
    return jnp.clip(frames, -1, 1), stream

  def unnormalise(self, latents_BFHWC: jax.Array) -> jax.Array:
    """Inverse of the normalisation that `encode` ends with: latents as the network has them."""
    mean_C, std_C = self._mean_std()
    return latents_BFHWC * std_C + mean_C

  def _normalise(self, mean_BFHWC: jax.Array) -> jax.Array:
    mean_C, std_C = self._mean_std()
    return (mean_BFHWC - mean_C) / std_C

  def _mean_std(self) -> jax.Array:
    """[2, C] float32."""
    if self.mean_std_2C is not None:
      return jnp.asarray(self.mean_std_2C, jnp.float32)
    C = self.config.channels
    if C not in RELEASED:
      raise ValueError(
        f'No mean and standard deviation of latents were released for channels={C}, only for '
        f'{sorted(RELEASED)}; give mean_std_2C.'
      )
    return jnp.asarray(RELEASED[C], jnp.float32)

  def _check_frames(self, frames_BRIJ3: jax.Array) -> None:
    I, J = frames_BRIJ3.shape[2:4]
    side = self.spatial
    if I % side or J % side:
      raise ValueError(
        f'Frames of {I} x {J} pixels must have multiples of {side} rows and columns; crop or '
        f'resize to {I // side * side} x {J // side * side}.'
      )

  def _scan(
    self, method: str, stream: State, x_BFHWC: jax.Array, group: int
  ) -> tuple[jax.Array, State]:
    """`_apply` to `group` frames at a time, by one compiled body."""

    def body(stream, x_BFHWC):
      y_BFHWC, stream = self._apply(method, x_BFHWC, stream)
      return stream, y_BFHWC

    groups = einops.rearrange(x_BFHWC, 'B (k F) H W C -> k B F H W C', F=group)
    stream, y = jax.lax.scan(body, stream, groups)
    return einops.rearrange(y, 'k B F H W C -> B (k F) H W C'), stream

  def _apply(self, method: str, x_BFHWC: jax.Array, past: State | None) -> tuple[jax.Array, State]:
    network = vae_network.Network(self.config)
    return network.apply({'params': self.params}, x_BFHWC, past, method=method)


def init(config: cfg.TokenizerConfig, key: jax.Array) -> WanVAE:
  """A VAE of random float32 parameters; under `jax.eval_shape` their shapes without memory."""
  boxed = jax.jit(vae_network.Network(config).init)(key)['params']
  return WanVAE(nn.meta.unbox(boxed), config)
