"""A checkpoint's policy with its weights on the device, which agents and a server's engine share.

Owns the weights, the programs and how prompts become ids. What an episode remembers is of its user.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import lookahead as lookahead_lib
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.control import split as split_lib
from wam_jax.control import weights
from wam_jax.data import prompts
from wam_jax.data import record as record_lib


class StepFailed(RuntimeError):
  """A step failed on the device, which took with it what was remembered of the episode."""


class LoadedPolicy:
  """A checkpoint's policy, ready to act for robots.

  Attributes:
    params, frozen: the weights, on the device; another policy that is given them copies nothing.
    programs: the policy that takes them.
    ahead: its calls ahead of time.
    tokenize: the map from a text to prompt ids [P].
  """

  def __init__(self, config: cfg.TrainConfig, params: Any, frozen: Any, *, recompute: bool = False):
    """`recompute` is that of `Policy`."""
    self._split = split_lib.make(config)
    # Once: a step that was given arrays of the host would copy all weights first.
    self.params, self.frozen = weights.place(
      params, frozen, config.model, config.sample, self._split
    )
    model = cfg.choose_dtype(config.model, config.sample)
    # The newest frame is now; the reference's servers never send so many that it takes another.
    sample = dataclasses.replace(config.sample, anchor='newest')
    self.programs = policy_lib.Policy(
      model, sample, config.flow, recompute=recompute, split=self._split
    )
    self.ahead = lookahead_lib.Lookahead(self.programs)
    self.tokenize = prompts.make_tokenizer(config.model.text)
    self._text = config.model.text
    self._count_tokens = prompts.make_counter(config.model.text)
    self._negative_P = self.tokenize(sample.negative_prompt) if sample.is_guided else None

  def renew(self, config: cfg.TrainConfig, params: Any) -> LoadedPolicy:
    """This policy, as it is compiled, with other weights of the same shapes and the same encoders.

    Raises:
      ValueError: they have other shapes.
    """
    other = copy.copy(self)
    other.params, _ = weights.place(params, self.frozen, config.model, config.sample, self._split)
    if _describe(other.params) != _describe(self.params):
      raise ValueError('the new weights have other shapes than what is compiled takes')
    return other

  @property
  def weight_bytes(self) -> int:
    """Bytes of the parameters on a device; frozen encoders beside them keep their precision."""
    return weights.count_bytes(self.params)

  def tell(self, record: record_lib.Embodiment, instruction: str) -> np.ndarray:
    """Ids [P] of a robot's prompt.

    Raises:
      ValueError: not all of the instruction would be read.
    """
    prompts.check_length(record.prompt, instruction.strip(), self._count_tokens, self._text.length)
    return self.tokenize(record.instruct(instruction))

  def start(self, task: types.Task, frame_BIJ3: types.Array, seed: int) -> memory_lib.PolicyState:
    """State at the start of an episode.

    Args:
      task: without negative prompts, which come from the config.
      frame_BIJ3: any frame of the shape and type of observed ones.
    """
    if self._negative_P is not None:
      negative_BP = np.tile(self._negative_P, (len(task.prompt_ids_BP), 1))
      task = dataclasses.replace(task, negative_ids_BP=negative_BP)
    key = jax.random.key(seed)
    return self.programs.reset(self.params, self.frozen, task, frame_BIJ3, key)

  def step(
    self,
    state: memory_lib.PolicyState,
    observation: types.Observation,
    prefix: types.Prefix | None = None,
  ) -> tuple[np.ndarray, jax.Array | None, memory_lib.PolicyState]:
    """`Policy.step`, with the actions on the host.

    Raises:
      ValueError: what is wrong with the observation; the state is as it was.
      StepFailed: the state is gone.
    """
    with _telling():
      action_BAU, latents, state = self.programs.step(
        self.params, self.frozen, state, observation, prefix=prefix
      )
      # JAX returns before it has computed; a robot can move only when the numbers are there.
      return np.asarray(action_BAU), latents, state

  def step_ahead(
    self,
    state: memory_lib.PolicyState,
    outlook: lookahead_lib.Outlook,
    proprio_BX: types.Array,
  ) -> tuple[np.ndarray, jax.Array | None, memory_lib.PolicyState]:
    """`Lookahead.act`, with the actions on the host; raises as `step`."""
    with _telling():
      given = (self.params, self.frozen, state, outlook, proprio_BX)
      action_BAU, latents, state = self.ahead.act(*given)
      return np.asarray(action_BAU), latents, state

  def amend(
    self, state: memory_lib.PolicyState, frames_BRIJ3: types.Array
  ) -> memory_lib.PolicyState:
    """`Lookahead.amend`; raises as `step`."""
    with _telling():
      return self.ahead.amend(self.params, self.frozen, state, frames_BRIJ3)


def _describe(params: Any) -> tuple[Any, list[Any]]:
  """What a program depends on."""
  leaves, structure = jax.tree.flatten(params)
  return structure, [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves]


@contextlib.contextmanager
def _telling() -> Iterator[None]:
  """Tells of a device that fails in it."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    raise StepFailed(
      'The step failed on the device, and what was remembered of the episode is lost; the next '
      f'one begins with a reset. {str(error).splitlines()[0]}'
    ) from error
