"""The training program from its command line: resume, stops and the user's mistakes, on a real tiny
run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks.kills import work as kills
from tests import programs
from tests import train_config
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import guards
from wam_jax import sharding
from wam_jax import train
from wam_jax import train_step
from wam_jax.data import pipeline

PREPARE = (
  'data.tabletop --output={} --embodiment=disc --tasks=reach --episodes=24 --other_episodes=4'
)


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run and the dataset it made."""

  workdir: pathlib.Path
  dataset: str
  output: str


def command_on(dataset) -> list[str]:
  return [
    sys.executable,
    '-m',
    'wam_jax.train',
    '--config=tests/train_config.py',
    f'--config.data.mixture.disc.path={dataset}',
  ]


def start(workdir, dataset, *flags, **variables) -> programs.Program:
  """`python -m wam_jax.train` on one simulated device."""
  _, _, module, *on_dataset = command_on(dataset)
  return programs.Program(
    module, *on_dataset, f'--workdir={workdir}', *flags, variables=variables, one_stream=True
  )


def finish(process: programs.Program, status: int = 0) -> str:
  output, _ = process.communicate(timeout=240)
  assert process.returncode == status, output
  return output


def wait_for_step(process, workdir, step: int) -> None:
  """Returns once metrics.jsonl has a line of `step`."""
  path = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 240
  while not path.exists() or f'{{"step": {step},' not in path.read_text():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.005)


def metrics_of(workdir) -> bytes:
  return (workdir / 'metrics.jsonl').read_bytes()


@pytest.fixture(scope='module')
def straight(tmp_path_factory) -> Run:
  """The run that nothing interrupts; it makes its dataset."""
  root = tmp_path_factory.mktemp('straight')
  dataset = f'{root}/data/tabletop/disc_reach/1.0.0'
  prepare = f'--config.data.mixture.disc.prepare={PREPARE.format(root / "data")}'
  return Run(root / 'run', dataset, finish(start(root / 'run', dataset, prepare)))


@pytest.fixture
def config(straight) -> cfg.TrainConfig:
  """The config of `straight`."""
  c = train_config.get_config()
  c.data.mixture.disc.path = straight.dataset
  return cfg.from_config_dict(c)


def test_a_straight_run_learns_logs_and_saves(straight):
  lines = [json.loads(line) for line in metrics_of(straight.workdir).splitlines()]
  assert [line['step'] for line in lines] == list(range(2, 61, 2))
  assert {'loss', 'video_loss', 'action_loss', 'grad_norm', 'learning_rate'} <= lines[0].keys()
  # Every 30 steps, as tests/train_config.py says.
  assert [line['step'] for line in lines if 'eval_loss' in line] == [30, 60]
  assert lines[0]['learning_rate'] == pytest.approx(1e-3 / 4)  # Step 2 of a warm-up of 4.
  losses = [line['loss'] for line in lines]
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  # A save every 10 steps, of which two are kept.
  assert checkpoint.list_steps(straight.workdir) == [50, 60]
  assert re.search(r'done: step 60, 480 samples, [\d.]+ samples/s', straight.output)
  assert f'checkpoint: {straight.workdir}/checkpoints/60' in straight.output
  assert f'next: python -m wam_jax.evaluate --workdir={straight.workdir}' in straight.output


def test_checkpoint_needs_no_dataset(straight, config):
  loaded, params, frozen, metadata, step, _ = checkpoint.load_for_inference(straight.workdir)
  # The dataset's `prepare` differs: only the first run made it.
  assert dataclasses.replace(loaded, data=config.data) == config
  assert step == 60
  assert metadata['embodiments']['tabletop_disc']['statistics']
  abstract = train_step.abstract_state(config, sharding.make_mesh(config.mesh), frozen)
  assert not checkpoint.list_mismatches(abstract.ema_params, params)


