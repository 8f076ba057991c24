"""`config.evaluation`: what is evaluated by default."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wam_jax.config.choices import check_choices
from wam_jax.config.ranges import check_at_least_0
from wam_jax.config.ranges import check_shares


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What `wam_jax.evaluate` does with a checkpoint of this run when its flags do not say otherwise.

  Attributes:
    env: 'tabletop' or 'metaworld' (closed loop in a simulator), or 'dataset' (open loop on recorded
      episodes that were held out).
    tasks: of the simulator.
    max_distractors: objects of the tabletop beside those of the task, at most.
    light: of the tabletop's lamp: by which share a switch turns everything in view brighter or
      darker.
    drift_speed: of what moves by itself on the tabletop, m/s.
    time_limit_s: of an episode of the simulator, in its time; 0 for that of its task.
    episodes: of each embodiment; of a dataset, windows.
    batch: episodes run side by side; the batch size of the compiled control step.
    split: held out of each dataset that does not name its own (`DatasetConfig.held_out`), in
      training, too.
  """

  env: Literal['tabletop', 'metaworld', 'dataset'] = 'tabletop'
  tasks: tuple[str, ...] = ('reach',)
  max_distractors: int = 2
  light: float = 0.25
  drift_speed: float = 0.15
  time_limit_s: float = 0.0
  episodes: int = 100  # At a rate of one half, its 95 % interval is 19 points wide.
  batch: int = 20
  split: str = 'val'

  def __post_init__(self):
    check_choices(self, 'evaluation')
    check_shares(self, 'evaluation', 'light')
    check_at_least_0(self, 'evaluation', 'drift_speed', 'time_limit_s')
