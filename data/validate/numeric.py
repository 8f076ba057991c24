"""Checks of what `survey` kept of a whole dataset: its numbers, its rows, and the statistics file
beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data.validate import angles
from data.validate import findings as findings_lib
from data.validate import parts
from data.validate import signals
from data.validate import survey
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import windows

# Largest magnitude of the bulk (1 % to 99 %) of a slice, by unit; other units are not checked. No
# arm reaches 10 m, so more are mm; no joint turns more than twice around, so more are degrees;
# 'normalized' is [-1, 1] or [0, 1] and a tenth for sensors that overshoot.
UNIT_LIMIT = {'m': 10.0, 'rad': 4 * np.pi, 'normalized': 1.1, 'm/s': 10.0, 'rad/s': 30.0}
# Ranges of q01 to q99 that a value may lie beyond either: tails of real deltas reach 7, jumps from
# pi to -pi more than 10.
EXPLODING_RANGES = 10
# Share of the steps with motion at which action and state are equal: chance stays far below.
COPY_SHARE = 0.95
COPY_STEPS = 20  # Steps with motion under which equality may be chance.
# Distance to other state columns over that to its own: a target is nearest the joint that follows
# it.
BETTER_FIT = 0.5
# Shares of repeats. Every second row is a share of 1/2; stop and go, and dropped frames, give a
# tenth.
REPEATS_FAIL, REPEATS_WARN = 0.45, 0.2
# Share of a range by which stored quantiles may differ: subsampling gives less than 1 %.
STALE = 0.05


def check(kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings) -> None:
  """Makes all checks of this file; there must be a readable episode."""
  _check_slices(kept.record, findings)
  parts.check(kept, findings)
  _check_columns(kept, episodes, findings)
  for part in ('state', 'action'):
    angles.check(part, kept.seams[part], episodes.where, findings)
  for problem in kept.computed.list_unsafe(episodes.where):
    findings.fail('wrap', f'{problem}.')
  _check_copies(kept, episodes, findings)
  _check_references(kept, findings)
  _check_rows(kept, findings)
  _check_statistics(kept, episodes, findings)


def _check_slices(record: record_lib.Embodiment, findings: findings_lib.Findings) -> None:
  """Catches a slip in the record: a start or stop that is off by one gives two slices a column."""
  for part, slices in (('state', record.state), ('action', record.action)):
    for a, b in itertools.combinations(slices, 2):
      if a.key == b.key and a.start < b.stop and b.start < a.stop:
        findings.fail(
          'slice',
          f'{part} slices {_name(a)} and {_name(b)} of {record.name!r} overlap; expected every '
          'column once: correct start and stop.',
        )


def _check_columns(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  """Catches dead sensors and padding (normalizing divides by their range), single wild values (they
  are most of a batch's loss), and wrong units.
  """
  record = kept.record
  for part, slices, columns, counts_N in kept.parts():
    if not counts_N.any():
      continue
    slice_N = [s for s in slices for _ in range(s.width)]
    name_N = record_lib.names(slices)
    summary = columns.summary
    # What is flat depends on how the model will scale the dimension.
    flat_N = dataclasses.replace(summary, norms=tuple(s.norm for s in slice_N)).is_flat

    for n in np.flatnonzero(counts_N):
      relative = ' relative to the state' if slice_N[n].relative_to else ''
      name = f'{part} {name_N[n]}{relative}'
      if flat_N[n]:
        findings.fail(
          'constant',
          f'{name} hardly varies: q01 {summary.q01[n]:.5g}, q99 {summary.q99[n]:.5g} '
          f'{slice_N[n].unit}, min {summary.min[n]:.5g}, max {summary.max[n]:.5g}; expected a '
          f'range of {normalize.RANGE_FLOOR:g}: correct the slice, or leave the column out of '
          f'{record.name!r}.',
        )
      else:
        _check_exploding(name, n, columns, episodes, findings)

  _check_units('state', record.state, kept.state.summary, findings)
  _check_units('action', record.action, kept.action.summary, findings)


def _check_exploding(
  name: str,
  n: int,
  columns: survey.Columns,
  episodes: sources.Episodes,
  findings: findings_lib.Findings,
) -> None:
  """Catches a lost packet that was stored as 0 or 1e6, and angles that jump from pi to -pi."""
  low, high = columns.summary.q01[n], columns.summary.q99[n]
  for value, episode, step in columns.extremes_KN3[:, n]:
    beyond = max(low - value, value - high)
    ranges = beyond / max(high - low, 1e-12)
    if ranges > EXPLODING_RANGES:
      findings.fail(
        'exploding',
        f'{name} is {value:.5g} at step {int(step)} of {episodes.where(int(episode))}, '
        f'{ranges:.0f} times the range of q01 {low:.5g} to q99 {high:.5g} beyond it; expected at '
        f'most {EXPLODING_RANGES}: repair or drop the episode.',
      )


def _check_units(
  part: str,
  slices: Sequence[record_lib.Slice],
  summary: normalize.Quantiles,
  findings: findings_lib.Findings,
) -> None:
  """Catches degrees and millimetres: quantiles hide them in training, the robot does not."""
  for s, columns in record_lib.columns(slices):
    bulk = np.abs([summary.q01[columns], summary.q99[columns]]).max()
    limit = UNIT_LIMIT.get(s.unit, np.inf)
    if bulk > limit:
      findings.fail(
        'unit',
        f'{part} {_name(s)} holds {s.unit!r} up to {bulk:.5g} (1 % to 99 %); expected at most '
        f'{limit:.4g}: correct the slice, its unit, or its offset and scale.',
      )


def _check_copies(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  """Catches a recorder that stored the measured state as the command: the model would learn to
  stand still, at a loss that looks excellent.
  """
  agreement, record = kept.agreement, kept.record
  if not record.state:
    return
  # A share of too few steps is none: dividing by infinity makes it 0.
  is_enough_X = agreement.moving_X >= COPY_STEPS
  counts_X = np.where(is_enough_X, np.maximum(agreement.moving_X, 1), np.inf)
  now_UX = agreement.now_UX / counts_X
  next_UX = agreement.next_UX / counts_X

  for s, rows in record_lib.columns(record.action):
    pairs = _equal_pairs(record, s, now_UX[rows])
    next_pairs = _equal_pairs(record, s, next_UX[rows])
    if pairs:
      u, x = np.unravel_index(now_UX[rows].argmax(), now_UX[rows].shape)
      episode, step = agreement.first_UX2[rows][u, x]
      findings.fail(
        'copy',
        f'action equals the state of the same step at {now_UX[rows][u, x]:.0%} of the steps with '
        f'motion: {pairs}, first at step {step} of {episodes.where(int(episode))}; expected the '
        'command: correct the slice, or take the state of the next step as the action.',
      )
    elif next_pairs:
      findings.note(
        'copy',
        f'action is the state of the next step: {next_pairs}; so be it for an absolute target.',
      )


def _equal_pairs(record: record_lib.Embodiment, s: record_lib.Slice, share_UX: np.ndarray) -> str:
  """Which dimensions of an action slice agree with which of the state."""
  states = record_lib.names(record.state)
  pairs = [
    f'{s.key}[{s.start + u}] = {states[share_X.argmax()]}'
    for u, share_X in enumerate(share_UX)
    if share_X.max() >= COPY_SHARE
  ]
  return ', '.join(pairs[:4]) + ', ...' * (len(pairs) > 4)


def _check_references(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Catches a record that counts one arm's action from the other arm's state, which trains well and
  moves the robot wrongly: a command follows its own joint, so columns that it follows much better
  are those the record should name.
  """
  record = kept.record
  distance_UX = kept.agreement.distance_UX()
  named = (('relative_to', record.reference_columns), ('rest', record.rest_columns))
  for s, rows in record_lib.columns(record.action):
    fit_K = _fit_everywhere(distance_UX[rows])
    for part, columns_U in named:
      own = columns_U[rows][0]
      if own < 0:
        continue
      best = int(fit_K.argmin())
      # Far from its own column and from any other alike, a command follows none, as a velocity.
      if fit_K[best] < min(BETTER_FIT * fit_K[own], BETTER_FIT):
        names = record_lib.names(record.state)
        findings.fail(
          'slice',
          f'action {_name(s)} has {part}={getattr(s, part)!r} but follows the state '
          f'{names[best]} to {names[best + s.width - 1]}: distance {fit_K[best]:.2g} standard '
          f'deviations against {fit_K[own]:.2g}; expected its own joints: correct the slices of '
          f'{record.name!r}.',
        )


def _fit_everywhere(distance_UX: np.ndarray) -> np.ndarray:
  """[offsets] root mean square distance of a slice's action from every run of as many state
  columns.
  """
  width, states = distance_UX.shape
  fits = []
  for k in range(states - width + 1):
    own_U = np.diagonal(distance_UX[:, k : k + width])
    fits.append(np.sqrt(np.square(own_U).mean()))
  return np.asarray(fits)


def _check_rows(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Catches rows that were written faster than the robot was read, and a wrong control_hz with
  them: chunks would last longer than the record says.
  """
  record = kept.record
  share, rate = signals.repeat_rate(kept.repeats, record.control_hz)
  message = (
    f'{share:.0%} of the rows repeat the state of the row before amid motion: they are new '
    f'{rate:.3g} times a second, {record.name!r} says control_hz={record.control_hz:g}; correct '
    'it, or drop the repeated rows and frames.'
  )
  add_repeats(share, message, findings)


def add_repeats(share: float, message: str, findings: findings_lib.Findings) -> None:
  """Fails or warns by the share of repeated rows or frames."""
  if share > REPEATS_FAIL:
    findings.fail('rate', message)
  elif share > REPEATS_WARN:
    findings.warn('rate', message)


def _name(s: record_lib.Slice) -> str:
  return f'{s.key}[{s.start}:{s.stop}]'


def count_anchors(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> int | None:
  """The number of steps at which a training sample can begin; None where records cannot be read.

  Catches a chunk that is longer than the episodes, and ranges that leave nothing. `survey.read` has
  kept what it takes.
  """
  if kept.unread:
    return None
  try:
    return len(windows.make_anchors(episodes))
  except ValueError as e:
    findings.fail('anchors', str(e))
    return 0


def _check_statistics(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  """Catches a statistics file that came along with other data: training reads it, and says what is
  wrong with it by the same code.
  """
  path = statistics.find(episodes)
  if not path.exists():
    findings.note(
      'statistics', f'{path} is not there yet: training makes it, or python -m data.statistics.'
    )
    return
  finding = statistics.Finding(episodes)
  try:
    is_true = finding.load()
  except ValueError as e:
    findings.fail('file', str(e))
    return
  if not is_true:
    findings.warn(
      'statistics',
      f'{path} is of another {", ".join(finding.stale) or "version"}: training computes it again.',
    )
  elif not kept.unread:
    again = (
      'delete it and make it again: python -m data.statistics '
      f'--dataset={episodes.path} --embodiment={kept.record.name} --split={episodes.split}'
      f'{episodes.write_flags()}'
    )
    _check_stored(finding.statistics, kept.statistics, f'{path} says', again, findings)


def _check_stored(
  stored: normalize.Statistics,
  seen: normalize.Statistics,
  says: str,
  again: str,
  findings: findings_lib.Findings,
) -> None:
  for part in ('state', 'action'):
    old, new = getattr(stored, part), getattr(seen, part)
    range_N = np.maximum(new.q99 - new.q01, normalize.RANGE_FLOOR)
    for key in ('q01', 'q99'):
      old_N, new_N = getattr(old, key), getattr(new, key)
      off_N = np.abs(old_N - new_N) / range_N
      for n in np.flatnonzero(off_N > STALE):
        findings.fail(
          'statistics',
          f'{says} {key}={old_N[n]:.5g} of {part} dimension {n}, the data {new_N[n]:.5g}; {again}',
        )
