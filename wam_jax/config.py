"""Every setting of the system, with its default, unit and check. Owns no numerics.

A config file returns a `ConfigDict` made by `base()`; `from_config_dict` turns it into the frozen dataclasses below,
and nothing deeper ever sees a ConfigDict.
"""
from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any
from collections.abc import Mapping

import ml_collections


def _check_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f'{where}={value!r} must be one of {choices}.')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Video tokenizer: pixels to latents. `patch` is a linear one fitted on the training data, needing no download.

  Attributes:
    kind: 'patch'.
    temporal: camera frames per latent frame (the first frame is encoded alone).
    spatial: pixels per latent cell, both directions.
    channels: latent channels C.
    fit_windows: windows of the training data that the patch tokenizer is fitted on.
  """

  kind: str = 'patch'
  temporal: int = 2
  spatial: int = 4
  channels: int = 12
  fit_windows: int = 512


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Text encoder. `word` hashes lower-cased words into a table and is trained with the model.

  Attributes:
    kind: 'word'.
    vocab: rows of the table; 0 is padding.
    length: prompt tokens P.
    dim: width of the embedding handed to the DiT.
    layers: transformer layers over the words.
  """

  kind: str = 'word'
  vocab: int = 2048
  length: int = 16
  dim: int = 64
  layers: int = 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of the diffusion transformer. Source of the released values: DreamZero `CausalWanModel`.

  Attributes:
    dim, mlp_dim, num_heads, num_layers: D, M, N, L.
    patch: latent cells per token (rows = columns).
    image_condition: concatenate the encoded first frame and its mask to the noisy latents (Wan2.1 I2V).
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
    state_rule: what a state token sees: 'self', 'chunk' (what its chunk's action tokens see), or 'reference'
      ('self' in training and 'chunk' in control: a mismatch that released weights need).
    prompt_in_modulation: add the mean prompt embedding to the noise-level embedding (reference: no).
    eps: of every norm.
    dtype: of activations, 'float32' or 'bfloat16'.
    remat: 'none' keeps every activation for the backward pass, 'block' recomputes each block.
    scan_unroll: layers per iteration of the scan over layers; more is faster on CPU and compiles longer.
    tokenizer, text: the frozen or small encoders around the transformer.
  """

  dim: int = 64
  mlp_dim: int = 256
  num_heads: int = 2
  num_layers: int = 4
  patch: int = 2
  image_condition: bool = False
  image_dim: int = 0
  image_tokens: int = 257
  freq_dim: int = 64
  action_dim: int = 4
  proprio_dim: int = 8
  action_hidden: int = 64
  num_embodiments: int = 1
  frames_per_chunk: int = 1
  actions_per_chunk: int = 8
  max_chunks: int = 2
  predict_first_frame: bool = False
  state_rule: str = 'self'
  prompt_in_modulation: bool = False
  eps: float = 1e-6
  dtype: str = 'float32'
  remat: str = 'none'
  scan_unroll: int = 1
  tokenizer: TokenizerConfig = TokenizerConfig()
  text: TextConfig = TextConfig()

  def __post_init__(self):
    _check_choice('model.state_rule', self.state_rule, ('self', 'chunk', 'reference'))
    _check_choice('model.dtype', self.dtype, ('float32', 'bfloat16'))
    _check_choice('model.remat', self.remat, ('none', 'block'))
    _check_choice('model.tokenizer.kind', self.tokenizer.kind, ('patch',))
    _check_choice('model.text.kind', self.text.kind, ('word',))
    if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
      raise ValueError(
          f'model.dim={self.dim} over model.num_heads={self.num_heads} must give an even head width; '
          f'nearest valid dim: {max(1, round(self.dim / (2 * self.num_heads))) * 2 * self.num_heads}.')

  @property
  def head_dim(self) -> int:
    """K."""
    return self.dim // self.num_heads

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
    schedule: 'coupled' (one level per chunk for video and action) or 'flash' (video eta ~ Beta(beta, 1), action
      uniform, independent; paper, DreamZero-Flash).
    levels: points of the discrete schedule (the reference's 1000 training steps).
    shift: warps uniform levels towards noise, coupled: shift * s / (1 + (shift - 1) * s).
    video_beta: first parameter of the Beta law of `flash`.
    flash_shift: warp on top of both draws of `flash` (1: none, as the paper; the reference's code uses 5).
    weighting: 'bump' (the reference's bell over timesteps) or 'uniform'.
    video_weight, action_weight: of the two losses.
    action_mean: action loss averaged over 'real' dimensions and steps only, or over all 'padded' ones (reference).
    mask_padded_noise: feed zeros, not noise, in padded action dimensions (reference: noise).
  """

  schedule: str = 'coupled'
  levels: int = 1000
  shift: float = 5.0
  video_beta: float = 7.0
  flash_shift: float = 1.0
  weighting: str = 'bump'
  video_weight: float = 1.0
  action_weight: float = 1.0
  action_mean: str = 'real'
  mask_padded_noise: bool = True

  def __post_init__(self):
    _check_choice('flow.schedule', self.schedule, ('coupled', 'flash'))
    _check_choice('flow.weighting', self.weighting, ('bump', 'uniform'))
    _check_choice('flow.action_mean', self.action_mean, ('real', 'padded'))


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Denoising at control time.

  Attributes:
    mode: 'joint' (video and action together to sigma 0) or 'flash' (the video stops at `video_final_sigma`).
    solver: 'euler' or 'unipc'.
    steps: network evaluations per chunk and guidance branch.
    shift: warp of the sampling levels.
    video_final_sigma: where the video stops in `flash`.
  """

  mode: str = 'joint'
  solver: str = 'euler'
  steps: int = 4
  shift: float = 5.0
  video_final_sigma: float = 0.8

  def __post_init__(self):
    _check_choice('sample.mode', self.mode, ('joint', 'flash'))
    _check_choice('sample.solver', self.solver, ('euler', 'unipc'))
    if self.steps < 1:
      raise ValueError(f'sample.steps={self.steps} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """One dataset of the mixture.

  Attributes:
    path: TFDS directory that holds dataset_info.json; `~` is expanded.
    split: its split, TFDS slicing allowed ('train[:90%]').
    embodiment: record in `wam_jax/data/embodiments.py`.
    weight: share of the samples, relative to the other datasets.
    prepare: `python -m` arguments that make the dataset when `path` does not exist; '' if it must be there. `{path}`
      and `{source}` in it stand for those fields.
    source: what `prepare` makes it from, for example the directory of a dataset as published.
  """

  path: str = ''
  split: str = 'train'
  embodiment: str = ''
  weight: float = 1.0
  prepare: str = ''
  source: str = ''


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which episodes become which batches.

  Attributes:
    mixture: dataset name to DatasetConfig.
    embodiments: records in the order of their ids; the model's categories.
    seed: of the order of samples.
    workers: grain worker processes; 0 reads in the training process (threads).
    threads: grain reader threads per process.
    prefetch: batches kept ready.
    cache_gib: decoded episodes kept in memory, at most.
    augment: random crop and colour jitter, the same for all views and frames of a sample.
  """

  mixture: Mapping[str, DatasetConfig] = dataclasses.field(default_factory=dict)
  embodiments: tuple[str, ...] = ()
  seed: int = 0
  workers: int = 0
  threads: int = 2
  prefetch: int = 4
  cache_gib: float = 2.0
  augment: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up, a constant stretch and a cosine decay.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear from 0.
    hold_fraction: share of the steps, after warm-up, at the peak before the cosine begins.
    b1, b2, adam_eps, weight_decay: of AdamW; matrices only are decayed.
    clip_norm: of the global gradient.
    ema_decay: of the averaged weights that evaluation and serving use; 0 for none.
  """

  learning_rate: float = 1e-5
  warmup_steps: int = 100
  hold_fraction: float = 0.0
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
    env: 'tabletop' (closed loop in the simulator) or 'dataset' (open loop on recorded episodes of `split`).
    tasks: of the tabletop.
    max_distractors: objects beside those of the task, at most.
    episodes: of each embodiment; of a dataset, windows.
    batch: episodes run side by side; the batch size of the compiled control step.
    split: of a dataset, 'val' or 'train'.
  """

  env: str = 'tabletop'
  tasks: tuple[str, ...] = ('reach',)
  max_distractors: int = 2
  episodes: int = 100
  batch: int = 20
  split: str = 'val'

  def __post_init__(self):
    _check_choice('evaluation.env', self.env, ('tabletop', 'dataset'))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The whole run.

  Attributes:
    name: shown in logs; part of what makes a workdir belong to a config.
    seed: of parameters and noise.
    steps: optimizer steps.
    batch_size: samples per step over all hosts.
    log_every: steps between lines of metrics.jsonl.
    save_every, keep: steps between checkpoints and how many stay.
    eval_every, eval_batches: steps between held-out losses (0 for none), and batches of each.
    init_from: workdir whose EMA weights this run starts from; '' for scratch.
    mesh: axis name to size; one size may be -1 (what is left of the devices).
    rules: logical axis name to mesh axes, '' for replicated.
  """

  name: str = 'unnamed'
  seed: int = 0
  steps: int = 1000
  batch_size: int = 32
  log_every: int = 50
  save_every: int = 500
  keep: int = 3
  eval_every: int = 0
  eval_batches: int = 8
  init_from: str = ''
  mesh: Mapping[str, int] = dataclasses.field(
      default_factory=lambda: {'data': -1, 'fsdp': 1, 'tensor': 1, 'seq': 1})
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: dict(DEFAULT_RULES))
  model: ModelConfig = ModelConfig()
  flow: FlowConfig = FlowConfig()
  sample: SampleConfig = SampleConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  evaluation: EvalConfig = EvalConfig()

  def __post_init__(self):
    if self.model.num_embodiments < len(self.data.embodiments):
      raise ValueError(
          f'model.num_embodiments={self.model.num_embodiments} is less than the {len(self.data.embodiments)} of '
          f'data.embodiments={self.data.embodiments}; set it to {len(self.data.embodiments)}.')
    if self.model.image_dim or self.model.image_condition:
      raise ValueError(
          f'model.image_dim={self.model.image_dim}, model.image_condition={self.model.image_condition} need encoders '
          'that training does not have yet; the model itself takes their outputs. Set 0 and False.')
    for name, dataset in self.data.mixture.items():
      if dataset.embodiment not in self.data.embodiments:
        raise ValueError(f'data.mixture.{name}.embodiment={dataset.embodiment!r} is not in '
                         f'data.embodiments={self.data.embodiments}; add it there.')


DEFAULT_RULES: Mapping[str, tuple[str, ...]] = types.MappingProxyType({
    # Parameters.
    'layers': (),
    'embed': ('fsdp',),
    'embed_out': (),
    'heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'channels': (),
    'vocab': (),
    'embodiment': (),
    'norm': (),
    # Activations.
    'batch': ('data', 'fsdp'),
    'tokens': ('seq',),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_mlp': ('tensor',),
})


DATA_ROOT = '~/wam_jax_data'


def base() -> ml_collections.ConfigDict:
  """Every key at its default, as a ConfigDict for a config file to change."""
  return ml_collections.ConfigDict(_plain(dataclasses.asdict(TrainConfig(rules=dict(DEFAULT_RULES)))))


def tabletop_dataset(robot: str, tasks: str, episodes: int, weight: float = 1.0) -> dict[str, Any]:
  """A tabletop dataset for `data.mixture`, below DATA_ROOT; `python -m data.tabletop` makes it when it is not there.

  Args:
    robot: 'disc', 'arm', 'cart' or 'human'. tasks: comma-separated.
  """
  return dict(
      source='', path=f'{DATA_ROOT}/tabletop/{robot}_{tasks.replace(",", "_")}/1.0.0', split='train',
      embodiment=f'tabletop_{robot}', weight=weight,
      prepare=f'data.tabletop --output={DATA_ROOT} --embodiment={robot} --tasks={tasks} --episodes={episodes} '
              '--workers=2')


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same experiment for a test: four steps, checkpoints, evaluation and data at the smallest size that runs."""
  config.name += '_smoke'
  config.steps, config.batch_size, config.log_every, config.save_every = 4, 8, 1, 2
  m = config.model
  m.num_layers, m.dim, m.mlp_dim, m.num_heads, m.scan_unroll = 2, 32, 64, 2, 1
  m.tokenizer.fit_windows = 16
  config.evaluation.episodes = config.evaluation.batch = 2
  for dataset in config.data.mixture.values():
    moved = [text.replace(DATA_ROOT, f'{DATA_ROOT}/smoke') for text in (dataset.path, dataset.prepare)]
    dataset.path, dataset.prepare = moved[0], re.sub(r'--episodes=\d+', '--episodes=20', moved[1])
  return config


def from_config_dict(config: Mapping[str, Any]) -> TrainConfig:
  """The frozen dataclasses of a config file's result.

  Raises:
    ValueError: keys that do not exist, are missing or have a value of another type; all of them, up to ten.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  problems: list[str] = []
  built = _build(TrainConfig, config, 'config', problems)
  if problems:
    raise ValueError('The config has wrong keys or values:\n  ' + '\n  '.join(problems[:10])
                     + '\nEvery key, with its default and unit, is declared in wam_jax/config.py.')
  return built


def to_dict(config: Any) -> dict[str, Any]:
  """JSON-ready nested dict of a config dataclass; `from_config_dict` is its inverse."""
  return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def _build(cls: type, given: Any, where: str, problems: list[str]) -> Any:
  if not isinstance(given, Mapping):
    problems.append(f'{where}={given!r} must be a group of keys of {cls.__name__}.')
    return None
  hints = typing.get_type_hints(cls)
  problems.extend(f'{where}.{key} does not exist; {where} has {", ".join(sorted(hints))}.'
                  for key in given if key not in hints)
  problems.extend(f'{where}.{key} is missing.' for key in hints if key not in given)
  before = len(problems)
  fields = {key: _convert(hints[key], given[key], f'{where}.{key}', problems) for key in hints if key in given}
  return None if len(problems) > before or len(fields) < len(hints) else cls(**fields)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where, problems)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
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
