"""Evaluates a checkpoint: closed-loop success in a simulator, or predictions on recorded episodes, with pictures.

python -m wam_jax.evaluate --workdir=DIR [--episodes=100] [--mode=joint|flash] [--steps=4] [--seed=0]

Prints one table and writes it, with videos and film strips of what was imagined beside what happened, to
WORKDIR/evaluation/. Baselines for comparison: --policy=hold, random or untrained.
"""
from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
import jax
import numpy as np

from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax.data import normalize
from wam_jax.data import pipeline
from wam_jax.evaluation import agents
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the training run to evaluate.', required=True)
_STEP = flags.DEFINE_integer('checkpoint_step', None, 'Step of the checkpoint; the newest by default.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory of the table and pictures; WORKDIR/evaluation/NAME by default.')
_JSON = flags.DEFINE_string('json', None, 'File for what is printed, as JSON (also in the output directory).')
_ENV = flags.DEFINE_enum('env', None, ('tabletop', 'dataset'), 'Simulator, or recorded episodes; default: the config\'s.')
_EPISODES = flags.DEFINE_integer('episodes', None, 'Episodes of each robot, or windows; default: the config\'s.', 1)
_BATCH = flags.DEFINE_integer('batch', None, 'Episodes side by side; the batch of the control step.', 1)
_TASKS = flags.DEFINE_list('tasks', None, 'Tasks of the simulator, comma-separated; default: the config\'s.')
_WORLD = flags.DEFINE_enum('world', 'train', ('train', 'unseen_task', 'unseen_look'),
                           'Scenes like those of training (other seeds), held-out task combinations, held-out looks.')
_POLICY = flags.DEFINE_enum('policy', 'model', ('model', 'untrained', 'hold', 'random'), 'Who acts.')
_MODE = flags.DEFINE_enum('mode', None, ('joint', 'flash'), 'Denoise the video fully, or stop it early; default: the config\'s.')
_SOLVER = flags.DEFINE_enum('solver', None, ('euler', 'unipc'), 'Default: the config\'s.')
_STEPS = flags.DEFINE_integer('steps', None, 'Denoising steps; default: the config\'s.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'First of the seeds of scenes and noise; training never uses these.', 0)
_VIDEOS = flags.DEFINE_integer('videos', 4, 'Episodes to show in pictures.', 0)


def main(argv: Sequence[str]) -> None:
  del argv
  config, params, frozen, metadata, step = checkpoint.load_for_inference(_WORKDIR.value, _STEP.value)
  config = _with_flags(config)
  robots = normalize.from_metadata(metadata)
  if _POLICY.value == 'untrained':
    params = train_step.init_state(config, sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1, 'seq': 1},
                                                              jax.devices()[:1]), frozen)[0].params
  name = f'{_POLICY.value}_{config.sample.mode}{config.sample.steps}_{_WORLD.value}_step{step}'
  output = pathlib.Path(_OUTPUT.value or pathlib.Path(_WORKDIR.value) / 'evaluation' / name).expanduser()
  output.mkdir(parents=True, exist_ok=True)
  run = evaluate_tabletop if config.evaluation.env == 'tabletop' else evaluate_dataset
  report = dict(workdir=str(_WORKDIR.value), checkpoint_step=step, policy=_POLICY.value, seed=_SEED.value,
                sample=dataclasses.asdict(config.sample), **run(config, params, frozen, robots, output))
  for path in [output / 'evaluation.json'] + ([pathlib.Path(_JSON.value)] if _JSON.value else []):
    path.write_text(json.dumps(report, indent=2) + '\n')
  print(f'pictures and evaluation.json: {output}')


