"""Success against delay: what a policy loses when the world goes on while it thinks.

python -m benchmarks.latency --workdir=DIR [--rtc_workdir=DIR] [--delays=0,1,2,4,6] [--speed=0.15]
    [--time_limit_s=4] [--json=FILE]

Simulated time, so the machine does not matter: a chunk that is asked for is there `delay` control
steps later. Every way acts in the same scenes; `evaluation.delay` says what each does meanwhile.
All of them call the policy with `sample.history='window'`, at whatever control step. Weights with
`model.action_overlap` act in all ways; others in all but rtc.

A jump is how far an action is from the one before it, in the units of actions: at the steps where
another chunk takes over, as a multiple of those inside of chunks.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import acting
from benchmarks import provenance
from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import delay as delay_lib

WAYS = typing.get_args(delay_lib.When)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Training run.', required=True)
_RTC_WORKDIR = flags.DEFINE_string(
  'rtc_workdir', None, 'Training run of the weights for rtc; those of --workdir by default.'
)
_WAYS = flags.DEFINE_list('ways', list(WAYS), f'Comma-separated, some of: {", ".join(WAYS)}.')
_DELAYS = flags.DEFINE_list('delays', ['0', '1', '2', '4', '6'], 'Control steps, comma-separated.')
_EPISODES = flags.DEFINE_integer('episodes', 200, 'Scenes of each way and delay.', 1)
_BATCH = flags.DEFINE_integer('batch', 50, 'Episodes side by side.', 1)
_TASKS = flags.DEFINE_list('tasks', ['reach_moving'], 'Tasks of the tabletop.')
_SPEED = flags.DEFINE_float(
  'speed', None, "Of what moves by itself, m/s; the run's by default.", lower_bound=0.0
)
_TIME_LIMIT = flags.DEFINE_float(
  'time_limit_s', None, "Of an episode; the run's by default.", lower_bound=0.0
)
_SEED = flags.DEFINE_integer('seed', 0, 'The first seed of scenes and noise.', 0)
cli.define_json()


@dataclasses.dataclass(frozen=True)
class Subject:
  """A checkpoint that acts for one robot of the tabletop, and where it does."""

  agent: agent_lib.ModelAgent
  robot: robot_lib.Robot
  evaluation: cfg.EvalConfig

  def make_env(self) -> worlds.Env:
    """The world that it acts in."""
    return closed_loop.make_env(self.robot.record.name, self.evaluation)


def load(workdir: str) -> Subject:
  """The newest checkpoint, called with a window of its own each time."""
  trained = checkpoint.load_for_inference(workdir)
  sample = dataclasses.replace(trained.config.sample, history='window')
  config = dataclasses.replace(trained.config, sample=sample)
  robot = acting.find_robot(trained.metadata, workdir)
  policy = agent_lib.TimedPolicy(config, trained.params, trained.frozen)
  agent = agent_lib.ModelAgent(policy, config.model, robot)
  chosen = {'drift_speed': _SPEED.value, 'time_limit_s': _TIME_LIMIT.value}
  evaluation = dataclasses.replace(
    config.evaluation,
    tasks=tuple(_TASKS.value),
    **{key: value for key, value in chosen.items() if value is not None},
  )
  return Subject(agent, robot, evaluation)


def measure(subject: Subject, timing: delay_lib.Timing, seeds: Sequence[int]) -> dict[str, Any]:
  """Success, seconds and jumps of one way with one delay."""
  record = subject.robot.record
  courses: list[delay_lib.Course] = []

  def play(rollouts: Sequence[closed_loop.Rollout]) -> None:
    courses.append(delay_lib.Course(subject.agent, rollouts, record, timing))
    courses[-1].run()

  batch = min(_BATCH.value, len(seeds))
  episodes = closed_loop.run_episodes(play, subject.robot, subject.make_env, seeds, batch)
  row = closed_loop.summarize(record.name, episodes)[-1]
  at_joints, inside = delay_lib.collect_jumps(courses)
  held = sum(course.held for course in courses) / sum(len(course.acted) for course in courses)
  # Robots that wait for all of an episode but its last step act once.
  inside = inside or [np.nan]
  return {
    **row,
    'joint_jump': divide(np.mean(at_joints or [np.nan]), np.mean(inside)),
    'largest_joint_jump': divide(max(at_joints, default=np.nan), max(inside)),
    'held': held,
    'outcomes': [[e.seed, e.success, round(e.seconds, 2)] for e in episodes],
  }


def divide(a: float, b: float) -> float:
  return round(float(a / b), 3)


def read_delays() -> list[int]:
  if not _DELAYS.value or not all(delay.isdigit() for delay in _DELAYS.value):
    raise ValueError(f'--delays={",".join(_DELAYS.value)} must be control steps, as 0,1,2.')
  return [int(delay) for delay in _DELAYS.value]


def main(unused_argv: list[str]) -> None:
  ways = cli.read_names(_WAYS, WAYS)
  delays = read_delays()
  subject = load(_WORKDIR.value)
  with_prefix = load(_RTC_WORKDIR.value) if _RTC_WORKDIR.value else subject
  seeds = range(_SEED.value, _SEED.value + _EPISODES.value)
  for chosen in (subject, with_prefix):
    delay_lib.check_episodes(max(delays), chosen.make_env(), seeds)
  timings: dict[tuple[str, int], delay_lib.Timing] = {}
  refused = {}
  for way, delay in itertools.product(ways, delays):
    chosen = with_prefix if way == 'rtc' else subject
    try:
      choice = delay_lib.Choice(way, delay)
      timings[way, delay] = choice.complete(chosen.robot.record, chosen.agent.overlap)
    except ValueError as e:
      refused[f'{way} {delay}'] = str(e)
  if not timings:
    reasons = '; '.join(f'{what}: {why.rstrip(".")}' for what, why in refused.items())
    raise ValueError(f'None of --ways can act with any of --delays: {reasons}.')
  rows: dict[str, dict[int, Any]] = {way: {} for way in ways}
  for (way, delay), timing in timings.items():
    rows[way][delay] = measure(with_prefix if way == 'rtc' else subject, timing, seeds)
    print(_show(way, delay, rows[way][delay]), flush=True)
  for what, why in refused.items():
    print(f'{what}: left out: {why}')
  world = {
    'drift_speed': subject.evaluation.drift_speed,
    'time_limit_s': subject.evaluation.time_limit_s,
  }
  provenance.write({'workdir': _WORKDIR.value, **world, 'ways': rows, 'left_out': refused})


def _show(way: str, delay: int, row: dict[str, Any]) -> str:
  interval = f'[{row["low"]:.0%}, {row["high"]:.0%}]'
  seconds = row['mean_seconds'] or float('nan')
  return (
    f'{way:<10} delay {delay}: {row["successes"]:>4}/{row["episodes"]} {interval:<13}'
    f'{seconds:5.2f} s  jump at joints x{row["joint_jump"]:.2f}, largest '
    f'x{row["largest_joint_jump"]:.2f}  held {row["held"]:.0%}'
  )


if __name__ == '__main__':
  cli.run(main)
