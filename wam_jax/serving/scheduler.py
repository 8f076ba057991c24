"""Which session is computed when: the queue before the device, and the one thread that owns it.

A session waits at most once: its newer observation takes the place of the one that waits. Work that
would come too late is refused, not computed. The event loop hands work in and is called back; it
never waits for the device. What was imagined is decoded in this thread, too, between passes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from wam_jax.control import turns
from wam_jax.serving import history as history_lib
from wam_jax.serving import imagining
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import sessions as sessions_lib
from wam_jax.serving import wire

_LOG = logging.getLogger(__name__)
_SMOOTHING = 0.2  # Share of the newest pass in the estimate of one.
_LAST_S = 10.0  # For imagined chunks that are not decoded when the server stops.
_GATHERING = 0.1  # Of a pass: what the first waits at most for others that go with it.
_GRACE_S = 0.05  # Between the arrival of an observation and its work, also where nothing waits.


@dataclasses.dataclass(eq=False)
class Work:
  """An observation that waits for its chunk.

  Attributes:
    session, episode: whose it is; the session may be in another episode by now.
    prompt, seed: of that episode.
    window: the frames that the model is shown.
    proprio_X: the state now.
    prefix_DU: what the robot is committed to, as of `turns.Turn`.
    arrived_s, deadline_s: when it came, and when its chunk must be there.
    answer: `Computed` or `Refused`, for the event loop; an exception that was raised would keep the
      frames until the garbage collector comes by.
  """

  session: sessions_lib.Session
  episode: int
  prompt: str
  seed: int | None
  window: history_lib.Window
  proprio_X: np.ndarray
  prefix_DU: np.ndarray | None
  arrived_s: float
  deadline_s: float
  answer: asyncio.Future


@dataclasses.dataclass(frozen=True)
class Computed:
  """A chunk, how many seconds it waited and was computed, and by which weights, as of
  `turns.Acted`.
  """

  action_SU: np.ndarray
  queue_s: float
  device_s: float
  checkpoint_step: int | None


class Scheduler:
  """Hands work to an engine, in its own thread.

  Attributes:
    pass_s: what a pass takes, by the newest of them; 0 before the first.
    device_bytes: what the engine holds there, as it was within the last second of work.
  """

  def __init__(self, engine: turns.Engine, metrics: metrics_lib.Metrics, dreams: imagining.Dreams):
    self._engine = engine
    self._metrics = metrics
    self._dreams = dreams
    self._waiting: collections.OrderedDict[sessions_lib.Session, Work] = collections.OrderedDict()
    self._to_free: list[sessions_lib.Session] = []
    self._answered_s: dict[sessions_lib.Session, float] = {}
    self._changed = threading.Condition()
    self._stops = False
    self._busy_until_s = 0.0
    self.pass_s = 0.0
    self.device_bytes = 0
    self._looked_s = 0.0
    self._thread = threading.Thread(target=self._run, daemon=True, name='device')

  def __len__(self) -> int:
    return len(self._waiting)

  def start(self) -> None:
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread after the pass that is under way; what waits is refused."""
    with self._changed:
      self._stops = True
      self._changed.notify()
    self._thread.join()

  def submit(self, work: Work) -> None:
    """Takes work; its answer is set in the loop of that.

    Raises:
      Refused: it would be computed too late.
    """
    with self._changed:
      if self._stops:
        raise wire.Refused('stopping', 'the server stops')
      self._dreams.arrive(work.session, work.episode)
      before = self._waiting.get(work.session)
      if before is None and self._estimate_start(work.arrived_s) > self._begins_by(work):
        raise _overloaded(len(self._waiting))
      # In the place of the older one: a session that asks often waits no longer for it.
      self._waiting[work.session] = work
      self._changed.notify()
    if before is not None:
      message = 'a newer observation of this session came before this one was computed'
      _answer(before, wire.Refused('superseded', message))

  def free(self, session: sessions_lib.Session) -> None:
    """Lets the engine forget a session whose episode is over; its work is refused."""
    with self._changed:
      work = self._waiting.pop(session, None)
      self._dreams.forget(session)
      self._to_free.append(session)
      self._changed.notify()
    if work is not None:
      _answer(work, wire.Refused('reset', 'the session was reset while this waited'))

  def _estimate_start(self, now_s: float) -> float:
    """When work that comes now would begin, as far as is known."""
    passes = len(self._waiting) // self._engine.rows  # Before that which it is of.
    return max(now_s, self._busy_until_s) + passes * self.pass_s

  def _begins_by(self, work: Work) -> float:
    """When computing must begin; at once, where a pass takes longer than there is time."""
    return max(work.deadline_s - self.pass_s, work.arrived_s + _GRACE_S)

  def _run(self) -> None:
    while True:
      with self._changed:
        is_called = self._changed.wait_for(
          lambda: self._waiting or self._to_free or self._stops, self._dreams.wait_s()
        )
        if self._waiting:
          self._gather()
        freed, self._to_free = self._to_free, []
        batch = [] if self._stops else self._take()
        left = list(self._waiting.values()) if self._stops else []
      for session in freed:
        _forget(session)
        self._answered_s.pop(session, None)
      for work in left:
        _answer(work, wire.Refused('stopping', 'the server stops'))
      if self._stops:
        self._dreams.finish(_LAST_S)
        return
      if batch:
        self._compute(batch)
      if not is_called and self._dreams.wait_s() == 0:
        self._decode()
      if freed or time.monotonic() > self._looked_s + 1:
        self.device_bytes = self._engine.device_bytes()
        self._looked_s = time.monotonic()

  def _gather(self) -> None:
    """Waits a little for sessions that were answered just now: who asks again at once, as
    simulators do, then goes through the same pass. One that is alone waits for nobody.
    """
    since_s = time.monotonic() - 2 * self.pass_s
    lately = sum(answered_s > since_s for answered_s in self._answered_s.values())
    wanted = min(lately, self._engine.rows)
    self._changed.wait_for(
      lambda: len(self._waiting) >= wanted or self._stops, _GATHERING * self.pass_s
    )

  def _take(self) -> list[Work]:
    """The next pass: those that came first and are not too late."""
    batch = []
    now_s = time.monotonic()
    while self._waiting and len(batch) < self._engine.rows:
      _, work = self._waiting.popitem(last=False)
      if now_s > self._begins_by(work):
        _answer(work, _overloaded(len(self._waiting)))
      else:
        batch.append(work)
    if batch:
      self._busy_until_s = now_s + self.pass_s
    return batch

  def _compute(self, batch: list[Work]) -> None:
    start_s = time.monotonic()
    begun = []
    for work in batch:
      # An episode that cannot begin is nobody else's.
      with _resetting([work]):
        begun.append((work, self._make_turn(work)))
    acted = []
    with _resetting([work for work, _ in begun]):
      acted = self._engine.act([turn for _, turn in begun])
    if not acted:
      return
    end_s = time.monotonic()
    self.pass_s += (end_s - start_s - self.pass_s) * (_SMOOTHING if self.pass_s else 1.0)
    self._metrics.phase_s.observe(end_s - start_s, 'compute')
    done = []
    for (work, turn), each in zip(begun, acted, strict=True):
      if isinstance(each, turns.Failed):
        _LOG.error('computing %r failed: %s', work.session.name, each.why)
        _reset(work)
        continue
      done.append((work, turn, each))
      work.session.engine_state = each.state
      self._answered_s[work.session] = end_s
      queue_s = start_s - work.arrived_s
      self._metrics.queue_s.observe(queue_s)
      device_s = end_s - start_s
      _answer(work, Computed(each.action_SU, queue_s, device_s, each.checkpoint_step))
    # Now that nobody waits for it.
    for work, turn, each in done:
      if not work.session.is_rehearsal:
        self._dreams.keep(work.episode, work.window.step, turn.robot, each)

  def _decode(self) -> None:
    """Makes pictures of an imagined chunk; counts who had to wait meanwhile."""
    start_s = time.monotonic()
    self._dreams.decode()
    end_s = time.monotonic()
    with self._changed:
      waited_s = sum(end_s - max(start_s, work.arrived_s) for work in self._waiting.values())
    if waited_s:
      self._metrics.held_up_s.add(waited_s)

  def _make_turn(self, work: Work) -> turns.Turn:
    session = work.session
    robot = session.robot.record.name
    if session.engine_episode != work.episode:
      # The old one first: two would need twice the memory.
      session.engine_state = None
      try:
        session.engine_state = self._engine.start(robot, work.prompt, work.seed)
      except ValueError as e:
        raise wire.Refused('prompt', str(e)) from e
      session.engine_episode = work.episode
    return turns.Turn(
      state=session.engine_state,
      robot=robot,
      frames=work.window.frames,
      proprio_X=work.proprio_X,
      prefix_DU=work.prefix_DU,
    )


