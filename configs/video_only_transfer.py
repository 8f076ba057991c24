"""Video-only transfer: people on video, 10 to 20 minutes without actions, half of each batch beside
robot data.

  python -m data.human_video --source=VIDEOS --output=DATA/human_video/1.0.0 \
      --size=352x640
  python -m data.encode --workdir=DATA/wan2_1_i2v_14b_two \
      --dataset=DATA/human_video/1.0.0 --embodiment=human
  python -m wam_jax.train --config=configs/video_only_transfer.py --workdir=gs://BUCKET/transfer \
      --distributed --config.data.root=DATA --config.init_from=WORKDIR_OF_AGIBOT_14B

Paper: 10,000 steps of 1:1 co-training; task progress on the videos' tasks from 38.3 to 54.3 %. A
sample without actions has no action loss, and its video tokens see no action or state keys.
Expected 1.2 days on v5p-128, 0.3 days on v6e-256 (:v6e).
"""

from configs import agibot_14b
from wam_jax import presets


def get_config(arg: str = ''):
  c = agibot_14b.get_config('' if arg == 'smoke' else arg)
  c.name = 'video_only_transfer'
  # The workdir of that run.
  presets.start_from(c, 'agibot_14b')
  c.steps = 10_000
  # 5 % of the steps, as in droid_14b.
  c.optimizer.warmup_steps = 500
  # Weight 1, as AgiBot has: the paper's 1:1.
  c.data.mixture.human = presets.rlds_dataset(
    c,
    path='human_video/1.0.0',
    embodiment='human',
    prepare='data.human_video --source={source} --output={path} --size=352x640',
  )
  c.data.ranges = {'agibot': '', 'human': ''}
  return presets.smoke(c, {'agibot': 'disc', 'human': 'human'}) if arg == 'smoke' else c
