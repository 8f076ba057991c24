"""Clients as they are, on DROID: three episodes each, all equal to the first bit for bit, and what
is exact in the bytes.
"""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from tests.serving import transcripts

PROMPT = 'put the marker in the cup'


def draw_views(count=3, size=(180, 320)):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, 3, *size, 3)).astype(np.uint8)
  joints = rng.uniform(-1, 1, (count, 7)).astype(np.float32)
  gripper = rng.uniform(0, 1, (count, 1)).astype(np.float32)
  return [(*images[i], joints[i], gripper[i]) for i in range(count)]


def play(client, port, views, episodes=3):
  """The chunks of each episode."""
  played = []
  for _ in range(episodes):
    client.start_episode(port)
    played.append(np.stack([client.act(view, PROMPT) for view in views]))
    client.end_episode()
  client.close()
  return played


@pytest.mark.parametrize('kind', transcripts.ALL, ids=lambda kind: kind.__name__)
def test_every_episode_of_a_client_equals_its_first(kind):
  engine = engines.HashEngine(engines.DROID)
  options = dict(
    reply_array=kind is transcripts.DreamZeroTest,
    fills_missing_views=kind is transcripts.OpenPi,
  )
  with engines.serving(engine, **options) as server:
    first, second, third = play(kind(server.port), server.port, draw_views())
  assert first.shape[-2:] == (24, 8)
  assert first.dtype == np.float32
  np.testing.assert_array_equal(second, first)
  np.testing.assert_array_equal(third, first)
  # The same picture again means something else: the session remembers.
  assert not np.array_equal(first[0], first[1])
  # One thread alone computes.
  assert engine.threads == {'device'}


def test_cameras_that_are_counted_from_zero_and_from_one_are_the_same():
  """Also with and without `observation/`, and as maps in a map."""
  left, right, wrist, joints, gripper = draw_views(1)[0]
  ways = [
    {f'observation/exterior_image_{i}_left': image for i, image in enumerate((left, right))},
    {f'observation/exterior_image_{i}_left': image for i, image in enumerate((left, right), 1)},
    {f'exterior_image_{i}_left': image for i, image in enumerate((left, right), 1)},
    {'observation': {f'exterior_image_{i}_left': v for i, v in enumerate((left, right), 1)}},
  ]
  rest = {'joint_position': joints, 'observation/gripper_position': gripper, 'prompt': PROMPT}
  with engines.serving(engines.HashEngine(engines.DROID)) as server:
    client = transcripts.Client(server.port)
    got = []
    for number, way in enumerate(ways):
      message = {**way, **rest, 'wrist_image_left': wrist, 'session_id': f'{number}'}
      got.append(client.infer(message)['actions'])
    client.close()
  for one in got[1:]:
    np.testing.assert_array_equal(one, got[0])


def test_the_bytes_of_an_exchange():
  """Written out: what any client in any language meets on the wire."""
  with engines.serving(engines.HashEngine(engines.DROID), reply_array=True) as server:
    socket = transcripts.ws_client.connect(f'ws://127.0.0.1:{server.port}')
    assert socket.recv() == (
      b'\x86\xb0image_resolution\x92\xcc\xb4\xcd\x01\x40'
      b'\xb2needs_wrist_camera\xc3\xb2n_external_cameras\x02\xb3needs_stereo_camera\xc2'
      b'\xb0needs_session_id\xc3\xacaction_space\xaejoint_position'
    )
    socket.send(b'\x81\xa8endpoint\xa5reset')
    assert socket.recv() == 'reset successful'

    image = lambda key: (
      (bytes([0xA0 | 31, *b'']) if len(key) == 31 else b'\xd9' + bytes([len(key)]))
      + key
      + (
        b'\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x0c'
        + bytes(range(12))
        + b'\xc4\x05dtype\xa3|u1\xc4\x05shape\x93\x02\x02\x03'
      )
    )
    vector = lambda key, n: (
      bytes([0xA0 | len(key)])
      + key
      + b'\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4'
      + bytes([4 * n])
      + bytes(4 * n)
      + b'\xc4\x05dtype\xa3<f4\xc4\x05shape\x91'
      + bytes([n])
    )
    socket.send(
      b'\x87'
      + image(b'observation/exterior_image_0_left')
      + image(b'observation/exterior_image_1_left')
      + image(b'observation/wrist_image_left')
      + vector(b'observation/joint_position', 7)
      + vector(b'observation/gripper_position'[:31], 1)
      + b'\xa6prompt\xa2go'
      + b'\xa8endpoint\xa5infer'
    )
    reply = socket.recv()
    socket.close()
  # 24 x 8 float32 are 768 bytes.
  head = b'\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc5\x03\x00'
  assert reply[: len(head)] == head
  assert reply[len(head) + 768 :] == b'\xc4\x05dtype\xa3<f4\xc4\x05shape\x92\x18\x08'
  assert set(msgpack.unpackb(reply)) == {b'__ndarray__', b'data', b'dtype', b'shape'}


def test_the_metadata_name_every_number():
  engine = engines.HashEngine(engines.DISC, engines.DROID)
  with engines.serving(engine) as server:
    told = transcripts.Client(server.port, '/metadata').config
    asked = transcripts.Client(server.port).infer({'endpoint': 'metadata'})
  assert told == asked
  assert set(transcripts.CONFIG) < set(told)
  droid = told['robots']['droid']
  assert droid['images']['observation/wrist_image_left'] == [176, 320]
  assert droid['state'] == {
    'observation/joint_position': 7,
    'observation/gripper_position': 1,
  }
  assert droid['action_names'][0] == 'action_dict/joint_position[0]'
  assert droid['action_units'] == ['rad'] * 7 + ['normalized']
  assert (droid['steps_per_chunk'], droid['frames_per_chunk'], droid['control_hz']) == (24, 8, 15)
