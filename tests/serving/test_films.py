"""MP4 and rerun: each frame that was seen lies beside what had been imagined for that moment."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")
pytest.importorskip('av', reason="pip install -e '.[sim]'")

from tests import programs
from tests.serving import engines
from tests.serving import transcripts
from wam_jax.serving import films
from wam_jax.serving import history
from wam_jax.serving import imagining
from wam_jax.serving import live
from wam_jax.serving import watching

disc, observe = engines.disc, engines.observe
ROWS, COLUMNS = engines.DISC.composite


def read(path) -> np.ndarray:
  """Frames [T, rows, columns, 3]."""
  video = cv2.VideoCapture(str(path))
  frames = []
  while (got := video.read())[0]:
    frames.append(got[1][..., ::-1])
  return np.stack(frames)


def play_events(watcher, chunks, step=8, lags=0, first=0):
  """An episode whose frame of control step t is of brightness t, and imagined to be that, too. The
  pictures of a chunk come `lags` chunks later; its client counts from `first`.
  """
  watcher.take(watching.Began(3, '0/-', engines.DISC, 'go', 'new session', 1e9))
  flat = lambda t: np.full((ROWS, COLUMNS, 3), t, np.uint8)
  imagined = []
  for chunk in range(chunks):
    now = chunk * step
    shown = [flat(max(0, now - 4)), flat(now)]
    window = history.Window(shown, repeated=0, off=0.0, step=float(first + now))
    action_SU = np.zeros((8, 3), np.float32)
    watcher.take(watching.Answered(3, chunk, window, action_SU, 0.01, 0.0, 0.01))
    frames = np.stack([flat(now + 4), flat(now + 8)])
    imagined.append(watching.Imagined(3, float(first + now), frames))
    if chunk >= lags:
      watcher.take(imagined[chunk - lags])
  watcher.take(watching.Ended(3))
  for event in imagined[chunks - lags :]:
    watcher.take(event)


@pytest.mark.parametrize(('step', 'moments', 'lags'), [(8, 2 * 9 + 1, 3), (4, 9 + 1, 0)])
def test_the_same_moment_side_by_side(tmp_path, step, moments, lags):
  """Also where a chunk is not executed to its end, and where pictures come late."""
  made = films.Films(tmp_path)
  play_events(made, chunks=10, step=step, lags=lags)
  (path,) = tmp_path.iterdir()
  assert path.name == '20010909T014640-000003.mp4'
  video = read(path)
  assert len(video) == moments
  rows = slice(60, 300)
  width = video.shape[2]
  seen = video[:, rows, width // 4 - 20 : width // 4 + 20].mean(axis=(1, 2, 3))
  imagined = video[:, rows, 3 * width // 4 - 20 : 3 * width // 4 + 20].mean(axis=(1, 2, 3))
  # Every fourth control step; a codec rounds.
  np.testing.assert_allclose(seen, 4 * np.arange(moments), atol=2.5)
  np.testing.assert_allclose(imagined[1:], seen[1:], atol=2.5)


def test_an_episode_that_is_lost_has_no_film(tmp_path):
  made = films.Films(tmp_path)
  play_events(made, chunks=3)
  made.take(watching.Began(4, '0/-', engines.DISC, 'go', 'reset', 1e9))
  window = history.Window([np.zeros((ROWS, COLUMNS, 3), np.uint8)] * 2, 0, 0.0, 0.0)
  made.take(watching.Answered(4, 0, window, np.zeros((8, 3)), 0.01, 0.0, 0.01))
  made.lose(4)
  made.close()
  assert [path.name for path in tmp_path.iterdir()] == ['20010909T014640-000003.mp4']


def test_of_a_server(tmp_path):
  """What was imagined while nobody had time is in it: the robot has left, or the server stops."""
  made = films.Films(tmp_path)
  with engines.serving(disc(imagine_s=0.01), watchers=[made]) as server:
    clients = [transcripts.Client(server.port) for _ in range(2)]
    for step in range(4):
      for client in clients:
        client.infer(observe(step))
    clients[0].close()
    engines.wait_until(lambda: len(list(tmp_path.glob('2*.mp4'))) == 1, seconds=10)
  clients[1].close()
  assert len(list(tmp_path.glob('2*.mp4'))) == 2
  assert not list(tmp_path.glob('.*'))
  # The first frame, and those of a chunk's time that were seen: the newest of each query.
  assert {len(read(path)) for path in tmp_path.iterdir()} == {1 + 3 * 2}


def test_where_nothing_is_ever_imagined(tmp_path):
  """With --imagine=off a film is of what was seen alone, and nothing of it waits."""
  made = films.Films(tmp_path)
  with engines.serving(disc(), watchers=[made], imagines=imagining.OFF) as server:
    client = transcripts.Client(server.port)
    for step in range(4):
      client.infer(observe(step))
    client.close()
    engines.wait_until(lambda: not made._films)
  (path,) = tmp_path.iterdir()
  assert len(read(path)) == 1 + 3 * 2


def test_nothing_imagined_is_an_empty_panel():
  seen = np.zeros((ROWS, COLUMNS, 3), np.uint8)
  picture = films.paint('disc: go', 1.0, seen, None)
  assert all(size % 2 == 0 for size in picture.shape[:2])
  assert (picture[60:300, -60:-30] == 225).all()
  large = films.paint('x' * 300, 123.4, np.zeros((353, 641, 3), np.uint8), None)
  assert all(size % 2 == 0 for size in large.shape[:2])
  assert large.shape[1] > 2 * 641


def test_a_viewer_that_cannot_be(tmp_path):
  if importlib.util.find_spec('rerun') is None:
    with pytest.raises(ValueError, match=r"pip install -e '.\[rerun\]'"):
      live.Live(str(tmp_path / 'kept.rrd'))
  else:
    with pytest.raises(ValueError, match='must be a file NAME.rrd, or the address'):
      live.Live('kept')


class Viewer:
  """In place of rerun's module and its stream: what was sent, and at which time of its episode."""

  def __init__(self):
    self.sent: list[tuple[str, float, float]] = []
    self._times = {}

  def RecordingStream(self, unused_name):
    return self

  def connect_grpc(self, unused_address):
    pass

  def set_time(self, timeline, duration=0.0, timestamp=0.0):
    self._times[timeline] = duration or timestamp

  def log(self, place, unused_content):
    self.sent.append((place[3], self._times['episode'], self._times['clock']))

  def TextDocument(self, text):
    return text

  Image = Scalars = TextDocument


