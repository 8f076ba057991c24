"""DreamZero on DROID, 5B: Wan2.2-TI2V-5B and new action modules, trained in full; 50 tokens a
latent frame.

  python -m wam_jax.convert import --source=Wan2.2-TI2V-5B --image_encoder=Wan2.1-I2V-14B-480P \
      --output=DATA/wan2_2_ti2v_5b
  python -m data.convert --source=DROID_RLDS --output=DATA/droid/1.0.1
  python -m data.encode --workdir=DATA/wan2_2_ti2v_5b \
      --dataset=DATA/droid/1.0.1 --embodiment=droid_wan22
  python -m wam_jax.train --config=configs/droid_5b.py --workdir=gs://BUCKET/droid_5b \
      --distributed --config.data.root=DATA

Expected, from the program compiled to machine code and published shares of the chips' peaks: on
v5p-32 (v5p:2x2x4) 1.1 s a step, 1.3 days for all, 42 % MFU, 36 of 96 GiB; at the least 0.9 s.
`python -m benchmarks.pods` has the smallest slices.
"""

import dataclasses

from configs import droid_14b
from wam_jax import presets


def get_config(arg: str = ''):
  if arg not in ('', 'smoke'):
    raise ValueError(f'This config takes no argument or "smoke", not {arg!r}.')
  c = droid_14b.get_config()
  c.name = 'droid_5b'
  # The whole batch fits at once, on 16 chips; droid_14b halves it, on 64.
  c.accumulate = 1
  c.mesh.fsdp = 8
  c.model = dataclasses.asdict(presets.WAN2_2_TI2V_5B)
  c.model.remat = 'dots_and_attention'
  presets.start_from(c, 'wan2_2_ti2v_5b')
  # The same robot with a composite image of 320 x 640, which this tokenizer halves.
  c.data.embodiments = ('droid_wan22',)
  c.data.mixture.droid.embodiment = 'droid_wan22'
  return presets.smoke(c, {'droid': 'disc'}) if arg == 'smoke' else c
