"""Which splits and shards of a published dataset are converted, and what its description and its
exclusions say of them afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from wam_jax import storage
from wam_jax.data import exclusions

PRESENT = 'present'  # In place of numbers of shards: all that are there.


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard that is converted.

  Attributes:
    split: its split.
    number, first: its number among all shards of the split, and that of its first episode there.
    path: the file.
    size: bytes of it; None where it is not there.
    length: the number of records, according to dataset_info.json.
  """

  split: str
  number: int
  first: int
  path: epath.Path
  size: int | None
  length: int


@dataclasses.dataclass(frozen=True)
class Portion:
  """What is converted.

  Attributes:
    shards: by split, in order; of splits that are left out altogether there is no entry.
    left_out: what is not, a line for each split.
  """

  shards: Mapping[str, Sequence[Shard]]
  left_out: Sequence[str]

  def list_all(self) -> list[Shard]:
    """The shards of all splits."""
    return [shard for shards in self.shards.values() for shard in shards]

  def describe(self, splits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The part `splits` of dataset_info.json, of what is converted."""
    described = []
    for split in splits:
      if split['name'] in self.shards:
        lengths = [str(shard.length) for shard in self.shards[split['name']]]
        described.append({**split, 'shardLengths': lengths})
    return described

  def carry(self, known: exclusions.Exclusions, place: epath.Path) -> exclusions.Exclusions:
    """What was left out of the source, of the episodes as they are numbered now; in `place`."""
    splits = {}
    for name, shards in self.shards.items():
      entries = []
      first = 0
      for shard in shards:
        for entry in known.of(name).entries:
          if entry.episode is not None and 0 <= entry.episode - shard.first < shard.length:
            number = entry.episode - shard.first + first
            entries.append(dataclasses.replace(entry, episode=number))
        first += shard.length
      splits[name] = exclusions.OfSplit(tuple(entries))
    return exclusions.Exclusions(place, splits)


def choose(info: tfds.core.DatasetInfo, source: epath.Path, splits: str, shards: str) -> Portion:
  """The wanted part of a dataset.

  Args:
    splits: names, separated by commas; '' for all.
    shards: numbers, as 0:2,5; PRESENT; '' for all.
  Raises:
    ValueError: there is no such split or shard, none is left, or a wanted one is not there.
  """
  wanted = [name.strip() for name in splits.split(',')] if splits else list(info.splits)
  if unknown := [name for name in wanted if name not in info.splits]:
    raise ValueError(f'{source} has no split {unknown}; it has {sorted(info.splits)}.')
  if shards not in ('', PRESENT) and len(wanted) > 1:
    raise ValueError(f'--shards={shards} needs --split: one of {wanted}, whose shards they are.')

  sizes = storage.list_sizes(source)  # Thousands of shards, each of which would be a request.
  chosen = {}
  left_out = []
  for name in info.splits:
    every = list(_list_shards(name, info.splits[name], sizes))
    if name not in wanted:
      left_out.append(f'{name}, {sum(shard.length for shard in every)} episodes')
      continue
    taken = _take(every, shards)
    if taken:
      chosen[name] = taken
    if len(taken) < len(every):
      left_out.append(_describe_rest(name, every, taken))
  if not chosen:
    raise ValueError(f'None of the shards of {source} is there.')
  portion = Portion(chosen, left_out)
  _check_there(portion, source)
  return portion


def _list_shards(name: str, split: Any, sizes: Mapping[str, int]) -> Iterator[Shard]:
  first = 0
  for number, (path, length) in enumerate(zip(split.filepaths, split.shard_lengths)):
    yield Shard(
      split=name,
      number=number,
      first=first,
      path=path,
      size=sizes.get(path.name),
      length=length,
    )
    first += length


def _take(every: Sequence[Shard], shards: str) -> list[Shard]:
  if not shards:
    return list(every)
  if shards == PRESENT:
    return [shard for shard in every if shard.size is not None]
  numbers = exclusions.parse_numbers(shards, '--shards', len(every))
  return [every[number] for number in numbers]


def _describe_rest(name: str, every: Sequence[Shard], taken: Sequence[Shard]) -> str:
  numbers = {shard.number for shard in taken}
  rest = [shard for shard in every if shard.number not in numbers]
  shown = ', '.join(str(shard.number) for shard in rest[:10]) + ', ...' * (len(rest) > 10)
  episodes = sum(shard.length for shard in rest)
  return f'{name}, {len(rest)} of {len(every)} shards ({shown}), {episodes} episodes'


def _check_there(portion: Portion, source: epath.Path) -> None:
  shards = portion.list_all()
  missing = [shard for shard in shards if shard.size is None]
  if missing:
    paths = exclusions.describe_missing([str(shard.path) for shard in missing])
    here = len(shards) - len(missing)
    without = f'; or convert the {here} that are there: --shards={PRESENT}' if here else ''
    raise ValueError(
      f'{len(missing)} shards of {source} are missing: {paths}. Download them{without}'
    )
