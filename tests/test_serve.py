"""`python -m wam_jax.serve` as it is typed, on a checkpoint that was trained: from a port that is
closed to robots that are told to wait, to its end by SIGTERM; and flags that cannot be.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests import programs
from tests.serving import transcripts
from wam_jax.client import broker
from wam_jax.client import policy as policy_lib
from wam_jax.envs import worlds


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Of the smoke version of the main job."""
  root = tmp_path_factory.mktemp('smoke')
  flags = ('--config=configs/tiny.py:smoke', f'--workdir={root}/run')
  done = programs.run('wam_jax.train', *flags, f'--config.data.root={root}/data')
  assert done.returncode == 0, done.stdout + done.stderr
  return root / 'run'


def get(port, path) -> int | None:
  """The status of a path; None where nothing listens."""
  try:
    with urllib.request.urlopen(f'http://127.0.0.1:{port}{path}', timeout=5) as answer:
      return answer.status
  except urllib.error.HTTPError as error:
    return error.code
  except OSError:
    return None


@pytest.mark.slow
def test_a_checkpoint_is_served(workdir):
  port = programs.free_port(20000, 30000)
  health = programs.free_port(30000, 40000)
  flags = (f'--workdir={workdir}', f'--port={port}', f'--health_port={health}')
  program = programs.Program('wam_jax.serve', *flags)
  statuses = set()
  while (status := get(health, '/readyz')) != 200:
    assert program.poll() is None, program.communicate()
    statuses.add(status)
    # Nothing answers robots before it is ready.
    assert not programs.is_open(port) or get(health, '/readyz') == 200
    time.sleep(0.05)
  assert 503 in statuses
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 2, 64, 64, 3)).astype(np.uint8)
  episodes = []
  for _ in range(2):
    client = transcripts.Client(port)
    asked = [
      {
        'top': top,
        'wrist': wrist,
        'proprio': np.zeros(4, np.float32),
        'prompt': 'reach the red disc',
      }
      for top, wrist in images
    ]
    episodes.append([client.infer(one)['actions'] for one in asked])
    client.close()
  np.testing.assert_array_equal(*episodes)
  assert episodes[0][0].shape == (8, 3)
  program.send_signal(signal.SIGTERM)
  stdout, stderr = program.communicate(60)
  assert program.returncode == 0, stderr
  assert 'tiny_smoke, step 4, for tabletop_disc; warm after' in stdout
  assert f'policy: ws://127.0.0.1:{port}' in stdout
  assert stdout.endswith('stopped\n')


def read_metric(port, name) -> float:
  with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=5) as answer:
    return float(re.search(rf'^{name} (\S+)$', answer.read().decode(), re.MULTILINE)[1])


def start_and_ask(workdir, place, *more) -> dict[str, float]:
  """What a server says of its start, once it has answered an episode without compiling."""
  port = programs.free_port(20000, 30000)
  health = programs.free_port(30000, 40000)
  flags = (f'--workdir={workdir}', f'--port={port}', f'--health_port={health}')
  begun = time.monotonic()
  program = programs.Program('wam_jax.serve', *flags, f'--compilation_cache={place}', *more)
  while get(health, '/readyz') != 200:
    assert program.poll() is None, program.communicate()
    time.sleep(0.05)
  waited = time.monotonic() - begun
  # The episodes of the rehearsal are no robot's.
  assert not read_metric(health, 'wam_sessions')
  client = transcripts.Client(port)
  image = np.zeros((2, 64, 64, 3), np.uint8)
  for prompt in ('reach the red disc', 'reach the red disc', 'reach the blue disc'):
    seen = {'top': image[0], 'wrist': image[1], 'proprio': np.zeros(4, np.float32)}
    client.infer({**seen, 'prompt': prompt})
  client.close()
  assert read_metric(health, 'wam_late_programs_total') == 0
  program.send_signal(signal.SIGTERM)
  stdout, stderr = program.communicate(60)
  assert program.returncode == 0, stderr
  line = (
    r'ready (\S+) s after the start of the process: (\d+) programs, (\d+) compiled, (\d+) found'
  )
  found = map(float, re.search(line, stdout).groups())
  said = dict(zip(('seconds', 'made', 'compiled', 'found'), found, strict=True))
  said['megabytes'] = float(re.search(r'(\S+) MB of weights', stdout)[1])
  assert 0 < said['seconds'] < waited + 0.2
  return said


