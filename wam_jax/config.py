"""Every setting of the system, with its default, unit and check. Owns no numerics; sizes and
datasets with a name are in presets.py.

A config file returns a `ConfigDict` made by `base()`; `from_config_dict` turns it into the frozen
dataclasses below, and nothing deeper ever sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

Dtype = Literal['float32', 'bfloat16']


# Cached, because annotations are strings here, which every call would evaluate again.
@functools.cache
def list_choices(group: type) -> dict[str, tuple[str, ...]]:
  """The values that each key of a class below may have, for the keys that have a choice."""
  hints = typing.get_type_hints(group)
  return {key: typing.get_args(h) for key, h in hints.items() if typing.get_origin(h) is Literal}


def _check_choices(group: Any, where: str) -> None:
  """Raises unless each key of `group` has one of its values; `_convert` tells of a config file."""
  for key, choices in list_choices(type(group)).items():
    _check_choice(f'{where}.{key}', getattr(group, key), choices)


def _check_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f'{where}={value!r} must be one of {choices}.')


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
    size: pixel rows and columns it sees. patch: pixels per token, both directions.
    dim: width. heads, layers: of the whole tower. mlp_ratio: feed-forward width over `dim`.
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
      _check_choice('model.lora.targets', target, typing.get_args(AdaptedLayer))

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
    dim, mlp_dim, num_heads, num_layers: D, M, N, L.
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
    actions_per_chunk: A, action tokens of one chunk, padded over embodiments.
    max_chunks: Q, chunks of a training window, and chunks until the policy re-anchors.
    predict_first_frame: also denoise frame 0, isolated from everything else, as the reference does.
    state_rule: what a state token sees: 'self', 'chunk' (what its chunk's action tokens see), or
      'reference' ('self' in training and 'chunk' in control: a mismatch that released weights
      need).
    history_rule: 'chunk' (clean video is causal by chunks, in a window of `max_chunks` and frame
      0), or 'reference_global' (the reference with max_chunk_size -1, defects included:
      `masks.reference_global`).
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
  max_chunks: int = 2
  predict_first_frame: bool = False
  state_rule: Literal['self', 'chunk', 'reference'] = 'self'
  history_rule: Literal['chunk', 'reference_global'] = 'chunk'
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
    _check_choices(self, 'model')
    _check_choices(self.tokenizer, 'model.tokenizer')
    _check_choices(self.text, 'model.text')
    _check_choices(self.image, 'model.image')
    if self.history_rule == 'reference_global' and self.attention not in ('auto', 'dense'):
      raise ValueError(
        f'model.attention={self.attention!r} cannot do '
        f'model.history_rule={self.history_rule!r}, where tokens of one frame see different ones; '
        "set model.attention='dense'."
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


@dataclasses.dataclass(frozen=True)
class FlowConfig:
  """Noise levels and loss. `sigma` is 0 for clean, 1 for noise; the schedule has `levels` points.

  Attributes:
    schedule: 'coupled' (one level per chunk for video and action), 'flash' (video eta ~ Beta(beta,
      1), action uniform, independent; paper, DreamZero-Flash) or 'decoupled' (the reference's code
      for it, `flow.sample_levels`).
    levels: points of the discrete schedule (the reference's 1000 training steps).
    shift: warps uniform levels towards noise, coupled: shift * s / (1 + (shift - 1) * s).
    video_beta: first parameter of the Beta law of `flash` and `decoupled` (the reference's code
      uses 3).
    flash_shift: warp on top of both draws of `flash` (1: none, as the paper; the reference's code
      uses 5).
    weighting: 'bump' (the reference's bell over timesteps) or 'uniform'.
    video_weight, action_weight: of the two losses.
    action_mean: action loss averaged over 'real' dimensions and steps only, or over all 'padded'
      ones (reference).
    mask_padded_noise: feed zeros, not noise, in padded action dimensions (reference: noise).
  """

  schedule: Literal['coupled', 'flash', 'decoupled'] = 'coupled'
  levels: int = 1000
  shift: float = 5.0  # The mean level of uniform draws is then 0.75, not 0.5.
  video_beta: float = 7.0  # Paper, DreamZero-Flash: the mean level is 7/8.
  flash_shift: float = 1.0
  weighting: Literal['bump', 'uniform'] = 'bump'
  video_weight: float = 1.0
  action_weight: float = 1.0
  # With 'padded' the fewer dimensions a robot has, the less its actions weigh.
  action_mean: Literal['real', 'padded'] = 'real'
  mask_padded_noise: bool = True

  def __post_init__(self):
    _check_choices(self, 'flow')


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Denoising at control time. The released policy: solver 'unipc', 16 steps, guidance 5, the rest
  as said below.

  Attributes:
    mode: 'joint' (video and action together to sigma 0) or 'flash' (the video stops at
      `video_final_sigma`).
    solver: 'euler' or 'unipc'.
    steps: of the solver per chunk.
    shift: warp of the sampling levels.
    video_final_sigma: where the video stops in `flash`.
    guidance_scale: of the video's velocity, `sampler.guide`; 1 for none.
    negative_prompt: what guidance moves away from.
    evaluate_steps: steps at which the network runs, () for all; the others use its last velocities
      again. Released, of 16: 0, 1, 2, 6, 10, 13, 14, 15.
    integer_timesteps: the network is told floor(1000 sigma) / 1000 (reference: yes).
    same_noise: every call starts from the same noise (reference: yes).
    observed: 'stream' encodes what is observed as one video since the anchor, 'fresh' each chunk as
      a video of its own (reference).
  """

  mode: Literal['joint', 'flash'] = 'joint'
  solver: Literal['euler', 'unipc'] = 'euler'
  steps: int = 4
  shift: float = 5.0  # As in training: the solver meets the levels that training met most.
  video_final_sigma: float = 0.8  # DreamZero `video_inference_final_noise`.
  guidance_scale: float = 1.0
  negative_prompt: str = ''
  evaluate_steps: tuple[int, ...] = ()
  integer_timesteps: bool = False
  same_noise: bool = False
  observed: Literal['stream', 'fresh'] = 'stream'

  def __post_init__(self):
    _check_choices(self, 'sample')
    if self.steps < 1:
      raise ValueError(f'sample.steps={self.steps} must be at least 1.')
    if not self.guidance_scale >= 1:
      raise ValueError(
        f'sample.guidance_scale={self.guidance_scale} must be at least 1; 1 is without guidance.'
      )
    # The first step has no velocities before it that it could use again.
    valid = tuple(sorted({0, *(i for i in self.evaluate_steps if 0 <= i < self.steps)}))
    if self.evaluate_steps and self.evaluate_steps != valid:
      raise ValueError(
        f'sample.evaluate_steps={self.evaluate_steps} must start at 0, rise and stay below '
        f'sample.steps={self.steps}; nearest valid: {valid}.'
      )


def is_table_name(text: str) -> bool:
  """Whether an embodiment is named as in `wam_jax/data/embodiments.py`, and not by a place."""
  return bool(text) and '/' not in text and not text.endswith('.json')


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """One dataset of the mixture.

  Attributes:
    path: TFDS directory that holds dataset_info.json; `~` is expanded.
    split: its split, TFDS slicing allowed ('train[:90%]').
    held_out: the split that is kept from training, as 'train[90%:]': training evaluates on it,
      `wam_jax.evaluate` too, and `data.encode` stores it; '' for `evaluation.split`.
    embodiment: its robot's record: a name of `wam_jax/data/embodiments.py`, a JSON file, a
      directory that has one or a checkpoint (`embodiments.resolve`); '' for the file
      embodiment.json beside the data.
    weight: share of the samples, relative to the other datasets.
    prepare: `python -m` arguments that make the dataset when `path` does not exist; '' if it must
      be there. `{path}` and `{source}` in it stand for those fields, `{root}` for `data.root`.
    source: what `prepare` makes it from, for example the directory of a dataset as published.
  """

  path: str = ''
  split: str = 'train'
  held_out: str = ''
  embodiment: str = ''
  weight: float = 1.0
  prepare: str = ''
  source: str = ''


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which episodes become which batches.

  Attributes:
    root: directory of everything that the config's own paths name, datasets, weights and the
      vocabulary, local or gs://; those paths follow where it is set (`presets`).
    mixture: dataset name to DatasetConfig.
    embodiments: records in the order of their rows of the model, named as in a `DatasetConfig`; ()
      for those of the mixture. A run that starts from another keeps that one's rows by name.
    rows: name of a robot to its row, where it is to go on from the row of another robot of
      `init_from`, which has no robot of its name.
    seed: of the order of samples.
    workers: grain worker processes; 0 reads in the training process (threads).
    threads: grain reader threads per process.
    prefetch: batches kept ready.
    cache_gib: decoded episodes kept in memory, at most.
    augment: random crop and colour jitter, the same for all views and frames of a sample.
    ranges: dataset name to a JSON file of the steps where its chunks may start
      (`windows.make_anchors`), '' for all.
    failures: datasets whose failed episodes are wanted, too, where the embodiment's record can tell
      them.
    statistics: name of a robot to a statistics file that is used instead of its datasets' own, ''
      for none, 'base' for those of `init_from`.
    statistics_of: whose statistics normalize a robot that `init_from` knows: those of its 'data',
      or the 'base' one's, which the weights were trained with. Either way it is said how far the
      two are apart.
    features: whether training takes what `python -m data.encode` stored in place of pixels: 'auto'
      where there is any, 'require' stops where there is none, 'off' never.
  """

  root: str = '~/wam_jax_data'
  mixture: Mapping[str, DatasetConfig] = dataclasses.field(default_factory=dict)
  embodiments: tuple[str, ...] = ()
  rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  seed: int = 0
  workers: int = 0
  threads: int = 2
  prefetch: int = 4
  cache_gib: float = 2.0
  augment: bool = False
  ranges: Mapping[str, str] = dataclasses.field(default_factory=dict)
  failures: tuple[str, ...] = ()
  statistics: Mapping[str, str] = dataclasses.field(default_factory=dict)
  statistics_of: Literal['data', 'base'] = 'data'
  features: Literal['auto', 'require', 'off'] = 'auto'

  def __post_init__(self):
    _check_choices(self, 'data')
    # A misspelt name would be passed over, and training go on without what it was to say.
    checks = [
      ('ranges', self.ranges, self.mixture, 'mixture'),
      ('failures', self.failures, self.mixture, 'mixture'),
    ]
    if self.lists_names:
      checks.append(('statistics', self.statistics, self.embodiments, 'embodiments'))
    for key, named, known, where in checks:
      if unknown := sorted(set(named) - set(known)):
        raise ValueError(
          f'data.{key} names {unknown}, which data.{where} does not have; it has {sorted(known)}.'
        )

  @property
  def lists_names(self) -> bool:
    """Whether `embodiments` has names only: those of records in files are known when these are
    read (`data/roster.py`).
    """
    return bool(self.embodiments) and all(map(is_table_name, self.embodiments))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up, a constant stretch and a cosine decay.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear from 0.
    hold_fraction: share of the steps, after warm-up, at the peak before the cosine begins.
    decay_steps: the step where the cosine reaches 0, for a run in parts; 0 for config.steps.
    b1, b2, adam_eps, weight_decay: of AdamW; matrices only are decayed.
    clip_norm: of the global gradient.
    ema_decay: of the averaged weights that evaluation and serving use; 0 for none.
  """

  # AdamW, weight decay and clipping are DreamZero's (its conf.yaml and launch scripts).
  learning_rate: float = 1e-5
  warmup_steps: int = 100
  hold_fraction: float = 0.0
  decay_steps: int = 0
  b1: float = 0.95
  b2: float = 0.999
  adam_eps: float = 1e-8
  weight_decay: float = 1e-5
  clip_norm: float = 1.0
  ema_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What `wam_jax.evaluate` does with a checkpoint of this run when its flags do not say otherwise.

  Attributes:
    env: 'tabletop' (closed loop in the simulator) or 'dataset' (open loop on recorded episodes that
      were held out).
    tasks: of the tabletop.
    max_distractors: objects beside those of the task, at most.
    episodes: of each embodiment; of a dataset, windows.
    batch: episodes run side by side; the batch size of the compiled control step.
    split: held out of each dataset that does not name its own (`DatasetConfig.held_out`), in
      training, too.
  """

  env: Literal['tabletop', 'dataset'] = 'tabletop'
  tasks: tuple[str, ...] = ('reach',)
  max_distractors: int = 2
  episodes: int = 100  # At a rate of one half, its 95 % interval is 19 points wide.
  batch: int = 20
  split: str = 'val'

  def __post_init__(self):
    _check_choices(self, 'evaluation')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The whole run.

  Attributes:
    name: shown in logs; part of what makes a workdir belong to a config.
    seed: of parameters and noise.
    steps: optimizer steps.
    batch_size: samples per step over all hosts.
    accumulate: parts that a batch is computed in, one after the other, to save memory; the update
      is the same.
    log_every: steps between lines of metrics.jsonl.
    save_every, keep: steps between checkpoints and how many of the newest stay.
    keep_every: checkpoints at multiples of this many steps stay for good; 0 for none.
    eval_every, eval_batches: steps between held-out losses (0 for none), and batches of each.
    init_from: workdir whose EMA weights and encoders this run starts from; '' for scratch.
    encoders_from: workdir whose frozen encoders alone this run uses, where it does not start from
      another.
    trainable: which parameters are trained: 'all', 'lora' (adapters, state encoder, action encoder
      and decoder; set model.lora.rank), or patterns of their paths (`finetuning.split`). The others
      cost no gradient, no optimizer state and no average.
    frozen_dtype: that the others are kept in, 'float32' or 'bfloat16'.
    spike_factor: a loss this many times the median of the last 100 steps is reported with its
      samples, 0 for never.
    stop_on_spike: whether such a step ends the run, with nothing of it saved.
    hang_timeout_s: a step that takes longer, its wait for a batch included, ends the process with
      the stack of every thread, so that a cluster can start it again; 0 for never.
    pause_timeout_s: the same for what else is waited for once the data is open: restoring, the
      first step, which compiles, each evaluation and each save; 0 for never. Needs hang_timeout_s.
    profile: first and last step of a trace for XProf in WORKDIR/profile, () for none.
    compiler_options: NAME=VALUE that the steps are compiled with, beside what `chips.py` has for
      the chip; what is known to be wrong there is refused (`compiler_options`).
    sdc_checks: how many times each step runs again on TPUs, to compare the results and stop where a
      chip computes another one: a run of an hour to try a slice takes 1, for twice the time.
    mesh: axis name to size; one size may be -1 (what is left of the devices). 'slice' is the number
      of TPU slices that the data-centre network joins.
    rules: logical axis name to mesh axes, '' for replicated.
  """

  name: str = 'unnamed'
  seed: int = 0
  steps: int = 1000
  batch_size: int = 32
  accumulate: int = 1
  log_every: int = 50
  save_every: int = 500
  keep: int = 3
  keep_every: int = 0
  eval_every: int = 0
  eval_batches: int = 8
  init_from: str = ''
  encoders_from: str = ''
  trainable: tuple[str, ...] = ('all',)
  frozen_dtype: Dtype = 'float32'
  # Guards are off by default: what is unusual depends on the experiment and on the cluster.
  spike_factor: float = 0.0
  stop_on_spike: bool = False
  hang_timeout_s: float = 0.0
  pause_timeout_s: float = 3600.0
  profile: tuple[int, ...] = ()
  compiler_options: tuple[str, ...] = ()
  sdc_checks: int = 0
  # Every device has its own samples and all of the weights.
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {'slice': 1, 'data': -1, 'fsdp': 1, 'seq': 1, 'tensor': 1}
  )
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: dict(DEFAULT_RULES)
  )
  model: ModelConfig = ModelConfig()
  flow: FlowConfig = FlowConfig()
  sample: SampleConfig = SampleConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  evaluation: EvalConfig = EvalConfig()

  def __post_init__(self):
    _check_choices(self, 'config')
    self._check_counts()
    self._check_trainable()
    # Steps count from 1.
    if self.profile and (len(self.profile) != 2 or not 0 < self.profile[0] <= self.profile[1]):
      raise ValueError(
        f'config.profile={self.profile} must be the first and the last step of the trace, or ().'
      )
    if self.data.statistics_of == 'base' and not self.init_from:
      raise ValueError(
        "config.data.statistics_of='base' needs config.init_from, whose statistics these are."
      )
    robots = len(self.data.embodiments)
    if self.model.num_embodiments < robots:
      raise ValueError(
        f'model.num_embodiments={self.model.num_embodiments} is less than the {robots} of '
        f'data.embodiments={self.data.embodiments}; set it to {robots}.'
      )
    self._check_image()
    if self.data.lists_names:
      self._check_listed()

  def _check_listed(self):
    """Robots that are named are in the list of names."""
    for name, dataset in self.data.mixture.items():
      robot = dataset.embodiment
      if is_table_name(robot) and robot not in self.data.embodiments:
        raise ValueError(
          f'data.mixture.{name}.embodiment={robot!r} is not in '
          f'data.embodiments={self.data.embodiments}; add it there.'
        )

  def _check_image(self):
    """The transformer takes the tokens that the image encoder gives; without one, of any number."""
    image_dim = self.model.image_dim
    image_tokens = self.model.image_tokens
    given = (0, 0)  # (width, tokens).
    if self.model.image.kind != 'none':
      given = (self.model.image.dim, self.model.image.tokens)
    if (image_dim, image_tokens if image_dim else 0) != given:
      raise ValueError(
        f'model.image_dim={image_dim}, model.image_tokens={image_tokens} must be what '
        f'model.image.kind={self.model.image.kind!r} gives: {given}.'
      )

  def _check_counts(self):
    counts = ('steps', 'batch_size', 'accumulate', 'log_every', 'save_every', 'keep')
    low = [f'config.{key}={getattr(self, key)}' for key in counts if getattr(self, key) < 1]
    if low:
      raise ValueError(f'{", ".join(low)}: must be at least 1.')
    decay_steps = self.optimizer.decay_steps
    if decay_steps < 0 or 0 < decay_steps < self.steps:
      raise ValueError(
        f'config.optimizer.decay_steps={decay_steps}, where the learning rate reaches 0, must be '
        f'0, for config.steps={self.steps}, or at least that.'
      )

  def _check_trainable(self):
    if not self.trainable:
      raise ValueError(
        "config.trainable=() trains nothing; set it to 'all', 'lora' or patterns of parameters."
      )
    # Whatever is not trained must come from somewhere.
    if self.trainable != ('all',) and not self.init_from:
      raise ValueError(
        f'config.trainable={self.trainable} would leave random weights as they are; set '
        "config.init_from=WORKDIR, of an import or a run, or config.trainable='all'."
      )
    if 'lora' in self.trainable and not self.model.lora.rank:
      raise ValueError(
        "config.trainable='lora' needs adapters: set config.model.lora.rank, as 4 or 16."
      )
    if 'all' in self.trainable and self.model.lora.rank:
      raise ValueError(
        f"config.model.lora.rank={self.model.lora.rank} with config.trainable='all' would train "
        "adapters and what they adapt; set config.trainable='lora', or the rank to 0."
      )


