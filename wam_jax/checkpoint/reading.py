"""What is on disk: the steps, what each says of itself, what is damaged; and how it is read, on
every process or on none.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from wam_jax import frozen
from wam_jax import hosts
from wam_jax import integrity
from wam_jax import progress
from wam_jax import storage
from wam_jax.checkpoint import errors

PyTree = Any
T = TypeVar('T')


def list_steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the complete checkpoints, oldest first."""
  return integrity.list_steps(find_directory(workdir))


def find_newest_metadata(workdir: pathlib.Path) -> dict[str, Any] | None:
  """`load_metadata` of the newest checkpoint of a run that has all its items; None of none."""
  for step in reversed(list_steps(workdir)):
    try:
      return load_metadata(find_directory(workdir) / str(step))
    except errors.CheckpointError:
      continue
  return None


def load_metadata(place: pathlib.Path) -> dict[str, Any]:
  """What the checkpoint in the directory `place` says of itself, once all its items are known to be
  there.

  Raises:
    DamageError: an item or the metadata is missing or damaged.
  """
  path = place / 'metadata' / 'metadata'
  try:
    metadata = json.loads(path.read_text())
  except FileNotFoundError as e:
    raise errors.DamageError(f'{path} does not exist') from e
  except ValueError as e:
    raise errors.DamageError(f'{path} is not JSON ({e})') from e
  missing = [name for name in metadata['items'] if not (place / name).is_dir()]
  if missing:
    raise errors.DamageError(f'{", ".join(missing)} missing in {place}')
  return metadata


def find_damage(place: pathlib.Path, needless: Sequence[str] = ()) -> str:
  """Which files of a checkpoint are missing or short; '' if none is.

  Args:
    needless: items whose files do not matter.
  Raises:
    PassingError: it cannot be read now.
    CheckpointError: the encoders are damaged, which other checkpoints need as well.
  """

  def look() -> str:
    try:
      items = load_metadata(place)['items']
    except errors.DamageError as e:
      return str(e)
    return integrity.find_damage(place, [item for item in items if item not in needless])

  damage = _look_twice(look, place)
  if damage:
    return damage
  encoders_place = frozen.find(place, load_metadata(place))
  if encoders_place.parent != place:
    lost = _look_twice(lambda: integrity.find_damage_of_item(encoders_place), encoders_place)
    if lost:
      raise errors.CheckpointError(
        f'The encoders of the checkpoint {place}, which others share, are damaged: {lost} in '
        f'{encoders_place}. Nothing was changed. Put that directory back from a copy, or from a '
        'run with the same encoders, where it has the same name.'
      )
  return ''


def _look_twice(look: Callable[[], str], place: pathlib.Path) -> str:
  """What `look` finds wrong, twice: what is mounted may show files late."""
  try:
    damage = storage.retry(look, f'checking {place}')
    if damage:
      time.sleep(storage.WAITS_S[0])
      damage = storage.retry(look, f'checking {place}')
  except Exception as e:  # fsspec has many types.
    raise errors.PassingError(errors.describe_unreadable(place, errors.first_line(e))) from e
  return damage


def read_together(read: Callable[[], T], place: pathlib.Path, stage: str) -> T:
  """The result of `read` on this process, once every process has its own.

  Raises:
    PassingError: the same on every process, if one of them cannot read.
    DamageError: the same on every process, if bytes are missing.
  """
  result = None
  done = False
  for wait_s in (*storage.WAITS_S, None):
    problem = None
    error = None
    if not done:
      try:
        result = read()
        done = True
      except Exception as e:  # Orbax and TensorStore have many types.
        problem = {'text': errors.first_line(e), 'loss': errors.is_loss(e)}
        error = e
    problems = hosts.exchange(stage, problem)
    if not any(problems):
      return result
    failed = _list_failed(problems)
    if wait_s is not None:
      progress.say(f'{stage}: {failed}; again in {wait_s:g} s')
      time.sleep(wait_s)

  # Of a checkpoint without a list of its files, only reading can tell that one is short.
  has_list = hosts.decide(stage, lambda: integrity.has_list(place))
  if not has_list and any(problem and problem['loss'] for problem in problems):
    raise errors.DamageError(failed) from error
  raise errors.PassingError(errors.describe_unreadable(place, failed)) from error


def _list_failed(problems: Sequence[Mapping[str, Any] | None]) -> str:
  """What went wrong, and where, if there are several processes."""
  lines = [
    f'host {number}: {problem["text"]}' if len(problems) > 1 else problem['text']
    for number, problem in enumerate(problems)
    if problem
  ]
  more = f' and on {len(lines) - 4} more hosts' if len(lines) > 4 else ''
  return '; '.join(lines[:4]) + more


def load_items(place: pathlib.Path, items: Mapping[str, Any]) -> Any:
  """Items of one checkpoint, this process's shards; waits for no other process."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as reader:
    return reader.restore(place, args=ocp.args.Composite(**items))


def list_mismatches(wanted: PyTree, given: PyTree) -> list[str]:
  """One line per array of `given` that is missing, unknown or of another shape than in `wanted`."""
  want = _shapes(wanted)
  have = _shapes(given)
  return [
    f'{name}: {want.get(name, "absent")} here, {have.get(name, "absent")} there'
    for name in sorted(want.keys() | have.keys())
    if want.get(name) != have.get(name)
  ]


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def find_directory(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / 'checkpoints'


def quiet_orbax() -> None:
  """Orbax logs each failure with its traceback before it raises; we report it once, in our
  words.
  """
  logging.get_absl_handler().addFilter(_is_wanted)  # The same filter is added only once.


def _is_wanted(record) -> bool:
  return 'orbax' not in record.pathname or logging.get_verbosity() >= logging.DEBUG
