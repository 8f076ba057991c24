"""Which steps of an episode make a sample: the table of anchors, and the arithmetic from anchor to
steps.

A window is one conditioning frame at step a and Q chunks. With S control steps a chunk and a camera
frame every `stride` steps, chunk q covers the actions of steps a + q*S ... a + (q+1)*S - 1, starts
at the state of step a + q*S, and shows the frames a + q*S + stride ... a + (q+1)*S. A window stays
inside one language span.

A chunk counts where its last frame, step a + (q+1)*S, still exists: at the end of an episode just
as in the reference (spec 5.4, cases 3 and 4). Otherwise it differs. The reference takes up to four
chunks around a drawn step, backwards too, and compares instructions at the chunks' starts only, so
that a chunk may run into the next instruction; here the drawn step is the first of its window,
chunks follow forwards, and those past the span are padded and masked. Idle steps are cut out of the
reference's episodes, so that a window may jump in time; here every chunk that counts starts inside
one kept range, and time runs on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath

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
    action_steps_QS: [Q, S] steps of the actions.
    mask_Q: [Q] bool, True where the chunk, its last frame included, lies inside the span.
  """

  frame_steps_R: np.ndarray
  state_steps_Q: np.ndarray
  action_steps_QS: np.ndarray
  mask_Q: np.ndarray


def make_window(record: record_lib.Embodiment, chunks: int, anchor: int, stop: int) -> Window:
  """The window of `chunks` chunks that begins at step `anchor` of a language span ending before
  `stop`.
  """
  S = record.steps_per_chunk
  last = stop - 1
  starts_Q = anchor + S * np.arange(chunks)
  actions_QS = starts_Q[:, None] + np.arange(S)
  # The conditioning frame, and those of each chunk after it.
  frames_R = anchor + record.stride * np.arange(1 + chunks * record.camera_frames_per_chunk)
  return Window(
    frame_steps_R=np.minimum(frames_R, last),
    state_steps_Q=np.minimum(starts_Q, last),
    action_steps_QS=np.minimum(actions_QS, last),
    mask_Q=starts_Q + S <= last,  # The step after a chunk's actions is its last frame.
  )


