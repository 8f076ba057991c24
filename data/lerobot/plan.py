"""What becomes of a LeRobot directory in RLDS: features, their names, the episodes of each split,
and where their pictures lie.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import video
from data.lerobot import choice
from data.lerobot import gear as gear_lib
from data.lerobot import pictures
from data.lerobot import places as places_lib
from data.lerobot import rows as rows_lib
from data.lerobot import source as source_lib

NUMBERS = ('float', 'int', 'uint', 'bool')  # How the dtypes of info.json begin.
# What RLDS asks of every step; a feature of the source with one of these names comes first.
MADE = ('is_first', 'is_last', 'is_terminal', 'language_instruction')


@dataclasses.dataclass(frozen=True)
class Options:
  """What may be chosen.

  Attributes:
    embodiment: the record to check and write in place of the proposed one, as
      `embodiments.resolve` takes it; '' for the proposed one.
    size: of all images, 'ROWSxCOLUMNS'; '' for the size that they have.
    as_jpeg: whether pictures that are PNG become JPEG, too.
    exclude: features that are left out.
    episodes: those that are taken, as `choice.choose` takes them.
    state, action: features that make the proposed record's state and action, in order; () for those
      that their names give away.
    cameras: the cameras of the proposed record, in order; () for all.
  """

  embodiment: str = ''
  size: str = ''
  as_jpeg: bool = False
  exclude: Sequence[str] = ()
  episodes: str = ''
  state: Sequence[str] = ()
  action: Sequence[str] = ()
  cameras: Sequence[str] = ()


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
    options: what was chosen.
    fields: every feature but those in `MADE`.
    size: the rows and columns of all images, or None for those they have.
    episodes: per split, the episode numbers.
    places: where the frames of videos lie.
    cameras: by feature, what its pictures are and become.
    notes: what was found that is not as the metadata say, and what was left out.
  """

  source: source_lib.Source
  options: Options
  fields: tuple[Field, ...]
  size: tuple[int, int] | None
  episodes: dict[str, list[int]]
  places: places_lib.Places
  cameras: dict[str, pictures.Camera]
  notes: tuple[str, ...]

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
    return gear_lib.width(self.source.features[field.key])


def make_plan(source: source_lib.Source, options: Options = Options()) -> Plan:
  """Names for all features, the episodes of each split, and what their pictures are, by the files.

  Raises:
    ValueError: a feature cannot be stored, two would have one name, or a chosen one does not exist;
      files of a chosen episode are not there, or do not hold its frames.
  """
  size = video.parse_size(options.size)
  _check_chosen(source, options)
  fields = _name_fields(source, options)
  _check_fields(source, fields)
  keys = list(dict.fromkeys(f.key for f in fields if source.features[f.key]['dtype'] == 'video'))

  notes = list(source.notes)
  episodes = _choose_episodes(source, options.episodes, keys, notes)
  numbers = [n for chosen in episodes.values() for n in chosen]
  places, problems, moved = places_lib.locate(source, numbers, keys)
  wrong = {n for problem in problems for n in problem.numbers}
  others = len(set(numbers) - wrong)
  places_lib.fail(problems, others, _leave_out(source, numbers, wrong))
  plan = Plan(source, options, fields, size, episodes, places, {}, (*notes, *moved))
  return _look(plan, numbers[0])


def _check_chosen(source: source_lib.Source, options: Options) -> None:
  for flag in ('exclude', 'state', 'action', 'cameras'):
    unknown = [key for key in getattr(options, flag) if key not in source.features]
    if unknown:
      raise ValueError(
        f'--{flag} names {unknown}, which are no features; the dataset has '
        f'{sorted(source.features)}.'
      )
  taken = (*options.state, *options.action, *options.cameras)
  if both := [key for key in taken if key in options.exclude]:
    raise ValueError(
      f'--exclude leaves out {both}, which --state, --action or --cameras take; give one of them.'
    )
  no_cameras = [key for key in options.cameras if not is_image(source.features[key])]
  no_vectors = [
    key
    for key in (*options.state, *options.action)
    if not source.features[key]['dtype'].startswith(NUMBERS) or is_image(source.features[key])
  ]
  if no_cameras or no_vectors:
    raise ValueError(
      f'--cameras names {no_cameras}, which are no pictures.'
      if no_cameras
      else f'--state or --action names {no_vectors}, which are no numbers.'
    )


