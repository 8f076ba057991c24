"""Every silent failure of a dataset that `data.validate` promises to find is found and named; a
good dataset passes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from data.tabletop import builder
from data.validate import card
from data.validate import checks
from data.validate import findings as findings_lib
from data.validate import numeric
from data.validate import pictures
from data.validate import signals
from data.validate import survey
from data.validate import video
from tests import programs
from tests.builders import bridge
from tests.data import synthetic
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.data import statistics

BRIDGE = pathlib.Path(__file__).parents[3] / 'shared/data/bridge_rlds_sample/bridge_dataset/1.0.0'
EPISODES, STEPS = 6, 60

Slice, View = record_lib.Slice, record_lib.View
# A robot over a patterned table: its camera `top` sees it move, its camera `wrist` sees the table
# move.
ROBOT = record_lib.Embodiment(
  name='robot',
  views=(View('top', 0, 0, 32, 32), View('wrist', 0, 32, 32, 16)),
  composite=(32, 48),
  state=(Slice('proprio', 0, 2, 'm'), Slice('proprio', 2, 3, 'normalized')),
  action=(
    Slice('action', 0, 2, 'm', relative_to='proprio:0:2'),
    Slice('action', 2, 3, 'normalized', rest='proprio:2:3'),
  ),
  control_hz=10.0,
  video_fps=2.5,
  chunk_s=0.8,
)

FEATURES = tfds.features.FeaturesDict(
  {
    'steps': tfds.features.Dataset(
      {
        'observation': {
          'top': tfds.features.Image(shape=(32, 32, 3), encoding_format='jpeg'),
          'wrist': tfds.features.Image(shape=(32, 32, 3), encoding_format='jpeg'),
          'proprio': tfds.features.Tensor(shape=(3,), dtype=np.float32),
          'timestamp': tfds.features.Scalar(dtype=np.float32),
        },
        'action': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        'language_instruction': tfds.features.Text(),
      }
    )
  }
)


def make_episode(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Moves from point to point with rests between, the gripper changing at some; everything by
  step.
  """
  path = [rng.uniform(0.2, 0.8, 3) * (1, 1, 0)]
  while len(path) < STEPS + 1:
    target, steps = np.append(rng.uniform(0.2, 0.8, 2), rng.integers(2)), rng.integers(5, 12)
    s = np.arange(1, steps + 1)[:, None] / steps
    path += [
      *(path[-1] + (target - path[-1]) * (10 * s**3 - 15 * s**4 + 6 * s**5)),
      *[target] * rng.integers(0, 5),
    ]
  path = np.asarray(path[: STEPS + 1])
  command = np.concatenate(
    [path[1:, :2] + rng.normal(0, 0.004, (STEPS, 2)), path[1:, 2:] > 0.5], axis=1
  )
  table = cv2.GaussianBlur(rng.uniform(0, 255, (96, 96, 3)).astype(np.float32), (0, 0), 3)
  table = np.clip(128 + 6 * (table - table.mean()), 0, 255).astype(np.uint8)
  return {
    'proprio': path[:-1].astype(np.float32),
    'action': command.astype(np.float32),
    'timestamp': np.arange(STEPS, dtype=np.float32) / 10,
    'text': ['go there'] * STEPS,
    'top': np.stack([draw_top(table, *x[:2]) for x in path[:-1]]),
    'wrist': np.stack(
      [cv2.getRectSubPix(table, (32, 32), (16 + 64 * x[0], 16 + 64 * x[1])) for x in path[:-1]]
    ),
  }


def draw_top(table, x, y):
  row, column = np.mgrid[:32, :32]
  blob = np.exp(-((column - 32 * x) ** 2 + (row - 32 * y) ** 2) / 18)[..., None]
  return (table[:32, :32] * (1 - blob) + 255 * blob).astype(np.uint8)


def jpeg(image_IJ3: np.ndarray) -> bytes:
  return cv2.imencode('.jpg', cv2.cvtColor(image_IJ3, cv2.COLOR_RGB2BGR))[1].tobytes()


