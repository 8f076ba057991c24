"""BridgeData V2 (WidowX) at tiny size: a real robot dataset through the same commands.

python -m wam_jax.train --config=configs/bridge.py --workdir=DIR \
    --config.data.mixture.bridge.source=RLDS_DIRECTORY

RLDS_DIRECTORY is the dataset as published, the directory with dataset_info.json; its TFRecord
shards are converted once. An ArrayRecord directory goes in `path` instead. The size overfits a few
dozen episodes; it is no recipe for the whole set.
"""

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import embodiments


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'bridge'
  c.steps = 1000
  c.batch_size = 16
  c.log_every = 50
  c.save_every = 500

  c.model.dim = 96
  c.model.mlp_dim = 384
  c.model.num_heads = 3
  c.model.num_layers = 4
  # All layers, no loop over them: faster on CPU.
  c.model.scan_unroll = 4
  c.model.tokenizer.channels = 16
  presets.fit_robot(c, embodiments.get('bridge_widowx'))

  c.data.embodiments = ('bridge_widowx',)
  c.data.mixture = {
    'bridge': presets.rlds_dataset(
      c,
      path='bridge_dataset/1.0.0',
      embodiment='bridge_widowx',
      prepare='data.convert --source={source} --output={path}',
    )
  }

  presets.train_small(c)
  c.flow.action_weight = 1.0
  c.sample.steps = 8
  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_steps = 100
  c.optimizer.hold_fraction = 0.3

  # This size learns a few dozen episodes by heart, so it is evaluated on those.
  c.evaluation.env = 'dataset'
  c.evaluation.split = 'train'
  c.evaluation.episodes = 100
  c.evaluation.batch = 20
  return presets.smoke(c) if arg == 'smoke' else c