def test_stopped_and_killed_run_equals_the_straight_one(straight, tmp_path):
  process = start(tmp_path, straight.dataset)
  wait_for_step(process, tmp_path, 4)
  process.send_signal(signal.SIGTERM)
  output = finish(process, 128 + signal.SIGTERM)
  stopped = int(re.search(r'stopped at step (\d+) of 60; run the same command again', output)[1])
  assert 'SIGTERM: saving' in output
  assert checkpoint.list_steps(tmp_path)[-1] == stopped

  command = ['env', *map('='.join, programs.environment().items()), *command_on(straight.dataset)]
  # While step 20 is being saved, and between two saves.
  made = kills.run_killed(command, tmp_path, [('save', 20), ('step', 44)], random.Random(0))
  assert made[0].torn
  assert made[1].reached >= 44
  # The save before is complete when the next one begins.
  assert all(0 <= kill.lost < 2 * 10 for kill in made)
  assert kills.list_differences(straight.workdir, tmp_path) == []


def test_the_kill_benchmark_sees_a_difference(straight, tmp_path):
  shutil.copytree(straight.workdir, tmp_path, dirs_exist_ok=True)
  assert kills.list_differences(straight.workdir, tmp_path) == []
  # One difference of each kind: a line too many, and other weights.
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 61}\n')
  shutil.rmtree(tmp_path / 'checkpoints/60/params')
  shutil.copytree(tmp_path / 'checkpoints/50/params', tmp_path / 'checkpoints/60/params')
  found = kills.list_differences(straight.workdir, tmp_path)
  assert found[0] == 'metrics.jsonl'
  # Every array that was exchanged, by name.
  assert len(found) > 10
  assert all(name.startswith('params') for name in found[1:])


def test_kills_are_planned_by_their_seed():
  planned = kills.plan(20, 300, random.Random(0))
  assert planned == kills.plan(20, 300, random.Random(0)) != kills.plan(20, 300, random.Random(1))
  moments = [moment for moment, _ in planned]
  assert [moments.count(moment) for moment in ('save', 'start', 'step')] == [6, 4, 10]
  targets = [step for _, step in planned]
  assert targets == sorted(targets)
  assert targets[0] >= 1
  assert targets[-1] <= 270