def gather(
  episode: sources.Episode, record: record_lib.Embodiment, window: Window
) -> tuple[np.ndarray, np.ndarray]:
  """(proprio_QX, action_QSU) of a window, in the units of the record's slices, relative where it
  says so.
  """
  proprio_QX = record_lib.convert(record.state, episode.state_TX[window.state_steps_Q])
  action_QSU = record_lib.convert(record.action, episode.action_TU[window.action_steps_QS])
  return proprio_QX, normalize.subtract_reference(record, action_QSU, proprio_QX)


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
  """

  episode_K: np.ndarray
  start_K: np.ndarray
  end_K: np.ndarray
  stop_K: np.ndarray
  before_K: np.ndarray
  total: int
  steps_per_chunk: int

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


def make_anchors(episodes: sources.Episodes, ranges: str = '', failures: bool = False) -> Anchors:
  """The anchors of a dataset; its language spans are read once and kept beside it.

  Args:
    ranges: JSON file {name of an episode: [[first step, step after the last], ...]} of the steps
      where chunks may start, named as by the record's `episode_key`; episodes that it does not name
      are left out. '' for all steps. Such a file without DROID's idle steps is published with
      openpi (droid_sample_ranges_v1_0_1.json).
    failures: also take episodes whose name lacks the record's `success`.
  Raises:
    ValueError: the ranges cannot be read or name none of the episodes; no episode is left; or no
      span is long enough for one chunk.
  """
  S = episodes.record.steps_per_chunk
  where = f'{episodes.path} split {episodes.split!r}'
  # Columns: episode, first step, end of the starts of chunks, end of the span.
  spans_S3 = scan.load_spans(episodes)
  stretches_K4 = np.insert(spans_S3, 2, spans_S3[:, 2], axis=1)
  if episodes.record.success and not failures:
    stretches_K4 = _leave_out_failures(stretches_K4, episodes, where)
  if ranges:
    stretches_K4 = _cut(stretches_K4, episodes, ranges, where)
  episode_K, start_K, end_K, stop_K = stretches_K4.T

  # The last frame of a window's first chunk, S steps after its anchor, is inside the span.
  counts_K = np.maximum(np.minimum(end_K, stop_K - S) - start_K, 0)
  if not counts_K.any():
    kept = ' and kept ranges' if ranges else ''
    raise ValueError(
      f'{where}: none of its {len(stretches_K4)} language spans{kept} is longer than one '
      f'chunk of {S} steps (longest: {(stop_K - start_K).max(initial=0)}); shorten chunk_s of '
      f'{episodes.record.name!r} or use longer episodes.'
    )

  # Searching for a sample needs every stretch to have one.
  used_K = counts_K > 0
  counts_K = counts_K[used_K]
  return Anchors(
    episode_K=episode_K[used_K],
    start_K=start_K[used_K],
    end_K=end_K[used_K],
    stop_K=stop_K[used_K],
    before_K=np.cumsum(counts_K) - counts_K,
    total=int(counts_K.sum()),
    steps_per_chunk=S,
  )


def list_findings(
  episodes: sources.Episodes, ranges: str = '', failures: bool = False
) -> list[scan.Finding]:
  """What `make_anchors` with these arguments needs to know of the episodes."""
  needs_names = ranges or (episodes.record.success and not failures)
  findings: list[scan.Finding] = [scan.Spans(episodes)]
  if needs_names and episodes.record.episode_key:
    findings.append(scan.Names(episodes))
  return findings


def _leave_out_failures(
  stretches_K4: np.ndarray, episodes: sources.Episodes, where: str
) -> np.ndarray:
  names = scan.load_names(episodes)
  mark = episodes.record.success
  succeeded_N = np.asarray([mark in name for name in names])
  if not succeeded_N.any():
    raise ValueError(
      f'{where}: none of its {len(names)} episodes has {mark!r} in its name, which marks success '
      f'(as in {names[0]!r}); take failures too, or correct {episodes.record.name!r}.'
    )
  return stretches_K4[succeeded_N[stretches_K4[:, 0]]]


def _cut(
  stretches_K4: np.ndarray, episodes: sources.Episodes, ranges: str, where: str
) -> np.ndarray:
  """The stretches, each divided into the parts where chunks may start."""
  if not episodes.record.episode_key:
    raise ValueError(
      f'{where}: {ranges} keeps ranges of named episodes, but {episodes.record.name!r} has no '
      'episode_key that says how its episodes are named; add it, or leave the ranges out.'
    )
  kept = _read_ranges(ranges)
  names = scan.load_names(episodes)
  # A file of another version of the dataset may name its episodes otherwise.
  if not any(names[episode] in kept for episode in stretches_K4[:, 0]):
    raise ValueError(
      f'{ranges} names none of the episodes of {where}: it has, for example, '
      f'{next(iter(kept), "nothing")!r}, the dataset {names[0]!r}. Use the file of this version.'
    )
  parts = []
  for episode, start, end, stop in stretches_K4.tolist():
    for first, last in kept.get(names[episode], ()):
      # Chunks start inside the range; their steps may go on to the end of the span.
      part_start = max(start, first)
      part_end = min(end, last)
      if part_start < part_end:
        parts.append((episode, part_start, part_end, stop))
  return np.asarray(parts, np.int64).reshape(-1, 4)


def _read_ranges(file: str) -> dict[str, list[list[int]]]:
  path = epath.Path(file).expanduser()
  if not path.exists():
    raise ValueError(f'There is no file of step ranges {path}; correct the path, or leave it out.')
  try:
    kept = json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}); download it again.') from e
  if isinstance(kept, dict):
    wrong = [
      f'{name!r}: {str(pairs)[:80]}' for name, pairs in kept.items() if not _are_ranges(pairs)
    ]
  else:
    wrong = [f'{type(kept).__name__} at the top']
  if wrong:
    raise ValueError(
      f'{path} must map names of episodes to lists of [first step, step after the last]; it has '
      f'{"; ".join(wrong[:10])}.'
    )
  return kept


def _are_ranges(pairs: Any) -> bool:
  return isinstance(pairs, list) and all(map(_is_range, pairs))


def _is_range(pair: Any) -> bool:
  if not isinstance(pair, list) or len(pair) != 2:
    return False
  # Not isinstance: True is an int, too.
  return all(type(step) is int and step >= 0 for step in pair)
