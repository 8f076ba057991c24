"""Episodes that nobody acts on, played on a server as a client plays them, but for the network,
before its port opens: threads, caches and the allocator are then as they stay, and the first answer
comes as fast as the thousandth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from wam_jax.client import wire as codec
from wam_jax.data import record as record_lib
from wam_jax.serving import connection as connection_lib

_CHUNKS = 3  # Of an episode: one that anchors, and some that go on.
_NUMBER = -1  # Of the connection; those of clients begin at 0.


async def play(server: Any, seconds: float) -> None:
  """Whole episodes for so long, at least two; what the server counts begins anew afterwards.

  Args:
    server: the `server.Server`, whose scheduler runs.
  Raises:
    RuntimeError: a chunk could not be computed.
  """
  robot = next(iter(server.sessions.robots))
  observation = _make_observation(server.sessions.robots[robot].record)
  client = _Client({**observation, 'robot': robot, 'prompt': ''}, time.monotonic() + seconds)
  try:
    await connection_lib.Connection(_NUMBER, client, server).run()
  finally:
    server.sessions.drop(_NUMBER)
  if client.failed:
    raise RuntimeError(f'A chunk could not be computed; the log says why. {client.failed}')
  server.metrics.forget()


class _Client:
  """What `connection.Connection` uses of a socket.

  Attributes:
    failed: the error that computing ended with; '' for none.
  """

  def __init__(self, observation: Mapping[str, Any], until_s: float):
    self._observation = observation
    self._until_s = until_s
    self._answered = asyncio.Event()
    self.failed = ''

  async def __aiter__(self) -> AsyncIterator[bytes]:
    episodes = 0
    while episodes < 2 or time.monotonic() < self._until_s:
      for chunk in range(_CHUNKS):
        self._answered.clear()
        yield codec.pack({**self._observation, 'reset': chunk == 0})
        await self._answered.wait()
        if self.failed:
          return
      episodes += 1

  async def send(self, reply: bytes | str) -> None:
    # Texts are errors. On a machine that is busy some chunks come too late, as they would later.
    if isinstance(reply, str) and '(overloaded)' not in reply:
      self.failed = reply
    self._answered.set()

  async def close(self, unused_code: int, reason: str) -> None:
    self.failed = self.failed or reason


def _make_observation(record: record_lib.Embodiment) -> dict[str, np.ndarray]:
  """Black images, which are resized as those of a camera, and zeros for states."""
  images = {
    view.key: np.zeros((2 * view.height, 2 * view.width, 3), np.uint8) for view in record.views
  }
  widths = {s.key: s.stop for s in sorted(record.state, key=lambda s: s.stop)}
  return {**images, **{key: np.zeros(width, np.float32) for key, width in widths.items()}}
