"""Clients of five projects, written from the protocol as they send it, byte for byte: none of our
own code is used to speak.

Each plays an episode on one `view` of the world: a list of (three images, joints, gripper) at the
control steps at which it asks.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

import msgpack
import numpy as np
from websockets.sync import client as ws_client

CONFIG = ('image_resolution', 'needs_wrist_camera', 'n_external_cameras', 'needs_stereo_camera')
CONFIG += ('needs_session_id', 'action_space')


def encode(value):
  """As msgpack_numpy of openpi: maps with keys of bytes."""
  if isinstance(value, np.ndarray):
    name = value.dtype.str
    shape = value.shape
    return {b'__ndarray__': True, b'data': value.tobytes(), b'dtype': name, b'shape': shape}
  assert isinstance(value, np.generic)
  return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}


def decode(value):
  if b'__ndarray__' in value:
    return np.ndarray(value[b'shape'], np.dtype(value[b'dtype']), value[b'data'])
  return value


def pack(message) -> bytes:
  return msgpack.packb(message, default=encode)


class Client:
  """A connection, and how its client asks.

  Attributes:
    config: what the server said first.
  """

  connect: ClassVar = dict(compression=None, max_size=None)

  def __init__(self, port: int, path: str = ''):
    # As its context manager does; to connect without one is on its way out of the library.
    self.socket = ws_client.connect(f'ws://127.0.0.1:{port}{path}', **self.connect).__enter__()
    self.config = self.read(self.socket.recv())

  def read(self, reply):
    if isinstance(reply, str):
      raise RuntimeError(reply)
    return msgpack.unpackb(reply, object_hook=decode)

  def ask(self, message):
    self.socket.send(pack(message))
    return self.socket.recv(timeout=20)

  def infer(self, message):
    return self.read(self.ask(message))

  def close(self) -> None:
    self.socket.close()

  def start_episode(self, port: int) -> None:
    """Whatever it does before an episode."""

  def end_episode(self) -> None:
    """Whatever it does after one."""


class OpenPi(Client):
  """No envelope, no session, no reset: a new connection, as its examples make one a run. Cameras
  from 1, of which it sends one.
  """

  def start_episode(self, port):
    self.close()
    self.__init__(port)

  def act(self, view, prompt):
    left, _, wrist, joints, gripper = view
    reply = self.infer(
      {
        'observation/exterior_image_1_left': left,
        'observation/wrist_image_left': wrist,
        'observation/joint_position': joints,
        'observation/gripper_position': gripper,
        'prompt': prompt,
      }
    )
    assert set(reply['server_timing']) >= {'infer_ms', 'prev_total_ms'}
    return reply['actions']


class RoboArena(Client):
  """The envelope, a session an evaluation, a reset at the end of each trajectory."""

  def start_episode(self, port):
    # Its client rebuilds a dataclass of exactly these.
    assert set(self.config) == set(CONFIG)
    self.session = str(uuid.uuid4())

  def act(self, view, prompt):
    left, right, wrist, joints, gripper = view
    reply = self.infer(
      {
        'observation/wrist_image_left': wrist,
        'observation/exterior_image_0_left': left,
        'observation/exterior_image_1_left': right,
        'observation/joint_position': joints,
        'observation/cartesian_position': np.zeros(6),
        'observation/gripper_position': gripper,
        'prompt': prompt,
        'session_id': self.session,
        'endpoint': 'infer',
      }
    )
    assert type(reply) is dict
    return reply['actions']

  def end_episode(self):
    assert self.ask({'endpoint': 'reset'}) == 'reset successful'


class DreamZeroTest(RoboArena):
  """A frame first, then four at a time; asserts a bare array."""

  connect: ClassVar = dict(compression=None, max_size=None, ping_interval=60, ping_timeout=600)

  def start_episode(self, port):
    super().start_episode(port)
    assert self.config['image_resolution'] == [180, 320]
    self.is_first = True

  def act(self, view, prompt):
    left, right, wrist, *_ = view
    if not self.is_first:
      left, right, wrist = (np.stack([image, image, image, image]) for image in view[:3])
    self.is_first = False
    reply = self.infer(
      {
        'observation/exterior_image_0_left': left,
        'observation/exterior_image_1_left': right,
        'observation/wrist_image_left': wrist,
        'observation/joint_position': np.zeros(7, np.float32),
        'observation/cartesian_position': np.zeros(6, np.float32),
        'observation/gripper_position': np.zeros(1, np.float32),
        'prompt': prompt,
        'session_id': self.session,
        'endpoint': 'infer',
      }
    )
    assert isinstance(reply, np.ndarray)
    return reply


class DreamZeroSimulation(RoboArena):
  """A new session an episode, no reset; takes a map or an array."""

  def act(self, view, prompt):
    reply = None
    left, right, wrist, joints, gripper = view
    reply = self.infer(
      {
        'observation/exterior_image_0_left': right,
        'observation/exterior_image_1_left': left,
        'observation/wrist_image_left': wrist,
        'observation/joint_position': joints.astype(np.float64),
        'observation/cartesian_position': np.zeros((6,), np.float64),
        'observation/gripper_position': gripper.astype(np.float64),
        'prompt': prompt,
        'session_id': self.session,
        'endpoint': 'infer',
      }
    )
    return reply['actions'] if isinstance(reply, dict) else reply

  def end_episode(self):
    pass


class IsaacLabArena(Client):
  """Environments side by side on one connection, a uuid each; resets a list of them, and all of
  them before it leaves. A stale text would be taken for an acknowledgement that came late.
  """

  connect: ClassVar = dict(open_timeout=60, ping_interval=60, ping_timeout=300)
  environments = 3

  def start_episode(self, port):
    self.sessions = [str(uuid.uuid4()) for _ in range(self.environments)]

  def act(self, view, prompt):
    left, right, wrist, joints, gripper = view
    chunks = []
    for number, session in enumerate(self.sessions):
      reply = self.infer(
        {
          'observation/exterior_image_0_left': left + np.uint8(number),
          'observation/exterior_image_1_left': np.zeros_like(right),
          'observation/wrist_image_left': wrist,
          'observation/joint_position': joints,
          'observation/cartesian_position': np.zeros(6, dtype=np.float32),
          'observation/gripper_position': gripper,
          'prompt': prompt,
          'session_id': session,
          'endpoint': 'infer',
        }
      )
      chunks.append(reply['actions'] if isinstance(reply, dict) else reply)
    return np.stack(chunks)

  def end_episode(self):
    assert isinstance(self.ask({'endpoint': 'reset', 'session_ids': self.sessions}), str)
    assert isinstance(self.ask({'endpoint': 'reset', 'session_ids': None}), str)


class RoboLab(IsaacLabArena):
  """Ids that say episode and environment, kept through a reset by list."""

  def start_episode(self, port):
    self.sessions = [f'robolab-episode-0-env-{i}' for i in range(self.environments)]

  def end_episode(self):
    self.ask({'endpoint': 'reset', 'session_ids': self.sessions})


class RoboLabFlags(RoboLab):
  """Numbers of environments, and `reset: true` with the first observation of an episode."""

  def start_episode(self, port):
    self.is_first = True

  def act(self, view, prompt):
    left, right, wrist, joints, gripper = view
    chunks = []
    for number in range(self.environments):
      reply = self.infer(
        {
          'observation/exterior_image_0_left': left + np.uint8(number),
          'observation/exterior_image_1_left': right,
          'observation/wrist_image_left': wrist,
          'observation/joint_position': joints,
          'observation/gripper_position': gripper,
          'prompt': prompt,
          'env_id': number,
          'reset': self.is_first,
          'endpoint': 'infer',
        }
      )
      chunks.append(reply['actions'])
    self.is_first = False
    return np.stack(chunks)

  def end_episode(self):
    pass


ALL = (
  OpenPi,
  RoboArena,
  DreamZeroTest,
  DreamZeroSimulation,
  IsaacLabArena,
  RoboLab,
  RoboLabFlags,
)