def test_damaged_newest_checkpoint_costs_only_its_steps(straight, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(straight.workdir, workdir)
  for path in (workdir / 'checkpoints' / '60' / 'params').rglob('d/*'):
    path.write_bytes(b'')
  output = finish(start(workdir, straight.dataset))
  assert 'checkpoint 60 is incomplete and will not be used' in output
  assert 'continuing after step 50 of 60' in output
  assert metrics_of(workdir) == metrics_of(straight.workdir)
  assert checkpoint.list_steps(workdir) == [50, 60]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config.optimizer.lerning_rate=1'],
      'lerning_rate=1 does not exist: .* Did you mean "learning_rate"',
    ),
    (['--config=configs/nothing.py'], r'configs/nothing.py'),
    (['--config.data.mixture.disc.path=/nowhere'], r'/nowhere'),
    (
      ['--distributed'],
      '--distributed finds no TPU, SLURM or Kubernetes job .* or pass --coordinator_address',
    ),
    (['--num_processes=2'], '--coordinator_address, --num_processes and --process_id go together'),
    (
      ['--coordinator_address=here', '--num_processes=2', '--process_id=2'],
      '--coordinator_address=here must be HOST:PORT, and --process_id=2 one of 0 to '
      '--num_processes - 1 = 1',
    ),
  ],
)
def test_mistakes_end_as_one_message(tmp_path, flags, message):
  done = programs.run(
    'wam_jax.train', '--config=tests/train_config.py', f'--workdir={tmp_path}', *flags
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: ')
  assert 'Traceback' not in done.stderr
  assert re.search(message, done.stderr)
  assert not (tmp_path / 'checkpoints').exists()


def test_workdir_of_another_config(straight, config):
  with pytest.raises(ValueError, match='config.seed: 0 there, 5 now'):
    train.train(dataclasses.replace(config, seed=5), straight.workdir)


def test_failing_prepare_is_reported(config, tmp_path):
  dataset = cfg.DatasetConfig(
    f'{tmp_path}/data', embodiment='tabletop_disc', prepare='data.tabletop --robot=none'
  )
  data = dataclasses.replace(config.data, mixture={'disc': dataset})
  with pytest.raises(ValueError, match=r'data.tabletop --robot=none ended with code \d+'):
    train.train(dataclasses.replace(config, data=data), tmp_path / 'run')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'batch_size': 12}, r'config.batch_size=12 must be divisible by 8, .*; nearest valid: (8|16)'),
    ({'save_every': 0, 'keep': 0}, r'config.save_every=0, config.keep=0: must be at least 1'),
    (
      {'mesh': {'data': 3}},
      r"mesh={'data': 3} does not fit 8 devices: .* nearest valid: {'data': 8}",
    ),
    (
      {'mesh': {'data': 1, 'fsdp': 1, 'tensor': 8, 'seq': 1}},
      r'model.num_heads=2 must be divisible by 8, .* tensor .* nearest valid: 2 of them',
    ),
  ],
)
def test_impossible_schedules_are_refused_before_the_workdir(config, tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    train.train(dataclasses.replace(config, **change), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_workdir_that_cannot_be_written(config, tmp_path):
  (tmp_path / 'file').touch()
  # Root may write there all the same.
  (tmp_path / 'locked').mkdir(mode=0o500)
  places = [tmp_path / 'file' / 'run', tmp_path / 'file']
  if os.geteuid():
    places.append(tmp_path / 'locked' / 'run')
  for workdir in places:
    with pytest.raises(
      ValueError,
      match=f'--workdir={workdir} cannot be written: .*Pass a directory you may write to',
    ):
      train.train(config, workdir)


@pytest.fixture
def fake_step(monkeypatch, first_state):
  """Replaces the compiled update by one that only counts; returns a list of step -> metrics to
  change.
  """
  changes = {}

  def make(config, mesh, shardings):
    def step(state, batch):
      number = int(state.step) + 1
      metrics = {'loss': 1.0, 'grad_norm': 1.0} | changes.get(number, {})
      changes.setdefault('samples', {})[number] = np.asarray(batch.sample_B2).tolist()
      with jax.transfer_guard('allow'):  # Nothing of it is compiled.
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        return state.replace(step=state.step + 1), metrics

    return step

  monkeypatch.setattr(train_step, 'make_train_step', make)
  monkeypatch.setattr(train_step, 'init_state', first_state)
  return changes


@pytest.fixture(scope='module')
def first_state(straight):
  """`init_state` that compiles once for all runs of `fake_step`, which start and leave it alike."""
  make = train_step.init_state
  made = []

  def init_state(config, mesh, frozen):
    if not made:
      made.append(make(config, mesh, frozen))
    return made[0]

  return init_state


def test_a_step_that_copies_in_secret_is_refused(config, tmp_path, monkeypatch):
  monkeypatch.setattr(
    train_step, 'make_train_step', lambda *_: lambda state, _: (state.step + 1, {})
  )
  with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
    train.train(dataclasses.replace(config, eval_every=0), tmp_path)


@pytest.mark.parametrize('bad', [{'loss': np.nan}, {'grad_norm': np.inf}])
# Between two saves, and at one: that one must not be saved either.
@pytest.mark.parametrize('step', [13, 20])
def test_non_finite_step_names_its_samples_and_saves_nothing(
  config, tmp_path, fake_step, bad, step
):
  fake_step[step] = bad
  # Rarely logged, and yet the step that went wrong is named.
  config = dataclasses.replace(config, eval_every=0, log_every=100)
  with pytest.raises(FloatingPointError, match=f'Step {step} is not finite') as error:
    train.train(config, tmp_path)
  names = ' '.join(f'{dataset}:{sample}' for dataset, sample in fake_step['samples'][step])
  assert names in str(error.value)
  assert checkpoint.list_steps(tmp_path) == [10]


def test_batches_continue_where_the_checkpoint_left_them(config, tmp_path, fake_step):
  optimizer = dataclasses.replace(config.optimizer, decay_steps=60)
  config = dataclasses.replace(config, eval_every=0, steps=14, optimizer=optimizer)
  train.train(config, tmp_path / 'straight')
  want = dict(fake_step['samples'])
  # Ends with a save of its own, at a step that is none of the tens.
  train.train(dataclasses.replace(config, steps=9), tmp_path / 'resumed')
  fake_step['samples'].clear()
  train.train(config, tmp_path / 'resumed')
  assert fake_step['samples'] == {step: want[step] for step in range(10, 15)}


def test_failed_save_stops_the_run_and_resume_continues(config, tmp_path, fake_step, monkeypatch):
  config = dataclasses.replace(config, eval_every=0)
  real = ocp.AsyncCheckpointer.save

  def save(self, place, *args, **kwargs):
    if place.name == '20':
      raise OSError(28, 'No space left on device')
    return real(self, place, *args, **kwargs)

  monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', save)
  with pytest.raises(
    checkpoint.CheckpointError, match=r'step 20 .*No space left .*\n.*checkpoints/10; make room'
  ):
    train.train(config, tmp_path)
  monkeypatch.undo()
  assert checkpoint.list_steps(tmp_path) == [10]


def test_init_from_takes_averaged_weights_and_the_tokenizer(
  straight, config, tmp_path, monkeypatch
):
  seen = {}

  def make(config, mesh, shardings):
    def step(state, batch):
      # Before the first update: what training starts from.
      seen.update(state=jax.device_get(state))
      raise KeyboardInterrupt

    return step

  monkeypatch.setattr(train_step, 'make_train_step', make)
  with pytest.raises(KeyboardInterrupt):
    train.train(
      dataclasses.replace(config, init_from=str(straight.workdir), eval_every=0), tmp_path
    )
  base = checkpoint.load_for_inference(straight.workdir)
  jax.tree.map(np.testing.assert_array_equal, seen['state'].params, base.params)
  jax.tree.map(np.testing.assert_array_equal, seen['state'].ema_params, base.params)
  jax.tree.map(np.testing.assert_array_equal, seen['state'].frozen, base.frozen)
  assert seen['state'].step == 0
  assert not any(np.any(x) for x in jax.tree.leaves(seen['state'].opt_state))


@pytest.mark.slow
def test_two_processes_start_from_a_base_as_one_does(straight, tmp_path):
  flags = [f'--config.init_from={straight.workdir}', '--config.steps=6', '--config.eval_every=0']
  finish(start(tmp_path / 'one', straight.dataset, *flags))
  for process in start_by_hand(tmp_path / 'two', straight.dataset, 2, *flags):
    finish(process)
  compare_metrics(tmp_path / 'two', tmp_path / 'one')
  # Where both began is the same to the bit: they name the same weights, and the same encoders.
  places = [tmp_path / name / 'checkpoints' / '6' for name in ('one', 'two')]
  one, two = (checkpoint.load_metadata(place) for place in places)
  assert one['base'] == two['base']
  newest = straight.workdir / 'checkpoints' / '60'
  assert one['base']['weights'] == checkpoint.load_metadata(newest)['weights']
  assert one['encoders'] == two['encoders']


@pytest.mark.slow
def test_a_spike_is_reported_with_its_samples_or_stops_the_run(config, tmp_path, fake_step, capsys):
  # Every other step has the loss 1.
  fake_step[30] = {'loss': 7.0}
  watched = dataclasses.replace(config, spike_factor=5.0, eval_every=0, save_every=20)
  train.train(watched, tmp_path / 'report')
  samples = ' '.join(f'{d}:{s}' for d, s in fake_step['samples'][30])
  assert (
    'The loss of step 30 is 7, 7.0 times the median of the steps before it. Its samples on host 0: '
    + samples
  ) in capsys.readouterr().out
  with pytest.raises(FloatingPointError, match=f'step 30 is 7, .*dataset:sample: {samples}'):
    train.train(dataclasses.replace(watched, stop_on_spike=True), tmp_path / 'stop')
  assert checkpoint.list_steps(tmp_path / 'stop')[-1] < 30

  # Soon after a restart, too, and with the same words: the usual loss is that of all steps before.
  stopping = dataclasses.replace(watched, stop_on_spike=True)
  optimizer = dataclasses.replace(config.optimizer, decay_steps=config.steps)
  part = dataclasses.replace(stopping, steps=25, optimizer=optimizer)
  train.train(part, tmp_path / 'restarted')
  with pytest.raises(FloatingPointError, match=f'step 30 is 7, 7.0 times .*sample: {samples}'):
    train.train(stopping, tmp_path / 'restarted')


def test_checkpoints_kept_for_good_and_a_trace(config, tmp_path, fake_step):
  every = 2 * config.save_every
  kept = dataclasses.replace(config, keep=1, keep_every=every, profile=(3, 4), eval_every=0)
  train.train(kept, tmp_path)
  for_good = range(every, config.steps + 1, every)
  assert checkpoint.list_steps(tmp_path) == sorted({*for_good, config.steps})
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def run_with_clock(*lines: str) -> subprocess.CompletedProcess:
  """Lines of a loop whose steps may take half a second, and all else a minute."""
  code = [
    'import time; from wam_jax import guards',
    'with guards.HangTimeout(0.5, 60) as clock, clock.steps():',
    *(f'  {line}' for line in lines),
  ]
  return programs.run_code('\n'.join(code))


def test_a_hung_step_ends_the_process_with_every_stack():
  done = run_with_clock('clock.begin_step()', 'clock.begin_step()', 'time.sleep(60)')
  assert done.returncode == 1
  assert 'Timeout (0:00:00.5' in done.stderr
  assert 'line 5 in <module>' in done.stderr


def test_only_a_step_that_is_due_can_hang():
  """Not the first, a pause or the end; and a pause has a limit of its own."""
  done = run_with_clock(
    'time.sleep(0.8); clock.begin_step(); time.sleep(0.8); clock.begin_step()',
    'with clock.pause(): time.sleep(0.8)',
    'time.sleep(0.2); print("steps done"); clock._pause_s = 0.7',
    'with clock.pause(): time.sleep(60)',
  )
  assert done.stdout == 'steps done\n'
  assert done.returncode == 1
  assert 'Timeout (0:00:00.7' in done.stderr


def test_a_trace_is_there_when_its_last_step_is_done(tmp_path):
  finished = []
  with guards.Profile((2, 3), tmp_path / 'profile') as profile:
    for step in range(1, 5):
      profile.at(step, finish=lambda step=step: finished.append(step))
      jnp.ones(4).sum().block_until_ready()
    # Before step 4, which waits for those that are traced; and the run goes on.
    assert finished == [4]
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_init_from_a_run_that_does_not_fit(straight, config, tmp_path):
  model = dataclasses.replace(config.model, mlp_dim=48)
  wider = dataclasses.replace(config, model=model, init_from=str(straight.workdir))
  with pytest.raises(
    ValueError, match=r'does not fit config.model; \d+ arrays differ:\n .*48.* here, .*32.* there'
  ):
    train.train(wider, tmp_path)
  other = dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, channels=6))
  with pytest.raises(ValueError, match='Make them equal'):
    train.train(dataclasses.replace(wider, model=other), tmp_path / 'other')


