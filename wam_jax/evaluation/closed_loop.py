"""Closed-loop episodes in a simulated world, many side by side, and what they show.

Works with any `envs.worlds.Env`, and makes that of a config; owns neither worlds nor agents, and
draws nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import intervals


@dataclasses.dataclass
class Episode:
  """One finished episode; the lists are filled for recorded ones only.

  Attributes:
    seed, task, instruction, success: those of the episode.
    seconds: simulated time until success, or the limit.
    scene: [size, size, 3] uint8 of each control step, the first before any action.
    seen: composite frames as the model gets them, one per `stride` control steps, the first at
      reset.
    imagined: composite frames the model predicted, aligned with `seen[1:]`, those before where it
      predicted none; empty for agents that imagine nothing.
    asked, done: [U] per control step: the action the policy gave, and as the simulator took it,
      clipped.
    begun: control steps at which a chunk began or took over; none of who acts without chunks.
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
  begun: list[int] = dataclasses.field(default_factory=list)


def without_pictures(episode: Episode) -> Episode:
  """What the tables need of an episode; its pictures take a hundred megabytes."""
  return dataclasses.replace(episode, scene=[], seen=[], imagined=[])


@dataclasses.dataclass(frozen=True)
class Recording:
  """Which episodes keep their pictures and actions.

  Attributes:
    episodes: the number of first episodes that do.
    scene_size: rows and columns of their pictures of the scene, pixels.
  """

  episodes: int = 0
  scene_size: int = 384


class Rollout:
  """An episode under way.

  Attributes:
    env: its world, for who sees more of it than a policy does.
    episode: what has come of it so far.
    frame: the newest composite, [I, J, 3].
    frames: the composites that the model sees next.
    proprio_X: the robot's state at the newest.
  """

  def __init__(self, env: worlds.Env, robot: robot_lib.Robot, seed: int, scene_size: int | None):
    """Resets `env`; the pictures of an episode without `scene_size` are not kept."""
    self.env = env
    self._robot = robot
    self._scene_size = scene_size
    observation = env.reset(seed)
    self.frame, self.proprio_X = robot.observe(observation, observation)
    # Before anything has moved, every frame is the current one.
    self.frames = [self.frame] * robot.record.camera_frames_per_chunk
    self.episode = Episode(seed=seed, task=env.task, instruction=env.instruction)
    if self.is_recorded:
      self.episode.scene.append(env.render(scene_size))
      self.episode.seen.append(self.frame)

  @property
  def is_over(self) -> bool:
    return self.episode.success or self._steps >= self.env.max_steps

  @property
  def is_recorded(self) -> bool:
    """Whether its pictures and actions are kept."""
    return self._scene_size is not None

  @property
  def _steps(self) -> int:
    return round(self.env.time_s * self.env.control_hz)

  def play(self, action_SU: np.ndarray, imagined_RIJ3: np.ndarray | None) -> None:
    """Executes one chunk to its end; nothing moves once the episode is over."""
    if self.is_over:
      return
    self.begin_chunk()
    self.frames = []
    for step, action_U in enumerate(action_SU, 1):
      # A chunk is a whole number of strides, so its last step is always seen.
      looks = step % self._robot.record.stride == 0
      self.step(action_U, looks)
      if looks:
        self.frames.append(self.frame)
    if self.is_recorded:
      self.episode.imagined.extend(() if imagined_RIJ3 is None else imagined_RIJ3)

  def begin_chunk(self) -> None:
    """The next action is of another chunk than the last one was."""
    if self.is_recorded and not self.is_over:
      self.episode.begun.append(self._steps)

  def step(self, action_U: np.ndarray, looks: bool) -> None:
    """Executes one action; without `looks`, frame and state stay those of before."""
    observation = self.env.step(action_U)
    if looks:
      self.frame, self.proprio_X = self._robot.observe(observation, observation)
    self._note_success()
    if self.is_recorded:
      self._record_step(action_U)

  def keep_imagined(self, frames: Mapping[int, np.ndarray]) -> None:
    """Keeps what was imagined of the episode, by the number of the camera frame."""
    if not frames:
      return
    newest = self.episode.seen[0]
    for number in range(1, len(self.episode.seen)):
      newest = frames.get(number, newest)
      self.episode.imagined.append(newest)

  def foretell(self, action_DU: np.ndarray) -> np.ndarray:
    """[X] the state after these actions, as commanded.

    Raises:
      ValueError: the world cannot say it.
    """
    if not isinstance(self.env, worlds.Foretelling):
      raise ValueError(
        f'The world of {self._robot.record.name!r} does not say where its robot will be.'
      )
    return record_lib.read(self._robot.record.state, self.env.foretell(action_DU))

  def _note_success(self) -> None:
    # The chunk may go on beyond the limit; a success there comes too late.
    if not self.episode.success and self._steps <= self.env.max_steps:
      self.episode.success = self.env.success
      self.episode.seconds = self.env.time_s

  def _record_step(self, action_U: np.ndarray) -> None:
    self.episode.scene.append(self.env.render(self._scene_size))
    if self._steps % self._robot.record.stride == 0:
      self.episode.seen.append(self.frame)
    self.episode.asked.append(np.asarray(action_U))
    self.episode.done.append(np.clip(action_U, -1, 1))


