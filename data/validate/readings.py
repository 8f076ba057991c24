"""Readings of the state that failed: a joint that is elsewhere for one row, and one that stays
while its command moves.

A bus that loses a message gives 0 or the last value (robotology/mesh-support#624,
Synria-Robotics/lerobot#9); within the range of the joint no limit tells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.validate import findings as findings_lib
from data.validate import motion
from data.validate import survey
from wam_jax.data import record as record_lib

USUAL = 0.95  # Quantile of the steps that a joint makes.
# Times the steps of so many rows before and after, and of the range, that is no motion.
RATIO, NEAR, LEAST = 3.0, 3, 0.1
STUCK_S, STUCK_ROWS = 1.0, 10  # From which a joint that stays exactly is asked for its command.
MOVED = 0.2  # Share of the joint's range that the command moves meanwhile.
BEGIN_S, BEGIN_ROWS = 0.3, 2  # In which a joint that works begins to follow.


class Place(NamedTuple):
  """Rows of an episode that is kept whole."""

  series: int
  row: int


def check(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Makes all checks of this file."""
  record = kept.record
  if not (kept.series and record.state):
    return
  units = [s.unit for s in record.state for _ in range(s.width)]
  for x, name in enumerate(record_lib.names(record.state)):
    states = [series.state_TX[:, x].astype(np.float64) for series in kept.series]
    if units[x].endswith('/s') or motion.is_switch(states, motion.STATE_SHARE):
      continue
    does = 'leaves for one row and comes back'
    _report(kept, 'exploding', f'{name} {does}', _find_ticks(kept, x), findings)
  _check_stuck(kept, findings)


def _find_ticks(kept: survey.Survey, x: int) -> list[Place]:
  """Rows whose joint is far from those before and after them, which go on as if it were not."""
  steps = [np.diff(series.state_TX[:, x].astype(np.float64)) for series in kept.series]
  usual = np.quantile(np.abs(np.concatenate(steps)), USUAL)
  least = max(usual, LEAST * 2 * float(kept.state.summary.half_range[x]))
  found = []
  for e, step_T in enumerate(steps):
    size_T = np.abs(step_T)
    # Of the rows that a joint leaves for, and comes back from, few are left to look around.
    for t in np.flatnonzero(np.minimum(size_T[:-1], size_T[1:]) > least) + 1:
      there, back = step_T[t - 1], step_T[t]
      around_T = np.append(size_T[max(0, t - 1 - NEAR) : t - 1], size_T[t + 1 : t + 1 + NEAR])
      if len(around_T) < 2 * NEAR:  # At an end, chance would be taken for a fault.
        continue
      limit = max(RATIO * around_T.max(), least)
      if min(abs(there), abs(back)) > limit > abs(there + back):
        found.append(Place(e, int(t)))
  return found


def _check_stuck(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  record = kept.record
  rows = max(STUCK_ROWS, round(STUCK_S * record.control_hz))
  late = max(BEGIN_ROWS, round(BEGIN_S * record.control_hz))
  names = record_lib.names(record.state)
  for u in range(record.action_dim):
    x = motion.named_column(record, u)
    if x < 0:
      continue
    least = MOVED * 2 * float(kept.state.summary.half_range[x])
    found = []
    for e, series in enumerate(kept.series):
      edges = np.flatnonzero(np.diff(series.state_TX[:, x])) + 1
      starts, stops = np.append(0, edges), np.append(edges, len(series.state_TX))
      for start, stop in zip(starts, stops):
        # What is commanded in the last rows of an episode has no time to show.
        last = stop - late if stop == len(series.state_TX) else stop
        command_T = series.action_TU[start:last, u]
        if stop - start >= rows and np.ptp(command_T) > least:
          found.append(Place(e, int(start)))
    does = f'stays the same for {rows} rows or more while its command moves'
    _report(kept, 'constant', f'{names[x]} {does}', found, findings)


def _report(
  kept: survey.Survey,
  kind: str,
  what: str,
  found: list[Place],
  findings: findings_lib.Findings,
) -> None:
  if not found:
    return
  first = kept.series[found[0].series]
  step = int(first.step_T[found[0].row])
  findings.warn(
    kind,
    f'state {what}, {len(found)} times, first at step {step} of '
    f'{first.where}; expected motion: a reading that failed. Leave such steps '
    'out with python -m data.exclude, or mend them.',
  )
