"""Meta-World, a world that others report on: a Sawyer arm in MuJoCo reaches a goal and opens a
drawer, as scripted experts show it, by a small model from scratch.

pip install -e '.[metaworld]'
python -m wam_jax.train --config=configs/metaworld.py --workdir=DIR
python -m wam_jax.evaluate --workdir=DIR
"""

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import embodiments

TASKS = ('reach', 'drawer-open')


def get_config(arg: str = ''):
  c = cfg.base()
  c.name = 'metaworld'
  c.steps = 10_000
  c.batch_size = 16
  c.log_every = 50
  c.save_every = 1000

  c.data.embodiments = ('metaworld',)
  prepare = f'data.metaworld --output={{root}} --tasks={",".join(TASKS)} --episodes=400 --workers=2'
  c.data.mixture = {
    'metaworld': presets.rlds_dataset(
      c,
      path=f'metaworld/{"_".join(TASKS)}/1.0.0',
      embodiment='metaworld',
      prepare=prepare,
      held_out='val',
    )
  }
  c.evaluation.env = 'metaworld'
  c.evaluation.tasks = TASKS
  c.evaluation.batch = 10

  presets.train_small(c)
  c.optimizer.learning_rate = 1e-3

  # Cameras of 64 pixels, tiled: patches that leave few tokens a frame.
  c.model.tokenizer.fit_windows = 64
  presets.fit_robot(c, embodiments.get('metaworld'))
  return presets.smoke(c) if arg == 'smoke' else c
