"""Evaluates a checkpoint: closed-loop success in a simulator, or predictions on recorded episodes,
with pictures.

python -m wam_jax.evaluate --workdir=DIR [--episodes=100] [--mode=joint|flash|act_only] [--steps=4]
python -m wam_jax.evaluate --workdir=DIR --dataset=DIR [--split='train[90%:]'] [--embodiment=NAME]

Recorded episodes are seen as the checkpoint's robots saw theirs in training, with its records and
statistics; how the data differ from those, and which of them were trained on, is said before the
figures. Nothing is written beside them.

Prints one table and writes it, with videos and film strips of what was imagined beside what
happened, to WORKDIR/evaluation/. For comparison: --policy=hold, random or untrained, and expert,
the script that the simulator's datasets are recorded from.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

from absl import flags

from wam_jax import cli
from wam_jax import compilation_cache
from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib

with cli.needs('sim'):
  from wam_jax.evaluation import delay
  from wam_jax.evaluation import recorded
  from wam_jax.evaluation import run

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the training run to evaluate.', required=True
)
_STEP = flags.DEFINE_integer(
  'checkpoint_step', None, 'Step of the checkpoint; the newest by default.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Directory of the table and pictures; WORKDIR/evaluation/NAME by default.'
)
cli.define_json('It is in the output directory, too.')
_ENV = flags.DEFINE_enum(
  'env',
  None,
  cfg.list_choices(cfg.EvalConfig)['env'],
  "Simulator, or recorded episodes; default: the config's.",
)
_EPISODES = flags.DEFINE_integer(
  'episodes', None, "Episodes of each robot, or windows; default: the config's.", 1
)
_TIME_LIMIT = flags.DEFINE_float(
  'time_limit_s',
  None,
  "Of an episode of the simulator, in its time; default: the config's, which is that of its task.",
  0.0,
)
_BATCH = flags.DEFINE_integer(
  'batch', None, 'Episodes side by side; the batch of the control step.', 1
)
_TASKS = flags.DEFINE_list(
  'tasks', None, "Tasks of the simulator, comma-separated; default: the config's."
)
_WORLD = flags.DEFINE_enum(
  'world',
  'train',
  ('train', 'unseen_task', 'unseen_look'),
  'Of the tabletop: scenes like those of training (other seeds), held-out task combinations, '
  'held-out looks.',
)
_DATASET = flags.DEFINE_string(
  'dataset',
  '',
  'TFDS directory with dataset_info.json of recorded episodes, in place of those of the config.',
)
_EMBODIMENT = cli.define_embodiment(
  'Of the recorded episodes: one of the robots of the checkpoint; found out where that is possible.'
)
_SPLIT = flags.DEFINE_string(
  'split',
  '',
  "Split of recorded episodes, as 'train[90%:]'; default: what the config holds out of each.",
)
_POLICY = flags.DEFINE_enum(
  'policy',
  'model',
  ('model', 'untrained', 'hold', 'random', 'expert'),
  'Who acts: the model, or in its place, in the same scenes, one that shows what success is worth.',
)
_SAMPLING = cfg.list_choices(cfg.SampleConfig)
_MODE = flags.DEFINE_enum(
  'mode',
  None,
  _SAMPLING['mode'],
  "Denoise the video fully, stop it early, or act without it; default: the config's.",
)
_SOLVER = flags.DEFINE_enum('solver', None, _SAMPLING['solver'], "Default: the config's.")
_STEPS = flags.DEFINE_integer('steps', None, "Denoising steps; default: the config's.", 1)
_ACTION_STEPS = flags.DEFINE_integer(
  'action_steps',
  None,
  "Steps that the actions take against one pass of the video, 0 for none; default: the config's.",
  0,
)
_APPROXIMATE = flags.DEFINE_bool(
  'approximate_kept_video',
  None,
  '--action_steps with weights whose video sees the actions: an approximation, compared with the '
  'exact actions in the report.',
)
_EVALUATE_STEPS = flags.DEFINE_list(
  'evaluate_steps',
  None,
  "Steps at which the network runs, as 0,1,2; default: the config's, all where --steps differs.",
)
_GUIDANCE = flags.DEFINE_float(
  'guidance_scale', None, "Of the video, 1 for none; default: the config's.", 0.0
)
_HISTORY = flags.DEFINE_enum(
  'history',
  None,
  _SAMPLING['history'],
  'Start over when the window is full, let it slide, or start over at each call; default: the '
  "config's, and 'window' with --delay.",
)
_DELAY = flags.DEFINE_integer(
  'delay',
  None,
  'Control steps that the simulated world goes on for while a chunk is computed; by default it '
  'stands still meanwhile.',
  0,
)
_WHEN = flags.DEFINE_enum(
  'when',
  None,
  typing.get_args(delay.When),
  'With --delay: the robot waits, goes over to the next chunk when that is there, blends it in, or '
  'lets the policy look ahead to the end of a chunk, or plan on from what will be executed until '
  'then (rtc); wait by default.',
)
_EXECUTE = flags.DEFINE_integer(
  'execute',
  None,
  'With --delay: control steps of a chunk before the next takes over; by default all of them where '
  'the robot waits, else half.',
  1,
)
_PRECISION = flags.DEFINE_enum(
  'precision',
  None,
  _SAMPLING['precision'],
  "Of weights and products; default: the config's. int8, w8a8 and fp8 need the extra `quant`.",
)
_MESH = cli.define_mesh("default: the config's, else one device.")
_SEED = flags.DEFINE_integer(
  'seed', 0, 'First of the seeds of scenes and noise; training never uses these.', 0
)
_CACHE = compilation_cache.define_flag()
_VIDEOS = flags.DEFINE_integer('videos', 4, 'Episodes to show in pictures.', 0)


def main(unused_argv: Sequence[str]) -> None:
  compilation_cache.keep(_CACHE.value, workdir_lib.make_path(_WORKDIR.value))
  report = run.evaluate(
    run.Options(
      workdir=_WORKDIR.value,
      checkpoint_step=_STEP.value,
      output=_OUTPUT.value,
      env=_ENV.value,
      episodes=_EPISODES.value,
      time_limit_s=_TIME_LIMIT.value,
      batch=_BATCH.value,
      tasks=_TASKS.value and tuple(_TASKS.value),
      world=_WORLD.value,
      policy=_POLICY.value,
      mode=_MODE.value,
      solver=_SOLVER.value,
      steps=_STEPS.value,
      action_steps=_ACTION_STEPS.value,
      approximate_kept_video=_APPROXIMATE.value,
      evaluate_steps=_read_steps(),
      guidance_scale=_GUIDANCE.value,
      history=_HISTORY.value,
      precision=_PRECISION.value,
      mesh=cli.read_mesh(_MESH),
      timing=delay.Choice(_WHEN.value, _DELAY.value, _EXECUTE.value),
      recorded=recorded.Choice(_DATASET.value, _EMBODIMENT.value, _SPLIT.value),
      seed=_SEED.value,
      videos=_VIDEOS.value,
    )
  )
  cli.write_json(report)


def _read_steps() -> tuple[int, ...] | None:
  given = _EVALUATE_STEPS.value
  if given is None:
    return None
  if not all(step.isdigit() for step in given):
    raise ValueError(f'--evaluate_steps={",".join(given)} must be numbers of steps, as 0,1,2.')
  return tuple(map(int, given))


if __name__ == '__main__':
  cli.run(main)