def evaluate_tabletop(config: cfg.TrainConfig, params: Any, frozen: Any,
                      robots: dict[str, normalize.KnownEmbodiment], output: pathlib.Path) -> dict[str, Any]:
  """Closed-loop success of every acting tabletop robot of the checkpoint; prints the table, writes pictures."""
  from wam_jax.envs import tabletop  # Needs pymunk, of the extra [sim].
  e, rows, latencies, traces = config.evaluation, [], {}, {}
  names = [n for n, r in robots.items() if n.startswith('tabletop_') and r.record.action and r.statistics]
  if not names:
    raise ValueError(f'The checkpoint knows {sorted(robots)}, none of which acts on the tabletop; use --env=dataset.')
  for name in names:
    record = robots[name].record
    robot = name.removeprefix('tabletop_')
    make_env = lambda robot=robot: tabletop.TabletopEnv(robot, e.tasks, _WORLD.value, max_distractors=e.max_distractors)
    agent = _make_agent(config, params, frozen, robots[name])
    seeds = range(_SEED.value, _SEED.value + e.episodes)
    episodes = closed_loop.run_episodes(agent, record, make_env, seeds, min(e.batch, e.episodes), _VIDEOS.value,
                                        on_progress=_Progress(name, e.episodes))
    rows += _success_rows(robot, episodes)
    if isinstance(agent, agents.ModelAgent):
      latencies[robot], traces[robot] = agents.latency_summary(agent.latencies_s), agent.traces
    _draw_episodes(output, record, episodes[:_VIDEOS.value], robot)
  _print_success(rows)
  for robot, latency in latencies.items():
    print(f'{robot}: control step for {min(e.batch, e.episodes)} robots at once: p50 {latency["p50_ms"]} ms, '
          f'p95 {latency["p95_ms"]} ms over {latency["calls"]} calls; traced {traces[robot]} time(s)')
  return dict(world=_WORLD.value, success=rows, batch=min(e.batch, e.episodes), latency=latencies, traces=traces)


