"""DreamZero-Flash on DROID, 14B: decoupled noise, from the coupled weights of configs/droid_14b.py;
one pass of the video a chunk, four of the actions.

  python -m wam_jax.train --config=configs/droid_14b_flash.py \
      --workdir=gs://BUCKET/droid_14b_flash --distributed --config.data.root=DATA \
      --config.init_from=WORKDIR_OF_DROID_14B

Paper: the video's clean share is drawn from Beta(7, 1), mostly noise, the action's level uniformly
and apart from it; 50,000 steps, as its other post-training. Beyond it, video does not see the
actions, and shares of the chunks have video at noise or none, as control will (--mode=act_only;
--action_steps=0 for the paper's single step). DreamZero's own server cannot run such weights; for
it train with --config.model.video_sees=all --config.sample.action_steps=0. Step, memory and layouts
are those of droid_14b: expected 5.8 days on v5p-128, 1.3 days on v6e-256 (:v6e).
"""

from configs import droid_14b
from wam_jax import presets


def get_config(arg: str = ''):
  c = droid_14b.get_config('' if arg == 'smoke' else arg)
  c.name = 'droid_14b_flash'
  # The workdir of that run.
  presets.start_from(c, 'droid_14b')
  c.steps = 50_000
  # 5 % of the steps, as in droid_14b.
  c.optimizer.warmup_steps = 2500
  presets.keep_video(c, action_steps=4)
  # The reference's bell has weight 0 at level 1, where the one step is taken.
  c.flow.weighting = 'uniform'
  # One pass of the video a chunk is the point; guidance would run a second branch.
  c.sample.guidance_scale = 1.0
  return presets.smoke(c, {'droid': 'disc'}) if arg == 'smoke' else c
