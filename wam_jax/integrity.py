"""Whether a checkpoint on disk is whole, and what becomes of one that is not.

Before a checkpoint counts, the sizes of all its files are written beside them. Only a file that is
missing or shorter than that is damage: an error while reading may be of the network, and says
nothing about the files. Nothing is ever copied or deleted to set a checkpoint aside.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence

import orbax.checkpoint as ocp

from wam_jax import storage

_LIST = 'files.json'
_UNREADABLE = 'unreadable.json'
# Names that Orbax gives: the object that makes a checkpoint count on object storage, and what the
# name of an unfinished one contains on a disk.
_COMMITTED = ocp.path.atomicity.COMMIT_SUCCESS_FILE
_UNFINISHED = ocp.path.atomicity_types.TMP_DIR_SUFFIX
_TEXTS = ('iterator', 'metadata')  # Items of one JSON file, which is read and not measured.


def list_steps(directory: pathlib.Path) -> list[int]:
  """Steps of the checkpoints in `directory` that count, oldest first."""
  if not directory.is_dir():
    return []
  return sorted(
    int(p.name)
    for p in directory.iterdir()
    if p.name.isdigit() and ocp.utils.is_checkpoint_finalized(p)
  )


def find_unfinished(directory: pathlib.Path) -> list[pathlib.Path]:
  """What saves that were killed have left in `directory`."""
  if not directory.is_dir():  # A bucket has none before its first file.
    return []
  if not storage.is_remote(directory):
    return [p for p in directory.iterdir() if p.name.split('.')[0].isdigit() and _is_partial(p)]
  return [
    p
    for p in directory.iterdir()
    if p.name.isdigit() and not (p / _COMMITTED).exists() and not (p / _UNREADABLE).exists()
  ]


def write_list(directory: pathlib.Path, step: int) -> None:
  """Writes down the sizes of the files of `step`, which is complete but does not count yet."""
  partial = directory / f'{step}{_UNFINISHED}'
  place = directory / str(step) if storage.is_remote(directory) else partial
  # Orbax writes once more into the files that belong to no item.
  sizes = {name: size for name, size in storage.list_files(place).items() if '/' in name}
  storage.write_whole(place / _LIST, json.dumps(sizes, indent=0, sort_keys=True))


def complete(place: pathlib.Path) -> None:
  """Makes a checkpoint in a local directory, not written by Orbax, count as its own do, in a bucket
  that it is copied to, too.
  """
  sizes = {name: size for name, size in storage.list_files(place).items() if '/' in name}
  (place / _LIST).write_text(json.dumps(sizes, indent=0, sort_keys=True))
  (place / _COMMITTED).touch()


def has_list(place: pathlib.Path) -> bool:
  """Whether the files of the checkpoint in `place` are known; they are not of versions before."""
  return _read_list(place) is not None


def find_damage(place: pathlib.Path, items: Sequence[str]) -> str:
  """Which files of `items` of the checkpoint in `place` are missing or short; '' if none is.

  Raises:
    OSError: it cannot be read now.
  """
  problems = []
  for item in set(items) & set(_TEXTS):
    try:
      json.loads((place / item / 'metadata').read_text())
    except FileNotFoundError:
      problems.append(f'{item}/metadata is missing')
    except ValueError as e:
      problems.append(f'{item}/metadata is not JSON ({e})')

  arrays = set(items) - set(_TEXTS)
  found = _of_items(arrays, storage.list_files(place))
  listed = _read_list(place)
  if listed is None:
    # Of a version before, only what Orbax always writes can be missed, and that all is empty.
    expected = dict.fromkeys((name for name, size in found.items() if not size), 1)
    for item in arrays:
      expected |= {f'{item}/_METADATA': 1, f'{item}/manifest.ocdbt': 1}
  else:
    expected = _of_items(arrays, listed)
  return _join(problems + _compare(expected, found))


def write_list_of_item(place: pathlib.Path) -> None:
  """Writes down the sizes of the files of one item, which counts already, unless that is done."""
  if _read_list(place) is None:
    sizes = storage.list_files(place)
    storage.write_whole(place / _LIST, json.dumps(sizes, indent=0, sort_keys=True))


def find_damage_of_item(place: pathlib.Path) -> str:
  """As `find_damage` of an item that stands alone."""
  found = storage.list_files(place)
  expected = _read_list(place)
  if expected is None:
    expected = dict.fromkeys(('_METADATA', 'manifest.ocdbt'), 1)
  return _join(_compare(expected, found))


def set_aside(place: pathlib.Path, aside: pathlib.Path, reason: str) -> None:
  """Takes the damaged checkpoint in `place` out of the way of its step, which will be saved again.

  On a disk it gets another name below `aside`. In a bucket its files stay where they are, until the
  step is saved: the object that makes it count goes, and another one tells the reason.
  """
  if storage.is_remote(place):
    storage.write_whole(place / _UNREADABLE, json.dumps({'reason': reason}) + '\n')
    (place / _COMMITTED).unlink()
    return
  aside.mkdir(exist_ok=True)
  place.rename(_find_unused(aside / place.name))


def _is_partial(path: pathlib.Path) -> bool:
  return _UNFINISHED in path.name and path.is_dir()


def _compare(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
  """A line for each file that is missing or short."""
  problems = []
  for name, size in expected.items():
    if name not in found:
      problems.append(f'{name} is missing')
    elif found[name] < size:
      problems.append(f'{name} has {found[name]:,} of {size:,} bytes')
  return problems


def _join(problems: Sequence[str]) -> str:
  more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
  return ', '.join(sorted(problems)[:3]) + more


def _of_items(items: Collection[str], sizes: Mapping[str, int]) -> dict[str, int]:
  """The files among `sizes` that belong to `items`."""
  return {name: size for name, size in sizes.items() if name.split('/')[0] in items}


def _read_list(place: pathlib.Path) -> dict[str, int] | None:
  try:
    return json.loads((place / _LIST).read_text())
  except (FileNotFoundError, ValueError):
    return None


def _find_unused(path: pathlib.Path) -> pathlib.Path:
  """`path`, or STEP_2, STEP_3, ... if there is one already."""
  stem = path.name
  number = 1
  while path.exists():
    number += 1
    path = path.with_name(f'{stem}_{number}')
  return path
