"""Statistics against numbers computed by hand and in one go; the file beside the data and who may
use it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib

import numpy as np
import pytest

from tests import programs
from tests.data import published
from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import statistics

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE
BRIDGE = pathlib.Path(__file__).parents[3] / 'shared/data/bridge_rlds_sample/bridge_dataset/1.0.0'


def compute(episodes: sources.Episodes) -> normalize.Statistics:
  """Statistics of a split; keeps nothing."""
  computation = statistics.Computation(episodes.record)
  for number in range(len(episodes)):
    computation.add(*episodes.numeric(number))
  return computation.finish(f'{episodes.path} split {episodes.split!r}')


def test_statistics_by_hand(tmp_path):
  path = synthetic.make_dataset(tmp_path, [101, 9])
  got = compute(sources.Episodes(path, 'train[:1]', CLOCK))
  # Of 0 ... 100 the quantiles are 1 and 99.
  np.testing.assert_allclose(got.state.q01, (1, 0, -99), atol=1e-4)
  np.testing.assert_allclose(got.state.q99, (99, 0, -1), atol=1e-4)
  np.testing.assert_allclose(got.action.q99, (99, 99.5), atol=1e-4)
  np.testing.assert_allclose(got.action.min, [0, 0.5])
  np.testing.assert_allclose(got.action.mean, [50, 50.5])
  np.testing.assert_allclose(got.action.max, [100, 100.5])
  # A discrete uniform distribution over 101 equal steps.
  std = np.sqrt((101**2 - 1) / 12)
  np.testing.assert_allclose(got.action.std, [std, std], rtol=1e-6)
  assert got.steps == 101
  assert got.action.norms == ('q99', 'q99')


def write_random(tmp_path) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
  """A dataset of random walks; its directory, states and actions."""
  rng = np.random.default_rng(0)
  walks = [rng.normal(size=(n, 3)).cumsum(0).astype(np.float32) for n in (40, 9, 23)]
  commands = []
  for walk in walks:
    error = rng.normal(0.1, 0.3, (len(walk), 2)).astype(np.float32)
    commands.append(walk[:, :2] + error)

  def edit(episodes):
    for episode, walk, command in zip(episodes, walks, commands):
      for step, state, action in zip(episode, walk, command):
        step['observation']['proprio'], step['action'] = state, action

  return synthetic.make_dataset(tmp_path, [40, 9, 23], edit), walks, commands


@pytest.mark.parametrize('S', [8, 4])
def test_relative_statistics_are_the_references(tmp_path, S):
  """Spec 5.1: of every step where a chunk fits, each of its actions minus the state of that step,
  all pooled.
  """
  path, walks, commands = write_random(tmp_path)
  record = dataclasses.replace(RELATIVE, chunk_s=S / 10)
  got = compute(sources.Episodes(path, 'train', record)).action
  relative = []
  for walk, command in zip(walks, commands):
    for i in range(len(walk) - (S - 1)):
      relative += [command[i + k, 0] - walk[i, 0] for k in range(S)]
  relative = np.asarray(relative)
  absolute = np.concatenate(commands)[:, 1]
  for dim, x in enumerate((relative, absolute)):
    q01, q99 = np.quantile(x, (0.01, 0.99))
    want = (q01, q99, x.mean(), x.std(), x.min(), x.max())
    found = [getattr(got, key)[dim] for key in normalize.ARRAYS]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_no_episode_is_as_long_as_a_chunk(tmp_path):
  path = synthetic.make_dataset(tmp_path, [7, 7])
  with pytest.raises(
    ValueError, match=r"no episode is as long as one chunk \(8 steps\).*'clock_relative' have none"
  ):
    compute(sources.Episodes(path, 'train', RELATIVE))


def test_statistics_are_of_the_slices_units(tmp_path):
  """AgiBot's grippers, from 35 to 120 in the files, are rescaled before anything is counted."""
  path = published.write(tmp_path, 'agibot_world', [60])
  got = compute(sources.Episodes(path, 'train', embodiments.get('agibot_world')))
  t = np.arange(60)
  # The state's grippers are t and t + 1/8.
  scaled = np.clip((t[:, None] + (0, 1 / 8) - 35) / 85, 0, 1)
  np.testing.assert_allclose(got.state.mean[14:16], scaled.mean(0), rtol=1e-5)
  np.testing.assert_allclose(got.state.max[14:16], scaled.max(0), rtol=1e-5)
  # The action's are 100 more; of 60 steps a chunk of 48 fits at 13.
  commanded = np.clip((100 + t - 35) / 85, 0, 1)
  relative = [commanded[i + k] - scaled[i, 0] for i in range(13) for k in range(48)]
  np.testing.assert_allclose(got.action.mean[14], np.mean(relative), rtol=1e-5)


