"""What an RLDS dataset says of itself: its arrays, cameras, texts, and how its numbers move."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data import propose
from data.validate import video
from wam_jax.data import promises
from wam_jax.data import record as record_lib
from wam_jax.data import sources

LOOKED_AT = 10  # Of `propose.sample`, those whose images are looked at, too.
# Between a robot that creeps and one that is driven joint by joint.
_SLOWEST_HZ = 0.1
_FASTEST_HZ = 1000.0
_TIMES = ('observation/timestamp', 'timestamp', 'observation/time', 'time')
_NO_NUMBERS = ('is_first', 'is_last', 'is_terminal', 'discount', 'reward', *_TIMES)


def list_features(specs: Mapping[str, Any]) -> dict[str, str]:
  """By key under `steps/`, what it is, in words."""
  kinds = {}
  for key, spec in sorted(specs.items()):
    shape = tuple(spec.shape)
    if is_image(spec):
      kinds[key] = f'image {shape}'
    elif promises.is_text(spec):
      kinds[key] = 'text'
    elif _is_coded_instruction(key, spec):
      kinds[key] = f'text as the numbers of its characters {shape}'
    else:
      kinds[key] = f'{np.dtype(spec.np_dtype).name} {shape}'
  return kinds


def list_unused(kinds: Mapping[str, str], record: record_lib.Embodiment) -> list[str]:
  """The features that a record takes nothing of, without the marks of RLDS."""
  taken = {
    *(f'observation/{part.key}' for part in (*record.views, *record.state)),
    *(part.key for part in record.action),
    *record.language,
    *('is_first', 'is_last', 'is_terminal'),
  }
  return [key for key in kinds if key not in taken]


def is_image(spec: Any) -> bool:
  """Whether a feature is a colour image."""
  return len(spec.shape) == 3 and spec.shape[-1] == 3 and spec.np_dtype == np.uint8


def find(
  dataset: sources.Dataset,
  split: str,
  hz: float,
  state: Sequence[str],
  action: Sequence[str],
  name: str,
) -> propose.Found:
  """What a dataset says of itself.

  Args:
    hz: steps a second; 0 for what timestamps say.
    state, action: chosen arrays; () for those that their names give away.
    name: of the robot; '' for the dataset's.
  Raises:
    ValueError: there is no camera, the rate is not known, or a chosen array is no vector.
  """
  if hz and not _SLOWEST_HZ <= hz <= _FASTEST_HZ:
    raise ValueError(
      f'--control_hz={hz:g} must be {_SLOWEST_HZ:g} ... {_FASTEST_HZ:g} steps a second; of seconds '
      'a step give the inverse.'
    )
  vectors = _list_vectors(dataset.specs)
  state = tuple(state) or _choose_state(vectors)
  action = tuple(action) or _choose_action(vectors)
  wanted = [*(f'observation/{key}' for key in state), *action]
  if wrong := [key for key in wanted if key not in vectors]:
    raise ValueError(f'{wrong} are no vectors of {dataset.path}; it has {sorted(vectors)}.')
  images = [
    key
    for key, spec in sorted(dataset.specs.items())
    if key.startswith('observation/') and is_image(spec)
  ]
  if not images:
    raise ValueError(f'{dataset.path} has no camera below observation/; a world model needs one.')

  # A record for reading: every array that matters, as it is stored.
  times = next((key for key in _TIMES if key in dataset.specs), '') if not hz else ''
  reader = _make_reader(images, vectors, state, (*action, times) if times else action)
  episodes = dataset.open(split, reader)
  numbers = propose.sample(range(len(episodes)))
  sample = [_read(episodes, number, reader) for number in numbers]
  blank = _find_blank(episodes, numbers[:LOOKED_AT])
  images = [key for key in images if key not in blank]
  if not images:
    raise ValueError(f'All cameras of {dataset.path} are blank: {", ".join(sorted(blank))}.')
  return propose.Found(
    name=name or propose.plain_name(dataset.name),
    hz=hz or _measure_rate(sample, times, str(dataset.path)),
    cameras=tuple(_measure_camera(dataset, episodes, key) for key in images),
    state=tuple(propose.Vector(key, vectors[f'observation/{key}']) for key in state),
    action=tuple(propose.Vector(key, vectors[key]) for key in action),
    episodes=sample,
    fields=_find_language(dataset.specs),
    notes=tuple(f'view {key} is left out: {why}' for key, why in sorted(blank.items())),
  )


def _list_vectors(specs: Mapping[str, Any]) -> dict[str, int]:
  """Numeric arrays by key, with their widths."""
  found = {}
  for key, spec in sorted(specs.items()):
    shape = tuple(spec.shape)
    is_number = np.dtype(spec.np_dtype).kind in 'fiub' and not is_image(spec)
    is_number &= not _is_coded_instruction(key, spec)
    if is_number and len(shape) <= 1 and None not in shape and key not in _NO_NUMBERS:
      found[key] = int(np.prod(shape, dtype=int))
  return {key: width for key, width in found.items() if 0 < width <= propose.WIDEST}


def _choose_state(vectors: Mapping[str, int]) -> tuple[str, ...]:
  """The vector that is called state, or else all that are sensed."""
  sensed = [key.removeprefix('observation/') for key in vectors if key.startswith('observation/')]
  named = [key for key in sensed if re.fullmatch(r'(robot_)?states?|proprio\w*', key)]
  return tuple(named[:1] or sensed)


def _choose_action(vectors: Mapping[str, int]) -> tuple[str, ...]:
  """The vector that is called action, or else the group of that name."""
  named = [key for key in vectors if key in ('action', 'actions')]
  return tuple(named or [key for key in vectors if re.match(r'actions?(_dict)?/', key)])


def _make_reader(
  images: Sequence[str], vectors: Mapping[str, int], state: Sequence[str], action: Sequence[str]
) -> record_lib.Embodiment:
  views = tuple(
    record_lib.View(key.removeprefix('observation/'), 0, 16 * i, 16, 16)
    for i, key in enumerate(images)
  )
  slices = [
    tuple(
      record_lib.Slice(key, 0, vectors.get(prefix + key, 1), 'raw') for key in dict.fromkeys(keys)
    )
    for prefix, keys in (('observation/', state), ('', action))
  ]
  return record_lib.Embodiment(
    name='as_stored',
    views=views,
    composite=(16, 16 * len(views)),
    state=slices[0],
    action=slices[1],
    language=(),
    control_hz=1.0,
    video_fps=1.0,
    chunk_s=1.0,
  )


def _read(
  episodes: sources.Episodes, number: int, reader: record_lib.Embodiment
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The arrays of an episode, by key."""
  parts = []
  for slices, values in zip((reader.state, reader.action), episodes.numeric(number)):
    ends = np.cumsum([s.width for s in slices])
    columns = np.split(values, ends[:-1], axis=1) if len(slices) else []
    parts.append({s.key: column for s, column in zip(slices, columns)})
  return parts[0], parts[1]


