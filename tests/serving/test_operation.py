"""What who runs a server sees of it: how it stops, and its log."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

import websockets

from tests.serving import engines
from tests.serving import transcripts
from wam_jax.serving import journal

disc, observe, wait_until = engines.disc, engines.observe, engines.wait_until


@pytest.fixture
def log(request):
  """The lines of a server's log, in the form that the test asks for, `text` by default."""
  stream = io.StringIO()
  logger = logging.getLogger('wam_jax.serving')
  handler = journal.keep(getattr(request, 'param', journal.TEXT), stream)
  yield lambda: stream.getvalue().splitlines()
  logger.removeHandler(handler)
  logger.setLevel(logging.NOTSET)
  logger.propagate = True


class Stopping(threading.Thread):
  """A client that has asked when the server is told to stop, and what it is told."""

  def __init__(self, port):
    super().__init__()
    self._client = transcripts.Client(port)
    self.actions = None
    self.refused = ''
    self.closed = None
    self.start()

  def run(self):
    self.actions = self._client.infer(observe(0))['actions']
    try:
      while not self.refused:
        reply = self._client.ask(observe(1))
        self.refused = reply if isinstance(reply, str) else ''
      self._client.socket.recv(timeout=10)
    except websockets.ConnectionClosed as e:
      self.closed = e.rcvd


def test_a_server_that_stops_answers_what_was_asked_and_says_so(log):
  with engines.serving(disc(delay_s=0.3)) as server:
    asking = [Stopping(server.port) for _ in range(3)]
    wait_until(lambda: len(server.scheduler) >= 2)
  for one in asking:
    one.join(20)
    assert one.actions.shape == (8, 3)
    # What it asks next is refused, if it comes before the connection ends.
    assert one.refused in ('', 'error (stopping): the server stops')
    assert (one.closed.code, one.closed.reason) == (1001, 'the server stops')
  assert any('stopping connections=3' in line for line in log())


def test_a_server_that_stops_takes_nothing_new():
  with engines.serving(disc(delay_s=1.0)) as server:
    first, second = transcripts.Client(server.port), transcripts.Client(server.port)
    first.socket.send(transcripts.pack(observe(0)))
    wait_until(lambda: server.scheduler._busy_until_s)
    server.stops = True
    assert second.ask(observe(0)) == 'error (stopping): the server stops'
    second.close()
    assert first.read(first.socket.recv(timeout=10))['actions'].shape == (8, 3)
    first.close()


def test_answers_that_take_too_long_do_not_hold_up_the_end(log):
  with engines.serving(disc(delay_s=2.0), grace_s=0.2) as server:
    client = transcripts.Client(server.port)
    client.socket.send(transcripts.pack(observe(0)))
    wait_until(lambda: server.scheduler._busy_until_s)
  with pytest.raises(websockets.ConnectionClosed) as closed:
    client.socket.recv(timeout=10)
  assert closed.value.rcvd.reason == 'the server stops'


def run_episodes(server):
  client = transcripts.Client(server.port)
  for step in range(2):
    client.infer(observe(step, session_id='arm 1\nforged line', prompt='go "there"'))
  client.ask({'endpoint': 'reset'})
  client.socket.send('no message')
  client.socket.recv(timeout=10)
  client.close()
  wait_until(lambda: not server._connections)


@pytest.mark.parametrize('log', [journal.JSON], indirect=True)
def test_lines_that_machines_read(log):
  with engines.serving(disc()) as server:
    run_episodes(server)
  lines = [json.loads(line) for line in log()]
  assert all(set(line) >= {'time', 'level', 'message'} for line in lines)
  here, begins, reset, gone = [line for line in lines if 'connection' in line]
  assert here['message'] == 'client is here'
  assert here['address'] == '127.0.0.1'
  session = {'connection': 0, 'session': 'arm 1\nforged line', 'robot': 'tabletop_disc'}
  assert begins.items() >= {**session, 'why': 'new session', 'prompt': 'go "there"'}.items()
  assert reset.items() >= {**session, 'message': 'session is reset'}.items()
  assert begins['episode'] == reset['episode']
  assert (gone['chunks'], gone['refused']) == (2, {'malformed': 1})


def test_lines_that_people_read(log):
  """What a client says can neither begin a line nor be taken for a field."""
  with engines.serving(disc()) as server:
    run_episodes(server)
  (begins,) = [line for line in log() if 'episode begins' in line]
  assert begins.split(' ', 2)[1] == 'I'
  assert r'session="arm 1\nforged line" robot=tabletop_disc' in begins
  assert r'prompt="go \"there\""' in begins


@pytest.mark.parametrize('fails', [{'fails': True}, {'fails_for': b'wrong'}])
def test_a_failure_has_no_line_that_a_client_wrote(log, fails):
  engine = disc()
  vars(engine).update(fails)
  with engines.serving(engine) as server:
    client = transcripts.Client(server.port)
    assert 'failed' in client.ask(observe(0, session_id='arm\nforged line', prompt='wrong'))
    client.close()
  assert any(r"'0/arm\nforged line' failed" in line for line in log())
  assert not any(line.startswith('forged') for line in log())


@pytest.mark.parametrize('log', journal.FORMS, indirect=True)
def test_a_failure_has_its_traceback_in_the_log_alone(log):
  engine = disc()
  with engines.serving(engine) as server:
    client = transcripts.Client(server.port)
    engine.fails = True
    with pytest.raises(RuntimeError, match=r'error \(internal\)') as told:
      client.infer(observe(0))
    client.close()
  assert 'a secret' not in str(told.value)
  assert 'RuntimeError: a secret of the machine' in '\n'.join(log()).replace('\\n', '\n')
