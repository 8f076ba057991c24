"""What of a dataset nobody is to use: said once, in a file beside it, for all that read it.

`exclusions.json` is a person's decision, and therefore no file that anything makes anew. By split
it lists episodes, counted over the whole split as dataset_info.json does, steps of episodes, and
shards that are not there:

  {"train": [{"episode": 17, "why": "the picture of step 3 is cut"},
             {"episode": 20, "steps": [[100, 140]]},
             {"shard": "droid-train.array_record-00002-of-00004"}]}

Owns the file; `sources.py` opens a dataset without what it lists, so that an excluded episode is
not even read. Which of the others count is `choice.py`'s business.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from wam_jax import storage

FILE = 'exclusions.json'
_SHOWN = 10  # Of what a message lists.


@dataclasses.dataclass(frozen=True)
class Entry:
  """One thing that is left out.

  Attributes:
    episode: its number in the whole split; None for a shard.
    steps: (first, step after the last) of what is left out of the episode; () for all of it.
    shard: name of the file; '' for an episode.
    why: for people.
  """

  episode: int | None = None
  steps: tuple[tuple[int, int], ...] = ()
  shard: str = ''
  why: str = ''

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready; what says nothing is left away."""
    fields = dataclasses.asdict(self)
    return {key: value for key, value in fields.items() if value not in (None, (), '')}


