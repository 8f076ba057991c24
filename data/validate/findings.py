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
  'language': 'steps without an instruction, or with one that is no words',
  'prompt': 'prompts that the text encoder of the config cuts',
  'slice': 'slices that overlap, take numbers twice, or fit another part of the state better',
  'unit': 'values that do not fit the unit of their slice',
  'constant': 'dimensions that hardly vary',
  'exploding': 'values far outside the others',
  'copy': 'actions that equal the state',
  'angle': 'angles that jump by a whole turn, and quaternions that change their sign',
  'wrap': 'relative angles that go around, and do not say so',
  'lag': 'actions that go with the motion of another row than their own',
  'sense': 'switches and targets that go the other way than their state',
  'rest': 'chunks in which nothing moves',
  'rate': 'timestamps, frames or rows that contradict control_hz',
  'view': 'cameras that are blank, frozen, twice the same or swapped, and stray pictures',
  'alignment': 'frames that show another step than the rows beside them',
  'anchors': 'episodes too short for one chunk, or none that training takes',
  'split': 'episodes that another split has, too',
  'file': 'a statistics file that is damaged or of another robot',
  'access': 'episodes that are too long to be read without an index of their images',
  'statistics': 'a statistics file whose numbers are not those of the data',
}


# Kinds that stop training, whatever anybody accepts.
FIRM = ('record', 'image', 'wrap', 'anchors', 'file', 'access')
ACCEPTABLE = tuple(kind for kind in KINDS if kind not in FIRM)


@dataclasses.dataclass
class Findings:
  """Collects findings; at most `MOST` of a level and kind are kept, the others counted.

  Attributes:
    accepted: the kinds whose failures count as warnings.
    damaged: by number of an episode that cannot be read whole, the first thing that is wrong.
  """

  accepted: frozenset[str] = frozenset()
  damaged: dict[int, str] = dataclasses.field(default_factory=dict)
  _kept: dict[tuple[str, str], list[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  _count: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def __post_init__(self):
    unknown = set(self.accepted) - set(KINDS)
    if unknown:
      raise ValueError(
        f'There are no kinds of failure {sorted(unknown)} to accept; choose from '
        f'{list(ACCEPTABLE)}.'
      )
    if firm := [kind for kind in FIRM if kind in self.accepted]:
      raise ValueError(
        f'{firm} cannot be accepted: training stops at such failures. Mend them, or leave the '
        'episodes out with --write_exclusions.'
      )

  def fail(self, kind: str, message: str, damaged: int | None = None) -> None:
    """The dataset must not be used like this: says what, where, what was expected and how to fix
    it.

    Args:
      damaged: the episode that must not be read because of it.
    """
    if damaged is not None:
      self.damaged.setdefault(damaged, message)
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
    kinds = list(dict.fromkeys(kind for kind, _ in self.messages('fail')))
    firm = [kind for kind in kinds if kind in FIRM]
    meant = ','.join(kind for kind in kinds if kind not in FIRM)
    if not kinds:
      yield f'passed: {summary}'
      return
    stops = f'; training would stop at {", ".join(firm)}' if firm else ''
    if 'record' in firm or 'image' in firm:
      stops += ' (--write_exclusions leaves such episodes out)'
    accept = f'; if that is meant: --accept={meant}' if meant else ''
    yield f'FAILED: {summary}{stops}{accept}'

  def to_dict(self) -> dict[str, list[dict[str, str]]]:
    """The findings by level, JSON-ready."""
    return {
      key: [{'kind': kind, 'message': message} for kind, message in self.messages(level)]
      for level, key in zip(LEVELS, ('failures', 'warnings', 'notes'))
    }