def _name_fields(source: source_lib.Source, options: Options) -> tuple[Field, ...]:
  gear, features = source.gear, source.features
  # What modality.json names is stored under that name, and only there.
  sliced = {part.key for part in (*gear.state.values(), *gear.action.values())}
  named = {*gear.video.values(), *gear.annotation.values()}
  renamed = sliced | named | {'episode_index', *options.exclude}
  fields = [
    *_slice_fields('observation', gear.state),
    *_slice_fields('action', gear.action),
    *(Field(f'observation/{key}', feature) for key, feature in gear.video.items()),
    *(Field(f'annotation/{key}', feature) for key, feature in gear.annotation.items()),
    *(Field(_step_key(key, features[key], options), key) for key in features if key not in renamed),
  ]
  return tuple(field for field in fields if field.key not in options.exclude)


def _slice_fields(group: str, parts: Mapping[str, gear_lib.Part]) -> list[Field]:
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


def _fits(feature: Mapping[str, Any]) -> bool:
  # LeRobot has called both what describes a video, and with either spelling.
  described = {**(feature.get('video_info') or {}), **(feature.get('info') or {})}
  is_depth = described.get('video.is_depth_map') or described.get('is_depth_map')
  if is_image(feature):
    return not is_depth
  return feature['dtype'].startswith(NUMBERS) or feature['dtype'] == 'string'


def is_image(feature: Mapping[str, Any]) -> bool:
  """Whether a feature of info.json is a camera; some keep pictures as arrays of numbers."""
  shape = feature['shape']
  is_array = feature['dtype'] == 'uint8' and len(shape) == 3 and 3 in (shape[0], shape[-1])
  return feature['dtype'] in ('video', 'image') or is_array


# What LeRobot, RLDS and others put before the names of what is observed.
_OBSERVED = re.compile(r'^(?:observations?|obs)[./](?:(?:images?|rgb)[./])?')
_IMAGES = re.compile(r'^(?:images?|rgb|cameras?|videos?)[./]')
# How vectors are called that are sensed, where their name does not begin with `observation`.
_SENSED = re.compile(
  r'state|proprio|joint|qpos|qvel|gripper|eef|effort|pose|position|cartesian|tcp|velocity|torque'
  r'|force|arm|hand|wrist|finger'
)
ACTS = re.compile(r'^actions?(?![a-z])')  # How the names of actions begin.


def _step_key(key: str, feature: Mapping[str, Any], options: Options) -> str:
  """The name of a feature that modality.json does not name: what is seen and sensed lies under
  observation/, as in RLDS.
  """
  short = _OBSERVED.sub('', key)
  if short != key:
    return f'observation/{short}'
  if is_image(feature):
    return f'observation/{_IMAGES.sub("", key)}'
  is_sensed = (
    feature['dtype'].startswith('float')
    and not key.startswith('next.')
    and key not in options.action
    and not ACTS.match(key)
    and _SENSED.search(key.lower())
  )
  if is_sensed or key in options.state:
    return f'observation/{key}'
  return 'reward' if key == 'next.reward' else key


def _choose_episodes(
  source: source_lib.Source, text: str, keys: Collection[str], notes: list[str]
) -> dict[str, list[int]]:
  """Per split, the episodes that are taken; what is left out goes to `notes`.

  Raises:
    ValueError: files of theirs are not there, unless it is asked for those that are; none is left.
  """
  listed = sorted(n for numbers in source.splits.values() for n in numbers)
  chosen = set(choice.choose(text, listed)) - source.gear.discarded
  if discarded := source.gear.discarded & set(listed):
    notes.append(
      f'{len(discarded)} episodes are discarded by meta/info.json: {choice.write(discarded)}'
    )
  missing = places_lib.find_missing(source, sorted(chosen), keys)
  absent = {n for problem in missing for n in problem.numbers}
  if choice.PRESENT in choice.split(text):
    chosen -= absent
    if absent:
      notes.append(f'{len(absent)} episodes lack files: {choice.write(absent)}')
  else:
    more = f'{text},{choice.PRESENT}' if text else choice.PRESENT
    places_lib.fail(missing, len(chosen - absent), f'--episodes={more}')
  if not chosen:
    raise ValueError(
      f'{source.path}: no episode is left in the splits {sorted(source.splits)}; '
      'discarded_episode_indices of meta/info.json, or --episodes, leave all of them out.'
    )
  if left := set(listed) - chosen:
    notes.append(f'{len(chosen)} of {len(listed)} episodes are taken, without {choice.write(left)}')

  episodes = {
    split: [n for n in numbers if n in chosen] for split, numbers in source.splits.items()
  }
  if empty := [split for split, numbers in episodes.items() if not numbers]:
    notes.append(f'no episode is left in the splits {empty}')
  return {split: numbers for split, numbers in episodes.items() if numbers}


