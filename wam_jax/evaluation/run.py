"""One evaluation of a checkpoint from end to end: restore, act or predict, print, draw."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import progress
from wam_jax import sharding
from wam_jax import storage
from wam_jax import train_step
from wam_jax import workdir as workdir_lib
from wam_jax.control import agent as agent_lib
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures
from wam_jax.evaluation import recorded as recorded_lib

_BASELINES = {'hold': baselines.HoldAgent, 'random': baselines.RandomAgent}


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated and how; None leaves a choice to the run's config.

  Attributes:
    workdir: the directory of the training run.
    checkpoint_step: the step of the checkpoint; None for the newest.
    output: the directory of the table and pictures; None for WORKDIR/evaluation/NAME.
    env, episodes, batch, tasks: as in `config.EvalConfig`.
    world: the split of the tabletop: 'train' (other seeds than training), 'unseen_task' or
      'unseen_look'.
    policy: 'model', 'untrained', 'hold' or 'random'.
    mode, solver, steps, evaluate_steps, guidance_scale: as in `config.SampleConfig`; other `steps`
      than the config's are all evaluated, unless `evaluate_steps` says otherwise.
    recorded: which recorded episodes, where these are evaluated on.
    seed: the first of the seeds of scenes and noise; training never uses these.
    videos: the number of episodes or windows that are shown in pictures.
  """

  workdir: str
  checkpoint_step: int | None = None
  output: str | None = None
  env: str | None = None
  episodes: int | None = None
  batch: int | None = None
  tasks: tuple[str, ...] | None = None
  world: str = 'train'
  policy: str = 'model'
  mode: str | None = None
  solver: str | None = None
  steps: int | None = None
  evaluate_steps: tuple[int, ...] | None = None
  guidance_scale: float | None = None
  recorded: recorded_lib.Choice = recorded_lib.CONFIGURED
  seed: int = 0
  videos: int = 4


@dataclasses.dataclass(frozen=True)
class _Subject:
  """A restored checkpoint, ready to be evaluated.

  Attributes:
    config: the run's, with what the options say.
    policy: the model's.
    robots: those that it knows, by name.
    step: the checkpoint's.
    datasets: which episodes it was trained on; None where that is not known.
  """

  config: cfg.TrainConfig
  policy: agent_lib.TimedPolicy
  robots: dict[str, robot_lib.Robot]
  step: int
  datasets: dict[str, Any] | None


def evaluate(options: Options) -> dict[str, Any]:
  """The report, which is also printed and written to the output directory with pictures."""
  subject = _restore(options)
  if options.output:
    output = workdir_lib.make_path(options.output)
  else:
    workdir = workdir_lib.make_path(os.fspath(options.workdir))
    output = workdir / 'evaluation' / _make_name(options, subject)
  with storage.local_directory(output) as directory:
    report = _report(options, subject, directory)
  print(f'pictures and evaluation.json: {output}')
  return report


def _restore(options: Options) -> _Subject:
  trained = checkpoint.load_for_inference(options.workdir, options.checkpoint_step)
  config = _override(trained.config, options)
  params = trained.params
  frozen = trained.frozen
  if options.policy == 'untrained':
    # The same encoders, whose fit is no training of the policy.
    one_device = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
    state, _ = train_step.init_state(config, one_device, frozen)
    params = state.params
  return _Subject(
    config=config,
    policy=agent_lib.TimedPolicy(config, params, frozen),
    robots=robot_lib.from_metadata(trained.metadata),
    step=trained.step,
    datasets=trained.datasets,
  )


def _override(config: cfg.TrainConfig, options: Options) -> cfg.TrainConfig:
  """The run's config with what the options say about evaluation and sampling."""
  # The options have the names of the config's own keys.
  given = {key: value for key, value in vars(options).items() if value is not None}
  if options.recorded.dataset:
    if options.env == 'tabletop':
      raise ValueError('--dataset names recorded episodes, and --env=tabletop a simulator.')
    given['env'] = 'dataset'
  # Those of the config are steps of so many as the config has.
  if given.get('steps', config.sample.steps) != config.sample.steps:
    if config.sample.evaluate_steps and 'evaluate_steps' not in given:
      print(
        f'the network runs at all {given["steps"]} steps: evaluate_steps of the config are for '
        f'{config.sample.steps}; name others with --evaluate_steps'
      )
    given.setdefault('evaluate_steps', ())

  def replace(section, *keys):
    return dataclasses.replace(section, **{key: given[key] for key in keys if key in given})

  return dataclasses.replace(
    config,
    evaluation=replace(config.evaluation, 'env', 'episodes', 'batch', 'tasks'),
    sample=replace(config.sample, 'mode', 'solver', 'steps', 'evaluate_steps', 'guidance_scale'),
  )


