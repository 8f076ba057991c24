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
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

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
    agreement.check_programs(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_sizes(config, mesh)
    train_step.make_options(config, mesh)  # What is wrong with them is said before data is read.
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
    held_out = []
    if config.eval_every:
      # Kept in memory: every evaluation is of the same batches.
      with hosts.all_or_none('reading held-out batches'):
        held_out = list(start.data.eval_batches(pipeline.HELD_OUT, config.eval_batches, part.rows))
    record.begin(start.step)

    run_step = train_step.make_train_step(config, mesh, start.shardings)
    run_eval = train_step.make_eval_step(config, mesh, start.shardings)
    watch = guards.LossWatch(config, start.usual_losses)
    stop = stack.enter_context(guards.StopSignal())
    profile = stack.enter_context(guards.Profile(config.profile, workdir / 'profile'))
    report = stack.enter_context(_show_progress(config, speed))
    stack.enter_context(clock.steps())

    step = start.step
    state = start.state
    while step < config.steps and not stop.requested(step):
      batch = next(batches)
      step += 1
      clock.begin_step()
      profile.at(step, finish=lambda: watch.check(lag=0))
      on_devices = part.place(batch)
      with jax.transfer_guard('disallow'):  # A step that still had to copy would wait for the host.
        state, step_metrics = run_step(state, on_devices)
      watch.add(step, batch.sample_B2, step_metrics)
      if complete := watch.check(lag=2):
        speed.update(complete.step)
        report.update(complete.step, f'loss {complete.loss:.4f}')

      last = step == config.steps
      line = {}
      if step % config.log_every == 0 or last:
        watch.check(lag=0)
        checkpoints.check()
        line |= {name: float(value) for name, value in jax.device_get(step_metrics).items()}
      if held_out and (step % config.eval_every == 0 or last):
        with clock.pause():
          line |= _evaluate(run_eval, state, held_out, part)
      if line:
        record.write(step, line, speed.timing)
      if step % config.save_every == 0 or last:
        watch.check(lag=0)
        with clock.pause():
          record.send()  # Before the checkpoint: a restart from it must find its lines.
          checkpoints.save(step, state, batches.get_state(), start.metadata | watch.get_state())

    # A signal may have come between two checkpoints.
    watch.check(lag=0)
    with clock.pause():
      if step > start.step and checkpoints.newest() != step:
        record.send()
        checkpoints.save(step, state, batches.get_state(), start.metadata | watch.get_state())
      checkpoints.wait()

  if step < config.steps:
    progress.say(
      f'stopped at step {step} of {config.steps}; run the same command again to continue.'
    )
    return stop.signal
  progress.say(
    f'done: step {step}, {(step - start.step) * config.batch_size} samples, '
    f'{speed.samples_per_s:.1f} samples/s, {100 * speed.goodput:.0f}% of the time in steps\n'
    f'checkpoint: {workdir / "checkpoints" / str(step)}\n'
    f'next: python -m wam_jax.evaluate --workdir={shlex.quote(str(workdir))}'
  )
  return 0


def list_splits(config: cfg.TrainConfig) -> list[str]:
  """The splits of its datasets that a run reads."""
  return [pipeline.TRAINING, pipeline.HELD_OUT] if config.eval_every else [pipeline.TRAINING]


def _list_overlaps(config: cfg.TrainConfig, data: pipeline.Data) -> list[str]:
  """What is trained on of what is to be held out."""
  if not config.eval_every:
    return []
  return data.list_overlaps(pipeline.HELD_OUT, data.describe_datasets())


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


def _evaluate(
  run_eval,
  state: train_step.TrainState,
  held_out: Sequence[types.Batch],
  part: sharding.HostBatch,
) -> dict[str, float]:
  """Held-out metrics, averaged over the evaluation batches."""
  results = [
    run_eval(state, part.place(batch), np.uint32(number)) for number, batch in enumerate(held_out)
  ]
  results = jax.device_get(results)  # Once, so that the devices need not wait between batches.
  means = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
  return {f'eval_{name}': mean for name, mean in means.items()}


if __name__ == '__main__':
  cli.keep_memory()
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main)
