"""LeRobot directories of every version become RLDS whose frames, rows and texts belong to each
other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data.lerobot import convert
from data.lerobot import gear as gear_lib
from data.lerobot import plan as plan_lib
from data.lerobot import record as record_lib
from tests import episodes as episodes_lib
from tests import programs
from tests import videos
from tests.builders import lerobot_dirs as dirs
from wam_jax.data import choice
from wam_jax.data import record as robot_record
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import windows

LENGTHS = [21, 9, 14]
# modality.json of the reference: names for ranges of columns, for cameras and for texts.
GEAR = {
  'state': {
    'arm': {'start': 0, 'end': 2},
    'gripper': {'start': 3, 'end': 4, 'original_key': 'observation.state'},
  },
  'action': {'arm': {'start': 0, 'end': 2}, 'gripper': {'start': 3, 'end': 4}},
  'video': {'front': {}, 'hand': {'original_key': 'observation.images.wrist'}},
  'annotation': {'human.task': {}, 'note': {'original_key': 'note'}},
}


@pytest.fixture(scope='module')
def v2(tmp_path_factory):
  return dirs.write_v2(tmp_path_factory.mktemp('v2') / 'my-robot', LENGTHS)


@pytest.fixture(scope='module')
def converted(v2, tmp_path_factory):
  output = tmp_path_factory.mktemp('converted') / 'my_robot/1.0.0'
  made = convert.convert(v2, output)
  assert made.made
  return output, made.record


@pytest.fixture
def damaged(v2, tmp_path):
  """A copy to be damaged."""
  return pathlib.Path(shutil.copytree(v2, tmp_path / 'damaged'))


def _shards(path):
  return {
    p.name.split('-', 1)[1]: p.read_bytes() for p in path.iterdir() if '.array_record' in p.name
  }


def test_every_feature_of_every_step(converted):
  episodes = episodes_lib.read(converted[0])
  assert [len(e['steps']) for e in episodes] == LENGTHS
  assert [e['name'].decode() for e in episodes] == [
    'episode_000000',
    'episode_000001',
    'episode_000002',
  ]
  for e, episode in enumerate(episodes):
    tasks, n = dirs.tasks_of(e, LENGTHS[e]), LENGTHS[e]
    for t, step in enumerate(episode['steps']):
      for camera in dirs.CAMERAS:
        image = step['observation'][camera]
        assert image.shape == (*dirs.SIZE, 3)
        # Shades are 6 apart.
        np.testing.assert_allclose(image, dirs.shade(camera, e, t), atol=2)
      np.testing.assert_array_equal(step['observation']['state'], dirs.state(e, t))
      np.testing.assert_array_equal(step['action'], dirs.state(e, t + 1))
      assert step['action'].dtype == np.float32
      np.testing.assert_array_equal(step['observation']['effort'], [t + 0.25, t + 0.75])
      assert step['language_instruction'].decode() == dirs.TASKS[tasks[t]]
      assert step['note'].decode() == f'step {t}'

      is_last = t == n - 1
      assert step['is_first'] == (t == 0)
      assert step['is_last'] == is_last
      assert step['is_terminal'] == is_last
      assert step['reward'] == [is_last]
      assert step['next.done'] == [is_last]
      assert step['frame_index'] == t
      # `index` counts the steps of all episodes.
      assert step['index'] == sum(LENGTHS[:e]) + t
      assert step['task_index'] == tasks[t]
      assert step['timestamp'] == np.float32(t / dirs.FPS)


def test_suggested_record_fits_the_data(converted):
  output, record = converted
  assert record == robot_record.Embodiment(
    name='test_arm',
    views=(
      robot_record.View('front', 0, 0, 48, 64),
      robot_record.View('wrist', 0, 64, 48, 64),
    ),
    composite=(48, 128),
    state=(robot_record.Slice('state', 0, 4, 'unknown'),),
    # Each action is the state of the next step: to send the state back is to stand still.
    action=(robot_record.Slice('action', 0, 4, 'unknown', rest='state:0:4'),),
    control_hz=10.0,
    video_fps=5.0,
    chunk_s=1.6,
  )
  assert robot_record.from_dict(json.loads((output / 'embodiment.json').read_text())) == record
  # What the command prints is Python, to be pasted into a table of robots.
  names = {name: getattr(robot_record, name) for name in ('Embodiment', 'View', 'Slice')}
  assert eval(record_lib.to_python(record), names) == record


def test_a_window_shows_the_frames_of_its_states(converted):
  output, record = converted
  record = dataclasses.replace(record, chunk_s=0.4)
  episodes = sources.Episodes(str(output), 'train', record)
  anchors = windows.make_anchors(episodes)
  # Chunks of 4 steps; episode 0 has two instructions, of 10 and of 11 steps.
  assert len(anchors) == (10 - 4) + (11 - 4) + (9 - 4) + (14 - 4)
  e, step, stop = anchors[7]
  assert (e, step, stop) == (0, 11, 21)
  window = windows.make_window(record, 2, step, stop)
  proprio, action = windows.gather(episodes[e], record, window)
  for i, t in enumerate(window.frame_steps_R):
    assert t == 11 + 2 * i
    np.testing.assert_allclose(
      episodes[e].decode('front', int(t)), dirs.shade('front', e, t), atol=2
    )
  # The state of step t begins with t, the action with t + 1.
  np.testing.assert_array_equal(proprio[:, 0], [11, 15])
  np.testing.assert_array_equal(action[..., 0], np.arange(12, 20).reshape(2, 4))


# Version 3 with a file that ends between episodes, and with all of them in one file.
@pytest.mark.parametrize('version, per_file', [('v2.0', 0), ('v3.0', 2), ('v3.0', 3)])
def test_other_versions_give_the_same_records(converted, v2, tmp_path, version, per_file):
  if per_file:
    source = dirs.pack_as_v3(v2, tmp_path / 'my-robot', per_file)
  else:
    source = pathlib.Path(shutil.copytree(v2, tmp_path / 'my-robot'))
    dirs.edit_info(source, codebase_version=version)
  convert.convert(source, tmp_path / 'out', workers=2)
  assert _shards(tmp_path / 'out') == _shards(converted[0])
  assert len(_shards(tmp_path / 'out')) == 3


@pytest.fixture
def gear(damaged):
  """A copy with the reference's metadata."""
  info = json.loads((damaged / 'meta/info.json').read_text())
  dirs.write_info(damaged, {**info, 'discarded_episode_indices': [1]})
  six = lambda q99: (
    {name: [0.0] * len(q99) for name in gear_lib.STATISTICS} | {'q99': q99, 'max': q99}
  )
  for name, content in {
    'modality': GEAR,
    'embodiment': {'embodiment_tag': 'yam'},
    'stats': {'observation.state': six([1.0, 2.0, 3.0, 4.0]), 'action': six([5.0, 6.0, 7.0, 8.0])},
    'relative_stats_dreamzero': {'arm': six([9.0, 10.0])},
  }.items():
    (damaged / f'meta/{name}.json').write_text(json.dumps(content))
  dirs.write_lines(
    damaged / 'meta/step_filter.jsonl', [{'episode_index': 2, 'step_indices': [0, 1, 5, 13]}]
  )
  return damaged


