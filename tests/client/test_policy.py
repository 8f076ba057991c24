"""The client of a robot: what it asks, what it does when the connection is lost, what it needs."""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import pathlib
import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests import programs
from tests.serving import engines
from wam_jax.client import broker
from wam_jax.client import committed
from wam_jax.client import policy as policy_lib
from wam_jax.client import recorder
from wam_jax.client import wire
from wam_jax.control import turns

ROOT = pathlib.Path(__file__).parents[2]
observe, disc = engines.observe, engines.disc


def connect(port, **options) -> policy_lib.RemotePolicy:
  return policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}', **options)


class Relay:
  """Between a client and a server, a connection that can be cut.

  Attributes:
    port: where the client connects.
  """

  def __init__(self, target: int):
    self._target = target
    self._listener = socket.create_server(('127.0.0.1', 0))
    self.port = self._listener.getsockname()[1]
    self._pairs: list[socket.socket] = []
    self.cuts_answers = False
    threading.Thread(target=self._accept, daemon=True).start()

  def _accept(self) -> None:
    while True:
      try:
        one, _ = self._listener.accept()
      except OSError:
        return
      other = socket.create_connection(('127.0.0.1', self._target))
      self._pairs += [one, other]
      for source, sink, is_answer in ((one, other, False), (other, one, True)):
        threading.Thread(target=self._pump, args=(source, sink, is_answer), daemon=True).start()

  def _pump(self, source, sink, is_answer) -> None:
    while True:
      try:
        content = source.recv(2**16)
        if is_answer and self.cuts_answers and content:
          self.cuts_answers = False
          self.cut()
          return
        if not content:
          sink.shutdown(socket.SHUT_WR)
          return
        sink.sendall(content)
      except OSError:
        return

  def cut(self) -> None:
    pairs, self._pairs = self._pairs, []
    for one in pairs:
      # `close` alone does not wake who reads.
      with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
      one.close()

  def close(self) -> None:
    self._listener.close()
    self.cut()


def play(policy, steps) -> np.ndarray:
  return np.stack([policy.infer(observe(step))['actions'] for step in steps])


def test_what_a_robot_asks_and_is_told():
  with engines.serving(disc()) as server, connect(server.port) as policy:
    assert policy.robot == 'tabletop_disc'
    assert policy.description['action_units'] == ['normalized'] * 3
    first = policy.infer(observe(0))
    assert first['actions'].shape == (8, 3)
    assert first['session']['began'] == 'new session'
    assert policy.infer(observe(1))['session']['began'] == ''
    policy.reset()
    assert policy.infer(observe(0))['session']['began'] == 'new session'
    assert policy.infer(observe(0, reset=True))['session']['began'] == 'reset'
    with pytest.raises(
      policy_lib.Refused, match=r"malformed: views \['top', 'wrist'\] are missing"
    ):
      policy.infer({'prompt': 'go'})
  with pytest.raises(ValueError, match="reconnect='never' must be one of"):
    connect(1, reconnect='never')


def test_a_lost_connection_is_what_was_chosen():
  with engines.serving(disc()) as server:
    relay = Relay(server.port)
    whole = play(connect(server.port), range(4))

    policy = connect(relay.port)
    play(policy, range(2))
    relay.cut()
    with pytest.raises(policy_lib.Disconnected):
      policy.infer(observe(2))

    policy = connect(relay.port, reconnect='reset')
    play(policy, range(2))
    relay.cut()
    reply = policy.infer(observe(0))
    assert reply['session']['began'] == 'new session'
    np.testing.assert_array_equal(reply['actions'], whole[0])

    policy = connect(relay.port, reconnect='keep')
    got = [*play(policy, range(2))]
    relay.cut()
    got += [*play(policy, [2])]
    # An answer that was under way is not computed a second time.
    relay.cuts_answers = True
    got += [*play(policy, [3])]
    assert policy.reconnected == 2
    np.testing.assert_array_equal(got, whole)

    # What cannot be kept is said.
    relay.cut()
    engines.wait_until(lambda: len(server.sessions._held) == 1)
    server.sessions._held.clear()
    with pytest.raises(policy_lib.Disconnected, match='lost_session: the session is gone'):
      policy.infer(observe(4))
    relay.close()


@pytest.mark.parametrize('error', [OSError(113, 'No route to host'), TimeoutError('timed out')])
def test_a_network_that_comes_back_is_waited_for(error, monkeypatch):
  make = policy_lib.ws_client.connect
  fails = [error, error]

  def connect_later(*args, **more):
    if fails:
      raise fails.pop()
    return make(*args, **more)

  monkeypatch.setattr(policy_lib.ws_client, 'connect', connect_later)
  with engines.serving(disc()) as server:
    with connect(server.port) as policy:
      assert policy.infer(observe(0))['actions'].shape == (8, 3)
    fails.append(error)
    with pytest.raises(policy_lib.Disconnected, match='does not answer for 0 s'):
      connect(server.port, wait_s=0.0)
    # A name that is nobody's is told at once.
    fails.append(socket.gaierror(-2, 'Name or service not known'))
    with pytest.raises(socket.gaierror):
      connect(server.port)


