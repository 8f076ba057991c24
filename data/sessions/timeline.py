"""What a recording says of each control step: what was seen, and what was done.

Whoever drove the robot may have written every step. A server knows of other clients the frames and
states of their queries, and the chunks that it answered: the actions of a chunk hold until the next
one begins, and between queries nothing was seen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.client import recorder
from wam_jax.client import wire
from wam_jax.data import record as record_lib
from wam_jax.serving import observations


@dataclasses.dataclass(frozen=True)
class Step:
  """A control step.

  Attributes:
    views: uint8 images [rows, columns, 3] by the keys of the record.
    state: arrays by its keys, as they were sent.
    action_U: what was executed, or commanded, in the units of the stored arrays.
    is_seen: whether all of it was seen then, and not before.
  """

  views: Mapping[str, np.ndarray]
  state: Mapping[str, np.ndarray]
  action_U: np.ndarray
  is_seen: bool


@dataclasses.dataclass(frozen=True)
class Recording:
  """An episode.

  Attributes:
    path: its file.
    prompt: what the robot was told.
    about: what the file says of robot and policy; `checkpoint_step` as its chunks say it.
    steps: of it, none where nothing was done.
    outcome: what was said of its end.
  """

  path: pathlib.Path
  prompt: str
  about: Mapping[str, Any]
  steps: Sequence[Step]
  outcome: Mapping[str, Any]


def read_about(path: str | os.PathLike[str]) -> Mapping[str, Any]:
  """What a file says of robot and policy; reads its first message alone.

  Raises:
    ValueError: it is no recording.
  """
  first = next(_read(path), {})
  if not isinstance(first.get('about'), dict) or not isinstance(first.get('prompt'), str):
    raise ValueError(f'{path} is no recording: its first message holds no prompt and about.')
  return first['about']


def find_record(about: Mapping[str, Any], path: object) -> record_lib.Embodiment:
  """The record of the robot that a recording is of.

  Raises:
    ValueError: the recording has none.
  """
  try:
    return record_lib.from_dict(json.loads(about['record']))
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(
      f'{path} does not say what its robot is ({type(e).__name__}: {e}). Begin recordings with '
      "`about=RemotePolicy.description`, or name the robot's record by --embodiment."
    ) from e


def read(path: str | os.PathLike[str], record: record_lib.Embodiment) -> Recording:
  """An episode, step by step.

  Raises:
    ValueError: it is cut short, has no end, or does not show what the record says; names the file.
  """
  about = read_about(path)
  first, *messages = _read(path)
  if not messages or not isinstance(messages[-1].get('outcome'), dict):
    raise ValueError(f'{path} has no end.')
  told = [message for message in messages if 'action' in message]
  try:
    steps = _read_told(told, record) if told else _read_queries(messages, record)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(f'{path} is not of {record.name!r}: {type(e).__name__}: {e}') from e
  # An episode ends with the weights that it began with.
  made_by = [message['checkpoint_step'] for message in messages if 'checkpoint_step' in message]
  return Recording(
    path=pathlib.Path(path),
    prompt=first['prompt'],
    about={**about, 'checkpoint_step': made_by[0]} if made_by else about,
    steps=steps,
    outcome=messages[-1]['outcome'],
  )


def _read(path: str | os.PathLike[str]):
  try:
    yield from recorder.read(path)
  except wire.Malformed as e:
    raise ValueError(f'{path} cannot be read: {e}.') from e


def _read_told(messages: Sequence[Mapping[str, Any]], record: record_lib.Embodiment) -> list[Step]:
  steps = []
  for message in messages:
    shown = observations.keep_known(record, message['observation'])
    action_U = np.asarray(message['action'], np.float32)
    observations.check_step(record, shown, action_U)
    views, state = _split(record, shown)
    steps.append(Step({key: view[-1] for key, view in views.items()}, state, action_U, True))
  return steps


def _read_queries(
  messages: Sequence[Mapping[str, Any]], record: record_lib.Embodiment
) -> list[Step]:
  """From the first query that was answered to the newest frame."""
  views: dict[int, Mapping[str, np.ndarray]] = {}
  states: dict[int, Mapping[str, np.ndarray]] = {}
  chunks: dict[int, np.ndarray] = {}
  for message in messages:
    if 'actions' in message:
      chunks[round(float(message['step']))] = np.asarray(message['actions'], np.float32)
    elif 'steps' in message:
      times = [round(float(time)) for time in np.asarray(message['steps']).reshape(-1)]
      strips, state = _split(record, observations.keep_known(record, message['observation']))
      for place, time in enumerate(times):
        views[time] = {key: strip[place] for key, strip in strips.items()}
      states[times[-1]] = state
  if not chunks:
    return []

  actions = _plan(chunks)
  steps = []
  first, last = min(chunks), max(max(views), max(chunks))
  # What was seen before the first chunk is what is known at it.
  view, state = views[max(t for t in views if t <= first)], states[first]
  for time in range(first, last + 1):
    is_seen = time in views and time in states
    view, state = views.get(time, view), states.get(time, state)
    if time not in actions:
      break  # The robot was told nothing more.
    steps.append(Step(view, state, actions[time], is_seen))
  return steps


def _plan(chunks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
  """The action of each control step, by the newest chunk that had begun."""
  actions: dict[int, np.ndarray] = {}
  for start in sorted(chunks):
    for number, action_U in enumerate(chunks[start]):
      actions[start + number] = action_U
  return actions


def _split(
  record: record_lib.Embodiment, shown: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """(views [T, rows, columns, 3], state arrays [n], the newest row)."""
  keys = {view.key for view in record.views}
  views = {key: value for key, value in shown.items() if key in keys}
  missing = keys - views.keys()
  if missing:
    raise ValueError(f'the views {sorted(missing)} are not in it, but {sorted(shown)}')
  state = {key: value for key, value in shown.items() if key not in keys}
  return (
    {key: view if view.ndim == 4 else view[None] for key, view in views.items()},
    {key: np.atleast_1d(value[-1] if value.ndim == 2 else value) for key, value in state.items()},
  )