@dataclasses.dataclass(frozen=True)
class OfSplit:
  """What is left out of one split.

  Attributes:
    entries: in the order of the file.
  """

  entries: tuple[Entry, ...] = ()

  @functools.cached_property
  def episodes(self) -> frozenset[int]:
    """Numbers of the episodes of which nothing is left."""
    return frozenset(e.episode for e in self.entries if e.episode is not None and not e.steps)

  @functools.cached_property
  def steps(self) -> dict[int, tuple[tuple[int, int], ...]]:
    """By number of an episode, the steps of it that are left out."""
    found: dict[int, tuple[tuple[int, int], ...]] = {}
    for entry in self.entries:
      if entry.steps:
        found[entry.episode] = (*found.get(entry.episode, ()), *entry.steps)
    return found

  @functools.cached_property
  def shards(self) -> frozenset[str]:
    """Names of the files that are not read."""
    return frozenset(entry.shard for entry in self.entries if entry.shard)

  @property
  def fingerprint(self) -> str:
    """The same for the same episodes, steps and shards only; '' where nothing is left out."""
    if not self.entries:
      return ''
    said = [sorted(self.episodes), sorted(self.steps.items()), sorted(self.shards)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Exclusions:
  """What is left out of a dataset.

  Attributes:
    place: the file; it need not be there.
    splits: by name.
  """

  place: epath.Path
  splits: Mapping[str, OfSplit]

  def of(self, split: str) -> OfSplit:
    """What is left out of a split, named without slices."""
    return self.splits.get(split, OfSplit())

  def check(self, episodes: Mapping[str, int], shards: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError if the file names what the dataset does not have.

    Args:
      episodes, shards: by split, how many episodes and which files it has.
    """
    problems = []
    for split, left_out in self.splits.items():
      if split not in episodes:
        problems.append(f'there is no split {split!r}, but {sorted(episodes)}')
        continue
      numbers = {entry.episode for entry in left_out.entries if entry.episode is not None}
      if beyond := sorted(n for n in numbers if n >= episodes[split]):
        problems.append(f'{split} has {episodes[split]} episodes, not {beyond[:_SHOWN]}')
      if unknown := sorted(left_out.shards - set(shards[split])):
        problems.append(f'{split} has no shards {unknown[:_SHOWN]}')
    if problems:
      raise ValueError(
        f'{self.place} is not of this dataset: {"; ".join(problems)}. Correct or remove it.'
      )

  def with_entries(self, split: str, entries: Iterable[Entry]) -> Exclusions:
    """The same, and what these say that the split's own do not."""
    own = self.of(split)
    for entry in entries:
      is_said = entry.episode in own.episodes or entry.shard in own.shards
      if entry.steps and not is_said:
        is_said = set(entry.steps) <= set(own.steps.get(entry.episode, ()))
      if not is_said:
        own = OfSplit((*own.entries, entry))
    return dataclasses.replace(self, splits={**self.splits, split: own})

  def without_entries(self, split: str, entries: Iterable[Entry]) -> Exclusions:
    """The same without what it says of the episodes and shards that these name."""
    taken = {(entry.episode, entry.shard) for entry in entries}
    kept = [e for e in self.of(split).entries if (e.episode, e.shard) not in taken]
    return dataclasses.replace(self, splits={**self.splits, split: OfSplit(tuple(kept))})

  def write(self) -> None:
    """Writes the file, whole or not at all.

    Raises:
      ValueError: it cannot be written there.
    """
    content = {
      split: [entry.to_dict() for entry in left_out.entries]
      for split, left_out in sorted(self.splits.items())
      if left_out.entries
    }
    lines = json.dumps(content, indent=1)
    try:
      storage.write_whole(self.place, lines + '\n')
    except OSError as e:
      raise ValueError(
        f'{self.place} cannot be written ({e}); give another file with --exclude, and name it as '
        'config.data.exclude of the dataset.'
      ) from e


def read(dataset: epath.Path, file: str = '') -> Exclusions:
  """What is left out of a dataset: by its own file, or by another one in its place.

  Raises:
    ValueError: the file that is named is not there, or a file is no list of exclusions.
  """
  place = storage.make_path(file, 'The file of exclusions') if file else dataset / FILE
  try:
    content = place.read_text()
  except FileNotFoundError:
    if file:
      raise ValueError(
        f'There is no file of exclusions {place}; correct the path, or leave it out.'
      ) from None
    return Exclusions(place, {})
  return Exclusions(place, _parse(content, place))


def open_new(dataset: epath.Path, file: str = '') -> Exclusions:
  """As `read`, for a file that is about to be written and need not be there."""
  place = storage.make_path(file, 'The file of exclusions') if file else dataset / FILE
  return read(dataset, file) if place.exists() else Exclusions(place, {})


def make_command(dataset: os.PathLike[str] | str, split: str, flags: str, file: str = '') -> str:
  """The command that leaves something out, which `flags` name."""
  parts = [
    'python -m data.exclude',
    f'--dataset={shlex.quote(os.fspath(dataset))}',
    f'--split={split}',
    flags,
  ]
  if file:
    parts.append(f'--exclude={shlex.quote(file)}')
  return ' '.join(parts)


def describe_missing(files: Sequence[str]) -> str:
  """The files in a message, the first of them by name."""
  more = f' and {len(files) - _SHOWN} more' if len(files) > _SHOWN else ''
  return f'{", ".join(files[:_SHOWN])}{more}'


def parse_numbers(text: str, flag: str, count: int | None = None) -> list[int]:
  """The numbers that '3,10:12' means: 3, 10 and 11.

  Args:
    flag: that has it, for messages.
    count: how many there are: '-1' is then the last one, and '5:' goes to the end.
  Raises:
    ValueError: it means none, or others.
  """
  numbers: list[int] = []
  for part in text.split(','):
    first, colon, stop = part.strip().partition(':')
    try:
      if colon:
        numbers += _parse_stretch(first, stop, count)
      else:
        number = int(first)
        numbers.append(number + count if number < 0 and count is not None else number)
    except ValueError:
      raise ValueError(
        f'{flag}={text} must be numbers and stretches of them, as 3,10:12 for 3, 10 and 11.'
      ) from None
  wrong = [n for n in numbers if n < 0 or (count is not None and n >= count)]
  if wrong or not numbers:
    there = f'; there are 0 to {count - 1}' if count is not None else ''
    raise ValueError(f'{flag}={text} means {wrong[:_SHOWN] or "no number"}{there}.')
  return sorted(set(numbers))


def _parse_stretch(first: str, stop: str, count: int | None) -> Sequence[int]:
  if count is not None:
    return range(count)[slice(int(first or 0), int(stop or count))]
  return range(int(first), int(stop))


def _parse(content: str, place: epath.Path) -> dict[str, OfSplit]:
  try:
    splits = json.loads(content)
  except ValueError as e:
    raise ValueError(f'{place} is not JSON ({e}).') from e
  if not isinstance(splits, dict) or not all(isinstance(v, list) for v in splits.values()):
    raise ValueError(f'{place} must map names of splits to lists of what is left out.')
  problems = [
    f'{split}: {str(entry)[:80]}'
    for split, entries in splits.items()
    for entry in entries
    if not _is_entry(entry)
  ]
  if problems:
    raise ValueError(
      f'{place} must list objects with "episode", a number, and maybe "steps", as [[first, step '
      'after the last], ...], or with "shard", the name of a file; "why" may say why. It has '
      f'{"; ".join(problems[:_SHOWN])}.'
    )
  return {split: OfSplit(tuple(map(_make_entry, entries))) for split, entries in splits.items()}


def _make_entry(content: Mapping[str, Any]) -> Entry:
  steps = tuple((first, stop) for first, stop in content.get('steps', ()))
  return Entry(
    episode=content.get('episode'),
    steps=steps,
    shard=content.get('shard', ''),
    why=content.get('why', ''),
  )


def _is_entry(content: Any) -> bool:
  if not isinstance(content, dict) or set(content) - {'episode', 'steps', 'shard', 'why'}:
    return False
  if not isinstance(content.get('why', ''), str):
    return False
  if 'shard' in content:
    return isinstance(content['shard'], str) and not {'episode', 'steps'} & set(content)
  steps = content.get('steps', [[0, 1]])
  # Not isinstance: True is an int, too. An empty list of steps would leave out the whole episode.
  is_number = type(content.get('episode')) is int and content['episode'] >= 0
  return is_number and isinstance(steps, list) and bool(steps) and all(map(_has_steps, steps))


def _has_steps(pair: Any) -> bool:
  # Of a stretch that ends before it begins nothing would be left out, without a word.
  return is_range(pair) and pair[0] < pair[1]


def is_range(pair: Any) -> bool:
  """Whether this is [first step, step after the last], as JSON gives it."""
  if not isinstance(pair, list) or len(pair) != 2:
    return False
  return all(type(step) is int and step >= 0 for step in pair)
