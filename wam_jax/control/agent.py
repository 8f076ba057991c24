"""Raw observations in, raw actions out: the policy between the transforms of training and their
inverse.

Owns how a checkpoint acts for robots: what an evaluation runs and a server serves. The compiled
step is `control.policy`; agents that are not the model are `evaluation.baselines`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib


class Agent(Protocol):
  """Acts for a batch of robots of one kind, one chunk at a time."""

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    """Starts an episode of each robot."""

  def act(
    self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """(raw actions [B, steps per chunk, action dim], imagined frames [B, r, I, J, 3] uint8 or
    None).
    """


class TimedPolicy:
  """The compiled policy with a checkpoint's weights on the device; its results come to the host and
  are timed.

  Attributes:
    tokenize: text to prompt ids.
    latencies_s: wall time of each step after the first, which compiles.
  """

  def __init__(self, config: cfg.TrainConfig, params: Any, frozen: Any):
    self._weights = jax.device_put((params, frozen))
    self._policy = policy_lib.Policy(config.model, config.sample, config.flow)
    self.tokenize = prompts.make_tokenizer(config.model.text)
    self._negative = config.sample.negative_prompt if config.sample.guidance_scale != 1 else None
    self.latencies_s: list[float] = []
    self._compiled = False

  @property
  def traces(self) -> int:
    """How often the control step was traced."""
    return self._policy.traces

  def reset(self, ids_BP, embodiment_B, action_mask_BAU, frame_BIJ3, seed: int) -> None:
    """Starts an episode; arguments as in `Policy`."""
    negative_BP = (
      None if self._negative is None else np.tile(self.tokenize(self._negative), (len(ids_BP), 1))
    )
    task = types.Task(
      prompt_ids_BP=ids_BP,
      embodiment_B=embodiment_B,
      action_mask_BAU=action_mask_BAU,
      negative_ids_BP=negative_BP,
    )
    self._state = self._policy.reset(*self._weights, task, frame_BIJ3, jax.random.key(seed))

  def step(self, observation: types.Observation) -> tuple[np.ndarray, np.ndarray]:
    """(normalized actions [B, A, U], imagined frames [B, r, I, J, 3] uint8)."""
    start = time.perf_counter()
    action_BAU, latents, self._state = self._policy.step(*self._weights, self._state, observation)
    action_BAU, latents = np.asarray(action_BAU), jax.block_until_ready(latents)
    if self._compiled:
      self.latencies_s.append(time.perf_counter() - start)
    self._compiled = True
    frames_BRIJ3 = to_uint8(self._policy.imagine(self._weights[1], self._state, latents))
    size = observation.frames_BRIJ3.shape[2:4]  # The tokenizer may work at another.
    return action_BAU, np.stack(
      [[images.resize(frame, *size) for frame in video] for video in frames_BRIJ3]
    )


class ModelAgent:
  """The policy between the transforms of training and their inverse; robots share one compiled
  policy.
  """

  def __init__(self, policy: TimedPolicy, model: cfg.ModelConfig, robot: robot_lib.Robot):
    self._policy, self._model, self._robot = policy, model, robot

  def reset(self, instructions, composite_BIJ3, seed):
    m, record, B = self._model, self._robot.record, len(instructions)
    ids_BP = np.stack([self._policy.tokenize(self._robot.instruct(text)) for text in instructions])
    mask_BAU = np.repeat(action_mask(m, record)[None], B, axis=0)
    self._policy.reset(ids_BP, np.full(B, self._robot.id, np.int32), mask_BAU, composite_BIJ3, seed)

  def act(self, frames_BRIJ3, proprio_BX):
    proprio_BX = embodiments.convert(self._robot.record.state, proprio_BX)
    proprio = self._robot.normalize_proprio(proprio_BX, self._model.proprio_dim)
    observation = types.Observation(frames_BRIJ3=frames_BRIJ3, proprio_BX=proprio)
    action_BAU, imagined = self._policy.step(observation)
    raw = np.stack([self._robot.act(a_AU, p_X) for a_AU, p_X in zip(action_BAU, proprio_BX)])
    return raw, imagined


def action_mask(model: cfg.ModelConfig, record: embodiments.Embodiment) -> np.ndarray:
  """[A, U] bool, the real steps and dimensions of a robot's chunk."""
  mask_AU = np.zeros((model.actions_per_chunk, model.action_dim), bool)
  mask_AU[: record.steps_per_chunk, : record.action_dim] = True
  return mask_AU


def to_uint8(frames) -> np.ndarray:
  """Pixels in [-1, 1] to uint8."""
  return np.round((np.asarray(frames) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def latency_summary(latencies_s: Sequence[float]) -> dict[str, float]:
  """Milliseconds: p50_ms, p95_ms, and how many `calls` they are of."""
  ms = 1e3 * np.asarray(latencies_s)
  p50, p95 = np.percentile(ms, [50, 95]) if len(ms) else (np.nan, np.nan)
  return {'p50_ms': round(float(p50), 2), 'p95_ms': round(float(p95), 2), 'calls': len(ms)}
