"""Recordings of one robot as an RLDS dataset with its record beside it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data import rlds
from data.lerobot import plan as plan_lib
from data.sessions import timeline
from wam_jax import storage
from wam_jax.client import recorder
from wam_jax.data import choice as choice_lib
from wam_jax.data import embodiments
from wam_jax.data import record as record_lib

LEAVE_OUT, HOLD = 'leave_out', 'hold'
UNSEEN = (LEAVE_OUT, HOLD)
SHARD_FRAMES = 8192
_SUCCESS, _FAILURE, _UNTOLD = '_success', '_failure', '_untold'
_SHOWN = 5  # Files that a line names.


@dataclasses.dataclass(frozen=True)
class Options:
  """What becomes of recordings.

  Attributes:
    robot: the name of the one that is taken; '' where all are of one.
    embodiment: its record, where the recordings have none or another one; name or file.
    unseen: what becomes of episodes with control steps at which nothing was seen, of `UNSEEN`.
    successes: whether only episodes are taken that were told to be successful.
  """

  robot: str = ''
  embodiment: str = ''
  unseen: str = LEAVE_OUT
  successes: bool = False


class Converted(NamedTuple):
  """A dataset that was written.

  Attributes:
    record: of its robot.
    made: whether this call made it.
    episodes, steps: how many there are.
    notes: what was left out, and what else is to be known, a line each.
  """

  record: record_lib.Embodiment
  made: bool
  episodes: int
  steps: int
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Source:
  """An episode that is taken.

  Attributes:
    path: its file.
    steps: how many it has.
    exact: control steps at which a chunk may begin without an older frame in place of one.
    outcome: suffix of its name.
  """

  path: str
  steps: int
  exact: tuple[int, ...]
  outcome: str

  @property
  def name(self) -> str:
    return pathlib.Path(self.path).stem + self.outcome


def convert(source: str, output: str, options: Options, workers: int = 1) -> Converted:
  """Writes the dataset.

  Raises:
    ValueError: something about source, output or options is wrong, or nothing is left.
  """
  cure = 'Copy it to a directory, or mount the bucket (gcsfuse).'
  place = storage.make_local_path(source, '--source', cure)
  paths = sorted(str(path) for path in place.glob(f'*{recorder.SUFFIX}'))
  if not paths:
    raise ValueError(
      f'--source={source} holds no recordings (*{recorder.SUFFIX}); give the directory of '
      'wam_jax.serve --record, or of a Recorder.'
    )
  notes = []
  parts = len(list(place.glob(f'.*{recorder.SUFFIX}{recorder.PART}')))
  if parts:
    notes.append(f'{parts} recordings were not ended, and are left out')
  paths, record = _choose_robot(paths, options)
  sources, shapes = _survey(paths, record, options, notes)
  record = _name_episodes(record, sources, notes)
  dataset = _make_dataset(place, record, sources, shapes, options)
  made = rlds.write(output, dataset, workers)
  steps = sum(one.steps for one in sources)
  return Converted(record, made, len(sources), steps, notes)


def _choose_robot(
  paths: Sequence[str], options: Options
) -> tuple[list[str], record_lib.Embodiment]:
  """The files of the robot that is wanted, and its record."""
  abouts = {path: timeline.read_about(path) for path in paths}
  by_robot: dict[str, list[str]] = collections.defaultdict(list)
  for path, about in abouts.items():
    by_robot[str(about.get('robot', ''))].append(path)
  if not options.robot and len(by_robot) > 1:
    raise ValueError(f'The recordings are of {sorted(by_robot)}; choose one of them by --robot.')
  chosen = by_robot.get(options.robot or next(iter(by_robot)))
  if not chosen:
    raise ValueError(f'--robot={options.robot} is in none of them; they are of {sorted(by_robot)}.')
  if options.embodiment:
    return chosen, embodiments.resolve(options.embodiment)
  records = {}
  for path in chosen:
    record = timeline.find_record(abouts[path], path)
    records.setdefault(record, path)
  if len(records) > 1:
    raise ValueError(
      f'The recordings have {len(records)} records of one robot, as '
      f'{" and ".join(list(records.values())[:2])}; choose one by --embodiment.'
    )
  return chosen, next(iter(records))


def _survey(
  paths: Sequence[str], record: record_lib.Embodiment, options: Options, notes: list[str]
) -> tuple[list[_Source], dict[str, tuple[int, ...]]]:
  """The episodes that are taken, and the shapes of their arrays by key; reads all files once."""
  taken, left_out = [], collections.defaultdict(list)
  shapes: dict[str, set[tuple[int, ...]]] = collections.defaultdict(set)
  for path in paths:
    recording = timeline.read(path, record)
    why = _find_reason(recording, record, options)
    if why:
      left_out[why].append(pathlib.Path(path).name)
      continue
    for step in recording.steps:
      for key, value in {**step.views, **step.state}.items():
        shapes[key].add(value.shape)
    exact = tuple(_find_exact(recording.steps, record)) if options.unseen == HOLD else ()
    taken.append(_Source(path, len(recording.steps), exact, _suffix(recording.outcome)))
  for why, names in left_out.items():
    more = ', ...' if len(names) > _SHOWN else ''
    notes.append(f'{len(names)} left out, {why}: {", ".join(names[:_SHOWN])}{more}')
  if not taken:
    raise ValueError('No episode is left: ' + '; '.join(notes) + '.')
  several = {key: sorted(each) for key, each in shapes.items() if len(each) > 1}
  if several:
    raise ValueError(f'Arrays have several shapes: {several}; convert those of one alone.')
  return taken, {key: next(iter(each)) for key, each in shapes.items()}


def _find_reason(
  recording: timeline.Recording, record: record_lib.Embodiment, options: Options
) -> str:
  """Why an episode is left out; '' where it is taken."""
  if len(recording.steps) <= record.steps_per_chunk:
    return f'no longer than one chunk of {record.steps_per_chunk} steps'
  if options.successes and recording.outcome.get('success') is not True:
    return 'not told to be successful'
  if options.unseen == LEAVE_OUT and not all(step.is_seen for step in recording.steps):
    return (
      'with control steps at which nothing was seen (of clients other than wam_jax.client; '
      f'--unseen={HOLD} repeats the frame before)'
    )
  return ''


def _find_exact(steps: Sequence[timeline.Step], record: record_lib.Embodiment) -> list[int]:
  """Where a chunk may begin: its state was seen then, and each of its frames at its time."""
  # Frames of other steps may be there, too, but without a state nothing says so.
  views = [id(next(iter(step.views.values()))) for step in steps]
  is_new = [t == 0 or views[t] != views[t - 1] for t in range(len(steps))]
  S, stride = record.steps_per_chunk, record.stride
  return [
    t
    for t in range(len(steps) - S)
    if steps[t].is_seen and all(is_new[t + k] for k in range(stride, S + 1, stride))
  ]


def _suffix(outcome: Mapping[str, Any]) -> str:
  success = outcome.get('success')
  if not isinstance(success, bool):
    return _UNTOLD
  return _SUCCESS if success else _FAILURE


def _name_episodes(
  record: record_lib.Embodiment, sources: Sequence[_Source], notes: list[str]
) -> record_lib.Embodiment:
  """The record as this dataset names its episodes: training leaves failures out where all of them
  were told.
  """
  counts = collections.Counter(one.outcome for one in sources)
  told = ', '.join(f'{count} {suffix[1:]}' for suffix, count in sorted(counts.items()))
  notes.append(f'outcomes: {told}')
  is_told = bool(counts[_SUCCESS]) and not counts[_UNTOLD]
  return dataclasses.replace(
    record,
    language=('language_instruction',),
    episode_key=('episode_metadata/name',),
    success=_SUCCESS if is_told else '',
  )


def _make_dataset(
  place: pathlib.Path,
  record: record_lib.Embodiment,
  sources: list[_Source],
  shapes: Mapping[str, tuple[int, ...]],
  options: Options,
) -> rlds.Dataset:
  files = {embodiments.FILE: dataclasses.asdict(record)}
  if options.unseen == HOLD:
    files[choice_lib.RANGES] = {one.name: [[t, t + 1] for t in one.exact] for one in sources}
  return rlds.Dataset(
    name='sessions',
    config='',
    module='data.from_sessions',
    description=f'Recorded episodes of {record.name}.',
    features=_make_features(record, shapes),
    open_split=functools.partial(_open_split, record, sources),
    sizes={'train': [one.steps for one in sources]},
    unit='steps',
    shard_size=SHARD_FRAMES // len(record.views),
    min_shards=rlds.MIN_SHARDS,
    parameters={
      'source': str(place.resolve()),
      'episodes': [dataclasses.astuple(one) for one in sources],
      'embodiment': dataclasses.asdict(record),
      **dataclasses.asdict(options),
    },
    files={
      name: (json.dumps(content, indent=1) + '\n').encode() for name, content in files.items()
    },
  )


def _make_features(
  record: record_lib.Embodiment, shapes: Mapping[str, tuple[int, ...]]
) -> tfds.features.FeaturesDict:
  f = tfds.features
  views = {view.key for view in record.views}
  observation = {
    f'observation/{key}': f.Image(shape=shape, encoding_format='png')
    if key in views
    else f.Tensor(shape=shape, dtype=np.float32)
    for key, shape in shapes.items()
  }
  widths = record_lib.widths(record.action)
  actions = {key: f.Tensor(shape=(width,), dtype=np.float32) for key, width in widths.items()}
  steps = {
    **observation,
    **actions,
    'language_instruction': f.Text(),
    'is_first': f.Scalar(np.bool_),
    'is_last': f.Scalar(np.bool_),
    'is_terminal': f.Scalar(np.bool_),
    'reward': f.Scalar(np.float32),
  }
  metadata = {
    'name': f.Text(),
    'session': f.Text(),
    'policy': f.Text(),
    'at_s': f.Scalar(np.float64),
  }
  return f.FeaturesDict({'steps': f.Dataset(plan_lib.nest(steps)), 'episode_metadata': metadata})


def _open_split(
  record: record_lib.Embodiment, sources: list[_Source], unused_split: str
) -> Callable[[int], dict[str, Any]]:
  return lambda number: _make_episode(record, sources[number])


def _make_episode(record: record_lib.Embodiment, source: _Source) -> dict[str, Any]:
  recording = timeline.read(source.path, record)
  about = recording.about
  last = len(recording.steps) - 1
  reached = source.outcome == _SUCCESS
  steps = [
    plan_lib.nest(
      {
        **{f'observation/{key}': _encode(view) for key, view in step.views.items()},
        **{f'observation/{key}': value.astype(np.float32) for key, value in step.state.items()},
        **_make_actions(record, step.action_U),
        'language_instruction': recording.prompt,
        'is_first': t == 0,
        'is_last': t == last,
        'is_terminal': t == last and reached,
        'reward': float(t == last and reached),
      }
    )
    for t, step in enumerate(recording.steps)
  ]
  metadata = {
    'name': source.name,
    'session': str(about.get('session', '')),
    'policy': f'{about.get("policy", "")} {about.get("checkpoint_step", "")}'.strip(),
    'at_s': float(about.get('at_s', 0.0)),
  }
  return {'steps': steps, 'episode_metadata': metadata}


def _make_actions(record: record_lib.Embodiment, action_U: np.ndarray) -> dict[str, np.ndarray]:
  """The arrays that the record's slices are read from; columns that no slice reads are zero."""
  widths = record_lib.widths(record.action)
  arrays = {key: np.zeros(width, np.float32) for key, width in widths.items()}
  at = 0
  for s in record.action:
    arrays[s.key][s.start : s.stop] = action_U[at : at + s.width]
    at += s.width
  return arrays


def _encode(view: np.ndarray) -> io.BytesIO:
  """As PNG: every pixel as it was."""
  fast = (cv2.IMWRITE_PNG_COMPRESSION, 1)
  return io.BytesIO(cv2.imencode('.png', np.ascontiguousarray(view[..., ::-1]), fast)[1].tobytes())
