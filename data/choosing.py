"""The flags by which the commands of this folder choose what of a dataset counts, as a config of
training does.
"""

from __future__ import annotations

from absl import flags

from wam_jax.data import cache as cache_lib
from wam_jax.data import choice as choice_lib
from wam_jax.data import record as record_lib
from wam_jax.data import sources


def define() -> None:
  """Defines the flags; to be called once, where a command defines its own."""
  flags.DEFINE_string('ranges', '', 'As config.data.ranges of this dataset.')
  flags.DEFINE_bool('failures', False, 'As this dataset in config.data.failures.')
  flags.DEFINE_bool('skip_unlabeled', False, 'As this dataset in config.data.skip_unlabeled.')
  define_exclude()


def define_exclude() -> None:
  """Defines --exclude alone."""
  flags.DEFINE_string(
    'exclude',
    '',
    'File of what is left out, in place of exclusions.json beside the dataset; as '
    'config.data.exclude of this dataset.',
  )


def open_episodes(
  dataset: str,
  split: str,
  record: record_lib.Embodiment,
  cache: cache_lib.Cache | None = None,
) -> sources.Episodes:
  """The episodes of a split, of which those steps count that the flags choose."""
  values = flags.FLAGS
  choice = choice_lib.Choice(
    ranges=values.ranges, failures=values.failures, labeled=values.skip_unlabeled
  )
  opened = sources.Dataset(dataset, cache, exclude=values.exclude)
  return opened.open(split, record, choice)
