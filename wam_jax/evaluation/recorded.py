"""Which recorded episodes a checkpoint is evaluated on, by which of its robots; and how they differ
from what it was trained on.

The checkpoint is the truth: its records and statistics are used, whatever lies beside the data,
where nothing is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wam_jax import config as cfg
from wam_jax.data import comparison
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import pipeline
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.data import samples
from wam_jax.data import scan
from wam_jax.data import sources
from wam_jax.data import statistics

NAME = 'given'  # What a dataset that is named by a flag is called in the mixture.


@dataclasses.dataclass(frozen=True)
class Choice:
  """What of recorded episodes is wanted; '' leaves it to the run's config.

  Attributes:
    dataset: a directory in place of the datasets of the config.
    embodiment: the robot: a name in the checkpoint, or whatever `embodiments.resolve` takes, whose
      name is in the checkpoint.
    split: in place of what each dataset holds out.
  """

  dataset: str = ''
  embodiment: str = ''
  split: str = ''


CONFIGURED = Choice()


@dataclasses.dataclass(frozen=True)
class Recorded:
  """Opened datasets, and which part of them.

  Attributes:
    data: the datasets.
    split: pipeline.HELD_OUT, or a split by name.
    notes: what a person should know before the figures, a line each.
    overlap: what of it was trained on, a sentence each.
  """

  data: pipeline.Data
  split: str
  notes: tuple[str, ...]
  overlap: tuple[str, ...]

  def describe(self) -> dict[str, Any]:
    """JSON-ready: what was evaluated on what."""
    found = {}
    for sampler in self.data.open_mixture(self.split):
      found[sampler.name] = {
        'path': str(sampler.episodes.path),
        'split': sampler.episodes.split,
        'robot': sampler.robot.record.name,
        'episodes': len(sampler.episodes),
      }
    return found


def open_recorded(
  config: cfg.TrainConfig,
  robots: Mapping[str, robot_lib.Robot],
  trained: Mapping[str, Any] | None,
  choice: Choice,
) -> Recorded:
  """The episodes of a choice, as the robots of a checkpoint see them.

  Args:
    robots: of the checkpoint, by name.
    trained: its `Trained.datasets`.
  Raises:
    ValueError: there is no dataset, robot or split of that name; or the data does not fit.
  """
  config = _take_datasets(config, choice)
  of_datasets, notes = _match_robots(config.data, robots, trained or {}, choice)
  if not of_datasets:
    raise ValueError(
      f'No dataset of the config has the robot {choice.embodiment!r}; name one with --dataset=DIR.'
    )
  mixture = {name: config.data.mixture[name] for name in of_datasets}
  config = dataclasses.replace(config, data=_keep(config.data, mixture))
  split = choice.split or pipeline.HELD_OUT
  if choice.dataset and not choice.split:
    split = _find_split(choice.dataset, config.evaluation.split)
  data = pipeline.Data.open_known(config, robots, of_datasets, [split])
  for sampler in data.open_mixture(split):
    notes += _compare(data, sampler, trained or {})
  return Recorded(data, split, tuple(notes), tuple(_tell_overlap(data, split, trained)))


def _take_datasets(config: cfg.TrainConfig, choice: Choice) -> cfg.TrainConfig:
  """The config with the dataset of the choice in place of its own."""
  if choice.dataset:
    named = cfg.DatasetConfig(path=choice.dataset, embodiment=choice.embodiment)
    return dataclasses.replace(config, data=_keep(config.data, {NAME: named}))
  if not config.data.mixture:
    raise ValueError(
      'This checkpoint was trained on no dataset, so it is to be named: --dataset=DIR, the '
      'directory with dataset_info.json, and --embodiment=NAME where it knows several robots.'
    )
  return config


def _keep(config: cfg.DataConfig, mixture: Mapping[str, cfg.DatasetConfig]) -> cfg.DataConfig:
  """The config with this mixture, whose robots and statistics are those of the checkpoint."""
  return dataclasses.replace(config.with_mixture(mixture), embodiments=(), statistics={})


def _match_robots(
  config: cfg.DataConfig,
  robots: Mapping[str, robot_lib.Robot],
  trained: Mapping[str, Any],
  choice: Choice,
) -> tuple[dict[str, str], list[str]]:
  """By dataset, the robot of the checkpoint that it is of; and lines on records that differ."""
  known = {name: robot for name, robot in robots.items() if robot.statistics}
  if not known:
    raise ValueError(
      f'This checkpoint has statistics of no robot (it names {sorted(robots)}), without which '
      'nothing can be predicted; train it on a dataset first.'
    )
  wanted = _name_robot(choice.embodiment, known) if choice.embodiment else ''
  found = {}
  notes = []
  for name, dataset in config.mixture.items():
    robot, own = _match_robot(dataset, trained.get(name, {}).get('robot', ''), known)
    if choice.dataset:
      robot = wanted or robot
    elif wanted and robot != wanted:
      continue
    found[name] = robot
    if own is not None and own.name == robot:
      notes += _tell_record(name, own, known[robot].record)
  return found, notes


def _name_robot(text: str, known: Mapping[str, robot_lib.Robot]) -> str:
  """The name of the robot that --embodiment means."""
  name = text if text in known else embodiments.resolve(text).name
  if name not in known:
    raise ValueError(
      f'--embodiment={text} is the robot {name!r}, which this checkpoint does not know; it has '
      f'{sorted(known)}.'
    )
  return name


def _match_robot(
  dataset: cfg.DatasetConfig, trained: str, known: Mapping[str, robot_lib.Robot]
) -> tuple[str, record_lib.Embodiment | None]:
  """(the checkpoint's robot of a dataset, the record that its config or directory has today)."""
  try:
    own = embodiments.resolve(dataset.embodiment, dataset.path)
  except ValueError:
    own = None  # Gone, or it never had one: the checkpoint's is the one that counts.
  for name in (trained, dataset.embodiment, own.name if own else ''):
    if name in known:
      return name, own
  if len(known) == 1:
    return next(iter(known)), own
  raise ValueError(
    f'Which robot recorded {dataset.path} is not known: say --embodiment=NAME, one of '
    f'{sorted(known)}.'
  )


def _tell_record(
  dataset: str, own: record_lib.Embodiment, known: record_lib.Embodiment
) -> Iterator[str]:
  differing = record_lib.list_differences(known, own)
  if differing:
    yield (
      f"{dataset}: the checkpoint's record of {known.name} is used; today's differs in "
      f'{", ".join(differing[:10])}'
    )


def _find_split(dataset: str, wanted: str) -> str:
  """The wanted split, or the only one that there is."""
  splits = sources.Dataset(dataset, keeps=False).splits
  return splits[0] if wanted not in splits and len(splits) == 1 else wanted


def _compare(
  data: pipeline.Data, sampler: samples.Sampler, trained: Mapping[str, Any]
) -> Iterator[str]:
  """Lines on how a dataset differs from what the checkpoint was trained on."""
  name = sampler.name
  of_training = trained.get(name)
  if of_training and not _is_as_trained(data, name, of_training['parts']):
    yield f'{name} is no longer what was trained on: its shards have changed'
  robot = sampler.robot
  own, tolerance = _find_own(data, sampler, trained)
  lines = comparison.describe(robot.record, robot.statistics, own, 'the checkpoint', tolerance)
  if len(lines) > 1:
    yield f'{robot.record.name} is normalized by the statistics of the checkpoint, as in training'
    yield from lines


def _is_as_trained(data: pipeline.Data, name: str, parts: Sequence[Any]) -> bool:
  try:
    episodes = data.get_episodes(name, pipeline.TRAINING)
  except ValueError:  # That split is gone.
    return False
  return [list(part) for part in episodes.parts] == [list(part) for part in parts]


def _find_own(
  data: pipeline.Data, sampler: samples.Sampler, trained: Mapping[str, Any]
) -> tuple[normalize.Statistics, float]:
  """(what a dataset's numbers are today, how far they may lie from those of training)."""
  name = sampler.name
  robot = sampler.robot.record.name
  # A robot of several datasets has statistics over all of them, which no single one has.
  if [each['robot'] for each in trained.values()].count(robot) == 1 and name in trained:
    try:
      episodes = data.get_episodes(name, pipeline.TRAINING)
      finding = statistics.Finding(episodes, sampler.robot.action_overlap)
      if finding.load():
        return finding.statistics, comparison.TOLERANCE
    except ValueError:
      pass  # No such split, or a file of something else: the episodes themselves are looked at.
  glance = statistics.Glance(sampler.episodes, sampler.robot.action_overlap)
  scan.complete([glance])
  return glance.statistics, comparison.TOLERANCE_OF_A_PART


def _tell_overlap(
  data: pipeline.Data, split: str, trained: Mapping[str, Any] | None
) -> Iterator[str]:
  if trained is None:
    yield 'which episodes these weights were trained on is not known'
  else:
    yield from data.list_overlaps(split, trained)
