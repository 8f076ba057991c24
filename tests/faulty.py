"""`python -m wam_jax.train`, whose second process cannot read its third batch, or, where
WAM_JAX_STUCK is in its environment, never comes to its third step.
"""

from __future__ import annotations

import errno
import os
import time

import jax
from absl import flags

from wam_jax import cli
from wam_jax import train
from wam_jax.data import pipeline

_read = pipeline.Batches.__next__
_begin = train._begin_step


def read_or_fail(batches):
  if jax.process_index() == 1 and batches.get_state()['next_index'] == 2:
    raise OSError(errno.EIO, 'Input/output error', '/data/shard-00002')
  return _read(batches)


def begin_or_hang(run, step, state):
  if jax.process_index() == 1 and step == 3:
    time.sleep(600)
  return _begin(run, step, state)


if __name__ == '__main__':
  if 'WAM_JAX_STUCK' in os.environ:
    train._begin_step = begin_or_hang
  else:
    pipeline.Batches.__next__ = read_or_fail
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(train.main)
