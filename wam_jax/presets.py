"""Parts of configs that have a name: the released models, datasets as they are published, the smoke
version of an experiment. Owns no setting; all of those are declared in config/.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from wam_jax import config as cfg
from wam_jax.data import record as record_lib

# What the two released DreamZero models share: Wan2.1-I2V-14B and Wan2.2-TI2V-5B with action
# modules. Source: DreamZero launch scripts.
_RELEASED = cfg.ModelConfig(
  patch=2,
  image_dim=1280,
  image_tokens=257,
  freq_dim=256,
  action_dim=32,
  proprio_dim=64,
  action_hidden=1024,
  frames_per_chunk=2,
  actions_per_chunk=24,
  max_chunks=4,
  predict_first_frame=True,
  state_rule='reference',
  dtype='bfloat16',
  remat='block',
  image=cfg.ImageConfig(kind='clip', dtype='bfloat16'),
  text=cfg.TextConfig(kind='umt5', vocab=256384, length=512, dim=4096, layers=24, dtype='bfloat16'),
)
WAN2_1_I2V_14B = dataclasses.replace(
  _RELEASED,
  dim=5120,
  mlp_dim=13824,
  num_heads=40,
  num_layers=40,
  image_condition=True,
  tokenizer=cfg.TokenizerConfig(
    kind='wan2_1', temporal=4, spatial=8, channels=16, dtype='bfloat16'
  ),
)
WAN2_2_TI2V_5B = dataclasses.replace(
  _RELEASED,
  dim=3072,
  mlp_dim=14336,
  num_heads=24,
  num_layers=30,
  tokenizer=cfg.TokenizerConfig(
    kind='wan2_2',
    temporal=4,
    spatial=16,
    channels=48,
    resize=(160, 320),
    dtype='bfloat16',
    vae=cfg.VAEConfig(encoder_dim=160, decoder_dim=256),
  ),
)


# A frame of a tiny model from scratch: attention over all tokens of a window is quadratic in them.
_MOST_TOKENS = 160


def below_root(config: Any, path: str) -> ml_collections.FieldReference:
  """`path` below `data.root` of a ConfigDict; follows when a flag or a later line sets that."""
  return config.data.get_ref('root') + f'/{path}'


def start_from(config: Any, workdir: str) -> None:
  """Sets a ConfigDict to the weights and the vocabulary of a workdir below `data.root`.

  The vocabulary follows `init_from` where a flag sets that.
  """
  config.init_from = below_root(config, workdir)
  config.model.text.tokenizer = config.get_ref('init_from') + '/tokenizer.json'


def train_small(config: Any) -> None:
  """Noise, losses, sampling and optimizer of a small model that is trained from scratch in minutes;
  changes a ConfigDict. The learning rate is the experiment's.
  """
  config.flow.shift = 3.0
  config.flow.weighting = 'uniform'
  config.flow.action_weight = 4.0
  config.sample.shift = 3.0
  config.sample.steps = 4

  config.optimizer.warmup_steps = 150
  config.optimizer.hold_fraction = 0.5
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.weight_decay = 0.01
  config.optimizer.ema_decay = 0.995


def keep_video(config: Any, action_steps: int) -> None:
  """Flash whose video does not see the actions: one pass of it, held at noise, is kept for all
  steps of the actions; changes a ConfigDict. A share of the chunks is trained without future video,
  for --mode=act_only.
  """
  config.model.video_sees = 'video'
  config.flow.schedule = 'flash'
  config.flow.video_at_noise = 0.3
  config.flow.video_hidden = 0.2
  config.sample.mode = 'flash'
  config.sample.steps = 1
  config.sample.action_steps = action_steps


def rlds_dataset(config: Any, path: str, embodiment: str, **chosen: Any) -> dict[str, Any]:
  """A dataset for `data.mixture` of a ConfigDict. One that is made once from one as published is
  told that by `--config.data.mixture.NAME.source=DIR`.

  Args:
    path: its directory, below `data.root`.
    embodiment, chosen: fields of `config.DatasetConfig`.
  """
  dataset = dataclasses.asdict(cfg.DatasetConfig(embodiment=embodiment, **chosen))
  return dataset | {'path': below_root(config, path)}


def tabletop_dataset(
  config: Any, robot: str, tasks: str, episodes: int, weight: float = 1.0
) -> dict[str, Any]:
  """A tabletop dataset for `data.mixture` of a ConfigDict, below its `data.root`; `python -m
  data.tabletop` makes it when it is not there.

  Args:
    robot: 'disc', 'arm', 'cart' or 'human'. tasks: comma-separated.
  """
  return rlds_dataset(
    config,
    path=f'tabletop/{robot}_{tasks.replace(",", "_")}/1.0.0',
    embodiment=f'tabletop_{robot}',
    prepare=(
      f'data.tabletop --output={{root}} --embodiment={robot} --tasks={tasks} '
      f'--episodes={episodes} --workers=2'
    ),
    weight=weight,
    # Where the target moves, the expert is led astray.
    given='given' if 'reach_moving' in tasks.split(',') else '',
  )


def fit_robot(config: Any, record: record_lib.Embodiment) -> None:
  """Sets the sizes of a ConfigDict's model that a robot needs, where they are too small for it;
  without a base, patches that large composites can be learned with on any machine.

  Raises:
    ValueError: a chunk of the record shows no whole number of latent frames.
  """
  model = config.model
  frames = record.camera_frames_per_chunk
  if frames % model.tokenizer.temporal:
    raise ValueError(
      f'{record.name} shows {frames} camera frames a chunk; change chunk_s or video_fps of its '
      f'record, so that these are a multiple of {model.tokenizer.temporal}.'
    )
  model.frames_per_chunk = frames // model.tokenizer.temporal
  if not config.init_from:
    model.actions_per_chunk = record.steps_per_chunk
    model.action_dim = record.action_dim
    model.proprio_dim = record.proprio_dim
    model.tokenizer.spatial = _find_spatial(model, record.composite)


def _find_spatial(model: Any, composite: tuple[int, int]) -> int:
  """The finest patches of a composite that a model from scratch can attend to on any machine: from
  those of the config on, the first that leave few tokens a frame, or the coarsest that fit.
  """
  rows, columns = composite
  least = model.tokenizer.spatial
  fitting = [
    spatial
    for spatial in range(least, min(composite) + 1)
    if not (rows % (spatial * model.patch) or columns % (spatial * model.patch))
  ]
  few = [s for s in fitting if rows * columns // (s * model.patch) ** 2 <= _MOST_TOKENS]
  return few[0] if few else (fitting or [least])[-1]


def smoke(config: Any, stand_ins: Mapping[str, str] | None = None) -> Any:
  """The same experiment for a test: four steps, checkpoints, evaluation and data at the smallest
  size that runs.

  Args:
    config: a ConfigDict, changed in place and returned; its attributes have no types.
    stand_ins: for an experiment on data and imported weights that a test cannot have: of each
      dataset, the tabletop robot whose episodes take its place. The model is then a tiny one from
      scratch, with small encoders, that keeps the experiment's rules (noise, losses, optimizer,
      sampling, rematerialisation).
  """
  config.name += '_smoke'
  config.steps = 4
  config.batch_size = 8
  config.log_every = 1
  config.save_every = 2
  if stand_ins is not None:
    _stand_in(config, stand_ins)
  config.model.dim = 32
  config.model.mlp_dim = 64
  config.model.num_heads = 2
  config.model.num_layers = 2
  config.model.scan_unroll = 1
  config.model.tokenizer.fit_windows = 16
  config.evaluation.episodes = 2
  config.evaluation.batch = 2
  # A place of its own: the small dataset must not be taken for the one that the experiment wants.
  for dataset in config.data.mixture.values():
    dataset.path = below_root(config, f'smoke/{_strip_root(config, dataset.path)}')
    prepare = dataset.prepare.replace('{root}', '{root}/smoke')
    dataset.prepare = re.sub(r'--episodes=\d+', '--episodes=20', prepare)
  return config


def _strip_root(config: Any, path: str) -> str:
  return path.removeprefix(f'{config.data.root}/')


def _stand_in(config: Any, robots: Mapping[str, str]) -> None:
  """Tabletop data and a tiny model from scratch in place of large ones."""
  rules = ('predict_first_frame', 'state_rule', 'history_rule', 'video_sees')
  kept = {key: config.model[key] for key in (*rules, 'remat', 'num_embodiments')}
  config.model = cfg.to_dict(cfg.ModelConfig(**kept))
  config.data.mixture = {
    name: tabletop_dataset(config, robot, 'reach', 20, config.data.mixture[name].weight)
    for name, robot in robots.items()
  }
  config.data.embodiments = tuple(dict.fromkeys(f'tabletop_{robot}' for robot in robots.values()))
  config.data.ranges = {}
  config.data.rows = {}
  config.data.features = 'off'
  config.init_from = ''
  config.trainable = ('all',)
  config.mesh = cfg.to_dict(cfg.TrainConfig())['mesh']
  config.accumulate = 1
  config.sample.steps = min(config.sample.steps, 2)
  config.sample.evaluate_steps = ()
  config.evaluation = cfg.to_dict(cfg.EvalConfig())
