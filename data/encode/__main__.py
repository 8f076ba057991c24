r"""Stores what the frozen encoders make of a dataset's windows, so that training runs them no more.

python -m data.encode --workdir=~/wam/imported --dataset=~/droid/1.0.1 --embodiment=droid \
  [--json=FILE]

Training with these encoders on this dataset then draws from the stored windows
(config.data.features). The same command continues what was stopped. Dataset and workdir may lie in
a bucket (gs://). Several hosts that see the same dataset share the work: with --distributed on a
TPU pod or under SLURM, else by --shard_index and --shard_count. Runs with config.data.augment need
--augmentations=N for the split that they train on, and --center_crop for the held-out one.
"""

from __future__ import annotations

from typing import Any

import cv2
import jax
from absl import flags

from data import choosing
from data.encode import work
from wam_jax import cli
from wam_jax import compilation_cache
from wam_jax import hosts
from wam_jax import processes
from wam_jax import progress
from wam_jax import source as source_lib
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.data import cache as cache_lib
from wam_jax.data import embodiments
from wam_jax.data import prepare
from wam_jax.data import windows
from wam_jax.data.features import record_files
from wam_jax.models import encoders

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run or import whose encoders, and shape of a window, are taken.'
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.'
)
_EMBODIMENT = cli.define_embodiment('The robot; by default the record beside the dataset.')
_SPLIT = flags.DEFINE_string(
  'split', 'train', 'Split, as `split` or `held_out` of the dataset in the config.'
)
_HELD_OUT = flags.DEFINE_bool(
  'held_out',
  False,
  'In place of --split: what the run at --workdir holds out of this dataset (`held_out`).',
)
choosing.define()
_STRIDE = flags.DEFINE_integer(
  'anchor_stride', 0, 'Control steps between two windows; 0 for one chunk.', lower_bound=0
)
_DRAW_OFFSET = flags.DEFINE_bool(
  'draw_offset', False, 'Begin at a step drawn for each episode, within one stride.'
)
_AUGMENTATIONS = flags.DEFINE_integer(
  'augmentations', 0, 'Store so many differently augmented variants of each window.', lower_bound=0
)
_CENTER_CROP = flags.DEFINE_bool(
  'center_crop', False, 'Store the centre crop, as augmented runs are evaluated on.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of drawn offsets and augmentations.', lower_bound=0)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', tuple(record_files.DTYPES), 'Dtype of the stored numbers.'
)
_FILE_MIB = flags.DEFINE_float('file_mib', 256.0, 'Size of a record file, about.', lower_bound=0)
_BATCH = flags.DEFINE_integer(
  'batch', 0, 'Windows encoded at once; 0 for 8 a device.', lower_bound=0
)
_THREADS = flags.DEFINE_integer('threads', 2, 'Threads that decode images.', lower_bound=1)
_SHARD_INDEX = flags.DEFINE_integer(
  'shard_index', 0, 'Which of the --shard_count processes this is.', lower_bound=0
)
_SHARD_COUNT = flags.DEFINE_integer(
  'shard_count', 1, 'Processes that share the work.', lower_bound=1
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Take --shard_index and --shard_count from the TPU or SLURM environment.'
)
_START_TIMEOUT = processes.define_flag()
_CACHE = compilation_cache.define_flag()
cli.define_json()


def main(unused_argv: list[str]) -> None:
  shard = _SHARD_INDEX.value, _SHARD_COUNT.value
  if _DISTRIBUTED.value:
    processes.join(_START_TIMEOUT.value)
    shard = jax.process_index(), jax.process_count()
  compilation_cache.keep(_CACHE.value, workdir_lib.make_path(_WORKDIR.value))
  cv2.setNumThreads(1)  # Images are small, and threads work side by side.
  with hosts.together():  # Not to wait for days for one that has failed.
    summary = work.encode(*_read_flags(*shard), *shard)
  if shard[0] == 0 or not _DISTRIBUTED.value:
    _print(summary)
    cli.write_json(summary)


def _read_flags(
  shard_index: int, shard_count: int
) -> tuple[work.Job, encoders.Encoders, dict[str, str], work.Machine]:
  if shard_index >= shard_count:
    raise ValueError(f'--shard_index={shard_index} must be below --shard_count={shard_count}.')
  if _AUGMENTATIONS.value and _CENTER_CROP.value:
    raise ValueError(
      '--augmentations is for the split that is trained on, --center_crop for the held-out one; '
      'give either.'
    )
  storage.make_path(_DATASET.value, '--dataset')
  machine = work.make_machine(_BATCH.value, _THREADS.value)
  source = source_lib.open_source(_WORKDIR.value)
  hashes = source.hash_encoders(progress.say)
  frozen = source.read_encoders(machine.place_shapes(source.frozen))
  cache = cache_lib.Cache(work.CACHE_GIB)
  split = _SPLIT.value
  if _HELD_OUT.value:
    split = work.find_held_out(source.config, _DATASET.value)
  record = embodiments.resolve(_EMBODIMENT.value, _DATASET.value)
  episodes = choosing.open_episodes(_DATASET.value, split, record, cache)
  storing = record_files.Storing(
    anchor_stride=_STRIDE.value or episodes.record.steps_per_chunk,
    draw_offset=_DRAW_OFFSET.value,
    variants=max(1, _AUGMENTATIONS.value),
    seed=_SEED.value,
    dtype=_DTYPE.value,
    file_mib=_FILE_MIB.value,
  )
  # Read by the first process alone, if they are not kept beside the dataset.
  prepare.complete_findings(windows.list_findings(episodes))
  anchors = windows.make_anchors(episodes)
  if left_out := windows.describe_left_out(episodes, anchors):
    progress.say(left_out)
  job = work.make_job(source.config.model, episodes, anchors, storing, _choose_transform())
  return job, frozen, hashes, machine


def _choose_transform() -> str:
  if _CENTER_CROP.value:
    return 'center'
  return 'random' if _AUGMENTATIONS.value else 'none'


def _print(summary: dict[str, Any]) -> None:
  encoded = summary['encoded_windows']
  print(
    f'{summary["windows"]} windows x {summary["variants"]} ({summary["transform"]}), '
    f'{summary["prompts"]} prompts; {summary["bytes"] / 2**20:.1f} MiB in {summary["place"]}'
  )
  if encoded['records']:
    total = summary['windows'] * summary['variants']
    print(
      f'{encoded["records"]} of {total} encoded now: compiled in {encoded["compile_s"]:.1f} s, '
      f'then {encoded["seconds"]:.1f} s, {encoded["per_s"]:.3g} windows/s'
    )
  if summary['missing_files']:
    print(f'{summary["missing_files"]} files are left to other shards.')


if __name__ == '__main__':
  flags.mark_flags_as_required(['workdir', 'dataset'])
  cli.run(main)
