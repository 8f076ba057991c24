"""The simulated tabletop, driven by a policy server as a robot would be.

python -m wam_jax.serve --workdir=DIR
python launch/robots/tabletop.py --uri=ws://127.0.0.1:8000 --episodes=20

The worlds and the actions are those of `python -m wam_jax.evaluate --workdir=DIR --batch=1`, bit
for bit. Needs the extra `sim` and the client, no JAX.
"""

from __future__ import annotations

import argparse
import time

from wam_jax.client import broker as broker_lib
from wam_jax.client import committed
from wam_jax.client import policy as policy_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import intervals


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--uri', default='ws://127.0.0.1:8000', help='where the server is')
  parser.add_argument('--robot', default='', help="one of the tabletop's; the server's by default")
  parser.add_argument('--tasks', default='reach', help='of the world, comma-separated')
  parser.add_argument('--episodes', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0, help='of the first scene and its noise')
  parser.add_argument('--ahead', action='store_true', help='ask while a chunk is executed')
  parser.add_argument('--real_time', action='store_true', help='act at the rate of the robot')
  given = parser.parse_args()

  with policy_lib.RemotePolicy(given.uri, robot=given.robot) as policy:
    world = worlds.make(policy.robot, given.tasks.split(','))
    # The world waits for both of them, but the second lets it wait for the first chunk alone.
    broker = committed.make_broker(policy) if given.ahead else broker_lib.ChunkBroker(policy)
    successes = 0
    for number in range(given.episodes):
      period_s = 1 / world.control_hz if given.real_time else 0.0
      successes += run_episode(world, broker, given.seed + number, period_s)
      print(f'{successes} of {number + 1} succeeded', flush=True)
    low, high = intervals.compute_wilson(successes, given.episodes)
    print(f'{policy.robot}: {successes}/{given.episodes}, 95 % interval [{low:.0%}, {high:.0%}]')
    print(f'the last answer took {broker.reply["server_timing"]["age_ms"]:.1f} ms in the server')


def run_episode(world: worlds.Env, broker, seed: int, period_s: float = 0.0) -> bool:
  """Whether the episode of `seed` reached its goal; a control step takes `period_s` at least."""
  observation = world.reset(seed)
  broker.reset(seed)
  for _ in range(world.max_steps):
    next_s = time.monotonic() + period_s
    action = broker.act({**observation, 'prompt': world.instruction})
    observation = world.step(action)
    time.sleep(max(0.0, next_s - time.monotonic()))
    if world.success:
      break
  broker.end(success=bool(world.success))
  return bool(world.success)


if __name__ == '__main__':
  main()
