"""Commands against motion: does the robot do what it is told, when it is told, and in that sense?

The motion of row t is what leads from the state of row t to that of the next one. A delta or a
velocity is compared with it as it is; of an absolute target, the step from the target before. A
robot follows at once (lag 0) or some rows later; a command that goes with the motion *before* it is
stored one row too late, whatever the robot.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from data.validate import findings as findings_lib
from data.validate import survey
from wam_jax.data import record as record_lib

REACH_S = 0.5  # A robot follows within this time.
LEAST_REACH = 3  # Rows, also of slow robots.
STILL = 1e-12  # Sum of squares about the mean; below it a series does not move.
SEEN = 0.4  # Correlation from which a command is seen in the motion.
# What a lag must be better by: in correlation, or in its square's distance from 1, and in standard
# errors over the episodes.
GAIN, REST_RATIO, ERRORS = 0.05, 0.5, 3.0
EXACT = 0.999  # No robot follows a command like this: the command was computed from the states.
# A switch is near one of its two ends nearly always; its state may be seen on the way.
END_SHARE, SWITCH_SHARE, STATE_SHARE = 0.1, 0.9, 0.6
CLEAR = 0.8  # Correlation of two levels from which they have one sense, or opposite ones.


@dataclasses.dataclass(frozen=True)
class Pairing:
  """A dimension of the action and the one of the state that goes with it.

  Attributes:
    is_target: whether the action is where the state should go; else how it should change.
    lag_L: rows that the motion comes after its command.
    products_EL3: per episode, the sums of command x motion, command squared and motion squared.
  """

  action: int
  state: int
  is_target: bool
  lag_L: np.ndarray
  products_EL3: np.ndarray

  @property
  def correlation_L(self) -> np.ndarray:
    """By lag, over all episodes."""
    return _correlate(self.products_EL3.sum(0))

  @property
  def strength(self) -> float:
    """The largest correlation, of either sign."""
    return float(np.abs(self.correlation_L).max())

  @property
  def best(self) -> int:
    """The lag that it is found at."""
    return int(self.lag_L[np.abs(self.correlation_L).argmax()])


# By action slice, what its dimensions go with.
Followed = list[tuple[record_lib.Slice, list[Pairing]]]


def _correlate(products_3: np.ndarray) -> np.ndarray:
  """[...] correlations of [..., 3] sums of products; 0 where a series is constant."""
  cross, one, other = np.moveaxis(products_3, -1, 0)
  moves = (one > STILL) & (other > STILL)
  return np.where(moves, cross, 0) / np.sqrt(np.where(moves, one * other, 1))


def check(kept: survey.Survey, findings: findings_lib.Findings) -> Followed:
  """Makes all checks of this file; returns by action slice what its dimensions go with, where that
  is seen.
  """
  record = kept.record
  if not (record.state and record.action and kept.series):
    return []
  by_slice = []
  for s, of_slice in record_lib.columns(record.action):
    columns = range(of_slice.start, of_slice.stop)
    pairings = [_pair(kept, u) for u in columns]
    seen = [p for p in pairings if p is not None and p.strength >= SEEN]
    for is_target in (False, True):
      _check_lag(kept, s, [p for p in seen if p.is_target == is_target], findings)
    for u in columns:
      _check_sense(kept, s, u, findings)
    _tell_opposite(kept, s, seen, findings)
    by_slice.append((s, seen))
  return by_slice


def _pair(kept: survey.Survey, u: int) -> Pairing | None:
  """What an action dimension goes with: the column that the record names, or the one that it moves
  most clearly.
  """
  named = named_column(kept.record, u)
  if named >= 0:
    return _measure(kept, u, named, is_target=True)
  states = range(kept.record.proprio_dim)
  pairings = [
    _measure(kept, u, x, is_target) for x, is_target in itertools.product(states, (False, True))
  ]
  return max((p for p in pairings if p), key=lambda p: p.strength, default=None)


def named_column(record: record_lib.Embodiment, u: int) -> int:
  """The state column that the record says a target is of; -1 for none."""
  return max(record.reference_columns[u], record.rest_columns[u])


def _measure(kept: survey.Survey, u: int, x: int, is_target: bool) -> Pairing | None:
  """The two series, compared at every lag; None where episodes are too short for that."""
  reach = max(LEAST_REACH, round(REACH_S * kept.record.control_hz))
  lag_L = np.arange(-reach, reach + 1)
  rows = []
  for series in kept.series:
    motion_T = np.diff(series.state_TX[:, x].astype(np.float64))[1:]
    action_T = series.action_TU[:, u].astype(np.float64)
    # The last row's command is followed by no motion, and need not be one.
    command_T = np.diff(action_T)[:-1] if is_target else action_T[1:-1]
    if len(motion_T) <= reach + 2:
      continue
    rows.append([_sum_products(command_T, motion_T, lag) for lag in lag_L])
  return Pairing(u, x, is_target, lag_L, np.asarray(rows)) if rows else None


def _sum_products(command_T: np.ndarray, motion_T: np.ndarray, lag: int) -> tuple[float, ...]:
  """Of command[t] and motion[t + lag], each about its mean."""
  early = command_T[max(0, -lag) : len(command_T) - max(0, lag)]
  late = motion_T[max(0, lag) : len(motion_T) - max(0, -lag)]
  early = early - early.mean()
  late = late - late.mean()
  return early @ late, early @ early, late @ late


def _check_lag(
  kept: survey.Survey,
  s: record_lib.Slice,
  seen: Sequence[Pairing],
  findings: findings_lib.Findings,
) -> None:
  """Catches actions that were stored with the row after or before theirs: the model would learn to
  do what has been done, or to skip a step.
  """
  if not seen or len(seen[0].products_EL3) < 3:
    return
  lag_L = seen[0].lag_L
  size_L = np.mean([np.abs(p.correlation_L) for p in seen], axis=0)
  best = int(lag_L[size_L.argmax()])
  if best == 0:
    return
  # A late robot is no fault, so that all lags from 0 on are right; none before is.
  right_L = lag_L >= 0 if best < 0 else lag_L == 0
  right = int(lag_L[right_L][size_L[right_L].argmax()])
  gain, error = _compare(seen, best, right)
  at_best, at_right = size_L.max(), size_L[lag_L == right][0]
  is_better = gain > GAIN or 1 - at_best**2 < REST_RATIO * (1 - at_right**2)
  if not (is_better and gain > ERRORS * error):
    return

  _report_lag(kept, s, seen, (best, right), (at_best, at_right, error), findings)


def _report_lag(
  kept: survey.Survey,
  s: record_lib.Slice,
  seen: Sequence[Pairing],
  lags: tuple[int, int],
  found: tuple[float, float, float],
  findings: findings_lib.Findings,
) -> None:
  """Says what goes with which motion.

  Args:
    lags: the one where the correlation is largest, and the best one that is right.
    found: the correlations there, and the error of their difference.
  """
  best, right = lags
  at_best, at_right, error = found
  states, actions = record_lib.names(kept.record.state), record_lib.names(kept.record.action)
  pairs = [f'{actions[p.action]} with {states[p.state]}' for p in seen]
  shown = ', '.join(pairs[:3]) + ', ...' * (len(pairs) > 3)
  seen_at = (
    f'correlation {at_best:.3f} there, {at_right:.3f} (+- {error:.3f}) at lag {right} ({shown}; '
    f'{len(kept.series)} episodes, from {kept.series[0].where})'
  )
  rows = f'{abs(best)} row' + 's' * (abs(best) > 1)
  label = f'action {s.key}[{s.start}:{s.stop}]'
  if best < 0:
    findings.fail(
      'lag',
      f'{label} goes with the motion {rows} before its own (lag {best}): {seen_at}; expected lag '
      f'0, or more of a robot that follows late: store each action {rows} earlier, with the '
      'state in which it was given.',
    )
  elif at_best > EXACT:
    findings.fail(
      'lag',
      f'{label} is the motion {rows} after its own (lag {best}), as no robot follows: {seen_at}; '
      f'expected lag 0: store each action {rows} later, with the state that it was computed from.',
    )
  else:
    findings.note(
      'lag',
      f'{label} is followed {rows} later (lag {best}): {seen_at}; so be it for a robot with that '
      'delay, else its actions are stored too early.',
    )


def _compare(seen: Sequence[Pairing], one: int, other: int) -> tuple[float, float]:
  """By how much the size of the correlation at a lag exceeds that at another, and its error over
  the episodes, each of which is left out in turn.
  """

  def measure(products_EL3: np.ndarray) -> np.ndarray:
    """[...] of [..., L, 3] sums of products."""
    size_L = np.abs(_correlate(products_EL3))
    return size_L[..., lag_L == one][..., 0] - size_L[..., lag_L == other][..., 0]

  lag_L = seen[0].lag_L
  whole, partial = [], []
  for p in seen:
    total_L3 = p.products_EL3.sum(0)
    whole.append(measure(total_L3))
    partial.append(measure(total_L3 - p.products_EL3))
  left_out_E = np.mean(partial, axis=0)
  count = len(left_out_E)
  error = np.sqrt((count - 1) / count * np.square(left_out_E - left_out_E.mean()).sum())
  return float(np.mean(whole)), float(error)


def _check_sense(
  kept: survey.Survey, s: record_lib.Slice, u: int, findings: findings_lib.Findings
) -> None:
  """Catches a gripper that is 1 closed in the command and 1 open in the state, in all episodes or
  in those of one source: counted from that state, or held at it, the command would do the opposite.
  """
  record = kept.record
  named = named_column(record, u)
  x = named if named >= 0 else _find_switch(kept, u)
  if x < 0:
    return
  same_E = _agreement(kept, u, x)
  opposite = np.flatnonzero(same_E < -CLEAR)
  same = np.flatnonzero(same_E > CLEAR)
  # A state that is not the command's own goes with it in some episodes, by chance.
  if len(opposite) + len(same) < CLEAR * np.count_nonzero(same_E):
    return
  action, state = record_lib.names(record.action)[u], record_lib.names(record.state)[x]
  if not opposite.size:
    return
  where = kept.series[opposite[0]].where
  mend = 'store both alike, or give one of the slices offset=1, scale=-1'
  if len(opposite) > CLEAR * (len(opposite) + len(same)):
    part = _find_part(s)
    says = f'; {part}={getattr(s, part)!r} needs the same sense' if named >= 0 else ''
    level = findings.fail if named >= 0 else findings.warn
    level(
      'sense',
      f'action {action} is high when state {state} is low: correlation '
      f'{np.median(same_E[opposite]):.2f} in {len(opposite)} of the '
      f'{len(opposite) + len(same)} episodes that tell, first {where}{says}; expected the same '
      f'sense: {mend}.',
    )
  elif len(same) and len(opposite) > 1:
    findings.fail(
      'sense',
      f'action {action} has the sense of state {state} in {len(same)} episodes and the opposite '
      f'one in {len(opposite)}, first {where} (correlation {same_E[opposite[0]]:.2f}); expected '
      f'one sense: these episodes come from another source; {mend} before they are joined.',
    )


def _tell_opposite(
  kept: survey.Survey,
  s: record_lib.Slice,
  seen: Sequence[Pairing],
  findings: findings_lib.Findings,
) -> None:
  """Says which deltas and velocities move their state the other way: a slip of a sign, unless they
  are told in the frame of a tool that looks down.
  """
  states, actions = record_lib.names(kept.record.state), record_lib.names(kept.record.action)
  opposite = [
    f'{actions[p.action]} and {states[p.state]} ({p.correlation_L[p.lag_L == p.best][0]:.2f})'
    for p in seen
    if not p.is_target and p.correlation_L[p.lag_L == p.best][0] < 0
  ]
  if opposite:
    findings.note(
      'sense',
      f'action {s.key}[{s.start}:{s.stop}] moves the state the other way in {", ".join(opposite)}; '
      'expected the same sign, unless the two are in different frames.',
    )


def _find_part(s: record_lib.Slice) -> str:
  return 'relative_to' if s.relative_to else 'rest'


def _find_switch(kept: survey.Survey, u: int) -> int:
  """The state column that a switch without a named one goes with; -1 for none.

  Also where two columns go with it alike in opposite senses, as two fingers that close.
  """
  if not is_switch([e.action_TU[:, u] for e in kept.series], SWITCH_SHARE):
    return -1
  signs: dict[int, float] = {}
  for x in range(kept.record.proprio_dim):
    if not is_switch([e.state_TX[:, x] for e in kept.series], STATE_SHARE):
      continue
    told_E = _agreement(kept, u, x)
    told_E = told_E[told_E != 0]
    if told_E.size:
      signs[x] = float(np.median(told_E))
  strongest = max(signs, key=lambda x: abs(signs[x]), default=-1)
  if strongest < 0 or abs(signs[strongest]) < CLEAR:
    return -1
  others = [sign for sign in signs.values() if sign * signs[strongest] < 0]
  return -1 if any(abs(sign) > CLEAR for sign in others) else strongest


def is_switch(columns: Sequence[np.ndarray], share: float) -> bool:
  """Whether a dimension is near one of its ends at this share of the rows."""
  values_K = np.concatenate(columns)
  low, high = values_K.min(), values_K.max()
  if high - low < 1e-6:
    return False
  place_K = (values_K - low) / (high - low)
  return bool(np.mean(np.minimum(place_K, 1 - place_K) < END_SHARE) > share)


def _agreement(kept: survey.Survey, u: int, x: int) -> np.ndarray:
  """[episodes] correlation of the command's level with that of the state, at the delay that most
  episodes show; 0 where one of them does not change.
  """
  reach = max(LEAST_REACH, round(REACH_S * kept.record.control_hz))
  by_lag = list(_agree_at(kept, u, x, range(reach + 1)))
  return max(by_lag, key=lambda told_E: np.abs(told_E).sum())


def _agree_at(kept: survey.Survey, u: int, x: int, lags: Sequence[int]) -> Iterator[np.ndarray]:
  for lag in lags:
    told = []
    for series in kept.series:
      # Without the last row, whose command need not be one.
      command_T = series.action_TU[:-1, u].astype(np.float64)
      state_T = series.state_TX[:-1, x].astype(np.float64)
      is_long = len(command_T) > lag + 2
      sums = _sum_products(command_T, state_T, lag) if is_long else (0.0, 0.0, 0.0)
      told.append(_correlate(np.asarray(sums)))
    yield np.asarray(told)
