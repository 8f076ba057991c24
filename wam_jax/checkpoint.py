"""Checkpoints of a run (Orbax). Owns their layout on disk; knows nothing of flags or datasets.

WORKDIR/checkpoints/STEP/ holds, each readable without the others:
  params, ema_params   the model, and averages of what is trained; no ema_params where none are kept
  optimizer            step and optimizer state
  iterator             JSON, where the data stands after exactly STEP batches; the same for any
                       number of hosts
  metadata             JSON, config, what the dataset says (statistics, embodiments), what the run
                       started from, the hash of its weights and those of the encoders around the
                       transformer, which are stored once; see frozen.py

and files.json, the sizes of all files of arrays.

Orbax writes STEP under another name and renames it when all of it is on disk, or on object storage
marks it by a last file, so what is listed is complete. A disk may still lose files later, which
integrity.py finds out; such a checkpoint is set aside and the one before is used. Whatever else
goes wrong while reading is tried again, and then stops the run with everything left as it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import frozen
from wam_jax import hosts
from wam_jax import identity
from wam_jax import integrity
from wam_jax import items as item_files
from wam_jax import progress
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.models import encoders

PyTree = Any
T = TypeVar('T')


class CheckpointError(ValueError):
  """A checkpoint could not be written or none can be read; the message says what to do."""


class PassingError(OSError):
  """A checkpoint cannot be read or written now; the same command may well succeed later."""


class DamageError(CheckpointError):
  """Files of a checkpoint are missing or short."""


class Checkpoints:
  """Writes and restores the checkpoints of one training run. Saves in the background; use as a
  context manager, on every process of the run.

  What there is to restore is decided by the first process, and holds for all: no two of them may
  see the same files at the same time.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    keep: int,
    keep_every: int = 0,
    check_owner: Callable[[], None] = lambda: None,
  ):
    """Makes the directory, and lists what is there.

    Args:
      keep, keep_every: as in the config.
      check_owner: raises where the workdir belongs to another run by now; called on the first
        process before a save counts, and before an old one is deleted.
    Raises:
      OSError, HostError: the directory cannot be made or read.
    """
    _quiet_orbax()
    self._workdir = workdir
    self._directory = _directory(workdir)
    self._keep = keep
    self._keep_every = keep_every
    self._check_owner = check_owner
    self._has_encoders = False  # Whether they are known to be stored.
    self._steps = hosts.decide('listing the checkpoints', self._open)
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      # Called by the first process, when all have written and before that counts.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
    )
    # Waits for a save to end, which its own thread cannot.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'wam_jax.checkpoint')
    self._saving: concurrent.futures.Future[None] | None = None
    self._cleaned = False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error_type, error, traceback) -> None:
    if error_type is None:
      self.wait()
    else:
      self._wait_quietly()  # The error that ends the run says more than one of this save.
    self._thread.shutdown()
    self._writer.close()

  def save(self, step: int, state: Any, iterator_state: Any, metadata: Mapping[str, Any]) -> None:
    """Copies `state` off the devices, then writes in the background. At most one save is under way.

    Args:
      step: number of batches consumed; not yet saved.
      state: TrainState; may be donated as soon as this returns.
      iterator_state: JSON-able and the same on every host.
      metadata: JSON-able: 'config', the nested dict of the config, 'data', what the dataset says,
        'datasets', which episodes are trained on, 'encoders', the hash of each frozen encoder, of a
        run that started from another 'base', the record of `source.identify`, and what
        `guards.LossWatch` remembers.
    Raises:
      CheckpointError: this save, or the one before, cannot be written; in a bucket PassingError.
      TakenError: the workdir belongs to another run by now.
    """
    self.wait()  # The error of the save before must not be lost.
    if step in self._steps:
      raise CheckpointError(f'{self._directory} has a checkpoint of step {step} already.')
    if not self._has_encoders:
      self._guard(lambda: self._store_encoders(state.frozen, metadata['encoders']), step)
      self._has_encoders = True
    items = {
      'params': _save_arrays(state.params),
      'optimizer': _save_arrays({'step': state.step, 'opt_state': state.opt_state}),
      'iterator': ocp.args.JsonSave(iterator_state),
    }
    if state.ema_params is not None:
      items['ema_params'] = _save_arrays(state.ema_params)
    # What there should be, so that a reader notices an item that is gone.
    described = {'items': sorted(items), 'weights': identity.hash_arrays(state.eval_params)}
    items['metadata'] = ocp.args.JsonSave(described | metadata)
    self._guard(lambda: self._begin(step, items), step)

  def _store_encoders(self, parts: encoders.Encoders, hashes: Mapping[str, str]) -> None:
    frozen.store(self._workdir, parts, hashes, self._check_owner)

  def check(self) -> None:
    """Raises what `save` does if that has failed in the background; does not wait for it."""
    if self._saving and self._saving.done():
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is on disk; raises what `save` does if it failed."""
    if self._saving:
      saving = self._saving
      self._saving = None
      self._guard(saving.result, self._steps[-1])

  def newest(self) -> int | None:
    """Step of the newest complete checkpoint, or of the save that is under way."""
    return max(self._steps, default=None)

  def restore(
    self,
    config: cfg.TrainConfig,
    abstract_state: Callable[[PyTree], Any],
    say: Callable[[str], None],
  ) -> Restored | None:
    """The newest checkpoint whose files are whole, or None where there is none at all.

    Every process comes back with the same step, or none comes back.

    Args:
      config: the config of this run.
      abstract_state: from abstract encoders to a TrainState of ShapeDtypeStruct with shardings.
      say: told of each checkpoint that had to be skipped.
    Raises:
      CheckpointError: no checkpoint is whole.
      PassingError: one that is whole cannot be read now; nothing has been changed.
    """
    damages: dict[int, str] = {}
    for step in reversed(self._steps):
      try:
        restored = self._restore_step(step, config, abstract_state)
      except DamageError as e:
        damages[step] = str(e)
        say(f'checkpoint {step} is incomplete and will not be used: {e}')
        continue
      # Only now: where none can be read, all stay where they are for whoever mends them.
      hosts.decide('setting damaged checkpoints aside', lambda: self._set_aside(damages))
      self._steps = [step for step in self._steps if step not in damages]
      return restored
    if damages:
      listed = '\n  '.join(f'{step}: {damage}' for step, damage in damages.items())
      raise CheckpointError(
        f'No checkpoint in {self._directory} can be read:\n  {listed}\n'
        'Restore one from a copy, or start again in another --workdir.'
      )
    return None

  def _open(self) -> list[int]:
    """Makes the directory; the steps that are there. On the first process."""

    def open_directory() -> list[int]:
      self._directory.mkdir(parents=True, exist_ok=True)
      # In a bucket an earlier owner may still be about to finish: there this waits until this run
      # saves.
      if not storage.is_remote(self._directory):
        self._delete(integrity.find_unfinished(self._directory))
      return integrity.list_steps(self._directory)

    return storage.retry(open_directory, f'listing {self._directory}')

  def _restore_step(
    self, step: int, config: cfg.TrainConfig, abstract_state: Callable[[PyTree], Any]
  ) -> Restored:
    place = self._directory / str(step)
    stage = f'reading checkpoint {step}'
    damage = hosts.decide(f'checking checkpoint {step}', lambda: _find_damage(place))
    if damage:
      raise DamageError(damage)

    def load_description() -> tuple[dict[str, Any], encoders.Encoders]:
      metadata = load_metadata(place)
      return metadata, frozen.load_shapes(frozen.find(place, metadata), config.model)

    metadata, shapes = read_together(load_description, place, stage)
    abstract = abstract_state(shapes)
    items = {
      'params': ocp.args.StandardRestore(abstract.params),
      'optimizer': ocp.args.StandardRestore(
        {'step': abstract.step, 'opt_state': abstract.opt_state}
      ),
      'iterator': ocp.args.JsonRestore(),
    }
    if abstract.ema_params is not None:
      items['ema_params'] = ocp.args.StandardRestore(abstract.ema_params)
    got = read_together(lambda: _load_items(place, items), place, stage)
    encoders_place = frozen.find(place, metadata)
    loaded = read_together(
      lambda: frozen.load_parts(encoders_place, abstract.frozen), encoders_place, stage
    )
    state = abstract.replace(
      step=got['optimizer']['step'],
      opt_state=got['optimizer']['opt_state'],
      params=got['params'],
      ema_params=got.get('ema_params'),
      frozen=loaded,
    )
    return Restored(step, state, metadata, got['iterator'])

  def _set_aside(self, damages: Mapping[int, str]) -> None:
    """Takes damaged checkpoints out of the way of the steps that will be saved again."""
    if damages:
      self._check_owner()
    for step, damage in damages.items():
      integrity.set_aside(self._directory / str(step), self._workdir / 'unreadable', damage)

  def _begin(self, step: int, items: Mapping[str, Any]) -> None:
    """Begins to write `items`; what should be deleted then goes once they count."""
    if not self._cleaned:
      hosts.decide('removing unfinished saves', self._clean)
      self._cleaned = True
    old = self._steps
    steps = [*old, step]
    for_good = [s for s in steps if self._keep_every and s % self._keep_every == 0]
    self._steps = sorted({*for_good, *steps[-self._keep :]})
    self._saved_step = step
    # An unfinished save of this step, of another start, is written over.
    place = self._directory / str(step)
    self._writer.save(place, args=ocp.args.Composite(**items), force=True)
    self._saving = self._thread.submit(self._finish, sorted({*old} - {*self._steps}))

  def _clean(self) -> None:
    """Deletes what saves of earlier starts have left. On the first process."""
    self._check_owner()
    self._delete(integrity.find_unfinished(self._directory))

  def _seal(self) -> None:
    """Completes what is about to count. On the first process, in the thread of Orbax."""
    integrity.write_list(self._directory, self._saved_step)
    self._check_owner()

  def _finish(self, old: Sequence[int]) -> None:
    """Waits for a save to count, then deletes the steps `old`. In the thread of this object."""
    self._writer.wait_until_finished()
    if jax.process_index() == 0:
      for step in old:
        self._check_owner()
        self._delete([self._directory / str(step)])

  def _delete(self, places: Sequence[pathlib.Path]) -> None:
    deleter = ocp.path.deleter.PathDeleter(epath.Path(self._directory))
    for place in places:
      deleter.delete(epath.Path(place))

  def _guard(self, call: Callable[[], Any], step: int) -> None:
    try:
      call()
    except Exception as e:  # A full disk is an OSError, ValueError or RuntimeError, by writer.
      self._wait_quietly()  # What was under way ends first.
      self._steps = [s for s in self._steps if s != step]
      if isinstance(e, (hosts.HostError, storage.TakenError)):
        raise  # It says what to do.
      kind = PassingError if storage.is_remote(self._directory) else CheckpointError
      raise kind(self._describe_failure(e, step)) from e

  def _describe_failure(self, error: Exception, step: int) -> str:
    """What could not be written, what there is all the same, and what to do."""
    directory = self._directory
    if storage.is_remote(directory):
      room = ''
      cure = 'check the bucket'
    else:
      free = shutil.disk_usage(directory).free / 2**20
      room = f' ({free:.0f} MiB free)'
      cure = 'make room'
    newest = None
    with contextlib.suppress(OSError):
      newest = max(integrity.list_steps(directory), default=None)
    if newest is None:
      kept = f'There is no complete checkpoint in {directory} yet'
    else:
      kept = f'The newest complete checkpoint is {directory / str(newest)}'
    return (
      f'A checkpoint of step {step} could not be written to {directory}{room}: '
      f'{first_line(error)}\n'
      f'{kept}; {cure} and run the same command again to continue from it.'
    )

  def _wait_quietly(self) -> None:
    try:
      if self._saving:
        self._saving.result()
    except Exception as e:
      logging.debug('Save abandoned: %s', e)


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `Checkpoints.restore` found.

  Attributes:
    step: the step of the checkpoint.
    state: the TrainState, on the devices.
    metadata, iterator_state: what was given to `save`.
  """

  step: int
  state: Any
  metadata: dict[str, Any]
  iterator_state: Any


