"""DreamZero on AgiBot G1 (about 500 h, 7,193 episodes, 22 environments), 14B, trained in full; 48
actions a chunk.

  python -m wam_jax.convert import --source=Wan2.1-I2V-14B-480P \
      --output=DATA/wan2_1_i2v_14b_two --num_embodiments=2
  python -m data.from_lerobot --source=AGIBOT_LEROBOT --output=DATA/agibot/1.0.0 \
      --workers=64
  python -m data.encode --workdir=DATA/wan2_1_i2v_14b_two \
      --dataset=DATA/agibot/1.0.0 --embodiment=agibot
  python -m wam_jax.train --config=configs/agibot_14b.py --workdir=gs://BUCKET/agibot_14b \
      --distributed --config.data.root=DATA

Step, memory and layouts are those of droid_14b, with 96 action tokens more in 14,180: expected 12.0
days on v5p-128, 2.8 days on v6e-256 (:v6e). The second category of the action modules is for
configs/video_only_transfer.py, which goes on from here.
"""

from configs import droid_14b
from wam_jax import presets


def get_config(arg: str = ''):
  c = droid_14b.get_config('' if arg == 'smoke' else arg)
  c.name = 'agibot_14b'
  presets.start_from(c, 'wan2_1_i2v_14b_two')

  # Paper: 30 Hz, 1.6 s a chunk.
  c.model.actions_per_chunk = 48
  # The second category is for people on video; it is not trained here.
  c.model.num_embodiments = 2

  c.data.embodiments = ('agibot', 'human')
  c.data.mixture = {
    'agibot': presets.rlds_dataset(
      c,
      path='agibot/1.0.0',
      embodiment='agibot',
      prepare='data.from_lerobot --source={source} --output={path}',
    )
  }
  c.data.ranges = {'agibot': ''}
  return presets.smoke(c, {'agibot': 'disc'}) if arg == 'smoke' else c
