"""What a validation found: failures, warnings and notes, by kind."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator

MOST = 10  # Findings of one kind that are spelled out; the rest is counted.
LEVELS = ('fail', 'warn', 'note')

# Kind of finding to what it is about, in the order of the report.
KINDS = {
  'record': 'records that cannot be read, or whose arrays and images differ in number',
  'image': 'images that are damaged or do not decode',
  'language': 'steps without an instruction',
  'slice': 'slices that overlap, or that fit another part of the state better',
  'unit': 'values that do not fit the unit of their slice',
  'constant': 'dimensions that hardly vary',
  'exploding': 'values far outside the others',
  'copy': 'actions that equal the state',
  'rate': 'timestamps, frames or rows that contradict control_hz',
  'view': 'cameras that are blank, frozen, twice the same or swapped',
  'alignment': 'frames that show another step than the rows beside them',
  'anchors': 'episodes too short for one chunk, or none that training takes',
  'statistics': 'a statistics file that is not of this dataset and embodiment',
}


@dataclasses.dataclass
class Findings:
  """Collects findings; at most `MOST` of a level and kind are kept, the others counted.

  Attributes:
    accepted: the kinds whose failures count as warnings.
  """

  accepted: frozenset[str] = frozenset()
  _kept: dict[tuple[str, str], list[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  _count: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def __post_init__(self):
    unknown = set(self.accepted) - set(KINDS)
    if unknown:
      raise ValueError(
        f'There are no kinds of failure {sorted(unknown)} to accept; choose from {list(KINDS)}.'
      )

  def fail(self, kind: str, message: str) -> None:
    """The dataset must not be used like this: says what, where, what was expected and how to fix
    it.
    """
    self._add('warn' if kind in self.accepted else 'fail', kind, message)

  def warn(self, kind: str, message: str) -> None:
    """Looks wrong, but may be meant."""
    self._add('warn', kind, message)

  def note(self, kind: str, message: str) -> None:
    """Good to know."""
    self._add('note', kind, message)

  def _add(self, level: str, kind: str, message: str) -> None:
    self._count[level, kind] += 1
    if len(self._kept[level, kind]) < MOST:
      self._kept[level, kind].append(message)

  def count(self, level: str) -> int:
    """The number of findings of a level: 'fail', 'warn' or 'note'."""
    return sum(n for (counted, _), n in self._count.items() if counted == level)

  def messages(self, level: str, kinds: Iterable[str] = KINDS) -> Iterator[tuple[str, str]]:
    """(kind, message) of one level, in the order of `KINDS`."""
    for kind in kinds:
      yield from ((kind, message) for message in self._kept.get((level, kind), ()))
      more = self._count[level, kind] - MOST
      if more > 0:
        yield kind, f'... and {more} more like these'

  def lines(self) -> Iterator[str]:
    """One line each, the worst first, and a last line that counts them."""
    for level in LEVELS:
      yield from (f'{level} {kind}: {message}' for kind, message in self.messages(level))
    parts = []
    for level, word in zip(LEVELS, ('failure', 'warning', 'note')):
      count = self.count(level)
      parts.append(f'{count} {word}' if count == 1 else f'{count} {word}s')
    summary = ', '.join(parts)
    kinds = ','.join(dict.fromkeys(kind for kind, _ in self.messages('fail')))
    if kinds:
      yield f'FAILED: {summary}; if that is meant: --accept={kinds}'
    else:
      yield f'passed: {summary}'

  def to_dict(self) -> dict[str, list[dict[str, str]]]:
    """The findings by level, JSON-ready."""
    return {
      key: [{'kind': kind, 'message': message} for kind, message in self.messages(level)]
      for level, key in zip(LEVELS, ('failures', 'warnings', 'notes'))
    }
