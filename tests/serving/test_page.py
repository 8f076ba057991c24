"""The page: what it is told, who may see it, and how it looks in a browser."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from tests.serving import transcripts
from wam_jax.serving import access
from wam_jax.serving import board as board_lib
from wam_jax.serving import health as health_lib
from wam_jax.serving import history
from wam_jax.serving import imagining
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import watching

disc, observe = engines.disc, engines.observe
ABOUT = {
  'policy': 'tiny',
  'checkpoint_step': 4,
  'robots': ['tabletop_disc'],
  'slots': 16,
  'record': False,
}


@contextlib.contextmanager
def watched(engine, api_key=None, **options):
  """(server, health) with a page."""
  metrics = metrics_lib.Metrics()
  health = health_lib.Health(access.hold_port('127.0.0.1', 0), metrics, api_key)
  health.stage = ''
  health.board = board_lib.Board(ABOUT, metrics)
  try:
    with engines.serving(engine, watchers=[health.board], metrics=metrics, **options) as server:
      yield server, health
  finally:
    health.close()


def get(health, path, **headers) -> tuple[int, bytes]:
  request = urllib.request.Request(f'http://127.0.0.1:{health.port}{path}', headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.status, answer.read()
  except urllib.error.HTTPError as error:
    return error.code, error.read()


def get_status(health) -> dict:
  return json.loads(get(health, '/status')[1])


def decode(png) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_what_it_shows():
  with watched(disc(), imagines=imagining.ALWAYS) as (server, health):
    assert get_status(health)['sessions'] == []
    client = transcripts.Client(server.port)
    for step in range(3):
      client.infer(observe(step, session_id='<b>arm</b>', prompt='push the red disc'))
    engines.wait_until(lambda: get_status(health)['counts']['imagined'] == 3)
    status = get_status(health)
    (session,) = status['sessions']
    assert session['session'] == '0/<b>arm</b>'
    assert (session['robot'], session['prompt']) == ('tabletop_disc', 'push the red disc')
    assert (session['began'], session['chunks'], session['ended_s']) == ('new session', 3, None)
    assert session['seconds'] == pytest.approx(3 * engines.DISC.chunk_s)
    assert session['versions'] == {'real': 3, 'imagined': 3}
    assert session['age_ms'] >= session['device_ms'] > 0

    # A strip of what the model saw last, and one of what it imagined then: of one colour here.
    episode = session['episode']
    strip = decode(get(health, f'/frames/{episode}/real')[1])
    rows, columns = engines.DISC.composite
    robot = server.sessions.robots['tabletop_disc']
    newest = robot.compose(observe(2))
    np.testing.assert_array_equal(strip[:, -columns:], newest)
    imagined = decode(get(health, f'/frames/{episode}/imagined')[1])
    assert imagined.shape == strip.shape == (rows, session['frames']['real'] * columns, 3)
    assert np.ptp(imagined, axis=(0, 1)).tolist() == [0, 0, 0]

    latency = status['latency']
    assert len(latency['ages_ms']) == 3
    assert min(latency['ages_ms']) <= latency['p50'] <= latency['p99'] <= max(latency['ages_ms'])
    assert status['counts']['open'] == 1
    client.close()
    engines.wait_until(lambda: get_status(health)['sessions'][0]['ended_s'] is not None)
    assert get_status(health)['counts']['open'] == 0


def test_episodes_that_are_over_are_forgotten():
  now_s = [0.0]
  board = board_lib.Board(ABOUT, metrics_lib.Metrics(), clock=lambda: now_s[0])
  for number in range(30):
    now_s[0] += 1
    board.take(
      watching.Began(number, f'{number}', engines.DISC, prompt='go', why='reset', at_s=number)
    )
    board.take(watching.Ended(number))
  assert {row['session'] for row in board.show()['sessions']} == {f'{n}' for n in range(18, 30)}
  now_s[0] += 55
  assert [row['session'] for row in board.show()['sessions']] == [f'{n}' for n in range(29, 23, -1)]
  now_s[0] += 60
  assert board.show()['sessions'] == []
  assert board.draw(29, 'real') is None


@pytest.mark.parametrize('pace', [4, 200])
def test_answers_a_second_of_slow_and_fast_servers(pace):
  """Also where more come within the seconds that are counted than are kept."""
  now_s = [0.0]
  board = board_lib.Board(ABOUT, metrics_lib.Metrics(), clock=lambda: now_s[0])
  board.take(watching.Began(0, '', engines.DISC, prompt='go', why='reset', at_s=0.0))
  window = history.Window([np.zeros((2, 2, 3), np.uint8)], repeated=0, off=0.0, step=0.0)
  for chunk in range(12 * pace):
    now_s[0] += 1 / pace
    board.take(watching.Answered(0, chunk, window, np.zeros((8, 3)), 0.1, 0.0, 0.1))
  assert board.show()['latency']['per_s'] == pytest.approx(pace, rel=0.03)
  now_s[0] += 20
  assert board.show()['latency']['per_s'] == 0


def test_who_may_see_it():
  key = b'correct horse battery'
  with watched(disc(), api_key=key) as (_, health):
    for path in ('/', '/status', '/page.js', '/frames/0/real'):
      assert get(health, path)[0] == 401
      assert get(health, path, Authorization='Basic nonsense')[0] == 401
    basic = base64.b64encode(b'me:' + key).decode()
    assert get(health, '/', Authorization=f'Basic {basic}')[0] == 200
    assert get(health, '/status', Authorization=f'Api-Key {key.decode()}')[0] == 200
    assert get(health, '/frames/0/real', Authorization=f'Basic {basic}')[0] == 404
    # Health is nobody's secret.
    assert get(health, '/healthz') == (200, b'OK\n')
  with watched(disc()) as (_, health):
    # A site that has its name lead here reads nothing.
    assert get(health, '/status', Host='evil.example:8001')[0] == 403
    assert get(health, '/status', Host='localhost:8001')[0] == 200
    assert get(health, '/../board.py')[0] == 404
    assert health.may_look('192.168.0.7', 'localhost', '')[0] == 403
    assert b'ssh -L' in health.may_look('10.0.0.1', '127.0.0.1', '')[2]
    assert health.may_look('::ffff:127.0.0.1', '[::1]:8001', '') is None


@pytest.mark.parametrize(
  ('line', 'status'),
  [
    (b'GET /status HTTP/1.0\r\nHost: localhost\r\nAuthorization: Basic \xe9', 401),
    (b'GET /frames/\xb2/real HTTP/1.0\r\nHost: localhost', 404),
    (b'GET /frames/' + b'9' * 5000 + b'/real HTTP/1.0\r\nHost: localhost', 404),
  ],
)
def test_what_no_browser_asks_is_answered(line, status):
  metrics = metrics_lib.Metrics()
  api_key = b'correct horse battery' if status == 401 else None
  with contextlib.closing(
    health_lib.Health(access.hold_port('127.0.0.1', 0), metrics, api_key)
  ) as health:
    health.board = board_lib.Board(ABOUT, metrics)
    with socket.create_connection(('127.0.0.1', health.port), timeout=5) as raw:
      raw.sendall(line + b'\r\n\r\n')
      assert raw.recv(100).startswith(b'HTTP/1.0 %d ' % status)


def test_a_browser_that_leaves_is_no_failure(capfd):
  health = health_lib.Health(access.hold_port('127.0.0.1', 0), metrics_lib.Metrics())
  health.board = board_lib.Board(ABOUT, metrics_lib.Metrics())
  health.board.draw = lambda *unused: ('image/png', bytes(2**26))
  with contextlib.closing(health):
    with socket.create_connection(('127.0.0.1', health.port), timeout=5) as raw:
      raw.sendall(b'GET /frames/0/real HTTP/1.0\r\nHost: localhost\r\n\r\n')
      assert raw.recv(100)
    engines.wait_until(lambda: not [t for t in threading.enumerate() if 'request' in t.name])
  assert capfd.readouterr().err == ''


def find_chromium() -> str | None:
  return shutil.which('chromium') or shutil.which('chromium-browser')


def browse(url: str, place: pathlib.Path, *options: str) -> str:
  """What a headless browser writes of a page."""
  command = [
    find_chromium(),
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    f'--user-data-dir={place}/profile',
    *options,
    url,
  ]
  done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason='needs a browser: apt install chromium')
def test_in_a_browser(tmp_path):
  """Names of clients are texts; pictures are drawn; nothing is asked of anybody else."""
  with watched(disc(delay_s=0.004, imagine_s=0.001)) as (server, health):
    client = transcripts.Client(server.port)
    for step in range(12):
      for name in ('left arm', '<script>document.title="gone"</script>'):
        client.infer(observe(step, session_id=name, prompt=f'push the <i>red</i> disc, {name}'))
    engines.wait_until(lambda: get_status(health)['counts']['imagined'] == 24)
    url = f'http://localhost:{health.port}/'
    picture = tmp_path / 'page.png'
    size = ('--window-size=1200,900', '--virtual-time-budget=3000')
    browse(url, tmp_path, *size, f'--screenshot={picture}')
    text = browse(url, tmp_path, *size, '--dump-dom')
    client.close()
  assert '<title>tiny · wam_jax</title>' in text
  assert 'tabletop_disc · 0/left arm' in text
  assert '0/&lt;script&gt;' in text
  assert 'push the &lt;i&gt;red&lt;/i&gt; disc' in text
  assert text.count('class="real drawn"') == text.count('class="imagined drawn"') == 2
  assert text.count('class="bar"') == 24
  image = cv2.imread(str(picture))
  assert image.shape == (900, 1200, 3)
  # The colours of noise, which nothing else of the page has.
  assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2000
