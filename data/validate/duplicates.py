"""Episodes that are in two splits, whole or in part: what is held out was then trained on.

An episode is told by its rows of numbers on a coarse grid, whatever its pictures and its place, so
that one that was encoded again, cut at an end or shifted is still the same. Of each the few rows
are kept whose hashes are lowest: those of two episodes with common rows are common ones. Of videos
without numbers the encoded pictures stand for rows, which finds copies only.
"""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from data.validate import findings as findings_lib
from wam_jax import progress
from wam_jax.data import sources

CELLS = 32  # Of the grid, over a column's range: rounding moves few numbers to another cell.
RANGED = 16  # Episodes that the grid is made of.
KEPT = 32  # Hashes of an episode.
SAME_SHARE = 0.6  # Of the rows of the shorter one: neighbouring cells take some of them.
LEAST_ROWS = 5  # Different rows: fewer may be those of two robots at rest.
MOST = 2000  # Episodes of another split that are looked at.


@dataclasses.dataclass(frozen=True)
class Grid:
  """Rows of numbers to hashes.

  Attributes:
    step_N: size of a cell of each column of state and action; infinite where it does not move.
  """

  step_N: np.ndarray

  @classmethod
  def of(cls, episodes: sources.Episodes) -> Grid:
    """One that fits these episodes."""
    low_N, high_N = np.inf, -np.inf
    count = len(episodes)
    for i in np.unique(np.linspace(0, count - 1, min(count, RANGED)).astype(int)).tolist():
      try:
        rows_TN = np.concatenate(episodes.numeric(i), axis=1)
      except ValueError:
        continue  # A finding of `survey.read`.
      if len(rows_TN):
        low_N = np.minimum(low_N, rows_TN.min(0))
        high_N = np.maximum(high_N, rows_TN.max(0))
    width = episodes.record.proprio_dim + episodes.record.action_dim
    range_N = np.broadcast_to(np.maximum(high_N - low_N, 0), width).astype(np.float64)
    return cls(np.where(range_N > 0, range_N / CELLS, np.inf))

  def sketch(self, state_TX: np.ndarray, action_TU: np.ndarray) -> np.ndarray:
    """The lowest hashes of an episode's different rows, sorted."""
    rows_TN = np.concatenate([state_TX, action_TU], axis=1).astype(np.float64)
    cell_TN = np.rint(rows_TN / self.step_N).astype(np.int64)
    rng = np.random.default_rng(0)
    factor_N = rng.integers(2**62, size=self.step_N.size) | 1
    return lowest(_scatter((cell_TN * factor_N).sum(1)))


def sketch_pictures(images: Sequence[bytes]) -> np.ndarray:
  """The same of an episode without numbers."""
  return lowest(_scatter(np.asarray([zlib.crc32(image) for image in images], np.int64)))


def lowest(hash_T: np.ndarray) -> np.ndarray:
  return np.unique(hash_T)[:KEPT]


def _scatter(number_T: np.ndarray) -> np.ndarray:
  """[T] uint64, spread evenly. Source: the finalizer of SplitMix64."""
  x_T = number_T.astype(np.uint64)
  x_T = (x_T ^ (x_T >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x_T = (x_T ^ (x_T >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x_T ^ (x_T >> np.uint64(31))


def check(
  episodes: sources.Episodes,
  grid: Grid,
  sketches: Mapping[int, np.ndarray],
  findings: findings_lib.Findings,
) -> None:
  """Compares every other split of the dataset with this one, and this one with itself.

  Args:
    sketches: by episode of this split.
  """
  known: dict[int, list[int]] = collections.defaultdict(list)
  for i, sketch in sketches.items():
    for one in sketch.tolist():
      known[one].append(i)
  dataset = sources.Dataset(episodes.path, keeps=False, exclude=episodes.exclude)
  own = episodes.split.split('[')[0].split('+')
  for split in (name for name in dataset.splits if name not in own):
    try:
      others = dataset.open(split, episodes.record)
    except ValueError as e:
      findings.note('split', f'{split!r} was not compared with {episodes.split!r}: {e}')
      continue
    _compare(episodes, sketches, known, others, grid, findings)


def _compare(
  episodes: sources.Episodes,
  sketches: Mapping[int, np.ndarray],
  known: Mapping[int, Sequence[int]],
  others: sources.Episodes,
  grid: Grid,
  findings: findings_lib.Findings,
) -> None:
  count = len(others)
  chosen = np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int)).tolist()
  twins = []
  label = f'comparing with {others.split}'
  for j in progress.track(chosen, label, len(chosen), 'episodes'):
    try:
      sketch = sketch_episode(others, j, grid)
    except ValueError:
      continue  # It is that split's validation that says so.
    found = _find_twin(sketch, sketches, known)
    if found:
      twins.append((j, *found))
  if twins:
    j, i, share = max(twins, key=lambda twin: twin[2])
    findings.warn(
      'split',
      f'{len(twins)} of the {len(chosen)} episodes of split {others.split!r} are in '
      f'{episodes.split!r}, too: {others.where(j)} has {share:.0%} of its rows in common with '
      f'{episodes.where(i)}; expected other episodes: what is measured on them was trained on. '
      'Hold others out.',
    )


def sketch_episode(episodes: sources.Episodes, i: int, grid: Grid) -> np.ndarray:
  """The sketch of an episode.

  Raises:
    ValueError: it cannot be read.
  """
  if grid.step_N.size:
    return grid.sketch(*episodes.numeric(i))
  return sketch_pictures(next(iter(episodes[i].encoded.values())))


def _find_twin(
  sketch: np.ndarray, sketches: Mapping[int, np.ndarray], known: Mapping[int, Sequence[int]]
) -> tuple[int, float] | None:
  """(episode, share of common rows) of the one that is most like this; None where none is."""
  votes = collections.Counter(i for one in sketch.tolist() for i in known.get(one, ()))
  best = None
  for i, _ in votes.most_common(3):
    share = _measure_share(sketch, sketches[i])
    if share >= SAME_SHARE and (best is None or share > best[1]):
      best = (i, share)
  return best


def _measure_share(one: np.ndarray, other: np.ndarray) -> float:
  """The share of rows in common, of the episode with fewer; 0 where too few tell."""
  # Below the lower of the two ends both sketches hold every hash that there is.
  end = min(sketch[-1] if len(sketch) == KEPT else np.uint64(2**64 - 1) for sketch in (one, other))
  one, other = one[one <= end], other[other <= end]
  fewer = min(len(one), len(other))
  return len(np.intersect1d(one, other)) / fewer if fewer >= LEAST_ROWS else 0.0