def _make_name(options: Options, subject: _Subject) -> str:
  sample = subject.config.sample
  name = f'{options.policy}_{sample.mode}{sample.steps}_{options.world}_step{subject.step}'
  # What is chosen has a place of its own: the ends of paths, as letters and digits.
  chosen = ['/'.join(text.split('/')[-2:]) for text in vars(options.recorded).values() if text]
  return '_'.join([name, *(re.sub(r'[^A-Za-z0-9]+', '_', text).strip('_') for text in chosen)])


def _report(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Runs the evaluation; writes its report and pictures to `output`."""
  e = subject.config.evaluation
  run = _evaluate_tabletop if e.env == 'tabletop' else _evaluate_dataset
  results = run(options, subject, output)
  report = {
    'workdir': options.workdir,
    'checkpoint_step': subject.step,
    'policy': options.policy,
    'seed': options.seed,
    'sample': dataclasses.asdict(subject.config.sample),
    **results,
    'batch': min(e.batch, e.episodes),
  }
  # Baselines never take the control step.
  if subject.policy.traces:
    latency = agent_lib.latency_summary(subject.policy.latencies_s)
    report |= {'latency': latency, 'traces': subject.policy.traces}
    print(
      f'control step, {report["batch"]} at once: p50 {latency["p50_ms"]} ms, '
      f'p95 {latency["p95_ms"]} ms over {latency["calls"]} calls; '
      f'traced {report["traces"]} time(s)'
    )
  (output / 'evaluation.json').write_text(json.dumps(report, indent=2) + '\n')
  return report


def _evaluate_tabletop(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Closed-loop success of every acting tabletop robot of the checkpoint; prints the table, writes
  pictures.
  """
  known = subject.robots
  names = [name for name in known if name.startswith(worlds.TABLETOP) and _can_act(known[name])]
  if not names:
    raise ValueError(
      f'The checkpoint knows {sorted(known)}, none of which acts on the tabletop; '
      'use --env=dataset.'
    )
  rows: list[dict[str, Any]] = []
  everything: list[closed_loop.Episode] = []
  for name in names:
    episodes = _run_episodes(options, subject, name)
    robot = name.removeprefix(worlds.TABLETOP)
    rows += closed_loop.summarize(robot, episodes)
    everything += episodes
    _draw_episodes(output, robot, known[name].record, episodes[: options.videos])
  if len(names) > 1:
    rows += closed_loop.summarize('all', everything)
  print(f'\n{closed_loop.show_table(rows)}\n')
  return {'world': options.world, 'success': rows}


def _can_act(robot: robot_lib.Robot) -> bool:
  """Whether the robot has actions, and training saw some."""
  return bool(robot.record.action and robot.statistics)


def _run_episodes(options: Options, subject: _Subject, name: str) -> list[closed_loop.Episode]:
  e = subject.config.evaluation
  make_env = functools.partial(
    worlds.make, name, e.tasks, split=options.world, max_distractors=e.max_distractors
  )
  with progress.Progress(name, e.episodes, 'episodes') as shown:

    def report(episodes: Sequence[closed_loop.Episode]) -> None:
      succeeded = sum(episode.success for episode in episodes)
      shown.update(len(episodes), notes=f'{succeeded} succeeded')

    return closed_loop.run_episodes(
      _make_agent(options, subject, name),
      subject.robots[name],
      make_env,
      seeds=range(options.seed, options.seed + e.episodes),
      batch=min(e.batch, e.episodes),
      recording=closed_loop.Recording(options.videos),
      on_progress=report,
    )


def _make_agent(options: Options, subject: _Subject, name: str) -> agent_lib.Agent:
  robot = subject.robots[name]
  if options.policy in _BASELINES:
    return _BASELINES[options.policy](robot.record)
  return agent_lib.ModelAgent(subject.policy, subject.config.model, robot)


def _evaluate_dataset(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Open-loop action and video errors on recorded windows; prints them, writes pictures."""
  if options.policy in _BASELINES:
    raise ValueError(
      f'--policy={options.policy} needs --env=tabletop; recorded episodes show the hold baseline.'
    )
  config = subject.config
  e = config.evaluation
  # Whole batches: the last one may bring a few windows more than were asked for.
  batch = min(e.batch, e.episodes)
  recorded = recorded_lib.open_recorded(
    dataclasses.replace(config, batch_size=batch),
    subject.robots,
    subject.datasets,
    options.recorded,
  )
  for note in recorded.notes:
    print(note)
  robots = list(subject.robots.values())
  forecaster = open_loop.Forecaster(subject.policy, config.model, robots, options.seed)
  batches = recorded.data.eval_batches(recorded.split, -(-e.episodes // batch))
  forecasts = [forecaster(b) for b in batches]
  summary = open_loop.summarize(forecasts)
  datasets = recorded.describe()
  where = ', '.join(f'{name} {each["split"]}' for name, each in datasets.items())
  evaluated = '; '.join([f'{summary["windows"]} windows of {where}', *recorded.overlap])
  print(
    f'open loop on {evaluated}\n'
    f'  action error (normalized, mean absolute)  model {summary["action_error"]:.4f}   '
    f'hold {summary["action_error_hold"]:.4f}\n'
    f'  imagined video (PSNR)                     model {summary["video_psnr_db"]:.2f} dB   '
    f'last frame {summary["video_psnr_db_still"]:.2f} dB'
  )
  _draw_forecasts(output, robots, forecasts, options.videos)
  notes = [*recorded.notes, *recorded.overlap]
  return {'open_loop': summary, 'datasets': datasets, 'notes': notes}


def _draw_episodes(
  output: pathlib.Path,
  robot: str,
  record: record_lib.Embodiment,
  episodes: Sequence[closed_loop.Episode],
) -> None:
  names = []
  for s in record.action:
    names += [f'{s.key}[{u}] {s.unit}' for u in range(s.start, s.stop)]
  for number, episode in enumerate(episodes):
    stem = f'{robot}_{number}'
    title = f'{episode.instruction} ({"success" if episode.success else "failure"})'
    pictures.save_video(output / f'{stem}.mp4', episode, record, title)
    if episode.imagined:
      pictures.save_film_strip(output / f'{stem}.png', episode.seen[1:], episode.imagined, title)
    actions = pictures.ActionPair(np.stack(episode.asked), np.stack(episode.done), names)
    pictures.save_action_plot(output / f'{stem}_actions.png', actions, record, title)


def _draw_forecasts(
  output: pathlib.Path,
  robots: Sequence[robot_lib.Robot],
  forecasts: Sequence[open_loop.Forecast],
  most: int,
) -> None:
  """The first windows that lie inside their episode from end to end."""
  records = {robot.id: robot.record for robot in robots}
  whole = [
    (forecast, i)
    for forecast in forecasts
    for i, chunk_mask_Q in enumerate(forecast.batch.chunk_mask_BQ)
    if chunk_mask_Q.all()
  ]
  for number, (forecast, i) in enumerate(whole[:most]):
    batch = forecast.batch
    record = records[int(batch.embodiment_B[i])]
    title = f'{record.name}, sample {batch.sample_B2[i].tolist()}'
    pictures.save_film_strip(
      output / f'window_{number}.png',
      batch.frames_BRIJ3[i, 1:],
      forecast.frames_BRIJ3[i],
      title,
      rows=192,
    )
    if record.action:
      # Steps that a chunk of this robot does not have; its first dimension is always real.
      is_real_A = batch.action_mask_BAU[i, :, 0]
      actions = pictures.ActionPair(
        predicted=forecast.action_BAU[i, is_real_A, : record.action_dim],
        executed=batch.action_BAU[i, is_real_A, : record.action_dim],
        names=record_lib.names(record.action),
        labels=('predicted', 'recorded'),
      )
      path = output / f'window_{number}_actions.png'
      pictures.save_action_plot(path, actions, record, f'{title}, normalized')
