"""The network of the Wan VAEs: an encoder and a decoder of convolutions, causal in time.

A convolution over time sees, before its input, the last frames it was given: they are the state of
a stream. On frame 0 that past is zero and nothing is resampled in time: there the network is one of
images. Wan 2.2 differs from 2.1 by patches of pixels and by shortcuts around its stages.
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
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax.models import attention
from wam_jax.models import layers
from wam_jax.models import tokenizer

State = Mapping[str, jax.Array]


class Stage(NamedTuple):
  """Sizes of one resolution of the encoder or decoder.

  Attributes:
    inputs, features: channels before and after the residual blocks.
    blocks: number of the residual blocks.
    resampled: channels after resampling, 0 in the last stage, which does not resample.
    time: whether it resamples in time too.
  """

  inputs: int
  features: int
  blocks: int
  resampled: int
  time: bool


def patch(c: cfg.TokenizerConfig) -> int:
  """Rows and columns of pixels that the network sees as channels of one cell."""
  return 2 if c.kind == 'wan2_2' else 1


def temporal(c: cfg.TokenizerConfig) -> int:
  """Frames per latent frame."""
  return 2 ** sum(c.vae.temporal_down)  # Each stage that resamples time halves it.


def spatial(c: cfg.TokenizerConfig) -> int:
  """Pixels per latent cell, both directions."""
  return patch(c) * 2 ** (len(c.vae.multipliers) - 1)


def encoder_stages(c: cfg.TokenizerConfig) -> list[Stage]:
  """From pixels to latents."""
  _check(c)
  widths = [c.vae.encoder_dim * m for m in (1, *c.vae.multipliers)]
  stages = []
  for inputs, features, time in zip(widths, widths[1:], (*c.vae.temporal_down, False)):
    stage = Stage(
      inputs=inputs, features=features, blocks=c.vae.blocks, resampled=features, time=time
    )
    stages.append(stage)
  return [*stages[:-1], stages[-1]._replace(resampled=0)]


def decoder_stages(c: cfg.TokenizerConfig) -> list[Stage]:
  """From latents to pixels. Wan 2.1 halves the channels as it resamples."""
  _check(c)
  multipliers = c.vae.multipliers[::-1]
  widths = [c.vae.decoder_dim * m for m in (multipliers[0], *multipliers)]
  share = 1 if c.kind == 'wan2_2' else 2
  stages = []
  inputs = widths[0]
  for features, time in zip(widths[1:], (*c.vae.temporal_down[::-1], False)):
    resampled = features // share
    stage = Stage(
      inputs=inputs, features=features, blocks=c.vae.blocks + 1, resampled=resampled, time=time
    )
    stages.append(stage)
    inputs = resampled
  return [*stages[:-1], stages[-1]._replace(resampled=0)]


def _check(c: cfg.TokenizerConfig) -> None:
  v = c.vae
  if len(v.temporal_down) != len(v.multipliers) - 1:
    raise ValueError(
      f'tokenizer.vae.temporal_down={v.temporal_down} must have one entry for each of the '
      f'{len(v.multipliers)} multipliers but the last.'
    )


@dataclasses.dataclass
class Stream:
  """The state that one pass reads, and the state of the next pass, which it writes.

  Attributes:
    past: the latest input frames of each convolution over time, by its path; None at the start of a
      video.
    now: the same after this pass.
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
    missing = frames - last.shape[1]
    padding = ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))
    self.now['/'.join(module.path)] = jnp.pad(last, padding)


