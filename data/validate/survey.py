"""One streaming pass over all records: what the checks of numbers, words and rates need. Decodes no
image.

Findings that belong to one record are reported here, those of the whole dataset in `numeric`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Container, Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data.validate import findings as findings_lib
from data.validate import signals
from wam_jax import progress
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import statistics

# Relative to 1 + |state|: the rounding of a copy stays below, a controller's error above.
EQUAL = 1e-5
# Share of the period: clocks are right to 1 %, usual rates are 20 % apart.
CLOCK_TOLERANCE = 0.05
CLOCK_GAP = 1.5  # Periods from one row to the next above which one is missing.
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
JPEG_END, PNG_END = b'\xff\xd9', b'IEND\xaeB`\x82'
END_BYTES = 64  # In which the end mark must be: some encoders pad after it.


class Columns:
  """`statistics.QuantileSketch`, and the extremes with their places: at most one of each kind an
  episode.
  """

  def __init__(self, width: int):
    self.sketch = statistics.QuantileSketch()
    self._low, self._high = np.zeros((2, 0, width, 3))

  def add(self, rows_TN: np.ndarray, step_T: np.ndarray, episode: int) -> None:
    """Adds rows of these steps of one episode."""
    if len(rows_TN):
      self.sketch.add(rows_TN)
      self._low = _extend(self._low, rows_TN, step_T, episode, -1)
      self._high = _extend(self._high, rows_TN, step_T, episode, 1)

  @functools.cached_property
  def summary(self) -> normalize.Quantiles:
    """The quantiles of all rows; to be asked for when all are there."""
    return self.sketch.quantiles()

  @property
  def extremes_KN3(self) -> np.ndarray:
    """Value, episode and step of the lowest and highest values."""
    return np.concatenate([self._low, self._high])


def _extend(
  kept_KN3: np.ndarray, rows_TN: np.ndarray, step_T: np.ndarray, episode: int, sign: int
) -> np.ndarray:
  """The most extreme values of each dimension, and their places, with those of one more episode;
  `sign` is 1 for the highest and -1 for the lowest ones.
  """
  row_N = (sign * rows_TN).argmax(0)
  value_N = np.take_along_axis(rows_TN, row_N[None], 0)[0]
  new_N3 = np.stack([value_N, np.full(row_N.shape, episode), step_T[row_N]], -1)
  pool_KN3 = np.concatenate([kept_KN3, new_N3[None]])
  order_KN = np.argsort(-sign * pool_KN3[..., 0], axis=0, kind='stable')
  best_KN = order_KN[: findings_lib.MOST]  # More would not be spelled out.
  return np.take_along_axis(pool_KN3, best_KN[..., None], 0)


class Agreement:
  """How each action dimension compares with each state dimension: equal now, equal one step later,
  or near.

  Equality counts only where the state dimension moves: a robot at rest agrees with every command to
  rest.
  """

  def __init__(self, actions: int, states: int):
    self.moving_X = np.zeros(states)
    self.first_UX2 = np.full((actions, states, 2), -1)  # (episode, step) of the first equality.
    self.now_UX = np.zeros((actions, states))
    self.next_UX = np.zeros((actions, states))
    self._steps = 0
    self._sum_U = np.zeros(actions)
    self._squares_U = np.zeros(actions)
    self._squares_X = np.zeros(states)
    self._product_UX = np.zeros((actions, states))

  def add(self, action_TU: np.ndarray, state_TX: np.ndarray, episode: int) -> None:
    """Adds one episode; a single step cannot move."""
    if len(state_TX) < 2:
      return
    action_TU = action_TU.astype(np.float64)
    state_TX = state_TX.astype(np.float64)
    now_TX, next_TX = state_TX[:-1], state_TX[1:]
    near_TX = EQUAL * (1 + np.abs(now_TX))
    # Well above what counts as equal: the state of this step is then not that of the next one, too.
    is_moving_TX = np.abs(next_TX - now_TX) > 10 * near_TX

    def equal(compared_TX: np.ndarray) -> np.ndarray:
      difference_TUX = np.abs(action_TU[:-1, :, None] - compared_TX[:, None])
      return (difference_TUX <= near_TX[:, None]) & is_moving_TX[:, None]

    now_TUX = equal(now_TX)
    self.moving_X += is_moving_TX.sum(0)
    self.now_UX += now_TUX.sum(0)
    self.next_UX += equal(next_TX).sum(0)

    is_new_UX = now_TUX.any(0) & (self.first_UX2[..., 0] < 0)
    step_K = now_TUX.argmax(0)[is_new_UX]
    self.first_UX2[is_new_UX] = np.stack([np.full(step_K.shape, episode), step_K], -1)

    # The moments that give the distances of all pairs without keeping a row.
    self._steps += len(state_TX)
    self._sum_U += action_TU.sum(0)
    self._squares_U += np.square(action_TU).sum(0)
    self._squares_X += np.square(state_TX).sum(0)
    self._product_UX += action_TU.T @ state_TX

  def distance_UX(self) -> np.ndarray:
    """Root mean square of action - state, in standard deviations of the action."""
    steps = max(self._steps, 1)
    square_U = self._squares_U / steps
    square_X = self._squares_X / steps
    variance_U = np.maximum(square_U - np.square(self._sum_U / steps), 1e-12)
    # (a - x)^2 = a^2 - 2 a x + x^2, on average; rounding may leave it just below 0.
    square_UX = np.maximum(square_U[:, None] - 2 * self._product_UX / steps + square_X, 0)
    return np.sqrt(square_UX / variance_U[:, None])


@dataclasses.dataclass
class Survey:
  """What one pass over all records keeps.

  Attributes:
    record: the embodiment.
    state, action: the record's vectors.
    relative: the actions counted from the state at their chunk's start, of all chunks; empty
      without such slices.
    agreement: how actions compare with states.
    lengths: the steps of every readable episode.
    words: the number of language spans by their first instruction that is not blank.
    blank: the number of steps without text, by language key.
    repeats: (repeated, active) rows of the state.
    periods: the median seconds from row to row of every episode that stores timestamps.
    images: (number, bytes) of the images that were read.
  """

  record: record_lib.Embodiment
  state: Columns
  action: Columns
  relative: Columns
  agreement: Agreement
  lengths: list[int] = dataclasses.field(default_factory=list)
  words: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  blank: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  repeats: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, int))
  periods: list[float] = dataclasses.field(default_factory=list)
  images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, int))

  @property
  def steps(self) -> int:
    """The steps of all readable episodes."""
    return sum(self.lengths)

  def parts(self) -> Iterator[tuple[str, tuple[record_lib.Slice, ...], Columns, np.ndarray]]:
    """(name, slices, columns, [N] bool which dimensions count) of the state, the action and the
    relative action.

    The last two share the action's dimensions as the model sees them.
    """
    record = self.record
    relative_U = np.asarray(record.reference_columns, np.int64) >= 0
    yield 'state', record.state, self.state, np.ones(record.proprio_dim, bool)
    yield 'action', record.action, self.action, ~relative_U
    yield 'action', record.action, self.relative, relative_U & (self.relative.sketch.count > 0)

  @functools.cached_property
  def statistics(self) -> normalize.Statistics:
    """What `data.statistics` computes; to be asked for when all episodes are there, and at least
    one.
    """
    record = self.record
    action = self.action.summary
    if self.relative.sketch.count:
      relative = self.relative.summary
      is_relative_U = np.asarray(record.reference_columns) >= 0
      arrays = {
        key: np.where(is_relative_U, getattr(relative, key), getattr(action, key))
        for key in normalize.ARRAYS
      }
      action = normalize.Quantiles(**arrays)
    return normalize.Statistics(
      state=dataclasses.replace(self.state.summary, norms=_norms(record.state)),
      action=dataclasses.replace(action, norms=_norms(record.action)),
      steps=self.steps,
    )


def _norms(slices: tuple[record_lib.Slice, ...]) -> tuple[str, ...]:
  """How each dimension is normalized."""
  return tuple(s.norm for s in slices for _ in range(s.width))


def read(
  episodes: sources.Episodes, with_images: Container[int], findings: findings_lib.Findings
) -> Survey:
  """Reads every record once; what cannot be read is a finding, and left out.

  Args:
    with_images: episodes whose images are read, too, to see that they are whole.
  """
  record = episodes.record
  clock = _find_clock(episodes.path)
  timed = episodes
  if clock is not None:
    timed_record = dataclasses.replace(record, action=(*record.action, clock))
    timed = sources.Episodes(episodes.path, episodes.split, timed_record)

  kept = Survey(
    record=record,
    state=Columns(record.proprio_dim),
    action=Columns(record.action_dim),
    relative=Columns(record.action_dim),
    agreement=Agreement(record.action_dim, record.proprio_dim),
  )
  for i in progress.track(range(len(timed)), 'reading episodes', len(timed), 'episodes'):
    try:
      episode = timed[i]
    except ValueError as e:
      findings.fail('record', str(e))
      continue
    _add_numbers(kept, episode, i)
    _add_words(kept, episode, timed, i, findings)
    if i in with_images:
      _add_images(kept, episode, findings)
    if clock is not None:
      _add_clock(kept, episode, findings)
  return kept


def _find_clock(path: epath.Path) -> record_lib.Slice | None:
  """The timestamps of a dataset, where its steps have some, as one more slice of the action."""
  steps = tfds.builder_from_directory(path).info.features.get_tensor_info()['steps']
  for prefix, group in (('', steps), ('observation/', steps.get('observation', {}))):
    if 'timestamp' in group and np.issubdtype(group['timestamp'].np_dtype, np.number):
      return record_lib.Slice(f'{prefix}timestamp', 0, 1, 's')
  return None


def _add_numbers(kept: Survey, episode: sources.Episode, i: int) -> None:
  record = kept.record
  steps = record.steps_per_chunk
  state_TX = record_lib.convert(record.state, episode.state_TX)
  # Without the timestamps, which stand behind the action.
  action_TU = record_lib.convert(record.action, episode.action_TU[:, : record.action_dim])
  kept.lengths.append(episode.length)
  kept.state.add(state_TX, np.arange(episode.length), i)
  kept.action.add(action_TU, np.arange(episode.length), i)
  kept.agreement.add(action_TU, state_TX, i)
  speed_T = np.linalg.norm(np.diff(state_TX, axis=0), axis=1)
  kept.repeats += signals.repeats(speed_T)

  # Relative actions as training sees them: a step once for each chunk that it is in.
  starts_Q = np.arange(episode.length - steps + 1)
  has_relative = max(record.reference_columns, default=-1) >= 0
  if has_relative and starts_Q.size:
    steps_QS = starts_Q[:, None] + np.arange(steps)
    action_QSU = normalize.subtract_reference(record, action_TU[steps_QS], state_TX[starts_Q])
    kept.relative.add(action_QSU.reshape(-1, record.action_dim), steps_QS.reshape(-1), i)


def _add_words(
  kept: Survey,
  episode: sources.Episode,
  episodes: sources.Episodes,
  i: int,
  findings: findings_lib.Findings,
) -> None:
  record = kept.record
  for span in episode.spans:
    for key, text in zip(record.language, span.texts):
      if not text.strip():
        kept.blank[key] += span.stop - span.start
    texts = [text.strip() for text in span.texts if text.strip()]
    if texts:
      kept.words[texts[0]] += 1
    elif not record.success or record.success in episodes.name(i):
      # Training leaves the other episodes out, as failed ones.
      findings.fail(
        'language',
        f'steps {span.start} to {span.stop - 1} of {episode.where} have no text under '
        f'{" or ".join(record.language)}; expected an instruction: write one or drop the episode.',
      )


def _add_images(kept: Survey, episode: sources.Episode, findings: findings_lib.Findings) -> None:
  for key in episode.encoded:
    for step in range(episode.length):
      try:
        image = episode.encoded[key][step]
      except ValueError as e:
        findings.fail('image', f'image {key!r} of step {step} of {episode.where}: {e}')
        continue
      kept.images += [1, len(image)]
      if problem := damage(image):
        findings.fail(
          'image',
          f'image {key!r} of step {step} of {episode.where} {problem} ({len(image)} bytes); '
          'expected a whole JPEG or PNG: encode it again or drop the episode.',
        )


def damage(image: bytes) -> str:
  """What is wrong with an encoded image, as far as its two ends tell; ''."""
  if image[:2] == JPEG:
    return '' if JPEG_END in image[-END_BYTES:] else 'is a truncated JPEG'
  if image[:8] == PNG:
    return '' if PNG_END in image[-END_BYTES:] else 'is a truncated PNG'
  return f'is no JPEG or PNG: it begins with {image[:4].hex(" ")}' if image else 'is empty'


def _add_clock(kept: Survey, episode: sources.Episode, findings: findings_lib.Findings) -> None:
  """Catches a control_hz that is not the rate at which rows were written, rows out of order, and
  rows that a recorder lost.
  """
  record, where = kept.record, episode.where
  expected = 1 / record.control_hz
  seconds_T = episode.action_TU[:, -1].astype(np.float64)
  if len(seconds_T) < 2:
    return
  # Times since 1970 are coarser in float32 than the steps.
  resolution = np.spacing(np.float32(np.abs(seconds_T).max()))
  if resolution > CLOCK_TOLERANCE * expected:
    return

  period_T = np.diff(seconds_T)
  period = float(np.median(period_T))
  kept.periods.append(period)
  is_gap_T = period_T > CLOCK_GAP * expected
  if (period_T <= 0).any():
    step = int(np.argmax(period_T <= 0))
    findings.fail(
      'rate',
      f'timestamps of {where} do not grow: {seconds_T[step]:.6g} s at step {step}, '
      f'{seconds_T[step + 1]:.6g} s at the next; sort the rows or drop the episode.',
    )
  elif abs(period - expected) > CLOCK_TOLERANCE * expected:
    findings.fail(
      'rate',
      f'timestamps of {where} are {period:.4g} s apart ({1 / period:.4g} Hz); expected '
      f'{expected:.4g} s: correct control_hz={record.control_hz:g} of {record.name!r}, or '
      'resample the rows.',
    )
  elif is_gap_T.any():
    step = int(np.argmax(period_T))
    findings.warn(
      'rate',
      f'timestamps of {where} have {int(is_gap_T.sum())} gaps, of {period_T[step]:.4g} s after '
      f'step {step}; expected {expected:.4g} s: rows are missing.',
    )
