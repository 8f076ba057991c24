"""Makes a Meta-World dataset: scripted expert episodes, three views, with language, as RLDS through
TFDS.

python -m data.metaworld --output=~/data --tasks=drawer-open,door-close --episodes=50 --workers=8
"""

from __future__ import annotations

from absl import flags

from data.metaworld import builder
from wam_jax import cli
from wam_jax.envs import metaworld

_DEFAULT = builder.BuildConfig
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Directory of datasets; this one goes to OUTPUT/metaworld/CONFIG/1.0.0.'
)
_TASKS = flags.DEFINE_list(
  'tasks', list(_DEFAULT.tasks), f'Comma-separated, some of: {", ".join(metaworld.TASKS)}.'
)
_EPISODES = flags.DEFINE_integer(
  'episodes', _DEFAULT.episodes, 'Episodes of each task in the split train.', lower_bound=1
)
_VAL = flags.DEFINE_integer(
  'val_episodes', _DEFAULT.val_episodes, 'Episodes of each task in the split val.', lower_bound=1
)
_SEED = flags.DEFINE_integer(
  'seed', _DEFAULT.seed, 'Another seed gives other episodes.', lower_bound=0
)
_VIEW_SIZE = flags.DEFINE_integer('view_size', _DEFAULT.view_size, 'Pixels of the square views.')
_NOISE = flags.DEFINE_float(
  'noise', _DEFAULT.noise, "Standard deviation of the expert's action noise; actions span [-1, 1]."
)
_BACKEND = flags.DEFINE_enum(
  'backend', _DEFAULT.backend, metaworld.BACKENDS, 'What draws; neither needs a screen.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  config = builder.BuildConfig(
    tasks=tuple(_TASKS.value),
    episodes=_EPISODES.value,
    val_episodes=_VAL.value,
    seed=_SEED.value,
    view_size=_VIEW_SIZE.value,
    noise=_NOISE.value,
    backend=_BACKEND.value,
  )
  path, made = builder.build(_OUTPUT.value, config, _WORKERS.value)
  print(path if made else f'already there: {path}')


if __name__ == '__main__':
  flags.mark_flag_as_required('output')
  cli.run(main)
