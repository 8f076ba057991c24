"""Actions one at a time out of chunks that know what the robot will do before they are there.

For policies whose weights were trained with `model.action_overlap` (real-time chunking). When and
how chunks are asked for otherwise is `broker`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wam_jax.client import broker as broker_lib
from wam_jax.client import policy as policy_lib


class CommittedBroker(broker_lib.AsyncBroker):
  """Asks for the next chunk where this one ends, and executes the steps that it goes on for until
  the next one is there.

  With the question goes what is executed meanwhile: the next chunk begins with it, and so takes
  over without a jump. `lead_steps` is how long that is. One that comes later still takes over, in
  the middle of what it did not know.

  Attributes:
    late: how many chunks came so.
  """

  def __init__(
    self,
    policy: policy_lib.RemotePolicy,
    *,
    steps: int | None = None,
    lead_steps: int | None = None,
    recorder: Any = None,
  ):
    """
    Args:
      steps: control steps from query to query; a whole chunk by default.
      lead_steps: actions that a chunk is told of; by default as many as the slowest of the last
        answers took, and one more. At most the overlap.
      recorder: as of `broker.ChunkBroker`.
    Raises:
      ValueError: the policy takes no prefix, or a chunk has not as many steps.
    """
    description = policy.description
    horizon = description['steps_per_chunk']
    self._overlap = description.get('action_overlap', 0)
    if not self._overlap:
      raise ValueError(
        f'The weights that act for {policy.robot!r} were trained without model.action_overlap and '
        'take no prefix; use AsyncBroker, or train with it.'
      )
    for name, given, most in (('steps', steps, horizon), ('lead_steps', lead_steps, self._overlap)):
      if given is not None and not 1 <= given <= most:
        raise ValueError(f'{name}={given} must be 1 to {most}, for {policy.robot!r}.')
    self._width = len(description['action_names'])
    self._committed = 0
    self.late = 0
    super().__init__(
      policy, steps=steps or horizon, lead_steps=lead_steps, blends=False, recorder=recorder
    )

  @property
  def lead_steps(self) -> int:
    """Actions that a chunk that is asked for now is told of."""
    return min(self._overlap, super().lead_steps)

  def _make_query(self, observation: dict[str, Any]) -> dict[str, Any]:
    query = super()._make_query(observation)
    known = self._plan.list_next(self._frames.step, self.lead_steps)
    self._committed = len(known)
    # Of no step where the robot stands still: it has no actions before the chunk is there.
    query['prefix'] = np.stack(known) if known else np.zeros((0, self._width), np.float32)
    return query

  def _take_over(self) -> None:
    self.late += self._committed > 0 and self._frames.step > self._asked_at + self._committed
    super()._take_over()

  def _find_next_ask(self) -> int:
    return self._asked_at + self._steps


def make_broker(policy: policy_lib.RemotePolicy) -> broker_lib.AsyncBroker:
  """One that asks for chunks ahead: `CommittedBroker` where the weights were trained for that."""
  if policy.description.get('action_overlap'):
    return CommittedBroker(policy)
  return broker_lib.AsyncBroker(policy)
