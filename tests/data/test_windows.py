"""Anchors and the arithmetic from anchor to steps, against numbers written out."""
from __future__ import annotations

import time

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import sources
from wam_jax.data import storage
from wam_jax.data import windows

CLOCK = synthetic.CLOCK  # 8 steps a chunk, a camera frame every 4.


def test_window_inside_the_span():
  window = windows.make_window(CLOCK, 2, anchor=3, stop=20)
  np.testing.assert_array_equal(window.frame_steps_R, (3, 7, 11, 15, 19))
  np.testing.assert_array_equal(window.state_steps_Q, (3, 11))
  np.testing.assert_array_equal(window.action_steps_QS, [range(3, 11), range(11, 19)])
  np.testing.assert_array_equal(window.mask_Q, (True, True))


def test_window_past_the_span_repeats_its_last_step_and_is_masked():
  window = windows.make_window(CLOCK, 2, anchor=4, stop=20)  # The second chunk's last frame would be step 20.
  np.testing.assert_array_equal(window.frame_steps_R, (4, 8, 12, 16, 19))
  np.testing.assert_array_equal(window.mask_Q, (True, False))
  np.testing.assert_array_equal(windows.make_window(CLOCK, 2, 11, 20).state_steps_Q, (11, 19))


def test_anchors_are_all_steps_where_a_chunk_fits(tmp_path):
  def edit(episodes):
    for step in episodes[1][9:]:
      step['language_instruction'] = 'Other'
  path = synthetic.make_dataset(tmp_path, [10, 20, 8], edit)  # Spans: 10, 9 + 11, 8.
  anchors = windows.make_anchors(sources.Episodes(path, 'train', CLOCK))
  assert [anchors[i] for i in range(len(anchors))] == [
      (0, 0, 10), (0, 1, 10), (1, 0, 9), (1, 9, 20), (1, 10, 20), (1, 11, 20)]


def test_no_span_is_long_enough(tmp_path):
  path = synthetic.make_dataset(tmp_path, [8, 8])
  with pytest.raises(ValueError, match=r'none of its 2 language spans .* one chunk of 8 steps \(longest: 8'):
    windows.make_anchors(sources.Episodes(path, 'train', CLOCK))


def test_index_is_kept_and_forgotten_when_the_dataset_changes(tmp_path, monkeypatch):
  path = synthetic.make_dataset(tmp_path / 'a', [12, 12])
  windows.make_anchors(sources.Episodes(path, 'train', CLOCK))
  reads = []
  original = sources.Episodes.spans
  monkeypatch.setattr(sources.Episodes, 'spans', lambda self, i: reads.append(i) or original(self, i))
  assert len(windows.make_anchors(sources.Episodes(path, 'train', CLOCK))) == 8 and not reads
  other = storage.epath.Path(synthetic.make_dataset(tmp_path / 'b', [12, 13]))
  for file in other.iterdir():
    file.copy(storage.epath.Path(path) / file.name, overwrite=True)
  assert len(windows.make_anchors(sources.Episodes(path, 'train', CLOCK))) == 9 and reads == [0, 1]


def test_millions_of_anchors_take_little_time(monkeypatch):
  spans = np.stack([np.arange(8000), np.zeros(8000, int), np.full(8000, 400)], 1)
  monkeypatch.setattr(windows, '_load_spans', lambda episodes: spans)
  episodes = type('E', (), {'record': CLOCK})()
  start = time.perf_counter()
  anchors = windows.make_anchors(episodes)
  assert len(anchors) == 8000 * 392 and time.perf_counter() - start < 2
  assert anchors[392 * 7 + 5] == (7, 5, 400)