class Trained(NamedTuple):
  """What serving and evaluation need of a run; arrays are NumPy's, on the host.

  Attributes:
    config: the config of the run, without adapters.
    params: the weights, averaged where the run keeps an average, adapters merged.
    frozen: the encoders around the transformer.
    metadata: what the dataset says, see `data.robot.from_metadata`.
    step: the step of the checkpoint.
    datasets: which episodes it was trained on, see `pipeline.Data.describe_datasets`; None of an
      import, and of a checkpoint of before these were kept.
  """

  config: cfg.TrainConfig
  params: PyTree
  frozen: encoders.Encoders
  metadata: dict[str, Any]
  step: int
  datasets: dict[str, Any] | None = None


def load_for_inference(workdir: str | pathlib.Path, step: int | None = None) -> Trained:
  """A checkpoint of the run in `workdir`, which may still be going on; needs no dataset.

  Args:
    step: the step of the checkpoint; None for the newest that can be read.
  Raises:
    CheckpointError: no such directory, checkpoint or step, or it is incomplete.
  """

  def load(place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]) -> Trained:
    return Trained(
      config=finetuning.merged_config(config),
      params=_load_params(place, config, metadata),
      frozen=frozen.load(frozen.find(place, metadata), config.model),
      metadata=metadata['data'],
      step=int(place.name),
      datasets=metadata.get('datasets'),
    )

  return load_newest(workdir, step, load)


