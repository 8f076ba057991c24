"""Actions one at a time out of chunks: frames are kept at the spacing of training, and the next
chunk is asked for when it is needed, or before.

Both brokers are called once a control step, with what the robot observes then.
"""

from __future__ import annotations

import collections
import concurrent.futures
import math
import time
from typing import Any

import numpy as np

from wam_jax.client import plan as plan_lib
from wam_jax.client import policy as policy_lib
from wam_jax.client import recorder as recorder_lib


class Frames:
  """What was seen since the last query, as the model wants to see it.

  Attributes:
    step: control steps since the episode began.
  """

  def __init__(self, description: dict[str, Any], records: bool = False):
    """`records`: whether the server is told every control step, and need not keep a query's."""
    self._records = records
    self._images = list(description['images'])
    self._stride = round(description['control_hz'] / description['video_fps'])
    self.begin()

  def begin(self) -> None:
    self.step = -1
    self._asked_at = 0
    self._seen: list[tuple[int, dict[str, np.ndarray]]] = []

  def see(self, observation: dict[str, Any]) -> None:
    """Keeps the images of this control step where training would have."""
    self.step += 1
    if (self.step - self._asked_at) % self._stride == 0:
      self._seen.append((self.step, self._pick(observation)))

  def make_query(self, observation: dict[str, Any]) -> dict[str, Any]:
    """The observation with the images since the last query in place of the newest alone."""
    seen = self._seen
    if not seen or seen[-1][0] != self.step:
      seen = [*seen, (self.step, self._pick(observation))]
    self._seen = []
    self._asked_at = self.step
    query = dict(observation)
    for key in seen[-1][1]:
      query[key] = np.stack([images[key] for _, images in seen])
    query['steps'] = np.asarray([step for step, _ in seen], np.float64)
    if self._records:
      query['records'] = True
    return query

  def _pick(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
    picked = {}
    for key in self._images:
      for name in (key, key[len('observation/') :]):
        if name in observation:
          # Copies: cameras may write over what they gave.
          picked[name] = np.array(observation[name])
          if picked[name].dtype != np.uint8:
            raise ValueError(
              f'{name!r} is of {picked[name].dtype}; images are uint8, from 0 to 255.'
            )
    if not picked:
      raise ValueError(f'None of the images {self._images} is in {sorted(observation)}.')
    return picked


class Log:
  """The recording of a broker's episodes, which begin with their first step.

  Attributes:
    is_remote: whether the server keeps them.
  """

  def __init__(self, recorder: Any):
    """`recorder` is one of `recorder`; None for none."""
    self._recorder = recorder
    self._is_open = False
    self.is_remote = isinstance(recorder, recorder_lib.RemoteRecorder)

  def add(self, observation: dict[str, Any], action: np.ndarray) -> None:
    if self._recorder is None:
      return
    if not self._is_open:
      self._recorder.begin(observation.get('prompt', ''))
      self._is_open = True
    self._recorder.add(observation, action)

  def end(self, **outcome: Any) -> None:
    if self._is_open:
      self._recorder.end(**outcome)
      self._is_open = False


def choose_recorder(policy: policy_lib.RemotePolicy, given: Any) -> Any:
  """What a broker records with: what it was given, or to a server that records."""
  if given is None and getattr(policy, 'records', False):
    return recorder_lib.RemoteRecorder(policy)
  return given


class ChunkBroker:
  """Executes chunks to their end and then asks for the next, while the robot waits.

  Attributes:
    reply: the newest reply of the server.
  """

  def __init__(
    self, policy: policy_lib.RemotePolicy, steps: int | None = None, recorder: Any = None
  ):
    """
    Args:
      steps: of each chunk are executed, all by default.
      recorder: of `recorder`, takes every control step; by default the server, if it records.
    """
    self._policy = policy
    self._log = Log(choose_recorder(policy, recorder))
    self._steps = steps or policy.description['steps_per_chunk']
    self._frames = Frames(policy.description, self._log.is_remote)
    self._left: collections.deque[np.ndarray] = collections.deque()
    self._begins = True
    self._seed: int | None = None
    self.reply: dict[str, Any] = {}

  def reset(self, seed: int | None = None) -> None:
    """The next observation begins an episode; `seed` is of its noise, None for the server's."""
    self.end()
    self._frames.begin()
    self._left.clear()
    self._begins = True
    self._seed = seed

  def act(self, observation: dict[str, Any]) -> np.ndarray:
    """The action of this control step.

    Raises:
      Refused, Disconnected: as `RemotePolicy.infer`; called again, it asks again.
    """
    self._frames.see(observation)
    if not self._left:
      query = self._frames.make_query(observation)
      if self._begins:
        query.update(reset=True, seed=self._seed)
      self.reply = self._policy.infer(query)
      self._begins = False
      self._left.extend(self.reply['actions'][: self._steps])
    action = self._left.popleft()
    self._log.add(observation, action)
    return action

  def end(self, **outcome: Any) -> None:
    """The episode is over; `outcome`, as success=True, is recorded with it."""
    self._log.end(**outcome)


class AsyncBroker:
  """Asks for the next chunk while this one is executed, so that the robot does not wait.

  A chunk begins at the observation that it was asked with; by the time it is there, its first steps
  are past. They are left out, and over the steps that the old chunk still has, the new one is
  blended in.

  Attributes:
    delay_s: round trips, the newest last.
    waited: how many control steps had to wait for a chunk.
    refused: how many chunks the server refused.
    reply: the newest reply of the server.
  """

  def __init__(
    self,
    policy: policy_lib.RemotePolicy,
    *,
    steps: int | None = None,
    lead_steps: int | None = None,
    blends: bool = True,
    recorder: Any = None,
  ):
    """
    Args:
      steps: control steps from query to query; half a chunk by default.
      lead_steps: how long before these are over the next chunk is asked for; by default as long as
        the slowest of the last answers took, and one more.
      blends: whether the new chunk is blended in, and not begun at once.
      recorder: as of `ChunkBroker`.
    """
    description = policy.description
    self._policy = policy
    self._log = Log(choose_recorder(policy, recorder))
    self._horizon = description['steps_per_chunk']
    self._control_hz = description['control_hz']
    self._steps = steps or max(1, self._horizon // 2)
    self._lead_steps = lead_steps
    self._blends = blends
    self._frames = Frames(description, self._log.is_remote)
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='policy')
    self.delay_s: collections.deque[float] = collections.deque(maxlen=20)
    self.waited = 0
    self.refused = 0
    self.reply: dict[str, Any] = {}
    self._pending: concurrent.futures.Future | None = None
    self.reset()

  def reset(self, seed: int | None = None) -> None:
    """The next observation begins an episode; `seed` as `ChunkBroker`."""
    self.end()
    if self._pending is not None:
      concurrent.futures.wait([self._pending])
    self._pending = None
    self._frames.begin()
    self._plan = plan_lib.Plan()
    self._asked_at = 0
    self._asks_at = 0
    self._begins = True
    self._seed = seed

  def close(self) -> None:
    self._pool.shutdown()

  @property
  def lead_steps(self) -> int:
    """Control steps before the end of a chunk at which the next one is asked for."""
    if self._lead_steps is not None:
      return self._lead_steps
    slowest_s = max(self.delay_s, default=0.0)
    return min(self._steps, math.ceil(slowest_s * self._control_hz) + 1)

  def act(self, observation: dict[str, Any]) -> np.ndarray:
    """The action of this control step.

    Raises:
      Disconnected: as `RemotePolicy.infer`.
      Refused: where there is no action to go on with.
    """
    self._frames.see(observation)
    step = self._frames.step
    self._adopt()
    if self._pending is None and step >= self._asks_at:
      self._ask(observation)
    if step not in self._plan:
      self.waited += not self._begins
      # The robot stands still meanwhile: what comes is of now.
      self._adopt(waits=True)
      if step not in self._plan:
        self._ask(observation)
        self._adopt(waits=True, raises=True)
    self._begins = False
    action = self._plan.take(step)
    self._log.add(observation, action)
    return action

  def end(self, **outcome: Any) -> None:
    """As of `ChunkBroker`."""
    self._log.end(**outcome)

  def _ask(self, observation: dict[str, Any]) -> None:
    query = self._make_query(observation)
    self._asked_at = self._frames.step
    self._pending = self._pool.submit(self._infer, query)

  def _make_query(self, observation: dict[str, Any]) -> dict[str, Any]:
    query = self._frames.make_query(observation)
    if self._begins:
      query.update(reset=True, seed=self._seed)
    return query

  def _infer(self, query: dict[str, Any]) -> dict[str, Any]:
    start_s = time.perf_counter()
    reply = self._policy.infer(query)
    self.delay_s.append(time.perf_counter() - start_s)
    return reply

  def _adopt(self, waits: bool = False, raises: bool = False) -> None:
    """Goes over to the chunk that was asked for, if it is there."""
    pending = self._pending
    if pending is None or not (waits or pending.done()):
      return
    self._pending = None
    try:
      self.reply = pending.result()
    except policy_lib.Refused:
      self.refused += 1
      if raises:
        raise
      return
    self._asks_at = self._find_next_ask()
    self._take_over()

  def _find_next_ask(self) -> int:
    """The control step at which the chunk after the newest is asked for."""
    return self._asked_at + max(1, self._steps - self.lead_steps)

  def _take_over(self) -> None:
    self._plan.adopt(
      np.asarray(self.reply['actions']),
      start=self._asked_at,
      now=self._frames.step,
      blends=self._blends,
    )