@pytest.mark.parametrize('first', [0, 12_000_000_000])
def test_a_viewer_sees_an_episode_from_its_beginning(first, monkeypatch):
  """Whatever its client counts from: an hour of the day, or 1970."""
  viewer = Viewer()
  monkeypatch.setitem(sys.modules, 'rerun', viewer)
  play_events(live.Live('rerun+http://nowhere'), chunks=3, first=first)
  times = {what: [at for one, at, _ in viewer.sent if one == what] for what, *_ in viewer.sent}
  # Of chunks of eight control steps, with two frames each.
  hz = engines.DISC.control_hz
  np.testing.assert_allclose(times['seen'], np.asarray([0, 4, 8, 12, 16]) / hz)
  np.testing.assert_allclose(times['imagined'], np.asarray([4, 8, 12, 16, 20, 24]) / hz)
  np.testing.assert_allclose(times['action'], np.arange(24) / hz)
  assert all(0 <= clock - 1e9 < 60 for *_, clock in viewer.sent)


def count_rows(path) -> dict[str, int]:
  """How many of each thing of the episode a file of rerun holds."""
  command = [sys.executable, '-m', 'rerun_cli', 'rrd', 'print', '-v', str(path)]
  done = subprocess.run(command, text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  text = done.stdout.replace('\\', '')
  counts: dict[str, int] = {}
  for rows, what in re.findall(r'with (\d+) rows \(.*?\) - /session/0/-/episode 3/(\S+) -', text):
    counts[what] = counts.get(what, 0) + int(rows)
  return counts


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('rerun') is None, reason="pip install -e '.[rerun]'")
@pytest.mark.parametrize('kind', ['file', 'viewer'])
def test_what_a_viewer_is_sent(tmp_path, kind):
  path = tmp_path / 'kept.rrd'
  if kind == 'file':
    shown = live.Live(str(path))
    play_events(shown, chunks=5)
    shown.close()
  else:
    # In place of a window, a viewer that keeps what comes.
    port = programs.free_port(20000, 30000)
    command = [sys.executable, '-m', 'rerun_cli', '--port', str(port), '--save', str(path)]
    viewer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    engines.wait_until(lambda: is_open(port), seconds=20)
    shown = live.Live(f'rerun+http://127.0.0.1:{port}/proxy')
    play_events(shown, chunks=5)
    shown.close()
    time.sleep(1)
    viewer.send_signal(signal.SIGINT)
    viewer.wait(20)
  # Of chunks of eight steps with two frames each, and the frame before them.
  want = {'seen': 9, 'imagined': 10, 'action': 40, 'prompt': 1}
  assert count_rows(path) == {**want, 'latency/age_ms': 5, 'latency/queue_ms': 5}


def is_open(port) -> bool:
  with contextlib.closing(socket.socket()) as probe:
    return probe.connect_ex(('127.0.0.1', port)) == 0
