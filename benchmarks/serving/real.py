"""`wam_jax.serve` itself on a checkpoint of the tabletop, among clients that come, go and die."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.serving import work
from wam_jax.client import policy as policy_lib

CLIENTS = 8
# How long what is over may stay at most, and how many looks in a row must agree that it is gone.
_SETTLES_S, _STILL = 10.0, 3


@contextlib.contextmanager
def start(workdir: str, *flags: str) -> Iterator[tuple[int, int]]:
  """(port, health port) of a server that is ready."""
  command = [sys.executable, '-m', 'wam_jax.serve', f'--workdir={workdir}', '--port=0']
  process = subprocess.Popen(
    [*command, '--health_port=0', '--deadline_s=0', *flags], stdout=subprocess.PIPE, text=True
  )
  try:
    said = ''
    while 'policy: ' not in said:
      line = process.stdout.readline()
      if not line:
        raise ValueError(f'wam_jax.serve --workdir={workdir} ended: {said}')
      said += line
    yield int(re.search(r'ws://.*:(\d+)', said)[1]), int(re.search(r'http://.*:(\d+)', said)[1])
  finally:
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()


def observe(policy: policy_lib.RemotePolicy, step: int) -> dict[str, Any]:
  """Any observation of the policy's robot."""
  rng = np.random.default_rng(step % 16)
  described = policy.description
  images = {
    key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in described['images'].items()
  }
  state = {key: rng.uniform(-1, 1, n).astype(np.float32) for key, n in described['state'].items()}
  return {**images, **state, 'prompt': 'go'}


def measure_clients(workdir: str, seconds: float, rounds: int = 3) -> dict[str, Any]:
  """Chunks a second and latencies of one client, and of eight at a time, of a server that computes
  sessions together and of one that does not: medians of rounds in which all take turns.
  """
  rows: dict[str, list[dict[str, Any]]] = {}
  with contextlib.ExitStack() as stack:
    started = {
      f'--together={n}': stack.enter_context(start(workdir, f'--together={n}'))
      for n in (1, CLIENTS)
    }
    for _ in range(rounds):
      for flag, (port, _) in started.items():
        for count in (1, CLIENTS):
          row = _drive(port, count, seconds / rounds)
          rows.setdefault(f'{flag}, clients {count}', []).append(row)
  report: dict[str, Any] = {
    name: {key: float(np.median([row[key] for row in each])) for key in each[0]}
    for name, each in rows.items()
  }
  for flag in started:
    one, eight = report[f'{flag}, clients 1'], report[f'{flag}, clients {CLIENTS}']
    report[flag] = {
      'throughput': round(eight['chunks_s'] / one['chunks_s'], 2),
      'p99': round(eight['p99_ms'] / one['p99_ms'], 2),
    }
  return report


def _drive(port: int, count: int, seconds: float) -> dict[str, Any]:
  ends = time.monotonic() + seconds
  times: list[float] = []

  def run() -> None:
    with policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}') as policy:
      observations = [observe(policy, step) for step in range(16)]
      step = 0
      while time.monotonic() < ends:
        begin = time.perf_counter()
        policy.infer(observations[step % 16])
        times.append(time.perf_counter() - begin)
        step += 1

  threads = [threading.Thread(target=run) for _ in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return {'chunks_s': round(len(times) / seconds, 1), **work.percentiles(times)}


_DIES = """
import os, signal, sys
from benchmarks.serving import real
from wam_jax.client import policy
robot = policy.RemotePolicy(f'ws://127.0.0.1:{sys.argv[1]}')
robot.infer(real.observe(robot, 0))
robot._socket.socket.sendall(bytes([0x82, 0xFF]) + (2**20).to_bytes(8, 'big') + b'abcd' + b'x' * 99)
os.kill(os.getpid(), signal.SIGKILL)
"""


def measure_soak(workdir: str, steps: int) -> dict[str, Any]:
  """`steps` chunks of clients that leave in four ways; what the server holds before and after."""
  with start(workdir) as (port, health_port):
    _come_and_go(port, 64)
    before = _settle(port, health_port)[0]
    done = _come_and_go(port, steps)
    after, seconds = _settle(port, health_port)
  kept = ('wam_traces_total', 'wam_device_bytes', 'wam_sessions')
  return {
    'chunks': done,
    'before': {key: before[key] for key in kept},
    'after': {key: after[key] for key in kept},
    'slots back after s': round(seconds, 2),
  }


def _come_and_go(port: int, steps: int) -> int:
  """Episodes of a dozen chunks, four at a time; how many chunks there were."""
  done = [0]
  lock = threading.Lock()

  def run(number: int) -> None:
    episode = number
    while done[0] < steps:
      episode += 4
      policy = policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}', session=f'{episode}')
      for step in range(12):
        policy.infer(observe(policy, step))
        with lock:
          done[0] += 1
      if episode % 3 == 0:
        policy.reset()
      if episode % 2:
        policy.close()
      else:
        policy._socket.socket.close()  # noqa: SLF001 (without a word)
      if episode % 400 < 4:
        subprocess.run([sys.executable, '-c', _DIES, str(port)], cwd=work.ROOT, check=False)

  threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return done[0]


def _settle(port: int, health_port: int) -> tuple[dict[str, float], float]:
  """(metrics, seconds until no session held a slot), as soon as the bytes on the device stand
  still, or after ten seconds more.

  The server weighs its device when it has worked, and a session that is over may lie there at that
  moment: before each look somebody asks once and leaves.
  """
  seconds = _wait_for_slots(health_port)
  ends = time.monotonic() + _SETTLES_S
  held: list[float] = []
  while True:
    _visit(port)
    _wait_for_slots(health_port)
    time.sleep(0.1)
    metrics = work.read_metrics(health_port)
    held.append(metrics['wam_device_bytes'])
    stands_still = held[-_STILL:] == [held[-1]] * _STILL
    if stands_still or time.monotonic() > ends:
      return metrics, seconds


def _wait_for_slots(health_port: int) -> float:
  """Seconds until no session holds a slot, ten at most."""
  begin = time.monotonic()
  while work.read_metrics(health_port)['wam_sessions'] and time.monotonic() < begin + _SETTLES_S:
    time.sleep(0.05)
  return time.monotonic() - begin


def _visit(port: int) -> None:
  with policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}') as policy:
    policy.infer(observe(policy, 0))
