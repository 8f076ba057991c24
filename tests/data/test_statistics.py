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
from wam_jax.data import episode as episode_lib
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import sketch as sketch_lib
from wam_jax.data import sources
from wam_jax.data import statistics

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE


def compute(episodes: sources.Episodes) -> normalize.Statistics:
  """Statistics of a split; keeps nothing."""
  computation = statistics.Computation(episodes.record)
  for number in range(len(episodes)):
    state_TX, action_TU = episodes.numeric(number)
    starts = max(0, len(state_TX) - episodes.record.steps_per_chunk)
    computation.add(state_TX, action_TU, np.arange(starts))
  return computation.finish(f'{episodes.path} split {episodes.split!r}')


def test_statistics_by_hand(tmp_path):
  path = synthetic.make_dataset(tmp_path, [101, 9])
  got = compute(sources.Episodes(path, 'train[:1]', CLOCK))
  # Of 0 ... 100 the quantiles are 1 and 99.
  np.testing.assert_allclose(got.state.q01, (1, 0, -99), atol=1e-4)
  np.testing.assert_allclose(got.state.q99, (99, 0, -1), atol=1e-4)
  # The last action is in no chunk: the state after it is in no frame.
  np.testing.assert_allclose(got.action.q99, (98.01, 98.51), atol=1e-4)
  np.testing.assert_allclose(got.action.min, [0, 0.5])
  np.testing.assert_allclose(got.action.mean, [49.5, 50])
  np.testing.assert_allclose(got.action.max, [99, 99.5])
  # A discrete uniform distribution over 100 equal steps.
  std = np.sqrt((100**2 - 1) / 12)
  np.testing.assert_allclose(got.action.std, [std, std], rtol=1e-6)
  assert got.steps == 101
  assert got.action.norms == ('q99', 'q99')


