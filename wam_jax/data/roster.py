"""The robots of a config: which record each dataset has, and which row of the model each robot has.

A robot is its record's name, wherever the record comes from. Owns no statistics and reads no
episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib

BASE = 'base'  # In place of a statistics file: those of the weights that a run starts from.


@dataclasses.dataclass(frozen=True)
class Roster:
  """Records by their two uses.

  Attributes:
    datasets: by dataset of the mixture, the record of its robot.
    robots: by name, in the order of `config.data.embodiments`, or of the datasets where that is
      empty (by name, as a config file gives them).
  """

  datasets: Mapping[str, record_lib.Embodiment]
  robots: Mapping[str, record_lib.Embodiment]


@dataclasses.dataclass(frozen=True)
class Known:
  """Robots that weights were trained with, and keep.

  Attributes:
    robots: by name.
    where: the run or import that has them, for messages.
    is_own: whether that is the very run, which goes on as it was.
    episodes: by dataset, what its episodes were, as `pipeline.Data.metadata` says it; {} where that
      is not known.
  """

  robots: Mapping[str, robot_lib.Robot]
  where: str
  is_own: bool = False
  episodes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def has_other_exclusions(self, dataset: str, now: Mapping[str, str]) -> bool:
    """Whether the run goes on with a dataset of which only what is left out has changed."""
    then = self.episodes.get(dataset)
    return bool(
      self.is_own
      and then
      and then['dataset'] == now['dataset']
      and then['excluded'] != now['excluded']
    )


def read(config: cfg.DataConfig) -> Roster:
  """The records that a config names.

  Raises:
    ValueError: one cannot be read, two of one name differ, or a dataset has a robot that
      `config.embodiments` does not list.
  """
  datasets = {}
  for name, dataset in config.mixture.items():
    try:
      datasets[name] = embodiments.resolve(dataset.embodiment, dataset.path)
    except ValueError as e:
      raise ValueError(f'config.data.mixture.{name}.embodiment: {e}') from e
  listed = [embodiments.resolve(text) for text in config.embodiments]

  robots: dict[str, record_lib.Embodiment] = {}
  for record in listed or datasets.values():
    _check_same(robots.setdefault(record.name, record), record)
  for name, record in datasets.items():
    if record.name not in robots:
      raise ValueError(
        f'config.data.mixture.{name} has the robot {record.name!r}, which is not in '
        f'config.data.embodiments={config.embodiments}; add it there, or leave that empty for the '
        'robots of the mixture.'
      )
    _check_same(robots[record.name], record)
  if unknown := sorted(set(config.statistics) - set(robots)):
    raise ValueError(
      f'config.data.statistics names {unknown}; the robots of this config are {sorted(robots)}.'
    )
  return Roster(datasets, robots)


def are_readable(config: cfg.DataConfig) -> bool:
  """Whether no record waits for a dataset that has yet to be made."""
  return all(dataset.embodiment for dataset in config.mixture.values())


def assign_rows(
  config: cfg.DataConfig, names: Sequence[str], known: Known | None, count: int
) -> dict[str, int]:
  """The row of the model's action modules of each robot: the one that `config.rows` gives, of a
  known one its own, of a new one the first that no other robot has.

  Args:
    names: of the robots, in order.
    known: of the weights that the run starts from; None for new ones, with rows in order.
    count: the rows of the model.
  Raises:
    ValueError: there are too few, or `config.rows` names a robot that there is not.
  """
  taken = {name: robot.id for name, robot in known.robots.items()} if known else {}
  if unknown := sorted(set(config.rows) - set(names)):
    raise ValueError(f'config.data.rows names {unknown}; the robots are {list(names)}.')
  fixed = {**taken, **config.rows}
  free = (row for row in range(len(fixed) + len(names)) if row not in fixed.values())
  rows = {name: fixed[name] if name in fixed else next(free) for name in names}
  if min(rows.values(), default=0) < 0:
    raise ValueError(f'config.data.rows={dict(config.rows)}: rows count from 0.')
  needed = max(rows.values(), default=0) + 1
  if needed > count:
    message = f'config.model.num_embodiments={count} has no row for each of {list(names)}'
    if taken:
      message += f'; {known.where} has rows of {taken}'
    message += f'. Set it to {needed}'
    if new := [name for name in names if name not in fixed]:
      message += f', or let {new[0]!r} go on from a row that is there: data.rows={{{new[0]!r}: 0}}'
    raise ValueError(f'{message}.')
  return rows


def describe_rows(rows: Mapping[str, int], known: Known) -> str:
  """Which robot has which row, in words."""
  parts = []
  for name, row in rows.items():
    before = [other for other, robot in known.robots.items() if robot.id == row]
    if name in before:
      parts.append(f'{name} keeps row {row}')
    elif before:
      parts.append(f'{name} goes on from row {row} of {", ".join(before)}')
    else:
      parts.append(f'{name} gets row {row}, new')
  return f'rows of the action modules, of {known.where}: {"; ".join(parts)}'


def _check_same(one: record_lib.Embodiment, other: record_lib.Embodiment) -> None:
  differing = record_lib.list_differences(one, other)
  if differing:
    raise ValueError(
      f'Two records are called {one.name!r}, and differ in {", ".join(differing[:10])}; a robot '
      'has one record. Rename one of them, or name the same file for both.'
    )