def make_dataset(root, edit=lambda episodes: None) -> str:
  """Episodes of ROBOT, after `edit` has spoilt their arrays; `edit` may replace an image by its
  bytes.
  """
  rng = np.random.default_rng(0)
  episodes = [make_episode(rng) for _ in range(EPISODES)]
  for e in episodes:
    e['top'], e['wrist'] = list(e['top']), list(e['wrist'])
  edit(episodes)
  image = lambda x: io.BytesIO(x if isinstance(x, bytes) else jpeg(x))
  steps = [
    [
      {
        'observation': {
          'top': image(e['top'][t]),
          'wrist': image(e['wrist'][t]),
          'proprio': e['proprio'][t],
          'timestamp': e['timestamp'][t],
        },
        'action': e['action'][t],
        'language_instruction': e['text'][t],
      }
      for t in range(len(e['text']))
    ]
    for e in episodes
  ]
  return synthetic.write_dataset(root, {'train': steps}, FEATURES)


def validate(path, record=ROBOT, split='train', decoded=EPISODES, accept=()):
  """(findings, result) of a dataset."""
  findings = findings_lib.Findings(frozenset(accept))
  episodes = sources.Episodes(path, split, record)
  chosen = video.spread(len(episodes), decoded)
  return findings, checks.run(episodes, chosen, range(len(episodes)), findings)


def failures(path, *args, **kwargs) -> list[tuple[str, str]]:
  return list(validate(path, *args, **kwargs)[0].messages('fail'))


def expect(found: list[tuple[str, str]], kind: str, *patterns: str) -> None:
  """All of `found` are of one kind, and each pattern is in one of them."""
  assert found and {k for k, _ in found} == {kind}, found
  for pattern in patterns:
    assert any(pattern in message for _, message in found), (pattern, found)


@pytest.fixture(scope='module')
def good_path(tmp_path_factory) -> str:
  """A dataset with nothing wrong; do not change it."""
  return make_dataset(tmp_path_factory.mktemp('good'))


def test_good_dataset_passes_and_its_card_is_right(good_path):
  findings, result = validate(good_path)
  assert not findings.count('fail') and not findings.count('warn'), list(findings.lines())
  seen = result.card
  assert (seen['episodes'], seen['readable'], seen['steps'], seen['decoded']) == (6, 6, 360, 6)
  assert seen['hours'] == pytest.approx(36 / 3600)
  assert seen['anchors'] == 6 * (
    60 - 8
  )  # A chunk of 8 steps, and its last frame, must fit behind an anchor.
  assert seen['rates'] == {
    'control_hz': 10,
    'video_fps': 2.5,
    'chunk_s': 0.8,
    'steps_per_chunk': 8,
    'frames_per_chunk': 2,
    'timestamps_hz': pytest.approx(10, rel=1e-4),
  }
  assert seen['instructions'] == {
    'distinct': 1,
    'spans': 6,
    'most_frequent': [('go there', 6)],
    'blank_steps': {'language_instruction': 0},
  }
  assert all(
    abs(view['late_steps']) <= 1 and view['motion_correlation'] > 0.6
    for view in seen['views'].values()
  )
  episodes = sources.Episodes(good_path, 'train', ROBOT)
  row = seen['dimensions'][1]
  assert (row['part'], row['name'], row['unit'], row['relative']) == (
    'state',
    'proprio[1]',
    'm',
    False,
  )
  y_T = np.concatenate([episodes.numeric(i)[0][:, 1] for i in range(6)])
  for key, want in (
    ('min', y_T.min()),
    ('q01', np.quantile(y_T, 0.01)),
    ('mean', y_T.mean()),
    ('q99', np.quantile(y_T, 0.99)),
    ('max', y_T.max()),
    ('std', y_T.std()),
  ):
    assert row[key] == pytest.approx(want, rel=1e-4), key
  assert [r['name'] for r in seen['dimensions'] if r['relative']] == ['action[0]', 'action[1]']
  text = '\n'.join(card.lines(seen))
  assert '6; 60 to 60 steps' in text
  assert '6 x  go there' in text
  assert 'action action[1] - state  m' in text
  json.dumps(seen)


# Images and records.


