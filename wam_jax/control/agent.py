"""Raw observations in, raw actions out: the policy between what a robot senses and what it does.

Owns how a checkpoint acts for robots: what an evaluation runs and a server serves. Images, prompts
and units are those of training, by `data.robot`; the compiled step is `control.policy`; agents that
are not the model are `evaluation.baselines`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.data import images
from wam_jax.data import prompts
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
    latencies_s: wall time of each step but the first, which compiles.
  """

  def __init__(self, config: cfg.TrainConfig, params: Any, frozen: Any):
    # Once: a step that was given arrays of the host would copy all weights first.
    self._weights = jax.device_put((params, frozen))
    self._policy = policy_lib.Policy(config.model, config.sample, config.flow)
    self.tokenize = prompts.make_tokenizer(config.model.text)
    is_guided = config.sample.guidance_scale != 1
    self._negative_prompt = config.sample.negative_prompt if is_guided else None
    self.latencies_s: list[float] = []
    self._is_compiled = False

  @property
  def traces(self) -> int:
    """How often the control step was traced."""
    return self._policy.traces

  def reset(self, task: types.Task, frame_BIJ3: np.ndarray, seed: int) -> None:
    """Starts an episode.

    Args:
      task: without negative prompts, which come from the config.
      frame_BIJ3: any frame of the shape and type of observed ones.
    """
    if self._negative_prompt is not None:
      negative_P = self.tokenize(self._negative_prompt)
      negative_BP = np.tile(negative_P, (len(task.prompt_ids_BP), 1))
      task = dataclasses.replace(task, negative_ids_BP=negative_BP)
    self._state = self._policy.reset(*self._weights, task, frame_BIJ3, jax.random.key(seed))

  def step(self, observation: types.Observation) -> tuple[np.ndarray, np.ndarray]:
    """(normalized actions [B, A, U], imagined frames [B, r, I, J, 3] uint8)."""
    start = time.perf_counter()
    action_BAU, latents, self._state = self._policy.step(*self._weights, self._state, observation)
    # JAX returns before it has computed; a robot can move only when the numbers are there.
    action_BAU = np.asarray(action_BAU)
    latents = jax.block_until_ready(latents)
    if self._is_compiled:
      self.latencies_s.append(time.perf_counter() - start)
    self._is_compiled = True

    # A robot does not wait for pictures of what it imagined, so they are not in its latency.
    _, frozen = self._weights
    imagined_BRIJ3 = to_uint8(self._policy.imagine(frozen, self._state, latents))
    # The tokenizer may work at another size than the robot sees.
    rows, columns = observation.frames_BRIJ3.shape[2:4]
    resized = [[images.resize(frame, rows, columns) for frame in video] for video in imagined_BRIJ3]
    return action_BAU, np.stack(resized)


class ModelAgent:
  """The policy for robots of one kind; robots of several kinds share one compiled policy."""

  def __init__(self, policy: TimedPolicy, model: cfg.ModelConfig, robot: robot_lib.Robot):
    self._policy = policy
    self._model = model
    self._robot = robot

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    words = [self._robot.instruct(text) for text in instructions]
    ids_BP = np.stack([self._policy.tokenize(text) for text in words])
    task = make_task(self._model, [self._robot] * len(instructions), ids_BP)
    self._policy.reset(task, composite_BIJ3, seed)

  def act(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    normalized_BX = self._robot.normalize_proprio(proprio_BX, self._model.proprio_dim)
    observation = types.Observation(frames_BRIJ3=frames_BRIJ3, proprio_BX=normalized_BX)
    action_BAU, imagined_BRIJ3 = self._policy.step(observation)
    actions = [
      self._robot.act(action_AU, proprio_X) for action_AU, proprio_X in zip(action_BAU, proprio_BX)
    ]
    return np.stack(actions), imagined_BRIJ3


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
  mask_AU = np.zeros((model.actions_per_chunk, model.action_dim), bool)
  mask_AU[: record.steps_per_chunk, : record.action_dim] = True
  return mask_AU


def to_uint8(frames: np.ndarray) -> np.ndarray:
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