def evaluate_dataset(config: cfg.TrainConfig, params: Any, frozen: Any,
                     robots: dict[str, normalize.KnownEmbodiment], output: pathlib.Path) -> dict[str, Any]:
  """Open-loop action and video errors on recorded windows; prints them, writes pictures."""
  if _POLICY.value not in ('model', 'untrained'):
    raise ValueError(f'--policy={_POLICY.value} needs --env=tabletop; recorded episodes have the hold baseline anyway.')
  e = config.evaluation
  batch = min(e.batch, e.episodes)
  forecaster = open_loop.Forecaster(config, params, frozen, list(robots.values()), _SEED.value)
  batches = pipeline.make_eval_batches(dataclasses.replace(config, batch_size=batch), -(-e.episodes // batch), e.split)
  forecasts = [forecaster(b) for b in batches]
  summary = open_loop.summarize(forecasts)
  latency = agents.latency_summary(forecaster.latencies_s)
  print(f'open loop on {summary["windows"]} windows of split {e.split}\n'
        f'  action error (normalized, mean absolute)  model {summary["action_error"]:.4f}   '
        f'hold {summary["action_error_hold"]:.4f}\n'
        f'  imagined video (PSNR)                     model {summary["video_psnr_db"]:.2f} dB   '
        f'last frame {summary["video_psnr_db_still"]:.2f} dB\n'
        f'  control step for {batch} windows at once: p50 {latency["p50_ms"]} ms, p95 {latency["p95_ms"]} ms over '
        f'{latency["calls"]} calls; traced {forecaster.traces} time(s)')
  _draw_forecasts(output, config, forecasts, robots)
  return dict(open_loop=summary, split=e.split, batch=batch, latency=latency, traces=forecaster.traces)


def _with_flags(config: cfg.TrainConfig) -> cfg.TrainConfig:
  """The run's config with what the flags say about evaluation and sampling."""
  given = lambda **flag: {key: f.value for key, f in flag.items() if f.value is not None}
  evaluation = given(env=_ENV, episodes=_EPISODES, batch=_BATCH)
  if _TASKS.value:
    evaluation['tasks'] = tuple(_TASKS.value)
  return dataclasses.replace(
      config, evaluation=dataclasses.replace(config.evaluation, **evaluation),
      sample=dataclasses.replace(config.sample, **given(mode=_MODE, solver=_SOLVER, steps=_STEPS)))


def _make_agent(config, params, frozen, robot):
  if _POLICY.value in ('model', 'untrained'):
    return agents.ModelAgent(config, params, frozen, robot)
  return {'hold': agents.HoldAgent, 'random': agents.RandomAgent}[_POLICY.value](robot.record)


class _Progress:
  """A line per batch of episodes: done, successes, rate, time left."""

  def __init__(self, name: str, total: int):
    self._name, self._total, self._start = name, total, time.monotonic()

  def __call__(self, episodes: Sequence[closed_loop.Episode]) -> None:
    rate = len(episodes) / (time.monotonic() - self._start)
    print(f'{self._name}: {len(episodes)}/{self._total} episodes, {sum(e.success for e in episodes)} succeeded, '
          f'{rate:.1f}/s, {(self._total - len(episodes)) / rate:.0f} s left', flush=True)


def _success_rows(robot: str, episodes: Sequence[closed_loop.Episode]) -> list[dict[str, Any]]:
  """A row per task, and one over all tasks if there are several."""
  tasks = sorted({e.task for e in episodes})
  groups = [(t, [e for e in episodes if e.task == t]) for t in tasks] + ([('all', episodes)] if len(tasks) > 1 else [])
  return [_success_row(robot, task, group) for task, group in groups]


def _success_row(robot, task, group):
  successes = sum(e.success for e in group)
  low, high = closed_loop.wilson(successes, len(group))
  seconds = [e.seconds for e in group if e.success]
  return dict(robot=robot, task=task, successes=successes, episodes=len(group), rate=successes / len(group),
              low=low, high=high, mean_seconds=float(np.mean(seconds)) if seconds else None)


def _print_success(rows: Sequence[dict[str, Any]]) -> None:
  print(f'\n{"robot":<8}{"task":<14}{"success":>10}{"rate":>8}   95 % interval   seconds to success')
  for r in rows:
    seconds = '-' if r['mean_seconds'] is None else f'{r["mean_seconds"]:.1f}'
    print(f'{r["robot"]:<8}{r["task"]:<14}{r["successes"]:>5}/{r["episodes"]:<4}{r["rate"]:>8.0%}   '
          f'[{r["low"]:.0%}, {r["high"]:.0%}]'.ljust(62) + seconds)
  if len({r['robot'] for r in rows}) > 1:
    whole = [r for r in rows if r['task'] == 'all'] or rows
    successes, episodes = sum(r['successes'] for r in whole), sum(r['episodes'] for r in whole)
    low, high = closed_loop.wilson(successes, episodes)
    print(f'{"all":<8}{"all":<14}{successes:>5}/{episodes:<4}{successes / episodes:>8.0%}   [{low:.0%}, {high:.0%}]')
  print()


def _draw_episodes(output, record, episodes, robot):
  for number, e in enumerate(episodes):
    stem = output / f'{robot}_{number}'
    title = f'{e.instruction} ({"success" if e.success else "failure"})'
    pictures.save_video(stem.with_suffix('.mp4'), e.scene, e.seen, e.imagined, record.stride, record.control_hz, title)
    if e.imagined:
      pictures.save_film_strip(stem.with_suffix('.png'), e.seen[1:], e.imagined, title)
    pictures.save_action_plot(output / f'{robot}_{number}_actions.png', np.stack(e.asked), np.stack(e.done),
                              _action_names(record), record.steps_per_chunk, record.control_hz, title)


def _draw_forecasts(output, config, forecasts, robots):
  by_id = {r.id: r.record for r in robots.values()}
  shown = [(f, i) for f in forecasts for i in range(len(f.action_BAU)) if f.batch.chunk_mask_BQ[i].all()][:_VIDEOS.value]
  for number, (f, i) in enumerate(shown):
    record = by_id[int(f.batch.embodiment_B[i])]
    title = f'{record.name}, sample {f.batch.sample_B2[i].tolist()}'
    pictures.save_film_strip(output / f'window_{number}.png', f.batch.frames_BRIJ3[i, 1:], f.frames_BRIJ3[i], title, 192)
    if record.action:
      real = f.batch.action_mask_BAU[i, :, 0]
      pictures.save_action_plot(output / f'window_{number}_actions.png', f.action_BAU[i][real][:, :record.action_dim],
                                f.batch.action_BAU[i][real][:, :record.action_dim], _action_names(record),
                                record.steps_per_chunk, record.control_hz, title, ('predicted', 'recorded'))


def _action_names(record):
  return [f'{s.key}[{i}] {s.unit}' for s in record.action for i in range(s.start, s.stop)]


if __name__ == '__main__':
  cli.run(main)
