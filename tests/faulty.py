"""`python -m wam_jax.train`, whose second process cannot read its third batch."""

from __future__ import annotations

import errno

import jax
from absl import flags

from wam_jax import cli
from wam_jax import train
from wam_jax.data import pipeline

_read = pipeline.Batches.__next__


def read_or_fail(batches):
  if jax.process_index() == 1 and batches.get_state()['next_index'] == 2:
    raise OSError(errno.EIO, 'Input/output error', '/data/shard-00002')
  return _read(batches)


if __name__ == '__main__':
  pipeline.Batches.__next__ = read_or_fail
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(train.main)
