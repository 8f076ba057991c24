"""The statistics of metadata.json, both ways. Source: DreamZero `DatasetStatisticalValues`,
`Normalizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.data import normalize
from wam_jax.interop.dreamzero import robots as robots_lib

# By our norm, the arrays that it reads; and those that a record of statistics can do without.
_READ = {'q99_reference': ('q01', 'q99'), 'min_max': ('min', 'max'), 'mean_std': ('mean', 'std')}
_OPTIONAL = ('mean', 'std', 'min', 'max')
# By our norm, what it floors: the ends at -1 and 1 half ranges from the middle, or (0) the width.
_FLOORED = {
  'q99': {'q01': -1, 'q99': 1},
  'min_max': {'min': -1, 'max': 1},
  'mean_std': {'std': 0},
}


def read(
  statistics: Mapping[str, Any], kind: str, keys: tuple[robots_lib.Key, ...]
) -> normalize.Quantiles:
  """The statistics of all keys, one after the other as in the vector."""
  held = statistics.get(kind, {})
  problems = []
  for key in keys:
    numbers = held.get(key.name, {})
    for name in normalize.ARRAYS:
      is_read = name in _READ.get(key.norm, ())
      if np.shape(numbers.get(name)) != (key.width,):
        problems.append(f'statistics.{kind}.{key.name}.{name}')
      elif is_read and not np.all(np.isfinite(np.float32(numbers[name]))):
        problems.append(f'statistics.{kind}.{key.name}.{name} (not finite)')
      elif name == 'std' and is_read and not np.all(numbers[name]):
        problems.append(f'statistics.{kind}.{key.name}.std (0, by which nothing is divided there)')
  if problems:
    raise ValueError(f'{", ".join(problems[:10])} must be there, with one number per dimension')

  arrays = {}
  for name in normalize.ARRAYS:
    pieces = [np.float32(held[key.name][name]) for key in keys]
    arrays[name] = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
  # What no norm reads may be unknown: earlier exports wrote NaN there.
  if not all(np.all(np.isfinite(arrays[name])) for name in _OPTIONAL):
    arrays |= dict.fromkeys(_OPTIONAL)
  norms: list[str] = []
  for key in keys:
    norms += [key.norm] * key.width
  return normalize.Quantiles(**arrays, norms=tuple(norms))


def write(
  quantiles: normalize.Quantiles, keys: tuple[robots_lib.Key, ...]
) -> dict[str, dict[str, list[float]]]:
  """The statistics by key; inverse of `read`."""
  arrays = _fill_arrays(quantiles)
  numbers = {}
  start = 0
  for key in keys:
    stop = start + key.width
    numbers[key.name] = {name: x[start:stop].tolist() for name, x in arrays.items()}
    start = stop
  return numbers


def _fill_arrays(quantiles: normalize.Quantiles) -> dict[str, np.ndarray]:
  """All six arrays, which the official class demands. They divide by the range as it is: where we
  floor one, its ends are widened. What nobody computed is made of the quantiles, `list_unknown`.
  """
  middle, half_range = quantiles.middle, quantiles.half_range
  made = {
    'q01': quantiles.q01,
    'q99': quantiles.q99,
    'mean': (quantiles.q01 + quantiles.q99) / 2,
    'std': (quantiles.q99 - quantiles.q01) / 2,
    'min': quantiles.q01,
    'max': quantiles.q99,
  }
  arrays = {}
  for name, instead in made.items():
    known = getattr(quantiles, name)
    arrays[name] = instead if known is None else known

  norms = np.asarray(quantiles.norms or ('q99',) * middle.size, object)
  for norm, ends in _FLOORED.items():
    is_floored = (norms == norm) & quantiles.is_flat
    for name, sign in ends.items():
      end = middle + sign * half_range if sign else half_range
      arrays[name] = np.where(is_floored, end, arrays[name])
  return arrays


def list_unknown(tag: str, statistics: normalize.Statistics) -> list[str]:
  """A line where a run of an early version knows quantiles alone."""
  parts = {'state': statistics.state, 'action': statistics.action}
  kinds = [kind for kind, quantiles in parts.items() if quantiles.mean is None]
  if not kinds:
    return []
  return [
    f'mean, std, min and max of {" and ".join(kinds)} of {tag} were never computed; the server '
    'reads quantiles alone, and of these they are made in metadata.json'
  ]