def test_truncated_and_foreign_images_are_named_though_not_decoded(tmp_path):
  def edit(episodes):
    episodes[1]['top'][7] = jpeg(episodes[1]['top'][7])[:300]
    episodes[2]['wrist'][3] = b'BM no jpeg'

  found = failures(make_dataset(tmp_path, edit), decoded=1)
  expect(
    found,
    'image',
    "image 'top' of step 7 of record 1 of",
    'is a truncated JPEG (300 bytes)',
    "image 'wrist' of step 3 of record 2 of",
    'is no JPEG or PNG: it begins with 42 4d 20 6e (10 bytes)',
  )
  assert len(found) == 2


def test_images_that_do_not_decode_are_named(tmp_path):
  def edit(episodes):
    episodes[0]['top'][5] = survey.JPEG + bytes(100) + survey.JPEG_END
    episodes[3]['wrist'][9] = jpeg(np.zeros((16, 32, 3), np.uint8))

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'image',
    "Image 'top' of step 5 of record 0 of",
    'is not a readable JPEG or PNG',
    "Image 'wrist' of step 9 of record 3 of",
    '(16, 32, 3)',
  )


def test_truncated_shard_names_all_lost_records(good_path, tmp_path):
  path = shutil.copytree(good_path, tmp_path / 'copy')
  shard = next(path.glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes()[:-70000])
  findings, result = validate(path)
  expect(
    list(findings.messages('fail')),
    'record',
    *(
      f'Cannot read record {i} of {shard}: the shard is missing, truncated or corrupt'
      for i in range(EPISODES)
    ),
  )
  assert findings.count('fail') == EPISODES
  assert result is None


def test_images_and_rows_of_different_number(good_path, tmp_path):
  path = shutil.copytree(good_path, tmp_path / 'copy')
  shard = next(path.glob('*train.*record-*'))
  with array_record_data_source.ArrayRecordDataSource(str(shard)) as reader:
    records = [tf_example_pb2.Example.FromString(reader[i]) for i in range(EPISODES)]
  records[1].features.feature['steps/observation/wrist'].bytes_list.value.pop()
  records[4].features.feature['steps/action'].float_list.value.pop()
  shard.unlink()
  writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
  for record in records:
    writer.write(record.SerializeToString())
  writer.close()
  findings, result = validate(path)
  expect(
    list(findings.messages('fail')),
    'record',
    'record 1 of',
    "59 values of 'observation/wrist' for its 60 steps",
    'record 4 of',
  )
  assert findings.count('fail') == 2
  assert result.card['readable'] == 4
  assert result.card['anchors'] is None
  text = '\n'.join(card.lines(result.card))
  assert '6, 2 of them unreadable' in text
  assert 'not counted: some records cannot be read' in text


def test_nan_names_record_and_step(tmp_path):
  def edit(episodes):
    episodes[2]['proprio'][5, 1] = np.nan
    episodes[4]['action'][9, 0] = np.inf

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'record',
    'record 2 of',
    "NaN or infinity in 'observation/proprio' at step 5",
    "NaN or infinity in 'action' at step 9",
  )


# Words and numbers.


def test_empty_language(tmp_path):
  def edit(episodes):
    episodes[3]['text'] = ['go there'] * 20 + ['  '] * 40

  found = failures(make_dataset(tmp_path, edit))
  expect(found, 'language', 'steps 20 to 59 of record 3 of', 'no text under language_instruction')


def test_episodes_that_training_leaves_out_need_no_language(tmp_path):
  class Named(synthetic.SyntheticRlds):
    def _generate_examples(self, episodes):
      yield from (
        (i, {'steps': steps, 'file_path': path}) for i, (path, steps) in enumerate(episodes)
      )

  steps = [
    {
      'observation': {'image': io.BytesIO(jpeg(np.full((8, 8, 3), 9 * t, np.uint8)))},
      'language_instruction': '',
    }
    for t in range(20)
  ]
  features = tfds.features.FeaturesDict(
    {
      'steps': tfds.features.Dataset(
        {
          'observation': {'image': tfds.features.Image(shape=(8, 8, 3), encoding_format='jpeg')},
          'language_instruction': tfds.features.Text(),
        }
      ),
      'file_path': tfds.features.Text(),
    }
  )
  made = Named(
    {'train': [('failure/1', steps), ('success/2', steps)]},
    features,
    data_dir=str(tmp_path),
    file_format='array_record',
  )
  made.download_and_prepare()
  record = dataclasses.replace(
    ROBOT,
    views=(View('image', 0, 0, 32, 48),),
    state=(),
    action=(),
    episode_key=('file_path',),
    success='success',
  )
  found = [message for kind, message in failures(made.data_path, record) if kind == 'language']
  assert len(found) == 1
  assert 'record 1 of' in found[0]