@pytest.mark.slow
def test_passes_of_all_sizes_are_measured(workdir):
  from benchmarks.serving import passes

  report = passes.measure(str(workdir), rounds=3)
  assert report['traces'] == 1
  assert report['1 sessions']['throughput'] == 1
  assert {name for name in report if 'sessions' in name} == {f'{n} sessions' for n in (1, 2, 4, 8)}


@pytest.mark.slow
def test_the_second_start_compiles_nothing(workdir, tmp_path):
  first, second = [start_and_ask(workdir, tmp_path / 'programs') for _ in range(2)]
  assert first['compiled'] == first['made'] > 3
  assert second['compiled'] == 0
  assert second['found'] == second['made'] == first['made']


@pytest.mark.slow
def test_precision_is_a_flag_of_server_and_evaluation(workdir, tmp_path):
  evaluated = {}
  for precision in ('float32', 'w8a8'):
    flags = (f'--workdir={workdir}', f'--precision={precision}', '--episodes=2', '--videos=0')
    done = programs.run('wam_jax.evaluate', *flags, f'--json={tmp_path}/{precision}.json')
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / f'{precision}.json').read_text())
    assert report['sample']['precision'] == precision
    assert done.stdout.strip().endswith(f'_{precision}_train_step4')
    evaluated[precision] = report['weight_bytes'] / 1e6
  # Most of so small a model is its table of words.
  assert evaluated['w8a8'] < 0.9 * evaluated['float32']
  served = start_and_ask(workdir, tmp_path / 'programs', '--precision=w8a8')
  assert served['megabytes'] == round(evaluated['w8a8'], 2)


@pytest.mark.slow
def test_what_a_robot_did_trains_the_next_policy(workdir, tmp_path):
  """Served and recorded, made a dataset, validated and trained on: a command each. The last episode
  is under way when the server is told to stop.
  """
  port = programs.free_port(20000, 30000)
  kept, made = tmp_path / 'kept', tmp_path / 'made' / '1.0.0'
  flags = (f'--workdir={workdir}', f'--port={port}', '--health_port=0', '--deadline_s=0')
  program = programs.Program('wam_jax.serve', *flags, f'--record={kept}')
  with policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}') as policy:
    world = worlds.make(policy.robot, ['reach'])
    chunks = broker.ChunkBroker(policy)
    actions = []
    for episode in range(4):
      chunks.reset(episode)
      observation = world.reset(episode)
      for _ in range(world.max_steps - episode):
        actions.append(chunks.act({**observation, 'prompt': world.instruction}))
        observation = world.step(actions[-1])
      if episode < 3:
        chunks.end(success=bool(world.success))
    chunks._log._recorder.flush()
    program.send_signal(signal.SIGTERM)
    _, stderr = program.communicate(60)
  assert program.returncode == 0, stderr

  done = programs.run('data.from_sessions', f'--source={kept}', f'--output={made}')
  assert done.returncode == 0, done.stderr
  assert f'4 episodes, {len(actions)} steps of tabletop_disc' in done.stdout
  source = tfds.builder_from_directory(made).as_data_source('train')
  stored = [step['action'] for episode in source for step in episode['steps']]
  np.testing.assert_array_equal(stored, actions)
  # A policy of four steps of training asks for more than the robot does, and two numbers of the
  # disc's state never move.
  accepted = '--accept=unit,constant'
  done = programs.run('data.validate', f'--dataset={made}', '--nopictures', accepted)
  assert done.returncode == 0, done.stdout
  config = f'--config=configs/your_robot.py:{made}'
  small = ('steps=2', 'save_every=2', 'eval_every=0', 'log_every=1', 'batch_size=4')
  overrides = [f'--config.{one}' for one in (*small, 'model.num_layers=1')]
  done = programs.run('wam_jax.train', config, f'--workdir={tmp_path}/run', *overrides)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_new_episodes_begin_with_a_newer_checkpoint(workdir, tmp_path):
  """While a robot acts: its connection stays, its episode goes on, and nothing is compiled."""
  run = tmp_path / 'run'
  shutil.copytree(workdir, run)
  older, newer = sorted((run / 'checkpoints').iterdir(), key=lambda place: int(place.name))[-2:]
  newer.rename(tmp_path / 'aside')
  port = programs.free_port(20000, 30000)
  health = programs.free_port(30000, 40000)
  flags = (f'--workdir={run}', f'--port={port}', f'--health_port={health}', '--deadline_s=0')
  program = programs.Program('wam_jax.serve', *flags, '--reload_s=3600', '--log=json')
  while get(health, '/readyz') != 200:
    assert program.poll() is None, program.communicate()
    time.sleep(0.05)
  assert read_metric(health, 'wam_checkpoint_step') == int(older.name)
  seen = {'top': np.zeros((64, 64, 3), np.uint8), 'wrist': np.zeros((64, 64, 3), np.uint8)}
  seen |= {'proprio': np.zeros(4, np.float32), 'prompt': 'reach the red disc'}
  client = transcripts.Client(port)
  first = [client.infer(seen)['actions'] for _ in range(2)]

  def weigh(session) -> float:
    """Bytes on the device after a chunk; they are counted once a second at most."""
    time.sleep(1.1)
    client.infer({**seen, 'session_id': session})
    time.sleep(0.2)
    return read_metric(health, 'wam_device_bytes')

  before = weigh('under way')
  (tmp_path / 'aside').rename(newer)
  program.send_signal(signal.SIGHUP)
  while read_metric(health, 'wam_checkpoint_step') != int(newer.name):
    assert program.poll() is None, program.communicate()
    time.sleep(0.05)
  np.testing.assert_array_equal(
    client.infer({**seen, 'session_id': 'under way'})['actions'], first[1]
  )
  changed = client.infer({**seen, 'session_id': 'new'})['actions']
  assert np.abs(changed - first[0]).max() > 1e-6
  assert read_metric(health, 'wam_late_programs_total') == 0
  # Both weights are there, then the new ones alone.
  during = weigh('new')
  client.ask({'endpoint': 'reset'})
  client.infer(seen)
  after = weigh('another')
  assert after < 1.02 * before < 0.8 * during
  client.close()
  program.send_signal(signal.SIGTERM)
  _, stderr = program.communicate(60)
  assert program.returncode == 0, stderr
  assert f'new episodes begin with checkpoint {newer.name}' in stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--robot=panda', r"--robot=panda must be one of \['tabletop_disc'\]"),
    ('--sessions=1000000', r'--sessions=1000000 need \d+ MiB each; there is room for'),
    ('--tls_key=key.pem', '--tls_certificate and --tls_key belong together'),
    ('--image_resolution=180', '--image_resolution=180 must be ROWS,COLUMNS'),
    ('--image_resolution=180,99999', 'must be ROWS,COLUMNS, as 180,320, of at most 4096 pixels'),
    ('--api_key_file=none', '--api_key_file=none cannot be read'),
  ],
)
def test_mistakes_are_one_message(workdir, flag, said):
  done = programs.run('wam_jax.serve', f'--workdir={workdir}', '--health_port=0', '--port=0', flag)
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert re.search(said, done.stderr)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
  with contextlib.closing(socket.create_server(('127.0.0.1', 0))) as taken:
    port = taken.getsockname()[1]
    done = programs.run('wam_jax.serve', '--workdir=/nowhere', f'--port={port}')
  # It may be free when a launcher tries again.
  assert done.returncode == 1
  assert done.stderr == (
    f'error: --port={port} of --host=127.0.0.1 cannot be listened on: Address already in use.\n'
  )