def test_sketch_is_exact_while_rows_fit():
  rows = np.random.default_rng(0).normal(5, 2, (5000, 3)).astype(np.float32)
  sketch = statistics.QuantileSketch()
  for part in np.array_split(rows, 13):
    sketch.add(part)
  # An episode shorter than a chunk adds no relative action.
  sketch.add(rows[:0])
  q = sketch.quantiles()
  want = np.quantile(rows, (0.01, 0.99), axis=0).astype(np.float32)
  np.testing.assert_array_equal((q.q01, q.q99), want)
  np.testing.assert_allclose(q.mean, rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(q.std, rows.std(0), rtol=1e-5)
  np.testing.assert_array_equal(q.min, rows.min(0))
  np.testing.assert_array_equal(q.max, rows.max(0))


def test_sketch_subsamples_uniformly():
  sketch = statistics.QuantileSketch(rows=4000)
  rows = np.arange(100_000, dtype=np.float32)[:, None]
  for part in np.array_split(rows, 37):
    sketch.add(part)
  q = sketch.quantiles()
  assert sum(len(rows) for rows, _ in sketch._parts) <= 4000
  # Three standard errors at 2000 rows.
  np.testing.assert_allclose((q.q01[0], q.q99[0]), (1000, 99000), atol=700)
  # Moments and extremes are of all rows, not only of those that are kept.
  np.testing.assert_allclose((q.mean[0], q.min[0], q.max[0]), (49999.5, 0, 99999))
  np.testing.assert_allclose(q.std[0], np.arange(100_000).std(), rtol=1e-6)


def test_statistics_are_kept_until_something_they_depend_on_changes(tmp_path, monkeypatch):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  runs = []
  original = statistics.Finding.save
  monkeypatch.setattr(
    statistics.Finding, 'save', lambda finding: runs.append(1) or original(finding)
  )
  first = statistics.load_or_compute(sources.Episodes(path, 'train[:1]', CLOCK))
  again = statistics.load_or_compute(sources.Episodes(path, 'train[:1]', CLOCK))
  for key in normalize.ARRAYS:
    np.testing.assert_array_equal(getattr(first.action, key), getattr(again.action, key))
  assert len(runs) == 1
  assert statistics.find(sources.Episodes(path, 'train', CLOCK)).exists()
  statistics.load_or_compute(sources.Episodes(path, 'train', CLOCK))
  assert len(runs) == 2
  # A record in other units needs other numbers: half of 11.
  halved = dataclasses.replace(CLOCK, state=(record_lib.Slice('proprio', 0, 3, 's', scale=2),))
  got = statistics.load_or_compute(sources.Episodes(path, 'train', halved))
  assert len(runs) == 3
  assert got.state.max[0] == 5.5


def test_norm_and_unit_are_the_records_business(tmp_path, monkeypatch):
  """Another norm needs no other numbers, unless the file is so old that it lacks them."""
  path = synthetic.make_dataset(tmp_path, [12, 12])
  statistics.load_or_compute(sources.Episodes(path, 'train', CLOCK))
  by_range = dataclasses.replace(
    CLOCK, state=(record_lib.Slice('proprio', 0, 3, 'h', norm='min_max'),)
  )
  runs = []
  original = statistics.Finding.save
  monkeypatch.setattr(
    statistics.Finding, 'save', lambda finding: runs.append(1) or original(finding)
  )

  def keep(stored):
    del stored

  def drop_what_came_later(stored):
    for part in ('state', 'action'):
      for key in ('mean', 'std', 'min', 'max', 'norms'):
        del stored[part][key]

  for age in (keep, drop_what_came_later):
    rewrite(path, age)
    got = statistics.load_or_compute(sources.Episodes(path, 'train', by_range))
    np.testing.assert_array_equal(got.state.normalize(np.float32([11, 50, -11])), (1, 0, -1))
  assert runs == [1]


def test_near_constant_dimensions_are_named(tmp_path, caplog):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  with caplog.at_level(logging.WARNING):
    found = statistics.load_or_compute(sources.Episodes(path, 'train[:1]', CLOCK))
  assert 'state dimensions proprio[1] of clock hardly vary (by less than 0.001)' in caplog.text
  np.testing.assert_array_equal(found.state.half_range[1], np.float32(0.0005))


def test_statistics_decode_no_image(tmp_path, monkeypatch):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  monkeypatch.setattr(sources.cv2, 'imdecode', lambda *args: pytest.fail('decoded an image'))
  compute(sources.Episodes(path, 'train', CLOCK))


def rewrite(path, change):
  file = statistics.find(sources.Episodes(path, 'train', CLOCK))
  stored = json.loads(file.read_text())
  change(stored)
  file.write_text(json.dumps(stored))


def test_files_of_older_versions_are_still_true(tmp_path, monkeypatch):
  """As the first version wrote them: quantiles only, slices without the fields that came later."""
  path = synthetic.make_dataset(tmp_path, [12, 12])
  want = statistics.load_or_compute(sources.Episodes(path, 'train', CLOCK))

  def age(stored):
    del stored['embodiment']
    for part in ('state', 'action'):
      stored[part] = {key: stored[part][key] for key in ('q01', 'q99')}
      stored['of'][part] = [
        {key: s[key] for key in ('key', 'start', 'stop', 'unit', 'relative_to', 'rest')}
        for s in stored['of'][part]
      ]

  rewrite(path, age)
  monkeypatch.setattr(statistics.Finding, 'save', lambda finding: pytest.fail('computed again'))
  got = statistics.load_or_compute(sources.Episodes(path, 'train', CLOCK))
  np.testing.assert_array_equal(got.action.q99, want.action.q99)
  assert got.steps == 24
  assert got.action.mean is None


def test_statistics_of_another_embodiment_are_refused(tmp_path):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  episodes = sources.Episodes(path, 'train', CLOCK)
  statistics.load_or_compute(episodes)
  file = statistics.find(episodes)
  other = dataclasses.replace(CLOCK, name='twin', action=(record_lib.Slice('action', 1, 2, 's'),))
  message = (
    r"holds statistics of another embodiment: of 'clock', state proprio\[0\], .*, action "
    r"action\[0\], action\[1\], 8 steps a chunk; 'twin' has state .*, action action\[1\], "
    r'8 steps a chunk. Delete the file'
  )
  with pytest.raises(ValueError, match=message):
    statistics.load(file, other)
  with pytest.raises(ValueError, match=message):
    statistics.load_or_compute(sources.Episodes(path, 'train', other), str(file))
  file.rename(file.parent / statistics.file_name(other))
  with pytest.raises(ValueError, match=message):
    statistics.load_or_compute(sources.Episodes(path, 'train', other))


def test_statistics_of_another_dataset_may_be_named(tmp_path):
  """For example those of pretraining, for fine-tuning on few episodes."""
  paths = [synthetic.make_dataset(tmp_path / str(n), [n, n]) for n in (30, 12)]
  episodes = [sources.Episodes(path, 'train', CLOCK) for path in paths]
  want = statistics.load_or_compute(episodes[0])
  got = statistics.load_or_compute(episodes[1], str(statistics.find(episodes[0])))
  np.testing.assert_array_equal(got.action.q99, want.action.q99)
  assert not statistics.find(episodes[1]).exists()


@pytest.mark.parametrize('content', ['{"state": ', '[1]', '{"state": {}}'])
def test_damaged_files(tmp_path, content):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  episodes = sources.Episodes(path, 'train', CLOCK)
  statistics.find(episodes).write_text(content)
  with pytest.raises(
    ValueError, match=r'wam_statistics_clock.json is no statistics file .*; delete it'
  ):
    statistics.load_or_compute(episodes)
  with pytest.raises(ValueError, match='There is no statistics file .*nowhere.json'):
    statistics.load(tmp_path / 'nowhere.json', CLOCK)


def run(*args):
  return programs.run('data.statistics', *args)


def test_command_prints_and_writes_the_table(tmp_path):
  path = published.write(tmp_path, 'droid', [60, 45])
  done = run(f'--dataset={path}', '--embodiment=droid', f'--json={tmp_path / "table.json"}')
  assert done.returncode == 0, done.stderr
  assert f'2 episodes, 105 steps; written to {path}/wam_statistics_droid.json' in done.stdout
  assert 'action_dict/joint_position[6] rad relative' in done.stdout
  table = json.loads((tmp_path / 'table.json').read_text())
  assert (table['embodiment'], table['episodes'], table['steps']) == ('droid', 2, 105)
  rows = {(row['part'], row['name']): row for row in table['dimensions']}
  assert len(rows) == 16
  # An action is its time plus 100, a state its time: (100 + t + k) - t for k of a chunk's 24 steps.
  joint = rows['action', 'action_dict/joint_position[2]']
  assert joint['min'] == 100
  assert joint['max'] == 123
  assert joint['mean'] == 111.5
  assert joint['relative'] is True
  assert joint['unit'] == 'rad'
  assert rows['state', 'gripper_position[0]']['max'] == 59
  assert not joint['hardly_varies']
  stored = json.loads((pathlib.Path(path) / 'wam_statistics_droid.json').read_text())
  assert stored['embodiment'] == 'droid'
  assert stored['action']['mean'][2] == 111.5


def test_command_reports_mistakes(tmp_path):
  done = run(f'--dataset={tmp_path}', '--embodiment=droid')
  assert done.returncode == 2
  assert 'error: ' in done.stderr
  assert 'Traceback' not in done.stderr
  unknown = run(f'--dataset={tmp_path}', '--embodiment=hexapod').stderr
  assert "There is no embodiment 'hexapod'" in unknown
  assert 'embodiment.json' in unknown


@pytest.mark.skipif(not BRIDGE.exists(), reason=f'no BridgeData sample at {BRIDGE}')
def test_real_bridge_statistics(tmp_path):
  from data import convert

  path = str(convert.convert(BRIDGE, tmp_path / 'bridge/1.0.0'))
  episodes = sources.Episodes(path, 'train', embodiments.get('bridge_widowx'))
  got = statistics.load_or_compute(episodes)
  rows = np.concatenate([episodes.numeric(i)[1] for i in range(len(episodes))])
  q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
  np.testing.assert_allclose(got.action.q01, q01, atol=1e-6)
  np.testing.assert_allclose(got.action.q99, q99, atol=1e-6)
  np.testing.assert_allclose(got.action.mean, rows.mean(0), atol=1e-6)
  np.testing.assert_allclose(got.action.std, rows.std(0), atol=1e-6)
  assert got.steps == 250
  # The gripper closes and opens.
  assert (got.action.min[6], got.action.max[6]) == (0, 1)
