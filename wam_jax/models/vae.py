"""The Wan 2.1 and 2.2 video VAEs: frames to latents and back, streaming and causal in time.

Frame 0 is encoded alone, then groups of `temporal` frames; one latent frame is decoded at a time. A
convolution over time sees, before its input, the last frames it was given: they are the state of
the stream, so new frames alone can be encoded. On frame 0 that past is zero and nothing is
resampled in time: there the network is one of images.
Source: DreamZero `VideoVAE_` and `VideoVAE38_`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax.models import attention
from wam_jax.models import layers
from wam_jax.models import tokenizer

State = Mapping[str, jax.Array]

# Mean and standard deviation of the released VAEs' latents, by the number of channels; checkpoints
# do not hold them.
RELEASED = {
  16: (
    (
      -0.7571,
      -0.7089,
      -0.9113,
      0.1075,
      -0.1745,
      0.9653,
      -0.1517,
      1.5508,
      0.4134,
      -0.0715,
      0.5517,
      -0.3632,
      -0.1922,
      -0.9497,
      0.2503,
      -0.2921,
    ),
    (
      2.8184,
      1.4541,
      2.3275,
      2.6558,
      1.2196,
      1.7708,
      2.6052,
      2.0743,
      3.2687,
      2.1526,
      2.8652,
      1.5579,
      1.6382,
      1.1253,
      2.8251,
      1.9160,
    ),
  ),
  48: (
    (
      -0.2289,
      -0.0052,
      -0.1323,
      -0.2339,
      -0.2799,
      0.0174,
      0.1838,
      0.1557,
      -0.1382,
      0.0542,
      0.2813,
      0.0891,
      0.1570,
      -0.0098,
      0.0375,
      -0.1825,
      -0.2246,
      -0.1207,
      -0.0698,
      0.5109,
      0.2665,
      -0.2108,
      -0.2158,
      0.2502,
      -0.2055,
      -0.0322,
      0.1109,
      0.1567,
      -0.0729,
      0.0899,
      -0.2799,
      -0.1230,
      -0.0313,
      -0.1649,
      0.0117,
      0.0723,
      -0.2839,
      -0.2083,
      -0.0520,
      0.3748,
      0.0152,
      0.1957,
      0.1433,
      -0.2944,
      0.3573,
      -0.0548,
      -0.1681,
      -0.0667,
    ),
    (
      0.4765,
      1.0364,
      0.4514,
      1.1677,
      0.5313,
      0.4990,
      0.4818,
      0.5013,
      0.8158,
      1.0344,
      0.5894,
      1.0901,
      0.6885,
      0.6165,
      0.8454,
      0.4978,
      0.5759,
      0.3523,
      0.7135,
      0.6804,
      0.5833,
      1.4146,
      0.8986,
      0.5659,
      0.7069,
      0.5338,
      0.4889,
      0.4917,
      0.4069,
      0.4999,
      0.6866,
      0.4093,
      0.5709,
      0.6065,
      0.6415,
      0.4944,
      0.5726,
      1.2042,
      0.5458,
      1.6887,
      0.3971,
      1.0600,
      0.3943,
      0.5537,
      0.5444,
      0.4089,
      0.7468,
      0.7744,
    ),
  ),
}


@flax.struct.dataclass
class WanVAE:
  """A frozen VAE; a pytree of its parameters. Every method is compiled once per shape.

  Frames are [B, R, I, J, 3], uint8 [0, 255] or float [-1, 1]; latents [B, F, H, W, C] float32. A
  stream is a dict of arrays of static shapes: what to go on with after the frames or latents so
  far.

  Attributes:
    params: nested dict, in any float dtype.
    config: `kind`, `channels`, `dtype` of the computation and `vae` are read.
    mean_std_2C: of the latents; None for the released ones.
  """

  params: Any
  config: cfg.TokenizerConfig = flax.struct.field(pytree_node=False)
  mean_std_2C: jax.Array | None = None

  @property
  def temporal(self) -> int:
    """Frames per latent frame."""
    return 2 ** sum(self.config.vae.temporal_down)

  @property
  def spatial(self) -> int:
    """Pixels per latent cell, both directions."""
    return patch(self.config) * 2 ** (len(self.config.vae.multipliers) - 1)

  @jax.jit
  def encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """Normalised latents [B, 1 + k, H, W, C] of 1 + k * temporal frames: the mean of the posterior,
    not a sample.
    """
    first, stream = self.encode_start(frames_BRIJ3[:, :1])
    return jnp.concatenate([first, self.encode_more(stream, frames_BRIJ3[:, 1:])[0]], 1)

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
    if frames_BRIJ3.shape[1] % self.temporal:
      raise ValueError(
        f'{frames_BRIJ3.shape[1]} frames after the first one must be a multiple of {self.temporal}, '
        f'the frames per latent; drop the last {frames_BRIJ3.shape[1] % self.temporal}.'
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
    first, stream = self._apply('decode', self.unnormalise(latents_BFHWC[:, :1]), None)
    more, _ = self._scan('decode', stream, self.unnormalise(latents_BFHWC[:, 1:]), 1)
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

  def _normalise(self, mean_BFHWC):
    mean_C, std_C = self._mean_std()
    return (mean_BFHWC - mean_C) / std_C

  def _mean_std(self):
    C = self.config.channels
    if self.mean_std_2C is None and C not in RELEASED:
      raise ValueError(
        f'No mean and standard deviation of latents were released for channels={C}, only for '
        f'{sorted(RELEASED)}; give mean_std_2C.'
      )
    return jnp.asarray(RELEASED[C] if self.mean_std_2C is None else self.mean_std_2C, jnp.float32)

  def _check_frames(self, frames_BRIJ3):
    I, J = frames_BRIJ3.shape[2:4]
    if I % self.spatial or J % self.spatial:
      raise ValueError(
        f'Frames of {I} x {J} pixels must have multiples of {self.spatial} rows and columns; crop or '
        f'resize to {I // self.spatial * self.spatial} x {J // self.spatial * self.spatial}.'
      )

  def _scan(self, method, stream, x_BFHWC, group):
    """`_apply` over groups of frames, by one compiled body."""

    def body(stream, x):
      y, stream = self._apply(method, x, stream)
      return stream, y

    groups = einops.rearrange(x_BFHWC, 'B (k F) H W C -> k B F H W C', F=group)
    stream, y = jax.lax.scan(body, stream, groups)
    return einops.rearrange(y, 'k B F H W C -> B (k F) H W C'), stream

  def _apply(self, method, x_BFHWC, past):
    return Network(self.config).apply({'params': self.params}, x_BFHWC, past, method=method)


def init(config: cfg.TokenizerConfig, key: jax.Array) -> WanVAE:
  """A VAE of random float32 parameters; under `jax.eval_shape` their shapes without memory."""
  return WanVAE(nn.meta.unbox(jax.jit(Network(config).init)(key)['params']), config)


class Stage(NamedTuple):
  """Sizes of one resolution of the encoder or decoder.

  Attributes:
    inputs, features: channels before and after the residual blocks, of which there are `blocks`.
    resampled: channels after resampling, 0 in the last stage, which does not resample.
    time: resamples in time too.
  """

  inputs: int
  features: int
  blocks: int
  resampled: int
  time: bool


def patch(c: cfg.TokenizerConfig) -> int:
  """Rows and columns of pixels that the network sees as channels of one cell."""
  return 2 if c.kind == 'wan2_2' else 1


def encoder_stages(c: cfg.TokenizerConfig) -> list[Stage]:
  """From pixels to latents."""
  v = c.vae
  _check(c)
  widths = [v.encoder_dim * m for m in (1, *v.multipliers)]
  stages = [
    Stage(i, o, v.blocks, o, t) for i, o, t in zip(widths, widths[1:], (*v.temporal_down, False))
  ]
  return [*stages[:-1], stages[-1]._replace(resampled=0)]


def decoder_stages(c: cfg.TokenizerConfig) -> list[Stage]:
  """From latents to pixels. Wan 2.1 halves the channels as it resamples."""
  v = c.vae
  _check(c)
  widths = [v.decoder_dim * m for m in (v.multipliers[-1], *v.multipliers[::-1])]
  share = 1 if c.kind == 'wan2_2' else 2
  inputs = [widths[0], *(w // share for w in widths[1:])]
  stages = [
    Stage(i, o, v.blocks + 1, o // share, t)
    for i, o, t in zip(inputs, widths[1:], (*v.temporal_down[::-1], False))
  ]
  return [*stages[:-1], stages[-1]._replace(resampled=0)]


def _check(c):
  v = c.vae
  if len(v.temporal_down) != len(v.multipliers) - 1:
    raise ValueError(
      f'tokenizer.vae.temporal_down={v.temporal_down} must have one entry for each of the '
      f'{len(v.multipliers)} multipliers but the last.'
    )


@dataclasses.dataclass
class Stream:
  """What one pass reads of the state (`past`, None at the start of a video) and writes of the next
  (`now`).

  Both by the path of the convolution whose latest input frames they are.
  """

  past: State | None
  now: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

  @property
  def starts(self) -> bool:
    return self.past is None

  def extend(self, module: nn.Module, x_BFHWC: jax.Array, frames: int) -> jax.Array:
    """`x` after the `frames` that this module was given before; at the start `x` alone."""
    if not self.starts:
      x_BFHWC = jnp.concatenate([self.past['/'.join(module.path)], x_BFHWC], 1)
    self.keep(module, x_BFHWC, frames)
    return x_BFHWC

  def keep(self, module: nn.Module, x_BFHWC: jax.Array, frames: int) -> None:
    """Remembers the last `frames` of `x` for this module, zeros where there are fewer."""
    last = x_BFHWC[:, -frames:]
    self.now['/'.join(module.path)] = jnp.pad(
      last, ((0, 0), (frames - last.shape[1], 0), (0, 0), (0, 0), (0, 0))
    )


class Conv(nn.Module):
  """Convolution, causal in time: kernel - stride past frames before its input, as many zero rows
  and columns around.

  Attributes:
    kernel, stride: of time, rows, columns.
  """

  features: int
  kernel: tuple[int, int, int]
  stride: tuple[int, int, int] = (1, 1, 1)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    w = self.param(
      'w',
      layers.boxed(nn.initializers.lecun_normal(), (None, None, None, 'channels', 'channels')),
      (*self.kernel, x_BFHWC.shape[-1], self.features),
      jnp.float32,
    )
    b = self.param(
      'b', layers.boxed(nn.initializers.zeros, ('channels',)), (self.features,), jnp.float32
    )
    past, rows, columns = (k - s for k, s in zip(self.kernel, self.stride))
    x_BFHWC = (
      stream.extend(self, x_BFHWC.astype(self.dtype), past) if past else x_BFHWC.astype(self.dtype)
    )
    w = w[
      -x_BFHWC.shape[1] :
    ]  # At the start there is one frame after zeros: only the newest tap counts.
    padding = ((0, 0), (rows // 2, -(-rows // 2)), (columns // 2, -(-columns // 2)))
    return _convolve(x_BFHWC, w.astype(self.dtype), self.stride, padding) + b.astype(self.dtype)


def _convolve(x_BFHWC, w, stride, padding):
  if w.shape[0] > 1:
    return jax.lax.conv_general_dilated(
      x_BFHWC, w, stride, padding, dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
    )
  images = einops.rearrange(
    x_BFHWC, 'B F H W C -> (B F) H W C'
  )  # Convolutions of images are the faster ones.
  y = jax.lax.conv_general_dilated(
    images, w[0], stride[1:], padding[1:], dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return einops.rearrange(y, '(B F) H W C -> B F H W C', B=x_BFHWC.shape[0])


class RMSNorm(nn.Module):
  """x / |x| over channels, times sqrt(C) and a scale; in float32. Source: DreamZero `RMS_norm`."""

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array) -> jax.Array:
    C = x_BFHWC.shape[-1]
    scale_C = self.param('scale', layers.boxed(nn.initializers.ones, ('norm',)), (C,), jnp.float32)
    x = x_BFHWC.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True))
    return (x / jnp.maximum(norm, 1e-12) * math.sqrt(C) * scale_C.astype(jnp.float32)).astype(
      x_BFHWC.dtype
    )


class ResidualBlock(nn.Module):
  """Two normalised 3 x 3 x 3 convolutions beside a shortcut."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    conv = functools.partial(Conv, self.features, dtype=self.dtype)
    shortcut = x_BFHWC
    if x_BFHWC.shape[-1] != self.features:
      shortcut = conv((1, 1, 1), name='shortcut')(x_BFHWC, stream)
    y = conv((3, 3, 3), name='conv1')(jax.nn.silu(RMSNorm(name='norm1')(x_BFHWC)), stream)
    return shortcut + conv((3, 3, 3), name='conv2')(jax.nn.silu(RMSNorm(name='norm2')(y)), stream)


