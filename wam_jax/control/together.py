"""Several sessions in one pass over the weights, each at its own place of its own episode.

Owns how what sessions remember is one for a pass and each one's own again: matrix products are of
all rows at once, attention of each row with the cache of its session, which is written in place. A
pass takes as many sessions as one of its programs; who goes together is of `control.engine`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import types
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import attention
from wam_jax.models import wam


class Together:
  """`Policy.act` for as many sessions as there are programs for.

  Attributes:
    sizes: how many sessions a pass may have, rising.
  """

  def __init__(self, policy: policy_lib.Policy, sizes: Sequence[int]):
    """
    Raises:
      ValueError: the steps of one session would depend on those of the others.
    """
    if max(sizes) > 1 and policy.sample.reuse == 'cosine':
      raise ValueError(
        "sample.reuse='cosine' chooses the steps of all rows of a pass by their mean, so that "
        f'sessions would not be as if alone; sizes={tuple(sizes)} must be (1,).'
      )
    self.sizes = tuple(sorted(sizes))
    self._policy = policy
    several = [n for n in self.sizes if n > 1]
    self._begin = {n: self._compiled('begin', self._trace_begin, n) for n in several}
    self._act = {n: self._compiled('act', self._trace_act, n) for n in several}

  def act(
    self,
    params: Any,
    states: Sequence[memory_lib.PolicyState],
    proprio_BX: types.Array,
    prefix: types.Prefix | None = None,
  ) -> tuple[jax.Array, jax.Array | None, list[memory_lib.PolicyState]]:
    """What `Policy.act` gives for each session, in this order; latents None without any.

    Args:
      states: of one robot each, as many as `sizes` has, which all begin or all go on.
      proprio_BX, prefix: rows of the sessions.
    Raises:
      ValueError: what is wrong; the states are as they were.
    """
    policy = self._policy
    n = len(states)
    if n not in self.sizes:
      raise ValueError(f'{n} sessions go through no pass; sizes={self.sizes}.')
    if n == 1:
      action_BAU, latents, state = policy.act(params, states[0], proprio_BX, prefix=prefix)
      return action_BAU, latents, [state]
    for state in states:
      state.check_there()
    asked = policy.ask(n, memory_lib.Asked(proprio_BX, prefix=prefix))
    begins = self._are_to_begin(states)
    memories = tuple(state.memory for state in states)
    if begins:
      action_BAU, latents, memories = self._begin[n](params, memories, asked)
    else:
      starts = np.asarray([state.frames for state in states], np.int32)
      seen = tuple(state.eyes.latents_BFHWC for state in states)
      action_BAU, latents, memories = self._act[n](params, memories, seen, starts, asked)
    after = [policy.count_chunk(*each) for each in zip(states, memories)]
    return action_BAU, latents, after

  def _are_to_begin(self, states: Sequence[memory_lib.PolicyState]) -> bool:
    begins = states[0].is_at_anchor
    if any(state.is_at_anchor != begins for state in states):
      raise ValueError('Sessions that begin and sessions that go on are no pass together.')
    observed = [state.waiting for state in states]
    per_chunk = self._policy.cfg.frames_per_chunk
    if not begins and min(observed) < per_chunk:
      raise ValueError(f'{observed} of {per_chunk} latent frames of the last chunks are observed.')
    return begins

  def _compiled(self, name: str, function: Any, sessions: int) -> Any:
    given = ('actions', 'video', ('memory',) * sessions)
    return self._policy.count(f'{name} of {sessions}', function, ('memories',), given)

  def _trace_begin(self, params, memories, asked):
    begin = self._policy.function('begin')
    action, video, joined = begin(params, join(memories), asked)
    return action, video, part(joined, memories)

  def _trace_act(self, params, memories, latents, starts, asked):
    act = self._policy.function('act')
    seen_BFHWC = attention.interleave(latents)
    action, video, joined = act(params, join(memories), seen_BFHWC, starts, asked)
    return action, video, part(joined, memories)


def join(memories: Sequence[memory_lib.Memory]) -> memory_lib.Memory:
  """What sessions remember, as one pass takes it: large arrays stay apart, as tuples."""
  prompts = [memory.prompt for memory in memories]
  rows = lambda *each: attention.interleave(each)
  others = jax.tree.map(rows, *(_take_rows(memory) for memory in memories))
  return dataclasses.replace(
    others,
    cache=attention.KVCache.join([memory.cache for memory in memories]),
    prompt=wam.PromptKV(
      layers=jax.tree.map(lambda *each: each, *(prompt.layers for prompt in prompts)),
      mean_BD=rows(*(prompt.mean_BD for prompt in prompts)),
    ),
    key=jnp.stack([memory.key for memory in memories]),
    evaluations=memories[0].evaluations,
  )


def _take_rows(memory: memory_lib.Memory) -> memory_lib.Memory:
  """What of it becomes rows of a pass."""
  return dataclasses.replace(memory, cache=None, prompt=None, key=None, evaluations=None)


def part(
  joined: memory_lib.Memory, memories: Sequence[memory_lib.Memory]
) -> tuple[memory_lib.Memory, ...]:
  """What each session remembers after a pass, which leaves prompt and condition as they were."""
  clean = attention.deal(joined.clean_BFHWC, len(memories))
  caches = joined.cache.part()
  return tuple(
    dataclasses.replace(memory, cache=caches[i], clean_BFHWC=clean[i], key=joined.key[i])
    for i, memory in enumerate(memories)
  )