def test_more_than_ten_of_a_kind_are_counted(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['text'] = ['a', '', 'b', '', 'c', ''] + ['d'] * (STEPS - 6)

  findings, _ = validate(make_dataset(tmp_path, edit))
  assert findings.count('fail') == 18
  assert [m for _, m in findings.messages('fail')][10:] == ['... and 8 more like these']


def test_overlapping_slices(good_path):
  record = dataclasses.replace(ROBOT, state=(*ROBOT.state, Slice('proprio', 1, 3, 'm')))
  expect(
    failures(good_path, record),
    'slice',
    "state slices proprio[0:2] and proprio[1:3] of 'robot' overlap",
    'state slices proprio[2:3] and proprio[1:3]',
  )


def test_action_relative_to_the_wrong_joints(good_path):
  # Two arms in one vector, and a record that takes the left one's state for the right one's action.
  arms = dataclasses.replace(
    ROBOT,
    state=(Slice('proprio', 0, 1, 'm'), Slice('proprio', 1, 2, 'm'), ROBOT.state[1]),
    action=(
      Slice('action', 0, 1, 'm', 'proprio:1:2'),
      Slice('action', 1, 2, 'm', 'proprio:0:1'),
      ROBOT.action[1],
    ),
  )
  found = failures(good_path, arms)
  expect(
    found,
    'slice',
    "action action[0:1] has relative_to='proprio:1:2' but follows the state proprio[0] to",
    "action action[1:2] has relative_to='proprio:0:1' but follows the state proprio[1]",
  )


def test_degrees_and_millimetres(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['proprio'][:, 0] *= 1000
      e['action'][:, 0] *= 1000

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'unit',
    "state proprio[0:2] holds 'm' up to 7",
    "action action[0:2] holds 'm'",
    'expected at most 10',
  )
  assert numeric.UNIT_LIMIT['rad'] == pytest.approx(12.566, abs=1e-3)
  assert numeric.UNIT_LIMIT['normalized'] == 1.1


def test_constant_dimensions(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['proprio'][:, 2] = 0.5
      e['action'][:, 2] = 0.5 + 1e-5 * np.arange(STEPS)

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'constant',
    'state proprio[2] hardly varies: q01 0.5, q99 0.5',
    'action action[2] hardly varies',
  )
  assert len(found) == 2


def test_exploding_dimensions(tmp_path):
  def edit(episodes):
    episodes[1]['proprio'][30, 0] = 40
    episodes[4]['action'][12, 1] = -30

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'exploding',
    'state proprio[0] is 40 at step 30 of record 1 of',
    'action action[1] relative to the state is -30.',
    'at step 12 of record 4 of',
  )


