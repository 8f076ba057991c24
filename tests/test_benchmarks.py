"""The benchmarks measure what they say."""
from benchmarks import tabletop


def test_rate_counts_calls_per_second():
  calls = []
  measured = tabletop.rate(lambda: calls.append(None), 0.05)
  assert 0.5 * len(calls) / 0.055 < measured < 2 * len(calls) / 0.055


def test_the_world_runs_at_thousands_of_frames_a_second():
  rates = tabletop.measure('disc', 0.2)
  assert set(rates) == {'physics', 'render 32 px', 'render 256 px', 'step, both views'}
  assert rates['step, both views'] > 1000  # Measured 10,475; the margin is for busy machines.
  assert rates['physics'] > rates['step, both views']
