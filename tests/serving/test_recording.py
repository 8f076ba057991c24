"""Recordings: what was seen and done, whole or not there, and in nobody's way."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from data.sessions import timeline
from tests.serving import engines
from tests.serving import transcripts
from wam_jax.client import broker
from wam_jax.client import policy as policy_lib
from wam_jax.client import recorder
from wam_jax.data import record as record_lib
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import recording

disc, observe = engines.disc, engines.observe


def recorded(directory) -> list[list[dict]]:
  """The messages of all episodes, oldest first."""
  paths = sorted(directory.glob('*.episode'), key=lambda path: path.stat().st_mtime_ns)
  return [list(recorder.read(path)) for path in paths]


def serving(directory):
  metrics = metrics_lib.Metrics()
  keeps = recording.Recording(directory, {'policy': 'tiny'}, metrics)
  return engines.serving(disc(), watchers=[keeps], metrics=metrics, records=True)


def test_what_a_client_of_another_project_asked_and_was_answered(tmp_path):
  with serving(tmp_path) as server:
    client = transcripts.Client(server.port)
    chunks = []
    for step in range(3):
      seen = observe(step)
      asked = {f'observation/{key}': np.stack([seen[key]] * 2) for key in ('top', 'wrist')}
      asked['observation/proprio'] = seen['proprio']
      reply = client.infer({**asked, 'prompt': 'go', 'steps': np.float64([8 * step - 4, 8 * step])})
      chunks.append(reply['actions'])
    assert not recorded(tmp_path)
    client.infer(observe(0, prompt='stop'))
    engines.wait_until(lambda: len(recorded(tmp_path)) == 1)
    client.close()
    engines.wait_until(lambda: len(recorded(tmp_path)) == 2)
    assert server.metrics.recorded.value() == 2
  assert not list(tmp_path.glob('.*'))
  (first, *messages, last), _ = recorded(tmp_path)
  assert first['prompt'] == 'go'
  assert first['about']['policy'] == 'tiny'
  assert first['about']['robot'] == 'tabletop_disc'
  assert first['about']['began'] == 'new session'
  # All that a dataset needs to know of the robot.
  assert record_lib.from_dict(json.loads(first['about']['record'])) == engines.DISC
  assert last == {'outcome': {}}
  seen, answers = messages[::2], messages[1::2]
  for step, message in enumerate(seen):
    assert set(message['observation']) == {'top', 'wrist', 'proprio'}
    np.testing.assert_array_equal(message['observation']['top'][1], observe(step)['top'])
    np.testing.assert_array_equal(message['steps'], [8 * step - 4, 8 * step])
  np.testing.assert_array_equal([message['actions'] for message in answers], chunks)
  assert [message['step'] for message in answers] == [0, 8, 16]


def test_a_chunk_says_which_weights_made_it(tmp_path):
  """Newer ones may come after its episode has begun, of which the server's page tells at once."""

  class Reloaded(engines.HashEngine):
    def _act(self, turn):
      return dataclasses.replace(super()._act(turn), checkpoint_step=7)

  metrics = metrics_lib.Metrics()
  about = {'policy': 'tiny', 'checkpoint_step': 3}
  keeps = recording.Recording(tmp_path, about, metrics)
  with engines.serving(Reloaded(engines.DISC), watchers=[keeps], metrics=metrics) as server:
    client = transcripts.Client(server.port)
    client.infer(observe(0))
    client.close()
    engines.wait_until(lambda: len(recorded(tmp_path)) == 1)
  ((first, _, answer, _),) = recorded(tmp_path)
  assert answer['checkpoint_step'] == 7
  assert 'checkpoint_step' not in first['about']
  (path,) = tmp_path.glob('*.episode')
  assert timeline.read(path, engines.DISC).about['checkpoint_step'] == 7


@pytest.mark.parametrize('kind', [broker.ChunkBroker, broker.AsyncBroker])
def test_our_brokers_tell_every_control_step(tmp_path, kind):
  """As a recorder on the robot would write it."""
  with serving(tmp_path / 'server') as server:
    with policy_lib.RemotePolicy(f'ws://127.0.0.1:{server.port}') as policy:
      assert policy.records
      chunks = kind(policy)
      beside = recorder.Recorder(tmp_path / 'robot', policy.description)
      for episode in range(2):
        beside.begin('go')
        chunks.reset()
        for step in range(20):
          seen = observe(step + episode)
          beside.add(seen, chunks.act(seen))
        # Of the first nothing is said but that the next one begins.
        if episode:
          chunks.end(success=np.True_)
          beside.end(success=np.True_)
        else:
          beside.end()
      assert policy.record_error == ''
    engines.wait_until(lambda: len(recorded(tmp_path / 'server')) == 2)
  assert recorded(tmp_path / 'server')[1][-1] == {'outcome': {'success': True}}
  for got, want in zip(recorded(tmp_path / 'server'), recorded(tmp_path / 'robot'), strict=True):
    steps = [message for message in got[1:-1] if 'action' in message]
    # What was asked meanwhile is not kept twice.
    assert len(steps) == 20
    assert not [message for message in got if 'steps' in message]
    for mine, theirs in zip(steps, want[1:-1], strict=True):
      np.testing.assert_array_equal(mine['action'], theirs['action'])
      for key in ('top', 'wrist', 'proprio'):
        np.testing.assert_array_equal(mine['observation'][key], theirs['observation'][key])
    assert got[-1] == want[-1]
    assert all(said is True for said in got[-1]['outcome'].values())
    assert got[0]['about']['record'] == want[0]['about']['record']


