"""`config.model.tokenizer`, `.text` and `.image`: the encoders around the transformer."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Shape of a Wan VAE; defaults are the released Wan 2.1.

  Attributes:
    encoder_dim, decoder_dim: base widths.
    multipliers: of the base width, per stage.
    blocks: residual blocks per encoder stage; the decoder has one more.
    temporal_down: per stage but the last, whether the encoder halves time there.
  """

  encoder_dim: int = 96
  decoder_dim: int = 96
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  temporal_down: tuple[bool, ...] = (False, True, True)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Video tokenizer: pixels to latents. `patch` is a linear one fitted on the training data,
  needing no download.

  Attributes:
    kind: 'patch', or the frozen VAEs 'wan2_1' and 'wan2_2'.
    temporal: camera frames per latent frame (the first frame is encoded alone).
    spatial: pixels per latent cell, both directions.
    channels: latent channels C.
    fit_windows: windows of the training data that the patch tokenizer is fitted on.
    resize: rows and columns that composite images are resized to before encoding; () for none.
    dtype: that a VAE computes in.
    vae: its shape.
  """

  kind: Literal['patch', 'wan2_1', 'wan2_2'] = 'patch'
  temporal: int = 2
  spatial: int = 4
  channels: int = 12  # Of the 96 numbers of a patch: 2 frames of 4 x 4 pixels in RGB.
  fit_windows: int = 512
  resize: tuple[int, ...] = ()
  dtype: str = 'float32'
  vae: VAEConfig = VAEConfig()


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Text encoder. `word` hashes lower-cased words into a table and is trained with the model;
  `umt5` is frozen.

  Attributes:
    kind: 'word' or 'umt5'.
    vocab: rows of the table; 0 is padding.
    length: prompt tokens P.
    dim: width of the embedding handed to the DiT.
    layers: transformer layers over the words.
    heads, attention_dim, mlp_dim, buckets, max_distance: of UMT5: heads, their total width,
      feed-forward width, relative-position buckets and the distance they saturate at.
    dtype: that UMT5 computes in.
    tokenizer: file of UMT5's vocabulary, tokenizer.json or a sentencepiece model.
  """

  kind: Literal['word', 'umt5'] = 'word'
  vocab: int = 2048
  length: int = 16
  dim: int = 64
  layers: int = 1
  # Of UMT5 alone, and so already the sizes that Wan has (DreamZero `WanTextEncoder`).
  heads: int = 64
  attention_dim: int = 4096
  mlp_dim: int = 10240
  buckets: int = 32
  max_distance: int = 128
  dtype: str = 'float32'
  tokenizer: str = ''


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Image encoder of the first frame. `clip` is the frozen CLIP vision tower without its last
  block.

  Attributes:
    kind: 'none' or 'clip'.
    size: pixel rows and columns it sees.
    patch: pixels per token, both directions.
    dim: width.
    heads, layers: of the whole tower.
    mlp_ratio: feed-forward width over `dim`.
    out_dim: columns of its unused projection, kept for export.
    dtype: that it computes in.
  """

  kind: Literal['none', 'clip'] = 'none'
  # ViT-H/14, the tower that Wan2.1-I2V reads (DreamZero `WanImageEncoder`).
  size: int = 224
  patch: int = 14
  dim: int = 1280
  heads: int = 16
  layers: int = 32
  mlp_ratio: int = 4
  out_dim: int = 1024
  dtype: str = 'float32'

  @property
  def tokens(self) -> int:
    """Tokens it gives: one per patch, after the class token."""
    return 1 + (self.size // self.patch) ** 2
