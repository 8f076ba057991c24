"""Quantiles against numbers computed by hand; normalise and invert; relative actions there and back."""
from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import statistics

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE
Q = normalize.Quantiles(np.float32([0, -2]), np.float32([10, 2]))


def test_normalize_by_hand():
  got = Q.normalize(np.float32([[0, -2], [10, 2], [5, 0], [2.5, 1], [99, -99]]))
  np.testing.assert_array_equal(got, [[-1, -1], [1, 1], [0, 0], [-0.5, 0.5], [1, -1]])


def test_unnormalize_inverts_and_does_not_clip():
  x = np.random.default_rng(0).uniform((0, -2), (10, 2), (50, 2)).astype(np.float32)
  np.testing.assert_allclose(Q.unnormalize(Q.normalize(x)), x, atol=1e-5)  # One float32 rounding of values to 10.
  np.testing.assert_array_equal(Q.unnormalize(np.float32([1.2, -1.5])), np.float32([11, -3]))


def test_constant_dimension_is_floored():
  q = normalize.Quantiles(np.float32([3]), np.float32([3]))
  np.testing.assert_allclose(q.normalize(np.float32([3, 3.00025, 4])), [0, 0.5, 1], atol=1e-3)  # float32 near 3.


def test_statistics_by_hand(tmp_path):
  path = synthetic.make_dataset(tmp_path, [101, 9])
  got = statistics.compute(sources.Episodes(path, 'train[:1]', CLOCK))
  np.testing.assert_allclose(got.state.q01, (1, 0, -99), atol=1e-4)  # Of 0 ... 100 the quantiles are 1 and 99.
  np.testing.assert_allclose(got.state.q99, (99, 0, -1), atol=1e-4)
  np.testing.assert_allclose(got.action.q99, (99, 99.5), atol=1e-4)
  assert got.steps == 101


def test_relative_statistics_pool_all_steps_of_all_chunks(tmp_path):
  path = synthetic.make_dataset(tmp_path, [101, 9])
  got = statistics.compute(sources.Episodes(path, 'train[:1]', RELATIVE))
  # action - state at the chunk's start is 0 ... 7, equally often; the second dimension is absolute.
  np.testing.assert_allclose(got.action.q01, (0, 1.5), atol=1e-4)
  np.testing.assert_allclose(got.action.q99, (7, 99.5), atol=1e-4)


def test_sketch_subsamples_uniformly():
  sketch = statistics.QuantileSketch(rows=4000)
  for part in np.array_split(np.arange(100_000, dtype=np.float32)[:, None], 37):
    sketch.add(part)
  q = sketch.quantiles()
  assert sum(len(rows) for rows, _ in sketch._parts) <= 4000
  np.testing.assert_allclose((q.q01[0], q.q99[0]), (1000, 99000), atol=700)  # Three standard errors at 2000 rows.


def test_combine_takes_the_widest():
  a = normalize.Statistics(Q, Q, 5)
  b = normalize.Statistics(normalize.Quantiles(np.float32([-1, 0]), np.float32([5, 3])), Q, 7)
  got = normalize.combine([a, b])
  np.testing.assert_array_equal((got.state.q01, got.state.q99), ([-1, -2], [10, 3]))
  assert got.steps == 12


def test_unnormalize_action_adds_the_reference_back():
  stats = normalize.Statistics(Q, Q, 1)
  raw_QSU = np.random.default_rng(1).uniform(0, 2, (1, 8, 2)).astype(np.float32)
  proprio = np.float32([0.5, 7, 9])
  relative = normalize.subtract_reference(RELATIVE, raw_QSU, proprio[None])
  np.testing.assert_allclose(relative[0], raw_QSU[0] - (0.5, 0), atol=1e-6)
  inside = normalize.Statistics(Q, normalize.Quantiles(np.float32([-3, -3]), np.float32([3, 3])), 1)
  padded_AU = np.zeros((10, 4), np.float32)
  padded_AU[:8] = normalize.normalize_action(inside, relative[0], 4)
  np.testing.assert_allclose(normalize.unnormalize_action(inside, RELATIVE, padded_AU, proprio), raw_QSU[0], atol=1e-5)
  with pytest.raises(ValueError, match=r'Actions of shape \(4, 2\) are too small'):
    normalize.unnormalize_action(stats, RELATIVE, padded_AU[:4, :2], proprio)
  with pytest.raises(ValueError, match=r"Proprio of 'clock_relative' has shape \(2,\); expected \(3,\)"):
    normalize.unnormalize_action(stats, RELATIVE, padded_AU, proprio[:2])


def test_proprio_is_padded_with_zeros():
  got = normalize.normalize_proprio(normalize.Statistics(Q, Q, 1), np.float32([[10, 0]]), 4)
  np.testing.assert_array_equal(got, [[1, 0, 0, 0]])


def test_statistics_are_kept_until_something_they_depend_on_changes(tmp_path, monkeypatch, caplog):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  runs = []
  original = statistics.compute
  monkeypatch.setattr(statistics, 'compute', lambda e: runs.append(1) or original(e))
  with caplog.at_level(logging.WARNING):
    first = statistics.load_or_compute(sources.Episodes(path, 'train[:1]', CLOCK))
  assert r'state dimensions [1] of clock hardly vary' in caplog.text
  again = statistics.load_or_compute(sources.Episodes(path, 'train[:1]', CLOCK))
  np.testing.assert_array_equal(first.action.q99, again.action.q99)
  assert len(runs) == 1 and statistics.find(sources.Episodes(path, 'train', CLOCK)).exists()
  statistics.load_or_compute(sources.Episodes(path, 'train', CLOCK))
  assert len(runs) == 2


def test_statistics_decode_no_image(tmp_path, monkeypatch):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  monkeypatch.setattr(sources.cv2, 'imdecode', lambda *args: pytest.fail('decoded an image'))
  statistics.compute(sources.Episodes(path, 'train', CLOCK))


def test_metadata_survives_json():
  known = [normalize.KnownEmbodiment(0, RELATIVE, normalize.Statistics(Q, Q, 3)),
           normalize.KnownEmbodiment(1, CLOCK, None)]
  back = normalize.from_metadata(json.loads(json.dumps(normalize.to_metadata(known))))
  assert back['clock'] == known[1] and back['clock_relative'].record == RELATIVE
  np.testing.assert_array_equal(back['clock_relative'].statistics.action.q01, Q.q01)
  with pytest.raises(ValueError, match='describes no embodiments as this version writes them'):
    normalize.from_metadata({'something': 1})