def load_newest(
  workdir: str | pathlib.Path,
  step: int | None,
  load: Callable[[pathlib.Path, cfg.TrainConfig, Mapping[str, Any]], T],
) -> T:
  """`load(checkpoint directory, config, metadata)` of checkpoint `step`, or of the newest that can
  be read; errors as `load_for_inference`.
  """
  _quiet_orbax()
  workdir = workdir_lib.make_path(str(workdir))
  directory = _directory(workdir)
  problems = []
  for candidate in _list_candidates(workdir, step):
    try:
      loaded = _load_checkpoint(directory / str(candidate), load, workdir)
    except DamageError as e:
      problems.append(f'{candidate}: {e}')
      continue
    if problems:
      logging.warning('Incomplete checkpoints skipped in %s: %s', directory, '; '.join(problems))
    return loaded
  raise CheckpointError(f'No checkpoint in {directory} can be read:\n  ' + '\n  '.join(problems))


def _load_checkpoint(
  place: pathlib.Path,
  load: Callable[[pathlib.Path, cfg.TrainConfig, Mapping[str, Any]], T],
  workdir: pathlib.Path,
) -> T:
  """`load` of one checkpoint; raises DamageError if files are missing or short."""
  if damage := _find_damage(place, needless=('optimizer', 'iterator')):
    raise DamageError(damage)
  metadata = storage.retry(lambda: load_metadata(place), f'reading {place}')
  config = cfg.from_config_dict(workdir_lib.fill_config(metadata['config']))
  config = _with_vocabulary(config, workdir)
  try:
    return storage.retry(lambda: load(place, config, metadata), f'reading {place}')
  except Exception as e:  # Orbax and TensorStore have many types.
    if _is_loss(e) and not integrity.has_list(place):
      raise DamageError(first_line(e)) from e
    raise PassingError(_describe_unreadable(place, first_line(e))) from e