class SpatialAttention(nn.Module):
  """The cells of each frame attend to each other, by one head."""

  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    B, F, H, W, C = x_BFHWC.shape
    qkv = Conv(3 * C, (1, 1, 1), dtype=self.dtype, name='qkv')(
      RMSNorm(name='norm')(x_BFHWC), stream
    )
    q, k, v = jnp.split(qkv.reshape(B, F, H * W, 3 * C), 3, -1)
    y_BFHWC = attention.attend(q, k, v).reshape(x_BFHWC.shape)
    return x_BFHWC + Conv(C, (1, 1, 1), dtype=self.dtype, name='out')(y_BFHWC, stream)


class Middle(nn.Module):
  """Residual block, attention, residual block."""

  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    C = x_BFHWC.shape[-1]
    x_BFHWC = ResidualBlock(C, self.dtype, name='block_in')(x_BFHWC, stream)
    x_BFHWC = SpatialAttention(self.dtype, name='attention')(x_BFHWC, stream)
    return ResidualBlock(C, self.dtype, name='block_out')(x_BFHWC, stream)


class Downsample(nn.Module):
  """Half the rows and columns and, with `time`, of the frames; a video's first frame passes time
  unchanged.
  """

  time: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    C = x_BFHWC.shape[-1]
    x_BFHWC = Conv(C, (1, 3, 3), (1, 2, 2), self.dtype, name='space')(x_BFHWC, stream)
    if not self.time:
      return x_BFHWC
    halve = Conv(C, (3, 1, 1), (2, 1, 1), self.dtype, name='time')
    if stream.starts:
      stream.keep(halve, x_BFHWC, 1)
      return x_BFHWC
    return halve(x_BFHWC, stream)


