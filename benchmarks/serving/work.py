"""What is measured of the policy server, without flags, so that tests can do it in small."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import websockets
from websockets.sync import client as ws_client

from benchmarks.serving import rubbish
from wam_jax.client import wire

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def start(kind: str, delay_s: float = 0.0, deadline_s: float = 0.0) -> Iterator[tuple[int, Any]]:
  """(port, process as psutil knows it) of a stub."""
  program = [sys.executable, '-m', 'benchmarks.serving.stubs', kind]
  process = subprocess.Popen(
    [*program, str(delay_s), str(deadline_s)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    yield int(process.stdout.readline()), psutil.Process(process.pid)
  finally:
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


def connect(port: int):
  """A connection that has read what the server says first; a context manager."""
  socket = ws_client.connect(f'ws://127.0.0.1:{port}', compression=None, max_size=None).__enter__()
  socket.recv()
  return socket


def make_message(frames: int = 1, step: int = 0, **more: Any) -> bytes:
  """An observation of DROID: three views of 180 x 320."""
  rng = np.random.default_rng(step)
  shape = (180, 320, 3) if frames == 1 else (frames, 180, 320, 3)
  images = {
    f'observation/{key}': rng.integers(0, 256, shape, np.uint8)
    for key in ('exterior_image_0_left', 'exterior_image_1_left', 'wrist_image_left')
  }
  state = {
    'observation/joint_position': rng.uniform(-1, 1, 7).astype(np.float32),
    'observation/gripper_position': np.zeros(1, np.float32),
  }
  return wire.pack({**images, **state, 'prompt': 'go', 'endpoint': 'infer', **more})


def percentiles(seconds: list[float]) -> dict[str, float]:
  p50, p99 = np.percentile(1e3 * np.asarray(seconds), [50, 99])
  return {'p50_ms': round(float(p50), 2), 'p99_ms': round(float(p99), 2)}


def measure_wire(rounds: int) -> dict[str, Any]:
  """Round trips of the same messages, of all four in turns."""
  report: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    kinds = ('echo', 'reference', 'composing', 'ours')
    started = {kind: stack.enter_context(start(kind)) for kind in kinds}
    ports = {kind: port for kind, (port, _) in started.items()}
    sockets = {kind: stack.enter_context(connect(port)) for kind, port in ports.items()}
    for frames in (1, 4):
      messages = [make_message(frames, step) for step in range(4)]
      seconds: dict[str, list[float]] = {kind: [] for kind in sockets}
      before = {kind: _cpu_s(process) for kind, (_, process) in started.items()}
      for number in range(rounds + 5):
        for kind, socket in sockets.items():
          begin = time.perf_counter()
          socket.send(messages[number % 4])
          reply = socket.recv()
          if isinstance(reply, str):
            raise ValueError(f'{kind} answers {reply!r}')
          seconds[kind].append(time.perf_counter() - begin)
      row: dict[str, Any] = {kind: percentiles(each[5:]) for kind, each in seconds.items()}
      for kind, (_, process) in started.items():
        # Of the server alone; other work on the machine does not count.
        cpu_s = _cpu_s(process) - before[kind]
        row[kind]['cpu_ms'] = round(1e3 * cpu_s / (rounds + 5), 2)
      for kind in kinds[:-1]:
        row[f'ours / {kind}'] = round(row['ours']['p50_ms'] / row[kind]['p50_ms'], 2)
      report[f'{frames} frames x 3 views, {len(messages[0]) / 2**20:.1f} MiB'] = row
  return report


def _cpu_s(process: psutil.Process) -> float:
  times = process.cpu_times()
  return times.user + times.system


def measure_pings(delay_s: float, pings: int) -> dict[str, Any]:
  """Round trips of pings while a step takes `delay_s`, again and again."""
  seconds = []
  with start('ours', delay_s) as (port, _), connect(port) as busy, connect(port) as other:
    message = make_message()
    busy.send(message)
    while len(seconds) < pings:
      with contextlib.suppress(TimeoutError):
        busy.recv(timeout=0)
        busy.send(message)
      begin = time.perf_counter()
      other.ping().wait()
      seconds.append(time.perf_counter() - begin)
      time.sleep(0.005)
    busy.recv()
  return percentiles(seconds)


def measure_overload(seconds: float, robots: int = 16, factor: float = 4.0) -> dict[str, Any]:
  """Robots that ask `factor` times as often as the device computes, waiting for no answer."""
  step_s, deadline_s = 0.02, 0.2
  pause_s = robots * step_s / factor
  ages: list[float] = []
  inside: list[float] = []  # By the clock of the server.
  reasons: dict[str, int] = {}
  ends = 0.0

  def drive(number: int, port: int) -> None:
    with connect(port) as socket:
      sent: dict[int, float] = {}
      head = threading.Thread(target=listen, args=(socket, sent))
      head.start()
      asked = 0
      while time.monotonic() < ends:
        message = make_small(number, asked)
        sent[asked] = time.monotonic()
        socket.send(message)
        asked += 1
        time.sleep(pause_s)
      while sent and time.monotonic() < ends + 5:
        time.sleep(0.01)
    head.join()

  def listen(socket, sent: dict[int, float]) -> None:
    with contextlib.suppress(websockets.ConnectionClosed):
      while True:
        reply = wire.unpack(socket.recv())
        age_s = time.monotonic() - sent.pop(reply['request_id'])
        if reply.get('type') == 'error':
          reasons[reply['reason']] = reasons.get(reply['reason'], 0) + 1
        else:
          ages.append(age_s)
          inside.append(reply['server_timing']['age_ms'] / 1e3)

  with start('ours', step_s, deadline_s) as (port, process):
    before = process.memory_info().rss
    ends = time.monotonic() + seconds
    threads = [threading.Thread(target=drive, args=(i, port)) for i in range(robots)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    grown = process.memory_info().rss / before - 1
    # One robot alone again.
    with connect(port) as socket:
      begin = time.monotonic()
      socket.send(make_message())
      alone_s = time.monotonic() - begin if socket.recv() else 0.0
  return {
    'asked': len(ages) + sum(reasons.values()),
    'computed a second': round(len(ages) / seconds, 1),
    'capacity a second': round(1 / step_s, 1),
    'refused': reasons,
    'in time': round(float(np.mean(np.asarray(inside) <= deadline_s)), 4),
    'in time at the robot': round(float(np.mean(np.asarray(ages) <= deadline_s)), 4),
    'ages': percentiles(ages),
    'memory grown': round(grown, 3),
    'alone again after ms': round(1e3 * alone_s, 1),
  }


def make_small(number: int, step: int) -> bytes:
  """An observation whose images cost nothing, so that the device alone is the limit."""
  image = np.full((2, 2, 3), step % 256, np.uint8)
  images = {f'observation/exterior_image_{i}_left': image for i in range(2)}
  state = {'joint_position': np.zeros(7, np.float32), 'gripper_position': np.zeros(1, np.float32)}
  named = {'session_id': str(number), 'request_id': step, 'prompt': 'go', 'endpoint': 'infer'}
  return wire.pack({**images, **state, **named, 'observation/wrist_image_left': image})


def measure_hostile(messages: int, frames: int) -> dict[str, Any]:
  """Hostile messages and broken frames beside a good client, whose answers are compared."""
  texts: list[str] = []

  def behave(port: int, while_: Callable[[], bool], least: int) -> list[bytes]:
    answers = []
    with connect(port) as socket:
      while while_() or len(answers) < least:
        socket.send(make_small(0, len(answers) % 1000))
        answers.append(wire.unpack(socket.recv())['actions'].tobytes())
        time.sleep(0.01)
    return answers

  with start('ours') as (port, process):
    # What is loaded once, and a first portion of all, which fills the allocator's pools.
    behave(port, lambda: False, 50)
    rubbish.send_messages(port, max(100, messages // 10), seed=99)
    rubbish.send_frames(port, max(10, frames // 10), seed=99)
    before = _settled_rss(process)
    enemies = [
      threading.Thread(target=lambda: texts.extend(rubbish.send_messages(port, messages, 1))),
      threading.Thread(target=rubbish.send_frames, args=(port, frames, 2)),
    ]
    for enemy in enemies:
      enemy.start()
    among = behave(port, lambda: any(enemy.is_alive() for enemy in enemies), 20)
    for enemy in enemies:
      enemy.join()
    grown = _settled_rss(process) / before - 1
    alone = behave(port, lambda: False, len(among))
  return {
    'messages': messages,
    'broken frames': frames,
    'answered in words': len(texts),
    'tracebacks': sum('Traceback' in text or 'File "' in text for text in texts),
    'answers of the good client': len(among),
    'equal to those without': among == alone[: len(among)],
    'memory grown': round(grown, 4),
  }


def _settled_rss(process: psutil.Process) -> int:
  """Bytes that a server keeps when all are gone: once a second it gives memory back."""
  time.sleep(2.5)
  return process.memory_info().rss


def read_metrics(health_port: int) -> dict[str, float]:
  """The numbers of a server's /metrics."""
  with urllib.request.urlopen(f'http://127.0.0.1:{health_port}/metrics') as answer:
    lines = [line for line in answer.read().decode().splitlines() if not line.startswith('#')]
  return {line.rpartition(' ')[0]: float(line.rpartition(' ')[2]) for line in lines}
