"""The embodiment record of converted LeRobot data: a suggestion, the check of a given one, GEAR
statistics for it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from data import propose
from data.lerobot import gear as gear_lib
from data.lerobot import plan as plan_lib
from data.lerobot import rows as rows_lib
from data.lerobot import source as source_lib
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import record as record_lib

LINE = ',\n    '  # Between the arguments of a printed record.
# What is called state or action by itself; parts of it are called so with more behind.
_STATE = re.compile(r'(?:observations?[./])?(?:robot_|agent_)?states?')
_ACTION = re.compile(r'actions?')
# Sensed, but not of the robot alone, or of its motors.
_ELSE = re.compile(r'environment|env_|effort|torque|current|force|temperature|timestamp')


def suggest(plan: plan_lib.Plan) -> tuple[record_lib.Embodiment, list[str]]:
  """A record that fits the data, and what in it was guessed: `propose.propose`.

  Raises:
    ValueError: there is no camera, or no feature is known as the action.
  """
  source, gear = plan.source, plan.source.gear
  if not plan.images:
    raise ValueError(f'{source.path} has no camera; a world model needs one.')
  state = _choose_fields(plan, 'state')
  action = _choose_fields(plan, 'action')
  vectors = [field.key for field in _list_vectors(plan)]
  if not action:
    raise ValueError(
      f'No feature of {source.path} is called action; name those that are: --action=KEY,... Its '
      f'vectors are {vectors}.'
    )
  fields = {'prompt': prompts.TEMPLATES.get(gear.tag, '{}')}
  if gear.removed:
    fields['episode_key'] = ('episode_metadata/name',)
  found = propose.Found(
    name=plain_name(gear.tag or source.robot or source.path.name),
    hz=source.fps,
    cameras=tuple(_describe_camera(plan, field) for field in _choose_cameras(plan)),
    state=tuple(_describe_vector(plan, field, _shorten(field)) for field in state),
    action=tuple(_describe_vector(plan, field, field.name) for field in action),
    episodes=_read_numbers(plan, state, action),
    fields=fields,
  )
  record, guesses = propose.propose(found)
  if not state:
    guesses.append(f'no state: no feature is called so; --state=KEY,... takes one of {vectors}')
  return record, guesses


def _choose_cameras(plan: plan_lib.Plan) -> list[plan_lib.Field]:
  by_key = {field.key: field for field in plan.images}
  return [by_key[key] for key in plan.options.cameras] or plan.images


def _choose_fields(plan: plan_lib.Plan, part: str) -> list[plan_lib.Field]:
  """The vectors of 'state' or 'action': those that were chosen, or else the sub-keys of
  modality.json, or else the one that is called so, or else those whose names begin so, or else, for
  the state, all that are sensed.
  """
  chosen = plan.options.state if part == 'state' else plan.options.action
  if chosen:
    order = list(chosen)
    fields = [field for field in plan.fields if field.key in order]
    return sorted(fields, key=lambda field: order.index(field.key))
  has_parts = bool(plan.source.gear.state if part == 'state' else plan.source.gear.action)
  prefix = 'action/' if part == 'action' else 'observation/'
  if has_parts:
    return [f for f in plan.fields if f.name.startswith(prefix) and f.start is not None]

  vectors = _list_vectors(plan)
  pattern = _STATE if part == 'state' else _ACTION
  if named := [field for field in vectors if pattern.fullmatch(field.key)]:
    return named[:1]
  parts = [field for field in vectors if re.match(pattern.pattern + r'[./_-]', field.key)]
  if parts or part == 'action':
    return parts
  return [
    field
    for field in vectors
    if field.name.startswith('observation/') and not _ELSE.search(field.key.lower())
  ]


def _list_vectors(plan: plan_lib.Plan) -> list[plan_lib.Field]:
  """The vectors among the features, without what LeRobot and RLDS count steps by."""
  features = plan.source.features

  def is_vector(field: plan_lib.Field) -> bool:
    described = features[field.key]
    return (
      described['dtype'].startswith(plan_lib.NUMBERS)
      and not plan_lib.is_image(described)
      and plan.width(field) <= propose.WIDEST
      and field.key not in source_lib.INDICES
      and field not in plan.annotations
      and not field.key.startswith('next.')
    )

  return [field for field in plan.fields if is_vector(field)]


def _describe_camera(plan: plan_lib.Plan, field: plan_lib.Field) -> propose.Camera:
  rows, columns = plan.size or plan.cameras[field.key][:2]
  return propose.Camera(_shorten(field), rows, columns)


def _describe_vector(plan: plan_lib.Plan, field: plan_lib.Field, key: str) -> propose.Vector:
  feature = plan.source.features[field.key]
  names = propose.flatten_names(feature.get('names'), gear_lib.width(feature))
  if field.start is not None:
    names = names[field.start : field.stop]
  return propose.Vector(
    key=key,
    width=plan.width(field),
    names=names,
    is_relative=field.name.removeprefix('action/') in plan.source.gear.relative,
  )


def _shorten(field: plan_lib.Field) -> str:
  """The key by which a record names a camera or a part of the state; actions have whole names."""
  return field.name.removeprefix('observation/')


def _read_numbers(
  plan: plan_lib.Plan, state: list[plan_lib.Field], action: list[plan_lib.Field]
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
  """Numbers of some episodes, spread over the dataset."""
  source = plan.source
  numbers = [n for chosen in plan.episodes.values() for n in chosen]
  keys = list(dict.fromkeys(field.key for field in (*state, *action)))
  if not keys:
    return []
  episodes = []
  for n in propose.sample(numbers):
    try:
      rows = rows_lib.read(source, source.episodes[n], keys)
    except ValueError:
      continue  # The conversion says which episode this is, when those before it are done.
    states = {_shorten(field): _take(rows, field) for field in state}
    actions = {field.name: _take(rows, field) for field in action}
    episodes.append((states, actions))
  return episodes


def _take(rows: dict[str, np.ndarray], field: plan_lib.Field) -> np.ndarray:
  """[T, width] of a field."""
  values = rows[field.key].reshape(len(rows[field.key]), -1)
  return values if field.start is None else values[:, field.start : field.stop]


def to_python(record: record_lib.Embodiment) -> str:
  """The record as a Python expression, without what is the default."""

  return _write_value(record, LINE)


def _write_value(value: Any, separator: str = ', ') -> str:
  """A value as Python; a dataclass without what is the default."""
  if dataclasses.is_dataclass(value):
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    arguments = [f'{name}={_write_value(x)}' for name, x in given.items() if x != defaults[name]]
    return f'{type(value).__name__}({separator.join(arguments)})'
  if isinstance(value, tuple):
    has_records = any(map(dataclasses.is_dataclass, value))
    between = f'{LINE}    ' if has_records else ', '
    end = ',' if len(value) == 1 else ''
    return f'({between.join(map(_write_value, value))}{end})'
  return repr(value)


def check(plan: plan_lib.Plan, record: record_lib.Embodiment) -> None:
  """Raises ValueError if the record asks for what the result will not have."""
  widths = {field.name: plan.width(field) for field in plan.fields}
  widths |= dict.fromkeys(plan_lib.MADE, 1)
  # Names, and the columns that they must have at least; 0 where only the name matters.
  needed = [
    *((f'observation/{view.key}', 0) for view in record.views),
    *((key, 0) for key in record.language),
    *((f'observation/{s.key}', s.stop) for s in record.state),
    *((s.key, s.stop) for s in record.action),
  ]
  wrong = [
    f'{name!r} with {stop} columns' if stop else repr(name)
    for name, stop in needed
    if stop > widths.get(name, -1)
  ]
  if wrong:
    raise ValueError(
      f'Embodiment {record.name!r} asks for {", ".join(wrong[:10])}; the dataset will have '
      f'{widths}.'
    )


def gear_statistics(plan: plan_lib.Plan, record: record_lib.Embodiment) -> dict[str, Any] | None:
  """The statistics under meta/ as `data.statistics` of a config reads them; None if they lack a
  slice of the record.

  Those of relative actions are over 24 steps, as the reference computes them, however long the
  record's chunks are.
  """
  gear = plan.source.gear
  parts = {}
  for part in ('state', 'action'):
    slices = getattr(record, part)
    lists = [_slice_statistics(gear, part, s) for s in slices]
    if not gear.state or not all(lists):
      return None
    arrays = {name: np.concatenate([each[name] for each in lists]) for name in gear_lib.STATISTICS}
    norms = tuple(s.norm for s in slices for _ in range(s.width))
    parts[part] = normalize.Quantiles(**arrays, norms=norms)

  found = normalize.Statistics(
    state=parts['state'],
    action=parts['action'],
    steps=sum(episode.length for episode in plan.source.episodes.values()),
  )
  described = dataclasses.asdict(record)
  return {
    **normalize.to_dict(found),
    'embodiment': record.name,
    'of': {
      'steps_per_chunk': record.steps_per_chunk,
      'state': described['state'],
      'action': described['action'],
    },
  }


def _slice_statistics(gear: gear_lib.Gear, part: str, s: record_lib.Slice) -> dict[str, np.ndarray]:
  """The six arrays of a slice; empty where meta/ has none of it as it is."""
  key = s.key.removeprefix('action/')
  is_relative = part == 'action' and key in gear.relative
  is_changed = (s.offset, s.scale, s.clip) != (0, 1, ())
  if is_changed or bool(s.relative_to) != is_relative:
    return {}
  arrays = gear.statistics[part].get(key, {})
  return {name: array[s.start : s.stop] for name, array in arrays.items()}


def plain_name(text: str) -> str:
  """`propose.plain_name`, and of nothing 'lerobot'."""
  return propose.plain_name(text) or 'lerobot'
