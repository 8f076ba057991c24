"""Episodes come back as written; every way a dataset can be broken has its message."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import pickle
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data import published
from tests.data import synthetic
from wam_jax import storage
from wam_jax.data import beside
from wam_jax.data import cache as cache_lib
from wam_jax.data import embodiments
from wam_jax.data import episode as episode_lib
from wam_jax.data import promises
from wam_jax.data import record as record_lib
from wam_jax.data import sources

CLOCK = synthetic.CLOCK


def open_clock(path, **kwargs):
  return sources.Episodes(path, 'train', CLOCK, **kwargs)


def test_episode_is_what_was_written(clock_path):
  episodes = open_clock(clock_path)
  assert [episodes[i].length for i in range(len(episodes))] == list(range(12, 36, 3))
  episode, t = episodes[2], np.arange(18, dtype=np.float32)
  np.testing.assert_array_equal(episode.state_TX, np.stack([t, 0 * t + 200, -t], 1))
  np.testing.assert_array_equal(episode.action_TU, np.stack([t, t + 0.5], 1))
  assert episode.spans == (episode_lib.Span(0, 18, ('Task 2',)),)
  np.testing.assert_array_equal(episode.decode('wrist', 5), np.full((16, 16, 3), (2, 5, 77)))


def test_jpeg_is_decoded_in_rgb_order():
  image = np.zeros((16, 16, 3), np.uint8)
  image[..., 0] = 255
  encoded = cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()
  episode = episode_lib.Episode(
    'here', 1, None, None, (), {'top': [encoded]}, {'top': (None, None, 3)}
  )
  # JPEG is lossy.
  np.testing.assert_allclose(episode.decode('top', 0), image, atol=3)


def test_an_instruction_as_the_numbers_of_its_characters(tmp_path):
  """As Language-Table in Open X-Embodiment: int32 of a fixed width, filled with zeros."""
  texts = ['push the red star', 'naïve café', '左へ']
  codes = [[*texts[0].encode()], [*texts[1].encode()], [*map(ord, texts[2])]]

  def edit(episodes):
    for e, steps in enumerate(episodes):
      for step in steps:
        step['instruction'] = np.zeros(40, np.int32)
        step['instruction'][: len(codes[e])] = codes[e]
        step['number'] = np.zeros((), np.int64)

  features = tfds.features.FeaturesDict(
    {
      'steps': tfds.features.Dataset(
        {
          **synthetic.FEATURES['steps'].feature,
          'instruction': tfds.features.Tensor(shape=(40,), dtype=np.int32),
          'number': tfds.features.Scalar(np.int64),
        }
      )
    }
  )
  episodes = [[synthetic.make_step(e, t) for t in range(12)] for e in range(3)]
  edit(episodes)
  path = synthetic.write_dataset(tmp_path, {'train': episodes}, features)
  record = dataclasses.replace(CLOCK, language=('instruction', 'language_instruction'))
  opened = sources.Episodes(path, 'train', record)
  assert [opened[e].texts(3) for e in range(3)] == [(texts[e], f'Task {e}') for e in range(3)]
  with pytest.raises(ValueError, match=r"'number' is int64 \(\), expected a text, or the codes"):
    sources.Episodes(path, 'train', dataclasses.replace(CLOCK, language=('number',)))


def test_numeric_and_spans_agree_with_the_episode(clock_path):
  episodes = open_clock(clock_path)
  state_TX, action_TU = episodes.numeric(1)
  np.testing.assert_array_equal(state_TX, episodes[1].state_TX)
  np.testing.assert_array_equal(action_TU, episodes[1].action_TU)
  assert episodes.spans(1) == episodes[1].spans


def test_names_of_episodes(tmp_path, clock_path):
  path = published.write(tmp_path, 'droid', [30, 30])
  assert sources.Episodes(path, 'train', embodiments.get('droid')).name(
    1
  ) == published.episode_name(1)
  record = dataclasses.replace(CLOCK, episode_key=('episode_metadata/file_path',))
  with pytest.raises(
    ValueError, match=r"record 0 of .* has no \['episode_metadata/file_path'\], which name it"
  ):
    sources.Episodes(clock_path, 'train', record).name(0)


def test_slices_pick_columns_in_the_order_of_the_record(clock_path):
  record = dataclasses.replace(
    CLOCK, state=(record_lib.Slice('proprio', 2, 3, 's'), record_lib.Slice('proprio', 0, 1, 's'))
  )
  state_TX = sources.Episodes(clock_path, 'train', record)[0].state_TX
  np.testing.assert_array_equal(state_TX[5], (-5, 5))


def test_split_slice_and_pickle(clock_path):
  episodes = sources.Episodes(clock_path, 'train[2:4]', CLOCK, cache_lib.Cache(1.0))
  assert len(episodes) == 2
  assert episodes.where(0).startswith('record 2 of ')
  copy = pickle.loads(pickle.dumps(episodes))
  np.testing.assert_array_equal(copy[1].state_TX, open_clock(clock_path)[3].state_TX)


def test_cache_holds_episodes_within_its_bound(clock_path):
  cache = cache_lib.Cache(1.0)
  episodes = open_clock(clock_path, cache=cache)
  assert episodes[0] is episodes[0]
  assert cache.used == episodes[0].nbytes

  # Room for two of a hundred bytes each.
  small = cache_lib.Cache(2.5 * 100 / 2**30)
  made = [small.get(i, lambda: np.zeros(100, np.uint8)) for i in (0, 1, 0, 2)]
  # 1 was the least recently used.
  assert small.used == 200
  assert small.get(0, lambda: None) is made[0]


def test_language_spans_follow_the_instruction(tmp_path):
  def edit(episodes):
    for step in episodes[0][5:]:
      step['language_instruction'] = 'Other'

  path = synthetic.make_dataset(tmp_path, [12, 12], edit)
  assert open_clock(path).spans(0) == (
    episode_lib.Span(0, 5, ('Task 0',)),
    episode_lib.Span(5, 12, ('Other',)),
  )
  assert open_clock(path)[0].texts(4) == ('Task 0',)
  assert open_clock(path)[0].texts(5) == ('Other',)


def test_missing_directory_and_description(tmp_path):
  with pytest.raises(ValueError, match='There is no dataset directory .*nowhere'):
    open_clock(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='has no dataset_info.json; give the version directory'):
    open_clock(tmp_path)


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', ['', '{', '[]', '{}', '{"fileFormat": 3}', '\x00'])
def test_damaged_descriptions_name_their_place(clock_path, tmp_path, name, content):
  path = copy(clock_path, tmp_path)
  (path / name).write_text(content)
  with pytest.raises(ValueError, match=re.escape(str(path))):
    open_clock(path)


def test_a_network_that_fails_is_no_damage(clock_path, monkeypatch):
  """Who reads again finds it whole; a mistake would end a run that launchers start again."""

  def fail(path):
    raise ConnectionResetError('reset by peer')

  monkeypatch.setattr(sources.tfds, 'builder_from_directory', fail)
  with pytest.raises(ConnectionResetError):
    open_clock(clock_path)


def test_tfrecord_names_the_converter(clock_path, tmp_path):
  path = copy(clock_path, tmp_path)
  description = path / 'dataset_info.json'
  description.write_text(
    description.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
  )
  with pytest.raises(ValueError, match=r'tfrecord format.*python -m data.convert --source='):
    open_clock(path)


def test_missing_keys_list_what_exists(clock_path):
  record = dataclasses.replace(
    CLOCK,
    views=(record_lib.View('front', 0, 0, 16, 16),),
    language=('text',),
    state=(record_lib.Slice('joints', 0, 3, 'rad'),),
    action=(record_lib.Slice('action', 0, 5, 's'),),
  )
  with pytest.raises(
    ValueError,
    match=(
      "does not fit embodiment 'clock': no 'observation/front'; no 'observation/joints'; "
      "no 'text'; 'action' has 2 columns, the record takes up to 5. "
      "Its steps have .*'observation/top'"
    ),
  ):
    sources.Episodes(clock_path, 'train', record)


def test_an_unknown_split_is_told(clock_path):
  with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train', 'val'\]"):
    sources.Episodes(clock_path, 'test', CLOCK)


def test_a_share_of_few_episodes_may_be_none(clock_path):
  with pytest.raises(
    ValueError,
    match=r"'train\[99%:\]' of .* holds no episodes: it has \d+ in 'train', \d+ in 'val'. Of ",
  ):
    sources.Episodes(clock_path, 'train[99%:]', CLOCK)


def test_truncated_shard_names_file_and_record(clock_path, tmp_path):
  path = copy(clock_path, tmp_path)
  shard = next(path.glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes()[:-70000])
  with pytest.raises(
    ValueError, match=f'Cannot read record 3 of .*{shard.name}: the shard is missing, truncated'
  ):
    open_clock(path)[3]


def test_a_missing_shard_is_told(clock_path, tmp_path):
  path = copy(clock_path, tmp_path)
  shard = next(path.glob('*train.*record-*'))
  shard.unlink()
  with pytest.raises(ValueError, match=f'Shards of .* are missing: .*{shard.name}'):
    open_clock(path)


def test_corrupt_record_is_not_an_example(tmp_path, clock_path, monkeypatch):
  episodes = open_clock(clock_path)
  monkeypatch.setattr(episodes, '_records', [b'\x0a\xff\xff garbage'])
  with pytest.raises(ValueError, match='record 0 of .* is not a tf.train.Example'):
    episodes[0]


@pytest.mark.parametrize('part, value', [('proprio', np.nan), ('action', np.inf)])
def test_nan_names_the_step(tmp_path, part, value):
  def edit(episodes):
    step = episodes[1][7]
    (step['observation'] if part == 'proprio' else step)[part][1] = value

  path = synthetic.make_dataset(tmp_path, [12, 12], edit)
  with pytest.raises(
    ValueError, match=f'record 1 of .* has NaN or infinity in .*{part}.* at step 7'
  ):
    open_clock(path)[1]


def make_image_dataset(tmp_path, encoded: bytes) -> str:
  def edit(episodes):
    episodes[0][3]['observation']['top'] = io.BytesIO(encoded)

  return synthetic.make_dataset(tmp_path, [12, 12], edit)


@pytest.mark.parametrize(
  'encoded, message',
  [
    (b'no image', r"Image 'top' of step 3 of record 0 .* is not a readable JPEG or PNG"),
    (
      synthetic.encode(np.zeros((8, 16, 3), np.uint8)),
      r'has shape \(8, 16, 3\); features.json says \(16, 16, 3\)',
    ),
    # Grey, then 16 bits, which OpenCV would decode without a word.
    (
      cv2.imencode('.png', np.zeros((16, 16), np.uint8))[1].tobytes(),
      r'decodes to uint8 \(16, 16\); expected uint8',
    ),
    (
      cv2.imencode('.png', np.zeros((16, 16, 3), np.uint16))[1].tobytes(),
      r'decodes to uint16 \(16, 16, 3\)',
    ),
  ],
)
def test_wrong_image(tmp_path, encoded, message):
  episode = open_clock(make_image_dataset(tmp_path, encoded))[0]
  with pytest.raises(ValueError, match=message):
    episode.decode('top', 3)


def test_text_where_numbers_belong(tmp_path):
  record = dataclasses.replace(CLOCK, action=(record_lib.Slice('language_instruction', 0, 1, 's'),))
  path = synthetic.make_dataset(tmp_path, [12, 12])
  with pytest.raises(
    ValueError, match="'language_instruction' is text, expected numbers of one shape"
  ):
    sources.Episodes(path, 'train', record)[0]


def test_files_beside_fall_back_when_read_only(tmp_path, monkeypatch):
  path = storage.epath.Path(tmp_path / 'data')
  path.mkdir()
  assert beside.read(path, 'x.json') is None
  # A dataset on a mount that is read-only; the user's cache can be written.
  original = storage.write_whole

  def refuse(target, content):
    if target.parent == path:
      raise PermissionError('read-only')
    return original(target, content)

  monkeypatch.setattr(storage, 'write_whole', refuse)
  where = beside.write(path, 'x.json', b'1')
  assert where.parent != path
  assert where == beside.find(path, 'x.json')
  assert beside.read(path, 'x.json') == b'1'
  assert not list(path.iterdir())


def test_no_tensorflow_is_imported():
  # TFDS itself reads and writes here, but never through TensorFlow.
  assert 'tensorflow' not in sys.modules
  assert tfds.__version__


def copy(path, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(path, tmp_path / 'copy'))


def test_kinds_of_keys_are_compared_when_a_dataset_is_opened(tmp_path):
  image = lambda shape, dtype=np.uint8: tfds.features.Image(
    shape=shape, dtype=dtype, encoding_format='png'
  )
  number = lambda shape, dtype=np.float32: tfds.features.Tensor(shape=shape, dtype=dtype)
  observation = {
    'depth': image((16, 16, 1), np.uint16),
    'alpha': image((16, 16, 4)),
    'plain': image((None, None, 3)),
    'note': tfds.features.Text(),
    'proprio': number((3,)),
  }
  steps = {'observation': observation, 'action': tfds.features.Text(), 'code': number((), np.int64)}
  features = tfds.features.FeaturesDict({'steps': tfds.features.Dataset(steps)})
  specs = features.get_tensor_info()['steps']
  flat = {f'observation/{key}': spec for key, spec in specs.pop('observation').items()} | specs

  def list_problems(views=('plain',), state='proprio', action=(), language=()):
    record = dataclasses.replace(
      synthetic.CLOCK,
      views=tuple(synthetic.View(key, 0, 0, 16, 24) for key in views),
      state=(synthetic.Slice(state, 0, 3, 's'),),
      action=tuple(synthetic.Slice(key, 0, 1, 's') for key in action),
      language=language,
    )
    return list(promises.list_problems(flat, record))

  assert not list_problems()
  picture = 'expected a picture: uint8 (rows, columns, 3)'
  assert list_problems(views=('plain', 'depth', 'alpha', 'proprio')) == [
    f"'observation/depth' is uint16 (16, 16, 1), {picture}",
    f"'observation/alpha' is uint8 (16, 16, 4), {picture}",
    f"'observation/proprio' is float32 (3,), {picture}",
  ]
  assert list_problems(state='note', action=('action',), language=('code',)) == [
    "'observation/note' is text, expected numbers of one shape at every step",
    "'action' is text, expected numbers of one shape at every step",
    "'code' is int64 (), expected a text, or the codes of its characters",
  ]
