"""Two processes of two devices train the numbers of one, on every kind of mesh; what is wrong on
one of them is the same message on both.
"""

from __future__ import annotations

import json
import re
import shutil
import time

import numpy as np
import pytest

from tests import programs
from wam_jax import cli

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


def start_two(
  workdir, *flags, module='wam_jax.train', others=(), homes=('/root', '/root')
) -> list[programs.Program]:
  """Both processes of a run; `others` are flags of the second one alone, `homes` what `~` is."""
  port = programs.free_port(20000, 30000)
  joined = [f'--coordinator_address=localhost:{port}', '--num_processes=2']
  return [
    programs.Program(
      module,
      *(CONFIG, f'--workdir={workdir}', *joined, f'--process_id={number}', *flags),
      *(others if number else ()),
      variables={'XLA_FLAGS': f'{DEVICES}2', 'HOME': str(homes[number])},
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
    ('tests.interleaved', ['mesh.data=2', 'mesh.tensor=2', 'eval_every=0']),
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


def end_alike(processes, status: int) -> str:
  """The message that both end with, within a minute."""
  said = []
  for process in processes:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    said.append(re.split(r'^error: ', output, flags=re.M)[-1])
  # JAX may add to what a process prints last that it has lost the others.
  assert said[0].splitlines()[:3] == said[1].splitlines()[:3]
  return said[0]


@pytest.mark.slow
def test_hosts_with_another_config_end_before_anything_is_made(dataset, tmp_path):
  pair = start_two(tmp_path / 'run', *on(dataset), others=['--config.seed=1', '--config.steps=9'])
  message = end_alike(pair, cli.MISTAKE)
  assert 'config.seed: 0 on host 0, 1 on host 1\n' in message
  assert 'config.steps: 4 on host 0, 9 on host 1\n' in message
  assert 'Start the same command' in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('there', 'message'),
  [
    ('nothing', r'on 1 of 2 hosts. host 1 \(.*\): There is no dataset directory .*/second/disc;'),
    ('another', r'config.data.mixture.disc \(training\): \w+, \d+ windows on host 0, \w+, \d+ '),
  ],
)
def test_a_dataset_that_one_host_has_not(there, message, dataset, tmp_path):
  homes = [tmp_path / 'first', tmp_path / 'second']
  shutil.copytree(dataset, homes[0] / 'disc')
  if there == 'nothing':
    homes[1].mkdir()
  else:
    shutil.copytree(dataset, homes[1] / 'disc')
    # As if it had been made again.
    info = homes[1] / 'disc' / 'dataset_info.json'
    info.write_text(info.read_text() + '\n')
  pair = start_two(tmp_path / 'run', *on('~/disc'), homes=homes)
  assert re.search(message, end_alike(pair, cli.MISTAKE))


@pytest.mark.slow
def test_a_workdir_of_each_host(dataset, tmp_path):
  homes = [tmp_path / 'first', tmp_path / 'second']
  for home in homes:
    home.mkdir()
  pair = start_two('~/run', *on(dataset), homes=homes)
  message = end_alike(pair, cli.MISTAKE)
  assert 'on 1 of 2 hosts. host 1 (' in message
  assert 'is not the directory of that name on the first host' in message


@pytest.mark.slow
def test_a_batch_that_one_host_cannot_read_ends_both(dataset, tmp_path):
  """The other one waits for devices, where it hears nothing."""
  pair = start_two(tmp_path, *on(dataset), '--config.eval_every=0', module='tests.faulty')
  assert "Input/output error: '/data/shard-00002'" in end_alike(pair, status=1)


@pytest.mark.slow
def test_a_host_that_hangs_ends_all_by_the_clock_of_each(dataset, tmp_path, monkeypatch):
  """Nobody waits for the heartbeat of JAX, which takes 100 s: the others are stuck in the next sum,
  and have the same clock.
  """
  monkeypatch.setenv('WAM_JAX_STUCK', '1')
  hang = ['--config.hang_timeout_s=5', '--config.eval_every=0']
  pair = start_two(tmp_path, *on(dataset), *hang, module='tests.faulty')
  ended_s = []
  for program in reversed(pair):  # The one that hangs first.
    program.communicate(timeout=100)
    ended_s.append(time.monotonic())
    assert program.returncode == 1
  assert ended_s[1] - ended_s[0] < 20