def test_action_equal_to_the_state(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['action'][:, :2] = e['proprio'][:, :2]

  found = failures(make_dataset(tmp_path, edit))
  expect(
    [f for f in found if f[0] != 'constant'],
    'copy',
    'action equals the state of the same step at 100%',
    'action[0] = proprio[0], action[1] = proprio[1], first at step 0 of record 0 of',
  )


def test_action_equal_to_the_next_state_is_worth_a_note(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['action'][:-1, :2] = e['proprio'][1:, :2]

  findings, _ = validate(make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert not findings.count('warn')
  assert any(
    'action is the state of the next step: action[0] = proprio[0], action[1] = proprio[1]'
    in message
    for _, message in findings.messages('note')
  )


# Rates.


def test_timestamps_of_another_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['timestamp'] = e['timestamp'] * 10 / 15

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'rate',
    'timestamps of record 0 of',
    'are 0.06667 s apart (15 Hz); expected 0.1 s: correct control_hz=10',
  )
  assert len(found) == EPISODES


def test_timestamps_that_do_not_grow_and_gaps(tmp_path):
  def edit(episodes):
    episodes[1]['timestamp'][20:] -= 0.2
    episodes[2]['timestamp'][30:] += 0.5

  findings, _ = validate(make_dataset(tmp_path, edit))
  expect(
    list(findings.messages('fail')),
    'rate',
    'timestamps of record 1 of',
    'do not grow: 1.9 s at step 19, 1.8 s',
  )
  expect(
    list(findings.messages('warn')),
    'rate',
    'timestamps of record 2 of',
    'have 1 gaps, of 0.6 s after step 29',
  )


def test_camera_of_half_the_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['wrist'] = [e['wrist'][t // 2 * 2] for t in range(STEPS)]

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'rate',
    "of the frames of 'wrist' repeat the frame before amid motion: they are new 5 times a second",
  )
  assert len(found) == 1


def test_recording_played_at_twice_its_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      for key in ('proprio', 'action', 'top', 'wrist'):
        e[key] = [e[key][t // 2] for t in range(STEPS)]

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'rate',
    'of the rows repeat the state of the row before amid motion: they are new 5 times',
    "frames of 'top'",
    "frames of 'wrist'",
  )


# Cameras.


def test_two_views_of_the_same_camera(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['wrist'] = e['top']

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found, 'view', "views 'top' and 'wrist' of record 0 of", 'show the same pixels', 'record 5 of'
  )


def test_blank_and_frozen_views(tmp_path):
  def edit(episodes):
    episodes[1]['top'] = [np.zeros((32, 32, 3), np.uint8)] * STEPS
    episodes[4]['wrist'] = [episodes[4]['wrist'][0]] * STEPS

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'view',
    "view 'top' of record 1 of",
    'is blank at all 60 steps (grey level 0)',
    "view 'wrist' of record 4 of",
    'shows one frozen picture for all 60 steps while the robot moves',
  )


def test_swapped_wrist_camera(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['top'], e['wrist'] = e['wrist'], e['top']

  found = failures(make_dataset(tmp_path, edit))
  expect(
    found,
    'view',
    "view 'top' moves as a whole",
    'in 6 of 6 episodes',
    'the two cameras are swapped',
  )


@pytest.mark.parametrize('late', [6, -5])
def test_frames_shifted_against_the_rows(tmp_path, late):
  def edit(episodes):
    for e in episodes:
      for key in ('top', 'wrist'):
        e[key] = [e[key][np.clip(t - late, 0, STEPS - 1)] for t in range(STEPS)]

  findings, result = validate(make_dataset(tmp_path, edit))
  when = f'come about {abs(late)} steps ({abs(late) / 10:g} s) {"after" if late > 0 else "before"} the rows'
  expect(
    list(findings.messages('fail')),
    'alignment',
    f"images of 'top' {when}",
    f"images of 'wrist' {when}",
  )
  assert [view['late_steps'] for view in result.card['views'].values()] == [late, late]


def test_a_camera_may_be_two_steps_late(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['top'] = [e['top'][max(t - 2, 0)] for t in range(STEPS)]

  findings, result = validate(make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert result.card['views']['top']['late_steps'] == 2


def test_shuffled_frames_and_short_episodes_are_not_called_late(good_path, tmp_path):
  def edit(episodes):
    rng = np.random.default_rng(1)
    for e in episodes:
      e['top'] = [e['top'][t] for t in rng.permutation(STEPS)]

  findings, _ = validate(make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert any(
    "motion is hardly seen in 'top'" in message for _, message in findings.messages('note')
  )
  findings, _ = validate(good_path, split='train[:2]')
  assert "too few or too short episodes to tell whether 'top' is late" in ''.join(findings.lines())


def test_video_without_state_passes(good_path):
  findings, result = validate(
    good_path, dataclasses.replace(ROBOT, name='robot_video', state=(), action=())
  )
  assert not findings.count('fail')
  assert not findings.count('warn')
  assert result.card['dimensions'] == []
  assert result.card['views']['top']['late_steps'] is None


# Statistics, episodes too short, kinds that are accepted.


def test_statistics_file(tmp_path):
  path = make_dataset(tmp_path)
  episodes = sources.Episodes(path, 'train', ROBOT)
  statistics.load_or_compute(episodes)
  findings, _ = validate(path)
  assert not findings.count('fail')
  assert not findings.count('note')
  file = pathlib.Path(statistics.find(episodes))
  good = file.read_text()

  file.write_text(good.replace(episodes.fingerprint, '0' * 16))
  expect(
    failures(path),
    'statistics',
    f'{file} was made of other shards (fingerprint 0000',
    'python -m data.statistics',
  )
  stale = json.loads(good)
  stale['state']['q99'][1] += 1
  file.write_text(json.dumps(stale))
  expect(failures(path), 'statistics', 'of state dimension 1, the data 0.', f'{file} says q99=1.')
  other = dataclasses.replace(ROBOT, action=ROBOT.action[:1])
  statistics.load_or_compute(
    sources.Episodes(path, 'train', dataclasses.replace(other, name='other'))
  )
  shutil.copy(file.with_name('wam_statistics_other.json'), file)
  expect(failures(path), 'statistics', f'{file} holds statistics of another embodiment')


def test_too_short_for_a_chunk(good_path):
  found = failures(good_path, dataclasses.replace(ROBOT, chunk_s=8.0))
  expect(found, 'anchors', 'longer than one chunk of 80 steps')


def test_an_episode_of_one_step_is_no_failure(tmp_path):
  def edit(episodes):
    episodes[2]['text'] = ['go there']

  findings, result = validate(make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert result.card['length'] == {'min': 1, 'median': 60, 'max': 60}


def test_accepted_failures_are_warnings(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['proprio'][:, 2] = 0.5
      e['text'] = [''] * STEPS

  path = make_dataset(tmp_path, edit)
  findings, _ = validate(path, accept=('constant',))
  assert {kind for kind, _ in findings.messages('fail')} == {'language'}
  assert {kind for kind, _ in findings.messages('warn')} == {'constant'}
  with pytest.raises(
    ValueError, match=r"no kinds of failure \['words'\] to accept; choose from .*'language'"
  ):
    findings_lib.Findings(frozenset(['words']))


# Signals, by hand.


@pytest.mark.parametrize(
  'motion, want',
  [
    ([1, 0, 1, 0, 1, 0], (3, 6)),
    ([1, 0, 0, 1, 0, 0, 1], (4, 7)),
    ([1, 1, 1, 1, 1, 1], (0, 6)),
    ([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], (2, 8)),
    ([0, 0, 0, 0], (0, 0)),
    ([1, 0], (0, 0)),
    ([0, 0, 0, 0, 1, 0, 0, 0, 0], (0, 0)),
  ],
)
def test_repeats(motion, want):
  assert signals.repeats(np.asarray(motion, float)) == want


def test_lag_of_one_series_after_another():
  rng = np.random.default_rng(0)
  speed = [np.abs(signals.smooth(rng.normal(size=(105, 3)), 6)) for _ in range(5)]
  late = [np.roll(s @ (1, 0.3, 0), 7) for s in speed]
  lag = signals.estimate_lag(late, speed, 10.0, tolerance=3, most=12)
  assert lag.best == 7
  assert lag.strength > 0.9
  assert lag.gain[0] > 5 * lag.gain[1] > 0
  noise = [rng.uniform(size=100) for _ in speed]
  assert signals.estimate_lag(noise, speed, 10.0, tolerance=3, most=12).strength < 0.3
  assert signals.estimate_lag(late[:2], speed[:2], 10.0, 3, 12) is None
  assert signals.estimate_lag([m[:9] for m in late], [s[:9] for s in speed], 10.0, 3, 12) is None


def test_smoothing_is_centred():
  np.testing.assert_allclose(signals.smooth(np.asarray([0.0, 0, 3, 0, 0]), 3), [1, 1, 1])
  assert [signals.smoothing(hz) for hz in (3, 5, 10, 15, 30)] == [1, 1, 3, 3, 7]


def test_contact_sheet_shows_the_composites():
  red, blue = (np.full((32, 48, 3), color, np.uint8) for color in ((200, 10, 30), (20, 40, 210)))
  clip = video.Clip(
    3, 'record 3', 'go there', np.zeros((9, 3)), np.zeros((9, 3)), {}, {}, {0: red, 8: blue}
  )
  sheet = cv2.imdecode(
    np.frombuffer(pictures.draw_sheet(ROBOT, [clip], 'title'), np.uint8), cv2.IMREAD_COLOR_RGB
  )
  red, blue = [(sheet == color).all(-1).nonzero()[1] for color in ((200, 10, 30), (20, 40, 210))]
  # Time runs to the right.
  assert min(red.size, blue.size) > 20000
  assert red.max() < blue.min()


# The command, on real and simulated data.


def run(*args: str) -> subprocess.CompletedProcess[str]:
  return programs.run('data.validate', *args)


SAMPLE = pytest.param(
  'sample',
  marks=pytest.mark.skipif(not BRIDGE.exists(), reason=f'no BridgeData sample at {BRIDGE}'),
)


@pytest.mark.parametrize('origin', ['synthetic', SAMPLE])
def test_command_on_bridge(tmp_path, origin):
  source = BRIDGE if origin == 'sample' else bridge.write(tmp_path)
  path = tmp_path / 'bridge/1.0.0'
  done = programs.run('data.convert', f'--source={source}', f'--output={path}')
  assert not done.returncode, done.stderr
  done = run(
    f'--dataset={path}',
    '--embodiment=bridge_widowx',
    f'--output={tmp_path}/out',
    f'--json={tmp_path}/card.json',
  )
  assert not done.returncode, done.stdout + done.stderr
  assert 'passed: 0 failures, 0 warnings' in done.stdout
  assert 'Traceback' not in done.stderr
  assert '  episodes  25; 10 to 10 steps' in done.stdout
  assert '8 x  put carrot on plate' in done.stdout
  report = json.loads((tmp_path / 'card.json').read_text())
  assert report['failures'] == []
  assert report['card']['steps'] == 250
  assert report['card']['images']['read'] == 250
  assert [row['name'] for row in report['card']['dimensions']] == [
    f'{key}[{i}]' for key in ('state', 'action') for i in range(7)
  ]
  assert [pathlib.Path(p).name for p in report['pictures']] == [
    f'wam_validation_bridge_widowx_{part}.png' for part in ('sheet', 'state', 'action')
  ]
  for picture in report['pictures']:
    image = cv2.imread(picture)
    assert min(image.shape[:2]) > 600
    assert image.std() > 10


@pytest.mark.skipif(not BRIDGE.exists(), reason=f'no BridgeData sample at {BRIDGE}')
def test_synthetic_bridge_has_the_published_form(tmp_path):
  made, sample = (
    tfds.builder_from_directory(path).info for path in (bridge.write(tmp_path), BRIDGE)
  )
  assert made.features.get_tensor_info() == sample.features.get_tensor_info()
  assert made.file_format == sample.file_format


def test_command_on_tabletop_writes_beside_the_data(tmp_path):
  path, _ = builder.build(
    tmp_path, builder.BuildConfig('arm', ('place', 'push'), episodes=12, split_names=('train',))
  )
  done = run(f'--dataset={path}', '--embodiment=tabletop_arm', '--episodes=12')
  assert not done.returncode, done.stdout + done.stderr
  assert 'passed: 0 failures, 0 warnings' in done.stdout
  assert (path / 'wam_validation_tabletop_arm_sheet.png').exists()


def test_command_fails_with_status_1_and_lists_everything(tmp_path, good_path):
  """Bridge's record does not fit, tabletop's does; the images of the latter are spoilt."""
  done = run(f'--dataset={good_path}', '--embodiment=bridge_widowx')
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert done.stderr.startswith(
    f"error: {good_path} does not fit embodiment 'bridge_widowx': no 'observation/image_0'"
  )

  def edit(episodes):
    episodes[1]['top'][7] = jpeg(episodes[1]['top'][7])[:300]
    episodes[2]['text'] = [''] * STEPS

  path = make_dataset(tmp_path, edit)
  done = run(
    f'--dataset={path}',
    '--embodiment=tabletop_human',
    '--nopictures',
    f'--json={tmp_path}/card.json',
  )
  assert done.returncode == 1 and 'FAILED: 2 failures, 0 warnings, 1 note;' in done.stdout, (
    done.stdout
  )
  assert "fail image: image 'top' of step 7 of record 1 of" in done.stdout
  assert 'fail language: steps 0 to 59 of record 2 of' in done.stdout
  assert [f['kind'] for f in json.loads((tmp_path / 'card.json').read_text())['failures']] == [
    'image',
    'language',
  ]
