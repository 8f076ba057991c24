"""Where clients connect, who may, and how much a connection may ask: ports, the API key, TLS,
limits and rates.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
import pathlib
import socket
import ssl
import stat
from collections.abc import Callable

from wam_jax.serving import wire

_SCHEMES = ('Api-Key ', 'Bearer ')


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one connection may do; the depth and number of items of a message are of `client.wire`.

  Attributes:
    message_bytes: of one message.
    prompt: characters.
    connections: at a time, of all clients.
    pending: requests of a connection that have no answer yet; and answers that it does not read.
    rate: messages a second, over two seconds.
    mistakes: wrong messages within a minute after which the connection is closed.
  """

  message_bytes: int = 64 * 2**20
  prompt: int = 2000
  connections: int = 256
  pending: int = 128
  rate: float = 500.0
  mistakes: int = 100


LIMITS = Limits()


class Allowance:
  """What is left to a connection."""

  def __init__(self, limits: Limits, clock: Callable[[], float]):
    self._limits = limits
    self._clock = clock
    self._at_s = clock()
    self._messages = 2 * limits.rate
    self._mistakes = float(limits.mistakes)

  def count_message(self) -> None:
    """Raises `Refused` where messages come too fast."""
    now_s = self._clock()
    passed_s = now_s - self._at_s
    self._at_s = now_s
    limits = self._limits
    self._messages = min(2 * limits.rate, self._messages + passed_s * limits.rate) - 1
    self._mistakes = min(limits.mistakes, self._mistakes + passed_s * limits.mistakes / 60)
    if self._messages < 0:
      self._messages = 0
      raise wire.Refused('rate', f'more than {limits.rate:g} messages a second')

  def count_mistake(self) -> None:
    self._mistakes -= 1

  @property
  def is_spent(self) -> bool:
    return self._mistakes < 1


def is_known(api_key: bytes | None, header: str | None) -> bool:
  """Whether a client with this Authorization header may connect."""
  if api_key is None:
    return True
  given = header or ''
  for scheme in _SCHEMES:
    if given.startswith(scheme):
      given = given.removeprefix(scheme)
      break
  # As long for any wrong key as for one that is nearly right.
  return hmac.compare_digest(given.encode('utf-8', 'replace'), api_key)


def hold_port(host: str, port: int, flag: str = '--port') -> socket.socket:
  """A port that is this process's, and does not answer before somebody listens.

  Args:
    port: 0 for any that is free.
    flag: where the user says it.
  Raises:
    OSError: the port is taken, or the host is no address of this machine.
  """
  held = None
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found)  # Of both that 'localhost' is, IPv4.
    held = socket.socket(family, kind, protocol)
    # In spite of connections of the server before, which the kernel remembers for a minute.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(address)
  except OSError as e:
    if held is not None:
      held.close()
    raise type(e)(f'{flag}={port} of --host={host} cannot be listened on: {e.strerror}.') from e
  return held


def load_api_key(path: str) -> bytes:
  """The key that a file holds.

  Raises:
    ValueError: it cannot be read, is short, or others may read it. A file of root's may be read by
      a group: so does a cluster give a secret to a user who is not root.
  """
  file = pathlib.Path(path).expanduser()
  try:
    found = file.stat()
    key = file.read_bytes().strip()
  except OSError as e:
    raise ValueError(f'--api_key_file={path} cannot be read: {e.strerror}.') from e
  is_given = found.st_uid == 0 != os.getuid()
  if stat.S_IMODE(found.st_mode) & (0o037 if is_given else 0o077):
    raise ValueError(f'--api_key_file={path} can be read by others: chmod 600 {path}')
  if len(key) < 16 or b'\n' in key:
    raise ValueError(
      f'--api_key_file={path} holds no key of one line with 16 characters or more; make one by: '
      f'head -c 24 /dev/urandom | base64 > {path}'
    )
  return key


def load_tls(certificate: str, key: str) -> ssl.SSLContext | None:
  """The certificate that clients see; None where neither file is given.

  Raises:
    ValueError: one of them is missing or wrong.
  """
  if not certificate and not key:
    return None
  if not certificate or not key:
    raise ValueError('--tls_certificate and --tls_key belong together; give both or neither.')
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.minimum_version = ssl.TLSVersion.TLSv1_2
  try:
    context.load_cert_chain(os.path.expanduser(certificate), os.path.expanduser(key))
  except (OSError, ssl.SSLError) as e:
    raise ValueError(
      f'--tls_certificate={certificate} and --tls_key={key} are no certificate and its key, as PEM '
      f'files: {e}'
    ) from e
  return context