DEFAULT_RULES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
  {
    # Parameters; 'frozen' are those of the encoders. 'embed' is an axis of nearly every kernel, so
    # that this rule alone divides the memory of the state.
    'layers': (),
    'embed': ('fsdp',),
    'embed_out': (),  # Stands beside 'embed'; a mesh axis can split only one axis of an array.
    'heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'channels': (),
    'vocab': (),
    'embodiment': (),
    'norm': (),
    'rank': (),
    'frozen': ('fsdp',),
    # Activations.
    'batch': ('slice', 'data', 'fsdp'),  # Devices that share the weights have different samples.
    'tokens': ('seq',),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_mlp': ('tensor',),
  }
)


def base() -> ml_collections.ConfigDict:
  """Every key at its default, as a ConfigDict for a config file to change."""
  return ml_collections.ConfigDict(
    _plain(dataclasses.asdict(TrainConfig(rules=dict(DEFAULT_RULES))))
  )


def from_config_dict(config: Mapping[str, Any]) -> TrainConfig:
  """The frozen dataclasses of a config file's result.

  Raises:
    ValueError: keys that do not exist, are missing or have a value of another type; all of them, up
      to ten.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  problems: list[str] = []
  built = _build(TrainConfig, config, 'config', problems)
  if problems:
    raise ValueError(
      'The config has wrong keys or values:\n  '
      + '\n  '.join(problems[:10])
      + '\nEvery key, with its default and unit, is declared in wam_jax/config.py.'
    )
  return built


def to_dict(config: Any) -> dict[str, Any]:
  """JSON-ready nested dict of a config dataclass; `from_config_dict` is its inverse."""
  return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
  """`value` of dicts and tuples, for whatever mappings and lists it has."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_plain(v) for v in value)
  return value


