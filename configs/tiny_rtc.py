"""Real-time chunking at tiny size: chunks begin with what the robot is committed to, which goes on
while the next one is computed. The twin of configs/tiny_moving.py: same data, seed and budget.

python -m wam_jax.train --config=configs/tiny_rtc.py --workdir=DIR \
    --config.init_from=WORKDIR_OF_TINY
python -m wam_jax.evaluate --workdir=DIR --when=rtc --delay=4
"""

from configs import tiny_moving
from wam_jax import presets


def get_config(arg: str = ''):
  c = tiny_moving.get_config()
  c.name = 'tiny_rtc'
  # Of the 8 steps of a chunk: the longest delay that it is trained for.
  c.model.action_overlap = 6
  # Prefixes are what the expert was led astray by, and no others: its own decisions know what it
  # saw later, and so tell almost all of what comes next.
  c.flow.without_prefix = 1.0
  return presets.smoke(c) if arg == 'smoke' else c
