"""`config.model`: the shape of the diffusion transformer."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from wam_jax.config.choices import check_choice
from wam_jax.config.choices import check_choices
from wam_jax.config.choices import Dtype
from wam_jax.config.encoders import ImageConfig
from wam_jax.config.encoders import TextConfig
from wam_jax.config.encoders import TokenizerConfig
from wam_jax.config.ranges import check_above_0
from wam_jax.config.ranges import check_at_least_0

_SIZES = (
  'dim',
  'mlp_dim',
  'num_heads',
  'num_layers',
  'patch',
  'freq_dim',
  'action_hidden',
  'frames_per_chunk',
  'actions_per_chunk',
  'max_chunks',
  'scan_unroll',
)

AdaptedLayer = Literal['q', 'k', 'v', 'o', 'k_image', 'v_image', 'ffn/in', 'ffn/out']


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters in the blocks; defaults, once on, are the reference's (DreamZero
  `WANPolicyHead`).

  Attributes:
    rank: of each adapter; 0 for none.
    alpha: an adapter's product is multiplied by alpha / rank.
    targets: layers that get one: of self- and cross-attention 'q', 'k', 'v', 'o', 'k_image' and
      'v_image', of the feed-forward part 'ffn/in' and 'ffn/out'.
  """

  rank: int = 0
  alpha: float = 4.0  # A factor of 1 at the reference's rank, 4.
  # Not the image's keys and values, which the reference leaves as they are.
  targets: tuple[AdaptedLayer, ...] = ('q', 'k', 'v', 'o', 'ffn/in', 'ffn/out')

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f'model.lora.rank={self.rank} must be 0, for no adapters, or more.')
    for target in self.targets:
      check_choice('model.lora.targets', target, typing.get_args(AdaptedLayer))

  @property
  def scale(self) -> float:
    """What an adapter's product is multiplied by."""
    return self.alpha / self.rank

  def of(self, layer: str) -> LoraConfig | None:
    """What the layer of this name gets, None for no adapter."""
    return self if self.rank and layer in self.targets else None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of the diffusion transformer. Source of the released values: DreamZero `CausalWanModel`.

  Attributes:
    dim, mlp_dim, num_heads, num_layers: width of a token (D) and of the feed-forward part (M),
      heads (N), blocks (L).
    patch: latent cells per token (rows = columns).
    image_condition: concatenate the encoded first frame and its mask to the noisy latents (Wan2.1
      I2V).
    image_dim: width of image-encoder tokens for image cross-attention; 0 for none.
    image_tokens: how many of them.
    freq_dim: width of the noise-level sinusoid.
    action_dim, proprio_dim: U and X, padded over embodiments.
    action_hidden: width of the state encoder and action decoder MLPs.
    num_embodiments: E, categories of the action and state modules.
    frames_per_chunk: latent frames of one chunk.
    actions_per_chunk: A, control steps of one chunk, padded over embodiments.
    action_overlap: D, control steps that a chunk's actions go on beyond its end, where the next
      chunk has begun: so long may the next one take to compute while the robot goes on. Training
      gives each chunk its first 0 to D actions clean, control those that the robot is committed
      to. 0 for none. Source: Black et al., arXiv 2512.05964.
    max_chunks: Q, chunks of a training window, and chunks until the policy re-anchors.
    predict_first_frame: also denoise frame 0, isolated from everything else, as the reference does.
    state_rule: what a state token sees: 'self', 'chunk' (what its chunk's action tokens see), or
      'reference' ('self' in training and 'chunk' in control: a mismatch that released weights
      need).
    history_rule: 'chunk' (clean video is causal by chunks, in a window of `max_chunks` and frame
      0), or 'reference_global' (the reference with max_chunk_size -1, defects included:
      `masks.reference_global`).
    video_sees: what the noisy video of a chunk sees of it: 'all', or 'video' alone; then its keys
      and values do not depend on the actions, which may take several steps against one pass of it.
    prompt_in_modulation: add the mean prompt embedding to the noise-level embedding (reference:
      no).
    eps: of every norm.
    dtype: of activations, 'float32' or 'bfloat16'.
    gradient_dtype: of the gradients of kernels and biases from the product on, where they are
      summed over samples, then over devices: 'model' for `dtype`, or 'float32', which sends and
      holds twice as many bytes of them.
    attention: of training windows: 'dense' (a mask of all pairs of tokens), 'chunks' (exactly the
      pairs that see each other, part by part; in bfloat16 on GPUs by cuDNN's fused kernels),
      'splash' (TPU kernels; interpreted elsewhere, slowly), or 'auto': 'dense' up to 512 tokens,
      'splash' on TPUs from 4096, else 'chunks'. All give the same numbers.
    remat: what the backward pass of a block finds of its forward pass, beside its input: 'none'
      everything, 'dots' the products with weights, 'save_attention' the result of self-attention,
      'dots_and_attention' both, 'narrow' both but for the hidden layer of the feed-forward part,
      'block' nothing; 'offload' nothing either, and the input waits in the host's memory.
    scan_unroll: layers per iteration of the scan over layers; more is faster on CPU and compiles
      longer.
    lora: adapters of the blocks.
    tokenizer, text, image: the frozen or small encoders around the transformer.
  """

  # A model that learns on a CPU (configs/tiny.py); presets.py has the sizes of the released ones.
  dim: int = 64
  mlp_dim: int = 256
  num_heads: int = 2
  num_layers: int = 4
  patch: int = 2
  image_condition: bool = False
  image_dim: int = 0
  image_tokens: int = 257  # CLIP's 16 x 16 patches and its class token.
  freq_dim: int = 64
  action_dim: int = 4
  proprio_dim: int = 8
  action_hidden: int = 64
  num_embodiments: int = 1
  frames_per_chunk: int = 1
  actions_per_chunk: int = 8
  action_overlap: int = 0
  max_chunks: int = 2
  predict_first_frame: bool = False
  state_rule: Literal['self', 'chunk', 'reference'] = 'self'
  history_rule: Literal['chunk', 'reference_global'] = 'chunk'
  video_sees: Literal['all', 'video'] = 'all'
  prompt_in_modulation: bool = False
  eps: float = 1e-6  # Wan's, of layer norms and RMS norms alike.
  dtype: Dtype = 'float32'
  gradient_dtype: Literal['model', 'float32'] = 'model'
  attention: Literal['auto', 'dense', 'chunks', 'splash'] = 'auto'
  remat: Literal[
    'none', 'dots', 'save_attention', 'dots_and_attention', 'narrow', 'block', 'offload'
  ] = 'none'
  scan_unroll: int = 1
  lora: LoraConfig = LoraConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  text: TextConfig = TextConfig()
  image: ImageConfig = ImageConfig()

  def __post_init__(self):
    check_choices(self, 'model')
    check_choices(self.tokenizer, 'model.tokenizer')
    check_choices(self.text, 'model.text')
    check_choices(self.image, 'model.image')
    check_above_0(self, 'model', *_SIZES)
    # A robot may sense nothing, or do nothing.
    check_at_least_0(self, 'model', 'action_dim', 'proprio_dim')
    if self.history_rule == 'reference_global' and self.attention not in ('auto', 'dense'):
      raise ValueError(
        f'model.attention={self.attention!r} cannot do '
        f'model.history_rule={self.history_rule!r}, where tokens of one frame see different ones; '
        "set model.attention='dense'."
      )
    if not 0 <= self.action_overlap <= self.actions_per_chunk:
      raise ValueError(
        f'model.action_overlap={self.action_overlap} must be 0, for chunks that end where the next '
        f'begin, or at most model.actions_per_chunk={self.actions_per_chunk}, a whole chunk.'
      )
    # Rotary embedding turns the dimensions of a head in pairs.
    if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
      raise ValueError(
        f'model.dim={self.dim} over model.num_heads={self.num_heads} must give an even head width; '
        f'nearest valid dim: {max(1, round(self.dim / (2 * self.num_heads))) * 2 * self.num_heads}.'
      )

  @property
  def head_dim(self) -> int:
    """K."""
    return self.dim // self.num_heads

  @property
  def action_horizon(self) -> int:
    """Action tokens of one chunk: A, and the overlap with the next one."""
    return self.actions_per_chunk + self.action_overlap

  @property
  def in_channels(self) -> int:
    """Channels of the patch embedding: latents and, with `image_condition`, 4 of the mask and the
    condition's.
    """
    if not self.image_condition:
      return self.tokenizer.channels
    # The mask has a channel for each of the 4 camera frames of Wan's latent frame.
    return 2 * self.tokenizer.channels + 4

  @property
  def window_frames(self) -> int:
    """Latent frames that a chunk of video sees in training and in control, itself included."""
    # The reference's local_attn_size: frame 0 and as many chunks as a training window has.
    return 1 + self.max_chunks * self.frames_per_chunk

  @property
  def camera_frames_per_chunk(self) -> int:
    """r: camera frames that one chunk shows."""
    return self.frames_per_chunk * self.tokenizer.temporal

  def camera_frames(self, chunks: int) -> int:
    """R: camera frames of a window of `chunks`."""
    return 1 + chunks * self.camera_frames_per_chunk