def test_changed_dataset_is_refused(straight, config, tmp_path, monkeypatch):
  shutil.copytree(straight.workdir, tmp_path / 'run')
  real = pipeline.Data.metadata.fget
  # As if a newer dataset had another entry in its description.
  changed = property(lambda data: real(data) | {'extra': 1})
  monkeypatch.setattr(pipeline.Data, 'metadata', changed)
  with pytest.raises(ValueError, match='The dataset has changed since .*: extra differ'):
    train.train(config, tmp_path / 'run')


def start_by_hand(workdir, dataset, count: int, *flags) -> list[programs.Program]:
  address = f'--coordinator_address=localhost:{programs.free_port(20000, 30000)}'
  return [
    start(workdir, dataset, address, f'--num_processes={count}', f'--process_id={number}', *flags)
    for number in range(count)
  ]


def start_by_slurm(workdir, dataset, count: int) -> list[programs.Program]:
  """With the variables that `srun` sets for `count` tasks on one host; the job's number decides the
  port.
  """
  first = 2**16 - 2**12
  common = dict(
    SLURM_JOB_ID=str(programs.free_port(first, 2**16) - first),
    SLURM_STEP_NODELIST='localhost',
    SLURM_NTASKS=str(count),
  )
  return [
    start(
      workdir,
      dataset,
      '--distributed',
      **common,
      SLURM_PROCID=str(number),
      SLURM_LOCALID=str(number),
    )
    for number in range(count)
  ]


