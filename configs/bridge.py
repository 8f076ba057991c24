"""BridgeData V2 (WidowX) at tiny size: a real robot dataset through the same commands.

python -m wam_jax.train --config=configs/bridge.py --workdir=DIR --config.data.mixture.bridge.source=RLDS_DIRECTORY

RLDS_DIRECTORY is the dataset as published, the directory with dataset_info.json; its TFRecord
shards are converted once. An ArrayRecord directory goes in `path` instead. The size overfits a few
dozen episodes; it is no recipe for the whole set.
"""

from wam_jax import config as cfg


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'bridge'
  c.steps, c.batch_size = 1000, 16
  c.log_every, c.save_every = 50, 500
  m = c.model
  m.dim, m.mlp_dim, m.num_heads, m.num_layers, m.scan_unroll = 96, 384, 3, 4, 4
  m.action_dim, m.proprio_dim, m.actions_per_chunk = 7, 7, 4
  m.tokenizer.channels = 16
  c.data.embodiments = ('bridge_widowx',)
  c.data.mixture = {
    'bridge': dict(
      path=f'{cfg.DATA_ROOT}/bridge_dataset/1.0.0',
      split='train',
      embodiment='bridge_widowx',
      weight=1.0,
      prepare='data.convert --source={source} --output={path}',
      source='',
    )
  }
  c.flow.shift, c.flow.weighting, c.flow.action_weight = 3.0, 'uniform', 1.0
  c.sample.shift, c.sample.steps = 3.0, 8
  o = c.optimizer
  o.learning_rate, o.warmup_steps, o.hold_fraction = 2e-3, 100, 0.3
  o.b1, o.b2, o.weight_decay, o.ema_decay = 0.9, 0.98, 0.01, 0.995
  c.evaluation.env, c.evaluation.split, c.evaluation.episodes, c.evaluation.batch = (
    'dataset',
    'train',
    100,
    20,
  )
  return cfg.smoke(c) if arg == 'smoke' else c
