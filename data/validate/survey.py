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
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import statistics

EQUAL = (
  1e-5  # Relative to 1 + |state|: the rounding of a copy stays below, a controller's error above.
)
CLOCK_TOLERANCE = 0.05  # Of the period: clocks are right to 1 %, usual rates are 20 % apart.
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
    """Of all rows; to be asked for when all are there."""
    return self.sketch.quantiles()

  @property
  def extremes_KN3(self) -> np.ndarray:
    """Value, episode and step of the lowest and highest values."""
    return np.concatenate([self._low, self._high])


def _extend(kept_KN3, rows_TN, step_T, episode, sign):
  row_N = (sign * rows_TN).argmax(0)
  value_N = np.take_along_axis(rows_TN, row_N[None], 0)[0]
  pool = np.concatenate(
    [kept_KN3, np.stack([value_N, np.full(row_N.shape, episode), step_T[row_N]], -1)[None]]
  )
  order = np.argsort(-sign * pool[..., 0], axis=0, kind='stable')[: findings_lib.MOST]
  return np.take_along_axis(pool, order[..., None], 0)


class Agreement:
  """How each action dimension compares with each state dimension: equal now, equal one step later,
  or near.

  Equality counts only where the state dimension moves: a robot at rest agrees with every command to
  rest.
  """

  def __init__(self, actions: int, states: int):
    self.moving_X, self.first_UX2 = np.zeros(states), np.full((actions, states, 2), -1)
    self.now_UX, self.next_UX, self._product_UX = np.zeros((3, actions, states))
    self._action_U, self._state_X, self._steps = np.zeros((2, actions)), np.zeros((2, states)), 0

  def add(self, action_TU: np.ndarray, state_TX: np.ndarray, episode: int) -> None:
    """Adds one episode; a single step cannot move."""
    if len(state_TX) < 2:
      return
    action_TU, state_TX = action_TU.astype(np.float64), state_TX.astype(np.float64)
    near_TX = EQUAL * (1 + np.abs(state_TX[:-1]))
    moving_TX = np.abs(np.diff(state_TX, axis=0)) > 10 * near_TX
    equal = lambda state: (
      (np.abs(action_TU[:-1, :, None] - state[:, None]) <= near_TX[:, None]) & moving_TX[:, None]
    )
    now_TUX = equal(state_TX[:-1])
    self.moving_X += moving_TX.sum(0)
    self.now_UX += now_TUX.sum(0)
    self.next_UX += equal(state_TX[1:]).sum(0)
    new_UX = now_TUX.any(0) & (self.first_UX2[..., 0] < 0)
    self.first_UX2[new_UX] = np.stack(
      [np.full(new_UX.sum(), episode), now_TUX.argmax(0)[new_UX]], -1
    )
    self._steps += len(state_TX)
    self._action_U += [action_TU.sum(0), np.square(action_TU).sum(0)]
    self._state_X += [state_TX.sum(0), np.square(state_TX).sum(0)]
    self._product_UX += action_TU.T @ state_TX

  def distance_UX(self) -> np.ndarray:
    """Root mean square of action - state, in standard deviations of the action."""
    steps = max(self._steps, 1)
    (mean_U, square_U), square_X = self._action_U / steps, self._state_X[1] / steps
    variance_U = np.maximum(square_U - np.square(mean_U), 1e-12)
    return np.sqrt(
      np.maximum(square_U[:, None] - 2 * self._product_UX / steps + square_X, 0)
      / variance_U[:, None]
    )


@dataclasses.dataclass
class Survey:
  """What one pass over all records keeps.

  Attributes:
    record: the embodiment.
    state, action: the record's vectors.
    relative: the actions counted from the state at their chunk's start, of all chunks; empty
      without such slices.
    agreement: of actions and states.
    lengths: steps of every readable episode.
    words: language spans by their first instruction that is not blank.
    blank: steps without text, by language key.
    repeats: (repeated, active) rows of the state.
    periods: median seconds from row to row of every episode that stores timestamps.
    images: (number, bytes) of the images that were read.
  """

  record: embodiments.Embodiment
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
    """Of all readable episodes."""
    return sum(self.lengths)

  def parts(self) -> Iterator[tuple[str, tuple[embodiments.Slice, ...], Columns, np.ndarray]]:
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
    record, state, action = self.record, self.state.summary, self.action.summary
    if self.relative.sketch.count:
      is_relative_U, relative = np.asarray(record.reference_columns) >= 0, self.relative.summary
      action = normalize.Quantiles(
        *(
          np.where(is_relative_U, getattr(relative, key), getattr(action, key))
          for key in normalize.ARRAYS
        )
      )
    norms = lambda slices: tuple(s.norm for s in slices for _ in range(s.width))
    return normalize.Statistics(
      dataclasses.replace(state, norms=norms(record.state)),
      dataclasses.replace(action, norms=norms(record.action)),
      self.steps,
    )


