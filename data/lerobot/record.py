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
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import prompts

VIEW_WIDTH = 320  # Pixels of a camera in the suggested composite.
LINE = ',\n    '  # Between the arguments of a printed record.


def suggest(plan: plan_lib.Plan) -> embodiments.Embodiment:
  """A record that fits the data: its cameras tiled, its states and actions, its rate, chunks as in
  the paper.
  """
  source, gear = plan.source, plan.source.gear
  if not plan.images:
    raise ValueError(f'{source.path} has no camera; a world model needs one.')
  state = _slices(plan, 'observation/', gear.state, ('observation.state', 'observation.states'))
  action = _slices(plan, 'action/', gear.action, ('action', 'actions'))
  views, composite = _tile(plan)
  return embodiments.Embodiment(
    name=plain_name(gear.tag or source.robot or source.path.name),
    views=views,
    composite=composite,
    state=tuple(dataclasses.replace(s, key=s.key.removeprefix('observation/')) for s in state),
    action=action,
    prompt=prompts.TEMPLATES.get(gear.tag, '{}'),
    episode_key=('episode_metadata/name',) if gear.removed else (),
    **embodiments.timing(source.fps),
  )


def _slices(
  plan: plan_lib.Plan, prefix: str, parts: dict[str, source_lib.Part], keys: tuple[str, ...]
) -> tuple[embodiments.Slice, ...]:
  """The sub-keys of modality.json, or else the numeric vectors whose feature is called like one of
  `keys`.
  """
  gear, features = plan.source.gear, plan.source.features
  relative = {
    f'action/{key}': f'{key}:0:{gear.action[key].stop - gear.action[key].start}'
    for key in gear.relative
  }
  named = [
    field
    for field in plan.fields
    if (
      field.name.startswith(prefix) and field.start is not None
      if parts
      else field.key in keys or field.key.startswith(tuple(f'{key}.' for key in keys))
    )
  ]
  return tuple(
    embodiments.Slice(field.name, 0, plan.width(field), 'unknown', relative.get(field.name, ''))
    for field in named
    if features[field.key]['dtype'].startswith(plan_lib.NUMBERS)
  )


def _tile(plan: plan_lib.Plan) -> tuple[tuple[embodiments.View, ...], tuple[int, int]]:
  """Views in two columns, filled from the top left downwards as the reference does, and the size of
  the whole.
  """
  images = plan.images
  height, width = plan.size or plan_lib.image_size(plan.source.features[images[0].key])
  height, width = max(16, round(VIEW_WIDTH * height / width / 16) * 16), VIEW_WIDTH
  rows = -(-len(images) // 2)
  views = tuple(
    embodiments.View(
      field.name.removeprefix('observation/'), i % rows * height, i // rows * width, height, width
    )
    for i, field in enumerate(images)
  )
  return views, (rows * height, width * min(2, len(images)))


def to_python(record: embodiments.Embodiment) -> str:
  """The record as an expression for wam_jax/data/embodiments.py, without what is the default."""

  def write(value, separator=', '):
    if dataclasses.is_dataclass(value):
      given = {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)
        if getattr(value, f.name) != f.default
      }
      return (
        f'{type(value).__name__}('
        + separator.join(f'{key}={write(x)}' for key, x in given.items())
        + ')'
      )
    if isinstance(value, tuple):
      between = LINE + '    ' if any(map(dataclasses.is_dataclass, value)) else ', '
      return '(' + between.join(map(write, value)) + ',' * (len(value) == 1) + ')'
    return repr(value)

  return write(record, LINE)


def check(plan: plan_lib.Plan, record: embodiments.Embodiment) -> None:
  """Raises ValueError if the record asks for what the result will not have."""
  widths = {field.name: plan.width(field) for field in plan.fields} | dict.fromkeys(
    plan_lib.MADE, 1
  )
  needed = [(f'observation/{v.key}', 0) for v in record.views] + [
    (key, 0) for key in record.language
  ]
  needed += [(f'observation/{s.key}', s.stop) for s in record.state] + [
    (s.key, s.stop) for s in record.action
  ]
  wrong = [
    f'{name!r} with {stop} columns' if stop else repr(name)
    for name, stop in needed
    if stop > widths.get(name, -1)
  ]
  if wrong:
    raise ValueError(
      f'Embodiment {record.name!r} asks for {", ".join(wrong[:10])}; the dataset will have {widths}.'
    )


def gear_statistics(plan: plan_lib.Plan, record: embodiments.Embodiment) -> dict[str, Any] | None:
  """The statistics under meta/ as `data.statistics` of a config reads them; None if they lack a
  slice of the record.

  Those of relative actions are over 24 steps, as the reference computes them, however long the
  record's chunks are.
  """
  parts = {}
  for part in ('state', 'action'):
    slices = getattr(record, part)
    lists = [_slice_statistics(plan.source.gear, part, s) for s in slices]
    if not plan.source.gear.state or not all(lists):
      return None
    parts[part] = normalize.Quantiles(
      **{name: np.concatenate([each[name] for each in lists]) for name in source_lib.STATISTICS},
      norms=tuple(s.norm for s in slices for _ in range(s.width)),
    )
  found = normalize.Statistics(**parts, steps=sum(e.length for e in plan.source.episodes))
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
  gear: source_lib.Gear, part: str, s: embodiments.Slice
) -> dict[str, np.ndarray]:
  """The six arrays of a slice; empty where meta/ has none of it as it is."""
  key = s.key.removeprefix('action/')
  is_relative = part == 'action' and key in gear.relative
  differs = (s.offset, s.scale, s.clip) != (0, 1, ()) or bool(s.relative_to) != is_relative
  return (
    {}
    if differs
    else {
      name: array[s.start : s.stop] for name, array in gear.statistics[part].get(key, {}).items()
    }
  )


def plain_name(text: str) -> str:
  """Lower-case letters, digits and underscores, as TFDS wants names."""
  return re.sub(r'\W+', '_', text).strip('_').lower() or 'lerobot'