def test_gear_metadata_name_slices_texts_and_statistics(gear, tmp_path):
  record = convert.convert(gear, tmp_path / 'out').record
  episodes = episodes_lib.read(tmp_path / 'out')
  # Episode 1 is discarded.
  assert [int(e['episode_index']) for e in episodes] == [0, 2]
  for episode in episodes:
    e = int(episode['episode_index'])
    for t, step in enumerate(episode['steps']):
      assert sorted(step['observation']) == ['arm', 'effort', 'front', 'gripper', 'hand']
      np.testing.assert_array_equal(step['observation']['arm'], [t, 10 * e])
      np.testing.assert_array_equal(step['observation']['gripper'], [0.5])
      np.testing.assert_array_equal(step['action']['arm'], [t + 1, 10 * e])
      np.testing.assert_allclose(step['observation']['hand'], dirs.shade('wrist', e, t), atol=2)
      assert (
        step['language_instruction'] == step['annotation']['human.task'] == dirs.TASKS[2].encode()
      )
      assert step['annotation']['note'].decode() == f'step {t}'
  Slice = robot_record.Slice
  assert record.name == 'yam'
  assert record.prompt != '{}'
  assert record.state == (Slice('arm', 0, 2, 'unknown'), Slice('gripper', 0, 1, 'normalized'))
  assert record.action == (
    Slice('action/arm', 0, 2, 'unknown', relative_to='arm:0:2'),
    Slice('action/gripper', 0, 1, 'normalized', rest='gripper:0:1'),
  )
  numbers = statistics.load(tmp_path / 'out/gear_statistics.json', record)
  np.testing.assert_array_equal(numbers.state.q99, [1, 2, 4])
  # Relative statistics for the relative part.
  np.testing.assert_array_equal(numbers.action.max, [9, 10, 8])
  # Steps 0, 1, 5 and 13 of episode 2 are filtered out; a range ends before its second number.
  assert json.loads((tmp_path / 'out' / choice.RANGES).read_text()) == {
    'episode_000000': [[0, 21]],
    'episode_000002': [[2, 5], [6, 13]],
  }
  short = dataclasses.replace(record, chunk_s=0.2)
  anchors = windows.make_anchors(
    sources.Episodes(
      str(tmp_path / 'out'),
      'train',
      short,
      choice=choice.Choice(ranges=str(tmp_path / 'out' / choice.RANGES)),
    )
  )
  assert [anchors[i][1] for i in range(len(anchors)) if anchors[i][0] == 1] == [
    2,
    3,
    4,
    *range(6, 12),
  ]


