"""A policy that a server holds, asked by one robot: a connection, a session, and what is done when
the connection is lost.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from typing import Any

import websockets
from websockets.sync import client as ws_client

from wam_jax.client import wire

RAISE, RESET, KEEP = 'raise', 'reset', 'keep'
RECONNECTS = (RAISE, RESET, KEEP)
_RECORD = 'record'  # In place of a number.


class Refused(RuntimeError):
  """The server did not answer a request with a chunk.

  Attributes:
    reason: one word: 'overloaded', 'superseded', 'lost_session', 'malformed', ...
  """

  def __init__(self, reason: str, message: str):
    super().__init__(f'{reason}: {message}')
    self.reason = reason


class Disconnected(ConnectionError):
  """The connection was lost, and with it what the session had seen."""


class RemotePolicy:
  """Asks for chunks, one at a time.

  Attributes:
    metadata: what the server says of itself; `metadata['robots']` names keys, sizes, units, rates.
    robot: the name of the robot.
    reconnected: how often the connection was made again.
    records: whether the server records, and brokers send it every control step; False to send none.
    record_error: why the server did not take one; '' where it took all.
  """

  def __init__(
    self,
    uri: str = 'ws://127.0.0.1:8000',
    *,
    robot: str = '',
    session: str = '',
    api_key: str = '',
    reconnect: str = RAISE,
    wait_s: float = 60.0,
    timeout_s: float = 60.0,
  ):
    """Connects.

    Args:
      robot: its name; '' for the server's.
      session: an id of the robot's own; '' for that of the connection.
      reconnect: what happens when the connection is lost. 'raise': `Disconnected`. 'reset': a new
        connection, and a new episode: `reply['session']['began']` says so. 'keep': a new connection
        goes on with the session, which the server holds for a few seconds; `Disconnected` where
        that is too late.
      wait_s: seconds to wait for a server that is not there yet, at first and when it is lost.
      timeout_s: seconds to wait for an answer.
    """
    if reconnect not in RECONNECTS:
      raise ValueError(f'reconnect={reconnect!r} must be one of {RECONNECTS}.')
    self._uri = uri.rstrip('/') + '/metadata'
    self._headers = {'Authorization': f'Api-Key {api_key}'} if api_key else {}
    self._session = session
    self._named = {'session_id': session} if session else {}
    if robot:
      self._named['robot'] = robot
    self._reconnect = reconnect
    self._wait_s = wait_s
    self._timeout_s = timeout_s
    self._numbers = itertools.count(1)
    self._token = ''
    self.reconnected = 0
    self.record_error = ''
    self._connect()
    self.records = bool(self.metadata.get('records', False))
    self.robot = robot or self.metadata['robot'] or next(iter(self.metadata['robots']))

  @property
  def description(self) -> dict[str, Any]:
    """What the robot shows and does: a row of `metadata['robots']`."""
    return self.metadata['robots'][self.robot]

  def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
    """The reply to an observation: `actions` [steps, dimensions], `session`, `server_timing`.

    Args:
      observation: images, state and `prompt` by their keys; images [rows, columns, 3] uint8, or
        [T, rows, columns, 3] with `steps` or `timestamps`; `reset` true at the start of an episode.
    Raises:
      Refused: the server says why there is no chunk.
      TimeoutError: there was no answer for `timeout_s`.
      Disconnected: the connection was lost, see `reconnect`.
    """
    message = {**self._named, **observation, 'endpoint': 'infer'}
    if self._reconnect == KEEP:
      message['keep'] = True
    reply = self._ask(message)
    self._token = reply['session'].get('token', '')
    return reply

  def reset(self) -> None:
    """The next observation begins an episode."""
    if self._reconnect != RAISE and self._is_closed():
      # A session of a connection that is gone begins anew in any case.
      self._token = ''
      return
    self._ask({'endpoint': 'reset', 'session_ids': [self._session] if self._session else None})
    self._token = ''

  def pack_record(self, step: dict[str, Any]) -> bytes:
    """A control step as `send_record` takes it."""
    return wire.pack({**step, **self._named, 'endpoint': 'record', 'request_id': _RECORD})

  def send_record(self, packed: bytes) -> None:
    """Tells a server that records what was done; there is no answer. From any thread.

    Raises:
      Disconnected: the connection is lost.
    """
    try:
      self._socket.send(packed)
    except (websockets.ConnectionClosed, OSError) as error:
      raise Disconnected(f'{self._uri}: {error}') from error

  def close(self) -> None:
    self._socket.close()

  def __enter__(self) -> RemotePolicy:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
    # The same number when it is asked again: the server then answers what it has answered.
    message['request_id'] = next(self._numbers)
    try:
      return self._exchange(message)
    except TimeoutError:
      raise  # The connection is there; the answer is not.
    except (websockets.ConnectionClosed, OSError) as error:
      if self._reconnect == RAISE:
        raise Disconnected(f'{self._uri}: {error}') from error
      if self._reconnect == KEEP and not self._token:
        raise Disconnected(f'{self._uri}: {error}; no chunk of the session came before') from error
    return self._ask_again(message)

  def _ask_again(self, message: dict[str, Any]) -> dict[str, Any]:
    """The answer by a new connection."""
    self._connect()
    self.reconnected += 1
    if self._reconnect == KEEP:
      message['resume'] = self._token
    try:
      return self._exchange(message)
    except (websockets.ConnectionClosed, OSError) as error:
      raise Disconnected(f'{self._uri}: lost twice: {error}') from error
    except Refused as error:
      if error.reason != 'lost_session':
        raise
      raise Disconnected(f'{self._uri}: {error}') from error

  def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
    self._socket.send(wire.pack(message))
    ends_s = time.monotonic() + self._timeout_s
    while True:
      packed = self._socket.recv(timeout=max(0.0, ends_s - time.monotonic()))
      if isinstance(packed, str):
        raise Refused('error', packed)
      reply = wire.unpack(packed)
      if reply.get('request_id') == _RECORD:
        self.record_error = reply['message']
      # Of a request that nobody waits for any more there may be an answer, too.
      if reply.get('request_id') == message['request_id']:
        break
    if reply.get('type') == 'error':
      raise Refused(reply['reason'], reply['message'])
    return reply

  def _is_closed(self) -> bool:
    return self._socket.protocol.close_rcvd is not None or self._socket.protocol.eof_sent

  def _connect(self) -> None:
    """Connects, as soon as the server is there.

    Raises:
      Disconnected: it is not, for `wait_s`.
    """
    ends_s = time.monotonic() + self._wait_s
    while True:
      try:
        # As its context manager does; to connect without one is on its way out of the library.
        self._socket = ws_client.connect(
          self._uri,
          additional_headers=self._headers,
          compression=None,
          max_size=None,
          close_timeout=2,
        ).__enter__()
        self.metadata = wire.unpack(self._socket.recv(timeout=self._timeout_s))
        return
      except (socket.gaierror, ssl.SSLError):
        raise  # A name or a certificate that is wrong stays so.
      except (OSError, websockets.ConnectionClosed) as error:
        # Also of a network that is gone for a while.
        if time.monotonic() > ends_s:
          raise Disconnected(f'{self._uri} does not answer for {self._wait_s:g} s') from error
        time.sleep(0.2)
