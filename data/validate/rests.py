"""Episodes that stand still, and episodes in other units than the rest."""

from __future__ import annotations

import numpy as np

from data.validate import findings as findings_lib
from data.validate import survey
from wam_jax.data import record as record_lib

STILL = 0.01  # Share of a dimension's range that noise may move it by within a chunk.
REST_WARN, REST_NOTE = 0.3, 0.1  # Shares of the chunks.
# Degrees are 57 radians, millimetres a thousandth; ten times as far is no other task.
FACTOR = 10.0
EPISODES = 2  # In other units, at least: one may have an outlier.


def check(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Makes all checks of this file."""
  if not kept.series:
    return
  _check_rest(kept, findings)
  for s, columns in record_lib.columns(kept.record.state):
    _check_units(kept, s, columns, findings)


def _check_rest(kept: survey.Survey, findings: findings_lib.Findings) -> None:
  """Catches waiting that was recorded: a model that learns it may never begin
  (huggingface/lerobot#3429, Physical-Intelligence/openpi#605).
  """
  record = kept.record
  varies_X = ~kept.state.summary.is_flat
  if not varies_X.any():
    return
  limit_X = STILL * 2 * kept.state.summary.half_range[varies_X]
  still_E = [
    find_still(series.state_TX[:, varies_X], limit_X, record.steps_per_chunk)
    for series in kept.series
  ]
  still_K = np.concatenate(still_E)
  if not still_K.size:
    return
  share = float(still_K.mean())
  begins = [int(np.argmin(still_Q)) if not still_Q.all() else len(still_Q) for still_Q in still_E]
  message = (
    f'nothing moves in {share:.0%} of the chunks ({record.chunk_s:g} s each, state within '
    f'{STILL:.0%} of its range); a usual episode begins with '
    f'{np.median(begins) / record.control_hz:.3g} s of that: a model learns to wait. Leave such '
    'steps out with python -m data.exclude, unless waiting is meant.'
  )
  if share > REST_WARN:
    findings.warn('rest', message)
  elif share > REST_NOTE:
    findings.note('rest', message)


def find_still(state_TX: np.ndarray, limit_X: np.ndarray, steps: int) -> np.ndarray:
  """[Q] whether the state stays within limits during the chunk of `steps` from each step on."""
  if len(state_TX) <= steps:
    return np.zeros(0, bool)
  windows_QXS = np.lib.stride_tricks.sliding_window_view(state_TX, steps + 1, axis=0)
  return (np.ptp(windows_QXS, axis=-1) <= limit_X).all(1)


def _check_units(
  kept: survey.Survey, s: record_lib.Slice, columns: slice, findings: findings_lib.Findings
) -> None:
  """Catches datasets that were joined in spite of different units, as of one robot's older and
  newer software (huggingface/lerobot#1259).
  """
  # One dimension, or a velocity, may rest in an episode and move in another.
  if s.width < 2 or s.unit.endswith('/s'):
    return
  size_E = np.asarray(
    [np.quantile(np.abs(series.state_TX[:, columns]), 0.95) for series in kept.series]
  )
  order_E = np.argsort(size_E)
  sorted_E = np.maximum(size_E[order_E], 1e-9)
  ratio_E = sorted_E[1:] / sorted_E[:-1]
  if len(ratio_E) < 2 * EPISODES - 1:
    return
  k = EPISODES - 1 + int(ratio_E[EPISODES - 1 : len(ratio_E) - EPISODES + 1].argmax())
  low_E, high_E = sorted_E[: k + 1], sorted_E[k + 1 :]
  is_tight = max(low_E[-1] / low_E[0], high_E[-1] / high_E[0]) < FACTOR / 2
  if ratio_E[k] < FACTOR or not is_tight:
    return
  few = order_E[: k + 1] if len(low_E) <= len(high_E) else order_E[k + 1 :]
  findings.warn(
    'unit',
    f'state {s.key}[{s.start}:{s.stop}] reaches {low_E[0]:.3g} to {low_E[-1]:.3g} in {len(low_E)} '
    f'episodes and {high_E[0]:.3g} to {high_E[-1]:.3g} in {len(high_E)}; expected one unit: '
    f'{len(few)} episodes come from another source, first {kept.series[int(min(few))].where}. '
    'Convert them, or leave them out.',
  )
