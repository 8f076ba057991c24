"""The policy for many robots at once, each an episode of its own: what a server drives.

Owns the weights on the device and what a session remembers there. Which sessions there are, what
they have seen and when each is computed are of `wam_jax/serving`, which knows no JAX and reaches
this by `control.turns.Engine`. All calls come from one thread.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.control import loaded
from wam_jax.control import memory as memory_lib
from wam_jax.control import together as together_lib
from wam_jax.control import turns
from wam_jax.data import images
from wam_jax.data import robot as robot_lib

# Left of a device's memory for what a step makes on its way, where no chip says what it needs.
_HEADROOM = 0.15
# How many sessions a pass over the weights may have; each size is a program of its own.
SIZES = (1, 2, 4, 8)


class Engine:
  """A checkpoint's policy, compiled for passes of some sizes.

  What a robot gets depends on the size of its pass in the last bits, sums being in another order;
  with one size for all, which sessions that nobody acts on fill up, it depends on nobody else.

  Attributes:
    robots: those that can act, by name.
    rows: the most sessions of one pass.
    session_bytes: what one session keeps on a device.
    imagine_s: what `imagine` took when it was warmed.
  """

  def __init__(
    self,
    config: cfg.TrainConfig,
    params: Any,
    frozen: Any,
    robots: Mapping[str, robot_lib.Robot],
    seed: int = 0,
    *,
    together: int = SIZES[-1],
    deterministic: bool = False,
  ):
    """
    Args:
      seed: that of each episode's noise: the same observations give the same actions.
      together: the most sessions of one pass, of `SIZES`; less where memory does not hold so many,
        and 1 with `sample.reuse` 'cosine'.
      deterministic: whether all passes are of that size.
    """
    self.robots = {name: robot for name, robot in robots.items() if robot.can_act}
    if not self.robots:
      raise ValueError(
        f'None of the robots of this checkpoint, {sorted(robots)}, has actions and statistics.'
      )
    self._config = config
    self._policy = loaded.LoadedPolicy(config, params, frozen)
    self._seed = seed
    self.imagine_s = 0.0
    # Counted from one that is there; `warm` goes on with it.
    self._first: Any = self.start(next(iter(self.robots)), '')
    kept = (self._first.memory, self._first.eyes)
    self.session_bytes = sharding.bytes_per_device(kept)

    most = min(together, 1 + self.count_sessions())
    if config.sample.reuse == 'cosine':
      most = 1  # Rows of a pass would choose their steps together.
    sizes = [size for size in SIZES if size <= most]
    sizes = sizes[-1:] if deterministic else sizes
    self.rows = sizes[-1]
    self._together = together_lib.Together(self._policy.programs, sizes)
    # Sessions that nobody acts on; made when they are needed.
    self._spares: list[memory_lib.PolicyState] = []
    if deterministic:
      self._fill_spares(self.rows - 1)

  def renew(self, params: Any, robots: Mapping[str, robot_lib.Robot]) -> Engine:
    """This engine, as it is compiled, with other weights of the same shapes; both stay usable.

    Raises:
      ValueError: they are for other robots or programs, or there is no memory for both.
    """
    able = {name: robot for name, robot in robots.items() if robot.can_act}
    if _list_records(able) != _list_records(self.robots):
      raise ValueError('the new weights are for robots with other names or records')
    needed, free = self.weight_bytes, free_bytes()
    if needed > free:
      raise ValueError(
        f'there is no memory for two sets of weights: {needed / 1e9:.1f} GB beside '
        f'{free / 1e9:.1f} GB that are free'
      )
    other = copy.copy(self)
    other.robots = able
    other._policy = self._policy.renew(self._config, params)  # noqa: SLF001  Of this class, too.
    other._spares = []  # noqa: SLF001
    return other

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
    """Frames of a turn."""
    return self._policy.programs.frames_per_call

  def count_sessions(self, reserved: int = 0) -> int:
    """How many sessions the memory that is free now holds, beside so many bytes of it."""
    return max(0, int((free_bytes() - reserved) * (1 - _HEADROOM) // self.session_bytes))

  def device_bytes(self) -> int:
    """Bytes that live arrays hold."""
    return sum(array.nbytes for array in jax.live_arrays())

  def warm(self, imagines: bool = False) -> float:
    """Compiles what an episode runs, and `imagine` where that is called; seconds that it took."""
    start = time.perf_counter()
    name = next(iter(self.robots))
    states, self._first = [self._first], None
    for size in self._together.sizes:
      # Spares fill the rest, where there are any.
      missing = size - len(states) - len(self._spares)
      states += [self.start(name, '') for _ in range(missing)]
      # The first anchors, the second goes on.
      for _ in range(2):
        acts = self._act_on_nothing(name, states)
        states = [acted.state for acted in acts]
      states = []
    acted = acts[0]
    dream = self.keep(name, acted) if imagines else None
    if dream is not None:
      self._warm_imagine(dream)
    return time.perf_counter() - start

  def _act_on_nothing(self, name: str, states: Sequence[Any]) -> list[turns.Acted]:
    """A chunk of sessions that see black."""
    record = self.robots[name].record
    turn = turns.Turn(
      state=None,
      robot=name,
      frames=[np.zeros((*record.composite, 3), np.uint8)] * self.frames_per_call,
      proprio_X=np.zeros(record.proprio_dim, np.float32),
    )
    acts = []
    for acted in self.act([dataclasses.replace(turn, state=state) for state in states]):
      if isinstance(acted, turns.Failed):
        raise RuntimeError(f'A pass of {len(states)} sessions failed: {acted.why}')
      acts.append(acted)
    return acts

  def _warm_imagine(self, dream: turns.Dream) -> None:
    # The first compiles, the second tells how long it takes.
    for _ in range(2):
      start = time.perf_counter()
      self.imagine(dream)
      self.imagine_s = time.perf_counter() - start

  def start(self, robot: str, instruction: str, seed: int | None = None) -> Any:
    """What a session remembers at the start of an episode; `seed` in place of the engine's.

    Raises:
      ValueError: as `LoadedPolicy.tell`.
    """
    chosen = self.robots[robot]
    ids_P = self._policy.tell(chosen.record, instruction)
    task = agent_lib.make_task(self._config.model, [chosen], ids_P[None])
    frame_BIJ3 = np.zeros((1, *chosen.record.composite, 3), np.uint8)
    return self._policy.start(task, frame_BIJ3, self._seed if seed is None else seed)

  def act(self, given: Sequence[turns.Turn]) -> list[turns.Acted | turns.Failed]:
    """The next chunk of each session, those that are at the same point in one pass; or how its pass
    failed. What it remembered before is gone with the call.
    """
    came: dict[int, turns.Acted | turns.Failed] = {}
    seen: dict[int, memory_lib.PolicyState] = {}
    for number, turn in enumerate(given):
      with self._failing(came, [number]):
        seen[number] = self._look(turn)

    # All passes are under way before the first is waited for.
    under_way: list[tuple[list[int], _Pass]] = []
    for numbers in self._group(seen):
      with self._failing(came, numbers):
        states = [seen.pop(number) for number in numbers]
        under_way.append((numbers, self._begin([given[number] for number in numbers], states)))
    for numbers, begun in under_way:
      with self._failing(came, numbers):
        came.update(zip(numbers, self._end(begun), strict=True))
    return [came[number] for number in range(len(given))]

  @contextlib.contextmanager
  def _failing(self, came: dict[int, Any], numbers: Sequence[int]) -> Iterator[None]:
    """What fails in it, fails for these alone."""
    try:
      yield
    except Exception:
      # The text: an exception would keep what the device held.
      failed = turns.Failed(traceback.format_exc())
      came.update((number, failed) for number in numbers)
      self._spares.clear()

  def _look(self, turn: turns.Turn) -> memory_lib.PolicyState:
    policy = self._policy
    frames_BRIJ3 = np.stack(turn.frames)[None]
    return policy.programs.look(policy.params, policy.frozen, turn.state, frames_BRIJ3)

  def _group(self, seen: Mapping[int, memory_lib.PolicyState]) -> list[list[int]]:
    """Who goes through a pass together; of passes that are not filled up the largest first."""
    sizes = self._together.sizes
    groups = []
    for at_anchor in (True, False):
      left = [number for number, state in seen.items() if state.is_at_anchor == at_anchor]
      while left:
        size = max((size for size in sizes if size <= len(left)), default=sizes[0])
        groups.append(left[:size])
        left = left[size:]
    return groups

  def _begin(self, given: Sequence[turns.Turn], states: Sequence[memory_lib.PolicyState]) -> _Pass:
    """A pass that is computed meanwhile."""
    sizes = self._together.sizes
    size = len(states) if len(states) in sizes else sizes[0]
    filled = size - len(states)
    spares = self._take_spares(filled, like=states[0])
    # Rows of nobody are those of the last one once more.
    rows = [*given, *[given[-1]] * filled]
    action_BAU, latents, after = self._together.act(
      self._policy.params, [*states, *spares], self._normalize(rows), self._join_prefixes(rows)
    )
    self._spares = [*after[len(states) :], *self._spares]
    return _Pass(given, action_BAU, latents, after[: len(states)])

  def _end(self, begun: _Pass) -> list[turns.Acted]:
    # JAX returns before it has computed; a robot can move only when the numbers are there.
    action_BAU = np.asarray(begun.action_BAU)
    acts = []
    for row, (turn, state) in enumerate(zip(begun.given, begun.after, strict=True)):
      robot = self.robots[turn.robot]
      action_SU = robot.act(action_BAU[row], turn.proprio_X)
      action_SU = agent_lib.cut_chunk(robot, action_SU, turn.prefix_DU)
      latents = None if begun.latents is None else (begun.latents, row)
      acts.append(turns.Acted(action_SU=action_SU, state=state, latents=latents))
    return acts

  def _normalize(self, given: Sequence[turns.Turn]) -> np.ndarray:
    width = self._config.model.proprio_dim
    robots = [self.robots[turn.robot] for turn in given]
    each = [robot.normalize_proprio(t.proprio_X, width) for robot, t in zip(robots, given)]
    return np.stack(each)

  def _join_prefixes(self, given: Sequence[turns.Turn]) -> types.Prefix | None:
    if all(turn.prefix_DU is None for turn in given):
      return None
    robots = [self.robots[turn.robot] for turn in given]
    nothing = [np.zeros((0, robot.record.action_dim), np.float32) for robot in robots]
    prefixes = [n if turn.prefix_DU is None else turn.prefix_DU for n, turn in zip(nothing, given)]
    proprio = [turn.proprio_X for turn in given]
    return agent_lib.join_prefixes(robots, prefixes, proprio, self._config.model.action_dim)

  def _take_spares(self, count: int, like: memory_lib.PolicyState) -> list[memory_lib.PolicyState]:
    """Sessions that fill up a pass, at the same point as another one."""
    self._fill_spares(count)
    taken, self._spares = self._spares[:count], self._spares[count:]
    return [
      dataclasses.replace(spare, frames=like.frames, waiting=like.waiting, begins=like.begins)
      for spare in taken
    ]

  def _fill_spares(self, count: int) -> None:
    name = next(iter(self.robots))
    self._spares += [self.start(name, '') for _ in range(count - len(self._spares))]

  def keep(self, robot: str, acted: turns.Acted) -> turns.Dream | None:
    """What `imagine` makes pictures of; before the next turn of its session."""
    if acted.latents is None:
      return None
    latents, row = acted.latents
    return turns.Dream(
      robot=robot,
      # Copies also where they lie in the host's memory already: the next step takes the place of
      # the one, and the other would hold on to the whole pass.
      latents=np.array(np.asarray(latents)[row : row + 1]),
      clean=np.array(acted.state.memory.clean_BFHWC),
      frames=acted.state.frames,
    )

  def imagine(self, dream: turns.Dream) -> np.ndarray:
    """Imagined composites [r, I, J, 3] uint8."""
    programs = self._policy.programs
    video_BRIJ3 = programs.decode(self._policy.frozen, dream.clean, dream.latents, dream.frames)
    # The tokenizer may work at another size than the robot sees.
    size = self.robots[dream.robot].record.composite
    return np.stack([images.resize(frame, *size) for frame in agent_lib.to_uint8(video_BRIJ3[0])])


class _Pass(NamedTuple):
  """A pass that is under way.

  Attributes:
    given: the turns that are its first rows.
    action_BAU, latents, after: what it gives, of those rows and of none; what is remembered after.
  """

  given: Sequence[turns.Turn]
  action_BAU: jax.Array
  latents: jax.Array | None
  after: Sequence[memory_lib.PolicyState]


def free_bytes() -> int:
  """Memory that is free for sessions: of the first device, or of the host where it says nothing."""
  statistics = jax.devices()[0].memory_stats()
  if statistics and 'bytes_limit' in statistics:
    return statistics['bytes_limit'] - statistics['bytes_in_use']
  with open('/proc/meminfo') as lines:
    sizes = dict(line.split(':') for line in lines)
  return 1024 * int(sizes['MemAvailable'].split()[0])


def _list_records(robots: Mapping[str, robot_lib.Robot]) -> list[Any]:
  return [(robot.id, robot.record, robot.action_overlap) for robot in robots.values()]
