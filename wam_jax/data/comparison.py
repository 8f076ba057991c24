"""How far apart two statistics of one robot are, in the model's own units.

A policy sees everything through the statistics that it was trained with: what these map to -1 and 1
is where other data should have their quantiles, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wam_jax.data import normalize
from wam_jax.data import record as record_lib

# Of the model's range, which is 2 wide: less is noise of quantiles of the same data, and of a part
# of it.
TOLERANCE = 0.01
TOLERANCE_OF_A_PART = 0.25
_SHOWN = 10


def describe(
  record: record_lib.Embodiment,
  reference: normalize.Statistics,
  other: normalize.Statistics,
  where: str,
  tolerance: float = TOLERANCE,
) -> list[str]:
  """Lines that say which dimensions of `other` lie otherwise than in `reference`, that of `where`;
  the farthest first.
  """
  found = []
  count = 0
  for part in ('state', 'action'):
    pair = (getattr(reference, part), getattr(other, part))
    names = record_lib.names(getattr(record, part))
    count += len(names)
    found += [(gap, f'{part} {line}') for gap, line in _compare(names, *pair, tolerance)]
  if not found:
    return [f'  its data lie where those of {where} do, in all {count} dimensions']
  found.sort(key=lambda pair: -pair[0])
  lines = [
    f'  {len(found)} of its {count} dimensions lie otherwise than in {where}; 1 and 99 % of the '
    'data, and what the statistics there make of them (-1 and 1 if alike):'
  ]
  lines += [f'    {line}' for _, line in found[:_SHOWN]]
  if len(found) > _SHOWN:
    lines.append(f'    ... and {len(found) - _SHOWN} more')
  return lines


def _compare(
  names: list[str],
  reference: normalize.Quantiles,
  other: normalize.Quantiles,
  tolerance: float,
) -> Iterator[tuple[float, str]]:
  """(how far, in words) of each dimension that lies otherwise."""
  half_range = np.where(reference.half_range == 0, 1, reference.half_range)
  low = (other.q01 - reference.middle) / half_range
  high = (other.q99 - reference.middle) / half_range
  own_low = (reference.q01 - reference.middle) / half_range
  own_high = (reference.q99 - reference.middle) / half_range
  gaps = np.maximum(np.abs(low - own_low), np.abs(high - own_high))
  for i in np.flatnonzero(gaps > tolerance):
    stored = f'{other.q01[i]:.4g} to {other.q99[i]:.4g}'
    yield float(gaps[i]), f'{names[i]}: {stored} becomes {low[i]:.2f} to {high[i]:.2f}'


def check_same_numbers(base: record_lib.Embodiment, own: record_lib.Embodiment, where: str) -> None:
  """Raises ValueError unless a dimension of one record means the same number in the other."""
  problems = []
  for part in ('state', 'action'):
    mine, others = _list_meanings(getattr(own, part)), _list_meanings(getattr(base, part))
    if len(mine) != len(others):
      problems.append(f'{part} has {len(mine)} dimensions, there {len(others)}')
      continue
    names = record_lib.names(getattr(own, part))
    problems += [
      f'{part} {name} is {a}, there {b}' for name, a, b in zip(names, mine, others) if a != b
    ]
  if problems:
    raise ValueError(
      f'The statistics of {own.name!r} in {where} are of other numbers: '
      f'{"; ".join(problems[:10])}. Use the same record, as by '
      f'config.data.embodiments=() and config.data.mixture.NAME.embodiment={where}, or '
      "config.data.statistics_of='data'."
    )


def check_reach(record: record_lib.Embodiment, overlap: int, of_base: int, where: str) -> None:
  """Raises ValueError if relative actions go on further from their chunk's start than in the base.

  Args:
    overlap, of_base: `ModelConfig.action_overlap` of this training and of the base's.
  """
  if overlap > of_base and any(s.relative_to for s in record.action):
    raise ValueError(
      f'The statistics of {record.name!r} in {where} are of chunks with model.action_overlap='
      f'{of_base}; with {overlap} its relative actions go further, and would be cut. Set '
      "config.data.statistics_of='data'."
    )


def _list_meanings(slices: tuple[record_lib.Slice, ...]) -> list[str]:
  """What each dimension is, in words: all that its statistics depend on but the array's name."""
  meanings = []
  for s in slices:
    words = ['relative' if s.relative_to else 'absolute', s.norm]
    if (s.offset, s.scale, s.clip) != (0, 1, ()):
      words.append(f'(x - {s.offset:g}) / {s.scale:g} within {s.clip}')
    if s.wrap and s.relative_to:
      words.append(f'the short way around {s.wrap}')
    meanings += [' '.join(words)] * s.width
  return meanings
