"""Which steps of an episode make a sample: the table of anchors, and the arithmetic from anchor to
steps.

A window is one conditioning frame at step a and Q chunks. With S control steps a chunk and a camera
frame every `stride` steps, chunk q covers the actions of steps a + q*S ... a + (q+1)*S - 1, starts
at the state of step a + q*S, and shows the frames a + q*S + stride ... a + (q+1)*S. With an overlap
of D steps its actions go on for as many, which are the next chunk's first; those past the span are
masked, and count for no chunk. A window stays inside one language span.

A chunk counts where its last frame, step a + (q+1)*S, still exists: at the end of an episode just
as in the reference. Otherwise it differs. The reference takes up to four chunks around a drawn
step, backwards too, and compares instructions at the chunks' starts only, so that a chunk may run
into the next instruction; here the drawn step is the first of its window, chunks follow forwards,
and those past the span are padded and masked. Idle steps are cut out of the reference's episodes,
so that a window may jump in time; here every chunk that counts starts inside one kept range, and
time runs on. The reference: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from wam_jax.data import choice
from wam_jax.data import episode as episode_lib
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Window:
  """Steps of one sample; those past the span repeat its last step.

  Attributes:
    frame_steps_R: [1 + Q*r] steps of the camera frames.
    state_steps_Q: [Q] first step of each chunk.
    action_steps_QS: [Q, S + D] steps of the actions.
    mask_Q: [Q] bool, True where the chunk, its last frame included, lies inside the span.
    action_mask_QS: [Q, S + D] bool, the actions of such chunks that lie inside the span.
  """

  frame_steps_R: np.ndarray
  state_steps_Q: np.ndarray
  action_steps_QS: np.ndarray
  mask_Q: np.ndarray
  action_mask_QS: np.ndarray


def make_window(
  record: record_lib.Embodiment, chunks: int, anchor: int, stop: int, overlap: int = 0
) -> Window:
  """The window of `chunks` chunks that begins at step `anchor` of a language span ending before
  `stop`; the actions of each go on for `overlap` steps.
  """
  S = record.steps_per_chunk
  last = stop - 1
  starts_Q = anchor + S * np.arange(chunks)
  actions_QS = starts_Q[:, None] + np.arange(S + overlap)
  mask_Q = starts_Q + S <= last  # The step after a chunk's actions is its last frame.
  # The conditioning frame, and those of each chunk after it.
  frames_R = anchor + record.stride * np.arange(1 + chunks * record.camera_frames_per_chunk)
  return Window(
    frame_steps_R=np.minimum(frames_R, last),
    state_steps_Q=np.minimum(starts_Q, last),
    action_steps_QS=np.minimum(actions_QS, last),
    mask_Q=mask_Q,
    # The last step of an episode shows what came of its actions, and has none itself.
    action_mask_QS=mask_Q[:, None] & (actions_QS < last),
  )


def gather(
  episode: episode_lib.Episode, record: record_lib.Embodiment, window: Window
) -> tuple[np.ndarray, np.ndarray]:
  """(proprio_QX, action_QSU) of a window, in the units of the record's slices, relative where it
  says so: to the state at their chunk's start.
  """
  proprio_QX = record_lib.convert(record.state, episode.state_TX[window.state_steps_Q])
  action_QSU = record_lib.convert(record.action, episode.action_TU[window.action_steps_QS])
  return proprio_QX, normalize.subtract_reference(record, action_QSU, proprio_QX)


def find_given(given_T: np.ndarray, window: Window, overlap: int) -> tuple[np.ndarray, np.ndarray]:
  """(given_Q, action_mask_QS) of an episode with actions that are not to be imitated.

  Args:
    given_T: [length] bool, which of its steps have such an action.
    overlap: the most of them that a chunk can begin with.
  Returns:
    The number of them that each chunk begins with; and the window's actions without those after
    others of them, and without all of a chunk that begins with more.
  """
  given_QS = given_T[window.action_steps_QS]
  leads_QS = np.logical_and.accumulate(given_QS, axis=1)
  # One amid a chunk leads to what nobody decided there.
  is_spoilt_QS = np.logical_or.accumulate(given_QS & ~leads_QS, axis=1)
  given_Q = leads_QS.sum(axis=1)
  is_spoilt_QS |= (given_Q > overlap)[:, None]
  given_Q[given_Q > overlap] = 0
  return given_Q.astype(np.int32), window.action_mask_QS & ~is_spoilt_QS


class Anchor(NamedTuple):
  """Where a window begins.

  Attributes:
    episode: number of the episode.
    step: first step of the window.
    stop: the window may use the steps before this one.
  """

  episode: int
  step: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Anchors:
  """Every step of a dataset where a window may begin, with at least one whole chunk, in dataset
  order.

  Held as stretches of steps, not step by step: tens of millions of anchors take a few megabytes in
  every process.

  Attributes:
    episode_K, start_K: [K] episode and first step of each stretch.
    end_K: [K] the step where chunks may no longer start.
    stop_K: [K] end of the language span.
    before_K: [K] anchors of the stretches before; `total` of all.
    steps_per_chunk: S.
    left_out: by reason, how many episodes (or shards) have no anchor.
  """

  episode_K: np.ndarray
  start_K: np.ndarray
  end_K: np.ndarray
  stop_K: np.ndarray
  before_K: np.ndarray
  total: int
  steps_per_chunk: int
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return self.total

  @property
  def fingerprint(self) -> str:
    """The same for the same anchors only: which windows there are, in this order."""
    digest = hashlib.sha256(str(self.steps_per_chunk).encode())
    for column_K in (self.episode_K, self.start_K, self.end_K, self.stop_K):
      digest.update(np.ascontiguousarray(column_K, np.int64))
    return digest.hexdigest()[:16]

  def __getitem__(self, sample: int) -> Anchor:
    if not 0 <= sample < self.total:
      raise IndexError(sample)
    k = int(np.searchsorted(self.before_K, sample, 'right')) - 1
    S = self.steps_per_chunk
    end = int(self.end_K[k])
    step = int(self.start_K[k]) + sample - int(self.before_K[k])
    # Chunks that start before the end count whole, their last frame included.
    chunks = -(-(end - step) // S)
    return Anchor(
      episode=int(self.episode_K[k]),
      step=step,
      stop=min(int(self.stop_K[k]), step + chunks * S + 1),
    )


def make_anchors(episodes: sources.Episodes) -> Anchors:
  """The anchors of a dataset, as its choice wants them; its language spans are read once and kept
  beside it.

  Raises:
    ValueError: the ranges cannot be read or name none of the episodes; no episode is left; or no
      span is long enough for one chunk.
  """
  record = episodes.record
  S = record.steps_per_chunk
  where = f'{episodes.path} split {episodes.split!r}'
  selection = choice.Selection(record, episodes.choice, where)
  spans_S4 = scan.load_spans(episodes)
  names: list[str] = []
  if selection.needs_names and len(spans_S4):
    names = scan.load_names(episodes)
    selection.check_names([names[n] for n in np.unique(spans_S4[:, 0])])
  stretches = selection.cut(spans_S4, names.__getitem__)
  if not len(stretches.rows_K4):
    kept = ' and kept ranges' if episodes.choice.ranges else ''
    longest = (spans_S4[:, 2] - spans_S4[:, 1]).max(initial=0)
    raise ValueError(
      f'{where}: none of its {len(spans_S4)} language spans{kept} is longer than one '
      f'chunk of {S} steps (longest: {longest}); shorten chunk_s of {record.name!r} or use longer '
      f'episodes{_show_reasons(stretches.left_out)}.'
    )

  episode_K, start_K, end_K, stop_K = stretches.rows_K4.T
  counts_K = np.minimum(end_K, stop_K - S) - start_K
  return Anchors(
    episode_K=episode_K,
    start_K=start_K,
    end_K=end_K,
    stop_K=stop_K,
    before_K=np.cumsum(counts_K) - counts_K,
    total=int(counts_K.sum()),
    steps_per_chunk=S,
    left_out=episodes.list_left_out() | _count_empty(episodes, spans_S4) | stretches.left_out,
  )


def _count_empty(episodes: sources.Episodes, spans_S4: np.ndarray) -> dict[str, int]:
  empty = len(episodes) - len(np.unique(spans_S4[:, 0]))
  return {'empty': empty} if empty else {}


def _show_reasons(left_out: Mapping[str, int]) -> str:
  shown = ', '.join(f'{count} {reason}' for reason, count in left_out.items())
  return f' (left out: {shown})' if shown else ''


def describe_left_out(episodes: sources.Episodes, anchors: Anchors) -> str:
  """What of a split has no window and why, in a line; '' where every episode has some."""
  if not anchors.left_out:
    return ''
  taken = len(np.unique(anchors.episode_K))
  reasons = ', '.join(f'{count} {reason}' for reason, count in anchors.left_out.items())
  return f'{episodes.path} split {episodes.split!r}: {taken} episodes taken; left out: {reasons}'


def list_findings(episodes: sources.Episodes) -> list[scan.Finding]:
  """What `make_anchors` needs to know of the episodes."""
  findings: list[scan.Finding] = [scan.Spans(episodes)]
  if choice.needs_names(episodes.record, episodes.choice, str(episodes.path)):
    findings.append(scan.Names(episodes))
  return findings