def test_differences_of_overlapping_chunks_go_further(tmp_path):
  """As far as the actions of a chunk: by hand of one that ends where its episode does."""
  path = synthetic.make_dataset(tmp_path, [15])
  episodes = sources.Episodes(path, 'train', RELATIVE)
  plain = statistics.load_or_compute(episodes)
  wide = statistics.load_or_compute(episodes, overlap=4)
  # Chunks of 8 begin at steps 0 to 6. Actions and states go on by one a step, so that differences
  # are how far a step is from its chunk's first: at most 7, or 11, and none beyond action 13.
  differences = [min(8 + 4, 14 - start) - 1 for start in range(7)]
  assert (plain.action.max[0], wide.action.max[0]) == (7, max(differences))
  steps = np.concatenate([np.arange(most + 1) for most in differences])
  np.testing.assert_allclose(wide.action.mean[0], steps.mean(), rtol=1e-6)
  # Absolute dimensions are what they were, and each overlap has a file of its own.
  np.testing.assert_array_equal(wide.action.max[1], plain.action.max[1])
  file = statistics.find(episodes)
  assert file != statistics.find(episodes, overlap=4)
  np.testing.assert_array_equal(statistics.load_or_compute(episodes).action.q99, plain.action.q99)
  with pytest.raises(ValueError, match='over 8 steps and an overlap of 0; with .*=4 they go fur'):
    statistics.load(file, RELATIVE, overlap=4)
  # Without relative actions there is nothing to tell apart.
  absolute = sources.Episodes(path, 'train', CLOCK)
  assert statistics.find(absolute, overlap=4) == statistics.find(absolute)


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
  """Of every step where a chunk fits, each of its actions minus the state of that step, all
  pooled.
  """
  path, walks, commands = write_random(tmp_path)
  record = dataclasses.replace(RELATIVE, chunk_s=S / 10)
  got = compute(sources.Episodes(path, 'train', record)).action
  relative = []
  for walk, command in zip(walks, commands):
    for i in range(len(walk) - S):  # A chunk counts where the frame after it is there.
      relative += [command[i + k, 0] - walk[i, 0] for k in range(S)]
  relative = np.asarray(relative)
  absolute = np.concatenate([command[:-1] for command in commands])[:, 1]
  for dim, x in enumerate((relative, absolute)):
    q01, q99 = np.quantile(x, (0.01, 0.99))
    want = (q01, q99, x.mean(), x.std(), x.min(), x.max())
    found = [getattr(got, key)[dim] for key in normalize.ARRAYS]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_no_episode_is_as_long_as_a_chunk(tmp_path):
  path = synthetic.make_dataset(tmp_path, [7, 7])
  with pytest.raises(
    ValueError,
    match="language spans that count is longer than one chunk of 8 steps.*'clock_relative'",
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
  # The action's are 100 more; of 60 steps a chunk of 48 and its last frame fit at 12.
  commanded = np.clip((100 + t - 35) / 85, 0, 1)
  relative = [commanded[i + k] - scaled[i, 0] for i in range(12) for k in range(48)]
  np.testing.assert_allclose(got.action.mean[14], np.mean(relative), rtol=1e-5)


def test_sketch_is_exact_while_rows_fit():
  rows = np.random.default_rng(0).normal(5, 2, (5000, 3)).astype(np.float32)
  sketch = sketch_lib.QuantileSketch()
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
  sketch = sketch_lib.QuantileSketch(rows=4000)
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
  # Those of another split are another file.
  assert not statistics.find(sources.Episodes(path, 'train', CLOCK)).exists()
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
  monkeypatch.setattr(episode_lib.cv2, 'imdecode', lambda *args: pytest.fail('decoded an image'))
  compute(sources.Episodes(path, 'train', CLOCK))


def rewrite(path, change):
  file = statistics.find(sources.Episodes(path, 'train', CLOCK))
  stored = json.loads(file.read_text())
  change(stored)
  file.write_text(json.dumps(stored))


def test_files_of_older_versions_can_be_named(tmp_path, caplog):
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
    del stored['rows'], stored['of']['rows'], stored['of']['choice'], stored['of']['language']

  rewrite(path, age)
  episodes = sources.Episodes(path, 'train', CLOCK)
  got = statistics.load(statistics.find(episodes), CLOCK)
  np.testing.assert_array_equal(got.action.q99, want.action.q99)
  assert got.steps == 24
  assert got.action.mean is None
  # They counted other steps, and are not taken for what is trained on.
  with caplog.at_level(logging.WARNING):
    again = statistics.load_or_compute(episodes)
  assert 'is of another choice of steps' in caplog.text
  assert again.rows == normalize.OF_CHUNKS


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
  file.rename(statistics.find(sources.Episodes(path, 'train', other)))
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
def test_a_damaged_statistics_file_is_told(tmp_path, content):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  episodes = sources.Episodes(path, 'train', CLOCK)
  statistics.find(episodes).write_text(content)
  with pytest.raises(
    ValueError, match=r'wam_statistics_clock_train.json is no statistics file .*; delete it'
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
  assert f'2 episodes, 105 steps; written to {path}/wam_statistics_droid_train.json' in done.stdout
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
  stored = json.loads((pathlib.Path(path) / 'wam_statistics_droid_train.json').read_text())
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


def test_real_bridge_statistics(tmp_path, sample_bridge):
  from data import convert

  path = str(convert.convert(sample_bridge, tmp_path / 'bridge/1.0.0'))
  episodes = sources.Episodes(path, 'train', embodiments.get('bridge_widowx'))
  got = statistics.load_or_compute(episodes)
  # The last action of an episode is in no chunk.
  rows = np.concatenate([episodes.numeric(i)[1][:-1] for i in range(len(episodes))])
  q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
  np.testing.assert_allclose(got.action.q01, q01, atol=1e-6)
  np.testing.assert_allclose(got.action.q99, q99, atol=1e-6)
  np.testing.assert_allclose(got.action.mean, rows.mean(0), atol=1e-6)
  np.testing.assert_allclose(got.action.std, rows.std(0), atol=1e-6)
  assert got.steps == 250
  # The gripper closes and opens.
  assert (got.action.min[6], got.action.max[6]) == (0, 1)


def spread(values_TN, episodes: int):
  """What a sketch says of these rows in each of some episodes, noise of a sensor added."""
  rng = np.random.default_rng(0)
  kept = sketch_lib.QuantileSketch()
  for e in range(episodes):
    rows_TN = values_TN(e)
    kept.add((rows_TN + rng.normal(0, 0.002, rows_TN.shape)).astype(np.float32))
  return kept, kept.quantiles()


def close_for(steps: int, share=1.0, depth=1.0):
  """A gripper that closes for some steps of 300, in this share of the episodes."""

  def values(e):
    closed_T1 = np.zeros((300, 1))
    if e % round(1 / share) == 0:
      closed_T1[150 : 150 + steps] = depth
    return closed_T1

  return values


@pytest.mark.parametrize(
  'values, episodes',
  [
    (close_for(2), 4),
    (close_for(1), 40),
    (close_for(2), 1),
    (close_for(2, share=1 / 50, depth=-1.0), 200),
    (close_for(2, share=1 / 400), 1200),
  ],
  ids=['noisy', 'one_row', 'one_episode', 'few_episodes', 'three_of_1200'],
)
def test_what_seldom_but_fully_moves_can_move(values, episodes):
  kept, q = spread(values, episodes)
  assert kept.seldom_N.tolist() == [True]
  depth = np.float32([[values(0).sum() / np.count_nonzero(values(0))]])
  np.testing.assert_allclose(q.unnormalize(q.normalize(depth)), depth, atol=0.02)
  assert not q.is_flat[0]


def test_a_lost_packet_is_no_motion():
  """One wild value does not set the range, nor do a few that go anywhere."""
  wild = {3: 1e6, 500: -4e5, 900: 20.0}

  def values(e):
    rows_T1 = 0.05 * np.sin(np.arange(300) / 9)[:, None]
    rows_T1[17] += wild.get(e, 0)
    return rows_T1

  for episodes in (30, 1000):
    kept, q = spread(values, episodes)
    assert kept.seldom_N.tolist() == [False]
    assert 0.05 < q.q99[0] < 0.06


def test_the_reference_knows_no_seldom_motion():
  kept = sketch_lib.QuantileSketch()
  for e in range(4):
    kept.add(close_for(2)(e).astype(np.float32))
  assert kept.quantiles(np.asarray([True])).q99[0] == 0
  assert kept.quantiles().q99[0] == 1