def drive(act, steps):
  """The actions of an episode in which nothing depends on them."""
  return np.stack([act(observe(step)) for step in range(steps)])


def test_chunks_are_executed_to_their_end_with_frames_at_the_spacing_of_training():
  """As the evaluation shows them: every fourth control step of the disc's chunks of eight."""
  with engines.serving(disc()) as server, connect(server.port) as policy:
    chunks = broker.ChunkBroker(policy)
    got = drive(chunks.act, 20)
    assert chunks.reply['session']['repeated_frames'] == 0
    assert chunks.reply['session']['frames_off_steps'] == 0
    assert chunks.reply['session']['chunk'] == 2
    chunks.reset()
    again = drive(chunks.act, 20)
    assert chunks.reply['session']['chunk'] == 2

  # What the engine itself says to the frames at 0; 4, 8; 12, 16.
  engine = disc()
  robot = engine.robots['tabletop_disc']
  state = engine.start('tabletop_disc', 'go')
  want = []
  for steps in ((0, 0), (4, 8), (12, 16)):
    frames, proprio_X = zip(*(robot.observe(observe(step), observe(step)) for step in steps))
    turn = turns.Turn(state, 'tabletop_disc', np.stack(frames), proprio_X[-1])
    acted = engine.act([turn])[0]
    state = acted.state
    want += [*acted.action_SU]
  np.testing.assert_array_equal(got, want[:20])
  np.testing.assert_array_equal(again, want[:20])


def test_images_that_are_no_bytes_are_told():
  """To a byte, numbers from 0 to 1 are black."""
  with engines.serving(disc()) as server, connect(server.port) as policy:
    seen = observe(0)
    with pytest.raises(ValueError, match="'top' is of float32; images are uint8, from 0 to 255"):
      broker.ChunkBroker(policy).act({**seen, 'top': seen['top'] / np.float32(255)})


def test_the_next_chunk_is_there_before_this_one_ends():
  """A step of 100 ms within chunks of 800: the robot never waits, but for the first."""
  with engines.serving(disc(delay_s=0.1)) as server, connect(server.port) as policy:
    ahead = broker.AsyncBroker(policy, steps=4)
    # The first chunks tell how long an answer takes.
    durations = []
    for step in range(24):
      start = time.perf_counter()
      action = ahead.act(observe(step))
      durations.append(time.perf_counter() - start)
      assert action.shape == (3,)
      time.sleep(max(0, 0.1 - durations[-1]))
    assert ahead.waited <= 2  # On a machine under load.
    assert np.median(durations[8:]) < 0.05
    assert ahead.lead_steps >= 2
    assert len(ahead.delay_s) >= 4
    ahead.reset()
    ahead.act(observe(0))
    assert ahead.reply['session']['began'] == 'reset'
    ahead.close()


class SlowPolicy:
  """Of one number, which counts control steps; an answer comes when it is let go."""

  robot = 'counter'

  def __init__(self, overlap=3):
    self.description = {
      'images': {'observation/top': [1, 1]},
      'steps_per_chunk': 4,
      'action_overlap': overlap,
      'action_names': ['count'],
      'control_hz': 10,
      'video_fps': 10,
    }
    self.queries = []
    self.goes = threading.Semaphore(0)

  def infer(self, query):
    self.queries.append(query)
    assert self.goes.acquire(timeout=10)
    start = query['steps'][-1]
    fresh = start + np.arange(7) + 100 * len(self.queries)
    given = query['prefix'][:, 0]
    return {'actions': np.concatenate([given, fresh[len(given) :]])[:, None]}


def test_a_chunk_is_told_what_is_executed_before_it_is_there():
  """Asked for at the end of a chunk of four steps, it comes two steps later, or three."""
  policy = SlowPolicy()
  ahead = committed.CommittedBroker(policy, lead_steps=2)
  policy.goes.release()
  done = []
  for step in range(12):
    if step in (6, 11):
      policy.goes.release()
      concurrent.futures.wait([ahead._pending])
    done.append(float(ahead.act({'top': np.zeros((1, 1, 3), np.uint8)})[0]))
  ahead.close()
  # Hundreds say which chunk an action is of.
  assert done == [100, 101, 102, 103, 104, 105, 206, 207, 208, 209, 210, 311]
  for query, want in zip(policy.queries, ([], [104, 105], [208, 209]), strict=True):
    np.testing.assert_array_equal(query['prefix'], np.reshape(want, (-1, 1)))
  # The last one did not know of 210.
  assert (ahead.waited, ahead.late) == (0, 1)


