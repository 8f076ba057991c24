"""Whether two choices of episodes share some: what is trained on, and what is held out.

An episode is told by the fingerprint of its shard and its number there, so that a copy of a dataset
elsewhere, or under another name, is the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Part = Sequence[Any]  # Fingerprint of a shard, first record, number of records.


def count(parts: Iterable[Part], others: Iterable[Part]) -> int:
  """Episodes of `parts` that are among `others`, which are told apart as in
  `sources.Episodes.parts`.
  """
  taken: dict[str, set[int]] = {}
  for fingerprint, skip, take in others:
    taken.setdefault(fingerprint, set()).update(range(skip, skip + take))
  return sum(
    len(taken.get(fingerprint, set()).intersection(range(skip, skip + take)))
    for fingerprint, skip, take in parts
  )


def describe(where: str, parts: Sequence[Part], trained: Mapping[str, Any]) -> str:
  """A sentence on how many of these episodes are trained on; '' if none is.

  Args:
    where: what they are called.
    trained: as `pipeline.Data.describe_datasets` gives it.
  """
  of_training = [part for dataset in trained.values() for part in dataset['parts']]
  shared = count(parts, of_training)
  total = sum(take for _, _, take in parts)
  if not shared:
    return ''
  some = 'all' if shared == total else f'{shared}'
  return f'{some} of the {total} episodes of {where} are trained on: that part is not held out'