class Conv(nn.Module):
  """Convolution, causal in time: kernel - stride past frames before its input, as many zero rows
  and columns around.

  Attributes:
    kernel, stride: sizes in time, rows, columns.
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
    # A stride that is as long as the kernel needs neither past nor padding.
    past, rows, columns = (k - s for k, s in zip(self.kernel, self.stride))
    x_BFHWC = x_BFHWC.astype(self.dtype)
    if past:
      x_BFHWC = stream.extend(self, x_BFHWC, past)
    # At the start there is one frame after zeros: only the newest tap counts.
    w = w[-x_BFHWC.shape[1] :]
    # Where a kernel does not stand symmetrically, as in down-sampling, the odd zero comes after.
    above, left = rows // 2, columns // 2
    padding = ((0, 0), (above, rows - above), (left, columns - left))
    y_BFHWC = _convolve(x_BFHWC, w.astype(self.dtype), self.stride, padding)
    return y_BFHWC + b.astype(self.dtype)


def _convolve(x_BFHWC, w, stride, padding):
  """Convolution of videos; of images where the kernel spans one frame, which is faster."""
  if w.shape[0] > 1:
    return jax.lax.conv_general_dilated(
      x_BFHWC, w, stride, padding, dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
    )
  images = einops.rearrange(x_BFHWC, 'B F H W C -> (B F) H W C')
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
    y = x / jnp.maximum(norm, 1e-12) * math.sqrt(C) * scale_C.astype(jnp.float32)
    return y.astype(x_BFHWC.dtype)


class ResidualBlock(nn.Module):
  """Two normalised 3 x 3 x 3 convolutions beside a shortcut."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    conv = functools.partial(Conv, self.features, dtype=self.dtype)
    shortcut = x_BFHWC
    # Released weights have a shortcut only where the number of channels changes.
    if x_BFHWC.shape[-1] != self.features:
      shortcut = conv((1, 1, 1), name='shortcut')(x_BFHWC, stream)
    y = jax.nn.silu(RMSNorm(name='norm1')(x_BFHWC))
    y = conv((3, 3, 3), name='conv1')(y, stream)
    y = jax.nn.silu(RMSNorm(name='norm2')(y))
    return shortcut + conv((3, 3, 3), name='conv2')(y, stream)


class SpatialAttention(nn.Module):
  """The cells of each frame attend to each other, by one head."""

  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    B, F, H, W, C = x_BFHWC.shape
    to_qkv = Conv(3 * C, (1, 1, 1), dtype=self.dtype, name='qkv')
    qkv = to_qkv(RMSNorm(name='norm')(x_BFHWC), stream)
    # Frames stand where `attend` has heads: they do not see each other.
    qkv = qkv.reshape(B, F, H * W, 3 * C)
    q, k, v = jnp.split(qkv, 3, -1)
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
      # The second group is convolved with this frame before it.
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
        # Not this frame: the reference begins its past after the first one.
        stream.keep(double, jnp.zeros_like(x_BFHWC), 2)
      else:
        x_BFHWC = double(x_BFHWC, stream)
        x_BFHWC = einops.rearrange(x_BFHWC, 'B F H W (two C) -> B (F two) H W C', two=2)
    x_BFHWC = einops.repeat(x_BFHWC, 'B F H W C -> B F (H p) (W q) C', p=2, q=2)
    return Conv(self.features, (1, 3, 3), dtype=self.dtype, name='space')(x_BFHWC, stream)


class DownStage(nn.Module):
  """Residual blocks and down-sampling; in Wan 2.2 (`shortcut`) plus its input, averaged down."""

  sizes: Stage
  shortcut: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    s = self.sizes
    y = x_BFHWC
    for i in range(s.blocks):
      y = ResidualBlock(s.features, self.dtype, name=f'blocks_{i}')(y, stream)
    if s.resampled:
      y = Downsample(s.time, self.dtype, name='resample')(y, stream)
    if not self.shortcut:
      return y
    space = 2 if s.resampled else 1
    return y + average_down(x_BFHWC, s.features, time=1 + s.time, space=space)


class UpStage(nn.Module):
  """Residual blocks and up-sampling; in Wan 2.2 (`shortcut`) plus its input, repeated where it
  resamples.
  """

  sizes: Stage
  shortcut: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    s = self.sizes
    y = x_BFHWC
    for i in range(s.blocks):
      y = ResidualBlock(s.features, self.dtype, name=f'blocks_{i}')(y, stream)
    if not s.resampled:
      return y
    y = Upsample(s.resampled, s.time, self.dtype, name='resample')(y, stream)
    if not self.shortcut:
      return y
    # A first latent frame is repeated in time too, but only one frame was made of it: the last.
    repeated = repeat_up(x_BFHWC, s.features, time=1 + s.time)
    return y + repeated[:, -y.shape[1] :]


