"""Trains a World Action Model.

  python -m wam_jax.train --config=configs/tiny.py --workdir=~/wam/tiny
  python -m wam_jax.train --config=configs/tiny.py:smoke --workdir=/tmp/smoke --config.steps=20

A dataset that is not there yet is made first. Run the same command again to continue from the
newest checkpoint: the result is the same as that of a run that was never stopped. Ctrl-C or SIGTERM
saves and stops, with exit status 130 or 143, so that a launcher can tell a stopped run from a
finished one.

WORKDIR gets config.json, metrics.jsonl (a line per config.log_every steps), timing.jsonl,
tensorboard/, checkpoints/. Any key of the config can be set from here, as in
--config.optimizer.learning_rate=3e-4; wam_jax/config.py declares all.

This module owns the wiring and the loop; the step itself is in train_step.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from ml_collections import config_flags

from wam_jax import checkpoint
from wam_jax import chips
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import flops
from wam_jax import guards
from wam_jax import metrics
from wam_jax import progress
from wam_jax import sharding
from wam_jax import storage
from wam_jax import train_step
from wam_jax import types
from wam_jax import workdir as workdir_lib
from wam_jax.data import pipeline
from wam_jax.data import prepare
from wam_jax.data import shapes
from wam_jax.models import encoders

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, as configs/tiny.py or configs/tiny.py:smoke.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of this run; made if missing, continued if not.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  '',
  'Directory where compiled programs are kept, for faster restarts; empty for none.',
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'Several processes, found from the TPU or SLURM environment; same command on each host.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, for several processes started by hand.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many, with --coordinator_address.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Of this process, with --coordinator_address.'
)
_WANDB = flags.DEFINE_string(
  'wandb_project',
  '',
  'Metrics go to this project of Weights & Biases, too; WANDB_MODE=offline needs no network.',
)


def main(unused_argv: list[str]) -> int:
  config = cfg.from_config_dict(
    _CONFIG.value.to_dict()
  )  # to_dict says so if the file could not be loaded.
  workdir = workdir_lib.make_path(_WORKDIR.value)
  _start_processes()
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(_CACHE.value).expanduser()))
  stopped_by = train(config, workdir, _WANDB.value)
  return 128 + stopped_by if stopped_by else 0


def train(config: cfg.TrainConfig, workdir: pathlib.Path, wandb_project: str = '') -> int:
  """Runs `config` in `workdir` from the newest checkpoint there, or from the start, to
  `config.steps`.

  Args:
    wandb_project: where metrics are also shown; '' for nowhere.
  Returns:
    0, or the number of the signal that stopped it before.
  """
  first = jax.process_index() == 0
  mesh = sharding.make_mesh(config.mesh)
  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  sharding.check_sizes(config, mesh)

  with contextlib.ExitStack() as stack:
    if first:
      files = stack.enter_context(workdir_lib.claim(workdir, config))
      workdir_lib.keep_vocabulary(workdir, config)
    boards = (
      [stack.enter_context(metrics.wandb_run(wandb_project, files.local, config))]
      if first and wandb_project
      else []
    )
    _prepare_datasets(config)
    metadata = {'config': cfg.to_dict(config), 'data': _as_json(pipeline.load_metadata(config))}
    host = (jax.process_index(), jax.process_count())
    batches = stack.enter_context(contextlib.closing(pipeline.make_train_iterator(config, *host)))
    held_out = (
      list(pipeline.make_eval_batches(config, config.eval_batches, 'val', *host))
      if config.eval_every
      else []
    )
    stack.enter_context(sharding.activate(mesh, config.rules))
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(workdir, config.keep, config.keep_every)
    )
    speed = metrics.Speed(config.batch_size, **_count_work(config, mesh))
    report = stack.enter_context(
      progress.Progress(
        'step',
        config.steps,
        done=None,  # The clock starts with the first complete step, after compilation.
        show_rate=speed.show,
        line=progress.Line(sys.stdout),
      )
    )
    say = progress.say

    restored = checkpoints.restore(
      config, lambda frozen: train_step.abstract_state(config, mesh, frozen), say
    )
    if restored:
      state, start = restored.state, restored.step
      shardings = jax.tree.map(lambda x: x.sharding, state)
      say(f'continuing after step {start} of {config.steps} in {workdir}')
    else:
      (state, shardings), base = _init_state(config, mesh, say)
      start = 0
    metadata['base'] = restored.metadata.get('base') if restored else base
    weights = functools.partial(encoders.fingerprint, state.frozen)
    stored = pipeline.find_features(config, weights)
    if stored:
      metadata['data']['features'] = {name: s.directory.name for name, s in stored.items()}
      batches = stack.enter_context(
        contextlib.closing(pipeline.make_train_iterator(config, *host, stored))
      )
    if held_out and (stored := pipeline.find_features(config, weights, 'val')):
      held_out = list(pipeline.make_eval_batches(config, config.eval_batches, 'val', *host, stored))
    if restored:
      _check_same_data(restored.metadata['data'], metadata['data'], workdir)
      batches.set_state(restored.iterator_state)
    del restored  # Its arrays are donated by the first step.

    run_step = train_step.make_train_step(config, mesh, shardings)
    run_eval = train_step.make_eval_step(config, mesh, shardings) if held_out else None
    writer = (
      stack.enter_context(contextlib.closing(metrics.MetricsWriter(files.local, start, boards)))
      if first
      else None
    )
    watch = guards.LossWatch(config)
    stop = stack.enter_context(guards.StopSignal())
    alive = stack.enter_context(guards.HangTimeout(config.hang_timeout_s))
    traces = (
      stack.enter_context(storage.local_directory(workdir / 'profile')) if config.profile else None
    )
    profile = stack.enter_context(guards.Profile(config.profile, traces))

    step = start
    while step < config.steps and not stop.requested(step):
      batch = next(batches)
      step += 1
      alive()
      profile.at(step)
      state, step_metrics = run_step(state, _to_devices(batch, batch_sharding))
      watch.add(step, batch.sample_B2, step_metrics)
      if complete := watch.check(lag=2):
        speed.update(complete.step)
        report.update(complete.step, f'loss {complete.loss:.4f}')

      line = {}
      if step % config.log_every == 0 or step == config.steps:
        watch.check(lag=0)
        checkpoints.check()
        line.update({name: float(value) for name, value in jax.device_get(step_metrics).items()})
      if held_out and (step % config.eval_every == 0 or step == config.steps):
        line.update(_evaluate(run_eval, state, held_out, batch_sharding))
      if line and writer:
        writer.write(step, line, speed.timing)
        files.send_soon()
      if step % config.save_every == 0 or step == config.steps:
        watch.check(lag=0)
        if first:
          files.send()  # Before the checkpoint: a restart from it must find its lines.
        checkpoints.save(step, state, batches.get_state(), metadata)

    watch.check(lag=0)
    if step > start and checkpoints.newest() != step:
      if first:
        files.send()
      checkpoints.save(step, state, batches.get_state(), metadata)
    checkpoints.wait()

  if step < config.steps:
    say(f'stopped at step {step} of {config.steps}; run the same command again to continue.')
    return stop.signal
  say(
    f'done: step {step}, {(step - start) * config.batch_size} samples, {speed.samples_per_s:.1f} samples/s, '
    f'{100 * speed.goodput:.0f}% of the time in steps\n'
    f'checkpoint: {workdir / "checkpoints" / str(step)}\n'
    f'next: python -m wam_jax.evaluate --workdir={shlex.quote(str(workdir))}'
  )
  return 0


def _start_processes() -> None:
  by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if any(value is not None for value in by_hand):
    if any(value is None for value in by_hand):
      raise ValueError(
        '--coordinator_address, --num_processes and --process_id go together; '
        f'given: {by_hand}. On a TPU pod or under SLURM pass --distributed instead.'
      )
    address, count, number = by_hand
    if not 0 <= number < count or not re.fullmatch(r'.+:\d+', address):
      raise ValueError(
        f'--coordinator_address={address} must be HOST:PORT, and --process_id={number} one of 0 to '
        f'--num_processes - 1 = {count - 1}.'
      )
    jax.distributed.initialize(*by_hand)
  elif _DISTRIBUTED.value:
    try:
      jax.distributed.initialize()
    except ValueError as e:
      raise ValueError(
        f'--distributed finds no TPU, SLURM or Kubernetes job around this process: {e} Start it through '
        'launch/, or pass --coordinator_address, --num_processes and --process_id.'
      ) from e


def _count_work(config: cfg.TrainConfig, mesh: Mesh) -> dict[str, float]:
  """What MFU needs; nothing on chips without a known peak, or where only a part of the model is
  trained.
  """
  peak = chips.peak_flops(mesh.devices.flat[0].device_kind)
  if not peak or config.trainable != ('all',):
    return {}
  components = flops.training(config.model, shapes.sizes(config).tokens_per_frame)
  return {'sample_flops': flops.total(components).train, 'peak_flops': peak * mesh.size}


def _prepare_datasets(config: cfg.TrainConfig) -> None:
  """Makes each dataset of the mixture that is not there; process 0 first, in case the disk is
  shared.
  """
  if jax.process_index() == 0:
    prepare.make_missing(config.data)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('wam_jax:prepare')
    prepare.make_missing(config.data)


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(metadata))


def _check_same_data(
  stored: Mapping[str, Any], now: Mapping[str, Any], workdir: pathlib.Path
) -> None:
  differing = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
  if differing:
    again = (
      'Put the old features back, or set --config.data.features=off for pixels'
      if differing == ['features']
      else 'Put the old dataset back'
    )
    raise ValueError(
      f'The dataset has changed since {workdir} was last saved: {", ".join(differing)} differ. {again}, '
      'or start in another --workdir with --config.init_from.'
    )


def _init_state(
  config: cfg.TrainConfig, mesh: Mesh, say: Callable[[str], None]
) -> tuple[tuple[train_step.TrainState, Any], dict[str, Any] | None]:
  """A fresh TrainState with its shardings, and a record of the run it starts from.

  Weights and encoders come from other runs where the config says so; adapters are always new.
  """
  if config.init_from:
    source, params, frozen, base = checkpoint.load_base(config.init_from)
    frozen = _adopt(config, source, frozen, 'init_from')
    wanted = finetuning.without_adapters(train_step.abstract_state(config, mesh, frozen).params)
    mismatches = checkpoint.list_mismatches(wanted, params)
    if mismatches:
      raise ValueError(
        f'config.init_from={config.init_from} does not fit config.model; {len(mismatches)} arrays '
        'differ:\n  ' + '\n  '.join(mismatches[:10]) + '\nUse the same config.model as that run.'
      )
    state, shardings = train_step.init_state(config, mesh, frozen)
    say(f'weights from step {base["step"]} of {config.init_from}')
    placed = (_placed(params, state.params), _placed(params, state.ema_params or {}) or None)
    return (state.replace(params=placed[0], ema_params=placed[1]), shardings), base
  if config.encoders_from:
    source, frozen = checkpoint.load_encoders(config.encoders_from)
    return train_step.init_state(
      config, mesh, _adopt(config, source, frozen, 'encoders_from')
    ), None
  # Every process fits on the same windows, those of the first host.
  with contextlib.closing(pipeline.make_train_iterator(config, 0, 1)) as batches:
    return train_step.init_state(config, mesh, train_step.fit_frozen(config.model, batches)), None


def _adopt(
  config: cfg.TrainConfig, source: cfg.TrainConfig, frozen: encoders.Encoders, key: str
) -> encoders.Encoders:
  """The encoders of the run at `config.KEY`, for this config; raises if it asks for others."""
  differing = [
    f'model.{name} is {getattr(source.model, name)} there, {getattr(config.model, name)} here'
    for name in ('tokenizer', 'text', 'image')
    if _compared(getattr(source.model, name)) != _compared(getattr(config.model, name))
  ]
  if differing:
    raise ValueError(
      f'config.{key}={getattr(config, key)} has other encoders:\n  '
      + '\n  '.join(differing)
      + '\nMake them equal.'
    )
  return encoders.from_tree(encoders.to_tree(frozen), config.model)


def _compared(encoder: Any) -> Any:
  """An encoder's config without what may differ: what it is shown, how it computes, where its
  vocabulary lies.
  """
  free = {name: '' for name in ('resize', 'dtype', 'tokenizer') if hasattr(encoder, name)}
  return dataclasses.replace(encoder, **free)


def _placed(values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
  """`like` with the numbers of `values` where it has any, in the dtype and sharding of `like`."""
  return {
    key: _placed(values.get(key, {}), y)
    if isinstance(y, Mapping)
    else jax.device_put(np.array(values[key], y.dtype), y.sharding)
    if key in values
    else y
    for key, y in like.items()
  }


def _to_devices(batch: types.Batch, batch_sharding: NamedSharding) -> types.Batch:
  """Global arrays from this host's part of the batch."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding, x), batch)


def _evaluate(
  run_eval,
  state: train_step.TrainState,
  held_out: Sequence[types.Batch],
  batch_sharding: NamedSharding,
) -> dict[str, float]:
  """Held-out metrics, averaged over the evaluation batches."""
  results = jax.device_get(
    [run_eval(state, _to_devices(batch, batch_sharding)) for batch in held_out]
  )
  return {
    f'eval_{name}': float(np.mean([result[name] for result in results])) for name in results[0]
  }


if __name__ == '__main__':
  cli.keep_memory()
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main)
