"""What becomes of a LeRobot directory in RLDS: features, their names, and the episodes of each
split.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.lerobot import source as source_lib

NUMBERS = ('float', 'int', 'uint', 'bool')  # How the dtypes of info.json begin.
# What RLDS asks of every step; a feature of the source with one of these names comes first.
MADE = ('is_first', 'is_last', 'is_terminal', 'language_instruction')


@dataclasses.dataclass(frozen=True)
class Field:
  """A feature of the result.

  Attributes:
    name: the path under `steps/`, with '/'.
    key: the feature of the source that it is read from.
    start, stop: the columns taken of it; all of them where None.
  """

  name: str
  key: str
  start: int | None = None
  stop: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is converted, and to what; can be pickled.

  Attributes:
    source: the directory.
    fields: every feature but those in `MADE`.
    size: the rows and columns of all images, or None for those they have.
    episodes: per split, the episode numbers.
  """

  source: source_lib.Source
  fields: tuple[Field, ...]
  size: tuple[int, int] | None
  episodes: dict[str, list[int]]

  @property
  def images(self) -> list[Field]:
    """The cameras, in order."""
    return [field for field in self.fields if is_image(self.source.features[field.key])]

  @property
  def annotations(self) -> list[Field]:
    """The texts of modality.json, in order."""
    return [field for field in self.fields if field.name.startswith('annotation/')]

  def width(self, field: Field) -> int:
    """The count of numbers in a field."""
    if field.start is not None:
      return field.stop - field.start
    return source_lib.width(self.source.features[field.key])


def make_plan(
  source: source_lib.Source, size: tuple[int, int] | None = None, exclude: list[str] = ()
) -> Plan:
  """Names for all features, and the episodes of each split.

  Raises:
    ValueError: a feature cannot be stored, two would have one name, or an excluded one does not
      exist.
  """
  gear, features = source.gear, source.features
  unknown = [key for key in exclude if key not in features]
  if unknown:
    raise ValueError(
      f'--exclude names {unknown}, which are no features; the dataset has {sorted(features)}.'
    )

  # What modality.json names is stored under that name, and only there.
  sliced = {part.key for part in (*gear.state.values(), *gear.action.values())}
  renamed = sliced | {*gear.video.values(), *gear.annotation.values(), 'episode_index', *exclude}
  fields = [
    *_slice_fields('observation', gear.state),
    *_slice_fields('action', gear.action),
    *(Field(f'observation/{key}', feature) for key, feature in gear.video.items()),
    *(Field(f'annotation/{key}', feature) for key, feature in gear.annotation.items()),
    *(Field(_step_key(key, features[key]), key) for key in features if key not in renamed),
  ]
  fields = tuple(field for field in fields if field.key not in exclude)
  _check_fields(source, fields)

  episodes = {
    split: [n for n in numbers if n not in gear.discarded]
    for split, numbers in source.splits.items()
  }
  empty = [split for split, numbers in episodes.items() if not numbers]
  if empty:
    raise ValueError(
      f'{source.path}: no episode is left in the splits {empty}; discarded_episode_indices of '
      'meta/info.json names all of them.'
    )
  return Plan(source, fields, size, episodes)


def _slice_fields(group: str, parts: dict[str, source_lib.Part]) -> list[Field]:
  return [Field(f'{group}/{key}', part.key, part.start, part.stop) for key, part in parts.items()]


def _check_fields(source: source_lib.Source, fields: tuple[Field, ...]) -> None:
  names = [field.name for field in fields]

  def is_ambiguous(name: str) -> bool:
    """Whether another field has the name, or is called like a folder of it."""
    return names.count(name) > 1 or any(other.startswith(f'{name}/') for other in names)

  twice = sorted(set(filter(is_ambiguous, names)))
  if twice:
    raise ValueError(
      f'{source.path}: several features would be called {twice}. Leave all but one out: '
      '--exclude=NAME'
    )
  unfit = [field.key for field in fields if not _fits(source.features[field.key])]
  if unfit:
    raise ValueError(
      f'{source.path}: features {unfit} are neither numbers, texts nor colour images, so they '
      f'cannot be stored. Leave them out: --exclude={",".join(unfit)}'
    )


def _fits(feature: dict[str, Any]) -> bool:
  # LeRobot has called both what describes a video, and with either spelling.
  described = {**(feature.get('video_info') or {}), **(feature.get('info') or {})}
  is_depth = described.get('video.is_depth_map') or described.get('is_depth_map')
  if is_image(feature):
    return not is_depth
  return feature['dtype'].startswith(NUMBERS) or feature['dtype'] == 'string'


def is_image(feature: dict[str, Any]) -> bool:
  """Whether a feature of info.json is a camera."""
  return feature['dtype'] in ('video', 'image')


# Vectors that are sensed, where their name does not begin with `observation`.
_SENSED = re.compile(r'state|proprio|joint|qpos|qvel|gripper|eef|effort')


def _step_key(key: str, feature: dict[str, Any]) -> str:
  """The name of a feature that modality.json does not name: what is seen and sensed lies under
  observation/, as in RLDS.
  """
  for prefix in ('observation.images.', 'observation.'):
    if key.startswith(prefix):
      return f'observation/{key.removeprefix(prefix)}'
  is_sensed = (
    feature['dtype'].startswith('float')
    and not key.startswith(('action', 'next.'))
    and _SENSED.search(key)
  )
  if is_image(feature) or is_sensed:
    return f'observation/{key}'
  return 'reward' if key == 'next.reward' else key


def make_features(plan: Plan) -> tfds.features.FeaturesDict:
  """TFDS features of an episode."""
  feature = tfds.features
  made = {name: feature.Scalar(np.bool_) for name in MADE}
  made['language_instruction'] = feature.Text()
  read = {field.name: _make_feature(plan, field) for field in plan.fields}
  return feature.FeaturesDict(
    {
      'steps': feature.Dataset(nest({**made, **read})),
      'episode_metadata': {'name': feature.Text(), 'episode_index': feature.Scalar(np.int64)},
    }
  )


def _make_feature(plan: Plan, field: Field) -> Any:
  described = plan.source.features[field.key]
  if is_image(described):
    size = plan.size or image_size(described)
    return tfds.features.Image(shape=(*size, 3), encoding_format='jpeg')
  if described['dtype'] == 'string' or field.name.startswith('annotation/'):
    return tfds.features.Text()
  if field.key in source_lib.INDICES:
    return tfds.features.Scalar(dtype(described))
  shape = tuple(described['shape']) if field.start is None else (plan.width(field),)
  return tfds.features.Tensor(shape=shape, dtype=dtype(described))


def image_size(described: dict[str, Any]) -> tuple[int, int]:
  """Rows and columns; channels are stored last, or first."""
  shape = described['shape']
  return tuple(shape[:2] if shape[-1] <= 4 else shape[1:])


def dtype(described: dict[str, Any]) -> type:
  """What the numbers of a feature are stored as."""
  kind = described['dtype']
  if kind.startswith('float'):
    return np.float32
  return np.bool_ if kind.startswith('bool') else np.int64


def nest(flat: dict[str, Any]) -> dict[str, Any]:
  """{'a/b': x} to {'a': {'b': x}}."""
  nested = {}
  for name, value in flat.items():
    parent, _, leaf = name.rpartition('/')
    group = nested.setdefault(parent, {}) if parent else nested
    group[leaf] = value
  return nested
