"""In place of the compiled policy: an engine of NumPy, whose chunks depend on all that a session
was told and shown; and a server around it, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator

import numpy as np

from wam_jax.control import agent as agent_lib
from wam_jax.control import turns
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import sessions as sessions_lib

DROID = embodiments.get('droid')
DISC = embodiments.get('tabletop_disc')
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 2, 32, 32, 3)).astype(np.uint8)


def make_robot(record, number=0) -> robot_lib.Robot:
  quantiles = [
    normalize.Quantiles(np.full(n, -1.0), np.full(n, 1.0))
    for n in (record.proprio_dim, record.action_dim)
  ]
  return robot_lib.Robot(number, record, normalize.Statistics(*quantiles, steps=9))


class HashEngine:
  """A chunk is drawn from the hash of the episode so far; it takes `delay_s`."""

  rows = 1
  traces = 1

  def __init__(self, *records, delay_s: float = 0.0, imagine_s: float = 0.0, overlap: int = 0):
    robots = [make_robot(record, i) for i, record in enumerate(records)]
    self.robots = {
      robot.record.name: dataclasses.replace(robot, action_overlap=overlap) for robot in robots
    }
    self.delay_s = delay_s
    self.imagine_s = imagine_s
    self.alive: set[int] = set()
    self.threads: set[str] = set()
    self.fails = False
    self.fails_for = b''

  def warm(self, imagines: bool = False) -> float:
    return 0.0

  def start(self, robot: str, instruction: str, seed: int | None = None) -> bytes:
    return f'{robot} {instruction} {seed}'.encode()

  def act(self, given) -> list[turns.Acted]:
    self.threads.add(threading.current_thread().name)
    time.sleep(self.delay_s)
    if self.fails:
      raise RuntimeError('a secret of the machine')
    return [self._act_or_fail(turn) for turn in given]

  def keep(self, robot: str, acted: turns.Acted) -> turns.Dream:
    return turns.Dream(robot, acted.latents, np.zeros(1), frames=1)

  def imagine(self, dream: turns.Dream) -> np.ndarray:
    """Frames of one colour, that of the chunk's first three bytes."""
    self.threads.add(threading.current_thread().name)
    time.sleep(self.imagine_s)
    record = self.robots[dream.robot].record
    shape = (record.camera_frames_per_chunk, *record.composite, 3)
    return np.broadcast_to(dream.latents[:3], shape)

  def device_bytes(self) -> int:
    return 0

  def _act_or_fail(self, turn: turns.Turn) -> turns.Acted | turns.Failed:
    if self.fails_for and self.fails_for in turn.state:
      return turns.Failed('a secret of the device')
    return self._act(turn)

  def _act(self, turn: turns.Turn) -> turns.Acted:
    robot = self.robots[turn.robot]
    record = robot.record
    frames_RIJ3 = np.stack(turn.frames)
    assert frames_RIJ3.shape == (record.camera_frames_per_chunk, *record.composite, 3)
    seen = turn.state + frames_RIJ3.tobytes() + turn.proprio_X.tobytes()
    state = hashlib.sha256(seen).digest()
    rng = np.random.default_rng(list(state))
    steps = record.steps_per_chunk + robot.action_overlap
    action_SU = rng.normal(size=(steps, record.action_dim)).astype(np.float32)
    latents = np.frombuffer(state, np.uint8)
    return turns.Acted(agent_lib.cut_chunk(robot, action_SU, turn.prefix_DU), state, latents)


@contextlib.contextmanager
def serving(engine, rules=None, watchers=(), metrics=None, **options) -> Iterator:
  """The server, which listens on a free port of this machine for as long as the context lasts."""
  from wam_jax.serving import server as server_lib

  # A machine under load must not refuse what a test expects to be computed.
  rules = rules or sessions_lib.Rules(slots=16, robot=next(iter(engine.robots)))
  metrics = metrics or metrics_lib.Metrics()
  server = server_lib.Server(
    engine, rules, server_lib.Options(**options), metrics, watchers=watchers
  )
  ready, loop = threading.Event(), asyncio.new_event_loop()
  stop = asyncio.Event()

  async def run() -> None:
    async with server.listen():
      ready.set()
      await stop.wait()

  thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
  thread.start()
  try:
    assert ready.wait(10)
    yield server
  finally:
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def observe(step, **more):
  """An observation of the tabletop's disc."""
  top, wrist = IMAGES[step % len(IMAGES)]
  proprio = np.float32([0.1 * (step % 8), 0, 0, 0])
  return {'top': top, 'wrist': wrist, 'proprio': proprio, 'prompt': 'go', **more}


def disc(**options) -> HashEngine:
  return HashEngine(DISC, **options)


def wait_until(holds, seconds=5.0):
  end = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.01)
