"""Servers that are measured, each in a process of its own: `python -m benchmarks.serving.stubs KIND
DELAY_S DEADLINE_S` prints its port and serves DROID until its input ends.

`echo` does nothing but to receive a message and send a chunk's bytes; `reference` decodes and packs
as the servers of openpi and RoboArena do, in the event loop; `composing` also makes the images that
the model sees, as every server of it must, and nothing else; `ours` is the policy server around an
engine that takes `DELAY_S` a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import time

import msgpack
import numpy as np
from websockets.asyncio import server as ws_server

from wam_jax.client import wire
from wam_jax.control import turns
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.serving import access
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import observations
from wam_jax.serving import server as server_lib
from wam_jax.serving import sessions as sessions_lib

CHUNK = np.zeros((24, 8), np.float32)
LIMITS = access.Limits(rate=1e9, mistakes=10**9, connections=1000)


class HashEngine:
  """A chunk is drawn from the hash of the episode so far; it takes `delay_s`."""

  rows = 1
  traces = 1

  def __init__(self, delay_s: float):
    record = embodiments.get('droid')
    quantiles = [normalize.Quantiles(np.full(8, -1.0), np.full(8, 1.0)) for _ in range(2)]
    statistics = normalize.Statistics(*quantiles, steps=1)
    self.robots = {'droid': robot_lib.Robot(0, record, statistics)}
    self._delay_s = delay_s

  def start(self, robot: str, instruction: str, seed: int | None = None) -> bytes:
    return instruction.encode()

  def act(self, given) -> list[turns.Acted]:
    if self._delay_s:
      time.sleep(self._delay_s)
    return [self._act(turn) for turn in given]

  def device_bytes(self) -> int:
    return 0

  def _act(self, turn: turns.Turn) -> turns.Acted:
    # Of the newest frame a row is enough to tell it from others.
    seen = turn.state + turn.frames[-1][0].tobytes() + turn.proprio_X.tobytes()
    state = hashlib.sha256(seen).digest()
    action_SU = np.random.default_rng(list(state)).normal(size=CHUNK.shape)
    return turns.Acted(action_SU.astype(np.float32), state)


async def serve_ours(delay_s: float, deadline_s: float) -> None:
  engine = HashEngine(delay_s)
  options = server_lib.Options(deadline_s=deadline_s, limits=LIMITS)
  rules = sessions_lib.Rules(slots=64, robot='droid')
  server = server_lib.Server(engine, rules, options, metrics_lib.Metrics())
  async with server.listen():
    print(server.port, flush=True)
    await wait_for_end()


async def serve_bare(handle) -> None:
  async with ws_server.serve(handle, '127.0.0.1', 0, compression=None, max_size=None) as server:
    print(next(iter(server.sockets)).getsockname()[1], flush=True)
    await wait_for_end()


async def echo(socket) -> None:
  reply = wire.pack({'actions': CHUNK})
  await socket.send(b'\x80')
  async for _ in socket:
    await socket.send(reply)


async def reference(socket) -> None:
  await socket.send(b'\x80')
  async for message in socket:
    msgpack.unpackb(message, object_hook=read_array)
    await socket.send(wire.pack({'actions': CHUNK}))


async def composing(socket) -> None:
  robot = HashEngine(0).robots['droid']
  await socket.send(b'\x80')
  async for message in socket:
    observations.read(robot, msgpack.unpackb(message, object_hook=read_array))
    await socket.send(wire.pack({'actions': CHUNK}))


def read_array(value):
  if b'__ndarray__' in value:
    return np.ndarray(value[b'shape'], np.dtype(value[b'dtype']), value[b'data'])
  return value


async def wait_for_end() -> None:
  await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main(kind: str, delay_s: float, deadline_s: float) -> None:
  if kind == 'ours':
    asyncio.run(serve_ours(delay_s, deadline_s))
  else:
    bare = {'echo': echo, 'reference': reference, 'composing': composing}
    asyncio.run(serve_bare(bare[kind]))


if __name__ == '__main__':
  with contextlib.suppress(KeyboardInterrupt):
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
