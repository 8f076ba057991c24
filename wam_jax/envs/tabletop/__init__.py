"""The default world: a 2-D table with pushable objects, four embodiments, language tasks and
scripted experts.
"""

from wam_jax.envs.tabletop.drift import SPEED as DRIFT_SPEED
from wam_jax.envs.tabletop.env import Conditions
from wam_jax.envs.tabletop.env import TabletopEnv
from wam_jax.envs.tabletop.env import TIME_LIMIT_S
from wam_jax.envs.tabletop.experts import Astray
from wam_jax.envs.tabletop.experts import make_expert
from wam_jax.envs.tabletop.panel import LIGHT
from wam_jax.envs.tabletop.render import COLORS
from wam_jax.envs.tabletop.robots import ROBOTS
from wam_jax.envs.tabletop.tasks import held_out
from wam_jax.envs.tabletop.tasks import PANEL_TASKS
from wam_jax.envs.tabletop.tasks import SHAPES
from wam_jax.envs.tabletop.tasks import SPLITS
from wam_jax.envs.tabletop.tasks import TASKS

__all__ = (
  'COLORS',
  'DRIFT_SPEED',
  'LIGHT',
  'PANEL_TASKS',
  'ROBOTS',
  'SHAPES',
  'SPLITS',
  'TASKS',
  'TIME_LIMIT_S',
  'Astray',
  'Conditions',
  'TabletopEnv',
  'held_out',
  'make_expert',
)
