"""Which robots talk to the server, and where an episode of each begins.

A session is a connection and an id on it. All of this is of the event loop; what the engine
remembers of a session (`engine_state`) is of the device's thread alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from wam_jax.data import robot as robot_lib
from wam_jax.serving import history as history_lib
from wam_jax.serving import wire

# Sessions that were taken away, and are told so; clients that name each episode never come back.
_MOST_LOST = 4096


@dataclasses.dataclass(frozen=True)
class Rules:
  """How sessions live.

  Attributes:
    slots: the most at a time.
    robot: the name of the robot of requests that name none; '' where they must.
    history: how frames become what the model sees, of `history.KINDS`.
    steps_per_query: control steps between queries; 0 for a whole chunk.
    frames_per_call: frames that the model is shown at each; 0 for those of a chunk.
    reset_after_s: seconds of silence after which an observation begins an episode; 0 for never.
    reset_on_jump: change of the normalized state from query to query that does; 0 for never.
    reclaim_after_s: seconds of silence after which a session's slot may go to another.
    idle_after_s: seconds of silence after which a session ends.
    hold_s: seconds for which a session that asked for it outlives its connection.
  """

  slots: int
  robot: str = ''
  history: str = history_lib.SPACING
  steps_per_query: int = 0
  frames_per_call: int = 0
  reset_after_s: float = 0.0
  reset_on_jump: float = 0.0
  reclaim_after_s: float = 60.0
  idle_after_s: float = 900.0
  hold_s: float = 4.0


class Session:
  """One robot's episodes, one after the other.

  Attributes:
    connection, id: what names it.
    robot: its robot.
    prompt: what it was told last.
    seed: of the noise of its episode; None for the engine's.
    episode: the number of its episode, never that of another's.
    began: why the episode began.
    chunk: how many chunks of the episode were answered.
    history: what it has seen in the episode.
    used_s: when it last asked.
    engine_state, engine_episode: what the engine remembers, and of which episode; of the device's
      thread.
    token: what another connection goes on with it by; '' where it ends with its own.
    newest: the number of its newest request and the task that answers it, where it has a token.
  """

  def __init__(self, connection: int, session_id: str, robot: robot_lib.Robot):
    self.connection = connection
    self.id = session_id
    self.robot = robot
    self.prompt: str | None = None
    self.seed: int | None = None
    self.episode = -1
    self.began = ''
    self.chunk = 0
    self.history: history_lib.History | None = None
    self.used_s = 0.0
    self.engine_state: Any = None
    self.engine_episode = -1
    self.proprio_X: np.ndarray | None = None
    self.token = ''
    self.newest: tuple[Any, Any] | None = None

  @property
  def is_rehearsal(self) -> bool:
    """Whether it is of no client: nobody acts on it, and nobody watches."""
    return self.connection < 0

  @property
  def name(self) -> str:
    """For logs: of one connection, the session without an id is called so."""
    return f'{self.connection}/{self.id or "-"}'


class Sessions:
  """All sessions of a server.

  Attributes:
    robots: those that it knows, by name.
  """

  def __init__(
    self,
    robots: Mapping[str, robot_lib.Robot],
    rules: Rules,
    free: Callable[[Session], None],
    clock: Callable[[], float],
  ):
    """
    Args:
      free: called with a session whose episode is over, for the engine to forget it.
      clock: seconds.
    """
    self.robots = robots
    self._rules = rules
    self._free = free
    self._clock = clock
    self._by_key: dict[tuple[int, str], Session] = {}
    # Why sessions that were taken away are not there, the oldest first, until they are reset.
    self._lost: dict[tuple[int, str], str] = {}
    # By token, those without a connection, and when they end.
    self._held: dict[str, tuple[Session, float]] = {}
    self._episodes = itertools.count()

  def __len__(self) -> int:
    return len(self._by_key) + len(self._held)

  def __iter__(self) -> Iterator[Session]:
    return iter(list(self._by_key.values()))

  def resolve_robot(self, request: wire.Request) -> robot_lib.Robot:
    """The robot that a request is of.

    Raises:
      Refused: there is none of that name, or the request must name one.
    """
    name = request.robot or self._rules.robot
    if name in self.robots:
      return self.robots[name]
    known = sorted(self.robots)
    if name:
      raise wire.Refused('robot', f'there is no robot {name!r}; this policy acts for {known}')
    raise wire.Refused(
      'robot', f"this policy acts for {known}: name one of them by the key 'robot'"
    )

  def take(
    self, connection: int, request: wire.Request, proprio_X: np.ndarray
  ) -> tuple[Session, str]:
    """The session of an observation, and why an episode begins with it; '' where it goes on.

    Raises:
      Refused: all slots are taken, the session was taken away, or it was never told what to do.
    """
    robot = self.resolve_robot(request)
    key = (connection, request.session)
    if request.starts_over:
      self._lost.pop(key, None)
    if key in self._lost:
      raise wire.Refused('lost_session', self._lost[key])
    session = self._by_key.get(key)
    began = self._find_beginning(session, request, robot, proprio_X)
    if (session is None or session.prompt is None) and request.prompt is None:
      raise wire.Refused('prompt', "the first observation of a session needs the key 'prompt'")
    if session is None:
      session = self._open(key, robot)
    if began:
      session.robot = robot
      session.newest = None
      if request.keeps:
        session.token = session.token or secrets.token_urlsafe(16)
      session.began = began
      self._begin(session, request)
    session.used_s = self._clock()
    session.proprio_X = proprio_X
    return session, began

  def reset(self, connection: int, ids: tuple[str, ...] | None) -> list[Session]:
    """Those of a connection that are named, or all, begin an episode with their next observation;
    unknown ids mean nothing.
    """
    if ids is None:
      keys = [key for key in {**self._by_key, **self._lost} if key[0] == connection]
    else:
      keys = [(connection, one) for one in ids]
    ended = []
    for key in keys:
      self._lost.pop(key, None)
      if key in self._by_key:
        ended.append(self._close(key))
    return ended

  def find(self, connection: int, session_id: str) -> Session | None:
    """The session of that name on a connection, if there is one."""
    return self._by_key.get((connection, session_id))

  def forget(self, session: Session) -> None:
    """The engine has lost a session: its next observation begins an episode."""
    key = (session.connection, session.id)
    if self._by_key.get(key) is session:
      self._close(key)

  def resume(self, connection: int, request: wire.Request) -> Session:
    """The session whose token a request has, which is of this connection now.

    Raises:
      Refused: there is none any more.
    """
    session, _ = self._held.pop(request.resume, (None, 0.0))
    if session is None:
      # The old connection may look alive for a while.
      session = next((s for s in self if s.token and s.token == request.resume), None)
      if session is None:
        raise wire.Refused('lost_session', 'the session is gone; what it had seen, too')
      del self._by_key[session.connection, session.id]
    self.reset(connection, (request.session,))
    session.connection = connection
    session.id = request.session
    session.used_s = self._clock()
    self._by_key[connection, request.session] = session
    return session

  def drop(self, connection: int) -> list[Session]:
    """Ends all of a connection that is gone, but for those that are held for another."""
    for key, session in list(self._by_key.items()):
      if key[0] == connection and session.token:
        self._held[session.token] = (self._by_key.pop(key), self._clock() + self._rules.hold_s)
    ended = self.reset(connection, None)
    for key in [key for key in self._lost if key[0] == connection]:
      del self._lost[key]
    return ended

  def end_idle(self) -> list[Session]:
    """Ends those that have been silent for too long; they are told when they speak again."""
    now = self._clock()
    ended = []
    for token, (session, until_s) in list(self._held.items()):
      if now > until_s:
        del self._held[token]
        self._free(session)
        ended.append(session)
    for key, session in list(self._by_key.items()):
      silent_s = now - session.used_s
      if silent_s > self._rules.idle_after_s:
        ended.append(self._lose(key, silent_s, 'it was ended'))
    return ended

  def _find_beginning(
    self,
    session: Session | None,
    request: wire.Request,
    robot: robot_lib.Robot,
    proprio_X: np.ndarray,
  ) -> str:
    rules = self._rules
    if session is None:
      return 'new session'
    if request.starts_over:
      return 'reset'
    if robot is not session.robot:
      return 'robot changed'
    if request.prompt is not None and request.prompt != session.prompt:
      return 'prompt changed'
    if rules.reset_after_s and self._clock() - session.used_s > rules.reset_after_s:
      return 'silence'
    if rules.reset_on_jump and _jump(robot, session.proprio_X, proprio_X) > rules.reset_on_jump:
      return 'jump'
    return ''

  def _open(self, key: tuple[int, str], robot: robot_lib.Robot) -> Session:
    if len(self) >= self._rules.slots:
      self._reclaim()
    session = Session(*key, robot)
    self._by_key[key] = session
    return session

  def _reclaim(self) -> None:
    """Takes the slot of the session that has been silent longest, if that is long enough.

    Raises:
      Refused: none has.
    """
    silent_s = -1.0
    if self._by_key:
      key, session = min(self._by_key.items(), key=lambda item: item[1].used_s)
      silent_s = self._clock() - session.used_s
    if silent_s < self._rules.reclaim_after_s:
      raise wire.Refused('sessions', f'all {self._rules.slots} sessions are taken; try again later')
    self._lose(key, silent_s, 'its slot went to another')

  def _begin(self, session: Session, request: wire.Request) -> None:
    rules = self._rules
    record = session.robot.record
    session.episode = next(self._episodes)
    session.chunk = 0
    if request.prompt is not None:
      session.prompt = request.prompt
    session.seed = request.seed
    steps = rules.steps_per_query or record.steps_per_chunk
    session.history = history_lib.History(record, rules.history, steps, rules.frames_per_call)

  def _lose(self, key: tuple[int, str], silent_s: float, what: str) -> Session:
    """Ends a session, whose client is told when it speaks again."""
    session = self._close(key)
    self._lost[key] = _describe_loss(session, silent_s, what)
    if len(self._lost) > _MOST_LOST:
      del self._lost[next(iter(self._lost))]
    return session

  def _close(self, key: tuple[int, str]) -> Session:
    session = self._by_key.pop(key)
    self._free(session)
    return session


def _describe_loss(session: Session, silent_s: float, what: str) -> str:
  name = f'session {session.id!r}' if session.id else 'the session of this connection'
  return (
    f'{name} was silent for {silent_s:.0f} s and {what}; what it had seen is gone. '
    'Reset it to begin an episode.'
  )


def _jump(robot: robot_lib.Robot, before_X: np.ndarray, now_X: np.ndarray) -> float:
  """The largest change of the state, in the model's range, of which all is about [-1, 1]."""
  if not len(now_X):
    return 0.0
  both = robot.normalize_proprio(np.stack([before_X, now_X]), len(now_X))
  return float(np.abs(both[1] - both[0]).max())
