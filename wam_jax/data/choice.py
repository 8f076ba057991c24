"""Which steps of a split begin a chunk that is trained on: one answer for windows, statistics,
stored features, validation and evaluation.

Owns the choice and how it cuts language spans. What is wrong with a dataset for everybody is
`exclusions.py`'s, and is gone before a choice is made; what a chunk covers is `windows.py`'s.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from wam_jax import pointers
from wam_jax.data import exclusions
from wam_jax.data import record as record_lib

RANGES = 'step_ranges.json'  # What a file of `Choice.ranges` is called that lies beside a dataset.
# Reasons for which somebody may not want an episode, whatever it holds.
UNLABELED, FAILED, OUT_OF_RANGE = 'without an instruction', 'failed', 'not in the ranges'
UNWANTED = (UNLABELED, FAILED, OUT_OF_RANGE)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What somebody wants of a split; all of it by default, but for what its record marks as failed.

  Attributes:
    ranges: JSON file {name of an episode: [[first step, step after the last], ...]} of the steps
      where chunks may start, named as by the record's `episode_key`; episodes that it does not name
      are left out. '' for all steps. Such a file without DROID's idle steps is published with
      openpi (droid_sample_ranges_v1_0_1.json).
    failures: also take episodes whose name lacks the record's `success`.
    labeled: leave out the steps that have no instruction.
  """

  ranges: str = ''
  failures: bool = False
  labeled: bool = False

  def write_flags(self) -> str:
    """The flags of this choice in a command, each after a space."""
    words = [f'--ranges={shlex.quote(self.ranges)}'] if self.ranges else []
    words += ['--failures'] if self.failures else []
    words += ['--skip_unlabeled'] if self.labeled else []
    return ''.join(f' {word}' for word in words)

  @functools.cached_property
  def description(self) -> dict[str, Any]:
    """JSON-ready: the same for the same choice only, wherever its file lies.

    Raises:
      ValueError: there is no file of the ranges.
    """
    ranges = ''
    if self.ranges:
      ranges = hashlib.sha256(_find_ranges(self.ranges).read_bytes()).hexdigest()[:16]
    return {'ranges': ranges, 'failures': self.failures, 'labeled': self.labeled}


@dataclasses.dataclass(frozen=True)
class Stretches:
  """Where chunks may start.

  Attributes:
    rows_K4: [K, 4] int64 episode, first start of a chunk, step where chunks may no longer start,
      end of the language span.
    left_out: by reason, how many of the episodes that were asked about have none.
  """

  rows_K4: np.ndarray
  left_out: Mapping[str, int]


def needs_names(record: record_lib.Embodiment, choice: Choice, where: str) -> bool:
  """Whether it depends on the names of episodes which steps count; reads no ranges.

  Args:
    where: the dataset and its split, for messages.
  Raises:
    ValueError: it does, and the record does not say how episodes are named.
  """
  if choice.ranges and not record.episode_key:
    raise ValueError(
      f'{where}: {choice.ranges} keeps ranges of named episodes, but {record.name!r} has no '
      'episode_key that says how its episodes are named; add it, or leave the ranges out.'
    )
  return bool(choice.ranges) or _tells_failures(record, choice)


def _tells_failures(record: record_lib.Embodiment, choice: Choice) -> bool:
  return bool(record.success) and not choice.failures


