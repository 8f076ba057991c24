"""What a dataset's own clocks say of its rates: timestamps of the rows, and rates that are stored.

Timestamps may be seconds or whole milli-, micro- or nanoseconds; which, their differences tell, as
no robot is recorded a thousand times faster than another.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data.validate import findings as findings_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import record as record_lib

# Share of the period: clocks are right to 1 %, usual rates are 20 % apart.
TOLERANCE = 0.05
GAP = 1.5  # Periods from one row to the next above which one is missing.
UNITS = {'s': 1.0, 'ms': 1e-3, 'us': 1e-6, 'ns': 1e-9}
_TIME = re.compile(r'(?:^|_)(?:time|timestamps?|stamp)(?:_(s|ms|us|ns))?$')
_RATE = re.compile(r'(?:^|_)(?:fps|hz|frequency|frame_rate)$')


@dataclasses.dataclass(frozen=True)
class Clock:
  """Where a dataset stores times and rates.

  Attributes:
    time: path of the timestamps in a record; '' where there are none.
    rates: paths of rates.
  """

  time: str
  rates: tuple[str, ...]


def find(path: epath.Path) -> Clock:
  """The clocks of a dataset, by their names."""
  info = tfds.builder_from_directory(path).info.features.get_tensor_info()
  numbers = [key for key, spec in _flatten('', info) if _is_number(spec)]
  times = [
    key for key in numbers if key.startswith('steps/') and _TIME.search(key.rsplit('/', 1)[-1])
  ]
  # The row's own before those of its sensors.
  times.sort(key=lambda key: (key.count('/'), not key.endswith('/timestamp'), key))
  rates = tuple(key for key in numbers if _RATE.search(key.rsplit('/', 1)[-1]))
  return Clock(next(iter(times), ''), rates)


def _flatten(prefix: str, node: Mapping) -> Iterator[tuple[str, object]]:
  for key, value in node.items():
    if isinstance(value, dict):
      yield from _flatten(f'{prefix}{key}/', value)
    else:
      yield f'{prefix}{key}', value


def _is_number(spec) -> bool:
  return np.dtype(spec.np_dtype).kind in 'fiu' and tuple(spec.shape) in ((), (1,))


def check(
  clock: Clock,
  outline: episode_lib.Outline,
  episode: episode_lib.Episode,
  record: record_lib.Embodiment,
  findings: findings_lib.Findings,
) -> float | None:
  """Looks at one episode; returns the median seconds from row to row, None where it has no clock.

  Catches a control_hz that is not the rate at which rows were written, rows out of order, and rows
  that a recorder lost.
  """
  _check_rates(clock, outline, episode, record, findings)
  stamps_T = outline.read_numbers(clock.time) if clock.time else np.zeros(0)
  if len(stamps_T) < 2 or not np.isfinite(stamps_T.astype(np.float64)).all():
    return None
  expected = 1 / record.control_hz
  scale = _find_scale(clock.time, float(np.median(np.diff(stamps_T))), expected)
  key = clock.time.removeprefix('steps/')
  # Times since 1970 are coarser in float32 than the rows.
  if stamps_T.dtype == np.float32:
    resolution = scale * float(np.spacing(np.abs(stamps_T).max()))
    if resolution > TOLERANCE * expected:
      findings.note(
        'rate',
        f'{key} of {episode.where} counts in steps of {resolution:.3g} s, too coarse to tell the '
        'rate: store it from the beginning of each episode, or as whole numbers.',
      )
      return None

  # From the first row: times since 1970 would not be seen to differ.
  seconds_T = (stamps_T - stamps_T[0]).astype(np.float64) * scale
  _check_periods(key, seconds_T, episode, record, findings)
  return float(np.median(np.diff(seconds_T)))


def _find_scale(path: str, step: float, expected: float) -> float:
  """Seconds of one unit of the timestamps: by their name, or that which comes nearest to the rate
  of the record.
  """
  named = _TIME.search(path.rsplit('/', 1)[-1])[1]
  if named:
    return UNITS[named]
  if step <= 0:
    return 1.0
  return min(UNITS.values(), key=lambda scale: abs(np.log(step * scale / expected)))


def _check_periods(
  key: str,
  seconds_T: np.ndarray,
  episode: episode_lib.Episode,
  record: record_lib.Embodiment,
  findings: findings_lib.Findings,
) -> None:
  where = episode.where
  expected = 1 / record.control_hz
  period_T = np.diff(seconds_T)
  period = float(np.median(period_T))
  is_gap_T = period_T > GAP * expected
  if (period_T <= 0).any():
    step = int(np.argmax(period_T <= 0))
    findings.fail(
      'rate',
      f'{key} of {where} does not grow: {seconds_T[step]:.6g} s at step {step}, '
      f'{seconds_T[step + 1]:.6g} s at the next; expected {expected:.4g} s more: sort the rows. '
      f'{episode.remedy}',
    )
  elif abs(period - expected) > TOLERANCE * expected:
    findings.fail(
      'rate',
      f'{key} of {where} grows by {period:.4g} s a row ({1 / period:.4g} Hz); expected '
      f'{expected:.4g} s: correct control_hz={record.control_hz:g} of {record.name!r}, or '
      'resample the rows.',
    )
  elif is_gap_T.any():
    step = int(np.argmax(period_T))
    findings.warn(
      'rate',
      f'{key} of {where} has {int(is_gap_T.sum())} gaps, of {period_T[step]:.4g} s after '
      f'step {step}; expected {expected:.4g} s: rows are missing.',
    )


def _check_rates(
  clock: Clock,
  outline: episode_lib.Outline,
  episode: episode_lib.Episode,
  record: record_lib.Embodiment,
  findings: findings_lib.Findings,
) -> None:
  """Catches a record of another rate than the dataset says it has."""
  for path in clock.rates:
    told = outline.read_numbers(path)
    known = (record.control_hz, record.video_fps)
    if not len(told) or any(abs(told[0] - hz) <= TOLERANCE * hz for hz in known):
      continue
    findings.warn(
      'rate',
      f'{path.removeprefix("steps/")} of {episode.where} is {told[0]:g}; expected '
      f'control_hz={record.control_hz:g} (or video_fps={record.video_fps:g}) of {record.name!r}: '
      'correct the record, unless it is the rate of something else.',
    )
