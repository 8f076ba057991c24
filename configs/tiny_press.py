"""What training with uncoupled noise is for: a task (`press_any`, and `press`) in which one chunk
decides between two plans, their mean jams the switches, and a lamp makes the video tell the plan.

python -m wam_jax.train --config=configs/tiny_press.py:ARM --workdir=DIR \
    --config.init_from=WORKDIR_OF_TINY
python -m benchmarks.sampling --workdir=DIR --tasks=press_any --ways=joint4,joint1,held8

ARM is 'coupled', 'flash' (the noise of DreamZero-Flash alone) or none, for Flash whose video does
not see the actions, as in configs/tiny_flash.py: one pass of it is kept for all steps of the
actions. All three have the same data, seed and budget.
"""

from configs import tiny
from wam_jax import presets

TASKS = 'press,press_any'
ARMS = ('', 'coupled', 'flash', 'smoke')


def get_config(arg: str = ''):
  if arg not in ARMS:
    raise ValueError(f'configs/tiny_press.py takes one of {ARMS}, not {arg!r}.')
  c = tiny.get_config()
  c.name = f'tiny_press_{arg}' if arg in ('coupled', 'flash') else 'tiny_press'
  c.steps = 2000
  c.data.mixture = {'disc': presets.tabletop_dataset(c, 'disc', TASKS, 4000)}
  c.evaluation.tasks = tuple(TASKS.split(','))
  if arg == 'flash':
    c.flow.schedule = 'flash'
  elif arg != 'coupled':
    presets.keep_video(c, action_steps=8)
  return presets.smoke(c) if arg == 'smoke' else c
