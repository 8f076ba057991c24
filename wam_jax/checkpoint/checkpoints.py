"""The checkpoints of a run that trains: saved in the background, restored on every process."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from wam_jax import config as cfg
from wam_jax import frozen
from wam_jax import hosts
from wam_jax import identity
from wam_jax import integrity
from wam_jax import items as item_files
from wam_jax import storage
from wam_jax.checkpoint import errors
from wam_jax.checkpoint import reading
from wam_jax.models import encoders

PyTree = Any


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
    reading.quiet_orbax()
    self._workdir = workdir
    self._directory = reading.find_directory(workdir)
    self._keep = keep
    self._keep_every = keep_every
    self._check_owner = check_owner
    self._encoders_in: str | None = None  # Where they are stored, once that is known.
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
      raise errors.CheckpointError(f'{self._directory} has a checkpoint of step {step} already.')
    if self._encoders_in is None:
      self._guard(lambda: self._store_encoders(state.frozen, metadata['encoders']), step)
    items = {
      'params': _save_arrays(state.params),
      'optimizer': _save_arrays({'step': state.step, 'opt_state': state.opt_state}),
      'iterator': ocp.args.JsonSave(iterator_state),
    }
    if state.ema_params is not None:
      items['ema_params'] = _save_arrays(state.ema_params)
    # What there should be, so that a reader notices an item that is gone.
    described = {
      'items': sorted(items),
      'weights': identity.hash_arrays(state.eval_params),
      'encoders_in': self._encoders_in,
    }
    items['metadata'] = ocp.args.JsonSave(described | metadata)
    self._guard(lambda: self._begin(step, items), step)

  def _store_encoders(self, parts: encoders.Encoders, hashes: Mapping[str, str]) -> None:
    self._encoders_in = frozen.store(self._workdir, parts, hashes, self._check_owner)

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
      CheckpointError: no checkpoint is whole, or what is there are weights alone.
      PassingError: one that is whole cannot be read now; nothing has been changed.
    """
    damages: dict[int, str] = {}
    for step in reversed(self._steps):
      try:
        restored = self._restore_step(step, config, abstract_state)
      except errors.DamageError as e:
        damages[step] = str(e)
        say(f'checkpoint {step} is incomplete and will not be used: {e}')
        continue
      # Only now: where none can be read, all stay where they are for whoever mends them.
      hosts.decide('setting damaged checkpoints aside', lambda: self._set_aside(damages))
      self._steps = [step for step in self._steps if step not in damages]
      return restored
    if damages:
      listed = '\n  '.join(f'{step}: {damage}' for step, damage in damages.items())
      raise errors.CheckpointError(
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
    damage = hosts.decide(f'checking checkpoint {step}', lambda: reading.find_damage(place))
    if damage:
      raise errors.DamageError(damage)

    def load_description() -> tuple[dict[str, Any], encoders.Encoders]:
      metadata = reading.load_metadata(place)
      return metadata, frozen.load_shapes(frozen.find(place, metadata), config.model)

    metadata, shapes = reading.read_together(load_description, place, stage)
    if 'optimizer' not in metadata.get('items', ('optimizer',)):
      workdir = self._directory.parent
      raise errors.CheckpointError(
        f'{workdir} holds weights alone, of an import or made by `convert slim`: training cannot '
        f'go on from them. Pass another --workdir, and --config.init_from={workdir}.'
      )
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
    got = reading.read_together(lambda: reading.load_items(place, items), place, stage)
    encoders_place = frozen.find(place, metadata)
    loaded = reading.read_together(
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
    self._delete(frozen.find_unfinished(self._workdir))

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
      kind = errors.PassingError if storage.is_remote(self._directory) else errors.CheckpointError
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
      f'{errors.first_line(error)}\n'
      f'{kept}; {cure} and run the same command again to continue from it.'
    )

  def _wait_quietly(self) -> None:
    try:
      if self._saving:
        self._saving.result()
    except Exception as e:
      logging.debug('Save abandoned: %s', e)


def _save_arrays(tree: PyTree) -> ocp.args.StandardSave:
  return ocp.args.StandardSave(tree, save_args=item_files.make_save_args(tree))


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
