"""The examples of robots that a server drives."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from launch.robots import lerobot
from tests.serving import engines
from wam_jax.client import policy as policy_lib

NUMBERS = {'observation/proprio': ['x.pos', 'y.pos', 'a', 'b']}
NAMES = ['x.pos', 'y.pos', 'gripper.pos']


@contextlib.contextmanager
def connected():
  with engines.serving(engines.disc()) as server:
    policy = policy_lib.RemotePolicy(f'ws://127.0.0.1:{server.port}')
    yield policy
    policy.close()


class Robot:
  """As lerobot's: numbers and images by name.

  Attributes:
    sent: the actions that it was given.
  """

  def __init__(self):
    self.sent = []

  def get_observation(self):
    seen = engines.observe(len(self.sent))
    numbers = dict(zip(NUMBERS['observation/proprio'], map(float, seen['proprio'])))
    return {**numbers, 'top': seen['top'], 'wrist': seen['wrist']}

  def send_action(self, action):
    self.sent.append(action)


def test_a_lerobot_robot_does_what_the_policy_says():
  robot = Robot()
  with connected() as policy:
    lerobot.check(policy.description, NUMBERS, ['wrist', 'top'], NAMES)
    lerobot.drive(robot, policy, NUMBERS, NAMES, 'go', seconds=0.35)
    # The first chunk is that of the first observation alone.
    first = policy.infer(engines.observe(0, reset=True))['actions']
  assert 3 <= len(robot.sent) <= 5  # At 10 Hz.
  assert all(list(action) == NAMES for action in robot.sent)
  np.testing.assert_allclose(list(robot.sent[0].values()), first[0], rtol=1e-6)


def test_what_does_not_fit_is_told_before_it_moves():
  with connected() as policy:
    described = policy.description
  with pytest.raises(
    ValueError, match="--map gives {}; the policy wants {'observation/proprio': 4}"
  ):
    lerobot.check(described, {}, ['top', 'wrist'], NAMES)
  with pytest.raises(ValueError, match=r"--cameras gives \['top'\]; the policy wants"):
    lerobot.check(described, NUMBERS, ['top'], NAMES)
  with pytest.raises(ValueError, match="are not as many as .'action.0.'"):
    lerobot.check(described, NUMBERS, ['top', 'wrist'], NAMES[:2])