def read(
  episodes: sources.Episodes, with_images: Container[int], findings: findings_lib.Findings
) -> Survey:
  """Reads every record once; what cannot be read is a finding, and left out.

  Args:
    with_images: episodes whose images are read, too, to see that they are whole.
  """
  record, clock = episodes.record, _clock_slice(episodes.path)
  timed = (
    episodes
    if clock is None
    else sources.Episodes(
      episodes.path, episodes.split, dataclasses.replace(record, action=(*record.action, clock))
    )
  )
  kept = Survey(
    record,
    Columns(record.proprio_dim),
    Columns(record.action_dim),
    Columns(record.action_dim),
    Agreement(record.action_dim, record.proprio_dim),
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


def _clock_slice(path: epath.Path) -> embodiments.Slice | None:
  """The timestamps of a dataset, where its steps have some, as one more slice of the action."""
  steps = tfds.builder_from_directory(path).info.features.get_tensor_info()['steps']
  for prefix, group in (('', steps), ('observation/', steps.get('observation', {}))):
    if 'timestamp' in group and np.issubdtype(group['timestamp'].np_dtype, np.number):
      return embodiments.Slice(f'{prefix}timestamp', 0, 1, 's')
  return None


def _add_numbers(kept: Survey, episode: sources.Episode, i: int) -> None:
  record, S = kept.record, kept.record.steps_per_chunk
  state_TX = embodiments.convert(record.state, episode.state_TX)
  action_TU = embodiments.convert(record.action, episode.action_TU[:, : record.action_dim])
  kept.lengths.append(episode.length)
  kept.state.add(state_TX, np.arange(episode.length), i)
  kept.action.add(action_TU, np.arange(episode.length), i)
  kept.agreement.add(action_TU, state_TX, i)
  kept.repeats += signals.repeats(np.linalg.norm(np.diff(state_TX, axis=0), axis=1))
  starts_Q = np.arange(episode.length - S + 1)
  if max(record.reference_columns, default=-1) >= 0 and starts_Q.size:
    steps_QS = starts_Q[:, None] + np.arange(S)
    action_QSU = normalize.subtract_reference(record, action_TU[steps_QS], state_TX[starts_Q])
    kept.relative.add(action_QSU.reshape(-1, record.action_dim), steps_QS.reshape(-1), i)


def _add_words(
  kept: Survey,
  episode: sources.Episode,
  episodes: sources.Episodes,
  i: int,
  findings: findings_lib.Findings,
) -> None:
  success = kept.record.success
  for span in episode.spans:
    kept.blank.update(
      {
        key: span.stop - span.start
        for key, text in zip(kept.record.language, span.texts)
        if not text.strip()
      }
    )
    if texts := [text.strip() for text in span.texts if text.strip()]:
      kept.words[texts[0]] += 1
    elif not success or success in episodes.name(i):  # Training leaves other episodes out.
      findings.fail(
        'language',
        f'steps {span.start} to {span.stop - 1} of {episode.where} have no text under '
        f'{" or ".join(kept.record.language)}; expected an instruction: write one or drop the episode.',
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
  seconds_T, expected = episode.action_TU[:, -1].astype(np.float64), 1 / kept.record.control_hz
  if (
    len(seconds_T) < 2
    or np.spacing(np.float32(np.abs(seconds_T).max())) > CLOCK_TOLERANCE * expected
  ):
    return  # Times since 1970 are coarser in float32 than the steps.
  period_T, where = np.diff(seconds_T), episode.where
  period = float(np.median(period_T))
  kept.periods.append(period)
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
      f'{expected:.4g} s: correct control_hz={kept.record.control_hz:g} of {kept.record.name!r}, or '
      'resample the rows.',
    )
  elif (period_T > CLOCK_GAP * expected).any():
    step = int(np.argmax(period_T))
    findings.warn(
      'rate',
      f'timestamps of {where} have {int((period_T > CLOCK_GAP * expected).sum())} gaps, of '
      f'{period_T[step]:.4g} s after step {step}; expected {expected:.4g} s: rows are missing.',
    )
