"""What clients ask and are answered, in the three dialects of one port; `client.wire` makes bytes
of it.

A request without `endpoint` is openpi's, with it RoboArena's or DreamZero's. A client that numbers
its requests (`request_id`) is answered as soon as an answer is there, errors as maps; all others in
the order in which they asked, errors as texts, which they raise. Owns no session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.client import wire as codec

# Of the envelope; all other keys are what the robot observes.
_ENVELOPE = frozenset(
  [
    'endpoint',
    'session_id',
    'session_ids',
    'env_id',
    'reset',
    'request_id',
    'prompt',
    'robot',
    'keep',
    'resume',
    'seed',
    'prefix',
    'records',
  ]
)
RESET_DONE = 'reset successful'


class Refused(Exception):
  """A request that is answered by an error; the text is for whoever asked.

  Attributes:
    reason: one word of it, for metrics and clients that decide by it.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Request:
  """What a message asks.

  Attributes:
    endpoint: 'infer', 'reset', 'metadata' or 'record'.
    is_enveloped: whether it named its endpoint.
    session: the id of the session on its connection; '' for none.
    resets: with `reset`, the ids to reset; None for all of the connection.
    starts_over: whether the observation is the first of an episode.
    prompt: what the robot is told; None where the message says nothing.
    robot: the name of the robot; '' for the server's.
    seed: of the noise of an episode that begins; None for the server's.
    request_id: what the answer repeats; None where answers come in order.
    keeps: whether the session shall outlive its connection for a while.
    resume: the token of a session whose connection is gone; '' for none.
    records: whether the client sends every control step by `record`, this one, too.
    prefix_DU: actions [d, dimensions], d 0 or more, that the robot is committed to from now on;
      None of one that waits.
    observation: all other keys, nested maps joined by '/'.
  """

  endpoint: str
  is_enveloped: bool
  session: str
  resets: tuple[str, ...] | None
  starts_over: bool
  prompt: str | None
  robot: str
  seed: int | None
  request_id: int | str | None
  keeps: bool
  resume: str
  records: bool
  prefix_DU: np.ndarray | None
  observation: Mapping[str, Any]


def read_request(packed: bytes, most_prompt: int) -> Request:
  """What a binary message asks.

  Args:
    most_prompt: the most characters of a prompt.
  Raises:
    client.wire.Malformed: it is no request.
  """
  message = codec.unpack(packed)
  if not isinstance(message, dict):
    raise codec.Malformed(f'a request is a map, not a {type(message).__name__}')
  # Keys of clients in other languages may be bytes.
  message = {_read_text(key, 'a key'): value for key, value in message.items()}
  endpoint = _read_text(message.get('endpoint', 'infer'), 'endpoint')
  prompt = message.get('prompt')
  if prompt is not None:
    prompt = _read_text(prompt, 'prompt')
    if len(prompt) > most_prompt:
      raise codec.Malformed(f'the prompt has {len(prompt)} characters; at most {most_prompt}')
  return Request(
    # As the reference, for which whatever is no reset is an observation.
    endpoint=endpoint if endpoint in ('reset', 'metadata', 'record') else 'infer',
    is_enveloped='endpoint' in message,
    session=_read_session(message),
    resets=_read_resets(message),
    starts_over=_read_flag(message, 'reset'),
    prompt=prompt,
    robot=_read_text(message.get('robot', ''), 'robot'),
    seed=_read_seed(message.get('seed')),
    request_id=_read_request_id(message.get('request_id')),
    keeps=_read_flag(message, 'keep'),
    resume=_read_text(message.get('resume', ''), 'resume'),
    records=_read_flag(message, 'records'),
    prefix_DU=_read_prefix(message.get('prefix')),
    observation=_flatten(message),
  )


@dataclasses.dataclass(frozen=True)
class Done:
  """What `record` says beside the observation.

  Attributes:
    step: the number of a control step in its episode; at the end, how many there were.
    action_U: what was executed then; None at the end.
    outcome: that of the episode, which is over; None where it goes on.
  """

  step: int
  action_U: np.ndarray | None
  outcome: dict[str, Any] | None


def read_done(observation: Mapping[str, Any]) -> Done:
  """What a request to `record` says.

  Raises:
    client.wire.Malformed: it says no step and action, nor that the episode ended.
  """
  step, action_U = observation.get('step'), observation.get('action')
  if isinstance(step, bool) or not isinstance(step, int) or step < 0:
    raise codec.Malformed('step is a number from 0')
  if _read_flag(observation, 'ended'):
    outcome = {
      key.removeprefix('outcome/'): value
      for key, value in observation.items()
      if key.startswith('outcome/')
    }
    if not all(isinstance(value, (bool, int, float, str)) for value in outcome.values()):
      raise codec.Malformed('an outcome holds numbers and texts')
    return Done(step, None, outcome)
  if not isinstance(action_U, np.ndarray) or action_U.dtype.kind != 'f' or action_U.ndim != 1:
    raise codec.Malformed('action is an array [dimensions] of floats')
  return Done(step, action_U, None)