def test_who_takes_no_prefix_is_told_none():
  with pytest.raises(ValueError, match="'counter' were trained without model.action_overlap"):
    committed.CommittedBroker(SlowPolicy(overlap=0))
  assert isinstance(committed.make_broker(SlowPolicy()), committed.CommittedBroker)
  assert type(committed.make_broker(SlowPolicy(overlap=0))) is broker.AsyncBroker
  with pytest.raises(ValueError, match='lead_steps=4 must be 1 to 3'):
    committed.CommittedBroker(SlowPolicy(), lead_steps=4)
  with pytest.raises(ValueError, match='steps=5 must be 1 to 4'):
    committed.CommittedBroker(SlowPolicy(), steps=5)


def test_committed_to_a_server():
  """Over the wire: however early an answer comes, what the robot was committed to is executed."""
  with engines.serving(disc(overlap=4)) as server, connect(server.port) as policy:
    ahead = committed.CommittedBroker(policy, lead_steps=4)
    replies, done = [], []
    for step in range(20):
      if step == 12:
        # Where it is not there yet.
        concurrent.futures.wait([ahead._pending] if ahead._pending else [])
      done.append(ahead.act(observe(step)))
      replies.append(ahead.reply['actions'])
    ahead.close()
  first, second = replies[0], replies[12]
  assert first.shape == second.shape == (12, 3)
  np.testing.assert_array_equal(second[:4], first[8:])
  np.testing.assert_array_equal(done, [*first[:8], *second])
  assert (ahead.waited, ahead.late, ahead.refused) == (0, 0, 0)


def test_recordings_are_whole_or_not_there(tmp_path):
  kept = recorder.Recorder(tmp_path, {'robot': 'disc'})
  with pytest.raises(ValueError, match='No episode was begun'):
    kept.add({}, np.zeros(3))
  with pytest.raises(ValueError, match='No episode was begun'):
    kept.end(success=True)
  for number in range(2):
    kept.begin('go')
    for step in range(3):
      kept.add(observe(step), np.full(3, step + number, np.float32))
    assert len(list(tmp_path.glob('*.episode'))) == number
    path = kept.end(success=bool(number))
  kept.begin('stop')
  kept.discard()
  assert {p.suffix for p in tmp_path.iterdir()} == {'.episode'}
  assert len(list(tmp_path.iterdir())) == 2
  first, *steps, last = recorder.read(path)
  assert first == {'prompt': 'go', 'about': {'robot': 'disc'}}
  assert last == {'outcome': {'success': True}}
  np.testing.assert_array_equal([step['action'][0] for step in steps], [1, 2, 3])
  np.testing.assert_array_equal(steps[2]['observation']['top'], observe(2)['top'])
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(wire.Malformed, match='is cut short'):
    list(recorder.read(path))
  # Two robots write to one directory.
  robots = [recorder.Recorder(tmp_path) for _ in range(2)]
  for robot in robots:
    robot.begin('go')
  assert len({robot.end() for robot in robots} | {path}) == 3


def test_it_needs_no_framework():
  """In a process in which nothing of ours but the client can be imported, and none of these."""
  program = """
import sys
class Wall:
  def find_spec(self, name, path=None, target=None):
    blocked = ('jax', 'jaxlib', 'flax', 'tensorflow', 'torch', 'cv2', 'absl')
    ours = name.startswith('wam_jax.') and not name.startswith('wam_jax.client')
    if name.split('.')[0] in blocked or ours:
      raise ImportError(name)
sys.meta_path.insert(0, Wall())
import wam_jax.client.committed, wam_jax.client.policy, wam_jax.client.recorder
outside = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(name for name in outside if name[0] != '_'))
"""
  done = programs.run_code(program)
  assert done.returncode == 0, done.stderr
  allowed = {'msgpack', 'numpy', 'websockets', 'wam_jax'}
  # Of NumPy's random numbers, and of some environments.
  by_others = {'cython_runtime', 'sitecustomize'}
  assert set(ast.literal_eval(done.stdout)) <= allowed | by_others


def test_it_is_written_in_python_3_8():
  for path in [*(ROOT / 'wam_jax' / 'client').glob('*.py'), ROOT / 'wam_jax' / '__init__.py']:
    ast.parse(path.read_text(), feature_version=(3, 8))
    # Annotations of newer forms are never evaluated.
    assert path.name == '__init__.py' or 'from __future__ import annotations' in path.read_text()