class Upsample(nn.Module):
  """Twice the rows and columns and, with `time`, the frames; a video's first latent frame passes
  time unchanged.

  The second one then meets zeros in time, not the first.
  """

  features: int
  time: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    if self.time:
      double = Conv(2 * x_BFHWC.shape[-1], (3, 1, 1), dtype=self.dtype, name='time')
      if stream.starts:
        stream.keep(double, jnp.zeros_like(x_BFHWC), 2)
      else:
        x_BFHWC = einops.rearrange(
          double(x_BFHWC, stream), 'B F H W (two C) -> B (F two) H W C', two=2
        )
    x_BFHWC = einops.repeat(x_BFHWC, 'B F H W C -> B F (H p) (W q) C', p=2, q=2)
    return Conv(self.features, (1, 3, 3), dtype=self.dtype, name='space')(x_BFHWC, stream)


class DownStage(nn.Module):
  """Residual blocks and down-sampling; in Wan 2.2 (`shortcut`) plus its input, averaged down."""

  sizes: Stage
  shortcut: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    s, y = self.sizes, x_BFHWC
    for i in range(s.blocks):
      y = ResidualBlock(s.features, self.dtype, name=f'blocks_{i}')(y, stream)
    if s.resampled:
      y = Downsample(s.time, self.dtype, name='resample')(y, stream)
    return (
      y + average_down(x_BFHWC, s.features, 1 + s.time, 1 + bool(s.resampled))
      if self.shortcut
      else y
    )


