"""How a run begins: from its own newest checkpoint, from another run, or from scratch.

Owns no loop and no files; checkpoint/ reads and writes those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import frozen
from wam_jax import hosts
from wam_jax import progress
from wam_jax import source as source_lib
from wam_jax import train_step
from wam_jax import types
from wam_jax import workdir as workdir_lib
from wam_jax.data import pipeline
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.data import roster
from wam_jax.models import encoders


@dataclasses.dataclass(frozen=True)
class Start:
  """What the loop begins with.

  Attributes:
    step: number of steps that were done before.
    state: TrainState on the devices; the first step takes it over.
    shardings: the sharding of each of its arrays.
    data: the datasets, with the features that were stored by the encoders in `state`.
    iterator_state: where the data stands after `step` steps; None at the beginning.
    usual_losses: what `guards.LossWatch` remembers of the steps before.
    metadata: what goes into every checkpoint of the run, see `checkpoint.Checkpoints.save`.
  """

  step: int
  state: train_step.TrainState
  shardings: Any
  data: pipeline.Data
  iterator_state: Any
  usual_losses: list[float]
  metadata: dict[str, Any]


def find_known(config: cfg.TrainConfig, workdir: pathlib.Path) -> roster.Known | None:
  """The robots that the run knows already: those of its own checkpoints, or of the run that it
  starts from; None of a fresh run.
  """
  found = hosts.decide('the robots that are known', lambda: _find_known(config, workdir))
  return found and roster.Known(
    robot_lib.from_metadata(found['data']), *found['where'], found['data'].get('episodes', {})
  )


def _find_known(config: cfg.TrainConfig, workdir: pathlib.Path) -> dict[str, Any] | None:
  """Metadata of robots, and the run that has them; JSON-ready."""
  own = checkpoint.find_newest_metadata(workdir)
  if own is not None:
    return {'data': own['data'], 'where': (str(workdir), True)}
  if not config.init_from:
    return None
  base = checkpoint.find_newest_metadata(workdir_lib.make_path(config.init_from))
  # Whatever is wrong with that place is said where its weights are read.
  return base and {'data': base['data'], 'where': (config.init_from, False)}


def begin(
  config: cfg.TrainConfig,
  mesh: Mesh,
  data: pipeline.Data,
  checkpoints: checkpoint.Checkpoints,
  workdir: pathlib.Path,
) -> Start:
  """The newest checkpoint of the run in `workdir`, or a fresh state at step 0.

  Raises:
    ValueError: no checkpoint of the run can be read, its data has changed, or what
      `config.init_from` and `config.encoders_from` name does not fit.
  """
  restored = checkpoints.restore(
    config, lambda frozen: train_step.abstract_state(config, mesh, frozen), progress.say
  )
  if restored:
    progress.say(f'continuing after step {restored.step} of {config.steps} in {workdir}')
    place = workdir / 'checkpoints' / str(restored.step)
    fresh = Fresh(
      state=restored.state,
      shardings=jax.tree.map(lambda x: x.sharding, restored.state),
      encoders=frozen.hash_once(
        frozen.find(place, restored.metadata), restored.metadata, progress.say
      ),
      base=restored.metadata.get('base'),
    )
  else:
    fresh = make_state(config, mesh, data, workdir)

  # Features of other encoders would be other numbers; only now is it known which ones these are.
  if data.may_have_features():
    data = data.with_features(fresh.encoders)
  metadata = {
    'config': cfg.to_dict(config),
    'data': json.loads(json.dumps(data.metadata)),  # As a checkpoint gives it back.
    'datasets': json.loads(json.dumps(data.describe_datasets())),
    'encoders': fresh.encoders,
    'base': fresh.base,
  }
  if restored:
    _check_same_data(restored.metadata['data'], metadata['data'], workdir)
  return Start(
    step=restored.step if restored else 0,
    state=fresh.state,
    shardings=fresh.shardings,
    data=data,
    iterator_state=restored.iterator_state if restored else None,
    # Checkpoints of earlier versions have none.
    usual_losses=restored.metadata.get('usual_losses', []) if restored else [],
    metadata=metadata,
  )


@dataclasses.dataclass(frozen=True)
class Fresh:
  """A state, and which weights it was made of.

  Attributes:
    state, shardings: as in `Start`.
    encoders: the hash of each frozen encoder.
    base: the record of the run that it starts from, see `source.identify`; None for scratch.
  """

  state: train_step.TrainState
  shardings: Any
  encoders: dict[str, str]
  base: dict[str, Any] | None


def make_state(
  config: cfg.TrainConfig, mesh: Mesh, data: pipeline.Data, workdir: pathlib.Path
) -> Fresh:
  """A state at step 0. Weights and encoders come from other runs where the config says so; adapters
  are always new.
  """
  if config.init_from:
    return _start_from(config, mesh, workdir)
  if config.encoders_from:
    source = source_lib.open_source(config.encoders_from)
    abstract = adopt(config, mesh, source, 'encoders_from', workdir)
    hashes = source.hash_encoders(progress.say)
    encoded_by = source.read_encoders(abstract.frozen)
  else:
    # Every process fits on the same windows.
    with contextlib.closing(data.train_batches()) as batches:
      encoded_by = train_step.fit_frozen(config.model, _show_fitting(config, batches))
    hashes = encoders.fingerprint(encoded_by)
    advice = 'Start on hosts of one kind, with the same packages.'
    hosts.agree('fitting the tokenizer', {f'hash of the {k}': x for k, x in hashes.items()}, advice)
  progress.say('compiling what makes the first weights')
  state, shardings = train_step.init_state(config, mesh, encoded_by)
  return Fresh(state, shardings, hashes, base=None)


def _show_fitting(config: cfg.TrainConfig, batches: Iterable[types.Batch]) -> Iterator[types.Batch]:
  """`batches`, and how many of the windows that the tokenizer is fitted on are read."""
  windows = config.model.tokenizer.fit_windows
  return progress.track(
    batches,
    'windows for the tokenizer',
    windows,
    amount=lambda batch: len(batch.frames_BRIJ3),
  )


def _start_from(config: cfg.TrainConfig, mesh: Mesh, workdir: pathlib.Path) -> Fresh:
  """As `make_state`, with the weights of `config.init_from`."""
  source = source_lib.open_source(config.init_from)
  abstract, wanted = fit_source(config, mesh, source, workdir)
  hashes = source.hash_encoders(progress.say)
  encoded_by = source.read_encoders(abstract.frozen)
  # Adapters, rows of new robots, and whatever else has no number there are fresh.
  params, weights = source.read_params(jax.tree.map(lambda x: x.sharding, wanted), progress.say)
  state, shardings = train_step.init_state(config, mesh, encoded_by, params)
  progress.say(f'weights from step {source.step} of {config.init_from}')
  differing = source_lib.describe_rules(config, source.config)
  if differing:
    progress.say(f'trains by other rules than they were trained by: {", ".join(differing)}')
  return Fresh(state, shardings, hashes, source_lib.identify(source, weights))


def fit_source(
  config: cfg.TrainConfig, mesh: Mesh, source: source_lib.Source, workdir: pathlib.Path
) -> tuple[train_step.TrainState, Any]:
  """(the abstract state, the parameters that it takes from the run at `config.init_from`).

  Raises:
    ValueError: that run has other encoders, another vocabulary, or parameters of other shapes.
  """
  abstract = adopt(config, mesh, source, 'init_from', workdir)
  there = train_step.abstract_state(_as_there(config, source.config), mesh, abstract.frozen)
  wanted = finetuning.without_adapters(there.params)
  mismatches = checkpoint.list_mismatches(wanted, source.params)
  if mismatches:
    raise ValueError(
      f'config.init_from={config.init_from} does not fit config.model; {len(mismatches)} arrays '
      'differ:\n  ' + '\n  '.join(mismatches[:10]) + '\nUse the same config.model as that run.'
    )
  return abstract, wanted


def _as_there(config: cfg.TrainConfig, source: cfg.TrainConfig) -> cfg.TrainConfig:
  """`config` with no more rows of action modules than the run at `config.init_from` has: those
  beyond are of robots that are new, and start fresh.
  """
  rows = min(config.model.num_embodiments, source.model.num_embodiments)
  model = dataclasses.replace(config.model, num_embodiments=rows)
  # Data are no part of the shapes, and may have more robots than this model has rows.
  return dataclasses.replace(config, model=model, data=cfg.DataConfig())


def adopt(
  config: cfg.TrainConfig,
  mesh: Mesh,
  source: source_lib.Source,
  key: str,
  workdir: pathlib.Path,
) -> train_step.TrainState:
  """The abstract state of this config with the encoders of the run at `config.KEY`; raises if it
  asks for others, or has another vocabulary.
  """
  _check_encoders(config, source.config, key)
  _check_same_vocabulary(config, source, key, workdir)
  adopted = encoders.from_tree(encoders.to_tree(source.frozen), config.model)
  return train_step.abstract_state(config, mesh, adopted)


def _check_encoders(config: cfg.TrainConfig, source: cfg.TrainConfig, key: str) -> None:
  """Raises ValueError unless the run at `config.KEY` has the encoders that this config asks for."""
  differing = [
    f'model.{name} is {getattr(source.model, name)} there, {getattr(config.model, name)} here'
    for name in ('tokenizer', 'text', 'image')
    if _fix(getattr(source.model, name)) != _fix(getattr(config.model, name))
  ]
  if differing:
    raise ValueError(
      f'config.{key}={getattr(config, key)} has other encoders:\n  '
      + '\n  '.join(differing)
      + '\nMake them equal.'
    )


def _check_same_vocabulary(
  config: cfg.TrainConfig, source: source_lib.Source, key: str, workdir: pathlib.Path
) -> None:
  """Raises unless prompts have the same ids here as where the text encoder was trained."""
  if config.model.text.kind == 'word':
    return

  def find_difference() -> str | None:
    theirs = workdir_lib.find_vocabulary(source.workdir)
    ours = workdir_lib.find_vocabulary(workdir) or config.model.text.tokenizer
    if theirs is None:
      return None
    return prompts.find_difference(config.model.text, str(theirs), str(ours))

  difference = hosts.decide('comparing the vocabularies', find_difference)
  if difference:
    raise ValueError(
      f'config.{key}={getattr(config, key)} has another vocabulary than this run: {difference} '
      'Give its file as config.model.text.tokenizer, in a new --workdir.'
    )


def _fix(encoder: Any) -> Any:
  """An encoder's config without what may differ: what it is shown, how it computes, where its
  vocabulary lies.
  """
  free = {name: '' for name in ('resize', 'dtype', 'tokenizer') if hasattr(encoder, name)}
  return dataclasses.replace(encoder, **free)


def _make_comparable(data: Mapping[str, Any]) -> dict[str, Any]:
  """What a checkpoint says of its data as this version would have said it: records of earlier ones
  lack the fields that came later.
  """
  robots = robot_lib.from_metadata(data)
  embodiments = robot_lib.to_metadata(list(robots.values()))['embodiments']
  return {**json.loads(json.dumps(data)), 'embodiments': json.loads(json.dumps(embodiments))}


def _check_same_data(
  stored: Mapping[str, Any], now: Mapping[str, Any], workdir: pathlib.Path
) -> None:
  stored, now = _make_comparable(stored), _make_comparable(now)
  keys = stored.keys() | now.keys()
  if 'windows' not in stored:  # Of an earlier version.
    keys = keys - {'windows'}
  then = roster.Known({}, '', True, stored.get('episodes', {}))
  for name, episodes in now.get('episodes', {}).items():
    # What is left out may change: the data go on, in another order, which `pipeline` says.
    if then.has_other_exclusions(name, episodes):
      stored['windows'][name] = now['windows'][name]
  keys = keys - {'episodes'}
  differing = sorted(key for key in keys if stored.get(key) != now.get(key))
  if not differing:
    return
  again = 'Put the old dataset back'
  if differing == ['windows']:
    again = 'Put the old episodes, exclusions and config.data.ranges back'
  if differing == ['features']:
    again = 'Put the old features back'
    if 'features' not in stored:
      again = 'Set --config.data.features=off to go on from pixels'
  raise ValueError(
    f'The dataset has changed since {workdir} was last saved: {", ".join(differing)} differ. '
    f'{again}, or start in another --workdir with --config.init_from.'
  )
