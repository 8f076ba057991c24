"""Health, readiness, metrics and the page over HTTP, on a port of their own that answers from the
first second: in a thread of its own, whatever the rest of the process does.

Whoever reaches the port may ask for health and numbers. The page shows what cameras see, so it is
for browsers on this machine alone (a tunnel ends there), and asks for the API key where there is
one.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import ipaddress
import json
import pathlib
import re
import socket
import threading

from wam_jax.serving import access
from wam_jax.serving import board as board_lib
from wam_jax.serving import metrics as metrics_lib

_TEXT = 'text/plain; version=0.0.4; charset=utf-8'
_PAGE = pathlib.Path(__file__).parent / 'page'
_FILES = {
  '/': ('page.html', 'text/html; charset=utf-8'),
  '/page.css': ('page.css', 'text/css; charset=utf-8'),
  '/page.js': ('page.js', 'text/javascript; charset=utf-8'),
}
_FRAMES = re.compile(r'/frames/([0-9]{1,18})/(\w+)')  # Episode, kind.
# Names by which a browser on this machine calls it; another name may be a site that leads here.
_LOCAL_NAMES = ('localhost', '127.0.0.1', '[::1]')
_ELSEWHERE = (
  'The page is for browsers on this machine: ssh -L 8001:127.0.0.1:8001 HOST, then '
  'http://localhost:8001; or kubectl port-forward.\n'
)


class Health:
  """The small HTTP server.

  Attributes:
    stage: what the process is doing; it is ready where this is ''.
    port: where it listens.
    board: what the page shows; None before there is anything.
  """

  def __init__(
    self, held: socket.socket, metrics: metrics_lib.Metrics, api_key: bytes | None = None
  ):
    """Starts it on a port that is held, see `access.hold_port`.

    Args:
      api_key: what the page asks for, as the password of any user.
    """
    self.stage = 'starting'
    self.board: board_lib.Board | None = None
    self._metrics = metrics
    self._api_key = api_key
    handler = type('Handler', (_Handler,), {'health': self})
    address = held.getsockname()
    self._server = http.server.ThreadingHTTPServer(address, handler, bind_and_activate=False)
    self._server.socket.close()
    self._server.socket = held
    self._server.server_activate()
    self.port = address[1]
    self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name='health')
    self._thread.start()

  def answer(self, path: str) -> tuple[int, str, bytes] | None:
    """(HTTP status, MIME type, content) of a path that anybody may ask for; None of others."""
    if path == '/healthz':
      return 200, _TEXT, b'OK\n'
    if path == '/readyz':
      return (503, _TEXT, f'{self.stage}\n'.encode()) if self.stage else (200, _TEXT, b'OK\n')
    if path == '/metrics':
      return 200, _TEXT, self._metrics.show().encode()
    return None

  def answer_page(self, path: str) -> tuple[int, str, bytes]:
    """As `answer`, of the page."""
    if path in _FILES:
      name, kind = _FILES[path]
      return 200, kind, (_PAGE / name).read_bytes()
    if path == '/status':
      shown = self.board.show() if self.board is not None else {}
      return 200, 'application/json', json.dumps({'stage': self.stage, **shown}).encode()
    found = _FRAMES.fullmatch(path)
    if self.board is not None and found:
      drawn = self.board.draw(int(found[1]), found[2])
      if drawn is not None:
        return 200, *drawn
    return 404, _TEXT, b'There are /, /healthz, /readyz and /metrics.\n'

  def may_look(self, address: str, host: str, authorization: str) -> tuple[int, str, bytes] | None:
    """None for a browser that may see the page, and what the others are answered.

    Args:
      address: where the request comes from.
      host, authorization: headers of it.
    """
    name = host if host.endswith(']') else host.rsplit(':', 1)[0]
    if not _is_here(address) or name.lower() not in _LOCAL_NAMES:
      return 403, _TEXT, _ELSEWHERE.encode()
    if not access.is_known(self._api_key, _read_password(authorization)):
      return 401, _TEXT, b'The password is the API key; any user.\n'
    return None

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers GET; knows its `health`."""

  health: Health
  timeout = 5  # Of a client that says nothing.

  def handle(self) -> None:
    # Browsers leave in the middle of a picture.
    with contextlib.suppress(ConnectionError):
      super().handle()

  def do_GET(self) -> None:
    path = self.path.split('?')[0]
    answer = self.health.answer(path)
    if answer is None:
      headers = self.headers
      host, authorization = headers.get('Host', ''), headers.get('Authorization', '')
      answer = self.health.may_look(self.client_address[0], host, authorization)
    status, kind, body = answer or self.health.answer_page(path)
    self.send_response(status)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    self.send_header('Cache-Control', 'no-store')
    # Nothing of it comes from elsewhere, and nobody frames it.
    policy = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
    self.send_header('Content-Security-Policy', policy)
    self.send_header('X-Content-Type-Options', 'nosniff')
    if status == 401:
      self.send_header('WWW-Authenticate', 'Basic realm="wam_jax"')
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *unused) -> None:
    """Nothing: it is asked every few seconds."""


def _is_here(address: str) -> bool:
  found = ipaddress.ip_address(address.split('%')[0])
  mapped = getattr(found, 'ipv4_mapped', None)
  return (mapped or found).is_loopback


def _read_password(authorization: str) -> str:
  """The password of a browser, or the header as clients of the policy send it."""
  if not authorization.startswith('Basic '):
    return authorization
  try:
    decoded = base64.b64decode(authorization.removeprefix('Basic '), validate=True)
  except ValueError:
    return ''
  return decoded.decode('utf-8', 'replace').partition(':')[2]
