"""Where the frames of each episode lie in the files of a camera, proven by counts.

A file of version 3 holds many episodes, and the times in meta/episodes drift: their rounding adds
up (huggingface/lerobot#3177), and frames of a discarded take stay in a video (#4109). The nearest
frame to such a time may be another episode's. So frames are counted: a file holds exactly the rows
of its episodes, or exactly what the times in the metadata divide it into, or nobody knows.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data import video
from data.lerobot import choice
from data.lerobot import source as source_lib
from wam_jax import pointers

_THREADS = 8
_SHOWN = 3  # Problems that a message spells out; what to do comes after them.


class Place(NamedTuple):
  """Frames of an episode: the number of its first one in the file, and how many the file has."""

  first: int
  total: int


class Problem(NamedTuple):
  """What is wrong with some episodes."""

  numbers: tuple[int, ...]
  text: str


# By episode and camera.
Places = dict[tuple[int, str], Place]


def find_missing(
  source: source_lib.Source, numbers: Collection[int], keys: Collection[str]
) -> list[Problem]:
  """The files of these episodes and cameras that are not there, or are Git LFS pointers."""
  users: dict[pathlib.Path, list[int]] = {}
  unknown: dict[str, list[int]] = {}
  for number in numbers:
    episode = source.episodes[number]
    clips = [episode.clips[key] for key in keys if key in episode.clips]
    for path in (episode.rows, *(clip.path for clip in clips)):
      users.setdefault(path, []).append(number)
    for key in set(keys) - set(episode.clips):
      unknown.setdefault(key, []).append(number)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    reasons = pool.map(_find_reason, users)
  return [
    *(Problem(tuple(users[path]), reason) for path, reason in zip(users, reasons) if reason),
    *(
      Problem(tuple(without), f'meta/episodes has no place of {key}')
      for key, without in unknown.items()
    ),
  ]


def _find_reason(path: pathlib.Path) -> str:
  """Why a file cannot be used, or ''."""
  if not path.is_file():
    return f'there is no file {path}'
  try:
    pointers.check(path)
  except ValueError as error:
    return str(error)
  return ''


def locate(
  source: source_lib.Source, numbers: Collection[int], keys: Collection[str]
) -> tuple[Places, list[Problem], list[str]]:
  """The places of these episodes, what is wrong with some, and where times and counts differ.

  Opens every video file of theirs, and decodes none.
  """
  chosen = set(numbers)
  shared: dict[tuple[str, pathlib.Path], list[source_lib.Episode]] = {}
  for episode in source.episodes.values():
    for key in keys:
      if key in episode.clips:
        shared.setdefault((key, episode.clips[key].path), []).append(episode)
  shared = {
    file: episodes
    for file, episodes in shared.items()
    if any(episode.number in chosen for episode in episodes)
  }

  places: Places = {}
  problems: list[Problem] = []
  moved: dict[str, list[float]] = {}
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    counts = pool.map(_count, [path for _, path in shared], map(_count_rows, shared.values()))
  for ((key, path), episodes), count in zip(shared.items(), counts):
    episodes = _sort(episodes, key)
    if isinstance(count, str):
      mine = tuple(episode.number for episode in episodes if episode.number in chosen)
      problems.append(Problem(mine, f'{key}: {count}'))
      continue
    starts, wrong = _divide(source, key, path, episodes, count)
    problems += [
      Problem(tuple(n for n in one.numbers if n in chosen), one.text)
      for one in wrong
      if chosen & set(one.numbers)
    ]
    for episode in episodes:
      if episode.number in chosen & starts.keys():
        first = starts[episode.number]
        places[episode.number, key] = Place(first, count)
        moved.setdefault(key, []).append(_measure_shift(source, episode, key, first))
  notes = [
    f'meta/episodes places {np.count_nonzero(np.abs(frames) > 0.5)} episodes of {key} up to '
    f'{np.abs(frames).max():.1f} frames from where counting finds them; counted'
    for key, frames in moved.items()
    if np.abs(frames).max() > 0.5
  ]
  return places, problems, notes


def _count(path: pathlib.Path, expected: int) -> int | str:
  """Frames of a file, or why they cannot be counted."""
  try:
    found = video.count_frames(path)
    # A header may count frames that are not shown.
    return found if found == expected else len(video.list_times(path))
  except ValueError as error:
    return str(error)


def _count_rows(episodes: Sequence[source_lib.Episode]) -> int:
  return sum(episode.length for episode in episodes)


def _sort(episodes: Sequence[source_lib.Episode], key: str) -> list[source_lib.Episode]:
  """In the order in which they lie in the file."""
  return sorted(episodes, key=lambda e: ((e.clips[key].span_s or (0.0, 0.0))[0], e.number))


def _divide(
  source: source_lib.Source,
  key: str,
  path: pathlib.Path,
  episodes: Sequence[source_lib.Episode],
  count: int,
) -> tuple[Mapping[int, int], list[Problem]]:
  """The first frame of each episode in a file of `count` frames, and the episodes without one."""
  lengths = [episode.length for episode in episodes]
  by_rows = np.cumsum([0, *lengths])
  spans = _read_spans(source, key, episodes)
  fills = spans is not None and spans[-1][1] == count
  numbers = tuple(episode.number for episode in episodes)

  if by_rows[-1] == count:
    if fills and [start for start, _ in spans] != by_rows[:-1].tolist():
      text = (
        f'{key}: the rows of its episodes and the times in meta/episodes both fill {path} with '
        f'{count} frames, but divide it differently'
      )
      return {}, [Problem(numbers, text)]
    return dict(zip(numbers, by_rows[:-1].tolist())), []
  if not fills:
    text = f'{key}: {path} holds {count} frames for {by_rows[-1]} rows'
    if len(episodes) > 1:
      text += f' of {len(episodes)} episodes, so that the place of none is certain'
    return {}, [Problem(numbers, text)]

  # The times divide the file, so each episode's own frames can be counted.
  starts: dict[int, int] = {}
  problems = []
  for episode, (start, stop) in zip(episodes, spans):
    if stop - start == episode.length:
      starts[episode.number] = start
    else:
      text = f'{key}: {path} holds {stop - start} frames of it for {episode.length} rows'
      problems.append(Problem((episode.number,), text))
  return starts, problems


def _read_spans(
  source: source_lib.Source, key: str, episodes: Sequence[source_lib.Episode]
) -> list[tuple[int, int]] | None:
  """[start, stop) in frames of each episode by the times in the metadata; None where these do not
  follow on one another.
  """
  spans = []
  for episode in episodes:
    span_s = episode.clips[key].span_s
    if span_s is None:
      return None
    start, stop = (round(seconds * source.fps) for seconds in span_s)
    if start != (spans[-1][1] if spans else 0):
      return None
    spans.append((start, stop))
  return spans


def _measure_shift(
  source: source_lib.Source, episode: source_lib.Episode, key: str, first: int
) -> float:
  """Frames from a place to the one in the metadata."""
  span_s = episode.clips[key].span_s
  return 0.0 if span_s is None else span_s[0] * source.fps - first


def fail(problems: Sequence[Problem], others: int, advice: str) -> None:
  """Raises ValueError with the problems, if there are any; up to three, and the numbers of all.

  Args:
    others: how many episodes have none.
    advice: the flag that takes these.
  """
  if not problems:
    return
  lines = []
  for numbers, text in problems[:_SHOWN]:
    plural = 's' if len(numbers) > 1 else ''
    lines.append(f'Episode{plural} {choice.write(numbers)}, {text.rstrip(".")}')
  more = f'; and {len(problems) - _SHOWN} more' if len(problems) > _SHOWN else ''
  every = {number for numbers, _ in problems for number in numbers}
  if more:
    more += f', of the episodes {choice.write(every)}'
  cure = f' Restore them, or take the {others} others: {advice}' if others else ' Restore them.'
  raise ValueError(f'{"; ".join(lines)}{more}.{cure}')