def average_down(x_BFHWC: jax.Array, features: int, time: int, space: int) -> jax.Array:
  """Blocks of time x space x space cells as channels, these in `features` groups, the mean of each.

  Frames are completed by zeros before them. Source: DreamZero `AvgDown3D`.
  """
  _check_shortcut(x_BFHWC.shape[-1] * time * space**2, features)
  missing = -x_BFHWC.shape[1] % time
  before_frames = ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))
  x = jnp.pad(x_BFHWC, before_frames)
  x = einops.rearrange(x, 'B (F t) (H p) (W q) C -> B F H W (C t p q)', t=time, p=space, q=space)
  groups = x.reshape(*x.shape[:-1], features, -1)
  return jnp.mean(groups, -1)


def repeat_up(x_BFHWC: jax.Array, features: int, time: int) -> jax.Array:
  """Channels, each repeated as often as needed, laid out as blocks of time x 2 x 2 cells of
  `features` channels.

  Source: DreamZero `DupUp3D`; of a first latent frame the caller takes the last frame only.
  """
  C = x_BFHWC.shape[-1]
  numbers = features * time * 4
  _check_shortcut(numbers, C)
  x = jnp.repeat(x_BFHWC, numbers // C, -1)
  return einops.rearrange(x, 'B F H W (C t p q) -> B (F t) (H p) (W q) C', t=time, p=2, q=2)


def _check_shortcut(numbers: int, channels: int) -> None:
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
    c = self.config
    dtype = jnp.dtype(c.dtype)
    conv = functools.partial(Conv, dtype=dtype)
    side = patch(c)
    x = einops.rearrange(x_BFHWC, 'B F (H p) (W q) C -> B F H W (C q p)', p=side, q=side)
    x = conv(c.vae.encoder_dim, (3, 3, 3), name='in')(x, stream)
    for i, sizes in enumerate(encoder_stages(c)):
      x = DownStage(sizes, c.kind == 'wan2_2', dtype, name=f'stages_{i}')(x, stream)
    x = Middle(dtype, name='middle')(x, stream)
    x = jax.nn.silu(RMSNorm(name='norm')(x))
    x = conv(2 * c.channels, (3, 3, 3), name='out')(x, stream)
    moments = conv(2 * c.channels, (1, 1, 1), name='moments')(x, stream)
    # Latents are the mean of the posterior; the reference draws none from it.
    mean, _log_variance = jnp.split(moments, 2, -1)
    return mean.astype(jnp.float32)


class Decoder(nn.Module):
  """Unnormalised latents to frames, not clamped to [-1, 1]."""

  config: cfg.TokenizerConfig

  @nn.compact
  def __call__(self, x_BFHWC: jax.Array, stream: Stream) -> jax.Array:
    c = self.config
    dtype = jnp.dtype(c.dtype)
    conv = functools.partial(Conv, dtype=dtype)
    side = patch(c)
    stages = decoder_stages(c)
    x = conv(c.channels, (1, 1, 1), name='latents')(x_BFHWC, stream)
    x = conv(stages[0].inputs, (3, 3, 3), name='in')(x, stream)
    x = Middle(dtype, name='middle')(x, stream)
    for i, sizes in enumerate(stages):
      x = UpStage(sizes, c.kind == 'wan2_2', dtype, name=f'stages_{i}')(x, stream)
    x = jax.nn.silu(RMSNorm(name='norm')(x))
    x = conv(3 * side**2, (3, 3, 3), name='out')(x, stream)
    x = einops.rearrange(x, 'B F H W (C q p) -> B F (H p) (W q) C', p=side, q=side)
    return x.astype(jnp.float32)


class Network(nn.Module):
  """Encoder and decoder; each pass returns its result and the state that the next one starts
  from.
  """

  config: cfg.TokenizerConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(self, frames_BRIJ3: jax.Array, past: State | None) -> tuple[jax.Array, State]:
    stream = Stream(past)
    return self.encoder(tokenizer.to_pixels(frames_BRIJ3), stream), stream.now

  def decode(self, latents_BFHWC: jax.Array, past: State | None) -> tuple[jax.Array, State]:
    stream = Stream(past)
    return self.decoder(latents_BFHWC, stream), stream.now

  def __call__(self) -> None:
    """Touches every parameter: the start of a video, then one group more.

    Convolutions that resample time have no part in the start.
    """
    side = spatial(self.config)
    frames = jnp.zeros((1, temporal(self.config), side, side, 3))
    latents, past = self.encode(frames[:, :1], None)
    self.encode(frames, past)
    _, past = self.decode(latents, None)
    self.decode(latents, past)
