"""One pass over the episodes of a dataset for all that is kept of them, and files that spare it.

What is derived from the episodes of a split is a `Finding`: its language spans and the names of its
episodes here, the numbers for normalization in statistics.py. Each lies in a file of its own beside
the dataset, with the fingerprint of the shards and what of the record it depends on, so that it is
never taken for that of other data. Those that are missing are found together: every record is read
once, ahead, by several threads.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from wam_jax import progress
from wam_jax.data import beside
from wam_jax.data import choice as choice_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import sources

# Records read at once: without their images, which a frame index allows, and with them.
_OUTLINES_AHEAD = 16
_WHOLE_EPISODES_AHEAD = 2


class Finding(Protocol):
  """What is derived from the episodes of a split, and kept.

  Attributes:
    episodes: those of the split.
  """

  episodes: sources.Episodes

  def load(self) -> bool:
    """Takes what is kept; whether there was something, and of this data."""

  def add(self, number: int, outline: episode_lib.Outline) -> None:
    """Takes note of an episode; of all episodes, in order."""

  def save(self) -> None:
    """Keeps what was found."""


def complete(
  findings: Sequence[Finding],
  is_first: bool = True,
  together: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
  """Loads the findings that are kept, and makes and keeps the others.

  Args:
    is_first: the first one of several processes that all call this reads the episodes, whose
      findings the others load. They read what they then do not see, as on disks of their own.
    together: makes a block that a process leaves when all have come to its end.
  Raises:
    ValueError: an episode cannot be read, or a file that is kept is damaged.
  """
  with together():
    missing = [finding for finding in findings if not finding.load()]
    if is_first:
      _make(missing)
  if not is_first:
    _make([finding for finding in missing if not finding.load()])


def load_spans(episodes: sources.Episodes) -> np.ndarray:
  """[spans, 4] int64, as `Spans` has them."""
  spans = Spans(episodes)
  complete([spans])
  return spans.spans_S4


def load_names(episodes: sources.Episodes) -> list[str]:
  """Names of all episodes by the record's `episode_key`.

  Raises:
    ValueError: an episode has none.
  """
  names = Names(episodes)
  complete([names])
  return names.names


class Spans:
  """The language spans of a split.

  Attributes:
    spans_S4: [spans, 4] int64 episode, start, stop, and 1 where it has no instruction, in order;
      None before it is loaded or saved. An episode without steps has none.
  """

  def __init__(self, episodes: sources.Episodes):
    self.episodes = episodes
    self.spans_S4: np.ndarray | None = None
    self._rows: list[tuple[int, int, int, int]] = []
    self._file = name_file('wam_spans', episodes) + '.npz'
    record = episodes.record
    # The first view, because its images are what the steps are counted by.
    counted = record.views[0].key
    self._key = f'{episodes.fingerprint} {episodes.split} {counted} {record.language} with blanks'

  def load(self) -> bool:
    content = beside.read(self.episodes.path, self._file)
    if content is None:
      return False
    with np.load(io.BytesIO(content)) as kept:
      if str(kept['key']) != self._key:
        return False
      self.spans_S4 = kept['spans']
    return True

  def add(self, number: int, outline: episode_lib.Outline) -> None:
    self._rows += list_spans(number, outline)

  def save(self) -> None:
    self.spans_S4 = np.asarray(self._rows, np.int64).reshape(-1, 4)
    buffer = io.BytesIO()
    np.savez(buffer, key=self._key, spans=self.spans_S4)
    self.episodes.keep(self._file, buffer.getvalue())


def list_spans(number: int, outline: episode_lib.Outline) -> list[tuple[int, int, int, int]]:
  """The rows of `Spans` of one episode."""
  return [(number, span.start, span.stop, int(span.is_blank)) for span in outline.spans]


def find_starts(
  selection: choice_lib.Selection, number: int, outline: episode_lib.Outline
) -> tuple[np.ndarray, str]:
  """([C] the steps of an episode where a chunk that counts starts, why there is none or '')."""
  spans_S4 = np.asarray(list_spans(number, outline), np.int64).reshape(-1, 4)
  stretches = selection.cut(spans_S4, lambda _: outline.name())
  starts_C = choice_lib.list_starts(outline.record, stretches)
  return starts_C, '' if len(starts_C) else next(iter(stretches.left_out), 'empty')


class Names:
  """The names of a split's episodes.

  Attributes:
    names: one per episode, in order.
  """

  def __init__(self, episodes: sources.Episodes):
    self.episodes = episodes
    self.names: list[str] = []
    self._file = name_file('wam_names', episodes) + '.json'
    self._key = f'{episodes.fingerprint} {episodes.split} {episodes.record.episode_key}'

  def load(self) -> bool:
    content = beside.read(self.episodes.path, self._file)
    kept = {} if content is None else json.loads(content)
    if kept.get('key') != self._key:
      return False
    self.names = kept['names']
    return True

  def add(self, number: int, outline: episode_lib.Outline) -> None:
    del number  # Episodes come in order.
    self.names.append(outline.name())

  def save(self) -> None:
    content = json.dumps({'key': self._key, 'names': self.names})
    self.episodes.keep(self._file, content.encode())


class _Pass:
  """Findings that are made of the same episodes, or of some of them."""

  def __init__(self, finding: Finding):
    self._episodes = finding.episodes
    self._numbers = {place: number for number, place in enumerate(finding.episodes.places)}
    # Each with the number that it knows an episode by, by the number that this pass does.
    self._parts = [(finding, {number: number for number in range(len(finding.episodes))})]

  def take(self, finding: Finding) -> bool:
    """Makes this finding too, if its episodes are among those of the pass and in their order."""
    episodes = finding.episodes
    one, other = ((each.path, each.exclude, each.record) for each in (episodes, self._episodes))
    if one != other:
      return False
    numbers = [self._numbers.get(place, -1) for place in episodes.places]
    # Each finding is told of its episodes in their order, which the pass must therefore keep.
    if -1 in numbers or any(a >= b for a, b in itertools.pairwise(numbers)):
      return False
    self._parts.append((finding, {number: own for own, number in enumerate(numbers)}))
    return True

  def run(self) -> None:
    episodes = self._episodes
    label = f'reading the episodes of {episodes.path} {episodes.split}'
    outlines = progress.track(
      read_ahead(episodes, range(len(episodes))), label, len(episodes), 'episodes'
    )
    for number, outline in enumerate(outlines):
      for finding, own_numbers in self._parts:
        if number in own_numbers:
          finding.add(own_numbers[number], outline)
    for finding, _ in self._parts:
      finding.save()


def _make(findings: Sequence[Finding]) -> None:
  """Makes and keeps findings in as few passes as their splits allow."""
  passes: list[_Pass] = []
  # A split comes before its slices; sorting is stable, so that messages keep their order.
  for finding in sorted(findings, key=lambda finding: -len(finding.episodes)):
    if not any(one.take(finding) for one in passes):
      passes.append(_Pass(finding))
  for one in passes:
    one.run()


def read_ahead(episodes: sources.Episodes, numbers: Sequence[int]) -> Iterator[episode_lib.Outline]:
  """The outlines of these episodes in order, several read at once."""
  ahead = _OUTLINES_AHEAD if episodes.has_index else _WHOLE_EPISODES_AHEAD
  with concurrent.futures.ThreadPoolExecutor(ahead) as pool:
    reading: collections.deque[concurrent.futures.Future] = collections.deque()
    for number in numbers:
      # Only so far ahead, or episodes would pile up in memory.
      reading.append(pool.submit(episodes.outline, number))
      if len(reading) > ahead:
        yield reading.popleft().result()
    while reading:
      yield reading.popleft().result()


def name_file(kind: str, episodes: sources.Episodes, choice: str = '') -> str:
  """What a derived file of this robot and split is called, without its suffix; another split has
  another name.

  Args:
    choice: what else it depends on, in any words; '' for nothing.
  """
  words = re.sub(r'[^A-Za-z0-9]+', '_', f'{kind}_{episodes.record.name}_{episodes.split}')
  # Slices differ in signs only, as train[:90%] and train[90%:].
  if choice or not episodes.split.isidentifier():
    words += '_' + hashlib.sha256(f'{episodes.split} {choice}'.encode()).hexdigest()[:8]
  return words