def _overloaded(waiting: int) -> wire.Refused:
  return wire.Refused(
    'overloaded', f'{waiting} sessions wait, and this chunk would come too late; it is not computed'
  )


@contextlib.contextmanager
def _resetting(batch: Sequence[Work]) -> Iterator[None]:
  """Where the engine fails in it, whatever of, the log says so, these sessions begin anew and are
  told; the thread goes on with others. Of what is refused only they are told.
  """
  try:
    yield
  except wire.Refused as refused:
    for work in batch:
      _forget(work.session)
      # Another one: what was raised holds on to the frames.
      _answer(work, wire.Refused(refused.reason, str(refused)))
  except Exception:
    # Quoted: clients choose their names.
    _LOG.exception('computing %s failed', ', '.join(repr(work.session.name) for work in batch))
    for work in batch:
      _reset(work)


def _reset(work: Work) -> None:
  # What the engine remembered was given away with the call.
  _forget(work.session)
  _answer(work, wire.Refused('internal', 'computing failed, and the session was reset'))


def _forget(session: sessions_lib.Session) -> None:
  session.engine_state = None
  session.engine_episode = -1


def _answer(work: Work, answer: Computed | wire.Refused) -> None:
  future = work.answer

  def set_it() -> None:
    if not future.done():  # Its connection may be gone.
      future.set_result(answer)

  with contextlib.suppress(RuntimeError):  # The loop may be closed.
    future.get_loop().call_soon_threadsafe(set_it)