def make_error(error: Refused, request_id: int | str | None) -> bytes | str:
  """The answer to a request that is refused."""
  if request_id is None:
    return f'error ({error.reason}): {error}'
  content = {'type': 'error', 'reason': error.reason, 'message': str(error)}
  return codec.pack({**content, 'request_id': request_id})


def make_reset_done(request_id: int | str | None) -> bytes | str:
  """The answer to a reset."""
  if request_id is None:
    return RESET_DONE
  return codec.pack({'status': RESET_DONE, 'request_id': request_id})


def make_reply(
  request: Request, action_SU: np.ndarray, notes: Mapping[str, Any], as_array: bool
) -> bytes:
  """A chunk in the request's dialect.

  Args:
    notes: timings and what happened to the session, for all but bare arrays.
    as_array: whether enveloped requests get a bare array, as DreamZero's server gives.
  """
  action_SU = np.asarray(action_SU, np.float32)
  if request.is_enveloped and as_array and request.request_id is None:
    return codec.pack(action_SU)
  reply = {'actions': action_SU, **notes}
  if request.request_id is not None:
    reply['request_id'] = request.request_id
  return codec.pack(reply)


def _read_session(message: Mapping[str, Any]) -> str:
  for key in ('session_id', 'env_id'):
    if message.get(key) is not None:
      return _read_id(message[key], key)
  return ''


def _read_resets(message: Mapping[str, Any]) -> tuple[str, ...] | None:
  given = message.get('session_ids')
  if given is None:
    session = _read_session(message)
    return (session,) if session else None
  if isinstance(given, np.ndarray):
    given = given.reshape(-1).tolist()
  if not isinstance(given, list):
    given = [given]
  return tuple(_read_id(one, 'session_ids') for one in given)


def _read_id(value: Any, key: str) -> str:
  """A text or a number, or an array or a list of one."""
  if isinstance(value, np.ndarray) and value.size == 1:
    value = value.reshape(-1)[0]
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if isinstance(value, np.generic):
    value = value.item()
  # True is an int to Python, and no id to anybody.
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise codec.Malformed(f'{key} is a text or a number, not a {type(value).__name__}')
  text = str(value)
  if not 0 < len(text) <= 200:
    raise codec.Malformed(f'{key} has {len(text)} characters; expected 1 to 200')
  return text


def _read_request_id(value: Any) -> int | str | None:
  if value is None:
    return None
  text = _read_id(value, 'request_id')
  return int(value) if isinstance(value, (int, np.integer)) else text


def _read_prefix(value: Any) -> np.ndarray | None:
  if value is None:
    return None
  if not isinstance(value, np.ndarray) or value.dtype.kind not in 'fi' or value.ndim != 2:
    raise codec.Malformed('prefix is an array [steps, dimensions] of actions')
  return value.astype(np.float32)


def _read_seed(value: Any) -> int | None:
  if value is None:
    return None
  text = _read_id(value, 'seed')
  if not text.isdecimal() or int(text) >= 2**32:
    raise codec.Malformed('seed is a number from 0 to 2**32 - 1')
  return int(text)


def _read_flag(message: Mapping[str, Any], key: str) -> bool:
  value = message.get(key, False)
  if isinstance(value, np.ndarray) and value.size == 1:
    value = value.reshape(-1)[0]
  if not isinstance(value, (bool, int, np.bool_, np.integer)):
    raise codec.Malformed(f'{key} is true or false, not a {type(value).__name__}')
  return bool(value)


def _read_text(value: Any, what: str) -> str:
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  if isinstance(value, np.ndarray) and value.size == 1:
    value = value.reshape(-1)[0]
  if not isinstance(value, str):
    raise codec.Malformed(f'{what} is a text, not a {type(value).__name__}')
  return str(value)


def _flatten(message: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
  """The observation: maps in maps by paths, without the keys of the envelope."""
  flat = {}
  for key, value in message.items():
    path = prefix + _read_text(key, 'a key')
    if path in _ENVELOPE:
      continue
    if isinstance(value, dict):
      flat |= _flatten(value, f'{path}/')
    else:
      flat[path] = value
  return flat
