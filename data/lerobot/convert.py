"""Episodes of a LeRobot directory as RLDS steps; `data.from_lerobot` is its command."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data import rlds
from data import video
from data.lerobot import choice
from data.lerobot import pictures
from data.lerobot import plan as plan_lib
from data.lerobot import record as record_lib
from data.lerobot import rows as rows_lib
from data.lerobot import source as source_lib
from data.lerobot import unused as unused_lib
from wam_jax import storage
from wam_jax.data import choice as choice_lib
from wam_jax.data import embodiments
from wam_jax.data import record as robot_record

SHARD_FRAMES = 8192  # Camera frames in a shard, about 200 to 500 MB.


class Converted(NamedTuple):
  """A dataset that was written.

  Attributes:
    record: of its robot, which lies beside it.
    made: whether this call made it.
    guesses: what of the record was guessed, a line each.
    notes: what of the source was left out, is not as its metadata say, or is stored otherwise.
    unused: what of the source the record does not use, a line each.
  """

  record: robot_record.Embodiment
  made: bool
  guesses: list[str]
  notes: list[str]
  unused: list[str]


def convert(
  source: str, output: str, options: plan_lib.Options = plan_lib.Options(), workers: int = 1
) -> Converted:
  """Writes the dataset.

  Raises:
    ValueError: something about source, output or options is wrong; names episode and file. What is
      finished is kept for the next call.
  """
  cure = 'Copy it to a directory, or mount the bucket (gcsfuse).'
  found = source_lib.load(storage.make_local_path(source, '--source', cure))
  plan = plan_lib.make_plan(found, options)
  guesses: list[str] = []
  if options.embodiment:
    record = embodiments.resolve(options.embodiment)
  else:
    record, guesses = record_lib.suggest(plan)
  record_lib.check(plan, record)
  notes = [*plan.notes, *(f'{key}: {camera.told}' for key, camera in plan.cameras.items())]
  unused = unused_lib.list_unused(plan, record)
  made = rlds.write(output, _make_dataset(plan, record), workers)
  return Converted(record, made, guesses, notes, unused)


def _make_dataset(plan: plan_lib.Plan, record: robot_record.Embodiment) -> rlds.Dataset:
  source = plan.source
  sizes = {
    split: [source.episodes[number].length for number in numbers]
    for split, numbers in plan.episodes.items()
  }
  return rlds.Dataset(
    name=record_lib.plain_name(source.path.name),
    config='',
    module='data.from_lerobot',
    description=(
      f'Converted from a LeRobot {source.version} dataset of {source.robot or "a robot"}.'
    ),
    features=plan_lib.make_features(plan),
    open_split=functools.partial(_open_split, plan),
    sizes=sizes,
    unit='frames',
    shard_size=SHARD_FRAMES // len(plan.images),
    min_shards=rlds.MIN_SHARDS,
    parameters=_parameters(plan, record),
    files=_make_files(plan, record),
  )


def _open_split(plan: plan_lib.Plan, split: str) -> Callable[[int], dict[str, Any]]:
  return lambda index: make_episode(plan, plan.episodes[split][index])


def make_episode(plan: plan_lib.Plan, number: int) -> dict[str, Any]:
  """The TFDS example of an episode, images already encoded.

  Raises:
    ValueError: rows or video are missing, broken or do not belong to each other.
  """
  source = plan.source
  episode = source.episodes[number]
  keys = [field.key for field in plan.fields if source.features[field.key]['dtype'] != 'video']
  if 'next.done' in source.features:
    keys.append('next.done')
  try:
    rows = rows_lib.read(source, episode, keys)
  except ValueError as error:
    raise ValueError(f'{error} Or leave the episode out: --episodes=-{number}') from error

  # The first annotation of modality.json is what the robot was told; without one, the task is.
  told = plan.annotations[0].key if plan.annotations else 'task_index'
  steps = range(episode.length)
  last = episode.length - 1
  is_done = 'next.done' in rows and bool(np.any(rows['next.done'][last]))
  columns = {
    'is_first': [t == 0 for t in steps],
    'is_last': [t == last for t in steps],
    'is_terminal': [t == last and is_done for t in steps],
    'language_instruction': _texts(source, rows[told]),
    # A feature of the source with one of these names comes first.
    **{field.name: _make_column(plan, field, episode, rows) for field in plan.fields},
  }
  return {
    'steps': [plan_lib.nest(dict(zip(columns, values))) for values in zip(*columns.values())],
    'episode_metadata': {'name': episode_name(number), 'episode_index': number},
  }


def episode_name(number: int) -> str:
  """What an episode is called in the result."""
  return f'episode_{number:06d}'


def _make_column(
  plan: plan_lib.Plan, field: plan_lib.Field, episode: source_lib.Episode, rows: dict[str, Any]
) -> list[Any]:
  """A value for each step."""
  described = plan.source.features[field.key]
  if plan_lib.is_image(described):
    return _make_images(plan, field, episode, rows)
  values = rows[field.key]
  if field in plan.annotations:
    return _texts(plan.source, values)
  if isinstance(values, list):
    return values
  taken = values if field.start is None else values[:, field.start : field.stop]
  return list(taken.astype(plan_lib.dtype(described)))


def _make_images(
  plan: plan_lib.Plan, field: plan_lib.Field, episode: source_lib.Episode, rows: dict[str, Any]
) -> list[io.BytesIO]:
  camera = plan.cameras[field.key]
  kind = plan.source.features[field.key]['dtype']
  try:
    if kind == 'image':
      as_jpeg = plan.options.as_jpeg
      return [pictures.store(one, camera, plan.size, as_jpeg) for one in rows[field.key]]
    if kind == 'video':
      images = _read_video(plan, field.key, episode, rows['timestamp'])
    else:
      images = map(pictures.from_array, rows[field.key])
    return [_encode(image, camera, plan.size) for image in images]
  except ValueError as error:
    raise ValueError(
      f'Episode {episode.number}, {field.key}: {error} Restore it, or leave the episode out: '
      f'--episodes=-{episode.number}'
    ) from error


def _texts(source: source_lib.Source, values: Any) -> list[str]:
  """Texts as they are; numbers are task indices."""
  if isinstance(values, list):
    return values
  return [source.tasks.get(int(n), '') for n in values.reshape(-1)]


def _read_video(
  plan: plan_lib.Plan, key: str, episode: source_lib.Episode, timestamps: np.ndarray
) -> Iterator[np.ndarray]:
  """The frames of an episode, which are found by their number, and held against the rate of its
  rows, or their times where a clock wrote both.
  """
  path = episode.clips[key].path
  place = plan.places[episode.number, key]
  since_s = timestamps.astype(np.float64) - timestamps[0]
  frames = video.read_frames(path, place.first, episode.length, place.total)
  for number, (at, image) in enumerate(frames):
    expected_s = number / plan.source.fps
    if min(abs(at - expected_s), abs(at - since_s[number])) > 0.5 / plan.source.fps:
      raise ValueError(
        f'{path} has frame {number} at {at:.4f} s, but its row says {since_s[number]:.4f} s; '
        'frames and rows do not belong to each other.'
      )
    yield image


def _encode(image: np.ndarray, camera: pictures.Camera, size: tuple[int, int] | None) -> io.BytesIO:
  pictures.check_size(image, camera)
  return video.to_jpeg(image, size)


def _parameters(plan: plan_lib.Plan, record: robot_record.Embodiment) -> dict[str, Any]:
  source = plan.source
  return {
    'source': str(source.path.resolve()),
    'version': source.version,
    # Tells most changes of the source apart, without reading it all.
    'frames': sum(e.length for e in source.episodes.values()),
    'fields': [dataclasses.astuple(field) for field in plan.fields],
    'episodes': {
      split: choice.write(numbers, most=10**9) for split, numbers in plan.episodes.items()
    },
    'size': plan.size,
    'cameras': {key: camera[:3] for key, camera in plan.cameras.items()},
    'as_jpeg': plan.options.as_jpeg,
    'jpeg_quality': video.JPEG_QUALITY,
    'embodiment': dataclasses.asdict(record),
  }


def _make_files(plan: plan_lib.Plan, record: robot_record.Embodiment) -> dict[str, bytes]:
  """What lies beside the shards."""
  source = plan.source
  contents = {embodiments.FILE: dataclasses.asdict(record)}
  if source.gear.removed:
    contents[choice_lib.RANGES] = {
      episode_name(n): _list_remaining(source.episodes[n], source.gear.removed.get(n, ()))
      for numbers in plan.episodes.values()
      for n in numbers
    }
  statistics = record_lib.gear_statistics(plan, record)
  if statistics:
    contents['gear_statistics.json'] = statistics
  return {
    name: (json.dumps(content, indent=1) + '\n').encode() for name, content in contents.items()
  }


def _list_remaining(episode: source_lib.Episode, removed: Any) -> list[tuple[int, int]]:
  """(first step, step after the last) of the runs of steps that remain."""
  remains = np.ones(episode.length, bool)
  try:
    remains[np.asarray(removed, np.int64)] = False
  except IndexError as error:
    raise ValueError(
      f'meta/step_filter.jsonl removes steps that episode {episode.number} does not have: {error}.'
    ) from error
  return choice_lib.list_runs(remains)
