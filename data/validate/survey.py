"""One streaming pass over all records: what the checks of numbers, words and rates need. Decodes no
image.

Findings that belong to one record are reported here, those of the whole dataset in `numeric`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Container, Iterator

import numpy as np

from data.validate import clock as clock_lib
from data.validate import duplicates
from data.validate import encoded
from data.validate import findings as findings_lib
from data.validate import signals
from wam_jax import progress
from wam_jax.data import angles
from wam_jax.data import choice as choice_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import sketch as sketch_lib
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import windows

# Relative to 1 + |state|: the rounding of a copy stays below, a controller's error above.
EQUAL = 1e-5
SERIES, SERIES_STEPS = 200, 2000  # Episodes, and rows of each, that are kept whole.


class Columns:
  """The extremes of a vector's columns with their places, at most one of each kind an episode.

  Attributes:
    sketch: of the same rows, which whoever owns it adds to it.
  """

  def __init__(self, sketch: sketch_lib.QuantileSketch, plain_N: np.ndarray):
    """
    Args:
      plain_N: as `statistics.list_plain` has it: quantiles are judged that training takes.
    """
    self.sketch = sketch
    self._plain_N = plain_N
    self._low, self._high = np.zeros((2, 0, len(plain_N), 3))

  def add(self, rows_TN: np.ndarray, step_T: np.ndarray, episode: int) -> None:
    """Adds rows of these steps of one episode."""
    if len(rows_TN):
      self._low = _extend(self._low, rows_TN, step_T, episode, -1)
      self._high = _extend(self._high, rows_TN, step_T, episode, 1)

  @functools.cached_property
  def summary(self) -> normalize.Quantiles:
    """The quantiles of all rows; to be asked for when all are there."""
    return self.sketch.quantiles(self._plain_N)

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

  def add(
    self, action_TU: np.ndarray, state_TX: np.ndarray, step_T: np.ndarray, episode: int
  ) -> None:
    """Adds these steps of one episode; a single one cannot move."""
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
    step_K = step_T[now_TUX.argmax(0)[is_new_UX]]
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


@dataclasses.dataclass(frozen=True)
class Series:
  """The numbers of one episode, from its beginning.

  Attributes:
    where: the shard file and the record.
    state_TX, action_TU: the record's vectors, of at most `SERIES_STEPS` rows.
    step_T: the step of each row; those that are left out have none.
  """

  where: str
  state_TX: np.ndarray
  action_TU: np.ndarray
  step_T: np.ndarray


@dataclasses.dataclass
class Seen:
  """How often an instruction is given, and where first.

  Attributes:
    step: of the first span with it, in the episode at `where`.
    count: spans.
  """

  where: str
  step: int
  count: int = 0


@dataclasses.dataclass
class Survey:
  """What one pass over all records keeps.

  Attributes:
    record: the embodiment.
    state, action: the record's vectors.
    relative: the actions counted from the state at their chunk's start, of all chunks; empty
      without such slices.
    agreement: how actions compare with states.
    grid, sketches: what episodes are told by in `duplicates`, and of each that.
    series: the numbers of some episodes, spread over the dataset.
    computed: what `data.statistics` computes.
    lengths: the steps of every readable episode.
    unread: the number of episodes that cannot be read.
    left_out: by reason, how many episodes training does not take and which are not looked at.
    whole: the episodes that can be decoded from the first step to the last.
    words: the number of language spans by their first instruction that is not blank.
    texts: the instructions that are not blank, by language key and text.
    spans: the number of language spans.
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
  computed: statistics.Computation
  grid: duplicates.Grid | None = None
  sketches: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
  series: list[Series] = dataclasses.field(default_factory=list)
  lengths: list[int] = dataclasses.field(default_factory=list)
  unread: int = 0
  whole: set[int] = dataclasses.field(default_factory=set)
  left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  words: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  texts: dict[tuple[str, str], Seen] = dataclasses.field(default_factory=dict)
  spans: int = 0
  blank: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  repeats: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, int))
  periods: list[float] = dataclasses.field(default_factory=list)
  images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, int))

  @classmethod
  def of(cls, record: record_lib.Embodiment) -> Survey:
    """What is kept of no episode yet."""
    computed = statistics.Computation(record)
    plain_X, plain_U = statistics.list_plain(record)
    return cls(
      record=record,
      # Of all rows, while statistics are of the chunks alone.
      state=Columns(sketch_lib.QuantileSketch(), plain_X),
      action=Columns(computed.action, plain_U),
      relative=Columns(computed.relative, plain_U),
      agreement=Agreement(record.action_dim, record.proprio_dim),
      computed=computed,
    )

  def add(
    self,
    state_TX: np.ndarray,
    action_TU: np.ndarray,
    starts_Q: np.ndarray,
    here_K: np.ndarray,
    i: int,
  ) -> None:
    """Adds the numbers of an episode.

    Args:
      starts_Q: steps at which chunks start.
      here_K: steps that are not left out.
    """
    # The last action of an RLDS episode was never executed, and may be anything.
    counted = self.computed.add_converted(state_TX, action_TU, starts_Q, i)
    self.action.add(counted.action_KU, counted.step_K, i)
    self.relative.add(counted.relative_RU, counted.step_R, i)
    state_KX = state_TX[here_K]
    self.state.sketch.add(state_KX)
    self.state.add(state_KX, here_K, i)
    self.agreement.add(action_TU[here_K], state_KX, here_K, i)
    self.repeats += signals.repeats(np.linalg.norm(np.diff(state_KX, axis=0), axis=1))

  @property
  def seams(self) -> dict[str, angles.Seams]:
    """Of the state and the action, jumps of a whole turn."""
    return self.computed.seams

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
    return self.computed.finish('the dataset')