class UpStage(nn.Module):
  """Residual blocks and up-sampling; in Wan 2.2 (`shortcut`) plus its input, repeated where it
  resamples.
  """

  sizes: Stage
  shortcut: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    s, y = self.sizes, x_BFHWC
    for i in range(s.blocks):
      y = ResidualBlock(s.features, self.dtype, name=f'blocks_{i}')(y, stream)
    if not s.resampled:
      return y
    y = Upsample(s.resampled, s.time, self.dtype, name='resample')(y, stream)
    return y + repeat_up(x_BFHWC, s.features, 1 + s.time)[:, -y.shape[1] :] if self.shortcut else y


def average_down(x_BFHWC: jax.Array, features: int, time: int, space: int) -> jax.Array:
  """Blocks of time x space x space cells as channels, these in `features` groups, the mean of each.

  Frames are completed by zeros before them. Source: DreamZero `AvgDown3D`.
  """
  _check_shortcut(x_BFHWC.shape[-1] * time * space**2, features)
  x = jnp.pad(x_BFHWC, ((0, 0), (-x_BFHWC.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
  x = einops.rearrange(x, 'B (F t) (H p) (W q) C -> B F H W (C t p q)', t=time, p=space, q=space)
  return jnp.mean(x.reshape(*x.shape[:-1], features, -1), -1)


def repeat_up(x_BFHWC: jax.Array, features: int, time: int) -> jax.Array:
  """Channels, each repeated as often as needed, laid out as blocks of time x 2 x 2 cells of
  `features` channels.

  Source: DreamZero `DupUp3D`; of a first latent frame the caller takes the last frame only.
  """
  _check_shortcut(features * time * 4, x_BFHWC.shape[-1])
  x = jnp.repeat(x_BFHWC, features * time * 4 // x_BFHWC.shape[-1], -1)
  return einops.rearrange(x, 'B F H W (C t p q) -> B (F t) (H p) (W q) C', t=time, p=2, q=2)


def _check_shortcut(numbers, channels):
  if numbers % channels:
    raise ValueError(
      f'A Wan 2.2 stage cannot share {numbers} numbers equally among {channels} channels; choose '
      'tokenizer.vae.multipliers like (1, 2, 4, 4).'
    )


class Encoder(nn.Module):
  """Frames in [-1, 1] to the unnormalised mean of the posterior."""

  config: cfg.TokenizerConfig

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    conv = functools.partial(Conv, dtype=dtype)
    n = patch(c)
    x = einops.rearrange(x_BFHWC, 'B F (H p) (W q) C -> B F H W (C q p)', p=n, q=n)
    x = conv(c.vae.encoder_dim, (3, 3, 3), name='in')(x, stream)
    for i, sizes in enumerate(encoder_stages(c)):
      x = DownStage(sizes, c.kind == 'wan2_2', dtype, name=f'stages_{i}')(x, stream)
    x = Middle(dtype, name='middle')(x, stream)
    x = conv(2 * c.channels, (3, 3, 3), name='out')(jax.nn.silu(RMSNorm(name='norm')(x)), stream)
    mean, _ = jnp.split(
      conv(2 * c.channels, (1, 1, 1), name='moments')(x, stream), 2, -1
    )  # The rest is log-variance.
    return mean.astype(jnp.float32)


class Decoder(nn.Module):
  """Unnormalised latents to frames, not clamped to [-1, 1]."""

  config: cfg.TokenizerConfig

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    conv = functools.partial(Conv, dtype=dtype)
    n, stages = patch(c), decoder_stages(c)
    x = conv(c.channels, (1, 1, 1), name='latents')(x_BFHWC, stream)
    x = conv(stages[0].inputs, (3, 3, 3), name='in')(x, stream)
    x = Middle(dtype, name='middle')(x, stream)
    for i, sizes in enumerate(stages):
      x = UpStage(sizes, c.kind == 'wan2_2', dtype, name=f'stages_{i}')(x, stream)
    x = conv(3 * n**2, (3, 3, 3), name='out')(jax.nn.silu(RMSNorm(name='norm')(x)), stream)
    return einops.rearrange(x, 'B F H W (C q p) -> B F (H p) (W q) C', p=n, q=n).astype(jnp.float32)


class Network(nn.Module):
  """Encoder and decoder; each pass returns its result and the state that the next one starts
  from.
  """

  config: cfg.TokenizerConfig

  def setup(self):
    self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

  def encode(self, frames_BRIJ3: jax.Array, past: State | None) -> tuple[jax.Array, State]:
    stream = Stream(past)
    return self.encoder(tokenizer.to_pixels(frames_BRIJ3), stream), stream.now

  def decode(self, latents_BFHWC: jax.Array, past: State | None) -> tuple[jax.Array, State]:
    stream = Stream(past)
    return self.decoder(latents_BFHWC, stream), stream.now

  def __call__(self):
    """Touches every parameter: the start of a video, then one group more."""
    vae = WanVAE({}, self.config)
    frames = jnp.zeros((1, vae.temporal, vae.spatial, vae.spatial, 3))
    latents, past = self.encode(frames[:, :1], None)
    self.encode(frames, past)
    self.decode(latents, self.decode(latents, None)[1])
