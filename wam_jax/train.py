"""Trains a World Action Model.

  python -m wam_jax.train --config=configs/tiny.py --workdir=~/wam/tiny
  python -m wam_jax.train --config=configs/tiny.py:smoke --workdir=/tmp/smoke --config.steps=20

A dataset that is not there yet is made first. Run the same command again to continue from the
newest checkpoint: the result is the same as that of a run that was never stopped. Ctrl-C or SIGTERM
saves and stops, with exit status 130 or 143, so that a launcher can tell a stopped run from a
finished one.

WORKDIR gets config.json, metrics.jsonl (a line per config.log_every steps), timing.jsonl,
tensorboard/, checkpoints/. Any key of the config can be set from here, as in
--config.optimizer.learning_rate=3e-4; wam_jax/config/ declares all.

This module owns the wiring and the loop; the step itself is in train_step.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from wam_jax import agreement
from wam_jax import checkpoint
from wam_jax import chips
from wam_jax import cli
from wam_jax import compilation_cache
from wam_jax import compiler_options
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import guards
from wam_jax import hosts
from wam_jax import metrics
from wam_jax import processes
from wam_jax import progress
from wam_jax import sharding
from wam_jax import start as start_lib
from wam_jax import train_step
from wam_jax import types
from wam_jax import workdir as workdir_lib
from wam_jax.data import pipeline
from wam_jax.data import shapes

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, as configs/tiny.py or configs/tiny.py:smoke.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of this run; made if missing, continued if not.'
)
_CACHE = compilation_cache.define_flag()
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
_START_TIMEOUT = processes.define_flag()
_WANDB = flags.DEFINE_string(
  'wandb_project',
  '',
  'Metrics go to this project of Weights & Biases, too; WANDB_MODE=offline needs no network.',
)


def main(unused_argv: list[str]) -> int:
  config = cfg.from_config_dict(cli.read_config(_CONFIG))
  cfg.check_weights(config.flow, config.sample)
  workdir = workdir_lib.make_path(_WORKDIR.value)
  _start_processes()
  compilation_cache.keep(_CACHE.value, workdir)
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
  # What fails on one host from here on ends all of them.
  with contextlib.ExitStack() as stack, hosts.together():
    run = _open(config, workdir, wandb_project, stack)
    step = _run_steps(run)
  if step < config.steps:
    progress.say(
      f'stopped at step {step} of {config.steps}; run the same command again to continue.'
    )
    return run.stop.signal
  progress.say(
    f'done: step {step}, {(step - run.start.step) * config.batch_size} samples, '
    f'{run.speed.samples_per_s:.1f} samples/s, {100 * run.speed.goodput:.0f}% of the time in steps'
    f'\ncheckpoint: {workdir / "checkpoints" / str(step)}\n'
    f'next: python -m wam_jax.evaluate --workdir={shlex.quote(str(workdir))}'
  )
  return 0


@dataclasses.dataclass(frozen=True)
class _Run:
  """What the loop works with.

  Attributes:
    part: rows of a batch that this host reads, and how they become global arrays.
    start: the state that it begins with, and where the data stands there.
    batches, held_out: of training, and those of every evaluation.
    run_step, run_eval: the compiled programs.
    others: what watches and records, each as its class says.
  """

  config: cfg.TrainConfig
  part: sharding.HostBatch
  start: start_lib.Start
  batches: pipeline.Batches
  held_out: Sequence[types.Batch]
  run_step: Callable[..., tuple[train_step.TrainState, dict[str, jax.Array]]]
  run_eval: Callable[..., dict[str, jax.Array]]
  record: metrics.Record
  checkpoints: checkpoint.Checkpoints
  speed: metrics.Speed
  clock: guards.HangTimeout
  watch: guards.LossWatch
  stop: guards.StopSignal
  profile: guards.Profile
  report: progress.Progress


def _open(
  config: cfg.TrainConfig,
  workdir: pathlib.Path,
  wandb_project: str,
  stack: contextlib.ExitStack,
) -> _Run:
  """All of a run up to its first step; `stack` closes it again."""
  agreement.check_programs(config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_sizes(config, mesh)
  # What is wrong with them is said before data is read.
  compiler_options.try_out(train_step.make_options(config, mesh), mesh.local_devices[0])
  part = sharding.host_batch(config, mesh)

  # Before anything is read: nothing is made for a directory that belongs to another run.
  record = stack.enter_context(_open_record(config, workdir, wandb_project))
  agreement.check_workdir(workdir)
  data = _open_data(config, workdir)
  for note in (*data.notes, *_list_overlaps(config, data)):
    progress.say(note)
  clock = stack.enter_context(guards.HangTimeout(config.hang_timeout_s, config.pause_timeout_s))
  stack.enter_context(sharding.activate(mesh, config.rules))
  checkpoints = stack.enter_context(
    checkpoint.Checkpoints(workdir, config.keep, config.keep_every, record.check_owner)
  )
  speed = metrics.Speed(config.batch_size, **_count_work(config, mesh))

  start = start_lib.begin(config, mesh, data, checkpoints, workdir)
  batches = stack.enter_context(contextlib.closing(start.data.train_batches(part.rows)))
  if start.iterator_state is not None:
    batches.set_state(start.iterator_state)
  held_out = _read_held_out(config, start.data, part)
  record.begin(start.step)

  run = _Run(
    config=config,
    part=part,
    start=start,
    batches=batches,
    held_out=held_out,
    run_step=train_step.make_train_step(config, mesh, start.shardings),
    run_eval=train_step.make_eval_step(config, mesh, start.shardings),
    record=record,
    checkpoints=checkpoints,
    speed=speed,
    clock=clock,
    watch=guards.LossWatch(config, start.usual_losses),
    stop=stack.enter_context(guards.StopSignal()),
    profile=stack.enter_context(guards.Profile(config.profile, workdir / 'profile')),
    report=stack.enter_context(_show_progress(config, speed)),
  )
  stack.enter_context(clock.steps())
  return run


def _run_steps(run: _Run) -> int:
  """The loop; returns the step that it ended after, which is saved."""
  config = run.config
  step = run.start.step
  state = run.start.state
  if step < config.steps:
    progress.say('compiling the training step')
  while step < config.steps and not run.stop.requested(step):
    step += 1
    state, step_metrics = _begin_step(run, step, state)
    last = step == config.steps
    line = {}
    if step % config.log_every == 0 or last:
      run.watch.check(lag=0)
      run.checkpoints.check()
      line |= {name: float(value) for name, value in jax.device_get(step_metrics).items()}
    if run.held_out and (step % config.eval_every == 0 or last):
      with run.clock.pause():
        line |= _evaluate(run, state)
    if line:
      run.record.write(step, line, run.speed.timing)
    if step % config.save_every == 0 or last:
      _save(run, step, state)

  # A signal may have come between two checkpoints.
  run.watch.check(lag=0)
  if step > run.start.step and run.checkpoints.newest() != step:
    _save(run, step, state)
  with run.clock.pause():
    run.checkpoints.wait()
  return step


def _begin_step(
  run: _Run, step: int, state: train_step.TrainState
) -> tuple[train_step.TrainState, dict[str, jax.Array]]:
  """Begins a step, which takes `state` over; (the next state, metrics), still being computed."""
  batch = next(run.batches)
  run.clock.begin_step()
  run.profile.at(step, finish=lambda: run.watch.check(lag=0))
  on_devices = run.part.place(batch)
  with jax.transfer_guard('disallow'):  # A step that still had to copy would wait for the host.
    state, step_metrics = run.run_step(state, on_devices)
  run.watch.add(step, batch.sample_B2, step_metrics)
  if complete := run.watch.check(lag=2):
    if not run.speed.has_begun:
      progress.say(f'compiled; loss of step {complete.step}: {complete.loss:.4f}')
    run.speed.update(complete.step)
    run.report.update(complete.step, f'loss {complete.loss:.4f}')
  return state, step_metrics


def _evaluate(run: _Run, state: train_step.TrainState) -> dict[str, float]:
  """Held-out metrics, averaged over the evaluation batches."""
  results = [
    run.run_eval(state, run.part.place(batch), np.uint32(number))
    for number, batch in enumerate(run.held_out)
  ]
  results = jax.device_get(results)  # Once, so that the devices need not wait between batches.
  means = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
  return {f'eval_{name}': mean for name, mean in means.items()}


def _save(run: _Run, step: int, state: train_step.TrainState) -> None:
  """Begins to save what all steps up to this one have made, once all of them are finite."""
  run.watch.check(lag=0)
  metadata = run.start.metadata | run.watch.get_state()
  with run.clock.pause():
    run.record.send()  # Before the checkpoint: a restart from it must find its lines.
    run.checkpoints.save(step, state, run.batches.get_state(), metadata)


def list_splits(config: cfg.TrainConfig) -> list[str]:
  """The splits of its datasets that a run reads."""
  return [pipeline.TRAINING, pipeline.HELD_OUT] if config.eval_every else [pipeline.TRAINING]


def _list_overlaps(config: cfg.TrainConfig, data: pipeline.Data) -> list[str]:
  """What is trained on of what is to be held out."""
  if not config.eval_every:
    return []
  return data.list_overlaps(pipeline.HELD_OUT, data.describe_datasets())


def _read_held_out(
  config: cfg.TrainConfig, data: pipeline.Data, part: sharding.HostBatch
) -> list[types.Batch]:
  """Kept in memory: every evaluation is of the same batches."""
  if not config.eval_every:
    return []
  with hosts.all_or_none('reading held-out batches'):
    batches = data.eval_batches(pipeline.HELD_OUT, config.eval_batches, part.rows)
    return list(progress.track(batches, 'held-out batches', config.eval_batches))


@contextlib.contextmanager
def _open_record(
  config: cfg.TrainConfig, workdir: pathlib.Path, wandb_project: str
) -> Iterator[metrics.Record]:
  """Claims `workdir` for the run, on its first process; the others write nothing."""
  if jax.process_index() > 0:
    yield metrics.Record(None)
    return
  with contextlib.ExitStack() as stack:
    files = stack.enter_context(workdir_lib.claim(workdir, config))
    workdir_lib.keep_vocabulary(workdir, config)
    boards = []
    if wandb_project:
      boards.append(stack.enter_context(metrics.wandb_run(wandb_project, files.local, config)))
    yield stack.enter_context(contextlib.closing(metrics.Record(files, boards)))


def _open_data(config: cfg.TrainConfig, workdir: pathlib.Path) -> pipeline.Data:
  """The datasets, once every host has the same."""
  known = start_lib.find_known(config, workdir)
  with hosts.all_or_none('opening the datasets', hosts.FOREVER_S):
    data = pipeline.Data.open(config, list_splits(config), known)
  agreement.check_data(data)
  return data


def _show_progress(config: cfg.TrainConfig, speed: metrics.Speed) -> progress.Progress:
  return progress.Progress(
    'step',
    config.steps,
    done=None,  # The clock starts with the first complete step, after compilation.
    show_rate=speed.show,
    line=progress.Line(sys.stdout),
  )


def _start_processes() -> None:
  """Joins the other processes of the run, where the flags say that there are any."""
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
    processes.join(_START_TIMEOUT.value, *by_hand)
  elif _DISTRIBUTED.value:
    try:
      processes.join(_START_TIMEOUT.value)
    except ValueError as e:
      raise ValueError(
        f'--distributed finds no TPU, SLURM or Kubernetes job around this process: {e} Start it '
        'through launch/, or pass --coordinator_address, --num_processes and --process_id.'
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


if __name__ == '__main__':
  cli.keep_memory()
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main)
