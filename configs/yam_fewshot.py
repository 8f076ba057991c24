"""A new robot from 30 minutes of play data (55 trajectories, 11 tasks): two YAM arms, from the
released AgiBot weights.

  python -m wam_jax.convert import --source=DreamZero-AgiBot --output=DATA/dreamzero_agibot
  python -m data.from_lerobot --source=YAM_LEROBOT --output=DATA/yam/1.0.0 --workers=8
  python -m data.encode --workdir=DATA/dreamzero_agibot \
      --dataset=DATA/yam/1.0.0 --embodiment=yam_reference
  python -m wam_jax.train --config=configs/yam_fewshot.py --workdir=gs://BUCKET/yam_fewshot \
      --distributed --config.data.root=DATA

Rates, padded action dimensions and the action loss are those that the released weights were trained
with: every third frame and 24 actions a chunk of 0.8 s. Paper: 50,000 steps of post-training; with
30 minutes of data each window is seen many times, so look at held-out tasks at the kept
checkpoints. Expected 5.8 days on v5p-128, 1.3 days on v6e-256 (:v6e), as droid_14b a step; fewer
steps may do.
"""

from configs import droid_14b
from wam_jax import presets


def get_config(arg: str = ''):
  c = droid_14b.get_config('' if arg == 'smoke' else arg)
  c.name = 'yam_fewshot'
  presets.start_from(c, 'dreamzero_agibot')
  c.steps = 50_000
  # 5 % of the steps, as in droid_14b.
  c.optimizer.warmup_steps = 2500
  # The released weights' own rules; other runs leave padding out of loss and noise.
  c.flow.action_mean = 'padded'
  c.flow.mask_padded_noise = False
  # The record with the reference's constant rates, not this robot's own.
  c.data.embodiments = ('yam_reference',)
  # The reference's weights have one row of action modules: a new robot goes on from the old one's.
  c.data.rows = {'yam_reference': 0}
  c.data.mixture = {
    'yam': presets.rlds_dataset(
      c,
      path='yam/1.0.0',
      embodiment='yam_reference',
      prepare='data.from_lerobot --source={source} --output={path}',
    )
  }
  c.data.ranges = {'yam': ''}
  return presets.smoke(c, {'yam': 'disc'}) if arg == 'smoke' else c