def _list_candidates(workdir: pathlib.Path, step: int | None) -> list[int]:
  """The steps to try, in this order; never none."""
  directory = _directory(workdir)
  steps = list_steps(workdir)
  if not workdir.is_dir():
    raise CheckpointError(f'{workdir} does not exist; pass the --workdir of a training run.')
  if not directory.is_dir():
    raise CheckpointError(
      f'{workdir} is not the workdir of a training run: it has no checkpoints/ directory.'
    )
  if not steps:
    raise CheckpointError(
      f'{workdir} has no checkpoint yet; the first comes after config.save_every steps.'
    )
  if step is None:
    return steps[::-1]
  if step not in steps:
    raise CheckpointError(f'{directory} has no step {step}; it has {", ".join(map(str, steps))}.')
  return [step]


def _with_vocabulary(config: cfg.TrainConfig, workdir: pathlib.Path) -> cfg.TrainConfig:
  """`config` with the vocabulary that lies in `workdir`, wherever it came from."""
  # The config still names the file that it was copied from, perhaps on another machine.
  found = workdir_lib.find_vocabulary(workdir)
  if found is None:
    return config
  text = dataclasses.replace(config.model.text, tokenizer=str(found))
  return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def list_steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the complete checkpoints, oldest first."""
  return integrity.list_steps(_directory(workdir))


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


def find_newest_metadata(workdir: pathlib.Path) -> dict[str, Any] | None:
  """`load_metadata` of the newest checkpoint of a run that has all its items; None of none."""
  for step in reversed(list_steps(workdir)):
    try:
      return load_metadata(_directory(workdir) / str(step))
    except CheckpointError:
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
    raise DamageError(f'{path} does not exist') from e
  except ValueError as e:
    raise DamageError(f'{path} is not JSON ({e})') from e
  missing = [name for name in metadata['items'] if not (place / name).is_dir()]
  if missing:
    raise DamageError(f'{", ".join(missing)} missing in {place}')
  return metadata


def _load_params(
  place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]
) -> PyTree:
  """The parameters of one checkpoint, averaged where there are averages, adapters merged."""
  averages = (
    item_files.load_whole(place / 'ema_params') if 'ema_params' in metadata['items'] else {}
  )
  if averages and config.trainable == ('all',):
    return averages
  params = finetuning.overlay(item_files.load_whole(place / 'params'), averages)
  return finetuning.merge(params, config.model.lora)


def _save_arrays(tree: PyTree) -> ocp.args.StandardSave:
  return ocp.args.StandardSave(tree, save_args=item_files.make_save_args(tree))


def _directory(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / 'checkpoints'


def _find_damage(place: pathlib.Path, needless: Sequence[str] = ()) -> str:
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
    except DamageError as e:
      return str(e)
    return integrity.find_damage(place, [item for item in items if item not in needless])

  damage = _look_twice(look, place)
  if damage:
    return damage
  encoders_place = frozen.find(place, load_metadata(place))
  if encoders_place.parent != place:
    lost = _look_twice(lambda: integrity.find_damage_of_item(encoders_place), encoders_place)
    if lost:
      raise CheckpointError(
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
    raise PassingError(_describe_unreadable(place, first_line(e))) from e
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
        problem = {'text': first_line(e), 'loss': _is_loss(e)}
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
    raise DamageError(failed) from error
  raise PassingError(_describe_unreadable(place, failed)) from error


def _list_failed(problems: Sequence[Mapping[str, Any] | None]) -> str:
  """What went wrong, and where, if there are several processes."""
  lines = [
    f'host {number}: {problem["text"]}' if len(problems) > 1 else problem['text']
    for number, problem in enumerate(problems)
    if problem
  ]
  more = f' and on {len(lines) - 4} more hosts' if len(lines) > 4 else ''
  return '; '.join(lines[:4]) + more


def _describe_unreadable(place: pathlib.Path, problem: str) -> str:
  return (
    f'The checkpoint {place} cannot be read: {problem}\nNone of its files was found missing or '
    'short, and nothing was changed. Run the same command again; if that does not help, move that '
    'directory away to use the one before.'
  )


def _is_loss(error: BaseException) -> bool:
  """Whether reading failed because bytes are not there."""
  codes = ('NOT_FOUND', 'DATA_LOSS', 'OUT_OF_RANGE')
  return isinstance(error, FileNotFoundError) or any(code in str(error) for code in codes)


def _load_items(place: pathlib.Path, items: Mapping[str, Any]) -> Any:
  """Items of one checkpoint, this process's shards; waits for no other process."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as reader:
    return reader.restore(place, args=ocp.args.Composite(**items))


def first_line(error: BaseException) -> str:
  """The first line of its message, or its type where it has none."""
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:400]


def _quiet_orbax() -> None:
  """Orbax logs each failure with its traceback before it raises; we report it once, in our
  words.
  """
  logging.get_absl_handler().addFilter(_is_wanted)  # The same filter is added only once.


def _is_wanted(record) -> bool:
  return 'orbax' not in record.pathname or logging.get_verbosity() >= logging.DEBUG
