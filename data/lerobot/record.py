"""The embodiment record of converted LeRobot data: a suggestion, the check of a given one, GEAR
statistics for it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from data.lerobot import plan as plan_lib
from data.lerobot import source as source_lib
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import record as record_lib

VIEW_WIDTH = 320  # Pixels of a camera in the suggested composite.
TILE = 16  # Pixels; the encoders want composites of whole ones.
LINE = ',\n    '  # Between the arguments of a printed record.


def suggest(plan: plan_lib.Plan) -> record_lib.Embodiment:
  """A record that fits the data: its cameras tiled, its states and actions, its rate, chunks as in
  the paper.
  """
  source, gear = plan.source, plan.source.gear
  if not plan.images:
    raise ValueError(f'{source.path} has no camera; a world model needs one.')
  state = _slices(plan, 'observation/', gear.state, ('observation.state', 'observation.states'))
  action = _slices(plan, 'action/', gear.action, ('action', 'actions'))
  views, composite = _tile(plan)
  return record_lib.Embodiment(
    name=plain_name(gear.tag or source.robot or source.path.name),
    views=views,
    composite=composite,
    state=tuple(dataclasses.replace(s, key=s.key.removeprefix('observation/')) for s in state),
    action=action,
    prompt=prompts.TEMPLATES.get(gear.tag, '{}'),
    episode_key=('episode_metadata/name',) if gear.removed else (),
    **record_lib.timing(source.fps),
  )


def _slices(
  plan: plan_lib.Plan, prefix: str, parts: dict[str, source_lib.Part], keys: tuple[str, ...]
) -> tuple[record_lib.Slice, ...]:
  """The sub-keys of modality.json, or else the numeric vectors whose feature is called like one of
  `keys`.
  """
  gear, features = plan.source.gear, plan.source.features
  relative = {}
  for key in gear.relative:
    part = gear.action[key]
    relative[f'action/{key}'] = f'{key}:0:{part.stop - part.start}'

  def is_named(field: plan_lib.Field) -> bool:
    if parts:
      return field.name.startswith(prefix) and field.start is not None
    return field.key in keys or field.key.startswith(tuple(f'{key}.' for key in keys))

  slices = []
  for field in plan.fields:
    is_numeric = features[field.key]['dtype'].startswith(plan_lib.NUMBERS)
    if is_numeric and is_named(field):
      # LeRobot says no units; the user fills them in.
      reference = relative.get(field.name, '')
      slices.append(record_lib.Slice(field.name, 0, plan.width(field), 'unknown', reference))
  return tuple(slices)


def _tile(plan: plan_lib.Plan) -> tuple[tuple[record_lib.View, ...], tuple[int, int]]:
  """Views in two columns, filled from the top left downwards as the reference does, and the size of
  the whole.
  """
  images = plan.images
  image_height, image_width = plan.size or plan_lib.image_size(plan.source.features[images[0].key])
  width = VIEW_WIDTH
  height = max(TILE, round(width * image_height / image_width / TILE) * TILE)
  # All views have the shape of the first one: the composite has to be a rectangle.
  rows = -(-len(images) // 2)
  columns = min(2, len(images))
  views = []
  for i, field in enumerate(images):
    column, row = divmod(i, rows)
    name = field.name.removeprefix('observation/')
    views.append(record_lib.View(name, row * height, column * width, height, width))
  return tuple(views), (rows * height, columns * width)


def to_python(record: record_lib.Embodiment) -> str:
  """The record as an expression for wam_jax/data/embodiments.py, without what is the default."""

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
    arrays = {
      name: np.concatenate([each[name] for each in lists]) for name in source_lib.STATISTICS
    }
    norms = tuple(s.norm for s in slices for _ in range(s.width))
    parts[part] = normalize.Quantiles(**arrays, norms=norms)

  found = normalize.Statistics(
    state=parts['state'],
    action=parts['action'],
    steps=sum(episode.length for episode in plan.source.episodes),
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


def _slice_statistics(
  gear: source_lib.Gear, part: str, s: record_lib.Slice
) -> dict[str, np.ndarray]:
  """The six arrays of a slice; empty where meta/ has none of it as it is."""
  key = s.key.removeprefix('action/')
  is_relative = part == 'action' and key in gear.relative
  is_changed = (s.offset, s.scale, s.clip) != (0, 1, ())
  if is_changed or bool(s.relative_to) != is_relative:
    return {}
  arrays = gear.statistics[part].get(key, {})
  return {name: array[s.start : s.stop] for name, array in arrays.items()}


def plain_name(text: str) -> str:
  """Lower-case letters, digits and underscores, as TFDS wants names."""
  return re.sub(r'\W+', '_', text).strip('_').lower() or 'lerobot'