def _build(cls: type, given: Any, where: str, problems: list[str]) -> Any:
  """An object of `cls` from a dict; None, and a line in `problems` for each, where it has any."""
  if not isinstance(given, Mapping):
    problems.append(f'{where}={given!r} must be a group of keys of {cls.__name__}.')
    return None
  # All problems are collected, so that a config is put right in one go.
  hints = typing.get_type_hints(cls)
  problems.extend(
    f'{where}.{key} does not exist; {where} has {", ".join(sorted(hints))}.'
    for key in given
    if key not in hints
  )
  # What a dataset does not say has its default: a config writes each one out by hand.
  if cls is DatasetConfig:
    given = {**dataclasses.asdict(DatasetConfig()), **given}
  problems.extend(f'{where}.{key} is missing.' for key in hints if key not in given)
  before = len(problems)
  fields = {}
  for key, hint in hints.items():
    if key in given:
      fields[key] = _convert(hint, given[key], f'{where}.{key}', problems)
  # The checks of `cls` itself need all of its keys, of the right types.
  if len(problems) > before or len(fields) < len(hints):
    return None
  return cls(**fields)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
  """`value` as the field's type, from what a ConfigDict, JSON or a flag makes of it."""
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return _build(hint, value, where, problems)
  origin = typing.get_origin(hint)
  args = typing.get_args(hint)
  if origin is Literal:
    if value not in args:
      problems.append(f'{where}={value!r} must be one of {args}.')
    return value
  # A whole number is a float, too; but Python's bool is an int, which nobody means by it.
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if origin is tuple and isinstance(value, (list, tuple)):
    return tuple(_convert(args[0], v, f'{where}[{i}]', problems) for i, v in enumerate(value))
  if isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
    return {k: _convert(args[1], v, f'{where}.{k}', problems) for k, v in value.items()}
  plain = origin or hint
  if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
    problems.append(f'{where}={value!r} must be of type {getattr(plain, "__name__", plain)}.')
  return value
