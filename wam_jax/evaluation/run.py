"""One evaluation of a checkpoint from end to end: restore, act or predict, print, draw."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import remote
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import workdir as workdir_lib
from wam_jax.control import agent as agent_lib
from wam_jax.data import pipeline
from wam_jax.data import robot as robot_lib
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated and how; None leaves a choice to the run's config.

  Attributes:
    workdir: of the training run.
    checkpoint_step: None for the newest.
    output: directory of the table and pictures; None for WORKDIR/evaluation/NAME.
    env, episodes, batch, tasks: as in `config.EvalConfig`.
    world: split of the tabletop: 'train' (other seeds than training), 'unseen_task' or
      'unseen_look'.
    policy: 'model', 'untrained', 'hold' or 'random'.
    mode, solver, steps: as in `config.SampleConfig`.
    seed: first of the seeds of scenes and noise; training never uses these.
    videos: episodes or windows shown in pictures.
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
  seed: int = 0
  videos: int = 4


def evaluate(options: Options) -> dict[str, Any]:
  """The report, which is also printed and written to the output directory with pictures."""
  config, params, frozen, metadata, step = checkpoint.load_for_inference(
    options.workdir, options.checkpoint_step
  )
  config = _override(config, options)
  robots = robot_lib.from_metadata(metadata)
  if options.policy == 'untrained':
    one_device = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
    params = train_step.init_state(config, one_device, frozen)[0].params
  name = f'{options.policy}_{config.sample.mode}{config.sample.steps}_{options.world}_step{step}'
  workdir = workdir_lib.make_path(os.fspath(options.workdir))
  output = (
    workdir_lib.make_path(options.output) if options.output else workdir / 'evaluation' / name
  )
  with remote.staged(output) as directory:
    report = _report(options, config, params, frozen, robots, step, directory)
  print(f'pictures and evaluation.json: {output}')
  return report


def _report(
  options: Options,
  config: cfg.TrainConfig,
  params: Any,
  frozen: Any,
  robots: dict[str, robot_lib.Robot],
  step: int,
  output: pathlib.Path,
) -> dict[str, Any]:
  """Runs the evaluation; writes its report and pictures to `output`."""
  run = _evaluate_tabletop if config.evaluation.env == 'tabletop' else _evaluate_dataset
  policy = agent_lib.TimedPolicy(config, params, frozen)
  report = dict(
    workdir=options.workdir,
    checkpoint_step=step,
    policy=options.policy,
    seed=options.seed,
    sample=dataclasses.asdict(config.sample),
    **run(options, config, policy, robots, output),
    batch=min(config.evaluation.batch, config.evaluation.episodes),
    **_latency(policy),
  )
  (output / 'evaluation.json').write_text(json.dumps(report, indent=2) + '\n')
  if policy.traces:
    latency = report['latency']
    print(
      f'control step, {report["batch"]} at once: p50 {latency["p50_ms"]} ms, p95 {latency["p95_ms"]} ms over '
      f'{latency["calls"]} calls; traced {report["traces"]} time(s)'
    )
  return report


def _evaluate_tabletop(
  options: Options,
  config: cfg.TrainConfig,
  policy: agent_lib.TimedPolicy,
  robots: dict[str, robot_lib.Robot],
  output: pathlib.Path,
) -> dict[str, Any]:
  """Closed-loop success of every acting tabletop robot of the checkpoint; prints the table, writes
  pictures.
  """
  from wam_jax.envs import tabletop  # Needs pymunk, of the extra [sim].

  e, everything, rows = config.evaluation, [], []
  names = [
    n for n, r in robots.items() if n.startswith('tabletop_') and r.record.action and r.statistics
  ]
  if not names:
    raise ValueError(
      f'The checkpoint knows {sorted(robots)}, none of which acts on the tabletop; use --env=dataset.'
    )
  for name in names:
    record = robots[name].record
    robot = name.removeprefix('tabletop_')
    make_env = functools.partial(
      tabletop.TabletopEnv, robot, e.tasks, options.world, max_distractors=e.max_distractors
    )
    agent = _make_agent(options.policy, policy, config.model, robots[name])
    seeds = range(options.seed, options.seed + e.episodes)
    episodes = closed_loop.run_episodes(
      agent,
      robots[name],
      make_env,
      seeds,
      min(e.batch, e.episodes),
      options.videos,
      on_progress=_Progress(name, e.episodes),
    )
    rows += _success_rows(robot, episodes)
    everything += episodes
    _draw_episodes(output, record, episodes[: options.videos], robot)
  if len(names) > 1:
    rows += _success_rows('all', everything)
  _print_success(rows)
  return dict(world=options.world, success=rows)


def _evaluate_dataset(
  options: Options,
  config: cfg.TrainConfig,
  policy: agent_lib.TimedPolicy,
  robots: dict[str, robot_lib.Robot],
  output: pathlib.Path,
) -> dict[str, Any]:
  """Open-loop action and video errors on recorded windows; prints them, writes pictures."""
  if options.policy not in ('model', 'untrained'):
    raise ValueError(
      f'--policy={options.policy} needs --env=tabletop; recorded episodes show the hold baseline.'
    )
  e = config.evaluation
  batch = min(e.batch, e.episodes)
  forecaster = open_loop.Forecaster(policy, config.model, list(robots.values()), options.seed)
  data = pipeline.Data.open(dataclasses.replace(config, batch_size=batch), [e.split])
  batches = data.eval_batches(e.split, -(-e.episodes // batch))
  forecasts = [forecaster(b) for b in batches]
  summary = open_loop.summarize(forecasts)
  print(
    f'open loop on {summary["windows"]} windows of split {e.split}\n'
    f'  action error (normalized, mean absolute)  model {summary["action_error"]:.4f}   '
    f'hold {summary["action_error_hold"]:.4f}\n'
    f'  imagined video (PSNR)                     model {summary["video_psnr_db"]:.2f} dB   '
    f'last frame {summary["video_psnr_db_still"]:.2f} dB'
  )
  _draw_forecasts(output, forecasts, robots, options.videos)
  return dict(open_loop=summary, split=e.split)


def _override(config: cfg.TrainConfig, options: Options) -> cfg.TrainConfig:
  """The run's config with what the options say about evaluation and sampling."""
  given = lambda *names: {
    name: getattr(options, name) for name in names if getattr(options, name) is not None
  }
  return dataclasses.replace(
    config,
    evaluation=dataclasses.replace(config.evaluation, **given('env', 'episodes', 'batch', 'tasks')),
    sample=dataclasses.replace(config.sample, **given('mode', 'solver', 'steps')),
  )


