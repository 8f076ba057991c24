"""A robot of your own: docs/your_robot.md, which goes from a LeRobot folder to a policy.

python -m wam_jax.train --config=configs/your_robot.py:DATASET[,BASE] --workdir=DIR

DATASET has its record beside it (embodiment.json), and the model is fitted to that. BASE is an
import or a run to start from; without one, a tiny model learns from scratch: minutes on two CPU
cores, and no recipe for a large dataset.
"""

from __future__ import annotations

import ml_collections

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import workdir as workdir_lib
from wam_jax.data import embodiments


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'your_robot'
  c.steps = 2000
  c.batch_size = 16
  c.log_every = 50
  c.save_every = 500
  c.eval_every = 500
  c.optimizer.learning_rate = 1e-4
  c.optimizer.warmup_steps = 100
  c.optimizer.ema_decay = 0.995
  # Open loop, on the episodes that are held out.
  c.evaluation.env = 'dataset'
  c.evaluation.episodes = 100
  c.evaluation.batch = 10
  # Of this robot alone, whose record lies beside its data.
  c.data.mixture = {
    'your_robot': presets.rlds_dataset(
      c, path='my_robot/1.0.0', embodiment='', split='train[:90%]', held_out='train[90%:]'
    )
  }
  if arg == 'smoke':
    return presets.smoke(c, {'your_robot': 'disc'})
  if not arg:
    return c

  dataset, _, base = arg.partition(',')
  c.data.mixture.your_robot.path = dataset
  if base:
    _start_from(c, base)
  else:
    # Cameras may be large, and all windows that patches are fitted to lie in memory.
    c.model.tokenizer.fit_windows = 64
  presets.fit_robot(c, embodiments.resolve('', dataset))
  return c


def _start_from(c, base: str) -> None:
  """Model, noise and sampling of the run or import at `base`, with a row for one more robot."""
  stored = workdir_lib.load_config(workdir_lib.make_path(base))
  if stored is None:
    raise ValueError(f'{base} has no config.json; give the workdir of an import or a run.')
  stored = workdir_lib.fill_config(stored)
  c.model = ml_collections.ConfigDict(stored['model'])
  c.flow = ml_collections.ConfigDict(stored['flow'])
  c.sample = ml_collections.ConfigDict(stored['sample'])
  c.model.num_embodiments += 1
  # Adapters are merged into what is started from.
  c.model.lora.rank = 0
  c.init_from = base
  # Random crops, where the base was trained on them.
  c.data.augment = stored['data']['augment']
