"""The WebSocket port: who may connect, and what all connections share.

The event loop reads and writes; large images are composed in a small pool, chunks computed in the
scheduler's thread. What is said on a connection is in connection.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import http
import itertools
import logging
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

import websockets
from websockets.asyncio import server as ws_server

from wam_jax.client import wire as codec
from wam_jax.control import turns
from wam_jax.data import images
from wam_jax.serving import access as access_lib
from wam_jax.serving import connection as connection_lib
from wam_jax.serving import description
from wam_jax.serving import imagining
from wam_jax.serving import journal
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import rehearsal
from wam_jax.serving import scheduler as scheduler_lib
from wam_jax.serving import sessions as sessions_lib
from wam_jax.serving import watching

_LOG = logging.getLogger(__name__)
METADATA_PATH = '/metadata'
# Bytes of images that are composed within a millisecond: in less time than another thread is woken.
_SMALL = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
  """How a server answers.

  Attributes:
    held: the port where it listens, see `access.hold_port`; None for a free one of this machine.
    reply_array: whether enveloped requests get a bare array, as DreamZero's server gives.
    sends_metadata: whether the first message at `/` is all of the metadata in place of the six
      keys.
    resolution: rows and columns that clients are asked for; None for the robot's.
    fills_missing_views: whether a view that a client does not send is black.
    deadline_s: seconds in which a chunk must be there, or is not computed; 0 for any.
    limits: of what a connection may do.
    rehearsal_s: seconds of episodes that nobody acts on, before the port opens; 0 for none.
    api_key: what clients must send; None for nothing.
    tls: certificate and key; None for plain connections.
    imagines: when imagined video is decoded for those who watch, of `imagining.KINDS`.
    records: whether clients are asked for every control step that they do.
    grace_s: seconds for answers that are under way when the server stops.
  """

  held: socket.socket | None = None
  reply_array: bool = False
  sends_metadata: bool = False
  resolution: tuple[int, int] | None = None
  fills_missing_views: bool = False
  deadline_s: float = 0.0
  limits: access_lib.Limits = access_lib.LIMITS
  rehearsal_s: float = 0.0
  api_key: bytes | None = None
  tls: ssl.SSLContext | None = None
  imagines: str = imagining.SPARE
  records: bool = False
  grace_s: float = 10.0


class Server:
  """Serves one engine.

  Attributes:
    sessions: who is there.
    scheduler: what waits.
    port: where it listens, once it does.
    stops: whether it takes nothing new.
  """

  def __init__(
    self,
    engine: turns.Engine,
    rules: sessions_lib.Rules,
    options: Options,
    metrics: metrics_lib.Metrics,
    about: Mapping[str, Any] | None = None,
    watchers: Sequence[watching.Watcher] = (),
  ):
    """
    Args:
      about: told in the metadata, beside what the robots are.
      watchers: are told what happens.
    """
    self.options = options
    self.metrics = metrics
    self.hub = watching.Hub(watchers, metrics)
    imagines = options.imagines if watchers else imagining.OFF
    dreams = imagining.Dreams(engine, imagines, self.hub.imagined, metrics)
    self.scheduler = scheduler_lib.Scheduler(engine, metrics, dreams)
    self.sessions = sessions_lib.Sessions(engine.robots, rules, self._free, time.monotonic)
    self.port = 0
    self.stops = False
    first = engine.robots[rules.robot or next(iter(engine.robots))].record
    self._config = codec.pack(description.make_config(first, options.resolution))
    about = {**(about or {}), 'records': options.records}
    self.metadata = description.make_metadata(engine.robots, rules.robot, about)
    self._pool = concurrent.futures.ThreadPoolExecutor(
      max(2, min(8, os.cpu_count() or 2)), thread_name_prefix='decode'
    )
    images.use_one_thread()  # The pool's own threads work side by side.
    self._connections: set[connection_lib.Connection] = set()
    self._somebody_left = False
    self._numbers = itertools.count()
    metrics.watch('wam_sessions', 'Sessions that hold a slot.', lambda: len(self.sessions))
    metrics.watch('wam_connections', 'Open connections.', lambda: len(self._connections))
    metrics.watch('wam_waiting', 'Sessions that wait.', lambda: len(self.scheduler))
    metrics.watch('wam_traces_total', 'Compilations of the step.', lambda: engine.traces)
    metrics.watch('wam_device_bytes', 'Bytes of live arrays.', lambda: self.scheduler.device_bytes)
    # Its handshakes fail with tracebacks whenever somebody sends rubbish.
    logging.getLogger('websockets.server').setLevel(logging.CRITICAL)

  def note(self, **about: Any) -> None:
    """Changes what the metadata say; also from another thread."""
    self.metadata = {**self.metadata, **about}

  @contextlib.asynccontextmanager
  async def listen(self):
    """Answers for as long as the context lasts."""
    self.scheduler.start()
    options = self.options
    ends = asyncio.create_task(self._keep_house())
    try:
      # What is there now stays: to look through all of it for garbage would hold up a robot, and
      # come so seldom that what connections leave behind lay about for long.
      gc.collect()
      gc.freeze()
      if options.rehearsal_s:
        await rehearsal.play(self, options.rehearsal_s)
      async with ws_server.serve(
        self._handle,
        sock=options.held or access_lib.hold_port('127.0.0.1', 0),
        process_request=self._admit,
        ssl=options.tls,
        compression=None,
        max_size=options.limits.message_bytes,
        # Simulators stall for minutes and answer no ping; a host that is gone is found by TCP.
        ping_interval=20,
        ping_timeout=None,
        max_queue=2,
        open_timeout=10,
        close_timeout=2,
      ) as server:
        self.port = next(iter(server.sockets)).getsockname()[1]
        yield self
        await self._say_goodbye(server)
    finally:
      ends.cancel()
      await asyncio.get_running_loop().run_in_executor(None, self.scheduler.stop)
      await asyncio.get_running_loop().run_in_executor(None, self.hub.close)
      self._pool.shutdown(wait=False)

  async def _say_goodbye(self, server: ws_server.Server) -> None:
    """Answers what was asked, refuses what is asked now, and tells all clients that it stops."""
    self.stops = True
    _LOG.info('stopping', extra={'connections': len(self._connections)})
    finishing = asyncio.gather(*(connection.finish() for connection in self._connections))
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(finishing, self.options.grace_s)
    server.close(code=1001, reason='the server stops')

  def _admit(self, connection: ws_server.ServerConnection, request) -> Any:
    """What is answered in place of a handshake; None for a handshake."""
    if request.path == '/healthz':
      return connection.respond(http.HTTPStatus.OK, 'OK\n')
    if not access_lib.is_known(self.options.api_key, request.headers.get('Authorization')):
      self.metrics.refused.add(label='api_key')
      return connection.respond(
        http.HTTPStatus.UNAUTHORIZED, "An API key is needed: 'Authorization: Api-Key KEY'.\n"
      )
    if request.path not in ('/', METADATA_PATH):
      return connection.respond(http.HTTPStatus.NOT_FOUND, 'The policy is at /.\n')
    return None

  async def _handle(self, socket_: ws_server.ServerConnection) -> None:
    connection = connection_lib.Connection(next(self._numbers), socket_, self)
    where = {'connection': connection.number, 'address': socket_.remote_address[0]}
    _LOG.info('client is here', extra=where)
    full = len(self._connections) >= self.options.limits.connections
    self._connections.add(connection)
    try:
      with contextlib.suppress(websockets.ConnectionClosed):
        await self._greet(socket_)
        if full:
          # A handshake that fails reads as an error of TLS in RoboArena's client.
          self.metrics.refused.add(label='connections')
          await socket_.send(f'error (connections): {len(self._connections) - 1} are open already')
          await socket_.close(1013, 'try again later')
        else:
          await connection.run()
    finally:
      _LOG.info('client is gone', extra={**where, **connection.tally})
      self._connections.discard(connection)
      self._somebody_left = True
      self.sessions.drop(connection.number)

  async def _greet(self, socket_: ws_server.ServerConnection) -> None:
    _keep_alive(socket_.transport.get_extra_info('socket'))
    path = socket_.request.path
    whole = self.options.sends_metadata or path == METADATA_PATH
    await socket_.send(codec.pack(self.metadata) if whole else self._config)

  async def _keep_house(self) -> None:
    """Once a second, what is due: idle sessions, and the memory of clients that are gone."""
    while True:
      await asyncio.sleep(1.0)
      for session in self.sessions.end_idle():
        _LOG.info('session was silent for too long and is over', extra=journal.of(session))
      if self._somebody_left:
        self._somebody_left = False
        await asyncio.get_running_loop().run_in_executor(self._pool, _give_memory_back)

  def _free(self, session: sessions_lib.Session) -> None:
    """The episode of a session is over."""
    self.scheduler.free(session)
    self.hub.end(session)

  async def call(self, count: int, call, *args) -> Any:
    """What a call on `count` bytes gives, without holding up the loop for long."""
    if count < _SMALL:
      return call(*args)
    return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)


def _give_memory_back() -> None:
  """Returns to the system what is free between pieces that are not: images that come and go among
  small objects would leave the process larger after each crowd. Of allocators other than glibc's,
  nothing.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def _keep_alive(socket_: socket.socket | None) -> None:
  """Lets the kernel find out that a host is gone, within ten seconds; programs may stall longer."""
  if socket_ is None:
    return
  with contextlib.suppress(OSError):
    socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 4), ('TCP_KEEPINTVL', 2), ('TCP_KEEPCNT', 3)):
      if hasattr(socket, name):
        socket_.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):
      socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
