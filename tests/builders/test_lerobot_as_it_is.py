"""LeRobot directories as people have them: other names, depth, sizes that info.json has wrong, and
parts of a dataset. What is not used is named.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data.lerobot import choice
from data.lerobot import convert
from data.lerobot import pictures
from data.lerobot import plan as plan_lib
from data.lerobot import source as source_lib
from tests.builders import lerobot_dirs as dirs
from wam_jax.data import embodiments
from wam_jax.data import sources

LENGTHS = [5, 4]
PICTURE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
Options = plan_lib.Options


def draw(t, size=dirs.SIZE):
  image = np.zeros((*size, 3), np.uint8)
  cv2.circle(image, (20 + 3 * t, 20), 8, (40, 120, 250), -1)
  return image


def encode(image, suffix='.png'):
  return cv2.imencode(suffix, image)[1].tobytes()


def write(root, vectors, cameras, lengths=LENGTHS, **info):
  """A directory of named vectors of these widths, and of named pictures by step."""
  rng = np.random.default_rng(0)
  total = sum(lengths)
  features, columns = {}, {}
  for name, width in vectors.items():
    features[name] = {'dtype': 'float32', 'shape': [width], 'names': None}
    values = np.cumsum(rng.normal(size=(total, width)), 0)
    columns[name] = pa.array(values.tolist(), pa.list_(pa.float32()))
  for name, picture in cameras.items():
    features[name] = {'dtype': 'image', 'shape': [*dirs.SIZE, 3], 'names': None}
    rows = [{'bytes': picture(t), 'path': f'{t}.png'} for t in range(total)]
    columns[name] = pa.array(rows, PICTURE)
  return dirs.write_packed(root, features, columns, lengths, **info)


def png(t):
  return encode(draw(t))


def open_first(path, record):
  return sources.Episodes(str(path), 'train', record)[0]


def list_keys(record):
  keys = lambda slices: list(dict.fromkeys(s.key for s in slices))
  return [view.key for view in record.views], keys(record.state), keys(record.action)


# As openpi writes LIBERO and DROID, with slashes, in parts, and under other groups.
@pytest.mark.parametrize(
  'vectors, cameras, options, expected',
  [
    (
      {'state': 8, 'actions': 7},
      ['image', 'wrist_image'],
      Options(),
      (['image', 'wrist_image'], ['state'], ['actions']),
    ),
    (
      {'joint_position': 7, 'gripper_position': 1, 'actions': 8, 'embedding': 65},
      ['exterior_image_1_left', 'wrist_image_left'],
      Options(),
      (
        ['exterior_image_1_left', 'wrist_image_left'],
        ['joint_position', 'gripper_position'],
        ['actions'],
      ),
    ),
    (
      {'observation/state': 3, 'action': 3},
      ['observation/images/front', 'images/side'],
      Options(),
      (['front', 'side'], ['state'], ['action']),
    ),
    (
      {'observation.state.arm': 3, 'observation.state.hand': 1, 'action.arm': 3, 'action.hand': 1},
      ['observation.images.head.rgb'],
      Options(),
      (['head.rgb'], ['state.arm', 'state.hand'], ['action.arm', 'action.hand']),
    ),
    (
      {
        'observation.state': 3,
        'observation.velocity': 3,
        'observation.environment_state': 4,
        'action': 3,
        'action.eef': 6,
      },
      ['observation.image'],
      Options(),
      (['image'], ['state'], ['action']),
    ),
    (
      {'observation.qpos': 3, 'observation.effort': 3, 'action': 3},
      ['observation.images.a'],
      Options(),
      (['a'], ['qpos'], ['action']),
    ),
    (
      {'observation.state': 3, 'observation.velocity': 3, 'target': 3, 'measured': 2},
      ['observation.images.a', 'observation.images.b', 'observation.images.c'],
      Options(
        state=['observation.velocity', 'measured'],
        action=['target'],
        cameras=['observation.images.c', 'observation.images.a'],
      ),
      (['c', 'a'], ['velocity', 'measured'], ['target']),
    ),
    (  # Called like what is sensed, or observed.
      {'observation.state': 3, 'target_joint': 3},
      ['observation.images.a'],
      Options(action=['target_joint']),
      (['a'], ['state'], ['target_joint']),
    ),
    (
      {'observation.state': 3, 'observation.command': 3},
      ['observation.images.a'],
      Options(action=['observation.command']),
      (['a'], ['state'], ['observation/command']),
    ),
    (
      {'observation.state': 3, 'action': 3},
      ['observation.images.a'],
      Options(state=['action'], action=['observation.state']),
      (['a'], ['action'], ['observation/state']),
    ),
  ],
)
def test_features_by_their_kind_or_by_choice(tmp_path, vectors, cameras, options, expected):
  source = write(tmp_path / 'robot', vectors, dict.fromkeys(cameras, png))
  made = convert.convert(source, tmp_path / 'out', options)
  assert list_keys(made.record) == expected
  episode = open_first(tmp_path / 'out', made.record)
  np.testing.assert_array_equal(episode.decode_bgr(expected[0][0], 3), draw(3))
  # What is left over is named, whatever it is.
  taken = [*(s.key for s in made.record.state), *(s.key for s in made.record.action)]
  dotted = lambda key: key.replace('/', '.')
  left = [key for key in vectors if not dotted(key).endswith(tuple(map(dotted, taken)))]
  named = '\n'.join(made.unused)
  assert all(f'{key}[{vectors[key]}]' in named for key in left)
  assert all(camera in named for camera in cameras if not camera.endswith(tuple(expected[0])))


def test_choices_that_do_not_exist(tmp_path):
  vectors = {'observation.state': 3, 'control': 3}
  source = write(tmp_path / 'robot', vectors, {'observation.images.a': png})
  with pytest.raises(ValueError, match=r'--action=KEY.*vectors are .*observation.state.*control'):
    convert.convert(source, tmp_path / 'out')
  for options, message in (
    (Options(state=['stat']), r"--state names \['stat'\], which are no features"),
    (Options(cameras=['control']), r"--cameras names \['control'\], which are no pictures"),
    (Options(action=['observation.images.a']), r"\['observation.images.a'\], which are no numbers"),
    (  # Others in their place would be a record that nobody asked for.
      Options(
        action=['control'], cameras=['observation.images.a'], exclude=['observation.images.a']
      ),
      r"--exclude leaves out \['observation.images.a'\], which --state, --action or --cameras take",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      convert.convert(source, tmp_path / 'out', options)


ARM = {'observation.state': 3, 'action': 3}
DEPTH = np.full(dirs.SIZE, 3560, np.uint16)


# Whatever info.json calls it.
@pytest.mark.parametrize('shape', [[*dirs.SIZE, 1], [*dirs.SIZE], [*dirs.SIZE, 3], [1, *dirs.SIZE]])
@pytest.mark.parametrize('depth', [encode(DEPTH), encode(DEPTH, '.tiff')], ids=['png', 'tiff'])
def test_depth_of_16_bits_is_no_picture(tmp_path, shape, depth):
  cameras = {'observation.images.a': png, 'observation.images.d': lambda t: depth}
  source = write(tmp_path / 'robot', ARM, cameras)
  info = json.loads((source / 'meta/info.json').read_text())
  info['features']['observation.images.d']['shape'] = shape
  dirs.write_info(source, info)
  with pytest.raises(
    ValueError, match='16 bits a pixel and 1 channels, as depth.* --exclude=observation.images.d$'
  ):
    convert.convert(source, tmp_path / 'out')
  made = convert.convert(source, tmp_path / 'out', Options(exclude=['observation.images.d']))
  assert [view.key for view in made.record.views] == ['a']
  assert 'features that --exclude leaves out: observation.images.d' in made.unused


@pytest.mark.parametrize('pixels', ['gray16le', 'gray12le'])
def test_a_video_of_depth_is_no_picture(tmp_path, pixels):
  source = dirs.write_v2(tmp_path / 'robot', [3])
  path = next(source.glob('videos/*/observation.images.wrist/*.mp4'))
  with av.open(str(path), 'w', format='matroska') as container:
    stream = container.add_stream('ffv1', rate=dirs.FPS)
    stream.height, stream.width = dirs.SIZE
    stream.pix_fmt = pixels
    for _ in range(3):
      frame = av.VideoFrame(dirs.SIZE[1], dirs.SIZE[0], pixels)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  with pytest.raises(ValueError, match=f'video of {pixels}, .*--exclude=observation.images.wrist$'):
    convert.convert(source, tmp_path / 'out')


def turned(t):
  """A JPEG whose Exif asks to be turned by 90 degrees."""
  exif = b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06' + 7 * b'\0'
  plain = encode(draw(t), '.jpg')
  return plain[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + plain[2:]


# (picture, options, what is said of it, whether its bytes stay).
@pytest.mark.parametrize(
  'picture, options, told, kept',
  [
    (png, Options(), '48x64 PNG, byte for byte', True),
    (lambda t: encode(draw(t), '.jpg'), Options(), '48x64 JPEG, byte for byte', True),
    (png, Options(size='48x64'), '48x64 PNG, byte for byte', True),
    (png, Options(size='24x32'), 'PNG, resized to 24x32 and encoded as JPEG', False),
    (png, Options(as_jpeg=True), 'PNG, encoded as JPEG of quality 95', False),
    (lambda t: encode(draw(t)[..., 2]), Options(), '48x64 PNG, grey, encoded as JPEG', False),
    (
      lambda t: encode(cv2.cvtColor(draw(t), cv2.COLOR_BGR2BGRA)),
      Options(),
      'PNG, with transparency, encoded as JPEG',
      False,
    ),
    (lambda t: encode(draw(t), '.webp'), Options(), 'another format, encoded as JPEG', False),
    (turned, Options(), '64x48 JPEG, turned by Exif, encoded as JPEG', False),
  ],
)
def test_pictures_stay_byte_for_byte_or_it_is_said(tmp_path, picture, options, told, kept):
  source = write(tmp_path / 'robot', ARM, {'observation.images.a': picture})
  made = convert.convert(source, tmp_path / 'out', options)
  assert any(told in note for note in made.notes)
  episode = open_first(tmp_path / 'out', made.record)
  assert (bytes(episode.encoded['a'][2]) == picture(2)) == kept
  want = draw(2)
  if 'Exif' in told:
    want = cv2.rotate(want, cv2.ROTATE_90_CLOCKWISE)
  elif 'grey' in told:
    want = np.repeat(want[..., 2:], 3, axis=2)
  size = (24, 32) if '24x32' in told else want.shape[:2]
  want = cv2.resize(want, size[::-1], interpolation=cv2.INTER_AREA)
  got = episode.decode_bgr('a', 2)
  assert got.shape == want.shape
  assert np.abs(got.astype(int) - want).mean() < 4


def test_a_picture_that_is_cut_off_is_named(tmp_path):
  cut = lambda t: encode(draw(t), '.jpg')[: -20 if t == 6 else None]
  source = write(tmp_path / 'robot', ARM, {'observation.images.a': cut})
  with pytest.raises(ValueError, match='Episode 1, observation.images.a: .*--episodes=-1$'):
    convert.convert(source, tmp_path / 'out')


def test_pictures_as_arrays_of_numbers(tmp_path):
  images = [np.moveaxis(draw(t)[..., ::-1], -1, 0) for t in range(4)]
  features = {
    'observation.image': {'dtype': 'uint8', 'shape': [3, *dirs.SIZE], 'names': None},
    'action': {'dtype': 'float32', 'shape': [1], 'names': None},
  }
  columns = {
    'observation.image': pa.array([image.tolist() for image in images]),
    'action': pa.array([[float(t)] for t in range(4)], pa.list_(pa.float32())),
  }
  source = dirs.write_packed(tmp_path / 'robot', features, columns, [4])
  made = convert.convert(source, tmp_path / 'out')
  got = open_first(tmp_path / 'out', made.record).decode_bgr('image', 2)
  assert np.abs(got.astype(int) - draw(2)).mean() < 4
  assert any('no state' in guess for guess in made.guesses)


@pytest.mark.parametrize('shape', [[480, 640, 3], [64, 48, 3], [3, 48, 48], [48, 64]])
def test_sizes_are_those_of_the_files(tmp_path, shape):
  source = write(tmp_path / 'robot', ARM, {'observation.images.a': png})
  info = json.loads((source / 'meta/info.json').read_text())
  info['features']['observation.images.a']['shape'] = shape
  dirs.write_info(source, info)
  made = convert.convert(source, tmp_path / 'out')
  assert made.record.composite == dirs.SIZE
  said = [note for note in made.notes if '48x64 pixels, which count; meta/info.json says' in note]
  assert len(said) == (shape != [48, 64])


def test_a_camera_whose_size_changes_is_named(tmp_path):
  change = lambda t: encode(draw(t, (48, 64) if t < 5 else (24, 32)))
  source = write(tmp_path / 'robot', ARM, {'observation.images.a': change})
  message = r'Episode 1, .*\(24, 32\).*first one of its camera has \(48, 64\)'
  for options in (Options(), Options(size='24x32')):
    with pytest.raises(ValueError, match=message):
      convert.convert(source, tmp_path / 'out', options)
    shutil.rmtree(tmp_path / '.out.partial', ignore_errors=True)
  assert convert.convert(source, tmp_path / 'out', Options(episodes='0')).made


@pytest.mark.parametrize(
  'text, expected',
  [
    ('', [0, 1, 2, 5, 7]),
    ('0:3', [0, 1, 2]),
    ('1,7', [1, 7]),
    ('-1', [0, 2, 5, 7]),
    ('0:6,-1,-2:3', [0, 5]),
    ('present', [0, 1, 2, 5, 7]),
    ('present,-7', [0, 1, 2, 5]),
    (' present, -7', [0, 1, 2, 5]),
    ('0:100000000000', [0, 1, 2, 5, 7]),
    ('0:100', [0, 1, 2, 5, 7]),
  ],
)
def test_episodes_are_chosen(text, expected):
  assert choice.choose(text, [0, 1, 2, 5, 7]) == expected


def test_episodes_that_are_not_there():
  assert choice.write([0, 1, 2, 5, 7, 8]) == '0:3,5,7:9'
  assert choice.write_without([3, 4, 9]) == '--episodes=-3:5,-9'
  for text, message in (
    ('3', "names '3'; the dataset has the episodes 0:3"),
    ('a', "has 'a'; expected numbers"),
  ):
    with pytest.raises(ValueError, match=message):
      choice.choose(text, [0, 1, 2])


def _read_numbers(path):
  opened = sources.Episodes(str(path), 'train', embodiments.resolve('', str(path)))
  return [float(opened[i].state_TX[0, 1]) / 10 for i in range(len(opened))]


def test_a_part_of_a_dataset(tmp_path):
  source = dirs.write_v2(tmp_path / 'robot', [3] * 5)
  shutil.rmtree(source / 'videos/chunk-001/observation.images.wrist')  # Of episodes 2 and 3.
  (source / 'data/chunk-002/episode_000004.parquet').unlink()
  with pytest.raises(
    ValueError,
    match='Episode 2, there is no file .*000002.mp4; Episode 3, .*; Episode 4, .*000004.parquet. '
    'Restore them, or take the 2 others: --episodes=present$',
  ):
    convert.convert(source, tmp_path / 'out')
  made = convert.convert(source, tmp_path / 'out', Options(episodes='present'))
  assert '3 episodes lack files: 2:5' in made.notes
  assert '2 of 5 episodes are taken, without 2:5' in made.notes
  assert _read_numbers(tmp_path / 'out') == [0, 1]
  # A camera that is left out is not missed.
  wrist = Options(exclude=['observation.images.wrist'], episodes='present')
  convert.convert(source, tmp_path / 'other', wrist)
  assert _read_numbers(tmp_path / 'other') == [0, 1, 2, 3]
  convert.convert(source, tmp_path / 'third', Options(episodes='1:3, present'))
  assert _read_numbers(tmp_path / 'third') == [1]
  with pytest.raises(ValueError, match="other parameters: episodes={'train': '0:2'} there"):
    convert.convert(source, tmp_path / 'out', Options(episodes='0'))


def test_numbers_with_gaps_and_splits_that_are_stale(tmp_path):
  source = dirs.write_v2(tmp_path / 'robot', [3] * 6)
  rows = dirs.read_lines(source / 'meta/episodes.jsonl')
  rows[4]['length'] = 0
  dirs.write_lines(source / 'meta/episodes.jsonl', [*rows[:2], *rows[3:]])
  for splits, expected in (
    ({'train': '0:9'}, {'train': (0, 1, 3, 5)}),  # Of before some were deleted.
    ({'train': '0:5'}, {'train': (0, 1, 3, 5)}),
    ({'train': '0:3', 'val': '3:5'}, {'train': (0, 1, 3), 'val': (5,)}),  # By place.
    ({'train': '0:3', 'val': '3:6'}, {'train': (0, 1), 'val': (3, 5)}),  # By number.
    ({'train': '0:4', 'val': '4:4'}, {'train': (0, 1, 3)}),
  ):
    dirs.edit_info(source, splits=splits)
    loaded = source_lib.load(source)
    assert loaded.splits == expected, splits
    assert 'the numbers 2 are of no episode: they were deleted' in loaded.notes
    assert '1 episodes have no rows and are left out: 4' in loaded.notes
  assert any("split 'val' ('4:4') holds no episode" in note for note in loaded.notes)
  dirs.edit_info(source, splits={'train': '0:9'})
  convert.convert(source, tmp_path / 'out')
  assert _read_numbers(tmp_path / 'out') == [0, 1, 3, 5]


def test_files_and_columns_that_nobody_uses_are_named(tmp_path):
  source = dirs.write_v2(tmp_path / 'robot', [3])
  for name in ('data/chunk-000/episode_000009.parquet', 'videos/chunk-000/old/a.mp4'):
    (source / name).parent.mkdir(exist_ok=True, parents=True)
    (source / name).write_text('x')
  (source / 'meta/episodes_stats.jsonl').write_text('{}')
  path = source / 'data/chunk-000/episode_000000.parquet'
  table = parquet.read_table(path)
  parquet.write_table(table.append_column('force', pa.array([0.0] * 3)), path)
  unused = '\n'.join(convert.convert(source, tmp_path / 'out').unused)
  assert (
    'vectors that are stored, and not in the record: annotation.human.task[1], next.done[1], '
    'next.reward[1], observation.effort[2]' in unused
  )
  assert 'columns of parquet that meta/info.json does not have: force' in unused
  assert (
    'files that no episode names: data/chunk-000/episode_000009.parquet, videos/chunk-000/old/a.mp4'
    in unused
  )
  assert 'files under meta/ that are not read: episodes_stats.jsonl' in unused


def test_texts_in_lists_and_descriptions_with_holes(tmp_path):
  source = dirs.write_v2(tmp_path / 'robot', [3])
  path = source / 'data/chunk-000/episode_000000.parquet'
  table = parquet.read_table(path)
  place = table.column_names.index('note')
  for texts, message in (
    ([['a'], ['b'], ['c']], ''),
    ([['a', 'b']] * 3, r"\['a', 'b'\], which is"),
  ):
    parquet.write_table(table.set_column(place, 'note', pa.array(texts)), path)
    if not message:
      record = convert.convert(source, tmp_path / 'out').record
      record = dataclasses.replace(record, language=('note',))
      assert [open_first(tmp_path / 'out', record).texts(t) for t in range(3)] == [
        *(('a',), ('b',), ('c',))
      ]
      continue
    with pytest.raises(ValueError, match=message):
      convert.convert(source, tmp_path / 'other')
  info = json.loads((source / 'meta/info.json').read_text())
  del info['features']['action']['shape']
  dirs.write_info(source, info)
  with pytest.raises(ValueError, match="info.json has no shape of feature 'action'"):
    convert.convert(source, tmp_path / 'other')


def _rewrite(path, **changes):
  """A parquet file with other columns."""
  table = parquet.read_table(path)
  for key, change in changes.items():
    values = pa.array(change(table[key].to_numpy()), table[key].type)
    table = table.set_column(table.column_names.index(key), key, values)
  parquet.write_table(table, path)


@pytest.mark.parametrize(
  'timestamp',
  [
    # Of a clock that trembles, and begins somewhere (huggingface/lerobot#3513).
    lambda s: s + 17.25 + 0.02 * (np.arange(len(s)) % 2),
    lambda s: s + 1.7e9,  # Since 1970, in float32: all are one.
  ],
)
def test_rows_that_a_clock_wrote(tmp_path, timestamp):
  source = dirs.write_v2(tmp_path / 'robot', [6])
  # Rows that were cut off count on in what remains.
  changes = {'timestamp': timestamp, 'frame_index': lambda n: n + 5}
  _rewrite(source / 'data/chunk-000/episode_000000.parquet', **changes)
  convert.convert(source, tmp_path / 'out')
  episode = open_first(tmp_path / 'out', embodiments.resolve('', str(tmp_path / 'out')))
  for t in range(6):
    assert episode.state_TX[t, 0] == t
    image = episode.decode('front', t)
    assert abs(image.mean() - dirs.shade('front', 0, t)) < 3


def test_rows_of_episodes_that_take_turns(tmp_path):
  lengths = [4, 5]
  source = write(tmp_path / 'robot', {'observation.state': 3, 'action': 3}, {'top': png}, lengths)
  path = source / 'data/chunk-000/file-000.parquet'
  convert.convert(source, tmp_path / 'whole')
  table = parquet.read_table(path)
  parquet.write_table(table.take([4, 0, 5, 1, 6, 2, 7, 8, 3]), path)
  convert.convert(source, tmp_path / 'turns')
  record = embodiments.resolve('', str(tmp_path / 'whole'))
  for i in range(2):
    expected, found = (
      sources.Episodes(str(tmp_path / name), 'train', record)[i] for name in ('whole', 'turns')
    )
    assert np.array_equal(found.state_TX, expected.state_TX)
    assert np.array_equal(found.action_TU, expected.action_TU)


def test_json_as_editors_leave_it(tmp_path):
  source = dirs.write_v2(tmp_path / 'robot', [3])
  info = source / 'meta/info.json'
  info.write_text('\ufeff' + info.read_text())  # As on Windows.
  # Spread over lines, as in Isaac-GR00T#288; and marks in a text that Unicode ends lines with.
  tasks = [{'task_index': 0, 'task': 'pick\u2028it\x85up'}, {'task_index': 1, 'task': 'wave'}]
  text = '\n'.join(json.dumps(task, indent=2, ensure_ascii=False) for task in tasks)
  (source / 'meta/tasks.jsonl').write_text(text)
  assert source_lib.load(source).tasks == {0: 'pick\u2028it\x85up', 1: 'wave'}
  (source / 'meta/tasks.jsonl').write_text('[' + json.dumps(tasks[0]) + ']')
  with pytest.raises(ValueError, match='Line 1 of .*tasks.jsonl .*expected an object a line'):
    source_lib.load(source)


def test_pictures_are_read_as_they_are():
  assert pictures.read(png(0)).kept
  with pytest.raises(ValueError, match='an image of 0 bytes is not a readable picture'):
    pictures.read(b'')
  with pytest.raises(ValueError, match='16 bits a pixel and 3 channels'):
    pictures.read(encode(np.zeros((4, 4, 3), np.uint16)))
