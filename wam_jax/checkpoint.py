"""Checkpoints of a run (Orbax). Owns their layout on disk; knows nothing of flags or datasets.

WORKDIR/checkpoints/STEP/ holds, each readable without the others:
  params, ema_params   the model, and averages of what is trained; no ema_params where none are kept
  frozen               the encoders around the transformer
  optimizer            step and optimizer state
  iterator             JSON, where the data stands after exactly STEP batches; the same for any
                       number of hosts
  metadata             JSON, config, what the dataset says (statistics, embodiments), and what the
                       run started from

Orbax writes STEP under another name and renames it when all of it is on disk, or on object storage
marks it by a last file, so what is listed is complete. A disk may still lose files later; such a
checkpoint is moved to WORKDIR/unreadable/ and the one before is used.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.models import encoders

PyTree = Any
T = TypeVar('T')


class CheckpointError(ValueError):
  """A checkpoint could not be written or none can be read; the message says what to do."""


class Checkpoints:
  """Writes and restores the checkpoints of one training run. Saves in the background; use as a
  context manager.
  """

  def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int = 0):
    _quiet_orbax()
    self._workdir = workdir
    self._manager = ocp.CheckpointManager(
      _directory(workdir),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,  # What a killed run was writing.
        enable_async_checkpointing=True,
      ),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error_type, error, traceback) -> None:
    if error_type is None:
      self.wait()
    else:
      self._wait_quietly()  # The error that ends the run says more than one of this save.
    self._manager.close()

  def save(self, step: int, state: Any, iterator_state: Any, metadata: Mapping[str, Any]) -> None:
    """Copies `state` off the devices, then writes in the background. At most one save is under way.

    Args:
      step: number of batches consumed; not yet saved.
      state: TrainState; may be donated as soon as this returns.
      iterator_state: JSON-able and the same on every host.
      metadata: JSON-able: 'config', the nested dict of the config, 'data', what the dataset says,
        and of a run that started from another 'base', the record of `load_base`.
    Raises:
      CheckpointError: this save, or the one before, cannot be written.
    """
    self.wait()  # The error of the save before must not be lost.
    items = {
      'params': ocp.args.StandardSave(state.params),
      'frozen': ocp.args.StandardSave(encoders.to_tree(state.frozen)),
      'optimizer': ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state}),
      'iterator': ocp.args.JsonSave(iterator_state),
    }
    if state.ema_params is not None:
      items['ema_params'] = ocp.args.StandardSave(state.ema_params)
    # What there should be, so that a reader notices an item that is gone.
    items['metadata'] = ocp.args.JsonSave({'items': sorted(items)} | metadata)
    self._guard(
      lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True), step
    )

  def check(self) -> None:
    """Raises CheckpointError if the background save has failed; does not wait for it."""
    self._guard(self._manager.check_for_errors)

  def wait(self) -> None:
    """Returns when the last save is on disk; raises CheckpointError if it failed."""
    self._guard(self._manager.wait_until_finished)
    self._guard(self._manager.check_for_errors)

  def newest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return max(self._manager.all_steps(), default=None)

  def restore(
    self,
    config: cfg.TrainConfig,
    abstract_state: Callable[[PyTree], Any],
    say: Callable[[str], None],
  ) -> Restored | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Args:
      config: the config of this run.
      abstract_state: from abstract encoders to a TrainState of ShapeDtypeStruct with shardings.
      say: told of each checkpoint that had to be skipped.
    Raises:
      CheckpointError: there are checkpoints, and none can be read.
    """
    problems: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore_step(step, config, abstract_state)
      except Exception as e:  # Orbax reports a missing or cut file by many types.
        problems[step] = _first_line(e)
        say(f'checkpoint {step} is incomplete and will not be used: {problems[step]}')
        continue
      # Only now: where none can be read, all stay where they are for whoever mends them.
      self._set_aside(list(problems))
      return restored
    if problems:
      listed = '\n  '.join(f'{step}: {problem}' for step, problem in problems.items())
      raise CheckpointError(
        f'No checkpoint in {_directory(self._workdir)} can be read:\n  {listed}\n'
        'Restore one from a copy, or start again in another --workdir.'
      )
    return None

  def _restore_step(
    self, step: int, config: cfg.TrainConfig, abstract_state: Callable[[PyTree], Any]
  ) -> Restored:
    place = _directory(self._workdir) / str(step)
    metadata = load_metadata(place)
    abstract = abstract_state(encoders.from_tree(_load_shapes(place / 'frozen'), config.model))
    items = {
      'params': ocp.args.StandardRestore(abstract.params),
      'frozen': ocp.args.StandardRestore(encoders.to_tree(abstract.frozen)),
      'optimizer': ocp.args.StandardRestore(
        {'step': abstract.step, 'opt_state': abstract.opt_state}
      ),
      'iterator': ocp.args.JsonRestore(),
    }
    if abstract.ema_params is not None:
      items['ema_params'] = ocp.args.StandardRestore(abstract.ema_params)
    got = self._manager.restore(step, args=ocp.args.Composite(**items))
    state = abstract.replace(
      step=got['optimizer']['step'],
      opt_state=got['optimizer']['opt_state'],
      params=got['params'],
      ema_params=got.get('ema_params'),
      frozen=encoders.from_tree(got['frozen'], config.model),
    )
    return Restored(step, state, metadata, got['iterator'])

  def _set_aside(self, steps: list[int]) -> None:
    """Moves unreadable checkpoints out of the way of the steps that will be saved again."""
    if not steps:
      return
    aside = self._workdir / 'unreadable'
    # One process moves them; the others may not list the directory before it is done.
    if jax.process_index() == 0:
      aside.mkdir(exist_ok=True)
      for step in steps:
        storage.move(_directory(self._workdir) / str(step), _find_unused(aside / str(step)))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('wam_jax:set_aside')
    self._manager.reload()

  def _guard(self, call: Callable[[], Any], step: int | None = None) -> None:
    try:
      call()
    except Exception as e:  # A full disk is an OSError, ValueError or RuntimeError, by writer.
      # What was under way ends first, and the steps are listed anew from what is on disk.
      self._wait_quietly()
      self._manager.reload()
      raise CheckpointError(self._describe_failure(e, step)) from e

  def _describe_failure(self, error: Exception, step: int | None) -> str:
    """What could not be written, what there is all the same, and what to do."""
    directory = _directory(self._workdir)
    of_step = f' of step {step}' if step else ''
    if storage.is_remote(directory):
      room = ''
      cure = 'check the bucket'
    else:
      free = shutil.disk_usage(directory).free / 2**20
      room = f' ({free:.0f} MiB free)'
      cure = 'make room'
    newest = self.newest()
    if newest is None:
      kept = f'There is no complete checkpoint in {directory} yet'
    else:
      kept = f'The newest complete checkpoint is {directory / str(newest)}'
    return (
      f'A checkpoint{of_step} could not be written to {directory}{room}: {_first_line(error)}\n'
      f'{kept}; {cure} and run the same command again to continue from it.'
    )

  def _wait_quietly(self) -> None:
    try:
      self._manager.wait_until_finished()
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
  """

  config: cfg.TrainConfig
  params: PyTree
  frozen: encoders.Encoders
  metadata: dict[str, Any]
  step: int


class Base(NamedTuple):
  """What a run that starts from another needs of it; arrays are NumPy's, on the host.

  Attributes:
    config: the config of that run, adapters included.
    params, frozen: as in `Trained`.
    record: which weights these are: 'workdir', 'step', 'sha256' of the parameters, and 'origin',
      what the checkpoint says of its own source (of an import) or base (of a run that started from
      another), or None.
  """

  config: cfg.TrainConfig
  params: PyTree
  frozen: encoders.Encoders
  record: dict[str, Any]


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
      frozen=_load_encoders(place, config),
      metadata=metadata['data'],
      step=int(place.name),
    )

  return _load_newest(workdir, step, load)


def load_base(workdir: str | pathlib.Path) -> Base:
  """The newest checkpoint of the run in `workdir`; errors as `load_for_inference`."""

  def load(place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]) -> Base:
    params = _load_params(place, config, metadata)
    record = {
      'workdir': str(place.parent.parent),
      'step': int(place.name),
      'sha256': finetuning.fingerprint(params),
      'origin': metadata.get('source') or metadata.get('base'),
    }
    return Base(config, params, _load_encoders(place, config), record)

  return _load_newest(workdir, None, load)


def load_encoders(workdir: str | pathlib.Path) -> tuple[cfg.TrainConfig, encoders.Encoders]:
  """(config, frozen encoders as NumPy arrays) of the newest checkpoint; errors as
  `load_for_inference`.
  """

  def load(
    place: pathlib.Path, config: cfg.TrainConfig, unused_metadata: Mapping[str, Any]
  ) -> tuple[cfg.TrainConfig, encoders.Encoders]:
    return config, _load_encoders(place, config)

  return _load_newest(workdir, None, load)


def _load_newest(
  workdir: str | pathlib.Path,
  step: int | None,
  load: Callable[[pathlib.Path, cfg.TrainConfig, Mapping[str, Any]], T],
) -> T:
  """`load(checkpoint directory, config, metadata)` of checkpoint `step`, or of the newest that can
  be read.
  """
  _quiet_orbax()
  workdir = workdir_lib.make_path(str(workdir))
  directory = _directory(workdir)
  problems = []
  for candidate in _list_candidates(workdir, step):
    place = directory / str(candidate)
    try:
      metadata = load_metadata(place)
      config = cfg.from_config_dict(workdir_lib.fill_config(metadata['config']))
      loaded = load(place, _with_vocabulary(config, workdir), metadata)
    except Exception as e:  # Orbax reports a missing or cut file by many types.
      problems.append(f'{candidate}: {_first_line(e)}')
      continue
    if problems:
      logging.warning('Unreadable checkpoints skipped in %s: %s', directory, '; '.join(problems))
    return loaded
  raise CheckpointError(f'No checkpoint in {directory} can be read:\n  ' + '\n  '.join(problems))


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
  directory = _directory(workdir)
  if not directory.is_dir():
    return []
  return sorted(
    int(p.name)
    for p in directory.iterdir()
    if p.name.isdigit() and ocp.utils.is_checkpoint_finalized(p)
  )


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


def load_metadata(place: pathlib.Path) -> dict[str, Any]:
  """What the checkpoint in the directory `place` says of itself, once all its items are known to be
  there.

  Raises:
    CheckpointError: an item or the metadata is missing or damaged.
  """
  path = place / 'metadata' / 'metadata'
  try:
    metadata = json.loads(path.read_text())
  except FileNotFoundError as e:
    raise CheckpointError(f'{path} does not exist') from e
  except ValueError as e:
    raise CheckpointError(f'{path} is not JSON ({e})') from e
  missing = [name for name in metadata['items'] if not (place / name).is_dir()]
  if missing:
    raise CheckpointError(f'{", ".join(missing)} missing in {place}')
  return metadata


def _load_params(
  place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]
) -> PyTree:
  """The parameters of one checkpoint, averaged where there are averages, adapters merged."""
  averages = _load_tree(place / 'ema_params') if 'ema_params' in metadata['items'] else {}
  if averages and config.trainable == ('all',):
    return averages
  params = finetuning.overlay(_load_tree(place / 'params'), averages)
  return finetuning.merge(params, config.model.lora)


def _load_encoders(place: pathlib.Path, config: cfg.TrainConfig) -> encoders.Encoders:
  """The encoders of one checkpoint."""
  return encoders.from_tree(_load_tree(place / 'frozen'), config.model)


def _load_shapes(path: pathlib.Path) -> PyTree:
  """ShapeDtypeStructs of one item."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), reader.metadata(path).item_metadata.tree
    )


def _load_tree(path: pathlib.Path) -> PyTree:
  """Nested dict of NumPy arrays of one item, whatever devices wrote it."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    stored = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _directory(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / 'checkpoints'


def _find_unused(path: pathlib.Path) -> pathlib.Path:
  """`path`, or STEP_2, STEP_3, ... if there is one already."""
  stem = path.name
  number = 1
  while path.exists():
    number += 1
    path = path.with_name(f'{stem}_{number}')
  return path


def _first_line(error: BaseException) -> str:
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
