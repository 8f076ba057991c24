"""How fast the default world is on one core: physics, rendering, and both as an episode runs them.

python -m benchmarks.tabletop [--json=FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
from absl import flags

from benchmarks import provenance
from wam_jax import cli

with cli.needs('sim'):
  from wam_jax.envs import tabletop

cli.define_json()
_SECONDS = flags.DEFINE_float('seconds', 1.0, 'Time given to each measurement.', lower_bound=0.1)


def rate(
  call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
  """Calls of `call` per second, after a tenth of the time as warm-up."""
  # First calls import, allocate and fill caches.
  for duration in (seconds / 10, seconds):
    count = 0
    start = clock()
    while (elapsed := clock() - start) < duration:
      call()
      count += 1
  return count / elapsed


def measure(robot: str, seconds: float) -> dict[str, float]:
  """Rates of one robot pushing among distractors, per second."""
  env = tabletop.TabletopEnv(robot, ('push',))
  env.reset(0)
  rng = np.random.default_rng(0)
  tip = env.robot.forward(env.joints)

  # Alone, without the robot's kinematics and the pictures that `step` makes.
  def step_physics():
    env.world.step(tip, True, 1 / env.control_hz)

  def step():
    env.step(rng.uniform(-1, 1, env.action_dim))

  return {
    'physics': rate(step_physics, seconds),
    'render 32 px': rate(lambda: env.render(32, 'top'), seconds),
    'render 256 px': rate(lambda: env.render(256, 'top'), seconds),
    'scene 384 px': rate(lambda: env.render(384), seconds),
    'step, both views': rate(step, seconds),
  }


def main(unused_argv: list[str]) -> None:
  # A rate is of one core; data is made with a process for each.
  cv2.setNumThreads(1)
  table = {robot: measure(robot, _SECONDS.value) for robot in tabletop.ROBOTS}
  names = list(next(iter(table.values())))
  print(f'{"per second":<12}' + ''.join(f'{name:>18}' for name in names))
  for robot, rates in table.items():
    print(f'{robot:<12}' + ''.join(f'{rates[name]:>18,.0f}' for name in names))
  provenance.write(table)


if __name__ == '__main__':
  cli.run(main)
