"""One evaluation of a checkpoint from end to end: restore, act or predict, print, draw."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import progress
from wam_jax import sharding
from wam_jax import storage
from wam_jax import strict_json
from wam_jax import train_step
from wam_jax import types
from wam_jax import workdir as workdir_lib
from wam_jax.control import agent as agent_lib
from wam_jax.control import startup
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import approximation
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import delay as delay_lib
from wam_jax.evaluation import film
from wam_jax.evaluation import naming
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures
from wam_jax.evaluation import recorded as recorded_lib

# Options that are keys of `config.SampleConfig`.
_SAMPLING = (
  'mode',
  'solver',
  'steps',
  'action_steps',
  'approximate_kept_video',
  'evaluate_steps',
  'guidance_scale',
  'history',
  'precision',
  'mesh',
)
_BASELINES = {'hold': baselines.HoldAgent, 'random': baselines.RandomAgent}
_EXPERT = 'expert'
_SCRIPTED = (*_BASELINES, _EXPERT)  # Policies that are no network's.


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated and how; None leaves a choice to the run's config.

  Attributes:
    workdir: the directory of the training run.
    checkpoint_step: the step of the checkpoint; None for the newest.
    output: the directory of the table and pictures; None for WORKDIR/evaluation/NAME.
    env, episodes, batch, tasks, time_limit_s: as in `config.EvalConfig`.
    world: the split of the tabletop: 'train' (other seeds than training), 'unseen_task' or
      'unseen_look'.
    policy: 'model', 'untrained', 'hold', 'random' or 'expert'.
    mode, solver, steps, action_steps, approximate_kept_video, evaluate_steps, guidance_scale,
      history, precision, mesh: as in `config.SampleConfig`; other `steps` than the config's are all
      evaluated, unless `evaluate_steps` says otherwise.
    timing: what the robot does while a chunk is computed; without one the world stands still
      meanwhile.
    recorded: which recorded episodes, where these are evaluated on.
    seed: the first of the seeds of scenes and noise; training never uses these.
    videos: the number of episodes or windows that are shown in pictures.
  """

  workdir: str
  checkpoint_step: int | None = None
  output: str | None = None
  env: str | None = None
  episodes: int | None = None
  time_limit_s: float | None = None
  batch: int | None = None
  tasks: tuple[str, ...] | None = None
  world: str = 'train'
  policy: str = 'model'
  mode: str | None = None
  solver: str | None = None
  steps: int | None = None
  action_steps: int | None = None
  approximate_kept_video: bool | None = None
  evaluate_steps: tuple[int, ...] | None = None
  guidance_scale: float | None = None
  history: str | None = None
  precision: str | None = None
  mesh: tuple[str, ...] | None = None
  timing: delay_lib.Choice = delay_lib.NONE
  recorded: recorded_lib.Choice = recorded_lib.CONFIGURED
  seed: int = 0
  videos: int = 4


@dataclasses.dataclass(frozen=True)
class _Subject:
  """A restored checkpoint, ready to be evaluated.

  Attributes:
    trained: the run's config.
    config: the same, with what the options say.
    policy: the model's.
    robots: those that it knows, by name.
    step: the checkpoint's.
    datasets: which episodes it was trained on; None where that is not known.
    programs: counts those that were made for it.
  """

  trained: cfg.TrainConfig
  config: cfg.TrainConfig
  policy: agent_lib.TimedPolicy
  robots: dict[str, robot_lib.Robot]
  step: int
  datasets: dict[str, Any] | None
  programs: startup.Watch


def evaluate(options: Options) -> dict[str, Any]:
  """The report, which is also printed and written to the output directory with pictures."""
  if options.output:
    storage.check_directory(workdir_lib.make_path(options.output), '--output')
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
  programs = startup.Watch()
  trained = checkpoint.load_for_inference(options.workdir, options.checkpoint_step)
  config = _override(trained.config, options)
  params = trained.params
  frozen = trained.frozen
  if options.policy == 'untrained':
    # The same encoders, whose fit is no training of the policy.
    one_device = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
    state, _ = train_step.init_state(config, one_device, frozen)
    params = state.params
  is_approximate = approximation.is_approximate(config)
  make_policy = approximation.ComparedPolicy if is_approximate else agent_lib.TimedPolicy
  return _Subject(
    trained=trained.config,
    config=config,
    policy=make_policy(config, params, frozen),
    robots=robot_lib.from_metadata(trained.metadata),
    step=trained.step,
    datasets=trained.datasets,
    programs=programs,
  )


