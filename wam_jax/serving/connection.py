"""One client of the server: its messages in order, and the answers to them.

A message that is wrong is answered by an error and harms nobody else; tracebacks stay in the log.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

import websockets
from websockets.asyncio import server as ws_server

from wam_jax.client import wire as codec
from wam_jax.data import robot as robot_lib
from wam_jax.serving import access as access_lib
from wam_jax.serving import journal
from wam_jax.serving import observations
from wam_jax.serving import scheduler as scheduler_lib
from wam_jax.serving import watching
from wam_jax.serving import wire

_LOG = logging.getLogger(__name__)


class Connection:
  """One client's messages, in order.

  Attributes:
    number: its own, of all that the server has had.
  """

  def __init__(self, number: int, socket_: ws_server.ServerConnection, server: Any):
    """`server` is the `server.Server` that it is of."""
    self.number = number
    self._socket = socket_
    self._server = server
    self._allowance = access_lib.Allowance(server.options.limits, time.monotonic)
    # Of who asks and does not read, no more is read than fits.
    most = server.options.limits.pending
    self._in_order: asyncio.Queue[asyncio.Task] = asyncio.Queue(most)
    self._tasks: set[asyncio.Task] = set()
    self._previous_ms = 0.0
    self._answered = 0
    self._refused: collections.Counter[str] = collections.Counter()

  @property
  def tally(self) -> dict[str, Any]:
    """How many chunks were sent, and how many errors of each reason."""
    return {'chunks': self._answered, 'refused': dict(self._refused)}

  async def finish(self) -> None:
    """Waits until all that was asked is answered; nothing new is taken once the server stops."""
    while self._tasks:
      await asyncio.wait(self._tasks)
    await self._in_order.join()

  async def run(self) -> None:
    """Answers until the connection ends."""
    sender = asyncio.create_task(self._send_in_order())
    try:
      async for message in self._socket:
        arrived_s = time.monotonic()
        await self._receive(message, arrived_s)
        # Many small messages may have come at once: others, and the answers, have their turn.
        await asyncio.sleep(0)
        if self._allowance.is_spent:
          await self._in_order.join()
          await self._socket.close(1008, 'too many messages that are wrong')
          return
    finally:
      # Chunks that are being computed are answered to nobody, or to the next connection.
      sender.cancel()
      while not self._in_order.empty():
        self._in_order.get_nowait()
        self._in_order.task_done()

  async def _receive(self, message: bytes | str, arrived_s: float) -> None:
    """Begins to answer a message; returns when the next one may be read."""
    request = None
    try:
      self._allowance.count_message()
      if len(self._tasks) >= self._server.options.limits.pending:
        raise wire.Refused('overloaded', f'{len(self._tasks)} requests wait on this connection')
      if isinstance(message, str):
        raise codec.Malformed('a request is a binary message, this is a text')
      # Small messages are quicker to read here than to hand over.
      most = self._server.options.limits.prompt
      request = wire.read_request(message, most)
      if request.endpoint == 'record':
        self._keep_step(request)
        return
      if self._server.stops:
        raise wire.Refused('stopping', 'the server stops')
      answer = await self._begin(request, arrived_s)
    except Exception as e:
      answer = asyncio.create_task(_give(self._make_error(e, request)))
    request_id = request and request.request_id
    if request_id is None:
      await self._in_order.put(self._keep(answer))
    else:
      self._keep(asyncio.create_task(self._send(answer, request)))

  async def _begin(self, request: wire.Request, arrived_s: float) -> asyncio.Task:
    """The task that makes the answer of a request."""
    if request.endpoint == 'reset':
      for session in self._server.sessions.reset(self.number, request.resets):
        _LOG.info('session is reset', extra=journal.of(session))
      self._server.metrics.messages.add(label='reset')
      return asyncio.create_task(_give(wire.make_reset_done(request.request_id)))
    if request.endpoint == 'metadata':
      return asyncio.create_task(_give(self._make_metadata(request)))
    if request.resume:
      session = self._server.sessions.resume(self.number, request)
      _LOG.info('session goes on', extra=journal.of(session))
      if session.newest and session.newest[0] == request.request_id:
        return session.newest[1]
    work, notes = await self._prepare(request, arrived_s)
    task = asyncio.create_task(self._answer(request, work, notes))
    if work.session.token:
      notes['token'] = work.session.token
      # Of requests without numbers nobody knows which is asked again.
      if request.request_id is not None:
        work.session.newest = (request.request_id, task)
    return task

  def _keep_step(self, request: wire.Request) -> None:
    """What a client says that its robot did; there is no answer.

    Raises:
      Refused: nobody records, or the session is in no episode.
    """
    server = self._server
    session = server.sessions.find(self.number, request.session)
    if not server.options.records:
      raise wire.Refused('record', 'this server does not record')
    if session is None or not server.hub.is_watched(session):
      raise wire.Refused('record', 'the session is in no episode')
    done = wire.read_done(request.observation)
    if done.outcome is not None:
      server.hub.end(session, done.outcome, done.step)
      return
    record = session.robot.record
    shown = observations.keep_known(record, request.observation)
    observations.check_step(record, shown, done.action_U)
    server.hub.tell(watching.Did(session.episode, done.step, shown, done.action_U))

  async def _prepare(
    self, request: wire.Request, arrived_s: float
  ) -> tuple[scheduler_lib.Work, dict[str, Any]]:
    """Work that is in the queue, and what its answer says of the session."""
    server = self._server
    robot = server.sessions.resolve_robot(request)
    fills = server.options.fills_missing_views
    seen = await server.call(
      _count_bytes(request.observation), observations.read, robot, request.observation, fills
    )
    _check_prefix(robot, request, seen)
    session, began = server.sessions.take(self.number, request, seen.proprio_X)
    if began:
      server.hub.begin(session)
      server.metrics.episodes.add(label=began)
      if not session.is_rehearsal:
        said = {'why': began, 'prompt': session.prompt}
        unused = {'unused_keys': list(seen.ignored)} if seen.ignored else {}
        _LOG.info('episode begins', extra={**journal.of(session), **said, **unused})
    try:
      window = session.history.add(seen.frames, seen.steps)
    except ValueError as e:
      raise codec.Malformed(str(e)) from e
    if server.hub.is_watched(session) and not request.records:
      shown = observations.keep_known(robot.record, request.observation)
      server.hub.tell(watching.Saw(session.episode, shown, session.history.placed_T))
    server.metrics.phase_s.observe(time.monotonic() - arrived_s, 'decode')
    work = scheduler_lib.Work(
      session=session,
      episode=session.episode,
      prompt=session.prompt,
      seed=session.seed,
      window=window,
      proprio_X=seen.proprio_X,
      prefix_DU=request.prefix_DU,
      arrived_s=arrived_s,
      deadline_s=arrived_s + (server.options.deadline_s or float('inf')),
      answer=asyncio.get_running_loop().create_future(),
    )
    server.scheduler.submit(work)
    notes = {
      'id': session.id,
      'began': began,
      'chunk': session.chunk,
      'frames': len(window.frames),
      'repeated_frames': window.repeated,
      'frames_off_steps': window.off,
    }
    return work, notes

  async def _answer(
    self, request: wire.Request, work: scheduler_lib.Work, notes: dict[str, Any]
  ) -> bytes | str:
    """The chunk of work that waits, or why there is none."""
    session = work.session
    computed = await work.answer
    if isinstance(computed, wire.Refused):
      if computed.reason == 'internal':
        self._server.sessions.forget(session)
      return self._make_error(computed, request)
    # Its episode may have ended meanwhile; whoever asked gets what it asked for.
    if session.episode == work.episode:
      notes['chunk'] = session.chunk
      # Also where the observation that began it was never answered.
      notes['began'] = session.began if session.chunk == 0 else ''
      session.chunk += 1
      session.history.note_answer(work.window)
    age_s = time.monotonic() - work.arrived_s
    reply = self._make_reply(request, computed, age_s, notes)
    answered = watching.Answered(
      episode=work.episode,
      chunk=notes['chunk'],
      window=work.window,
      action_SU=computed.action_SU,
      age_s=age_s,
      queue_s=computed.queue_s,
      device_s=computed.device_s,
      checkpoint_step=computed.checkpoint_step,
    )
    self._server.hub.tell(answered)
    return reply

  def _make_reply(
    self,
    request: wire.Request,
    computed: scheduler_lib.Computed,
    age_s: float,
    notes: Mapping[str, Any],
  ) -> bytes:
    metrics = self._server.metrics
    metrics.age_s.observe(age_s)
    metrics.messages.add(label='chunk')
    self._answered += 1
    device_ms = 1e3 * computed.device_s
    timing = {
      'infer_ms': device_ms,
      'prev_total_ms': self._previous_ms,
      'queue_ms': 1e3 * computed.queue_s,
      'age_ms': 1e3 * age_s,
    }
    self._previous_ms = 1e3 * age_s
    notes = {'server_timing': timing, 'policy_timing': {'infer_ms': device_ms}, 'session': notes}
    start_s = time.monotonic()
    packed = wire.make_reply(
      request, computed.action_SU, notes, as_array=self._server.options.reply_array
    )
    metrics.phase_s.observe(time.monotonic() - start_s, 'reply')
    return packed

  def _make_metadata(self, request: wire.Request) -> bytes:
    named = {} if request.request_id is None else {'request_id': request.request_id}
    return codec.pack({**self._server.metadata, **named})

  def _make_error(self, error: Exception, request: wire.Request | None) -> bytes | str:
    """The answer to a message that went wrong."""
    if isinstance(error, codec.Malformed):
      error = wire.Refused('malformed', str(error))
      self._allowance.count_mistake()
    elif not isinstance(error, wire.Refused):
      _LOG.error('a message failed', exc_info=error, extra={'connection': self.number})
      error = wire.Refused('internal', 'the server failed at this message; its log says why')
    if error.reason == 'rate':
      self._allowance.count_mistake()
    self._server.metrics.refused.add(label=error.reason)
    self._refused[error.reason] += 1
    return wire.make_error(error, request and request.request_id)

  def _keep(self, task: asyncio.Task) -> asyncio.Task:
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)
    return task

  async def _send_in_order(self) -> None:
    while True:
      task = await self._in_order.get()
      try:
        await self._send(task, None)
      finally:
        self._in_order.task_done()

  async def _send(self, task: asyncio.Task, request: wire.Request | None) -> None:
    try:
      answer = await task
    except Exception as e:
      # Also told: whoever waits in order would wait for ever.
      answer = self._make_error(e, request)
    with contextlib.suppress(websockets.ConnectionClosed):
      await self._socket.send(answer)


def _check_prefix(robot: robot_lib.Robot, request: wire.Request, seen: observations.Seen) -> None:
  """Raises Refused where a robot is committed to what its policy knows nothing of."""
  if request.prefix_DU is None:
    return
  if not robot.action_overlap:
    raise wire.Refused(
      'prefix', 'these weights were trained without model.action_overlap and take no prefix'
    )
  try:
    robot.normalize_prefix(request.prefix_DU, seen.proprio_X, robot.record.action_dim)
  except ValueError as e:
    raise wire.Refused('prefix', str(e)) from e


def _count_bytes(observation: Mapping[str, Any]) -> int:
  return sum(getattr(value, 'nbytes', 0) for value in observation.values())


async def _give(answer: bytes | str) -> bytes | str:
  return answer