def _leave_out(source: source_lib.Source, numbers: Collection[int], wrong: Collection[int]) -> str:
  """The flag that takes the chosen episodes without those that are wrong."""
  if len(numbers) == sum(map(len, source.splits.values())):
    return choice.write_without(wrong)
  return f'--episodes={choice.write(set(numbers) - set(wrong), most=10**9)}'


def _look(plan: Plan, number: int) -> Plan:
  """The plan with its cameras, as the first picture of each is; this holds against info.json.

  Raises:
    ValueError: a camera is of depth, or its first picture cannot be read.
  """
  source = plan.source
  cameras: dict[str, pictures.Camera] = {}
  notes = list(plan.notes)
  unfit: dict[str, str] = {}
  for field in plan.images:
    try:
      cameras[field.key] = _look_at(plan, source.episodes[number], field.key)
    except ValueError as error:
      unfit[field.key] = str(error)
      continue
    found = cameras[field.key][:2]
    said = _read_size(source.features[field.key]['shape'])
    if said != found:
      notes.append(
        f'{field.key} has {found[0]}x{found[1]} pixels, which count; meta/info.json says '
        f'{source.features[field.key]["shape"]}'
      )
    if 'depth' in field.key.lower():
      notes.append(
        f'{field.key} is called depth, and taken for the 8-bit pictures that it holds; '
        f'--exclude={field.key} leaves it out'
      )
  if unfit:
    told = '; '.join(f'{key}: {text}' for key, text in list(unfit.items())[:10])
    raise ValueError(
      f'Episode {number} of {source.path}: {told} Restore the files, or leave the cameras out: '
      f'--exclude={",".join((*plan.options.exclude, *unfit))}'
    )
  return dataclasses.replace(plan, cameras=cameras, notes=tuple(notes))


def _look_at(plan: Plan, episode: source_lib.Episode, key: str) -> pictures.Camera:
  source, options = plan.source, plan.options
  kind = source.features[key]['dtype']
  if kind == 'video':
    return pictures.plan_video(*video.describe(episode.clips[key].path), plan.size)
  first = rows_lib.read_picture(source, episode, key)
  if kind == 'image':
    return pictures.plan(pictures.read(first), plan.size, options.as_jpeg)
  return pictures.plan_array(first, plan.size)


def _read_size(shape: Sequence[int]) -> tuple[int, ...]:
  """Rows and columns that info.json says; channels are stored last, first, or nowhere."""
  if len(shape) == 3 and shape[-1] > 4:
    return tuple(shape[1:])
  return tuple(shape[:2])


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
    camera = plan.cameras[field.key]
    size = plan.size or camera[:2]
    return tfds.features.Image(shape=(*size, 3), encoding_format=camera.encoding)
  if described['dtype'] == 'string' or field.name.startswith('annotation/'):
    return tfds.features.Text()
  if field.key in source_lib.INDICES:
    return tfds.features.Scalar(dtype(described))
  shape = tuple(described['shape']) if field.start is None else (plan.width(field),)
  return tfds.features.Tensor(shape=shape, dtype=dtype(described))


def dtype(described: Mapping[str, Any]) -> type:
  """What the numbers of a feature are stored as."""
  kind = described['dtype']
  if kind.startswith('float'):
    return np.float32
  return np.bool_ if kind.startswith('bool') else np.int64


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b': x} to {'a': {'b': x}}."""
  nested: dict[str, Any] = {}
  for name, value in flat.items():
    group = nested
    *parents, leaf = name.split('/')
    for parent in parents:
      group = group.setdefault(parent, {})
    group[leaf] = value
  return nested
