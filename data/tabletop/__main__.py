"""Makes a tabletop dataset: expert episodes as RLDS through TFDS, readable with no TensorFlow.

python -m data.tabletop --output=~/data --embodiment=disc --tasks=reach --episodes=8000 --workers=2
"""

from __future__ import annotations

from absl import flags

from wam_jax import cli

with cli.needs('sim'):
  from data.tabletop import builder
  from wam_jax.envs import tabletop

_DEFAULT = builder.BuildConfig()
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Directory of datasets; this one goes to OUTPUT/tabletop/CONFIG/1.0.0.'
)
_EMBODIMENT = flags.DEFINE_enum(
  'embodiment',
  _DEFAULT.embodiment,
  tuple(tabletop.ROBOTS),
  'Robot; `human` is meant for video only.',
)
_TASKS = flags.DEFINE_list(
  'tasks',
  list(_DEFAULT.tasks),
  f'Comma-separated; each episode draws one of: {", ".join(tabletop.TASKS)}.',
)
_EPISODES = flags.DEFINE_integer(
  'episodes', _DEFAULT.episodes, 'Episodes of the split train.', lower_bound=1
)
_OTHER = flags.DEFINE_integer(
  'other_episodes',
  _DEFAULT.other_episodes,
  'Episodes of every other split; 0 for 2 % of --episodes.',
  lower_bound=0,
)
_SPLITS = flags.DEFINE_list(
  'split_names',
  list(_DEFAULT.split_names),
  f'Comma-separated, some of: {", ".join(builder.SPLITS)}.',
)
_SEED = flags.DEFINE_integer(
  'seed', _DEFAULT.seed, 'Another seed gives other episodes.', lower_bound=0
)
_VIEW_SIZE = flags.DEFINE_integer('view_size', _DEFAULT.view_size, 'Pixels of the square views.')
_DISTRACTORS = flags.DEFINE_integer(
  'max_distractors', _DEFAULT.max_distractors, 'Objects beside those the task is about, at most.'
)
_NOISE = flags.DEFINE_float(
  'noise', _DEFAULT.noise, "Standard deviation of the expert's action noise; actions span [-1, 1]."
)
_LIGHT = flags.DEFINE_float(
  'light',
  _DEFAULT.light,
  'By which share a pressed switch turns everything in view brighter or darker (press, press_any).',
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  config = builder.BuildConfig(
    embodiment=_EMBODIMENT.value,
    tasks=tuple(_TASKS.value),
    episodes=_EPISODES.value,
    other_episodes=_OTHER.value,
    split_names=tuple(_SPLITS.value),
    seed=_SEED.value,
    view_size=_VIEW_SIZE.value,
    max_distractors=_DISTRACTORS.value,
    noise=_NOISE.value,
    light=_LIGHT.value,
  )
  path, made = builder.build(_OUTPUT.value, config, _WORKERS.value)
  print(path if made else f'already there: {path}')


if __name__ == '__main__':
  flags.mark_flag_as_required('output')
  cli.run(main)
