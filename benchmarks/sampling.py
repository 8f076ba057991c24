"""Success and latency of ways to sample one checkpoint on the tabletop, in one process.

python -m benchmarks.sampling --workdir=DIR [--ways=NAME,...] [--episodes=200] [--json=FILE]

All ways act in the same scenes with the same noise. Their control steps are timed in turns, for
--robots at once, so that what slows the machine for a while slows all of them; each time is also
given as a ratio of the first way's. Ways that the checkpoint was not trained for are left out, and
said so.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks import acting
from benchmarks import provenance
from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.control import weights

# Keys of `config.sample` by name of a way; all else is the checkpoint's own.
WAYS: Mapping[str, Mapping[str, Any]] = {
  'flash1': dict(mode='flash', steps=1, action_steps=0),
  'pass1_actions2': dict(mode='flash', steps=1, action_steps=2),
  'pass1_actions4': dict(mode='flash', steps=1, action_steps=4),
  'pass1_actions8': dict(mode='flash', steps=1, action_steps=8),
  'act_only1': dict(mode='act_only', action_steps=1),
  'act_only4': dict(mode='act_only', action_steps=4),
  'act_only8': dict(mode='act_only', action_steps=8),
  'joint1': dict(mode='joint', steps=1, action_steps=0),
  'joint4': dict(mode='joint', steps=4, action_steps=0),
  # The video is computed again at each step of the actions: for the weights that see actions.
  'held4': dict(mode='flash', steps=4, action_steps=0, video_final_sigma=1.0, shift=1.0),
  'held8': dict(mode='flash', steps=8, action_steps=0, video_final_sigma=1.0, shift=1.0),
}

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the checkpoint.', required=True)
_WAYS = flags.DEFINE_list('ways', list(WAYS), 'Which of the ways, the first one the baseline.')
_TASKS = flags.DEFINE_list('tasks', None, "Tasks of the tabletop; default: the checkpoint's.")
_EPISODES = flags.DEFINE_integer('episodes', 200, 'Scenes of each way; 0 for latency alone.', 0)
_BATCH = flags.DEFINE_integer('batch', 50, 'Episodes side by side.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 60, 'Steps of each way that are timed; 0 for none.', 0)
_ROBOTS = flags.DEFINE_integer('robots', 1, 'Robots of a timed step.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'The first seed of scenes and noise.', 0)
cli.define_json()


def select(config: cfg.TrainConfig, names: list[str]) -> tuple[dict[str, cfg.TrainConfig], dict]:
  """(a config for each way that the checkpoint can be sampled by, why not of the others)."""
  configs, refused = {}, {}
  for name in names:
    sample = dataclasses.replace(config.sample, evaluate_steps=(), **WAYS[name])
    try:
      configs[name] = dataclasses.replace(config, sample=sample)
    except ValueError as e:
      refused[name] = str(e)
  return configs, refused


def make_policies(
  configs: Mapping[str, cfg.TrainConfig], trained: Any
) -> dict[str, agent_lib.TimedPolicy]:
  """The policy of each way; it compiles when it is first asked, for as many as ask."""
  return {
    name: agent_lib.TimedPolicy(config, trained.params, trained.frozen)
    for name, config in configs.items()
  }


def time_in_turns(
  policies: Mapping[str, agent_lib.TimedPolicy], model: cfg.ModelConfig, robot: Any, rounds: int
) -> dict[str, float]:
  """Median milliseconds of a control step of each way, for `--robots` at once."""
  B = _ROBOTS.value
  record = robot.record
  rng = np.random.default_rng(0)
  size = (B, record.camera_frames_per_chunk, *record.composite, 3)
  frames_BRIJ3 = rng.integers(0, 256, size, dtype=np.uint8)
  for policy in policies.values():
    ids_BP = np.tile(policy.tokenize('touch any red object'), (B, 1))
    task = agent_lib.make_task(model, [robot] * B, ids_BP)
    policy.reset(task, frames_BRIJ3[:, 0], seed=0)
  observation = types.Observation(
    frames_BRIJ3=frames_BRIJ3,
    proprio_BX=np.zeros((B, model.proprio_dim), np.float32),
  )
  # The first steps compile: an anchor's, and one that goes on.
  for number in range(rounds + 2):
    for policy in policies.values():
      policy.step(observation)
      if number == 1:
        policy.latencies_s.clear()
  return {name: 1e3 * statistics.median(policy.latencies_s) for name, policy in policies.items()}


def main(unused_argv: list[str]) -> None:
  names = cli.read_names(_WAYS, WAYS)
  trained = checkpoint.load_for_inference(_WORKDIR.value)
  # Once on the device for all ways.
  params, frozen = weights.place(trained.params, trained.frozen, trained.config.model)
  trained = trained._replace(params=params, frozen=frozen)
  given = dict(episodes=_EPISODES.value, batch=_BATCH.value, tasks=_TASKS.value)
  given = {key: tuple(x) if key == 'tasks' else x for key, x in given.items() if x is not None}
  evaluation = dataclasses.replace(trained.config.evaluation, **given)
  config = dataclasses.replace(trained.config, evaluation=evaluation)
  configs, refused = select(config, names)
  if not configs:
    raise ValueError(
      'The checkpoint can be sampled by none of these:\n' + '\n'.join(refused.values())
    )
  robot = acting.find_robot(trained.metadata, _WORKDIR.value)
  acting.check_tasks(robot, config.evaluation)

  policies = make_policies(configs, trained)
  rounds = _ROUNDS.value
  times = time_in_turns(policies, config.model, robot, rounds) if rounds else {}
  # One compiled policy can act for one number of robots.
  if min(config.evaluation.batch, config.evaluation.episodes) != _ROBOTS.value:
    policies = make_policies(configs, trained)
  seeds = range(_SEED.value, _SEED.value + config.evaluation.episodes)
  baseline = next(iter(configs))
  rows = {}
  for name in configs:
    row = {'sample': dict(WAYS[name])}
    if times:
      row |= {'p50_ms': times[name], 'ratio': times[name] / times[baseline]}
    if _EPISODES.value:
      agent = agent_lib.ModelAgent(policies[name], config.model, robot)
      row |= acting.play(agent, robot, config.evaluation, seeds)
    rows[name] = row
    print(_show(name, row), flush=True)
  for name, why in refused.items():
    print(f'{name}: left out: {why}')
  provenance.write(
    {'workdir': _WORKDIR.value, 'step': trained.step, 'ways': rows, 'left_out': refused}
  )


def _show(name: str, row: Mapping[str, Any]) -> str:
  parts = [f'{name:<16}']
  if 'ratio' in row:
    parts.append(f'{row["p50_ms"]:>8.2f} ms {row["ratio"]:>6.2f}x')
  if 'rate' in row:
    seconds = row['mean_seconds'] or float('nan')
    interval = f'[{row["low"]:.0%}, {row["high"]:.0%}]'
    parts.append(f'{row["successes"]:>5}/{row["episodes"]} {interval} {seconds:.2f} s')
  return '  '.join(parts)


if __name__ == '__main__':
  cli.run(main)
