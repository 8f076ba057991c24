"""Raw observations in, raw actions out: the policy between what a robot senses and what it does.

Owns how a checkpoint acts for robots: what an evaluation runs and a server serves. Images, prompts
and units are those of training, by `data.robot`; the compiled step is `control.programs`; agents
that are not the model are `evaluation.baselines`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import checks
from wam_jax.control import loaded
from wam_jax.control import lookahead as lookahead_lib
from wam_jax.data import images
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib


class Agent(Protocol):
  """Acts for a batch of robots of one kind, one chunk at a time."""

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    """Starts an episode of each robot.

    Args:
      instructions: one of each robot, as its user words it.
      composite_BIJ3: uint8, what each robot sees now, composed by `Robot.observe`.
      seed: seed of the agent's own noise.
    """

  def act(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """(actions [B, steps per chunk, action dim] as the robot takes them, imagined frames
    [B, r, I, J, 3] uint8 or None where nothing is imagined).

    Args:
      frames_BRIJ3: uint8 composites seen since the last call, as `types.Observation` has them.
      proprio_BX: float32 states now, as `Robot.observe` reads them.
    """
    ...


class TimedPolicy:
  """The compiled policy with a checkpoint's weights on the device; its results come to the host and
  are timed.

  Attributes:
    tokenize: the map from a text to prompt ids [P].
    tell: as `LoadedPolicy.tell`.
    latencies_s: wall time of each step but those that compile a program, and those of `warm`.
  """

  def __init__(self, config: cfg.TrainConfig, params: Any, frozen: Any, *, recompute: bool = False):
    """`recompute` is that of `Policy`."""
    self._policy = loaded.LoadedPolicy(config, params, frozen, recompute=recompute)
    self.tokenize = self._policy.tokenize
    self.tell = self._policy.tell
    self.latencies_s: list[float] = []
    self._state: Any = None

  @property
  def weight_bytes(self) -> int:
    """As `LoadedPolicy.weight_bytes`."""
    return self._policy.weight_bytes

  @property
  def traces(self) -> int:
    """How often the control step was traced."""
    return self._policy.programs.traces

  @property
  def frames_per_call(self) -> int:
    """Frames that an observation has."""
    return self._policy.programs.frames_per_call

  def warm(self, task: types.Task, observation: types.Observation) -> None:
    """Compiles what an episode of such arrays runs, and runs it; `reset` is next."""
    self.reset(task, observation.frames_BRIJ3[:, 0], seed=0)
    # The first anchors, the second goes on.
    for _ in range(2):
      self.step(observation)
    self.latencies_s.clear()

  def warm_ahead(self, observation: types.Observation) -> None:
    """What `warm` does for calls ahead of time, after it."""
    temporal = self._policy.programs.cfg.tokenizer.temporal
    # With a latent frame that was seen in part, if there can be one.
    seen = self.frames_per_call - temporal + (temporal > 1)
    frames_BRIJ3 = np.asarray(observation.frames_BRIJ3)
    early = types.Observation(
      frames_BRIJ3=frames_BRIJ3[:, :seen], proprio_BX=observation.proprio_BX
    )
    self.step_ahead(early)
    self.amend(frames_BRIJ3)
    self.latencies_s.clear()

  def reset(self, task: types.Task, frame_BIJ3: types.Array, seed: int) -> None:
    """Starts an episode; arguments as `LoadedPolicy.start` takes them."""
    self._state = self._policy.start(task, frame_BIJ3, seed)
    # Latents and frames of the chunk under way.
    self._imagined: tuple[jax.Array, np.ndarray] | None = None

  def step(
    self, observation: types.Observation, prefix: types.Prefix | None = None
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """(normalized actions [B, A, U], imagined frames [B, r, I, J, 3] uint8, or None where nothing
    is imagined).

    Raises:
      ValueError: no episode is under way; or what is wrong, and the episode is as it was.
      loaded.StepFailed: the device failed, and the episode is over.
    """
    return self._time(lambda: self._policy.step(self._state, observation, prefix), observation)

  def step_ahead(self, observation: types.Observation) -> tuple[np.ndarray, np.ndarray | None]:
    """The same, ahead of time: for the end of the chunk under way.

    Args:
      observation: the first of the frames that `step` takes then, and the state as it will be.
    Raises:
      ValueError: nothing is imagined that could stand for the others.
    """
    if self._imagined is None:
      raise ValueError(
        'To look ahead the policy must imagine what it has not seen yet: not with '
        "sample.mode='act_only', and not before its first chunk."
      )
    latents_BFHWC, imagined_BRIJ3 = self._imagined
    seen_BRIJ3 = np.asarray(observation.frames_BRIJ3)
    missing = self.frames_per_call - seen_BRIJ3.shape[1]
    later_BRIJ3 = imagined_BRIJ3[:, imagined_BRIJ3.shape[1] - missing :]
    outlook = lookahead_lib.Outlook(
      frames_BRIJ3=np.concatenate([seen_BRIJ3, later_BRIJ3], axis=1),
      seen=seen_BRIJ3.shape[1],
      latents_BFHWC=latents_BFHWC,
    )

    proprio_BX = observation.proprio_BX
    act = lambda: self._policy.step_ahead(self._state, outlook, proprio_BX)
    return self._time(act, observation)

  def amend(self, frames_BRIJ3: np.ndarray) -> None:
    """The chunk whose end `step_ahead` did not see is over; its frames as `step` takes them."""
    with self._ending():
      self._state = self._policy.amend(self._state, frames_BRIJ3)

  @contextlib.contextmanager
  def _ending(self) -> Iterator[None]:
    """Where the device fails in it, the episode is over."""
    try:
      yield
    except loaded.StepFailed:
      self._state = None
      raise

  def _time(self, act, observation: types.Observation) -> tuple[np.ndarray, np.ndarray | None]:
    """What `act` computes, and how long it took, if nothing was compiled."""
    if self._state is None:
      raise ValueError('No episode is under way: the last step failed, or there was no reset yet.')
    programs = self._policy.programs
    traced = programs.traced.total()
    start = time.perf_counter()
    with self._ending():
      action_BAU, latents, self._state = act()
    latents = jax.block_until_ready(latents)
    if programs.traced.total() == traced:
      self.latencies_s.append(time.perf_counter() - start)
    self._imagined = None
    if latents is None:
      return action_BAU, None

    # A robot does not wait for pictures of what it imagined, so they are not in its latency.
    imagined_BRIJ3 = to_uint8(programs.imagine(self._policy.frozen, self._state, latents))
    # The tokenizer may work at another size than the robot sees.
    rows, columns = observation.frames_BRIJ3.shape[2:4]
    resized = [[images.resize(frame, rows, columns) for frame in video] for video in imagined_BRIJ3]
    imagined_BRIJ3 = np.stack(resized)
    self._imagined = latents, imagined_BRIJ3
    return action_BAU, imagined_BRIJ3


class ModelAgent:
  """The policy for robots of one kind; robots of several kinds share one compiled policy.

  Attributes:
    overlap: control steps that the actions of `act_on` go on beyond their chunk, and the most that
      a robot may be committed to; 0 of weights that were trained without.
  """

  def __init__(self, policy: TimedPolicy, model: cfg.ModelConfig, robot: robot_lib.Robot):
    self._policy = policy
    self._model = model
    self._robot = robot
    self.overlap = robot.action_overlap
    self.frames_per_call = policy.frames_per_call

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    ids_BP = np.stack([self._policy.tell(self._robot.record, text) for text in instructions])
    task = make_task(self._model, [self._robot] * len(instructions), ids_BP)
    self._policy.reset(task, composite_BIJ3, seed)

  def act(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    actions, imagined_BRIJ3 = self._act(frames_BRIJ3, proprio_BX, None)
    return np.stack([cut_chunk(self._robot, each, None) for each in actions]), imagined_BRIJ3

  def act_on(
    self,
    frames_BRIJ3: np.ndarray,
    proprio_BX: np.ndarray,
    prefixes: Sequence[np.ndarray],
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """As `act`, of robots that do not wait: with the steps that overlap with the next chunk,
    [B, steps per chunk + overlap, action dim].

    Args:
      prefixes: of each robot the actions [d, action dim] that it is committed to, from now on, as
        it takes them; d, 0 where it waits, may differ, and is at most `overlap`. They are the first
        of its chunk, and come back as they are.
    Raises:
      ValueError: they are no such actions, or more than the weights were trained for.
    """
    prefix = join_prefixes(
      [self._robot] * len(proprio_BX), prefixes, proprio_BX, self._model.action_dim
    )
    actions, imagined_BRIJ3 = self._act(frames_BRIJ3, proprio_BX, prefix)
    whole = [cut_chunk(self._robot, *each) for each in zip(actions, prefixes, strict=True)]
    return np.stack(whole), imagined_BRIJ3

  def act_ahead(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """As `act`, before the chunk under way is over, for the time when it is; then `amend` is next.

    Args:
      frames_BRIJ3: of the frames that `act` would take then the first, which are there already;
        the others are taken from what was imagined.
      proprio_BX: the state as it will be then: as commanded.
    """
    proprio_BX = checks.read_state(self._robot.record, proprio_BX)
    observation = self._observe(frames_BRIJ3, proprio_BX)
    action_BAU, imagined_BRIJ3 = self._policy.step_ahead(observation)
    actions = []
    for action_AU, proprio_X in zip(action_BAU, proprio_BX):
      actions.append(cut_chunk(self._robot, self._robot.act(action_AU, proprio_X), None))
    return np.stack(actions), imagined_BRIJ3

  def amend(self, frames_BRIJ3: np.ndarray) -> None:
    """All frames are there that `act` would have taken in place of `act_ahead`."""
    self._policy.amend(frames_BRIJ3)

  def _act(self, frames_BRIJ3, proprio_BX, prefix: types.Prefix | None):
    """(chunks as `Robot.act` gives them, imagined frames)."""
    proprio_BX = checks.read_state(self._robot.record, proprio_BX)
    observation = self._observe(frames_BRIJ3, proprio_BX)
    action_BAU, imagined_BRIJ3 = self._policy.step(observation, prefix)
    actions = [
      self._robot.act(action_AU, proprio_X) for action_AU, proprio_X in zip(action_BAU, proprio_BX)
    ]
    return actions, imagined_BRIJ3

  def _observe(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> types.Observation:
    normalized_BX = self._robot.normalize_proprio(proprio_BX, self._model.proprio_dim)
    return types.Observation(frames_BRIJ3=np.asarray(frames_BRIJ3), proprio_BX=normalized_BX)


def cut_chunk(
  robot: robot_lib.Robot, action_SU: np.ndarray, prefix_DU: np.ndarray | None
) -> np.ndarray:
  """What a robot is given of what `Robot.act` makes: all of it after a prefix, which comes back to
  the bit; the chunk without its overlap where it waits.
  """
  if prefix_DU is None:
    return action_SU[: robot.record.steps_per_chunk]
  given_DU = np.asarray(prefix_DU, action_SU.dtype)
  return np.concatenate([given_DU, action_SU[len(given_DU) :]])


def join_prefixes(
  robots: Sequence[robot_lib.Robot],
  prefixes: Sequence[np.ndarray],
  proprio_BX: Iterable[np.ndarray],
  width: int,
) -> types.Prefix:
  """What robots are committed to, raw, [d, action dim] of each, as the policy takes it.

  Raises:
    ValueError: as `Robot.normalize_prefix`, or there are not as many prefixes as robots.
  """
  if len(prefixes) != len(robots):
    raise ValueError(f'{len(prefixes)} prefixes were given for {len(robots)} robots; one of each.')
  normalized = [
    robot.normalize_prefix(prefix_DU, proprio_X, width)
    for robot, prefix_DU, proprio_X in zip(robots, prefixes, proprio_BX, strict=True)
  ]
  return types.Prefix(
    action_BDU=np.stack(normalized),
    length_B=np.asarray([len(prefix_DU) for prefix_DU in prefixes], np.int32),
  )


def make_task(
  model: cfg.ModelConfig, robots: Sequence[robot_lib.Robot], prompt_ids_BP: np.ndarray
) -> types.Task:
  """What each of `robots` is told, without negative prompts."""
  return types.Task(
    prompt_ids_BP=prompt_ids_BP,
    embodiment_B=np.asarray([robot.id for robot in robots], np.int32),
    action_mask_BAU=np.stack([action_mask(model, robot.record) for robot in robots]),
  )


def action_mask(model: cfg.ModelConfig, record: record_lib.Embodiment) -> np.ndarray:
  """[A, U] bool, the real steps and dimensions of a robot's chunk."""
  mask_AU = np.zeros((model.action_horizon, model.action_dim), bool)
  mask_AU[: record.steps_per_chunk + model.action_overlap, : record.action_dim] = True
  return mask_AU


def to_uint8(frames: types.Array) -> np.ndarray:
  """Pixels in [-1, 1] to uint8."""
  levels = np.round((np.asarray(frames) + 1) * 127.5)
  # A network may go a little beyond [-1, 1], which uint8 would wrap around.
  return levels.clip(0, 255).astype(np.uint8)


def latency_summary(latencies_s: Sequence[float]) -> dict[str, float]:
  """Milliseconds p50_ms and p95_ms, NaN where there is no call, and the number of `calls`."""
  latencies_ms = 1e3 * np.asarray(latencies_s)
  p50 = p95 = np.nan
  if len(latencies_ms):
    p50, p95 = np.percentile(latencies_ms, [50, 95])
  return {
    'p50_ms': round(float(p50), 2),
    'p95_ms': round(float(p95), 2),
    'calls': len(latencies_ms),
  }