def make_env(name: str, evaluation: cfg.EvalConfig, split: str = 'train') -> worlds.Env:
  """The world of the robot whose record has this name, as a config has it evaluated.

  Args:
    split: of the tabletop: 'train', 'unseen_task' or 'unseen_look'.
  Raises:
    ValueError: as `worlds.make`.
  """
  if not name.startswith(worlds.TABLETOP):
    return worlds.make(name, evaluation.tasks, time_limit_s=evaluation.time_limit_s)
  return worlds.make(
    name,
    evaluation.tasks,
    split=split,
    max_distractors=evaluation.max_distractors,
    conditions={'light': evaluation.light, 'drift_speed': evaluation.drift_speed},
    time_limit_s=evaluation.time_limit_s,
  )


# Plays a batch of episodes that was just started to their ends.
Play = Callable[[Sequence[Rollout]], None]


def run_episodes(
  play: Play,
  robot: robot_lib.Robot,
  make_env: Callable[[], worlds.Env],
  seeds: Sequence[int],
  batch: int,
  *,
  recording: Recording = Recording(),
  on_progress: Callable[[Sequence[Episode]], None] | None = None,
) -> list[Episode]:
  """An episode for each seed, `batch` at a time.

  Args:
    play: `in_turn(agent)`, `baselines.play_expert`, or `delay.play` with more arguments.
    make_env: makes one of the worlds that stand side by side; each has an episode of every batch.
    on_progress: called after each batch with all episodes that are finished.
  """
  episodes: list[Episode] = []
  # Once for all batches: what draws a world is dear to make.
  envs = [make_env() for _ in range(batch)]
  for start in range(0, len(seeds), batch):
    chosen = list(seeds[start : start + batch])
    # The policy is compiled for one batch size: repeats fill up the last batch and are dropped.
    padded = chosen + [chosen[-1]] * (batch - len(chosen))
    rollouts: list[Rollout] = []
    for number, (env, seed) in enumerate(zip(envs, padded, strict=True), start):
      is_recorded = number < min(recording.episodes, len(seeds))
      scene_size = recording.scene_size if is_recorded else None
      rollouts.append(Rollout(env, robot, seed, scene_size))
    play(rollouts)
    episodes += [rollout.episode for rollout in rollouts[: len(chosen)]]
    if on_progress:
      on_progress(episodes)
  return episodes


def in_turn(agent: agent_lib.Agent) -> Play:
  """The world stands still while the agent thinks, and the agent while a chunk is executed."""
  return functools.partial(_play_in_turn, agent)


def _play_in_turn(agent: agent_lib.Agent, rollouts: Sequence[Rollout]) -> None:
  agent.reset(
    [rollout.episode.instruction for rollout in rollouts],
    np.stack([rollout.frames[-1] for rollout in rollouts]),
    rollouts[0].episode.seed,
  )
  while not all(rollout.is_over for rollout in rollouts):
    # Those that are over go on being shown, so that the batch keeps its size.
    frames_BRIJ3 = np.stack([rollout.frames for rollout in rollouts])
    proprio_BX = np.stack([rollout.proprio_X for rollout in rollouts])
    action_BSU, imagined_BRIJ3 = agent.act(frames_BRIJ3, proprio_BX)
    for i, rollout in enumerate(rollouts):
      imagined_RIJ3 = None if imagined_BRIJ3 is None else imagined_BRIJ3[i]
      rollout.play(action_BSU[i], imagined_RIJ3)


def summarize(robot: str, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
  """A row per task, and one over all tasks if there are several."""
  tasks = sorted({episode.task for episode in episodes})
  rows = []
  for task in tasks:
    group = [episode for episode in episodes if episode.task == task]
    rows.append(_summarize_task(robot, task, group))
  if len(tasks) > 1:
    rows.append(_summarize_task(robot, 'all', episodes))
  return rows


def _summarize_task(robot: str, task: str, episodes: Sequence[Episode]) -> dict[str, Any]:
  successes = sum(episode.success for episode in episodes)
  low, high = intervals.compute_wilson(successes, len(episodes))
  seconds = [episode.seconds for episode in episodes if episode.success]
  return {
    'robot': robot,
    'task': task,
    'successes': successes,
    'episodes': len(episodes),
    'rate': successes / len(episodes),
    'low': low,
    'high': high,
    'mean_seconds': float(np.mean(seconds)) if seconds else None,
  }


def show_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows of `summarize`, under a head."""
  # Widths of the columns here are those of the rows below.
  robots = max(8, 2 + max(len(row['robot']) for row in rows))
  tasks = max(14, 2 + max(len(row['task']) for row in rows))
  head = f'{"robot":<{robots}}{"task":<{tasks}}{"success":>10}{"rate":>8}'
  lines = [f'{head}   95 % interval   seconds to success']
  for row in rows:
    seconds = '-' if row['mean_seconds'] is None else f'{row["mean_seconds"]:.1f}'
    counts = f'{row["successes"]:>5}/{row["episodes"]:<4}{row["rate"]:>8.0%}'
    interval = f'[{row["low"]:.0%}, {row["high"]:.0%}]'
    what = f'{row["robot"]:<{robots}}{row["task"]:<{tasks}}'
    lines.append(f'{what}{counts}   {interval}'.ljust(len(head) + 19) + seconds)
  return '\n'.join(lines)