def _make_agent(name, policy, model, robot):
  if name in ('model', 'untrained'):
    return agent_lib.ModelAgent(policy, model, robot)
  return {'hold': baselines.HoldAgent, 'random': baselines.RandomAgent}[name](robot.record)


def _latency(policy: agent_lib.TimedPolicy) -> dict[str, Any]:
  """Latency and traces of the control step, for the report; empty for baselines, which never take
  it.
  """
  return (
    dict(latency=agent_lib.latency_summary(policy.latencies_s), traces=policy.traces)
    if policy.traces
    else {}
  )


class _Progress:
  """A line per batch of episodes: done, successes, rate, time left."""

  def __init__(self, name: str, total: int):
    self._name, self._total, self._start = name, total, time.monotonic()

  def __call__(self, episodes: Sequence[closed_loop.Episode]) -> None:
    rate = len(episodes) / (time.monotonic() - self._start)
    print(
      f'{self._name}: {len(episodes)}/{self._total} episodes, {sum(e.success for e in episodes)} succeeded, '
      f'{rate:.1f}/s, {(self._total - len(episodes)) / rate:.0f} s left',
      flush=True,
    )


def _success_rows(robot: str, episodes: Sequence[closed_loop.Episode]) -> list[dict[str, Any]]:
  """A row per task, and one over all tasks if there are several."""
  tasks = sorted({e.task for e in episodes})
  groups = [(t, [e for e in episodes if e.task == t]) for t in tasks] + (
    [('all', episodes)] if len(tasks) > 1 else []
  )
  return [_success_row(robot, task, group) for task, group in groups]


def _success_row(robot, task, group):
  successes = sum(e.success for e in group)
  low, high = closed_loop.wilson(successes, len(group))
  seconds = [e.seconds for e in group if e.success]
  return dict(
    robot=robot,
    task=task,
    successes=successes,
    episodes=len(group),
    rate=successes / len(group),
    low=low,
    high=high,
    mean_seconds=float(np.mean(seconds)) if seconds else None,
  )


def _print_success(rows: Sequence[dict[str, Any]]) -> None:
  print(
    f'\n{"robot":<8}{"task":<14}{"success":>10}{"rate":>8}   95 % interval   seconds to success'
  )
  for r in rows:
    seconds = '-' if r['mean_seconds'] is None else f'{r["mean_seconds"]:.1f}'
    print(
      f'{r["robot"]:<8}{r["task"]:<14}{r["successes"]:>5}/{r["episodes"]:<4}{r["rate"]:>8.0%}   '
      f'[{r["low"]:.0%}, {r["high"]:.0%}]'.ljust(62)
      + seconds
    )
  print()


def _draw_episodes(output, record, episodes, robot):
  for number, e in enumerate(episodes):
    stem = output / f'{robot}_{number}'
    title = f'{e.instruction} ({"success" if e.success else "failure"})'
    pictures.save_video(
      stem.with_suffix('.mp4'), e.scene, e.seen, e.imagined, record.stride, record.control_hz, title
    )
    if e.imagined:
      pictures.save_film_strip(stem.with_suffix('.png'), e.seen[1:], e.imagined, title)
    pictures.save_action_plot(
      output / f'{robot}_{number}_actions.png',
      np.stack(e.asked),
      np.stack(e.done),
      _action_names(record),
      record.steps_per_chunk,
      record.control_hz,
      title,
    )


def _draw_forecasts(output, forecasts, robots, videos):
  by_id = {r.id: r.record for r in robots.values()}
  shown = [
    (f, i) for f in forecasts for i in range(len(f.action_BAU)) if f.batch.chunk_mask_BQ[i].all()
  ][:videos]
  for number, (f, i) in enumerate(shown):
    record = by_id[int(f.batch.embodiment_B[i])]
    title = f'{record.name}, sample {f.batch.sample_B2[i].tolist()}'
    pictures.save_film_strip(
      output / f'window_{number}.png', f.batch.frames_BRIJ3[i, 1:], f.frames_BRIJ3[i], title, 192
    )
    if record.action:
      real = f.batch.action_mask_BAU[i, :, 0]
      pictures.save_action_plot(
        output / f'window_{number}_actions.png',
        f.action_BAU[i][real][:, : record.action_dim],
        f.batch.action_BAU[i][real][:, : record.action_dim],
        [f'{s.key}[{u}]' for s in record.action for u in range(s.start, s.stop)],
        record.steps_per_chunk,
        record.control_hz,
        f'{title}, normalized',
        ('predicted', 'recorded'),
      )


def _action_names(record):
  return [f'{s.key}[{i}] {s.unit}' for s in record.action for i in range(s.start, s.stop)]
