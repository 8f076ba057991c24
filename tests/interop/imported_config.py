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
  c.model.dtype = 'float32'
  c.model.remat = 'none'
  c.model.max_chunks = 2
  c.flow = ml_collections.ConfigDict(source['flow'])
  c.flow.action_mean = 'real'
  c.sample.steps = 2
  c.init_from = imported
  c.steps = 2
  c.batch_size = 2
  c.log_every = 1
  c.save_every = 2
  # With two steps, averages that differ clearly from the start and from the end.
  c.optimizer.ema_decay = 0.5
  c.data.embodiments = ('droid',)
  c.data.mixture = {
    'droid': dict(path='', split='train', embodiment='droid', weight=1.0, prepare='', source='')
  }
  c.data.statistics = {}
  c.evaluation.env = 'dataset'
  c.evaluation.split = 'train'
  c.evaluation.episodes = 2
  c.evaluation.batch = 2
  return c