def read(
  episodes: sources.Episodes, with_images: Container[int], findings: findings_lib.Findings
) -> Survey:
  """Reads every record once; what cannot be read is a finding, and left out.

  Keeps what training needs to know of the episodes to find its windows, as training itself would.

  Args:
    with_images: episodes whose images are read, too, to see that they are whole.
  """
  record = episodes.record
  clock = clock_lib.find(episodes.path)
  kept = Survey.of(record)
  kept.grid = duplicates.Grid.of(episodes)
  selection = choice_lib.Selection(record, episodes.choice, str(episodes.path))
  missing = [finding for finding in windows.list_findings(episodes) if not finding.load()]
  kept_whole = set(
    np.linspace(0, len(episodes) - 1, min(SERIES, len(episodes))).astype(int).tolist()
  )
  for i in progress.track(range(len(episodes)), 'reading episodes', len(episodes), 'episodes'):
    try:
      outline = episodes.outline(i)
      for finding in missing:
        finding.add(i, outline)
      starts_Q, reason = scan.find_starts(selection, i, outline)
      if reason in choice_lib.UNWANTED:
        kept.left_out[reason] += 1
        continue
      episode = outline.parse()
    except ValueError as e:
      kept.unread += 1
      findings.fail('record', str(e), damaged=i)
      continue
    if not episode.spans:
      kept.left_out['empty'] += 1
      continue
    if sum(span.stop - span.start for span in episode.spans) == episode.length:
      kept.whole.add(i)
    _add_numbers(kept, episode, starts_Q, i, i in kept_whole)
    _add_words(kept, episode, episodes, findings)
    if i in with_images:
      _add_images(kept, episode, i, findings)
    _add_sketch(kept, episode, i, i in with_images)
    period = clock_lib.check(clock, outline, episode, record, findings)
    if period is not None:
      kept.periods.append(period)
  if not kept.unread:
    for finding in missing:
      finding.save()
  return kept


def _add_numbers(
  kept: Survey, episode: episode_lib.Episode, starts_Q: np.ndarray, i: int, is_whole: bool
) -> None:
  record = kept.record
  kept.lengths.append(episode.length)
  state_TX = record_lib.convert(record.state, episode.state_TX)
  action_TU = record_lib.convert(record.action, episode.action_TU)
  # What is left out of it is not looked at.
  here_K = np.concatenate([np.arange(span.start, span.stop) for span in episode.spans])
  kept.add(state_TX, action_TU, starts_Q, here_K, i)
  if is_whole:
    steps = here_K[:SERIES_STEPS]
    kept.series.append(Series(episode.where, state_TX[steps], action_TU[steps], steps))


def _add_sketch(kept: Survey, episode: episode_lib.Episode, i: int, has_images: bool) -> None:
  """Keeps what the episode is told by, where it can be read at no further cost."""
  record = kept.record
  if record.proprio_dim + record.action_dim:
    kept.sketches[i] = kept.grid.sketch(episode.state_TX, episode.action_TU)
  elif has_images:
    try:
      kept.sketches[i] = duplicates.sketch_pictures(episode.encoded[record.views[0].key])
    except ValueError:
      return  # `_add_images` has reported the image.


def _add_words(
  kept: Survey,
  episode: episode_lib.Episode,
  episodes: sources.Episodes,
  findings: findings_lib.Findings,
) -> None:
  record = kept.record
  for span in episode.spans:
    kept.spans += 1
    for key, text in zip(record.language, span.texts):
      if not text.strip():
        kept.blank[key] += span.stop - span.start
        continue
      seen = kept.texts.setdefault((key, text), Seen(episode.where, span.start))
      seen.count += 1
    texts = [text.strip() for text in span.texts if text.strip()]
    if texts:
      kept.words[texts[0]] += 1
    elif not episodes.choice.labeled:  # Which leaves these steps out.
      findings.fail(
        'language',
        f'steps {span.start} to {span.stop - 1} of {episode.where} have no text under '
        f'{" or ".join(record.language)}; expected an instruction: write one, or leave such steps '
        f'out with --skip_unlabeled. {episode.remedy}',
      )


def _add_images(
  kept: Survey, episode: episode_lib.Episode, i: int, findings: findings_lib.Findings
) -> None:
  for key in episode.encoded:
    # Without the steps that are left out.
    for step in itertools.chain.from_iterable(range(s.start, s.stop) for s in episode.spans):
      size, problem = encoded.inspect(episode, key, step)
      if problem:
        findings.fail('image', problem, damaged=i)
      else:
        kept.images += [1, size]
