"""Which steps of an episode make a sample: the table of anchors, and the arithmetic from anchor to steps.

A window is one conditioning frame at step a and Q chunks. With S control steps a chunk and a camera frame every
`stride` steps, chunk q covers the actions of steps a + q*S ... a + (q+1)*S - 1, starts at the state of step a + q*S,
and shows the frames a + q*S + stride ... a + (q+1)*S. A window stays inside one language span.
"""
from __future__ import annotations

import dataclasses
import io
import re

import numpy as np

from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import storage


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


def make_window(record: embodiments.Embodiment, chunks: int, anchor: int, stop: int) -> Window:
  """The window of `chunks` chunks that begins at step `anchor` of a language span ending before `stop`."""
  S, last = record.steps_per_chunk, stop - 1
  starts_Q = anchor + S * np.arange(chunks)
  frames_R = anchor + record.stride * np.arange(1 + chunks * record.camera_frames_per_chunk)
  return Window(
      frame_steps_R=np.minimum(frames_R, last), state_steps_Q=np.minimum(starts_Q, last),
      action_steps_QS=np.minimum(starts_Q[:, None] + np.arange(S), last), mask_Q=starts_Q + S <= last)


def gather(episode: sources.Episode, record: embodiments.Embodiment, window: Window) -> tuple[np.ndarray, np.ndarray]:
  """(proprio_QX, action_QSU) of a window in raw units, relative where the record says so."""
  proprio_QX = episode.state_TX[window.state_steps_Q]
  return proprio_QX, normalize.subtract_reference(record, episode.action_TU[window.action_steps_QS], proprio_QX)


@dataclasses.dataclass(frozen=True)
class Anchors:
  """Every step of a dataset where at least one whole chunk fits, in dataset order.

  Attributes:
    episode_N, step_N, stop_N: [N] int32 episode, first step, end of its language span.
  """

  episode_N: np.ndarray
  step_N: np.ndarray
  stop_N: np.ndarray

  def __len__(self) -> int:
    return self.episode_N.size

  def __getitem__(self, sample: int) -> tuple[int, int, int]:
    return int(self.episode_N[sample]), int(self.step_N[sample]), int(self.stop_N[sample])


def make_anchors(episodes: sources.Episodes) -> Anchors:
  """The anchors of a dataset; its language spans are read once and kept beside it.

  Raises:
    ValueError: no span is long enough for one chunk.
  """
  spans_S3 = _load_spans(episodes)
  S = episodes.record.steps_per_chunk
  count_S = np.maximum(spans_S3[:, 2] - spans_S3[:, 1] - S, 0)
  if not count_S.sum():
    raise ValueError(
        f'{episodes.path} split {episodes.split!r}: none of its {len(spans_S3)} language spans is longer than one '
        f'chunk of {S} steps (longest: {(spans_S3[:, 2] - spans_S3[:, 1]).max()}); shorten chunk_s of '
        f'{episodes.record.name!r} or use longer episodes.')
  first_S = np.cumsum(count_S) - count_S
  offset_N = np.arange(count_S.sum()) - np.repeat(first_S, count_S)
  episode_N, start_N, stop_N = (np.repeat(column, count_S) for column in spans_S3.T)
  return Anchors(episode_N.astype(np.int32), (start_N + offset_N).astype(np.int32), stop_N.astype(np.int32))


def _load_spans(episodes: sources.Episodes) -> np.ndarray:
  """[spans, 3] int64 episode, start, stop; from the file beside the dataset while that is still true."""
  name = re.sub(r'[^A-Za-z0-9]+', '_', f'wam_spans_{episodes.record.name}_{episodes.split}') + '.npz'
  key = f'{episodes.fingerprint} {episodes.split} {episodes.record.views[0].key} {episodes.record.language}'
  content = storage.read_beside(episodes.path, name)
  if content is not None:
    with np.load(io.BytesIO(content)) as stored:
      if str(stored['key']) == key:
        return stored['spans']
  numbers = storage.progress(range(len(episodes)), len(episodes), f'indexing {episodes.path} {episodes.split}')
  spans = np.asarray([(i, s.start, s.stop) for i in numbers for s in episodes.spans(i)], np.int64)
  buffer = io.BytesIO()
  np.savez(buffer, key=key, spans=spans)
  storage.write_beside(episodes.path, name, buffer.getvalue())
  return spans
