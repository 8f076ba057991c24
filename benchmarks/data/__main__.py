"""How fast windows come out of a dataset, against a tf.data pipeline and against decoding alone, on
one core.

python -m benchmarks.data --tensorflow_python=PYTHON [--json=FILE]

A window has DROID's arrays: three 180 x 320 JPEG views, 33 frames, each cropped, resized, jittered
and tiled to 352 x 640 (a quadrant each, or as DROID does), with its states, actions and prompt. The
dataset is made on first use (benchmarks/data/episodes.py). The baseline needs tensorflow-cpu, here
or in the Python named (pip install -e '.[benchmark]').
"""

from __future__ import annotations

import sys

from absl import flags
from etils import epath

from benchmarks import provenance
from wam_jax import cli
from wam_jax import config as cfg

with cli.needs('benchmark'):
  from benchmarks.data import contestants
  from benchmarks.data import work

_DATA = flags.DEFINE_string(
  'data',
  f'{cfg.DataConfig().root}/benchmark',
  'Directory of the dataset, made if missing: 2.7 GB.',
)
_EPISODES = flags.DEFINE_integer('episodes', 40, 'Episodes, if the dataset is made.', lower_bound=1)
_STEPS = flags.DEFINE_integer(
  'steps', 500, 'Steps of an episode, about, if the dataset is made.', lower_bound=120
)
_TENSORFLOW = flags.DEFINE_string(
  'tensorflow_python',
  sys.executable,
  'Python with tensorflow-cpu and psutil; empty for no baseline.',
)
_CORE = flags.DEFINE_integer('core', 0, 'The core that all are measured on.', lower_bound=0)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 6.0, 'CPU time of a turn.', lower_bound=0.1)
_MEMORY = flags.DEFINE_integer(
  'memory_batches',
  0,
  'If positive, only memory is measured, over that many batches.',
  lower_bound=0,
)
_PART = flags.DEFINE_enum(
  'part',
  '',
  ('', *contestants.PARTS),
  'For the program itself: what this process measures, decoding or the windows of a robot.',
)
cli.define_json()


def main(unused_argv: list[str]) -> None:
  root = epath.Path(_DATA.value).expanduser()
  if _PART.value:
    contestants.serve(work.find_converted(root), _PART.value)
    return
  # Before a dataset is made for minutes; memory is ours alone and needs no baseline.
  if not _MEMORY.value:
    work.check_tensorflow(_TENSORFLOW.value)
  work.make_dataset(root, _EPISODES.value, _STEPS.value)
  if _MEMORY.value:
    tables = {'memory': work.measure_memory(root, _MEMORY.value)}
    print(work.show_table(tables['memory']))
  else:
    match = work.Match(core=_CORE.value, rounds=_ROUNDS.value, seconds=_SECONDS.value)
    rows = work.compete(root, _TENSORFLOW.value, match)
    tables = {'throughput': rows, 'access': work.measure_access(root)}
    print(work.show_throughput(rows))
    print(work.show_table(tables['access']))
    tables['headline'] = work.headline(rows)
  provenance.write(tables)


if __name__ == '__main__':
  cli.keep_memory()
  cli.run(main)
