"""What robots saw and did, in files: one an episode, which appears when it is whole.

A file holds messages of `client.wire`, each after its length: at first {prompt, about}, at last
{outcome}, and between them
  {observation, action}  a control step: what was seen, and the action that was executed then
  {observation, steps}   the frames of a query, and the control steps when they were taken
  {actions, step}        the chunk that a server answered, of that control step on; as the server
                         keeps it with `checkpoint_step`, that of the weights which made it
Whoever drives the robot knows the first kind and writes it, here or at the server; of other clients
a server knows the other two. `python -m data.from_sessions` makes a dataset of either.
"""

from __future__ import annotations

import os
import pathlib
import queue
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from wam_jax.client import policy as policy_lib
from wam_jax.client import wire

SUFFIX = '.episode'
PART = '.part'  # After it, of a file that is not whole; hidden, too.
_LENGTH = struct.Struct('>I')
_MOST_WAITING = 256  # Control steps on their way to a server.
_END_S = 10.0


class File:
  """An episode that is being written."""

  def __init__(self, directory: str | os.PathLike[str], prompt: str, about: dict[str, Any]):
    """`about` says what is known: the description of the robot by a server, say."""
    place = pathlib.Path(directory).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    # Nobody else's, and in order of time.
    now_s = time.time()
    when = time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s)) + f'{now_s % 1:.3f}'[1:]
    name = when.replace('.', '-') + '-' + secrets.token_hex(4) + SUFFIX
    self._path = place / name
    self._part = place / f'.{name}{PART}'
    self._file = self._part.open('wb')
    self.write({'prompt': prompt, 'about': about})

  def write(self, message: dict[str, Any]) -> None:
    """Adds a message."""
    packed = wire.pack(message)
    self._file.write(_LENGTH.pack(len(packed)) + packed)

  def end(self, outcome: dict[str, Any]) -> pathlib.Path:
    """The whole file, on the disk."""
    self.write({'outcome': outcome})
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    os.replace(self._part, self._path)
    return self._path

  def discard(self) -> None:
    """Throws it away."""
    try:
      self._file.close()
    finally:
      # Where the disk is full, `close` fails, too.
      self._part.unlink()


class Recorder:
  """Writes the control steps of one robot's episodes to a directory."""

  def __init__(self, directory: str, about: dict[str, Any] | None = None):
    """`about` begins each file: `RemotePolicy.description`, so that `data.from_sessions` knows the
    robot.
    """
    self._directory = directory
    self._about = about or {}
    self._file: File | None = None

  def begin(self, prompt: str) -> None:
    """Begins an episode; one that was not ended is thrown away."""
    self.discard()
    self._file = File(self._directory, prompt, self._about)

  def add(self, observation: dict[str, Any], action: np.ndarray) -> None:
    """A control step: what was seen, and what was done then."""
    self._open().write({'observation': observation, 'action': action})

  def end(self, **outcome: Any) -> pathlib.Path:
    """The file of the episode; `outcome`, as success=True, is its last message."""
    path = self._open().end(_make_plain(outcome))
    self._file = None
    return path

  def discard(self) -> None:
    """Throws the episode away that was not ended."""
    if self._file is not None:
      self._file.discard()
      self._file = None

  def _open(self) -> File:
    if self._file is None:
      raise ValueError('No episode was begun; call begin(prompt) first.')
    return self._file


class RemoteRecorder:
  """Sends control steps to a server that records, in a thread: the robot never waits for it. What
  cannot be sent in time breaks the recording of its episode, which is then not kept.
  """

  def __init__(self, policy: policy_lib.RemotePolicy):
    self._policy = policy
    self._steps = 0
    self._is_broken = False
    self._waiting: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)
    self._thread = threading.Thread(target=self._run, daemon=True, name='record')
    self._thread.start()

  def begin(self, prompt: str) -> None:
    """Begins an episode, that of the newest chunk."""
    del prompt  # The server was told.
    self._steps = 0
    self._is_broken = False

  def add(self, observation: dict[str, Any], action: np.ndarray) -> None:
    """A control step, as of `Recorder`."""
    step = {'step': self._steps, 'action': np.asarray(action, np.float32)}
    self._steps += 1
    if not self._is_broken:
      # Packed at once: cameras may write over what they gave.
      self._put(self._policy.pack_record({**observation, **step}))

  def end(self, **outcome: Any) -> None:
    """Ends the episode; returns when all was sent."""
    ended = {'ended': True, 'step': self._steps, 'outcome': _make_plain(outcome)}
    self._put(self._policy.pack_record(ended), _END_S)
    self.flush()

  def flush(self) -> None:
    """Waits until all was sent, or for ten seconds."""
    with self._waiting.all_tasks_done:
      self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, _END_S)

  def close(self) -> None:
    """Ends the thread."""
    self._put(None, _END_S)
    self._thread.join(_END_S)

  def _put(self, packed: bytes | None, most_s: float = 0.0) -> None:
    """Hands over within so many seconds, or not at all."""
    try:
      self._waiting.put(packed, timeout=most_s)
    except queue.Full:
      self._is_broken = True

  def _run(self) -> None:
    while True:
      packed = self._waiting.get()
      try:
        if packed is None:
          return
        self._policy.send_record(packed)
      except OSError:
        self._is_broken = True  # Steps are missing, which the server sees.
      finally:
        self._waiting.task_done()


def _make_plain(outcome: dict[str, Any]) -> dict[str, Any]:
  """True where a simulator says so by a number of NumPy, which is another thing to who reads it."""
  plain = lambda value: value.item() if isinstance(value, np.generic) else value
  return {key: plain(value) for key, value in outcome.items()}


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
  """The messages of a file: what it is about, what happened, the outcome.

  Raises:
    Malformed: it is cut short.
  """
  with open(path, 'rb') as file:
    while True:
      head = file.read(_LENGTH.size)
      if not head:
        return
      packed = file.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b''
      if not packed:
        raise wire.Malformed(f'{path} is cut short')
      yield wire.unpack(packed)
