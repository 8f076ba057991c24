"""DreamZero on DROID, 14B: Wan2.1-I2V-14B and new action modules, trained in full; coupled noise.

  python -m wam_jax.convert import --source=Wan2.1-I2V-14B-480P --output=DATA/wan2_1_i2v_14b
  python -m data.convert --source=DROID_RLDS --output=DATA/droid/1.0.1
  python -m data.encode --workdir=DATA/wan2_1_i2v_14b \
      --dataset=DATA/droid/1.0.1 --embodiment=droid
  python -m wam_jax.train --config=configs/droid_14b.py --workdir=gs://BUCKET/droid_14b \
      --distributed --config.data.root=DATA

DATA is a directory or gs://BUCKET/DIR, what `config.data.root` names; docs/pods.md has each step.
Expected, from the program compiled to machine code and published shares of the chips' peaks
(`python -m benchmarks.pods`): on v5p-128 (v5p:4x4x4) 10.0 s a step, 11.6 days for all, 53 % MFU, 81
of 96 GiB; on v6e-256 (:v6e) 2.3 s, 2.7 days, 28 % MFU, 14 of 31 GiB. At the least 6.9 s and 1.3 s.
From the plan alone, on v4-128 (:v4) 21.7 s, 25 days, 41 % MFU, 27 of 31 GiB. Input, logging,
evaluation and checkpoints come on top.
"""

from __future__ import annotations

import dataclasses

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import prompts

# How the step is laid out on a slice. 'fsdp' is a part of the slice: of a whole one, compilers of
# TPUs sum gradients everywhere to keep a slice of them, which sends twice as much.
LAYOUTS = {
  'v5p': dict(
    remat='dots_and_attention', accumulate=2, mesh=dict(data=-1, fsdp=32, tensor=1, seq=1)
  ),
  'v6e': dict(remat='save_attention', accumulate=1, mesh=dict(data=-1, fsdp=64, tensor=1, seq=2)),
  'v4': dict(remat='save_attention', accumulate=2, mesh=dict(data=-1, fsdp=32, tensor=1, seq=1)),
  # Here the compiler sums gradients over the whole slice all the same (benchmarks/RESULTS.md).
  'tpu7x': dict(
    remat='dots_and_attention', accumulate=1, mesh=dict(data=-1, fsdp=32, tensor=1, seq=1)
  ),
}


def get_config(arg: str = ''):
  if arg not in ('', 'smoke', *LAYOUTS):
    raise ValueError(
      f'This config takes no argument, "smoke" or one of {sorted(LAYOUTS)}, not {arg!r}.'
    )
  c = cfg.base()
  c.name = 'droid_14b'
  # Paper: 100,000 steps at a global batch of 128.
  c.steps = 100_000
  c.batch_size = 128
  c.log_every = 10
  c.save_every = 1000
  # A checkpoint with Adam's moments is large: two newest to resume from, one in ten for good.
  c.keep = 2
  c.keep_every = 10_000
  # For days that nobody watches: a spike leaves the names of its samples, a hang every stack.
  c.spike_factor = 4.0
  c.hang_timeout_s = 1800.0

  c.model = dataclasses.asdict(presets.WAN2_1_I2V_14B)
  presets.start_from(c, 'wan2_1_i2v_14b')

  c.data.embodiments = ('droid',)
  c.data.mixture = {
    'droid': presets.rlds_dataset(
      c,
      path='droid/1.0.1',
      embodiment='droid',
      prepare='data.convert --source={source} --output={path}',
    )
  }
  c.data.ranges = {'droid': ''}
  # The frozen encoders run once and beforehand (data.encode), not in every step.
  c.data.features = 'require'

  # The reference's AdamW (DreamZero launch scripts): warm-up over 5 % of the steps, then cosine.
  c.optimizer.learning_rate = 1e-5
  c.optimizer.warmup_steps = 5000
  c.optimizer.clip_norm = 1.0
  c.optimizer.b1 = 0.95
  c.optimizer.b2 = 0.999
  c.optimizer.adam_eps = 1e-8
  c.optimizer.weight_decay = 1e-5

  # The reference's control: 16 UniPC steps, guidance 5 against its fixed negative prompt.
  c.sample.solver = 'unipc'
  c.sample.steps = 16
  c.sample.guidance_scale = 5.0
  c.sample.negative_prompt = prompts.NEGATIVE
  # Open loop, since no simulator has this robot; DROID is published as one split.
  c.evaluation.env = 'dataset'
  c.evaluation.split = 'train'

  layout = LAYOUTS[arg if arg in LAYOUTS else 'v5p']
  c.model.remat = layout['remat']
  c.accumulate = layout['accumulate']
  c.mesh.update(layout['mesh'])
  return presets.smoke(c, {'droid': 'disc'}) if arg == 'smoke' else c
