"""An engine whose weights are replaced while robots act: each episode ends with those that it began
with.

What is compiled takes any weights of these shapes, so nothing is compiled again. Old weights leave
the device with the last episode that needs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam_jax.control import engine as engine_lib
from wam_jax.control import turns
from wam_jax.data import robot as robot_lib


class _Generation(NamedTuple):
  """An engine, and the step of the checkpoint whose weights it has."""

  engine: engine_lib.Engine
  step: int


class _State(NamedTuple):
  """What a session remembers, and what it began with."""

  generation: _Generation
  own: Any


class Generations:
  """Engines one after the other, as one; as `turns.Engine`.

  Attributes:
    robots, rows: as of the first; later ones know the same robots.
  """

  def __init__(self, first: engine_lib.Engine, step: int):
    """`step` is that of the checkpoint whose weights `first` has."""
    # Of both together: threads replace it.
    self._newest = _Generation(first, step)
    self.robots: Mapping[str, robot_lib.Robot] = first.robots
    self.rows = first.rows

  @property
  def newest(self) -> engine_lib.Engine:
    """The one that episodes begin with."""
    return self._newest.engine

  @property
  def traces(self) -> int:
    """How often the control step was traced."""
    return self.newest.traces

  @property
  def imagine_s(self) -> float:
    """What `imagine` took when it was warmed."""
    return self.newest.imagine_s

  def replace(self, params: Any, robots: Mapping[str, robot_lib.Robot], step: int) -> None:
    """From now on episodes begin with these weights, of the checkpoint of `step`; also from another
    thread. Raises as `renew` of an engine.
    """
    self._newest = _Generation(self.newest.renew(params, robots), step)

  def warm(self, imagines: bool = False) -> float:
    """Compiles all that an episode runs; seconds that it took."""
    return self.newest.warm(imagines)

  def start(self, robot: str, instruction: str, seed: int | None = None) -> _State:
    """What a session remembers at the start of an episode."""
    newest = self._newest
    return _State(newest, newest.engine.start(robot, instruction, seed))

  def act(self, given: Sequence[turns.Turn]) -> list[turns.Acted | turns.Failed]:
    """A chunk for each, those of the same weights together."""
    together: dict[_Generation, list[int]] = {}
    for number, turn in enumerate(given):
      together.setdefault(turn.state.generation, []).append(number)
    came: dict[int, turns.Acted | turns.Failed] = {}
    for generation, numbers in together.items():
      own = [
        dataclasses.replace(given[number], state=given[number].state.own) for number in numbers
      ]
      for number, acted in zip(numbers, generation.engine.act(own), strict=True):
        came[number] = _wrap(generation, acted)
    return [came[number] for number in range(len(given))]

  def keep(self, robot: str, acted: turns.Acted) -> turns.Dream | None:
    """What `imagine` makes pictures of; before the next turn of its session."""
    engine = acted.state.generation.engine
    return engine.keep(robot, dataclasses.replace(acted, state=acted.state.own))

  def imagine(self, dream: turns.Dream) -> np.ndarray:
    """Imagined composites [r, I, J, 3] uint8; all weights have the same tokenizer."""
    return self.newest.imagine(dream)

  def device_bytes(self) -> int:
    """Bytes that live arrays hold on the device."""
    return self.newest.device_bytes()


def _wrap(generation: _Generation, acted: turns.Acted | turns.Failed) -> Any:
  if isinstance(acted, turns.Failed):
    return acted
  state = _State(generation, acted.state)
  return dataclasses.replace(acted, state=state, checkpoint_step=generation.step)
