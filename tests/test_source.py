"""Weights of another run on many hosts: each reads and holds its share, and a mistake is one
message on all.
"""

from __future__ import annotations

import json
import shutil

import jax
import pytest

from tests import programs
from tests import shares
from wam_jax.models import encoders

HOSTS = 4


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  place = tmp_path_factory.mktemp('bases')
  shares.write_import(place / 'import')
  shares.write_lora_run(place / 'lora')
  shutil.copytree(place / 'import', place / 'cut')
  for path in (place / 'cut' / 'checkpoints' / '0' / 'params').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:16])
  return place


def count_bytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_each_host_reads_and_holds_its_share_and_hears_of_every_mistake(root):
  port = programs.free_port(20000, 30000)
  devices = f'{programs.FAST_XLA} --xla_force_host_platform_device_count={shares.DEVICES // HOSTS}'
  joint = [
    programs.Program('tests.shares', port, n, HOSTS, root, variables={'XLA_FLAGS': devices})
    for n in range(HOSTS)
  ]
  outputs = [program.communicate(timeout=200) for program in joint]
  assert [program.returncode for program in joint] == [0] * HOSTS, '\n'.join(map(str, outputs))
  told = [
    [json.loads(line) for line in stdout.splitlines() if line[0] == '{'] for stdout, _ in outputs
  ]
  for one in told:
    print(one)

  weights = count_bytes(shares.draw_params(shares.MODEL))
  frozen = count_bytes(encoders.to_tree(shares.draw_encoders()))
  for number, base in enumerate(('import', 'lora')):
    alone = shares.start_from(root / base)
    for one in told:
      found = one[number]
      # The same numbers as with one process, from weights of the same name.
      for key in ('params', 'frozen', 'base', 'encoders'):
        assert found[key] == alone[key], (base, key)
      for name, size in (('read_params', weights), ('read_encoders', frozen)):
        read, peak = found['read'][name]
        # Lists of arrays, what is too small to be cut, and the pages of files beside.
        assert read < 1.3 * size / HOSTS + 2**20, (base, name, read)
        # What is read, and what is being unpacked; 8 MB are of threads.
        assert peak < 2.5 * size / HOSTS + 8 * 2**20, (base, name, peak)
      assert found['held'] < 1.1 * (weights + frozen) / HOSTS

  for one in told:
    errors = [found['error'] for found in one[2:]]
    assert errors == [found['error'] for found in told[0][2:]]
    shapes, *absent, cut = errors
    assert (
      'does not fit config.model; 3 arrays differ:\n  blocks/ffn/in/b: (3, 1024) here' in shapes
    )
    for number, message in enumerate(absent):
      assert f'on 1 of {HOSTS} hosts. host {number} ' in message
      assert 'has no checkpoint yet' in message
    assert f'No checkpoint in {root}/cut/checkpoints can be read' in cut
    assert max(found['seconds'] for found in one[2:]) < 60
