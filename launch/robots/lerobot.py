"""A LeRobot `Robot`, driven by a policy server; needs `lerobot` and the client on its computer.

python launch/robots/lerobot.py --uri=ws://SERVER:8000 --robot_type=so101_follower \
    --robot_id=black --robot_port=/dev/ttyACM0 --prompt='put the cube in the box' \
    --cameras='front:0,wrist:2' --map='observation/state=shoulder_pan.pos,shoulder_lift.pos'

Each state array of the policy is told by --map which numbers of the robot it is made of, in order;
images by the names of --cameras. What the policy wants, its metadata say, and a mistake here is
told before the robot moves. Actions go to the motors of --action, in the policy's order.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.client import committed
from wam_jax.client import policy as policy_lib


def main() -> None:
  given = read_arguments()
  numbers = {key: text.split(',') for key, text in (one.split('=', 1) for one in given.map)}
  cameras = dict(text.split(':') for text in given.cameras.split(',') if text)
  names = (
    given.action.split(',') if given.action else [n for each in numbers.values() for n in each]
  )
  with policy_lib.RemotePolicy(given.uri, reconnect='keep') as policy:
    check(policy.description, numbers, list(cameras), names)
    robot = make_robot(given, cameras)
    robot.connect()
    try:
      drive(robot, policy, numbers, names, given.prompt, given.seconds)
    finally:
      robot.disconnect()


def read_arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--uri', default='ws://127.0.0.1:8000', help='where the server is')
  parser.add_argument('--robot_type', required=True, help='as lerobot calls it')
  parser.add_argument('--robot_id', help='whose calibration is used')
  parser.add_argument('--robot_port', help='of its motors')
  parser.add_argument('--prompt', required=True, help='what it shall do')
  parser.add_argument('--cameras', default='', help='NAME:INDEX,...; NAME is the key of the image')
  parser.add_argument('--map', action='append', default=[], help='KEY=NUMBER,... of each array')
  parser.add_argument(
    '--action', default='', help='numbers of an action; those of --map by default'
  )
  parser.add_argument('--seconds', type=float, default=30.0)
  return parser.parse_args()


def check(
  description: Mapping[str, Any],
  numbers: Mapping[str, Sequence[str]],
  cameras: Sequence[str],
  names: Sequence[str],
) -> None:
  """Raises `ValueError` where the robot does not give or take what the policy wants."""
  widths = {key: len(each) for key, each in numbers.items()}
  wanted = {key.removeprefix('observation/') for key in description['images']}
  if widths != description['state']:
    raise ValueError(f'--map gives {widths}; the policy wants {description["state"]}.')
  if set(cameras) != wanted:
    raise ValueError(f'--cameras gives {sorted(cameras)}; the policy wants {sorted(wanted)}.')
  if len(names) != len(description['action_names']):
    raise ValueError(f'{list(names)} are not as many as {description["action_names"]}: --action.')


def make_robot(given: argparse.Namespace, cameras: Mapping[str, str]) -> Any:
  """The robot of the arguments."""
  from lerobot.cameras.opencv.configuration_opencv import OpenCVCameraConfig
  from lerobot.robots import make_robot_from_config
  from lerobot.robots import RobotConfig

  config = RobotConfig.get_choice_class(given.robot_type)
  opened = {name: OpenCVCameraConfig(index_or_path=int(i)) for name, i in cameras.items()}
  return make_robot_from_config(config(id=given.robot_id, port=given.robot_port, cameras=opened))


def drive(
  robot: Any,
  policy: policy_lib.RemotePolicy,
  numbers: Mapping[str, Sequence[str]],
  names: Sequence[str],
  prompt: str,
  seconds: float,
) -> None:
  """Executes what the policy says, at its rate."""
  broker = committed.make_broker(policy)
  period_s = 1 / policy.description['control_hz']
  images = [key.removeprefix('observation/') for key in policy.description['images']]
  start_s = next_s = time.monotonic()
  while time.monotonic() < start_s + seconds:
    seen = robot.get_observation()
    observation = {key: np.float32([seen[one] for one in each]) for key, each in numbers.items()}
    observation.update({name: np.asarray(seen[name]) for name in images})
    action = broker.act({**observation, 'prompt': prompt})
    robot.send_action({name: float(value) for name, value in zip(names, action)})
    next_s += period_s
    time.sleep(max(0.0, next_s - time.monotonic()))
  broker.close()


if __name__ == '__main__':
  main()
