"""An object store of one bucket, in memory, that speaks as much of Google Cloud Storage's JSON API
as the tests need.

Generations and preconditions are as there: TensorStore rests its transactions on them. Clients must
be other processes: some of them hold Python's lock while they wait for an answer.
Source: cloud.google.com/storage/docs/json_api/v1/objects.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import re
import threading
import urllib.parse

import google_crc32c

BUCKET = 'bucket'
_OBJECT = re.compile(
  r'/storage/v1/b/([^/]+)/o(?:/([^/]+))?(?:/(rewriteTo|copyTo|moveTo)/(?:b/[^/]+/)?o/([^/]+))?'
)


class ObjectStore:
  """Use as a context manager.

  Attributes:
    objects: name to (generation, content).
    environment: variables that lead gcsfs, TensorStore and ArrayRecord here.
    reads: (name, bytes sent) of each object, or part of one, that was asked for.
    requests: how many there were.
    stalls: so many of the next requests for content are never answered.
    is_read_only: whether what would change it is refused.
  """

  def __init__(self):
    self.objects: dict[str, tuple[int, bytes]] = {}
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.reads: list[tuple[str, int]] = []
    self.requests = 0
    self.stalls = 0
    self.is_read_only = False
    self.lock = threading.Lock()
    self.generations = itertools.count(1_700_000_000_000_000)  # As large as theirs: microseconds.
    handler = type('Handler', (_Handler,), {'store': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_port}'
    self.environment = {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': self.url,
      # It would ask for the kind of the bucket by gRPC, which is not spoken here.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }

  def __enter__(self) -> ObjectStore:
    self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *unused_error) -> None:
    self._server.shutdown()
    self._server.server_close()

  def read(self, name: str) -> bytes:
    """b'' where there is no such object."""
    return self.objects.get(name, (0, b''))[1]

  def put(self, name: str, content: bytes) -> None:
    self.objects[name] = next(self.generations), content

  def list(self, prefix: str) -> list[str]:
    return sorted(name for name in list(self.objects) if name.startswith(prefix))


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, *unused):  # A client went away.
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  store: ObjectStore

  def log_message(self, *unused):
    pass

  def _answer(self, status: int, content: bytes | dict = b'', **headers: str) -> None:
    if isinstance(content, dict):
      content = json.dumps(content).encode()
      headers['Content-Type'] = 'application/json'
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _handle(self) -> None:
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    url = urllib.parse.urlsplit(self.path)
    query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
    path = url.path.removeprefix('/download').removeprefix('/upload')
    self.store.requests += 1
    if self.store.stalls and query.get('alt') == 'media':
      self.store.stalls -= 1
      self.connection.recv(1)  # Until the client has had enough.
      self.close_connection = True
      return None
    if self.store.is_read_only and self.command != 'GET':
      return self._refuse(403, 'No permission storage.objects.create (or it may not exist).')
    with self.store.lock:
      if 'upload_id' in query:
        return self._continue_upload(query['upload_id'], body)
      if path in ('/storage/v1/b/' + BUCKET, f'/b/{BUCKET}'):
        return self._answer(200, {'kind': 'storage#bucket', 'name': BUCKET, 'id': BUCKET})
      found = _OBJECT.fullmatch(path)
      if not found or found[1] != BUCKET:
        return self._refuse(404, 'The specified bucket does not exist.')
      if found[2] is None:
        return self._list(query) if self.command == 'GET' else self._upload(query, body)

      name = urllib.parse.unquote(found[2])
      if name not in self.store.objects:
        return self._refuse(404, f'No such object: {name}')
      if found[3]:
        return self._copy(name, action=found[3], target=urllib.parse.unquote(found[4]))
      return self._use(name, query)

  def _use(self, name: str, query: dict[str, str]) -> None:
    """Answers about one object that is there."""
    if self._is_refused(name, query):
      return
    if self.command == 'DELETE':
      del self.store.objects[name]
      self._answer(204)
    elif query.get('alt') == 'media':
      self._get(name)
    else:
      self._answer(200, self._describe(name))

  def _refuse(self, status: int, message: str) -> None:
    self._answer(status, {'error': {'code': status, 'message': message}})

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _is_refused(self, name: str, query: dict[str, str]) -> bool:
    """Whether a precondition failed, and the answer says so."""
    generation = str(self.store.objects.get(name, (0,))[0])
    if query.get('ifGenerationMatch', generation) != generation:
      self._refuse(412, 'ifGenerationMatch')
    elif query.get('ifGenerationNotMatch') == generation:
      self._answer(304)
    else:
      return False
    return True

  def _describe(self, name: str) -> dict:
    generation, content = self.store.objects[name]
    return {
      'kind': 'storage#object',
      'name': name,
      'bucket': BUCKET,
      'generation': str(generation),
      'metageneration': '1',
      'size': str(len(content)),
      'contentType': 'application/octet-stream',
      'crc32c': base64.b64encode(google_crc32c.value(content).to_bytes(4, 'big')).decode(),
      # Clients parse it; nothing here depends on it.
      'timeCreated': '2024-01-01T00:00:00.000Z',
      'updated': '2024-01-01T00:00:00.000Z',
    }

  def _get(self, name: str) -> None:
    generation, content = self.store.objects[name]
    headers = {
      'x_goog_generation': str(generation),
      'x_goog_stored_content_length': str(len(content)),
    }
    asked = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not asked:
      self.store.reads.append((name, len(content)))
      return self._answer(200, content, **headers)
    first, last = asked.groups()
    start, stop = 0, len(content)
    if not first:
      start = max(0, len(content) - int(last))  # bytes=-5 are the last five.
    elif last:
      start, stop = int(first), min(int(last) + 1, len(content))
    else:
      start = int(first)
    if start >= len(content):
      return self._answer(416, **headers)
    self.store.reads.append((name, stop - start))
    headers['Content_Range'] = f'bytes {start}-{stop - 1}/{len(content)}'
    return self._answer(206, content[start:stop], **headers)

  def _list(self, query: dict[str, str]) -> None:
    prefix = query.get('prefix', '')
    delimiter = query.get('delimiter')
    items = []
    prefixes = set()  # What stands for directories: names up to the next delimiter.
    for name in self.store.list(prefix):
      rest = name.removeprefix(prefix)
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self._describe(name))
    self._answer(200, {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)})

  def _put(self, name: str, content: bytes) -> None:
    self.store.objects[name] = next(self.store.generations), bytes(content)

  def _upload(self, query: dict[str, str], body: bytes) -> None:
    name = query.get('name')
    if query.get('uploadType') == 'resumable':
      name = name or json.loads(body)['name']
      number = str(next(self.store.generations))
      self.store.uploads[number] = name, bytearray()
      return self._answer(
        200, Location=f'{self.store.url}/upload/storage/v1/b/{BUCKET}/o?upload_id={number}'
      )
    if query.get('uploadType') == 'multipart':
      boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      # What the object is and what it holds, each behind headers of its own and an empty line.
      parts = body.split(b'--' + boundary)[1:3]
      about, content = (re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in parts)
      name = json.loads(about)['name']
      body = content.removesuffix(b'\n').removesuffix(b'\r')
    if self._is_refused(name, query):
      return None
    self._put(name, body)
    return self._answer(200, self._describe(name))

  def _continue_upload(self, number: str, body: bytes) -> None:
    name, content = self.store.uploads[number]
    content += body
    # The length of the whole is not known yet: more will come.
    if self.headers['Content-Range'].endswith('/*'):
      return self._answer(308, Range=f'bytes=0-{len(content) - 1}')
    self._put(name, self.store.uploads.pop(number)[1])
    return self._answer(200, self._describe(name))

  def _copy(self, name: str, action: str, target: str) -> None:
    self._put(target, self.store.objects[name][1])
    if action == 'moveTo':
      del self.store.objects[name]
    answer = self._describe(target)
    if action == 'rewriteTo':
      # Larger objects take several calls there; here one does it.
      answer = {'done': True, 'resource': answer}
    self._answer(200, answer)
