"""A vector beside its own parts: the same numbers under two keys that the record takes both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from data.validate import findings as findings_lib
from data.validate import survey
from wam_jax.data import record as record_lib

STEPS = 20  # Rows with motion under which equality may be chance.


def check(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Catches a record that takes a vector and what it was joined from: of actions such numbers count
  twice in the loss, and a policy may contradict itself.
  """
  record = kept.record
  if not kept.series:
    return
  states = [series.state_TX for series in kept.series]
  actions = [series.action_TU for series in kept.series]
  for part, slices, rows in (('state', record.state, states), ('action', record.action, actions)):
    for a, b, columns in _find_twice(slices, rows):
      first, second = columns[0]
      # Two fingers that move alike are one column each, and may be meant.
      level = findings.fail if len(columns) > 1 else findings.warn
      level(
        'slice',
        f'{part} {b.key}[{second}:{second + len(columns)}] is '
        f'{a.key}[{first}:{first + len(columns)}] again, at all rows of {len(kept.series)} '
        f'episodes from {kept.series[0].where}; expected every number once: leave one of the '
        f'two out of {record.name!r}.',
      )


def _find_twice(
  slices: Sequence[record_lib.Slice], rows: Sequence[np.ndarray]
) -> Iterator[tuple[record_lib.Slice, record_lib.Slice, list[tuple[int, int]]]]:
  """(slice, another of another key, runs of equal columns of both)."""
  all_KN = np.concatenate(rows).astype(np.float64)
  moves_N = np.concatenate([_moves(each) for each in rows]).sum(0) >= STEPS
  stops = np.cumsum([s.width for s in slices])
  placed = [(s, int(stop) - s.width) for s, stop in zip(slices, stops)]
  for (a, i), (b, j) in itertools.combinations(placed, 2):
    if a.key == b.key:
      continue  # Columns of one key are told by their numbers.
    run: list[tuple[int, int]] = []
    pairs = itertools.product(range(a.width), range(b.width))
    for m, n in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair[0])):
      x_K, y_K = all_KN[:, i + m], all_KN[:, j + n]
      is_same = moves_N[i + m] and bool(
        (np.abs(x_K - y_K) <= survey.EQUAL * (1 + np.abs(x_K))).all()
      )
      place = (a.start + m, b.start + n)
      if run and (not is_same or place != (run[-1][0] + 1, run[-1][1] + 1)):
        yield a, b, run
        run = []
      if is_same:
        run = [*run, place]
    if run:
      yield a, b, run


def _moves(rows_TN: np.ndarray) -> np.ndarray:
  """[T - 1, N] bool, where a column changes."""
  step_TN = np.abs(np.diff(rows_TN.astype(np.float64), axis=0))
  return step_TN > 10 * survey.EQUAL * (1 + np.abs(rows_TN[:-1]))
