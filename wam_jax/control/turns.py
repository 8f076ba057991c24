"""What goes between the server and the engine: a session's turn, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from wam_jax.data import robot as robot_lib


@dataclasses.dataclass(frozen=True)
class Turn:
  """A session that is computed next.

  Attributes:
    state: what the engine remembers of it.
    robot: its robot's name.
    frames: uint8 composites [I, J, 3] up to now, as many as `types.Observation` has.
    proprio_X: float32 state now, as `Robot.observe` reads it.
    prefix_DU: actions [d, dimensions], as the robot takes them, that it is committed to from now;
      None of one that waits for its chunk.
  """

  state: Any
  robot: str
  frames: Sequence[np.ndarray]
  proprio_X: np.ndarray
  prefix_DU: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Acted:
  """A session's chunk.

  Attributes:
    action_SU: [steps, dimensions] as the robot takes it; after a prefix, which comes back as it was
      given, with the steps that overlap with the next chunk.
    state: what the engine remembers now.
    latents: the video that was imagined with it, as the engine has it; None where there is none.
    checkpoint_step: of the weights that made it; None where the engine has had no others.
  """

  action_SU: np.ndarray
  state: Any
  latents: Any = None
  checkpoint_step: int | None = None


@dataclasses.dataclass(frozen=True)
class Failed:
  """A chunk that could not be computed; the engine remembers nothing of its session any more.

  Attributes:
    why: the traceback, for the log alone.
  """

  why: str


@dataclasses.dataclass(frozen=True)
class Dream:
  """An imagined chunk that nobody has looked at: on the host, so that its session may go on.

  Attributes:
    robot: the name of its robot.
    latents: what was imagined.
    clean: latents of what was observed before it.
    frames: how many latent frames of it there are.
  """

  robot: str
  latents: np.ndarray
  clean: np.ndarray
  frames: int

  @property
  def nbytes(self) -> int:
    """Bytes that it holds."""
    return self.latents.nbytes + self.clean.nbytes


class Engine(Protocol):
  """Computes chunks; called from one thread alone. `control.engine` is the real one.

  Attributes:
    robots: those that can act, by name.
    rows: the most turns of one call of `act`.
    traces: how often the control step was traced.
    imagine_s: what `imagine` took when it was warmed.
  """

  robots: Mapping[str, robot_lib.Robot]
  rows: int
  traces: int
  imagine_s: float

  def warm(self, imagines: bool = False) -> float:
    """Compiles all that an episode runs, `imagine` too where it is called; seconds that it took."""
    ...

  def start(self, robot: str, instruction: str, seed: int | None = None) -> Any:
    """State of a session at the start of an episode; `seed` is that of its noise, None for the
    engine's own.

    Raises:
      ValueError: the instruction is none that it can be told.
    """
    ...

  def act(self, given: Sequence[Turn]) -> list[Acted | Failed]:
    """A chunk for each, or how its pass failed; the states given are gone, even where it raises."""
    ...

  def keep(self, robot: str, acted: Acted) -> Dream | None:
    """What `imagine` makes pictures of; before the next turn of its session, which takes its place.
    None where nothing was imagined.
    """
    ...

  def imagine(self, dream: Dream) -> np.ndarray:
    """Imagined composites [r, I, J, 3] uint8, for the times of the chunk's frames."""
    ...

  def device_bytes(self) -> int:
    """Bytes that live arrays hold on the device."""
    ...