def _override(config: cfg.TrainConfig, options: Options) -> cfg.TrainConfig:
  """The run's config with what the options say about evaluation and sampling."""
  # The options have the names of the config's own keys.
  given = {key: value for key, value in vars(options).items() if value is not None}
  if options.recorded.dataset:
    given.setdefault('env', 'dataset')
  was = config.sample
  calls_any_time = options.timing.is_given and options.timing.when != 'lookahead'
  if calls_any_time:
    given.setdefault('history', 'window')
  sample = cfg.override_sampling(was, {key: given.get(key) for key in _SAMPLING})
  if calls_any_time and sample.history != 'window':
    raise ValueError(
      f'--history={sample.history} counts on a call at the end of each chunk; with --delay chunks '
      "are asked for at any control step: leave it out, for 'window', or take --when=lookahead."
    )
  if sample.steps != was.steps and was.evaluate_steps and 'evaluate_steps' not in given:
    print(
      f'the network runs at all {sample.steps} steps: evaluate_steps of the config are for '
      f'{was.steps}; name others with --evaluate_steps'
    )
  keys = ('env', 'episodes', 'batch', 'tasks', 'time_limit_s')
  evaluation = dataclasses.replace(
    config.evaluation, **{key: given[key] for key in keys if key in given}
  )
  for note in cfg.list_untried(sample):
    print(note)
  _refuse_idle(options, evaluation.env)
  overridden = dataclasses.replace(config, evaluation=evaluation, sample=sample)
  if options.timing.when == 'lookahead' and options.policy not in _SCRIPTED:
    _check_lookahead(overridden)
  return overridden


def _check_lookahead(config: cfg.TrainConfig) -> None:
  """Raises ValueError where a policy that samples so cannot act ahead of what it sees."""
  if config.sample.mode == 'act_only':
    raise ValueError(
      '--when=lookahead stands what is imagined in for what is not seen yet, and '
      '--mode=act_only imagines nothing; take --when=naive, or another mode.'
    )
  if approximation.is_approximate(config):
    raise ValueError(
      '--when=lookahead cannot be compared with exact actions, as approximate_kept_video of these '
      'weights is; take --when=naive or wait, or --action_steps=0.'
    )


def _refuse_idle(options: Options, env: str) -> None:
  """Raises ValueError where something is chosen that this evaluation would not heed."""
  is_simulated = env in worlds.WORLDS
  timing = 'delay, when, execute'
  idle = {
    'dataset': options.recorded.dataset and is_simulated,
    'embodiment': options.recorded.embodiment and is_simulated,
    'split': options.recorded.split and is_simulated,
    'tasks': options.tasks and not is_simulated,
    'time_limit_s': options.time_limit_s is not None and not is_simulated,
    'world': options.world != 'train' and env != 'tabletop',
    timing: options.timing.is_given and not is_simulated,
  }
  flags = [f'--{name.replace(", ", ", --")}' for name, is_idle in idle.items() if is_idle]
  if flags:
    raise ValueError(
      f'{", ".join(flags)} would change nothing with --env={env}: leave them out, or name another '
      f'--env; it is one of {[*worlds.WORLDS, "dataset"]}, by default that of the config.'
    )
  if options.policy == _EXPERT and options.timing.is_given:
    raise ValueError('--policy=expert never waits: leave out --delay, --when and --execute.')


def _make_name(options: Options, subject: _Subject) -> str:
  """Of the output directory."""
  config, trained = subject.config, subject.trained
  parts = [options.policy]
  if options.policy not in _SCRIPTED:
    parts += naming.name_sampling(config.sample, trained.sample)
  parts += naming.name_timing(options.timing)
  parts += [options.world, f'step{subject.step}', *(options.tasks or ())]
  parts += naming.name_scenes(config.evaluation, trained.evaluation, options.seed)
  parts += naming.name_recorded(options.recorded)
  return naming.join(parts)