def test_an_episode_with_a_gap_is_not_kept(tmp_path):
  """Control steps that were lost on the way; the next episode is whole again."""
  with serving(tmp_path) as server:
    client = transcripts.Client(server.port)
    for steps in ([0, 1, 3], [0, 1, 2]):
      client.infer(observe(0, reset=True, records=True))
      for step in steps:
        client.socket.send(transcripts.pack(make_step(step)))
      ended = {
        'endpoint': 'record',
        'ended': True,
        'step': 3,
        'outcome': {'success': steps[-1] == 2},
      }
      client.socket.send(transcripts.pack(ended))
    engines.wait_until(lambda: len(recorded(tmp_path)) == 1)
    client.close()
    assert server.metrics.unwatched.value('recorder') == 1
  assert not list(tmp_path.glob('.*'))
  (messages,) = recorded(tmp_path)
  assert messages[-1] == {'outcome': {'success': True}}
  assert sum('action' in message for message in messages) == 3


def make_step(number, **more):
  shown = {key: value for key, value in observe(number).items() if key != 'prompt'}
  step = {'endpoint': 'record', 'step': number, 'action': np.zeros(3, np.float32)}
  return {**shown, **step, **more}


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    ({'action': np.zeros(2, np.float32)}, 'action has 2 numbers; expected 3'),
    ({'action': 3}, 'action is an array'),
    ({'step': -1}, 'step is a number from 0'),
    ({'top': np.zeros((2, 8, 8, 3), np.uint8)}, 'frames; expected as many of each'),
    ({'session_id': 'nobody'}, 'the session is in no episode'),
  ],
)
def test_wrong_steps_are_told(tmp_path, wrong, said):
  with serving(tmp_path) as server:
    client = transcripts.Client(server.port)
    client.infer(observe(0, records=True))
    client.socket.send(transcripts.pack(make_step(0, request_id='record', **wrong)))
    reply = client.read(client.socket.recv(timeout=5))
    client.close()
  assert reply['request_id'] == 'record'
  assert said in reply['message']


def test_a_server_that_does_not_record_is_told_nothing():
  with engines.serving(disc()) as server:
    with policy_lib.RemotePolicy(f'ws://127.0.0.1:{server.port}') as policy:
      assert not policy.records
      chunks = broker.ChunkBroker(policy)
      chunks.act(observe(0))
      chunks.end(success=True)
    client = transcripts.Client(server.port)
    client.infer(observe(0))
    client.socket.send(transcripts.pack(make_step(0)))
    assert client.socket.recv(timeout=5) == 'error (record): this server does not record'
    client.close()


def test_a_disk_that_is_full_harms_no_robot(tmp_path, monkeypatch):
  write = recorder.File.write

  def fail(self, message):
    if message.get('step') == 8:
      raise OSError(28, 'No space left on device')
    write(self, message)

  monkeypatch.setattr(recorder.File, 'write', fail)
  with serving(tmp_path) as server:
    client = transcripts.Client(server.port)
    for step in range(4):
      client.infer(observe(step))
    client.infer(observe(0, reset=True))
    client.close()
    engines.wait_until(lambda: len(recorded(tmp_path)) == 1)
    assert server.metrics.unwatched.value('recorder') == 1
  assert not list(tmp_path.glob('.*'))


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs the file /dev/full, of Linux')
def test_what_a_full_disk_holds_of_an_episode_is_removed(tmp_path):
  file = recorder.File(tmp_path, 'go', {})
  (part,) = tmp_path.iterdir()
  # What waits to be written finds no room when the file is closed.
  file._file.close()
  with pathlib.Path('/dev/full').open('wb', 0) as full:
    file._file = io.BufferedWriter(full)
    file.write({'step': 0})
    with pytest.raises(OSError, match='No space left'):
      file.discard()
  assert not part.exists()


@pytest.mark.slow
def test_a_kill_leaves_whole_episodes(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  program = f"""
import sys, time
sys.path.insert(0, {str(root)!r})
from tests.serving import engines, test_recording, transcripts
with test_recording.serving(sys.argv[1]) as server:
  client = transcripts.Client(server.port)
  for episode in range(2):
    for step in range(3):
      client.infer(engines.observe(step, reset=step == 0))
  print('ready', flush=True)
  time.sleep(60)
"""
  command = [sys.executable, '-c', program, str(tmp_path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'ready\n'
  engines.wait_until(lambda: len(recorded(tmp_path)) == 1)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  (messages,) = recorded(tmp_path)
  assert sum('actions' in message for message in messages) == 3
  assert len(list(tmp_path.glob('.*.part'))) == 1
