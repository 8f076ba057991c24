"""Checks of what `survey` kept of a whole dataset: its numbers, its rows, and the statistics file
beside it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from data.validate import findings as findings_lib
from data.validate import signals
from data.validate import survey
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import windows

# Largest magnitude of the bulk (1 % to 99 %) of a slice, by unit; other units are not checked. No
# arm reaches 10 m, so more are mm; no joint turns more than twice around, so more are degrees;
# 'normalized' is [-1, 1] or [0, 1] and a tenth for sensors that overshoot.
UNIT_LIMIT = {'m': 10.0, 'rad': 4 * np.pi, 'normalized': 1.1, 'm/s': 10.0, 'rad/s': 30.0}
EXPLODING_RANGES = 10  # Of q99 - q01, beyond either: tails of real deltas reach 7, jumps from pi to -pi more than 10.
COPY_SHARE = (
  0.95  # Of the steps with motion at which action and state are equal: chance stays far below.
)
COPY_STEPS = 20  # Steps with motion under which equality may be chance.
BETTER_FIT = 0.5  # Distance to other state columns over that to its own: a target is nearest the joint that follows it.
REPEATS_FAIL, REPEATS_WARN = (
  0.45,
  0.2,
)  # Every second is a share of 1/2; stop and go, and dropped frames, give a tenth.
STALE = 0.05  # Of a range, by which stored quantiles may differ: subsampling gives less than 1 %.


def check(kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings) -> None:
  """All of them; there must be a readable episode."""
  _check_slices(kept.record, findings)
  _check_columns(kept, episodes, findings)
  _check_copies(kept, episodes, findings)
  _check_references(kept, findings)
  _check_rows(kept, findings)
  _check_statistics(kept, episodes, findings)


def _check_slices(record: embodiments.Embodiment, findings: findings_lib.Findings) -> None:
  for part, slices in (('state', record.state), ('action', record.action)):
    for i, a in enumerate(slices):
      for b in slices[i + 1 :]:
        if a.key == b.key and a.start < b.stop and b.start < a.stop:
          findings.fail(
            'slice',
            f'{part} slices {_name(a)} and {_name(b)} of {record.name!r} overlap; expected every '
            'column once: correct start and stop.',
          )


def _check_columns(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  for part, slices, columns, counts_N in kept.parts():
    if not counts_N.any():
      continue
    of_N = [s for s in slices for _ in range(s.width)]
    summary = columns.summary
    flat_N = dataclasses.replace(summary, norms=tuple(s.norm for s in of_N)).is_flat
    for n in np.flatnonzero(counts_N):
      name = f'{part} {embodiments.names(slices)[n]}' + (
        ' relative to the state' if of_N[n].relative_to else ''
      )
      if flat_N[n]:
        findings.fail(
          'constant',
          f'{name} hardly varies: q01 {summary.q01[n]:.5g}, q99 {summary.q99[n]:.5g} '
          f'{of_N[n].unit}, min {summary.min[n]:.5g}, max {summary.max[n]:.5g}; expected a range of '
          f'{normalize.RANGE_FLOOR:g}: correct the slice, or leave the column out of {kept.record.name!r}.',
        )
      else:
        _check_exploding(name, n, columns, summary, episodes, findings)
  for part, slices, columns in (
    ('state', kept.record.state, kept.state),
    ('action', kept.record.action, kept.action),
  ):
    _check_units(part, slices, columns.summary, findings)


def _check_exploding(name, n, columns, summary, episodes, findings) -> None:
  low, high = summary.q01[n], summary.q99[n]
  for value, episode, step in columns.extremes_KN3[:, n]:
    ranges = max(low - value, value - high) / max(high - low, 1e-12)
    if ranges > EXPLODING_RANGES:
      findings.fail(
        'exploding',
        f'{name} is {value:.5g} at step {int(step)} of {episodes.where(int(episode))}, '
        f'{ranges:.0f} times the range of q01 {low:.5g} to q99 {high:.5g} beyond it; expected at most '
        f'{EXPLODING_RANGES}: repair or drop the episode.',
      )


def _check_units(
  part: str,
  slices: Sequence[embodiments.Slice],
  summary: normalize.Quantiles,
  findings: findings_lib.Findings,
) -> None:
  start = 0
  for s in slices:
    columns = slice(start, start + s.width)
    start += s.width
    bulk, limit = (
      np.abs([summary.q01[columns], summary.q99[columns]]).max(),
      UNIT_LIMIT.get(s.unit, np.inf),
    )
    if bulk > limit:
      findings.fail(
        'unit',
        f'{part} {_name(s)} holds {s.unit!r} up to {bulk:.5g} (1 % to 99 %); expected at most '
        f'{limit:.4g}: correct the slice, its unit, or its offset and scale.',
      )


def _check_copies(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  agreement, record = kept.agreement, kept.record
  counts_X = np.where(agreement.moving_X >= COPY_STEPS, np.maximum(agreement.moving_X, 1), np.inf)
  now_UX, next_UX = agreement.now_UX / counts_X, agreement.next_UX / counts_X
  start = 0
  for s in record.action if record.state else ():
    rows, start = slice(start, start + s.width), start + s.width
    if pairs := _equal_pairs(record, s, now_UX[rows]):
      u, x = np.unravel_index(now_UX[rows].argmax(), now_UX[rows].shape)
      episode, step = agreement.first_UX2[rows][u, x]
      findings.fail(
        'copy',
        f'action equals the state of the same step at {now_UX[rows][u, x]:.0%} of the steps with '
        f'motion: {pairs}, first at step {step} of {episodes.where(int(episode))}; expected the command: '
        'correct the slice, or take the state of the next step as the action.',
      )
    elif pairs := _equal_pairs(record, s, next_UX[rows]):
      findings.note(
        'copy', f'action is the state of the next step: {pairs}; so be it for an absolute target.'
      )


def _equal_pairs(record: embodiments.Embodiment, s: embodiments.Slice, share_UX: np.ndarray) -> str:
  """Which dimensions of an action slice agree with which of the state."""
  states = embodiments.names(record.state)
  pairs = [
    f'{s.key}[{s.start + u}] = {states[share_X.argmax()]}'
    for u, share_X in enumerate(share_UX)
    if share_X.max() >= COPY_SHARE
  ]
  return ', '.join(pairs[:4]) + ', ...' * (len(pairs) > 4)


def _check_references(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """A command follows its own joint: other columns that it follows better are those the record
  should name.
  """
  record = kept.record
  distance_UX, start = kept.agreement.distance_UX(), 0
  for s in record.action:
    rows, start = slice(start, start + s.width), start + s.width
    for part, columns_U in (
      ('relative_to', record.reference_columns),
      ('rest', record.rest_columns),
    ):
      own = columns_U[rows][0]
      if own < 0:
        continue
      # [offsets] of the slice against every run of state columns of its width.
      fit_K = np.asarray(
        [
          np.sqrt(np.square(np.diagonal(distance_UX[rows, k : k + s.width])).mean())
          for k in range(record.proprio_dim - s.width + 1)
        ]
      )
      best = int(fit_K.argmin())
      if fit_K[best] < min(BETTER_FIT * fit_K[own], BETTER_FIT):
        names = embodiments.names(record.state)
        findings.fail(
          'slice',
          f'action {_name(s)} has {part}={getattr(s, part)!r} but follows the state '
          f'{names[best]} to {names[best + s.width - 1]}: distance {fit_K[best]:.2g} standard deviations '
          f'against {fit_K[own]:.2g}; expected its own joints: correct the slices of {record.name!r}.',
        )


def _check_rows(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  share, rate = signals.repeat_rate(kept.repeats, kept.record.control_hz)
  message = (
    f'{share:.0%} of the rows repeat the state of the row before amid motion: they are new {rate:.3g} times '
    f'a second, {kept.record.name!r} says control_hz={kept.record.control_hz:g}; correct it, or drop the '
    'repeated rows and frames.'
  )
  add_repeats(share, message, findings)


def add_repeats(share: float, message: str, findings: findings_lib.Findings) -> None:
  """Fails or warns by the share of repeated rows or frames."""
  if share > REPEATS_FAIL:
    findings.fail('rate', message)
  elif share > REPEATS_WARN:
    findings.warn('rate', message)


def _name(s: embodiments.Slice) -> str:
  return f'{s.key}[{s.start}:{s.stop}]'


def count_anchors(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> int | None:
  """Steps at which a training sample can begin; None where records cannot be read.

  Reads the dataset once more, unless training or a validation did so before.
  """
  if len(kept.lengths) < len(episodes):
    return None
  try:
    return len(windows.make_anchors(episodes))
  except ValueError as e:
    findings.fail('anchors', str(e))
    return 0


def _check_statistics(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  """The file beside the dataset, where there is one, is of this embodiment, this dataset and these
  numbers.
  """
  path, record = statistics.find(episodes), kept.record
  if not path.exists():
    findings.note(
      'statistics', f'{path} is not there yet: training makes it, or python -m data.statistics.'
    )
    return
  try:
    stored = statistics.load(path, record)
  except ValueError as e:
    findings.fail('statistics', str(e))
    return
  of = json.loads(path.read_text())['of']
  whole = sources.Episodes(episodes.path, episodes.split.split('[')[0], record)
  again = f'delete it and make it again: python -m data.statistics --dataset={episodes.path} --embodiment={record.name}'
  if of.get('split') != whole.split:
    findings.note(
      'statistics',
      f'{path} is of split {of.get("split")!r} and was not compared with {whole.split!r}.',
    )
  elif of.get('dataset') != whole.fingerprint:
    findings.fail(
      'statistics',
      f'{path} was made of other shards (fingerprint {of.get("dataset")}, now '
      f'{whole.fingerprint}); {again}',
    )
  elif episodes.split == whole.split and len(kept.lengths) == len(episodes):
    _check_stored(stored, kept.statistics, f'{path} says', again, findings)


def _check_stored(
  stored: normalize.Statistics,
  seen: normalize.Statistics,
  says: str,
  again: str,
  findings: findings_lib.Findings,
) -> None:
  for part in ('state', 'action'):
    old, new = getattr(stored, part), getattr(seen, part)
    for key in ('q01', 'q99'):
      off_N = np.abs(getattr(old, key) - getattr(new, key)) / np.maximum(
        new.q99 - new.q01, normalize.RANGE_FLOOR
      )
      for n in np.flatnonzero(off_N > STALE):
        findings.fail(
          'statistics',
          f'{says} {key}={getattr(old, key)[n]:.5g} of {part} dimension {n}, the data '
          f'{getattr(new, key)[n]:.5g}; {again}',
        )
