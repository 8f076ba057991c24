"""DreamZero-Flash at tiny size, and its coupled twin, on a task with two equally good targets
(`reach_any`).

python -m wam_jax.train --config=configs/tiny_flash.py --workdir=FLASH \
    --config.init_from=WORKDIR_OF_TINY
python -m wam_jax.train --config=configs/tiny_flash.py:coupled --workdir=COUPLED \
    --config.init_from=WORKDIR_OF_TINY

Both continue from the coupled weights of configs/tiny.py with the same data, seed and budget; only
the noise differs, and that the video of Flash does not see the actions: one pass of it, held at
noise, serves four steps of the actions. A share of the chunks is trained without future video, for
--mode=act_only.
"""

from configs import tiny
from wam_jax import presets


def get_config(arg: str = ''):
  if arg not in ('', 'coupled', 'smoke'):
    raise ValueError(f'configs/tiny_flash.py takes no argument, "coupled" or "smoke", not {arg!r}.')
  c = tiny.get_config()
  c.name = 'tiny_flash_coupled' if arg == 'coupled' else 'tiny_flash'
  c.steps = 1500
  c.data.mixture = {'disc': presets.tabletop_dataset(c, 'disc', 'reach_any', 8000)}
  c.evaluation.tasks = ('reach_any',)
  # The twin keeps the noise and the steps of configs/tiny.py: all that is compared.
  if arg != 'coupled':
    presets.keep_video(c, action_steps=4)
  return presets.smoke(c) if arg == 'smoke' else c
