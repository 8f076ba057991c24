"""The weights of a checkpoint, for whoever does not train: serving, evaluation, export."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from absl import logging

from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import frozen
from wam_jax import integrity
from wam_jax import items as item_files
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.checkpoint import errors
from wam_jax.checkpoint import reading
from wam_jax.models import encoders

PyTree = Any
T = TypeVar('T')


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


class Weights(NamedTuple):
  """What changes from one checkpoint of a run to the next; arrays are NumPy's, on the host.

  Attributes:
    config, params, metadata: as of `Trained`.
    encoders: what tells its encoders from others; None of checkpoints of before that was kept.
  """

  config: cfg.TrainConfig
  params: PyTree
  metadata: dict[str, Any]
  encoders: Any


def load_weights(workdir: str | pathlib.Path, step: int, is_read: bool = True) -> Weights:
  """The weights of one checkpoint without its encoders; errors as `load_for_inference`.

  Args:
    is_read: whether the parameters are read; else they are None.
  """

  def load(place: pathlib.Path, config: cfg.TrainConfig, metadata: Mapping[str, Any]) -> Weights:
    return Weights(
      config=finetuning.merged_config(config),
      params=_load_params(place, config, metadata) if is_read else None,
      metadata=metadata['data'],
      encoders=metadata.get('encoders'),
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
  reading.quiet_orbax()
  workdir = workdir_lib.make_path(str(workdir))
  directory = reading.find_directory(workdir)
  problems = []
  for candidate in _list_candidates(workdir, step):
    try:
      loaded = _load_checkpoint(directory / str(candidate), load, workdir)
    except errors.DamageError as e:
      problems.append(f'{candidate}: {e}')
      continue
    if problems:
      logging.warning('Incomplete checkpoints skipped in %s: %s', directory, '; '.join(problems))
    return loaded
  raise errors.CheckpointError(
    f'No checkpoint in {directory} can be read:\n  ' + '\n  '.join(problems)
  )


def _load_checkpoint(
  place: pathlib.Path,
  load: Callable[[pathlib.Path, cfg.TrainConfig, Mapping[str, Any]], T],
  workdir: pathlib.Path,
) -> T:
  """`load` of one checkpoint; raises DamageError if files are missing or short."""
  if damage := reading.find_damage(place, needless=('optimizer', 'iterator')):
    raise errors.DamageError(damage)
  metadata = storage.retry(lambda: reading.load_metadata(place), f'reading {place}')
  config = cfg.from_config_dict(workdir_lib.fill_config(metadata['config']))
  config = _with_vocabulary(config, workdir)
  try:
    return storage.retry(lambda: load(place, config, metadata), f'reading {place}')
  except Exception as e:  # Orbax and TensorStore have many types.
    if errors.is_loss(e) and not integrity.has_list(place):
      raise errors.DamageError(errors.first_line(e)) from e
    raise errors.PassingError(errors.describe_unreadable(place, errors.first_line(e))) from e


def _list_candidates(workdir: pathlib.Path, step: int | None) -> list[int]:
  """The steps to try, in this order; never none."""
  directory = reading.find_directory(workdir)
  steps = reading.list_steps(workdir)
  if not workdir.is_dir():
    what = 'is a file' if workdir.exists() else 'does not exist'
    raise errors.CheckpointError(f'{workdir} {what}; pass the --workdir of a training run.')
  if not directory.is_dir():
    raise errors.CheckpointError(
      f'{workdir} is not the workdir of a training run: it has no checkpoints/ directory.'
    )
  if not steps:
    raise errors.CheckpointError(
      f'{workdir} has no checkpoint yet; the first comes after config.save_every steps.'
    )
  if step is None:
    return steps[::-1]
  if step not in steps:
    raise errors.CheckpointError(
      f'{directory} has no step {step}; it has {", ".join(map(str, steps))}.'
    )
  return [step]


def _with_vocabulary(config: cfg.TrainConfig, workdir: pathlib.Path) -> cfg.TrainConfig:
  """`config` with the vocabulary that lies in `workdir`, wherever it came from."""
  # The config still names the file that it was copied from, perhaps on another machine.
  found = workdir_lib.find_vocabulary(workdir)
  if found is None:
    return config
  text = dataclasses.replace(config.model.text, tokenizer=str(found))
  return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


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