def test_two_servers_of_one_process_have_two_ports():
  done = programs.run('wam_jax.serve', '--workdir=/nowhere', '--port=8123', '--health_port=8123')
  assert done.returncode == 2
  assert done.stderr == (
    'error: --port and --health_port are both 8123: give one another number.\n'
  )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(number):
  """Whatever the first one waits for: a device here, which takes longer for a chunk."""
  program = """
import asyncio, contextlib, time, types
from absl import flags
from wam_jax import serve

class Server:
  port = 0
  options = types.SimpleNamespace(tls=None, api_key=None)

  @contextlib.asynccontextmanager
  async def listen(self):
    yield
    print('stopping', flush=True)
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 25)

flags.FLAGS(['serve', '--workdir=nowhere'])
watch = types.SimpleNamespace(note_ready=lambda: 'ready')
asyncio.run(serve._serve(Server(), types.SimpleNamespace(), watch, None))
"""
  command = [sys.executable, '-c', program]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    while process.stdout.readline() != 'ready\n':
      assert process.poll() is None
    process.send_signal(number)
    assert process.stdout.readline() == 'stopping\n'
    process.send_signal(number)
    assert process.wait(15) == -number


@pytest.mark.parametrize('flag', ['--record', '--films'])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, flag):
  (tmp_path / 'file').write_text('')
  ports = ('--port=0', '--health_port=0')
  done = programs.run('wam_jax.serve', '--workdir=/nowhere', *ports, f'{flag}={tmp_path}/file')
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {flag} cannot be written in {tmp_path}/file: ')
