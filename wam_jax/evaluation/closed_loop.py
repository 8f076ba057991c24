"""Closed-loop episodes in the tabletop, many side by side, and what they show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from wam_jax.control import agent as agent_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import tabletop


@dataclasses.dataclass
class Episode:
  """One finished episode; the lists are filled for recorded ones only.

  Attributes:
    seed, task, instruction, success: of the episode; seconds: until success, or the limit.
    scene: [size, size, 3] uint8 of each control step, the first before any action.
    seen: composite frames as the model gets them, one per `stride` control steps, the first at
      reset.
    imagined: composite frames the model predicted, aligned with `seen[1:]`; empty for agents that
      imagine nothing.
    asked, done: [U] per control step: the action the policy gave, and as the simulator took it,
      clipped.
  """

  seed: int
  task: str
  instruction: str
  success: bool = False
  seconds: float = 0.0
  scene: list[np.ndarray] = dataclasses.field(default_factory=list)
  seen: list[np.ndarray] = dataclasses.field(default_factory=list)
  imagined: list[np.ndarray] = dataclasses.field(default_factory=list)
  asked: list[np.ndarray] = dataclasses.field(default_factory=list)
  done: list[np.ndarray] = dataclasses.field(default_factory=list)


def run_episodes(
  agent: agent_lib.Agent,
  robot: robot_lib.Robot,
  make_env: Callable[[], tabletop.TabletopEnv],
  seeds: Sequence[int],
  batch: int,
  record_first: int = 0,
  scene_size: int = 192,
  on_progress: Callable[[Sequence[Episode]], None] = lambda episodes: None,
) -> list[Episode]:
  """An episode for each seed, `batch` at a time; the last batch is filled up with repeats that are
  dropped.

  The first `record_first` episodes keep their pictures and actions.
  """
  episodes: list[Episode] = []
  for start in range(0, len(seeds), batch):
    chosen = list(seeds[start : start + batch])
    padded = chosen + [chosen[-1]] * (batch - len(chosen))
    recorded = max(0, min(record_first - start, len(chosen)))
    ran = _run_batch(agent, robot, [make_env() for _ in padded], padded, recorded, scene_size)
    episodes += ran[: len(chosen)]
    on_progress(episodes)
  return episodes


def _run_batch(agent, robot, envs, seeds, recorded, scene_size):
  record, see = robot.record, robot.compose
  observations = [env.reset(seed) for env, seed in zip(envs, seeds)]
  episodes = [Episode(seed, env.task, env.instruction) for env, seed in zip(envs, seeds)]
  history = [[see(o)] * record.camera_frames_per_chunk for o in observations]
  agent.reset([env.instruction for env in envs], np.stack([h[-1] for h in history]), seeds[0])
  for episode, env, frames in zip(episodes[:recorded], envs, history):
    episode.scene.append(env.render(scene_size))
    episode.seen.append(frames[-1])
  limit = max(env.max_steps for env in envs)
  for _ in range(math.ceil(limit / record.steps_per_chunk)):
    proprio = np.stack([o['proprio'] for o in observations])
    action_BSU, imagined = agent.act(np.stack(history), proprio)
    for i, (env, episode) in enumerate(zip(envs, episodes)):
      if i < recorded and imagined is not None and not _over(env, episode):
        episode.imagined.extend(imagined[i])
      observations[i], history[i] = _execute(
        env,
        episode,
        action_BSU[i],
        record,
        see,
        i < recorded,
        scene_size,
        observations[i],
        history[i],
      )
    if all(_over(env, episode) for env, episode in zip(envs, episodes)):
      break
  return episodes


def _execute(env, episode, action_SU, record, see, recorded, scene_size, observation, history):
  """Runs one chunk of actions; (last observation, frames the model sees of it). Nothing moves once
  it is over.
  """
  if _over(env, episode):
    return observation, history
  frames = []
  for step, action in enumerate(action_SU):
    observation = env.step(action)
    if (step + 1) % record.stride == 0:
      frames.append(see(observation))
    if not episode.success and round(env.time_s * env.control_hz) <= env.max_steps:
      episode.success, episode.seconds = env.success, env.time_s
    if recorded:
      episode.scene.append(env.render(scene_size))
      episode.asked.append(np.asarray(action))
      episode.done.append(np.clip(action, -1, 1))
  if recorded:
    episode.seen.extend(frames)
  return observation, frames


def _over(env, episode):
  return episode.success or round(env.time_s * env.control_hz) >= env.max_steps


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
  """95 % confidence interval of a success rate (Wilson score)."""
  if not trials:
    return 0.0, 1.0
  p, n = successes / trials, trials
  middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
