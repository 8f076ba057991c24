"""`config.data`: which episodes become which batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from wam_jax.config.choices import check_choices


def is_table_name(text: str) -> bool:
  """Whether an embodiment is named as in `wam_jax/data/embodiments.py`, and not by a place."""
  return bool(text) and '/' not in text and not text.endswith('.json')


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """One dataset of the mixture.

  Attributes:
    path: TFDS directory that holds dataset_info.json; `~` is expanded.
    split: its split, TFDS slicing allowed ('train[:90%]').
    held_out: the split that is kept from training, as 'train[90%:]': training evaluates on it,
      `wam_jax.evaluate` too, and `data.encode` stores it; '' for `evaluation.split`.
    embodiment: its robot's record: a name of `wam_jax/data/embodiments.py`, a JSON file, a
      directory that has one or a checkpoint (`embodiments.resolve`); '' for the file
      embodiment.json beside the data.
    weight: share of the samples, relative to the other datasets.
    prepare: `python -m` arguments that make the dataset when `path` does not exist; '' if it must
      be there. `{path}` and `{source}` in it stand for those fields, `{root}` for `data.root`.
    source: what `prepare` makes it from, for example the directory of a dataset as published.
    given: the feature of its steps that marks, by any number but 0, actions which were carried out
      but are not to be imitated: what a policy did before a person took over, or what led an expert
      astray; '' where all are. Where a chunk begins with them they are its prefix
      (`model.action_overlap`); what comes after others of them is not trained. Statistics are of
      all actions.
  """

  path: str = ''
  split: str = 'train'
  held_out: str = ''
  embodiment: str = ''
  weight: float = 1.0
  prepare: str = ''
  source: str = ''
  given: str = ''


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which episodes become which batches.

  Attributes:
    root: directory of everything that the config's own paths name, datasets, weights and the
      vocabulary, local or gs://; those paths follow where it is set (`presets`).
    mixture: dataset name to DatasetConfig.
    embodiments: records in the order of their rows of the model, named as in a `DatasetConfig`; ()
      for those of the mixture. A run that starts from another keeps that one's rows by name.
    rows: name of a robot to its row, where it is to go on from the row of another robot of
      `init_from`, which has no robot of its name.
    seed: of the order of samples.
    workers: grain worker processes; 0 reads in the training process (threads).
    threads: grain reader threads per process.
    prefetch: batches kept ready.
    cache_gib: decoded episodes kept in memory, at most.
    augment: random crop and colour jitter, the same for all views and frames of a sample.
    ranges: dataset name to a JSON file of the steps where its chunks may start
      (`choice.Choice`), '' for all.
    exclude: dataset name to a JSON file of the episodes and steps that are left out of it, in place
      of exclusions.json beside the data (`python -m data.exclude`).
    skip_unlabeled: datasets of which steps without an instruction are left out.
    failures: datasets whose failed episodes are wanted, too, where the embodiment's record can tell
      them.
    statistics: name of a robot to a statistics file that is used instead of its datasets' own, ''
      for none, 'base' for those of `init_from`.
    statistics_of: whose statistics normalize a robot that `init_from` knows: those of its 'data',
      or the 'base' one's, which the weights were trained with. Either way it is said how far the
      two are apart.
    features: whether training takes what `python -m data.encode` stored in place of pixels: 'auto'
      where there is any, 'require' stops where there is none, 'off' never.
  """

  root: str = '~/wam_jax_data'
  mixture: Mapping[str, DatasetConfig] = dataclasses.field(default_factory=dict)
  embodiments: tuple[str, ...] = ()
  rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  seed: int = 0
  workers: int = 0
  threads: int = 2
  prefetch: int = 4
  cache_gib: float = 2.0
  augment: bool = False
  ranges: Mapping[str, str] = dataclasses.field(default_factory=dict)
  exclude: Mapping[str, str] = dataclasses.field(default_factory=dict)
  skip_unlabeled: tuple[str, ...] = ()
  failures: tuple[str, ...] = ()
  statistics: Mapping[str, str] = dataclasses.field(default_factory=dict)
  statistics_of: Literal['data', 'base'] = 'data'
  features: Literal['auto', 'require', 'off'] = 'auto'

  def __post_init__(self):
    check_choices(self, 'data')
    # A misspelt name would be passed over, and training go on without what it was to say.
    checks = [
      ('ranges', self.ranges, self.mixture, 'mixture'),
      ('exclude', self.exclude, self.mixture, 'mixture'),
      ('skip_unlabeled', self.skip_unlabeled, self.mixture, 'mixture'),
      ('failures', self.failures, self.mixture, 'mixture'),
    ]
    if self.lists_names:
      checks.append(('statistics', self.statistics, self.embodiments, 'embodiments'))
    for key, named, known, where in checks:
      if unknown := sorted(set(named) - set(known)):
        raise ValueError(
          f'data.{key} names {unknown}, which data.{where} does not have; it has {sorted(known)}.'
        )

  def with_mixture(self, mixture: Mapping[str, DatasetConfig]) -> DataConfig:
    """The same with these datasets, and nothing said of others."""
    return dataclasses.replace(
      self,
      mixture=mixture,
      ranges={name: file for name, file in self.ranges.items() if name in mixture},
      exclude={name: file for name, file in self.exclude.items() if name in mixture},
      failures=tuple(name for name in self.failures if name in mixture),
      skip_unlabeled=tuple(name for name in self.skip_unlabeled if name in mixture),
    )

  @property
  def lists_names(self) -> bool:
    """Whether `embodiments` has names only: those of records in files are known when these are
    read (`data/roster.py`).
    """
    return bool(self.embodiments) and all(map(is_table_name, self.embodiments))
