"""`python -m wam_jax.train` where the devices of the hosts take turns along the mesh, as those of a
TPU slice do in the order of their links.
"""

from __future__ import annotations

import jax
from absl import flags

from wam_jax import cli
from wam_jax import sharding
from wam_jax import train

_in_order = sharding.make_mesh


def take_turns(sizes):
  hosts = {}
  for device in jax.devices():
    hosts.setdefault(device.process_index, []).append(device)
  return _in_order(sizes, [device for turn in zip(*hosts.values()) for device in turn])


if __name__ == '__main__':
  sharding.make_mesh = take_turns
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(train.main)
