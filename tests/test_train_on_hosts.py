"""Two processes of two devices train the numbers of one, on every kind of mesh; what is wrong on
one of them is the same message on both.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import programs

DEVICES = f'{programs.FAST_XLA} --xla_force_host_platform_device_count='
CONFIG = '--config=tests/mesh_config.py'


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> str:
  root = tmp_path_factory.mktemp('data')
  made = ['--embodiment=disc', '--tasks=reach', '--episodes=24', '--other_episodes=4']
  done = programs.run('data.tabletop', f'--output={root}', *made)
  assert done.returncode == 0, done.stderr
  return f'{root}/tabletop/disc_reach/1.0.0'


def on(dataset) -> list[str]:
  return [f'--config.data.mixture.{name}.path={dataset}' for name in ('disc', 'often')]


def start_two(workdir, *flags, module='wam_jax.train', others=()) -> list[programs.Program]:
  """Both processes of a run; `others` are flags of the second one alone."""
  port = programs.free_port(20000, 30000)
  joined = [f'--coordinator_address=localhost:{port}', '--num_processes=2']
  return [
    programs.Program(
      module,
      *(CONFIG, f'--workdir={workdir}', *joined, f'--process_id={number}', *flags),
      *(others if number else ()),
      variables={'XLA_FLAGS': f'{DEVICES}2'},
      one_stream=True,
    )
    for number in range(2)
  ]


def metrics_of(workdir) -> list[dict[str, float]]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def alone(dataset, tmp_path_factory) -> list[dict[str, float]]:
  """Metrics of one process with one device."""
  workdir = tmp_path_factory.mktemp('alone')
  done = programs.run('wam_jax.train', CONFIG, f'--workdir={workdir}', *on(dataset))
  assert done.returncode == 0, done.stderr
  return metrics_of(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('module', 'flags'),
  [
    ('wam_jax.train', ['mesh.data=1', 'mesh.tensor=4', 'eval_every=0']),
    ('wam_jax.train', ['mesh.data=1', 'mesh.seq=4', 'eval_every=0']),
    ('tests.interleaved', ['mesh.data=2', 'mesh.tensor=2']),
    ('tests.interleaved', ['mesh.data=4', 'accumulate=2']),
    ('wam_jax.train', ['mesh.slice=2', 'mesh.data=1', 'mesh.fsdp=2', 'eval_every=0']),
  ],
  ids=str,
)
def test_meshes_across_hosts_train_like_one_device(module, flags, alone, dataset, tmp_path):
  """Held-out losses too. Rows that a host reads are its devices', which are no neighbours where
  hosts take turns, and all rows where both have a part of each.
  """
  flags = [f'--config.{flag}' for flag in flags]
  for process in start_two(tmp_path, *flags, *on(dataset), module=module):
    output, _ = process.communicate()
    assert process.returncode == 0, output
  got = metrics_of(tmp_path)
  evaluates = '--config.eval_every=0' not in flags
  assert [line['step'] for line in got] == [line['step'] for line in alone]
  assert any('eval_loss' in line for line in got) == evaluates
  for line, expected in zip(got, alone):
    # Float32 sums in another order.
    want = [expected[name] for name in line]
    np.testing.assert_allclose(list(line.values()), want, rtol=1e-5)
