"""Closed-loop episodes in which the world moves on while the policy thinks, in simulated time.

Owns when a chunk is asked for, when it is there, and what the robot does meanwhile; how chunks
follow each other is `client.plan`, as on a real robot. The robots of a batch are asked for at the
same control steps.

  wait       the robot stands still until its chunk is there, and then executes it
  naive      the next chunk is asked for while this one is executed, and takes over when it is
             there: its first steps, which are past by then, are left out
  blend      the same, and over the steps that both have, one goes into the other
  lookahead  whole chunks, the next of which is asked for before this one is over, for the time when
             it is: of the frames between, the policy takes those that it has imagined
  rtc        as naive, and the policy is told which actions will be executed until then (real-time
             chunking by a prefix: weights trained for it)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from wam_jax.client import plan as plan_lib
from wam_jax.data import record as record_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop

When = Literal['wait', 'naive', 'blend', 'lookahead', 'rtc']


class Agent(Protocol):
  """What is asked for chunks at any control step; `control.agent.ModelAgent`.

  Attributes:
    frames_per_call: frames that a call takes, the newest of which is of its control step.
    overlap: the most steps that `act_on` takes as decided.
  """

  frames_per_call: int
  overlap: int

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None: ...

  def act(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, Any]:
    """(actions [B, steps, action dim] from now on, imagined frames)."""
    ...

  def act_on(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray, prefixes: Sequence[np.ndarray]
  ) -> tuple[np.ndarray, Any]:
    """The same after actions [d, action dim] of each robot that are decided already, which come
    first in what is returned.
    """
    ...

  def act_ahead(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, Any]:
    """The same for the end of the chunk under way: of the frames that a call takes then, the first
    are given, and the state as it will be.
    """
    ...

  def amend(self, frames_BRIJ3: np.ndarray) -> None:
    """All frames of the chunk that `act_ahead` was told a part of are there."""
    ...


@dataclasses.dataclass(frozen=True)
class Timing:
  """How a robot goes on while it waits for its next chunk.

  Attributes:
    when: one of `When`.
    delay: control steps between what a chunk is planned from and when it is there.
    execute: steps after which the next chunk takes over.
  """

  when: When
  delay: int
  execute: int

  def __post_init__(self):
    if self.delay < 0:
      raise ValueError(f'delay={self.delay} must be 0 control steps or more.')
    # Who waits asks when all is done.
    least = 1 if self.when == 'wait' else max(1, self.delay)
    if self.execute < least:
      raise ValueError(
        f'execute={self.execute} control steps must be at least {least}: with a delay of '
        f'{self.delay} the next chunk is not there before.'
      )


@dataclasses.dataclass(frozen=True)
class Choice:
  """What of a `Timing` is given; None for what suits the rest."""

  when: When | None = None
  delay: int | None = None
  execute: int | None = None

  @property
  def is_given(self) -> bool:
    return (self.when, self.delay, self.execute) != (None, None, None)

  def complete(self, record: record_lib.Embodiment, overlap: int = 0) -> Timing:
    """The timing for a robot: who waits or looks ahead executes whole chunks, the others half of
    each or, where the delay is longer, as much as that.

    Args:
      overlap: that of the agent, the most steps that it takes as decided.
    Raises:
      ValueError: a chunk has not as many steps, or must be executed whole; the agent knows no such
        prefix.
    """
    S = record.steps_per_chunk
    when = self.when or 'wait'
    delay = self.delay or 0
    is_whole = when in ('wait', 'lookahead')
    execute = self.execute or (S if is_whole else max(1, S // 2, delay))
    if max(execute, 0 if when == 'wait' else delay) > S:
      raise ValueError(
        f'execute={execute} and delay={delay} control steps must be at most the {S} of a chunk of '
        f'{record.name!r}.'
      )
    if when == 'lookahead' and execute < S:
      raise ValueError(
        f'execute={execute}: what is imagined ends with a chunk; to look ahead execute all {S} '
        'steps.'
      )
    if when == 'rtc' and not max(1, delay) <= overlap:
      raise ValueError(
        f'when=rtc with a delay of {delay} control steps needs weights that were trained for a '
        f'prefix of as many, by config.model.action_overlap; those of {record.name!r} have '
        f'{overlap}. Take another way of waiting, or train with it (configs/tiny_rtc.py).'
      )
    return Timing(when, delay, execute)


NONE = Choice()


def check_episodes(delay: int, env: worlds.Env, seeds: Sequence[int]) -> None:
  """Raises ValueError where an episode is over before its first chunk is there."""
  if not delay:
    return
  steps = []
  for seed in seeds:
    env.reset(seed)
    steps.append(env.max_steps)
  if delay >= min(steps):
    raise ValueError(
      f'A delay of {delay} control steps is not shorter than an episode, which is over after '
      f'{min(steps)}, before its first chunk would be there; take {min(steps) - 1} at most.'
    )


def play(
  agent: Agent,
  rollouts: Sequence[closed_loop.Rollout],
  *,
  record: record_lib.Embodiment,
  timing: Timing,
) -> None:
  """Plays episodes that were just started to their ends."""
  Course(agent, rollouts, record, timing).run()


class Acted(NamedTuple):
  """What a batch did at a control step.

  Attributes:
    action_BU: the actions.
    is_active_B: whose episode was not over.
    is_held: whether the robots had nothing to do.
  """

  action_BU: np.ndarray
  is_active_B: np.ndarray
  is_held: bool


class Pending(NamedTuple):
  """A chunk that is not there yet: [S, B, U], and [B, R, I, J, 3], None of agents that imagine
  nothing.
  """

  chunk_SBU: np.ndarray
  imagined_BRIJ3: np.ndarray | None


class Course:
  """A batch of episodes under way.

  Attributes:
    acted: what was done at each control step.
    held: control steps in which the robots had nothing to do, after those before the first chunk.
    begun: control steps at which a chunk began or took over.
  """

  def __init__(
    self,
    agent: Agent,
    rollouts: Sequence[closed_loop.Rollout],
    record: record_lib.Embodiment,
    timing: Timing,
  ):
    self._agent = agent
    self._rollouts = rollouts
    self._timing = timing
    self._record = record
    self._plan = plan_lib.Plan()
    self._still = baselines.HoldAgent(record)
    self._step = 0
    self._asked_at = 0
    self._asks_at = 0
    # Steps of standing still since the chunk was asked for.
    self._stood = 0
    self._pending: Pending | None = None
    # What was imagined for each camera frame, of robots that are recorded.
    self._imagined: list[dict[int, np.ndarray]] = [{} for _ in rollouts]
    # What every robot has seen at each control step.
    self._seen_TBIJ3: list[np.ndarray] = []
    self.acted: list[Acted] = []
    self.held = 0
    self.begun: list[int] = []

  def run(self) -> None:
    """Plays all episodes to their ends."""
    instructions = [rollout.episode.instruction for rollout in self._rollouts]
    self._look()
    self._agent.reset(instructions, self._seen_TBIJ3[0], self._rollouts[0].episode.seed)
    self._still.reset(instructions, self._seen_TBIJ3[0], 0)
    while not all(rollout.is_over for rollout in self._rollouts):
      self._think()
      is_held = self._step not in self._plan
      action_BU = self._choose()
      is_active_B = np.asarray([not rollout.is_over for rollout in self._rollouts])
      self.acted.append(Acted(action_BU, is_active_B, is_held))
      for rollout, action_U in zip(self._rollouts, action_BU):
        # Those that are over go on being shown, so that the batch keeps its size.
        if not rollout.is_over:
          rollout.step(action_U, looks=True)
      self._step += 1
      self._look()
    for rollout, imagined in zip(self._rollouts, self._imagined):
      rollout.keep_imagined(imagined)

  def _look(self) -> None:
    self._seen_TBIJ3.append(np.stack([rollout.frame for rollout in self._rollouts]))

  def _think(self) -> None:
    """Asks for a chunk where it is time, and goes over to it where it is there."""
    self._adopt()
    if self._pending is None and self._step >= self._asks_at:
      self._ask()
      self._adopt()

  def _ask(self) -> None:
    proprio_BX = np.stack([rollout.proprio_X for rollout in self._rollouts])
    frames_BRIJ3 = self._window(self._step)
    # Computed at once, and there when its time has come.
    if self._timing.when == 'lookahead' and self.begun:
      action_BSU, imagined_BRIJ3 = self._look_ahead()
    elif self._timing.when == 'rtc':
      decided = self._list_decided()
      action_BSU, imagined_BRIJ3 = self._agent.act_on(frames_BRIJ3, proprio_BX, decided)
    else:
      action_BSU, imagined_BRIJ3 = self._agent.act(frames_BRIJ3, proprio_BX)
    self._pending = Pending(action_BSU.swapaxes(0, 1), imagined_BRIJ3)
    self._asked_at = self._step
    self._stood = 0

  def _look_ahead(self) -> tuple[np.ndarray, Any]:
    """A chunk for the end of the one under way."""
    proprio_BX = [
      rollout.foretell(decided_DU)
      for rollout, decided_DU in zip(self._rollouts, self._list_decided())
    ]
    steps = self._list_steps(self._step + self._timing.delay)
    seen_BRIJ3 = [self._seen_TBIJ3[step] for step in steps if step <= self._step]
    return self._agent.act_ahead(np.stack(seen_BRIJ3, axis=1), np.stack(proprio_BX))

  def _list_decided(self) -> list[np.ndarray]:
    """Actions [d, U] of each robot that are executed before a chunk asked for now is there; none
    where the robots stand still.
    """
    decided = self._plan.list_next(self._step, self._timing.delay)
    if not decided:
      return [np.zeros((0, self._record.action_dim), np.float32)] * len(self._rollouts)
    return list(np.stack(decided, axis=1))

  def _window(self, newest: int) -> np.ndarray:
    """[B, R, I, J, 3] that a call takes whose newest frame is of this control step."""
    return np.stack([self._seen_TBIJ3[step] for step in self._list_steps(newest)], axis=1)

  def _list_steps(self, newest: int) -> list[int]:
    """Those of its frames, at the spacing of training; before the episode all was as at its
    start.
    """
    back = np.arange(self._agent.frames_per_call)[::-1]
    return np.maximum(newest - self._record.stride * back, 0).tolist()

  def _adopt(self) -> None:
    timing = self._timing
    if self._pending is None or self._step < self._asked_at + timing.delay:
      return
    (chunk_SBU, imagined_BRIJ3), self._pending = self._pending, None
    ask_before = 0
    if timing.when in ('wait', 'lookahead'):
      start = self._step
      chunk_SBU = chunk_SBU[: timing.execute]
      if timing.when == 'lookahead':
        self._agent.amend(self._window(self._step))
        ask_before = timing.delay
    else:
      # A chunk counts the steps that were acted in: while the robot stands, it loses none.
      start = self._asked_at + self._stood
    self._plan.adopt(chunk_SBU, start=start, now=self._step, blends=timing.when == 'blend')
    self._asks_at = start + timing.execute - ask_before
    self.begun.append(self._step)
    for rollout in self._rollouts:
      rollout.begin_chunk()
    self._note_imagined(start, imagined_BRIJ3)

  def _note_imagined(self, start: int, imagined_BRIJ3: np.ndarray | None) -> None:
    """Frames of a chunk whose first action is of the control step `start`."""
    if imagined_BRIJ3 is None:
      return
    for rollout, frames, imagined_RIJ3 in zip(self._rollouts, self._imagined, imagined_BRIJ3):
      if rollout.is_recorded:
        first = round(start / self._record.stride) + 1
        frames.update(enumerate(imagined_RIJ3, first))

  def _choose(self) -> np.ndarray:
    if self._step in self._plan:
      return self._plan.take(self._step)
    self._stood += 1
    self.held += bool(self.begun)
    proprio_BX = np.stack([rollout.proprio_X for rollout in self._rollouts])
    return self._still.act(np.zeros(0), proprio_BX)[0][:, 0]


def collect_jumps(courses: Sequence[Course]) -> tuple[list[float], list[float]]:
  """Distances between an action and the one before it, of robots that both are of: where another
  chunk took over, and inside of chunks.
  """
  at_joints, inside = [], []
  for course in courses:
    joints = set(course.begun)
    pairs = zip(course.acted, course.acted[1:])
    for step, (before, after) in enumerate(pairs, 1):
      if before.is_held or after.is_held:
        continue
      distances_B = np.linalg.norm(after.action_BU - before.action_BU, axis=-1)
      (at_joints if step in joints else inside).extend(distances_B[after.is_active_B].tolist())
  return at_joints, inside
