"""What a LeRobot directory holds that a conversion, or the record, does not use: nothing is left
aside without a word.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from data.lerobot import files
from data.lerobot import gear as gear_lib
from data.lerobot import plan as plan_lib
from data.lerobot import source as source_lib
from wam_jax.data import record as record_lib

_FOLDERS = ('data', 'videos', 'images')
_READ = ('info.json', 'episodes.jsonl', 'tasks.jsonl', 'tasks.parquet', *gear_lib.FILES)
_MOST = 10  # Names in a line.


def list_unused(plan: plan_lib.Plan, record: record_lib.Embodiment) -> list[str]:
  """A line for each kind of what is not used; none where all is."""
  source = plan.source
  number = next(iter(plan.episodes.values()))[0]
  columns = files.list_columns(source.episodes[number].rows)
  kinds = {
    'cameras that are stored, and not in the record': _list_cameras(plan, record),
    'vectors that are stored, and not in the record': _list_vectors(plan, record),
    'other features that are stored, and not in the record': _list_others(plan, record),
    'columns that are stored, of arrays that the record takes in part': _list_columns(plan, record),
    'features that --exclude leaves out': list(plan.options.exclude),
    'columns of parquet that meta/info.json does not have': set(columns) - set(source.features),
    'files that no episode names': _list_files(source),
    'files under meta/ that are not read': _list_metadata(source.path / 'meta'),
  }
  return [f'{kind}: {_write(names)}' for kind, names in kinds.items() if names]


def _write(names: Iterable[str]) -> str:
  names = sorted(names)
  more = f' and {len(names) - _MOST} more' if len(names) > _MOST else ''
  return ', '.join(names[:_MOST]) + more


def _list_cameras(plan: plan_lib.Plan, record: record_lib.Embodiment) -> list[str]:
  used = {f'observation/{view.key}' for view in record.views}
  return [field.key for field in plan.images if field.name not in used]


def _list_taken(record: record_lib.Embodiment) -> dict[str, set[int]]:
  """By name under `steps/`, the columns that the record takes."""
  taken: dict[str, set[int]] = {}
  for prefix, slices in (('observation/', record.state), ('', record.action)):
    for s in slices:
      taken.setdefault(prefix + s.key, set()).update(range(s.start, s.stop))
  return taken


def _is_vector(plan: plan_lib.Plan, field: plan_lib.Field) -> bool:
  described = plan.source.features[field.key]
  is_number = described['dtype'].startswith(plan_lib.NUMBERS)
  return is_number and not plan_lib.is_image(described) and field not in plan.annotations


def _list_vectors(plan: plan_lib.Plan, record: record_lib.Embodiment) -> list[str]:
  taken = _list_taken(record)
  return [
    f'{field.key}[{plan.width(field)}]' if field.start is None else field.name
    for field in plan.fields
    if _is_vector(plan, field) and field.key not in source_lib.INDICES and field.name not in taken
  ]


def _list_columns(plan: plan_lib.Plan, record: record_lib.Embodiment) -> list[str]:
  taken = _list_taken(record)
  partly = []
  for field in plan.fields:
    left = sorted(set(range(plan.width(field))) - taken.get(field.name, set()))
    if field.name in taken and left:
      partly.append(f'{field.key} {left}')
  return partly


def _list_others(plan: plan_lib.Plan, record: record_lib.Embodiment) -> list[str]:
  told = {*record.language, *record.episode_key}
  return [
    field.key
    for field in plan.fields
    if not _is_vector(plan, field) and field not in plan.images and field.name not in told
  ]


def _list_files(source: source_lib.Source) -> set[str]:
  """Of data and videos; pictures may lie in files that rows name, and are not looked for."""
  named: set[pathlib.Path] = set()
  for episode in source.episodes.values():
    named.add(episode.rows)
    named.update(clip.path for clip in episode.clips.values())
  has_pictures = any(feature['dtype'] == 'image' for feature in source.features.values())
  folders = [name for name in _FOLDERS if not (name == 'images' and has_pictures)]
  found = {
    path
    for folder in folders
    for path in (source.path / folder).rglob('*')
    if path.is_file() and not path.name.startswith('.')
  }
  return {str(path.relative_to(source.path)) for path in found - named}


def _list_metadata(meta: pathlib.Path) -> list[str]:
  return [
    path.name
    for path in meta.iterdir()
    if path.is_file() and path.name not in _READ and not path.name.startswith('.')
  ]
