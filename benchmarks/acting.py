"""Policies that act on the tabletop, for benchmarks that count successes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import closed_loop


def find_robot(metadata: Mapping[str, Any], workdir: str) -> robot_lib.Robot:
  """The first robot of the tabletop that a checkpoint with this metadata acts for.

  Raises:
    ValueError: there is none; names `workdir`.
  """
  robots = robot_lib.from_metadata(metadata)
  acting = [r for name, r in robots.items() if name.startswith(worlds.TABLETOP) and r.can_act]
  if not acting:
    raise ValueError(f'--workdir={workdir} knows no robot of the tabletop, but {sorted(robots)}.')
  return acting[0]


def check_tasks(robot: robot_lib.Robot, evaluation: cfg.EvalConfig) -> None:
  """Says which tasks there are, where there are none of these, before anything is compiled.

  Raises:
    ValueError: the world of the robot has no such task.
  """
  closed_loop.make_env(robot.record.name, evaluation)


def play(
  agent: agent_lib.Agent, robot: robot_lib.Robot, evaluation: cfg.EvalConfig, seeds: range
) -> dict[str, Any]:
  """A row of `closed_loop.summarize` over all tasks, `evaluation.batch` episodes side by side."""
  name = robot.record.name
  episodes = closed_loop.run_episodes(
    closed_loop.in_turn(agent),
    robot,
    functools.partial(closed_loop.make_env, name, evaluation),
    seeds=seeds,
    batch=min(evaluation.batch, len(seeds)),
  )
  return closed_loop.summarize(name, episodes)[-1]
