"""Which episodes of a LeRobot directory are taken: the flag --episodes, and lists of numbers in
messages, in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

PRESENT = 'present'  # Those all of whose files are there.
_RUNS = 10  # Of numbers that a message lists.


def split(text: str) -> list[str]:
  """The words of the flag."""
  return [word.strip() for word in text.split(',') if word.strip()]


def choose(text: str, numbers: Collection[int]) -> list[int]:
  """The numbers that `text` takes, without regard to `PRESENT`.

  Args:
    text: numbers and ranges START:STOP, comma-separated, a minus before those to leave out; '' for
      all.
    numbers: of the episodes there are.
  Raises:
    ValueError: it is written otherwise, or names no episode.
  """
  taken: set[int] = set()
  left: set[int] = set()
  words = [word for word in split(text) if word != PRESENT]
  for word in words:
    match = re.fullmatch(r'(-?)(\d+)(?::(\d+))?', word)
    if not match:
      raise ValueError(
        f'--episodes={text} has {word!r}; expected numbers and ranges START:STOP, with a minus '
        f'to leave them out, and {PRESENT!r} for episodes whose files are there, as 0:100,-17.'
      )
    start = int(match[2])
    wanted = range(start, int(match[3]) if match[3] else start + 1)
    named = [number for number in numbers if number in wanted]
    if not named:
      raise ValueError(
        f'--episodes={text} names {word!r}; the dataset has the episodes {write(numbers)}.'
      )
    (left if match[1] else taken).update(named)
  if not any(not word.startswith('-') for word in words):
    taken = set(numbers)
  return sorted(taken - left)


def write(numbers: Iterable[int], most: int = _RUNS) -> str:
  """Numbers as the flag takes them, '0:100,103'; at most so many runs."""
  runs: list[list[int]] = []
  for number in sorted(set(numbers)):
    if runs and runs[-1][1] == number:
      runs[-1][1] += 1
    else:
      runs.append([number, number + 1])
  words = [f'{start}:{stop}' if stop > start + 1 else str(start) for start, stop in runs]
  more = ',...' if len(words) > most else ''
  return ','.join(words[:most]) + more


def write_without(numbers: Iterable[int]) -> str:
  """The flag that leaves these out."""
  words = write(numbers, most=10**9).split(',')
  return '--episodes=' + ','.join(f'-{word}' for word in words)