def _measure_rate(
  sample: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
  key: str,
  where: str,
) -> float:
  """Steps a second, by the median difference of timestamps in seconds."""
  if not key:
    raise ValueError(
      f'Nothing in {where} says how many steps it has a second; look it up and give --control_hz.'
    )
  steps = np.concatenate([np.diff(action[key][:, 0]) for _, action in sample])
  usual = float(np.median(steps)) if len(steps) else 0.0
  if not 1e-3 < usual < 10:
    raise ValueError(
      f'{key!r} of {where} grows by {usual:g} a step, which are no seconds; give --control_hz.'
    )
  return round(1 / usual, 1)


def _find_blank(episodes: sources.Episodes, numbers: Sequence[int]) -> dict[str, str]:
  """By key of a camera that never shows anything, what it shows."""
  grey: dict[str, list[np.ndarray]] = {view.key: [] for view in episodes.record.views}
  for number in numbers:
    episode = episodes[number]
    steps = sorted({0, episode.length // 2, episode.length - 1} - {-1}) if episode.length else ()
    for key, step in itertools.product(grey, steps):
      grey[key].append(episode.decode(key, step).mean(-1))
  return {
    f'observation/{key}': (
      f'it is blank, of grey level {np.mean(images[0]):.0f}, in all {len(images)} images of '
      f'{len(numbers)} episodes that were looked at'
    )
    for key, images in grey.items()
    if images and all(_is_like(image, images[0]) for image in images)
  }


def _is_like(image_IJ: np.ndarray, first_IJ: np.ndarray) -> bool:
  """Whether an image is flat, and as bright as the first one."""
  return bool(image_IJ.std() < video.BLANK_STD and abs(image_IJ.mean() - first_IJ.mean()) < 1)


def _measure_camera(
  dataset: sources.Dataset, episodes: sources.Episodes, key: str
) -> propose.Camera:
  """A camera's size, by its first image where the description leaves it free."""
  rows, columns, _ = dataset.specs[key].shape
  view = key.removeprefix('observation/')
  if rows is None or columns is None:
    encoded = np.frombuffer(episodes[0].encoded[view][0], np.uint8)
    rows, columns = cv2.imdecode(encoded, cv2.IMREAD_COLOR).shape[:2]
  return propose.Camera(view, int(rows), int(columns))


def _find_language(specs: Mapping[str, Any]) -> dict[str, object]:
  """The texts that are instructions, by their names."""
  named = [
    key
    for key, spec in sorted(specs.items())
    if _is_coded_instruction(key, spec) or (promises.is_text(spec) and _is_instruction(key))
  ]
  return {'language': tuple(named)}


def _is_coded_instruction(key: str, spec: Any) -> bool:
  """Whether numbers are those of characters: nothing but the name tells them from a vector."""
  return _is_instruction(key) and promises.is_coded_text(spec)


def _is_instruction(key: str) -> bool:
  return 'instruction' in key.rsplit('/', 1)[-1]