def _report(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Runs the evaluation; writes its report and pictures to `output`."""
  e = subject.config.evaluation
  run = _evaluate_world if e.env in worlds.WORLDS else _evaluate_dataset
  results = run(options, subject, output)
  report = {
    'workdir': options.workdir,
    'checkpoint_step': subject.step,
    'policy': options.policy,
    'seed': options.seed,
    'sample': dataclasses.asdict(subject.config.sample),
    'evaluation': dataclasses.asdict(e),
    'timing': dataclasses.asdict(options.timing),
    **results,
    'batch': min(e.batch, e.episodes),
  }
  # Baselines never take the control step.
  if subject.policy.traces:
    latency = agent_lib.latency_summary(subject.policy.latencies_s)
    report |= {
      'latency': latency,
      'traces': subject.policy.traces,
      'weight_bytes': subject.policy.weight_bytes,
    }
    print(
      f'control step, {report["batch"]} at once: p50 {latency["p50_ms"]} ms, '
      f'p95 {latency["p95_ms"]} ms over {latency["calls"]} calls; '
      f'traced {report["traces"]} time(s); {subject.programs.made_late} programs made late; '
      f'{report["weight_bytes"] / 1e6:.2f} MB of weights'
    )
    if isinstance(subject.policy, approximation.ComparedPolicy):
      report['approximation'] = subject.policy.summarize()
      print(approximation.show(report['approximation']))
  storage.write_whole(output / 'evaluation.json', strict_json.dumps(report, indent=2) + '\n')
  return report


def _evaluate_world(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Closed-loop success of every robot of the checkpoint that acts in this world; prints the table,
  writes pictures.
  """
  known = subject.robots
  names = _find_robots(subject)
  # Whatever cannot be played is said before anything is compiled.
  plays = {name: _choose_play(options, subject, name) for name in names}
  for name in names:
    _check_world(options, subject, name)
  _warm(options, subject, known[names[0]])
  rows: list[dict[str, Any]] = []
  everything: list[closed_loop.Episode] = []
  for name in names:
    episodes = _run_episodes(options, subject, name, plays[name])
    robot = name.removeprefix(worlds.TABLETOP)  # As its tables and pictures call it.
    rows += closed_loop.summarize(robot, episodes)
    _draw_episodes(output, robot, known[name].record, episodes[: options.videos])
    everything += [closed_loop.without_pictures(episode) for episode in episodes]
  if len(names) > 1:
    rows += closed_loop.summarize('all', everything)
  print(f'\n{closed_loop.show_table(rows)}\n')
  return {'world': options.world, 'success': rows}


def _find_robots(subject: _Subject) -> list[str]:
  """Names of the robots that act in the chosen world.

  Raises:
    ValueError: there is none.
  """
  env = subject.config.evaluation.env
  acting = [name for name, robot in subject.robots.items() if robot.can_act]
  found = {
    world: [name for name in acting if name.startswith(beginning)]
    for world, beginning in worlds.WORLDS.items()
  }
  if not found[env]:
    others = [world for world, names in found.items() if names] or ['dataset']
    raise ValueError(
      f'The checkpoint knows {sorted(subject.robots)}, none of which acts in {env!r}; '
      f'use --env={others[0]}.'
    )
  return found[env]


def _warm(options: Options, subject: _Subject, robot: robot_lib.Robot) -> None:
  """Compiles the policy, if it acts, ahead of the first episode, and says when it is ready. Robots
  of one checkpoint share their shapes.
  """
  if options.policy in _SCRIPTED:
    return
  model = subject.config.model
  e = subject.config.evaluation
  batch = min(e.batch, e.episodes)
  ids_P = subject.policy.tokenize(robot.instruct(''))
  task = agent_lib.make_task(model, [robot] * batch, np.stack([ids_P] * batch))
  frames = (batch, subject.policy.frames_per_call, *robot.record.composite, 3)
  observation = types.Observation(
    frames_BRIJ3=np.zeros(frames, np.uint8),
    proprio_BX=np.zeros((batch, model.proprio_dim), np.float32),
  )
  subject.policy.warm(task, observation)
  if options.timing.when == 'lookahead':
    subject.policy.warm_ahead(observation)
  print(subject.programs.note_ready())


def _run_episodes(
  options: Options, subject: _Subject, name: str, play: closed_loop.Play
) -> list[closed_loop.Episode]:
  e = subject.config.evaluation
  with progress.Progress(name, e.episodes, 'episodes') as shown:

    def report(episodes: Sequence[closed_loop.Episode]) -> None:
      succeeded = sum(episode.success for episode in episodes)
      shown.update(len(episodes), notes=f'{succeeded} succeeded')

    return closed_loop.run_episodes(
      play,
      subject.robots[name],
      functools.partial(closed_loop.make_env, name, e, options.world),
      seeds=_list_seeds(options, e),
      batch=min(e.batch, e.episodes),
      recording=closed_loop.Recording(options.videos),
      on_progress=report,
    )


def _choose_play(options: Options, subject: _Subject, name: str) -> closed_loop.Play:
  if options.policy == _EXPERT:
    return baselines.play_expert
  agent = _make_agent(options, subject, name)
  if not options.timing.is_given and subject.config.sample.history != 'window':
    return closed_loop.in_turn(agent)
  record = subject.robots[name].record
  timing = options.timing.complete(record, agent.overlap)
  return functools.partial(delay_lib.play, agent, record=record, timing=timing)


def _check_world(options: Options, subject: _Subject, name: str) -> None:
  """Raises ValueError where the world of a robot cannot be played, leaves no time for a chunk, or
  does not tell what one that is asked for early would begin with.
  """
  e = subject.config.evaluation
  env = closed_loop.make_env(name, e, options.world)
  env.reset(options.seed)
  delay_lib.check_episodes(options.timing.delay or 0, env, _list_seeds(options, e))
  if options.timing.when == 'lookahead' and not isinstance(env, worlds.Foretelling):
    raise ValueError(
      f'--when=lookahead needs a world that says where its robot will be, and {e.env!r} does not; '
      'take --when=naive or wait.'
    )


def _list_seeds(options: Options, evaluation: cfg.EvalConfig) -> range:
  """Those of the scenes."""
  return range(options.seed, options.seed + evaluation.episodes)


def _make_agent(options: Options, subject: _Subject, name: str) -> agent_lib.Agent:
  robot = subject.robots[name]
  if options.policy in _BASELINES:
    return _BASELINES[options.policy](robot.record)
  return agent_lib.ModelAgent(subject.policy, subject.config.model, robot)


def _evaluate_dataset(options: Options, subject: _Subject, output: pathlib.Path) -> dict[str, Any]:
  """Open-loop action and video errors on recorded windows; prints them, writes pictures."""
  if options.policy in _SCRIPTED:
    raise ValueError(
      f'--policy={options.policy} needs a simulator, as --env=tabletop; recorded episodes show the '
      'hold baseline.'
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
  _warm(options, subject, robots[0])
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
    f'hold {summary["action_error_hold"]:.4f}'
  )
  if 'video_psnr_db' in summary:
    print(
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
    film.save_mp4(output / f'{stem}.mp4', episode, record)
    if episode.imagined:
      pictures.save_film_strip(output / f'{stem}.png', episode.seen[1:], episode.imagined, title)
    actions = pictures.ActionPair(
      predicted=np.stack(episode.asked),
      executed=np.stack(episode.done),
      names=names,
      begun=episode.begun,
    )
    pictures.save_action_plot(output / f'{stem}_actions.png', actions, record, title)


def _draw_forecasts(
  output: pathlib.Path,
  robots: Sequence[robot_lib.Robot],
  forecasts: Sequence[open_loop.Forecast],
  most: int,
) -> None:
  """The first windows that lie inside their episode from end to end; where these are too few, also
  the chunks that others have before their episode ends.
  """
  records = {robot.id: robot.record for robot in robots}
  windows = [
    (forecast, i, int(chunk_mask_Q.sum()))
    for forecast in forecasts
    for i, chunk_mask_Q in enumerate(forecast.batch.chunk_mask_BQ)
  ]
  longest_first = sorted(windows, key=lambda window: window[2], reverse=True)
  for number, (forecast, i, chunks) in enumerate(longest_first[:most]):
    batch = forecast.batch
    record = records[int(batch.embodiment_B[i])]
    title = f'{record.name}, sample {batch.sample_B2[i].tolist()}'
    if forecast.frames_BRIJ3 is not None:
      frames = chunks * open_loop.count_frames_per_chunk(forecast)
      pictures.save_film_strip(
        output / f'window_{number}.png',
        batch.frames_BRIJ3[i, 1 : 1 + frames],
        forecast.frames_BRIJ3[i, :frames],
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
        begun=range(0, int(is_real_A.sum()), record.steps_per_chunk),
        labels=('predicted', 'recorded'),
      )
      path = output / f'window_{number}_actions.png'
      pictures.save_action_plot(path, actions, record, f'{title}, normalized')