def stop_after(processes, workdir, step: int) -> list[str]:
  """SIGTERM to one process when a step is done; the outputs of all."""
  wait_for_step(processes[0], workdir, step)
  processes[-1].send_signal(signal.SIGTERM)
  return [finish(process, 128 + signal.SIGTERM) for process in processes]


def start_two(workdir, dataset, *flags, size: int) -> list[programs.Program]:
  """Two processes, of which the second one can write no file larger than `size`."""
  address = f'--coordinator_address=localhost:{programs.free_port(20000, 30000)}'
  _, _, module, *on_dataset = command_on(dataset)
  common = [module, *on_dataset, f'--workdir={workdir}', *flags, address, '--num_processes=2']
  commands = [common, ['tests.small_files', size, *common]]
  return [
    programs.Program(*command, f'--process_id={number}', one_stream=True)
    for number, command in enumerate(commands)
  ]


@pytest.mark.slow
def test_what_fails_on_one_host_ends_both_with_one_message(straight, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(straight.workdir, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '60')
  # On the first host, before anything is made.
  processes = start_two(workdir, straight.dataset, '--config.seed=5', size=2**20)
  for output in [finish(process, 2) for process in processes]:
    assert 'config.seed: 0 there, 5 now' in output
  # On the second one, while both write in the background.
  processes = start_two(workdir, straight.dataset, size=2000)
  outputs = [finish(process, 2) for process in processes]
  for output in outputs:
    assert 'A checkpoint of step 60 could not be written' in output
    assert f'The newest complete checkpoint is {workdir}/checkpoints/50; make room' in output
  assert checkpoint.list_steps(workdir) == [50]
  assert 'continuing after step 50 of 60' in finish(start(workdir, straight.dataset))
  assert metrics_of(workdir) == metrics_of(straight.workdir)


@pytest.mark.slow
def test_four_processes_then_two_then_one_train_like_one(straight, tmp_path):
  """The processes stop together, each time with a checkpoint that another number of them continues
  from.
  """

  def read_stop(outputs):
    """The step that all stopped at, which process 0 alone reports."""
    step = int(re.search(r'stopped at step (\d+) of 60', outputs[0])[1])
    assert checkpoint.list_steps(tmp_path)[-1] == step
    # The others say that they are there, and nothing else; two lines are of XLA.
    for number, output in enumerate(outputs[1:], start=1):
      said = [line for line in output.splitlines() if not re.match(r'\[Gloo\]|.*SIGTERM', line)]
      assert len(said) == 1, output
      assert re.fullmatch(rf'process {number} of \d on .*: process 0 reports', said[0])
    return step

  outputs = stop_after(start_by_hand(tmp_path, straight.dataset, 4), tmp_path, step=4)
  first = read_stop(outputs)
  assert 0 < first < 60

  # Metrics have a line for every second step.
  two = start_by_slurm(tmp_path, straight.dataset, 2)
  outputs = stop_after(two, tmp_path, step=first // 2 * 2 + 4)
  assert f'continuing after step {first} of 60' in outputs[0]
  second = read_stop(outputs)
  assert first < second < 60

  output = finish(start(tmp_path, straight.dataset))
  assert f'continuing after step {second} of 60' in output

  compare_metrics(tmp_path, straight.workdir)


def compare_metrics(workdir, wanted) -> None:
  want = [json.loads(line) for line in metrics_of(wanted).splitlines()]
  got = [json.loads(line) for line in metrics_of(workdir).splitlines()]
  assert [line.keys() for line in got] == [line.keys() for line in want]
  for line, expected in zip(got, want):
    # Float32 sums in another order; 2e-7 is what was seen.
    np.testing.assert_allclose(
      list(line.values()), list(expected.values()), rtol=1e-5, err_msg=f'step {expected["step"]}'
    )
