"""What nobody should send: messages and frames that are wrong in many ways, drawn by a seed."""

from __future__ import annotations

import contextlib
import socket as socket_lib
import struct

import numpy as np
import websockets
from websockets.sync import client as ws_client

from wam_jax.client import wire

_HANDSHAKE = (
  b'GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
  b'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n'
)


def make_good() -> bytes:
  """A small observation of DROID, which is spoilt."""
  image = np.zeros((2, 2, 3), np.uint8)
  keys = ('exterior_image_0_left', 'exterior_image_1_left', 'wrist_image_left')
  images = {f'observation/{key}': image for key in keys}
  state = {'joint_position': np.zeros(7, np.float32), 'gripper_position': np.zeros(1, np.float32)}
  return wire.pack({**images, **state, 'prompt': 'go', 'session_id': 'a', 'endpoint': 'infer'})


def make_message(rng: np.random.Generator, good: bytes) -> bytes:
  """Bytes at random, or `good` with some changed, left out or repeated."""
  kind = rng.integers(4)
  if kind == 0:
    return rng.bytes(rng.integers(0, 200))
  spoilt = bytearray(good)
  for _ in range(rng.integers(1, 6)):
    at = rng.integers(len(spoilt))
    if kind == 1:
      spoilt[at] = rng.integers(256)
    elif kind == 2:
      del spoilt[at : at + rng.integers(1, 50)]
    else:
      spoilt[at:at] = spoilt[at : at + rng.integers(1, 20)]
    if not spoilt:
      break
  return bytes(spoilt)


def send_messages(port: int, count: int, seed: int, each: int = 90) -> list[str]:
  """`count` wrong messages, `each` a connection; what was answered in words."""
  rng = np.random.default_rng(seed)
  good = make_good()
  texts = []
  sent = 0
  while sent < count:
    uri = f'ws://127.0.0.1:{port}'
    with ws_client.connect(uri, compression=None) as client:
      client.recv()
      with contextlib.suppress(websockets.ConnectionClosed):
        for _ in range(min(each, count - sent)):
          sent += 1
          client.send(make_message(rng, good))
          reply = client.recv(timeout=20)
          if isinstance(reply, str):
            texts.append(reply)
  return texts


def send_frames(port: int, count: int, seed: int) -> None:
  """Opens `count` connections by hand and breaks the framing, or the handshake, of each."""
  rng = np.random.default_rng(seed)
  for number in range(count):
    raw = socket_lib.create_connection(('127.0.0.1', port), timeout=10)
    with raw, contextlib.suppress(OSError):
      if number % 3:
        raw.sendall(_HANDSHAKE)
        raw.recv(4096)
        raw.sendall(rng.bytes(rng.integers(1, 64)))
      else:
        raw.sendall(rng.bytes(rng.integers(1, 200)))
      if number % 2:
        # A reset in place of an end.
        linger = struct.pack('ii', 1, 0)
        raw.setsockopt(socket_lib.SOL_SOCKET, socket_lib.SO_LINGER, linger)
