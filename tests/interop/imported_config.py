"""Fine-tuning of an imported checkpoint: the argument is its workdir. Frames are shrunk, so that it
runs anywhere.
"""

import ml_collections

from wam_jax import config as cfg
from wam_jax import workdir


def get_config(imported: str):
  c = cfg.base()
  source = workdir.fill_config(workdir.load_config(workdir.make_path(imported)))
  c.model = ml_collections.ConfigDict(source['model'])
  c.model.tokenizer.resize = (32, 64)
  c.model.dtype, c.model.remat, c.model.max_chunks = 'float32', 'none', 2
  c.flow = ml_collections.ConfigDict(source['flow'])
  c.sample.steps = 2
  c.init_from = imported
  c.steps, c.batch_size, c.log_every, c.save_every = 2, 2, 1, 2
  c.optimizer.ema_decay = 0.5
  c.data.embodiments = ('droid',)
  c.data.mixture = {
    'droid': dict(path='', split='train', embodiment='droid', weight=1.0, prepare='', source='')
  }
  c.data.statistics = {}
  c.evaluation.env, c.evaluation.split, c.evaluation.episodes, c.evaluation.batch = (
    'dataset',
    'train',
    2,
    2,
  )
  return c
