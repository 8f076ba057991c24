"""Actions by the control step that they are for, and how one chunk takes over from another.

Owns the arithmetic alone: who asks for chunks and when is of brokers and evaluations. An action may
be of one robot or of a batch, any array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Plan:
  """What is to be done from now on."""

  def __init__(self):
    self._actions: dict[int, np.ndarray] = {}

  def __contains__(self, step: int) -> bool:
    return step in self._actions

  def clear(self) -> None:
    self._actions = {}

  def take(self, step: int) -> np.ndarray:
    """The action of this control step, once."""
    return self._actions.pop(step)

  def list_next(self, step: int, count: int) -> list[np.ndarray]:
    """Actions of up to `count` steps from `step` on, as far as they are planned."""
    actions = []
    while len(actions) < count and step + len(actions) in self._actions:
      actions.append(self._actions[step + len(actions)])
    return actions

  def adopt(
    self, chunk: Sequence[np.ndarray], *, start: int, now: int, blends: bool = False
  ) -> None:
    """A chunk takes over at step `now`; its actions for steps before that come too late.

    Args:
      chunk: actions of the steps from `start` on.
      blends: over the steps that the old chunk still has, go from its actions to the new ones in
        equal parts; otherwise the new ones hold at once.
    """
    old = {step: action for step, action in self._actions.items() if step >= now}
    last_old = max(old, default=now - 1)
    self._actions = {}
    for step, action in enumerate(chunk, start):
      if step < now:
        continue
      if blends and step in old:
        share = (step - now + 1) / (last_old - now + 2)
        action = (1 - share) * old[step] + share * action
      self._actions[step] = action