class Selection:
  """Cuts language spans into the stretches where chunks may start.

  Args:
    record: of the robot.
    choice: what is wanted.
    where: the dataset and its split, for messages.
  Raises:
    ValueError: the ranges cannot be read, or as `needs_names`.

  Attributes:
    needs_names: whether `cut` asks for names of episodes.
  """

  def __init__(self, record: record_lib.Embodiment, choice: Choice, where: str):
    self._record = record
    self._choice = choice
    self._where = where
    self.needs_names = needs_names(record, choice, where)
    self._tells_failures = _tells_failures(record, choice)
    self._kept = _read_ranges(choice.ranges) if choice.ranges else None

  def check_names(self, names: Sequence[str]) -> None:
    """Raises ValueError if the choice fits none of these names, those of all episodes."""
    mark = self._record.success
    if self._tells_failures and not any(mark in name for name in names):
      raise ValueError(
        f'{self._where}: none of its {len(names)} episodes has {mark!r} in its name, which marks '
        f'success (as in {names[0]!r}); take failures too, or correct {self._record.name!r}.'
      )
    # A file of another version of the dataset may name its episodes otherwise.
    if self._kept is not None and not any(name in self._kept for name in names):
      raise ValueError(
        f'{self._choice.ranges} names none of the episodes of {self._where}: it has, for example, '
        f'{next(iter(self._kept), "nothing")!r}, the dataset {names[0]!r}. Use the file of this '
        'version.'
      )

  def cut(self, spans_S4: np.ndarray, name: Callable[[int], str]) -> Stretches:
    """The stretches of these language spans.

    Args:
      spans_S4: [spans, 4] episode, start, stop, and whether it has no instruction.
      name: gives an episode's; asked only where `needs_names`.
    """
    left_out: collections.Counter[str] = collections.Counter()

    def keep(reason: str, kept_K4: np.ndarray) -> np.ndarray:
      gone = len(np.unique(rows_K4[:, 0])) - len(np.unique(kept_K4[:, 0]))
      if gone:
        left_out[reason] += gone
      return kept_K4

    start_S, stop_S = spans_S4[:, 1], spans_S4[:, 2]
    rows_K4 = np.stack([spans_S4[:, 0], start_S, stop_S, stop_S], axis=1)
    if self._choice.labeled:
      rows_K4 = keep(UNLABELED, rows_K4[spans_S4[:, 3] == 0])
    if self._tells_failures:
      numbers, which_K = np.unique(rows_K4[:, 0], return_inverse=True)
      succeeded_N = np.asarray([self._record.success in name(n) for n in numbers.tolist()], bool)
      rows_K4 = keep(FAILED, rows_K4[succeeded_N[which_K]])
    if self._kept is not None:
      rows_K4 = keep(OUT_OF_RANGE, self._cut_to_ranges(rows_K4, name))

    # The last frame of a chunk, S steps after its start, is inside the span.
    S = self._record.steps_per_chunk
    end_K = np.minimum(rows_K4[:, 2], rows_K4[:, 3] - S)
    rows_K4 = keep('too short for a chunk', rows_K4[end_K > rows_K4[:, 1]])
    return Stretches(rows_K4, dict(left_out))

  def _cut_to_ranges(self, rows_K4: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    parts = []
    for episode, start, end, stop in rows_K4.tolist():
      for first, last in self._kept.get(name(episode), ()):
        # Chunks start inside the range; their steps may go on to the end of the span.
        part_start = max(start, first)
        part_end = min(end, last)
        if part_start < part_end:
          parts.append((episode, part_start, part_end, stop))
    return np.asarray(parts, np.int64).reshape(-1, 4)


def list_starts(record: record_lib.Embodiment, stretches: Stretches) -> np.ndarray:
  """[C] every step of one episode where a chunk that counts starts, in order."""
  S = record.steps_per_chunk
  starts = [
    np.arange(start, min(end, stop - S)) for _, start, end, stop in stretches.rows_K4.tolist()
  ]
  return np.unique(np.concatenate([np.zeros(0, np.int64), *starts]))


def list_runs(is_one_T: np.ndarray) -> list[tuple[int, int]]:
  """(first step, step after the last) of each run of True."""
  # With a False on either side every run has a first edge and, one after its last step, a second.
  edges = np.flatnonzero(np.diff(is_one_T.astype(np.int8), prepend=0, append=0))
  return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _find_ranges(file: str) -> epath.Path:
  path = epath.Path(file).expanduser()
  if not path.exists():
    raise ValueError(f'There is no file of step ranges {path}; correct the path, or leave it out.')
  pointers.check(path)
  return path


def _read_ranges(file: str) -> dict[str, list[list[int]]]:
  path = _find_ranges(file)
  try:
    kept = json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}); download it again.') from e
  if isinstance(kept, dict):
    wrong = [
      f'{name!r}: {str(pairs)[:80]}' for name, pairs in kept.items() if not _are_ranges(pairs)
    ]
  else:
    wrong = [f'{type(kept).__name__} at the top']
  if wrong:
    raise ValueError(
      f'{path} must map names of episodes to lists of [first step, step after the last]; it has '
      f'{"; ".join(wrong[:10])}.'
    )
  return kept


def _are_ranges(pairs: Any) -> bool:
  return isinstance(pairs, list) and all(map(exclusions.is_range, pairs))
