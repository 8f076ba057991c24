"""Files and directories that appear whole or not at all, whatever ends their writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from wam_jax import storage


def start(code, *args, **options):
  return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], text=True, **options)


@pytest.mark.parametrize('content', ['text\u00e4', b'bytes'])
def test_a_file_is_replaced(tmp_path, content):
  path = tmp_path / 'x'
  storage.write_whole(path, 'old')
  storage.write_whole(path, content)
  assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
  assert [p.name for p in tmp_path.iterdir()] == ['x']


def test_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
  path = tmp_path / 'x'
  storage.write_whole(path, 'old')

  def refuse(fd):
    raise OSError(28, 'No space left on device')

  # The last moment at which a full disk can say so.
  monkeypatch.setattr(storage.os, 'fsync', refuse)
  with pytest.raises(OSError, match='No space left') as error:
    storage.write_whole(path, 'new')
  assert path.read_text() == 'old'
  assert str(path) in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ['x']


def test_a_full_disk_is_one_message_with_the_path(tmp_path):
  """A file-size limit stands for the full disk."""
  path = tmp_path / 'x'
  storage.write_whole(path, 'old')
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores SIGXFSZ.
  try:
    with pytest.raises(OSError, match='File too large') as error:
      storage.write_whole(path, bytes(10_000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(path) in str(error.value)
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['x']


def test_errors_of_other_files_keep_their_name(tmp_path):
  with pytest.raises(OSError, match='missing'), storage.whole_file(tmp_path / 'x'):
    (tmp_path / 'missing').read_bytes()
  assert not list(tmp_path.iterdir())


WRITE = """
import pathlib, sys
from wam_jax import storage
with storage.whole_file(pathlib.Path(sys.argv[1])) as partial:
  partial.write_text('half')
  print('writing', flush=True)
  sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
  path = tmp_path / 'x'
  storage.write_whole(path, 'old')
  writer = start(WRITE, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert writer.stdout.readline() == 'writing\n'
  # The one that no handler can clean up after.
  writer.send_signal(signal.SIGKILL)
  writer.communicate()
  assert path.read_text() == 'old'
  storage.write_whole(path, 'new')
  assert path.read_text() == 'new'


def test_directory_has_the_usual_mode_and_is_synced(tmp_path, monkeypatch):
  synced = []
  sync = os.fsync
  monkeypatch.setattr(storage.os, 'fsync', lambda fd: (synced.append(os.fstat(fd)), sync(fd)))
  with storage.whole_directory(tmp_path / 'result') as partial:
    (partial / 'folder').mkdir()
    (partial / 'folder' / 'file').write_text('x')
  other = tmp_path / 'other'
  other.mkdir()
  assert (tmp_path / 'result').stat().st_mode == other.stat().st_mode
  found = {state.st_ino for state in synced}
  # Names are synced with their directory, and the new name with its parent.
  for path in ('result', 'result/folder', 'result/folder/file', '.'):
    assert (tmp_path / path).stat().st_ino in found, path


def is_worth_keeping(partial):
  return (partial / 'shard').exists()


def write_and_interrupt(output, name):
  with storage.resumable_directory(output, is_worth_keeping) as partial:
    (partial / name).write_text('1')
    raise KeyboardInterrupt


def test_unfinished_work_waits_for_the_next_call(tmp_path):
  output = tmp_path / 'deep' / 'result'
  with pytest.raises(KeyboardInterrupt):
    write_and_interrupt(output, 'shard')
  assert not output.exists()
  with storage.resumable_directory(output, is_worth_keeping) as partial:
    assert (partial / 'shard').read_text() == '1'
  assert [p.name for p in output.parent.iterdir()] == ['result']
  with storage.resumable_directory(output, is_worth_keeping) as partial:
    assert partial is None
  assert [p.name for p in output.parent.iterdir()] == ['result']


def test_unfinished_work_that_is_worth_nothing_is_removed(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    write_and_interrupt(tmp_path / 'result', 'plan')
  assert not list(tmp_path.iterdir())


RESUME = """
import pathlib, sys
from wam_jax import storage
with storage.resumable_directory(pathlib.Path(sys.argv[1]), lambda partial: True) as partial:
  print(partial, flush=True)
"""


def test_a_second_process_waits_and_finds_what_the_first_one_made(tmp_path):
  output = tmp_path / 'result'
  with storage.resumable_directory(output, is_worth_keeping) as partial:
    second = start(RESUME, output, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # It waits, rather than to begin the same work beside the first.
    assert second.stderr.readline() == f'waiting for another process that writes {partial}\n'
    (partial / 'shard').write_text('1')
  assert second.communicate()[0] == 'None\n'
  assert [p.name for p in tmp_path.iterdir()] == ['result']


def test_a_lock_is_released_with_its_process(tmp_path):
  path = tmp_path / '.lock'
  with storage.lock(path), pytest.raises(BlockingIOError), storage.lock(path):
    pytest.fail('must not start')
  with storage.lock(path):
    pass


def test_directory_appears_only_when_complete(tmp_path):
  target = tmp_path / 'deep' / 'result'
  with storage.whole_directory(target, 10) as partial:
    (partial / 'folder').mkdir()
    (partial / 'folder' / 'file').write_text('x')
    assert not target.exists()
    assert partial.parent == target.parent
  assert (target / 'folder' / 'file').read_text() == 'x'
  assert [p.name for p in target.parent.iterdir()] == ['result']


def test_interrupted_directory_vanishes(tmp_path):
  def write():
    with storage.whole_directory(tmp_path / 'other', 10) as partial:
      (partial / 'file').write_text('x')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write()
  assert [p.name for p in tmp_path.iterdir()] == []


def test_directory_that_exists_is_left_alone(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with (
    pytest.raises(ValueError, match='exists already; nothing was changed'),
    storage.whole_directory(tmp_path, 10),
  ):
    pytest.fail('must not start')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_directory_without_room(tmp_path):
  with (
    pytest.raises(ValueError, match='GB free; up to 1000000000.0 GB are needed'),
    # An exabyte.
    storage.whole_directory(tmp_path / 'result', 10**18),
  ):
    pytest.fail('must not start')
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(ValueError, match='cannot be written: File exists'),
    storage.whole_directory(tmp_path / 'file' / 'result', 1),
  ):
    pytest.fail('must not start')


class Answer(Exception):
  """An error that has the code of an HTTP answer, as those of fsspec and Google's libraries."""

  def __init__(self, code):
    super().__init__(f'{code} from the store')
    self.code = code


@pytest.mark.parametrize(
  ('error', 'tries'),
  [
    (OSError('503 Service Unavailable'), 3),
    (TimeoutError('timed out'), 3),
    (RuntimeError('connection reset'), 3),
    (Answer(429), 3),
    (Answer(500), 3),
    # Grants spread, and tokens are renewed, with a delay.
    (PermissionError('a'), 3),
    (Answer(403), 3),
    (RuntimeError('PERMISSION_DENIED: no access to the bucket'), 3),
    # Mounts may show a file late.
    (FileNotFoundError('a'), 3),
    (ValueError('NOT_FOUND: Error opening "zarr" driver'), 3),
    (ValueError('UNAVAILABLE: CURL error'), 3),
    # No wait mends these.
    (Answer(401), 1),
    (KeyError('items'), 1),
    (ValueError('The checkpoint has another tree.'), 1),
    (storage.TakenError('it belongs to another'), 1),
  ],
)
def test_only_what_may_pass_is_tried_again(monkeypatch, capsys, error, tries):
  monkeypatch.setattr(storage, 'WAITS_S', (0.001, 0.001))
  calls = []

  def fail():
    calls.append(1)
    raise error

  with pytest.raises(type(error)):
    storage.retry(fail, 'reading it')
  assert len(calls) == tries
  assert capsys.readouterr().err.count('again in') == tries - 1
