"""Acting ahead: the next chunk is computed before the last one is over, for any weights.

Frames that are not there yet are taken from the policy's own prediction and committed for the time
being; the state is that at the chunk's end, as commanded. When the real frames come, they are
committed in the same slots, and the cache is what it would be if the policy had waited. `Policy`
owns programs and state of an episode; this owns what is foreseen and how it is put right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import types
from wam_jax.control import checks
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import encoders

PolicyState = memory_lib.PolicyState


@flax.struct.dataclass(kw_only=True)
class Outlook:
  """A chunk under way.

  Attributes:
    frames_BRIJ3: what `Policy.step` will take at its end: the frames that were seen, then, in
      place of the others, those that were imagined.
    seen: number of the former.
    latents_BFHWC: latents of the chunk, as the call before predicted them.
  """

  frames_BRIJ3: types.Array
  seen: int = flax.struct.field(pytree_node=False)
  latents_BFHWC: types.Array


class Lookahead:
  """Calls of a policy ahead of time.

  Attributes:
    policy: the policy; it counts the programs that are traced here, too.
  """

  def __init__(self, policy: policy_lib.Policy):
    self.policy = policy
    self._foresee_rest = policy.count('foresee_rest', _foresee_rest, donated=())
    self._foresee = policy.count('foresee', _foresee, donated=())
    self._begin_stream = policy.count('begin_stream', _begin_stream, donated=())
    self._commit = policy.compiled('amend')

  def act(
    self,
    params: Any,
    frozen: encoders.Encoders,
    state: PolicyState,
    outlook: Outlook,
    proprio_BX: types.Array,
  ) -> tuple[jax.Array, jax.Array | None, PolicyState]:
    """What `Policy.step` gives at the end of the chunk under way, as far as can be foreseen; then
    `amend` is next, but with `sample.history` 'window', where nothing is committed for later.

    Args:
      proprio_BX: normalized, at the end of the chunk, as commanded.
    Raises:
      ValueError: what is wrong with the outlook; the state is as it was.
    """
    policy = self.policy
    is_window = policy.sample.history == 'window'
    frames_BRIJ3, seen = outlook.frames_BRIJ3, outlook.seen
    self._check(state, outlook)
    if is_window:
      state = policy.anchor(params, frozen, state, frames_BRIJ3[:, :1])
      frames_BRIJ3, seen = frames_BRIJ3[:, 1:], seen - 1
    elif policy.anchors_next(state):
      state = policy.anchor(params, frozen, state, frames_BRIJ3[:, -1:])
      action_BAU, predicted, state = policy.act(params, state, proprio_BX)
      return action_BAU, predicted, dataclasses.replace(state, owed=True)
    state, latents = self._look(frozen, state, frames_BRIJ3, seen, outlook.latents_BFHWC)
    return policy.act(params, state, proprio_BX, foreseen_BFHWC=latents)

  def amend(
    self, params: Any, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3: types.Array
  ) -> PolicyState:
    """The chunk that was foreseen has ended, and these are its frames, as `Policy.step` takes them.

    What was committed of it is written over; that no frame is owed is no error.
    """
    if not state.owed:
      return state
    policy = self.policy
    checks.refuse(checks.list_frame_problems(frames_BRIJ3, state.frame, policy.frames_per_call))
    if state.frames == 1:
      # It was to be an anchor, and is acted on already.
      state = dataclasses.replace(state, owed=False)
      state = policy.anchor(params, frozen, state, frames_BRIJ3[:, -1:])
      return dataclasses.replace(state, begins=False)
    temporal = policy.cfg.tokenizer.temporal
    for start in range(state.waiting * temporal, frames_BRIJ3.shape[1], temporal):
      state = policy.see(frozen, state, frames_BRIJ3[:, start : start + temporal])
    first = state.frames - policy.cfg.frames_per_chunk
    memory = self._commit(params, state.memory, state.eyes.latents_BFHWC, np.int32(first))
    return dataclasses.replace(state, memory=memory, waiting=0, owed=False)

  def _look(self, frozen, state: PolicyState, frames_BRIJ3, seen: int, predicted_BFHWC):
    """(state with all whole latent frames observed, latents of the chunk): of a latent frame that
    was seen in part, its other camera frames are the imagined ones; later ones are as predicted.
    """
    policy = self.policy
    temporal = policy.cfg.tokenizer.temporal
    whole, part = divmod(seen, temporal)
    for index in range(state.waiting, whole):
      start = index * temporal
      state = policy.see(frozen, state, frames_BRIJ3[:, start : start + temporal])
    index = np.int32(whole)
    latents = self._foresee_rest(state.eyes.latents_BFHWC, predicted_BFHWC, index)
    if part:
      stream = state.eyes.stream
      start = whole * temporal
      if policy.sample.observed == 'fresh' and not whole:
        stream = self._begin_stream(frozen, frames_BRIJ3[:, :1])
      half_seen = frames_BRIJ3[:, start : start + temporal]
      latents = self._foresee(frozen, stream, latents, half_seen, index)
    return state, latents

  def _check(self, state: PolicyState, outlook: Outlook) -> None:
    policy = self.policy
    count = policy.frames_per_call
    checks.refuse(checks.list_frame_problems(outlook.frames_BRIJ3, state.frame, count))
    least = 1 if policy.sample.history == 'window' else 0
    if not least <= outlook.seen <= count:
      raise ValueError(
        f'seen={outlook.seen} must be {least} ... {count}, of the frames of a call; where less was '
        'seen, the call comes before the chunk has begun.'
      )
    if not state.frames:
      raise ValueError('The first call of an episode has no chunk under way; take `Policy.step`.')


def _foresee_rest(seen_BFHWC, predicted_BFHWC, index):
  """Latents that are seen before `index`, and predicted from there on."""
  is_seen_F = jnp.arange(seen_BFHWC.shape[1]) < index
  return jnp.where(is_seen_F[:, None, None, None], seen_BFHWC, predicted_BFHWC)


def _foresee(frozen: encoders.Encoders, stream, latents_BFHWC, frames_BRIJ3, index):
  """Latents with that at `index` encoded of these frames; the stream goes on from where it was."""
  latent, _ = frozen.encode_more(stream, frames_BRIJ3)
  return jax.lax.dynamic_update_slice_in_dim(latents_BFHWC, latent, index, axis=1)


def _begin_stream(frozen: encoders.Encoders, frame_B1IJ3):
  return frozen.encode_start(frame_B1IJ3)[1]
