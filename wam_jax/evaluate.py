"""Evaluates a checkpoint: closed-loop success in a simulator, or predictions on recorded episodes,
with pictures.

python -m wam_jax.evaluate --workdir=DIR [--episodes=100] [--mode=joint|flash] [--steps=4]
python -m wam_jax.evaluate --workdir=DIR --dataset=DIR [--split='train[90%:]'] [--embodiment=NAME]

Recorded episodes are seen as the checkpoint's robots saw theirs in training, with its records and
statistics; how the data differ from those, and which of them were trained on, is said before the
figures. Nothing is written beside them.

Prints one table and writes it, with videos and film strips of what was imagined beside what
happened, to WORKDIR/evaluation/. Baselines for comparison: --policy=hold, random or untrained.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from wam_jax import cli
from wam_jax import compilation_cache
from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
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
  'Scenes like those of training (other seeds), held-out task combinations, held-out looks.',
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
  'policy', 'model', ('model', 'untrained', 'hold', 'random'), 'Who acts.'
)
_SAMPLING = cfg.list_choices(cfg.SampleConfig)
_MODE = flags.DEFINE_enum(
  'mode',
  None,
  _SAMPLING['mode'],
  "Denoise the video fully, or stop it early; default: the config's.",
)
_SOLVER = flags.DEFINE_enum('solver', None, _SAMPLING['solver'], "Default: the config's.")
_STEPS = flags.DEFINE_integer('steps', None, "Denoising steps; default: the config's.", 1)
_EVALUATE_STEPS = flags.DEFINE_list(
  'evaluate_steps',
  None,
  "Steps at which the network runs, as 0,1,2; default: the config's, all where --steps differs.",
)
_GUIDANCE = flags.DEFINE_float(
  'guidance_scale', None, "Of the video, 1 for none; default: the config's.", 0.0
)
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
      batch=_BATCH.value,
      tasks=_TASKS.value and tuple(_TASKS.value),
      world=_WORLD.value,
      policy=_POLICY.value,
      mode=_MODE.value,
      solver=_SOLVER.value,
      steps=_STEPS.value,
      evaluate_steps=_read_steps(),
      guidance_scale=_GUIDANCE.value,
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