def test_gear_metadata_that_does_not_fit_is_an_error(gear, tmp_path):
  for name, content, message in (
    (
      'meta/modality.json',
      {**GEAR, 'state': {'arm': {'start': 2, 'end': 9}}},
      "modality.json asks for columns that info.json does not have: 'arm': columns 2 to 9 of "
      "'observation.state'",
    ),
    (
      'meta/modality.json',
      {**GEAR, 'video': {'top': {}}},
      r"does not have: \['observation.images.top'\]",
    ),
    (
      'meta/modality.json',
      {**GEAR, 'state': {}},
      r"relative_stats_dreamzero.json is about \['arm'\]",
    ),
    (
      'meta/step_filter.jsonl',
      {'episode_index': 2, 'step_indices': [14]},
      'removes steps that episode 2 does not',
    ),
  ):
    before = (gear / name).read_text()
    (gear / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
      convert.convert(gear, tmp_path / 'out')
    (gear / name).write_text(before)
  dirs.edit_info(gear, discarded_episode_indices=[0, 1, 2])
  with pytest.raises(ValueError, match=r"no episode is left in the splits \['train'\]"):
    convert.convert(gear, tmp_path / 'out')


def test_columns_of_the_source_come_before_what_is_made(damaged, tmp_path):
  """As in conversions of DROID, which keep its RLDS columns."""
  info = json.loads((damaged / 'meta/info.json').read_text())
  info['features']['language_instruction'] = info['features'].pop('note')
  dirs.write_info(damaged, info)
  for path in damaged.glob('data/*/*.parquet'):
    table = parquet.read_table(path)
    names = ['language_instruction' if name == 'note' else name for name in table.column_names]
    parquet.write_table(table.rename_columns(names), path)
  convert.convert(damaged, tmp_path / 'out')
  assert [
    s['language_instruction'].decode() for s in episodes_lib.read(tmp_path / 'out')[1]['steps'][:2]
  ] == [
    'step 0',
    'step 1',
  ]


def test_images_in_the_rows(damaged, tmp_path):
  colour = lambda e, t: (10 * e, 5 * t, 200)
  info = json.loads((damaged / 'meta/info.json').read_text())
  info['features']['observation.images.front'].update(
    dtype='image', shape=[3, *dirs.SIZE], names=['channels', 'height', 'width']
  )
  dirs.write_info(damaged, info)
  for e, length in enumerate(LENGTHS):
    path = damaged / f'data/chunk-{e // 2:03d}/episode_{e:06d}.parquet'
    images = []
    for t in range(length):
      bgr = colour(e, t)[::-1]
      _, png = cv2.imencode('.png', np.full((*dirs.SIZE, 3), bgr, np.uint8))
      encoded = png.tobytes()
      name = f'images/{e}_{t}.png'
      (damaged / name).parent.mkdir(exist_ok=True)
      (damaged / name).write_bytes(encoded)
      # A row holds the image, or only where it lies.
      images.append({'bytes': encoded if t % 2 else None, 'path': name})
    table = parquet.read_table(path).append_column('observation.images.front', pa.array(images))
    parquet.write_table(table, path)
  convert.convert(damaged, tmp_path / 'out', plan_lib.Options(size='24x32'))
  for e, episode in enumerate(episodes_lib.read(tmp_path / 'out')):
    for t, step in enumerate(episode['steps']):
      assert step['observation']['front'].shape == step['observation']['wrist'].shape == (24, 32, 3)
      np.testing.assert_allclose(step['observation']['front'][0, 0], colour(e, t), atol=3)


def test_given_record_is_checked_and_written(v2, converted, tmp_path):
  record = dataclasses.replace(
    converted[1], name='mine', action=(robot_record.Slice('action', 1, 3, 'm'),)
  )
  file = tmp_path / 'mine.json'
  file.write_text(json.dumps(dataclasses.asdict(record)))
  assert convert.convert(v2, tmp_path / 'out', plan_lib.Options(str(file))).record == record
  file.write_text(
    json.dumps(
      dataclasses.asdict(
        dataclasses.replace(
          record, state=(robot_record.Slice('state', 2, 5, 'm'),), language=('words',)
        )
      )
    )
  )
  with pytest.raises(
    ValueError, match="'mine' asks for 'words', 'observation/state' with 5 columns"
  ):
    convert.convert(v2, tmp_path / 'other', plan_lib.Options(str(file)))
  file.write_text('{}')
  with pytest.raises(ValueError, match='does not describe an embodiment'):
    convert.convert(v2, tmp_path / 'other', plan_lib.Options(str(file)))


EPISODE_1 = 'chunk-000/episode_000001'


def _edit_rows(root, key, change):
  path = root / f'data/{EPISODE_1}.parquet'
  table = parquet.read_table(path)
  parquet.write_table(
    table.set_column(
      table.column_names.index(key), key, pa.array(change(table[key].to_pylist()), table[key].type)
    ),
    path,
  )


def _cut(path, share):
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _faststart(path):
  """The same video with its index in front, as streaming needs it: it opens even when its end is
  missing.
  """
  copy = path.with_suffix('.fast.mp4')
  with (
    av.open(str(path)) as source,
    av.open(str(copy), 'w', options={'movflags': 'faststart'}) as output,
  ):
    stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
    for packet in source.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        output.mux(packet)
  copy.rename(path)


VIDEO = f'videos/{EPISODE_1.replace("/", "/observation.images.wrist/")}.mp4'
SHADES = [dirs.shade('wrist', 1, t) for t in range(9)]


# First what lies under meta/, then videos, then rows; what can be named by its episode is.
@pytest.mark.parametrize(
  'damage, message',
  [
    (
      lambda d: dirs.edit_info(d, codebase_version='v1.6'),
      "codebase_version='v1.6'; supported are v2.0, v2.1, v3.0",
    ),
    (lambda d: (d / 'meta/info.json').unlink(), 'has no meta/info.json'),
    (lambda d: dirs.edit_info(d, fps=float('nan')), 'info.json says fps=nan; expected rows a sec'),
    (lambda d: dirs.edit_info(d, fps='30'), "info.json says fps='30'; expected rows a second"),
    (lambda d: _cut(d / 'meta/info.json', 0.5), 'info.json is missing or not JSON'),
    (lambda d: _cut(d / 'meta/episodes.jsonl', 0.9), 'Line 3 of .*episodes.jsonl cannot be used'),
    (lambda d: (d / 'meta/tasks.jsonl').unlink(), 'There is no file .*tasks.jsonl'),
    (
      lambda d: dirs.edit_info(d, splits={'train': '80%'}),
      "split 'train' is '80%'; expected START:STOP",
    ),
    (
      lambda d: (d / VIDEO).unlink(),
      f'Episode 1, there is no file .*{VIDEO}. .* take the 2 others: --episodes=present',
    ),
    (
      lambda d: (d / VIDEO).write_text('version https://git-lfs.github.com/spec/v1\nsize 9\n'),
      f'Episode 1, .*{VIDEO} is a Git LFS pointer',
    ),
    (
      lambda d: _cut(d / VIDEO, 0.5),
      f'Episode 1, observation.images.wrist: .*{VIDEO} cannot be decoded',
    ),
    (
      lambda d: (_faststart(d / VIDEO), _cut(d / VIDEO, 0.9)),
      f'Episode 1, observation.images.wrist: .*{VIDEO}',
    ),
    (
      lambda d: dirs.write_video(d / VIDEO, SHADES[:-1]),
      f'Episode 1, observation.images.wrist: .*{VIDEO} holds 8 frames for 9 rows.*--episodes=-1$',
    ),
    (
      lambda d: dirs.write_video(d / VIDEO, SHADES + SHADES[:2]),
      f'Episode 1, .*{VIDEO} holds 11 frames for 9 rows.*the 2 others: --episodes=-1$',
    ),
    (
      lambda d: dirs.write_video(d / VIDEO, SHADES, fps=13),
      f'Episode 1, .*{VIDEO} has frame 3 at 0.2308 s, .*0.3000 s',
    ),
    (
      lambda d: dirs.write_video(d / VIDEO, SHADES, size=(32, 32)),
      r'Episode 1, .*\(32, 32\).*first one of its camera has \(48, 64\).*--episodes=-1$',
    ),
    (
      lambda d: (d / f'data/{EPISODE_1}.parquet').unlink(),
      f'Episode 1, there is no file .*{EPISODE_1}.parquet',
    ),
    (
      lambda d: _cut(d / f'data/{EPISODE_1}.parquet', 0.8),
      f'{EPISODE_1}.parquet is not a readable parquet file',
    ),
    (
      lambda d: dirs.write_table(d / f'data/{EPISODE_1}.parquet', dirs.make_rows(1, 8, 21)),
      f'Episode 1 .*{EPISODE_1}.parquet.* has 8 rows of this episode and 8 in all; the metadata '
      'say 9',
    ),
    (
      lambda d: _edit_rows(d, 'episode_index', lambda x: [0] * len(x)),
      'Episode 1 .* has 0 rows of this episode and 9',
    ),
    (
      lambda d: _edit_rows(d, 'frame_index', lambda x: x[::-1]),
      'Episode 1 .*: frame_index is not 0, 1, 2',
    ),
    (
      lambda d: _edit_rows(d, 'timestamp', lambda x: [1.15 * s for s in x]),
      'Episode 1 .*: timestamp grows by 0.115 s a row, 8.696 rows .* fps=10.*: --episodes=-1$',
    ),
    (
      lambda d: _edit_rows(d, 'task_index', lambda x: [7] * len(x)),
      r'Episode 1 .*: task_index \[7\] is not in meta',
    ),
    (
      lambda d: _edit_rows(d, 'action', lambda x: [[0.0], *x[1:]]),
      "Episode 1 .*: 'action' does not hold float64 of",
    ),
    (  # Together as many as there should be.
      lambda d: _edit_rows(d, 'action', lambda x: [[0.0] * 5, [0.0] * 3, *x[2:]]),
      "Episode 1 .*: 'action' does not hold float64 of .*: 5 values in row 0, 3 in row 1.",
    ),
    (  # phospho-app/phosphobot#190.
      lambda d: _edit_rows(d, 'action', lambda x: [*x[:3], [None] * 4, *x[4:]]),
      "Episode 1 .*: 'action' has an empty number in row 3.* leave the episode out: --episodes=-1$",
    ),
    (  # Of several recordings, as in unitree_lerobot#41.
      lambda d: _edit_rows(d, 'timestamp', lambda x: [*x[:5], *x[:4]]),
      'Episode 1 .*: timestamp does not grow: 0.4000 s in row 4, 0.0000 s in the next',
    ),
    (
      lambda d: _edit_rows(d, 'note', lambda x: [None, *x[1:]]),
      "Episode 1 .*: 'note' is empty in 1 rows",
    ),
  ],
)
def test_damage_is_named_and_nothing_appears(damaged, tmp_path, damage, message):
  damage(damaged)
  with pytest.raises(ValueError, match=message):
    convert.convert(damaged, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_unfit_features_and_options_are_errors(damaged, tmp_path):
  info = json.loads((damaged / 'meta/info.json').read_text())
  info['features']['observation.images.depth'] = {
    'dtype': 'video',
    'shape': [*dirs.SIZE, 1],
    'info': {'video.is_depth_map': True},
  }
  info['features']['observation.front'] = {'dtype': 'float32', 'shape': [1]}
  dirs.write_info(damaged, info)
  with pytest.raises(ValueError, match=r"would be called \['observation/front'\]"):
    convert.convert(damaged, tmp_path / 'out')
  with pytest.raises(ValueError, match=r'Leave them out: --exclude=observation.images.depth'):
    convert.convert(damaged, tmp_path / 'out', plan_lib.Options(exclude=['observation.front']))
  with pytest.raises(ValueError, match=r"--exclude names \['nothing'\]"):
    convert.convert(damaged, tmp_path / 'out', plan_lib.Options(exclude=['nothing']))
  with pytest.raises(ValueError, match="size='180' must be ROWSxCOLUMNS"):
    convert.convert(damaged, tmp_path / 'out', plan_lib.Options(size='180'))
  convert.convert(
    damaged,
    tmp_path / 'out',
    plan_lib.Options(exclude=['observation.images.depth', 'observation.front']),
  )


def _shift(root, episodes=(1, 2), **by_frames):
  """Moves timestamps of meta/episodes, of these episodes."""
  path = root / 'meta/episodes/chunk-000/file-000.parquet'
  table = parquet.read_table(path)
  for name, frames in by_frames.items():
    key = f'videos/observation.images.front/{name}'
    seconds = [
      s + frames / dirs.FPS * (e in episodes) for e, s in enumerate(table[key].to_pylist())
    ]
    table = table.set_column(table.column_names.index(key), key, pa.array(seconds))
  parquet.write_table(table, path)


# A whole frame too early would take the last frame of episode 0 for the first of episode 1.
@pytest.mark.parametrize('frames', [-1, 0.6, 1, 7])
def test_frames_of_v3_are_counted_where_times_drift(v2, converted, tmp_path, frames):
  source = dirs.pack_as_v3(v2, tmp_path / 'my-robot', 3)
  _shift(source, from_timestamp=frames, to_timestamp=frames)
  made = convert.convert(source, tmp_path / 'out')
  assert _shards(tmp_path / 'out') == _shards(converted[0])
  expected = f'places 2 episodes of observation.images.front up to {abs(frames):.1f} frames from'
  assert any(expected in note for note in made.notes)


def test_a_frame_between_episodes_of_v3_is_found(damaged, tmp_path):
  """A discarded take's last frame stays in the video, and the next episode begins after it."""
  video = damaged / 'videos/chunk-000/observation.images.front/episode_000001.mp4'
  dirs.write_video(video, [dirs.shade('front', 1, t) for t in range(9)] + [250])
  source = dirs.pack_as_v3(damaged, tmp_path / 'v3', 3)
  with pytest.raises(
    ValueError,
    match='^Episode 1, observation.images.front: .* holds 10 frames of it for 9 rows. '
    'Restore them, or take the 2 others: --episodes=-1$',
  ):
    convert.convert(source, tmp_path / 'out')
  convert.convert(source, tmp_path / 'out', plan_lib.Options(episodes='-1'))
  for episode, e in zip(episodes_lib.read(tmp_path / 'out'), (0, 2)):
    for t, step in enumerate(episode['steps']):
      np.testing.assert_allclose(step['observation']['front'], dirs.shade('front', e, t), atol=2)


def test_a_packed_file_that_nothing_divides_is_refused(v2, tmp_path):
  source = dirs.pack_as_v3(v2, tmp_path / 'v3', 3)
  video = source / 'videos/observation.images.front/chunk-000/file-000.mp4'
  dirs.write_video(video, [dirs.shade('front', 0, t) for t in range(45)])
  message = 'Episodes 0:3, .* holds 45 frames for 44 rows of 3 episodes, so that the place of none'
  with pytest.raises(ValueError, match=message):
    convert.convert(source, tmp_path / 'out')
  # Rows and times both fill it, and say different things: nobody knows which is right.
  dirs.write_video(video, [dirs.shade('front', 0, t) for t in range(44)])
  _shift(source, episodes=[0], to_timestamp=2)
  _shift(source, episodes=[1], from_timestamp=2)
  with pytest.raises(ValueError, match='both fill .* with 44 frames, but divide it differently'):
    convert.convert(source, tmp_path / 'out')


def test_a_camera_without_a_place_for_an_episode(v2, converted, tmp_path):
  """Tools that merge datasets leave NaN, and make numbers of files floats."""
  source = dirs.pack_as_v3(v2, tmp_path / 'my-robot', 3)
  path = source / 'meta/episodes/chunk-000/file-000.parquet'
  table = parquet.read_table(path)
  key = 'videos/observation.images.front/file_index'
  place = table.column_names.index(key)
  parquet.write_table(table.set_column(place, key, pa.array([0.0] * 3)), path)
  convert.convert(source, tmp_path / 'out')
  assert _shards(tmp_path / 'out') == _shards(converted[0])
  parquet.write_table(table.set_column(place, key, pa.array([0.0, float('nan'), 0.0])), path)
  message = '^Episode 1, meta/episodes has no place of observation.images.front. .* the 2 others'
  with pytest.raises(ValueError, match=message):
    convert.convert(source, tmp_path / 'other')


def test_a_column_of_meta_episodes_is_missing(v2, tmp_path):
  source = dirs.pack_as_v3(v2, tmp_path / 'v3', 3)
  path = source / 'meta/episodes/chunk-000/file-000.parquet'
  key = 'videos/observation.images.front/from_timestamp'
  parquet.write_table(parquet.read_table(path).drop_columns([key]), path)
  with pytest.raises(ValueError, match=f'has no column {key}'):
    convert.convert(source, tmp_path / 'out')


def test_goes_on_where_it_stopped(v2, damaged, converted, tmp_path, capsys):
  rows = damaged / f'data/chunk-001/episode_{2:06d}.parquet'
  whole = rows.read_bytes()
  dirs.write_table(rows, dirs.make_rows(2, 13, 30))
  with pytest.raises(ValueError, match='Episode 2'):
    convert.convert(damaged, tmp_path / 'out')
  assert [p.name for p in tmp_path.glob('.*')] == ['.out.partial']
  with pytest.raises(ValueError, match='made with other parameters: size=None there'):
    convert.convert(damaged, tmp_path / 'out', plan_lib.Options(size='24x32'))
  rows.write_bytes(whole)
  capsys.readouterr()
  convert.convert(damaged, tmp_path / 'out')
  error = capsys.readouterr().err
  assert 'going on after 2 of 3 shards' in error
  assert '44/44 frames' in error
  assert sorted(p.name for p in tmp_path.iterdir()) == ['damaged', 'out']
  assert sorted(_shards(tmp_path / 'out').values()) == sorted(_shards(converted[0]).values())


def test_command_prints_the_record_and_needs_no_jax(v2, tmp_path):
  code = (
    'import runpy, sys, atexit\n'
    'atexit.register(lambda: print("tensorflow" in sys.modules or "jax" in sys.modules))\n'
    'sys.argv = ["data.from_lerobot"] + sys.argv[1:]\n'
    'runpy.run_module("data.from_lerobot", run_name="__main__")'
  )
  run = functools.partial(programs.run_code, code)
  done = run(f'--source={v2}', f'--output={tmp_path}/out')
  assert done.returncode == 0, done.stderr
  assert "Embodiment(name='test_arm',\n    views=(View(" in done.stdout
  assert done.stdout.endswith('False\n')
  assert '44/44 frames' in done.stderr
  assert run(f'--source={v2}', f'--output={tmp_path}/out').stdout.startswith(
    f'already there: {tmp_path}/out'
  )
  refused = run(f'--source={tmp_path}', f'--output={tmp_path}/other')
  assert refused.returncode == 2
  assert refused.stderr.startswith('error: ')
  assert 'no meta/info.json' in refused.stderr


def test_real_episodes_of_both_versions(tmp_path, sample_g1):
  options = plan_lib.Options(size='120x160')
  record = convert.convert(sample_g1, tmp_path / 'g1', options, workers=2).record
  packed = dirs.pack_as_v3(sample_g1, tmp_path / sample_g1.name, 3)
  convert.convert(packed, tmp_path / 'packed', options, workers=2)
  assert _shards(tmp_path / 'g1') == _shards(tmp_path / 'packed')
  episodes = sources.Episodes(str(tmp_path / 'g1'), 'train', record)
  assert [episodes[i].length for i in range(4)] == [221, 277, 267, 280]
  rows = parquet.read_table(sample_g1 / 'data/chunk-000/episode_000003.parquet')
  np.testing.assert_array_equal(
    episodes[3].state_TX, np.stack(rows['observation.state'].to_numpy())
  )
  np.testing.assert_array_equal(episodes[3].action_TU, np.stack(rows['action'].to_numpy()))
  assert episodes[0].texts(0) == ('Pick up the yellow bottle on the table.',)
  shown, _ = videos.read(
    sample_g1 / 'videos/chunk-000/observation.images.cam_high/episode_000003.mp4'
  )
  frames = [cv2.resize(frame, (160, 120), interpolation=cv2.INTER_AREA) for frame in shown]
  errors = [
    np.abs(episodes[3].decode('cam_high', t).astype(int) - frames[t]).mean() for t in (0, 100, 279)
  ]
  # Mean absolute error of JPEG at quality 95, of 255.
  assert max(errors) < 3
  # The suggested chunk is of 48 steps, 1.6 s at 30 Hz.
  assert len(windows.make_anchors(episodes)) == 221 + 277 + 267 + 280 - 4 * 48
