"""Single images of large episodes: found again across block borders, checked, and no more read than
asked for.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

from data import convert
from tests.data import synthetic
from wam_jax.data import frames
from wam_jax.data import payload
from wam_jax.data import shards
from wam_jax.data import sources

CLOCK = synthetic.CLOCK


def write_noisy(root, lengths=(12, 20), size=96) -> str:
  """A dataset whose images (27 KB each) lie across the blocks of their shard, compressed as TFDS
  writes it.
  """
  rng = np.random.default_rng(0)
  features = dict(synthetic.FEATURES['steps'].feature.items())
  image = synthetic.tfds.features.Image(shape=(size, size, 3), encoding_format='png')
  observation = {**features['observation'], 'top': image, 'wrist': image}
  features = synthetic.tfds.features.FeaturesDict(
    {'steps': synthetic.tfds.features.Dataset({**features, 'observation': observation})}
  )

  def make_step(e, t):
    step = synthetic.make_step(e, t)
    for view in ('top', 'wrist'):
      step['observation'][view] = io.BytesIO(
        synthetic.encode(rng.integers(0, 256, (size, size, 3), np.uint8))
      )
    return step

  episodes = [[make_step(e, t) for t in range(n)] for e, n in enumerate(lengths)]
  return synthetic.write_dataset(root, {'train': episodes}, features)


@pytest.fixture(scope='module')
def noisy_paths(tmp_path_factory) -> tuple[str, str]:
  """(as written, converted and indexed); do not change them."""
  root = tmp_path_factory.mktemp('noisy')
  written = write_noisy(root / 'written')
  return written, str(convert.convert(written, root / 'converted/1.0.0'))


@pytest.fixture
def changed(noisy_paths, tmp_path) -> pathlib.Path:
  """A copy of the indexed dataset to damage."""
  return pathlib.Path(shutil.copytree(noisy_paths[1], tmp_path / 'copy'))


def open_noisy(path) -> sources.Episodes:
  return sources.Episodes(str(path), 'train', CLOCK)


def test_positions_skip_block_headers():
  # Riegeli, under ArrayRecord, begins every block of 65536 bytes with a header of 24.
  assert payload.find_byte(0) == 24
  assert payload.find_byte(65511) == 65535
  assert payload.find_byte(65512) == 65536 + 24
  assert payload.find_byte(2 * 65512) == 2 * 65536 + 24


def test_an_indexed_episode_equals_the_whole_one(noisy_paths):
  written, indexed = map(open_noisy, noisy_paths)
  assert written._index is None
  assert indexed._index is not None
  assert len(indexed) == 2
  for number in range(2):
    want, got = written[number], indexed[number]
    assert {key: list(images) for key, images in got.encoded.items()} == want.encoded
    np.testing.assert_array_equal(got.state_TX, want.state_TX)
    np.testing.assert_array_equal(got.action_TU, want.action_TU)
    assert got.spans == want.spans
    assert got.length == want.length
    assert indexed.spans(number) == written.spans(number)
    np.testing.assert_array_equal(indexed.numeric(number)[0], want.state_TX)


def test_split_slices_and_pickles_read_the_same(noisy_paths):
  part = pickle.loads(pickle.dumps(sources.Episodes(noisy_paths[1], 'train[1:]', CLOCK)))
  assert len(part) == 1
  assert list(part[0].encoded['top']) == open_noisy(noisy_paths[0])[1].encoded['top']


def test_a_window_costs_its_own_images(noisy_paths, monkeypatch):
  read = []
  original = payload._LocalFile.read
  monkeypatch.setattr(
    payload._LocalFile,
    'read',
    lambda self, start, size: read.append(size) or original(self, start, size),
  )
  episode = open_noisy(noisy_paths[1])[1]
  for view in CLOCK.views:
    for step in (3, 7, 11):
      episode.decode(view.key, step)
  # Two views at three steps; asking for the size of an image reads it once more.
  images = sum(len(episode.encoded[view.key][step]) for view in CLOCK.views for step in (3, 7, 11))
  # The episode without images, and six images, each of which may span a block header.
  first, *six = read[:7]
  assert first < 6000
  assert images <= sum(six) < images + 6 * 24 + 1
  # What a cache holds of it, in bytes.
  assert episode.nbytes < 3000


def test_threads_read_at_once(noisy_paths):
  written, indexed = map(open_noisy, noisy_paths)
  want = written[1].encoded['wrist']
  episode = indexed[1]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda i: episode.encoded['wrist'][i % 20], range(400))) == want * 20


def test_a_changed_byte_is_found(changed):
  episode = open_noisy(changed)[0]
  position, size, _ = episode.encoded['top'].table_T3[4]
  shard = next(changed.glob('*train.*record-*'))
  content = bytearray(shard.read_bytes())
  # One bit in the middle of the image: the checksum tells, before anything is decoded.
  content[payload.find_byte(int(position + size // 2))] ^= 1
  shard.write_bytes(content)
  payload._open.cache_clear()
  with pytest.raises(
    ValueError, match=f'image of step 4 at byte .* of .*{shard.name}: its checksum does not match'
  ):
    episode.decode('top', 4)
  assert episode.decode('top', 5).shape == (96, 96, 3)


def test_a_changed_episode_is_found(changed):
  lean = next((changed / frames.FOLDER).glob('*train.*record-*'))
  content = bytearray(lean.read_bytes())
  content[50] ^= 1
  lean.write_bytes(content)
  with pytest.raises(
    ValueError, match=f'Cannot read record 0 of .*episode 0 in .*{lean.name}: its checksum'
  ):
    open_noisy(changed)[0]


def test_an_index_of_other_shards_is_refused(changed):
  shard = next(changed.glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes() + b'more')
  with pytest.raises(
    ValueError, match=f'wam_frames does not belong to the shards beside it: {shard.name}. Remove'
  ):
    open_noisy(changed)


def test_a_shard_that_disappears_is_named(changed):
  episode = open_noisy(changed)[0]
  shard = next(changed.glob('*train.*record-*'))
  shard.unlink()
  with pytest.raises(ValueError, match=f'Cannot open .*{shard.name}'):
    episode.decode('top', 0)


def test_records_that_were_not_written_are_found(noisy_paths, tmp_path):
  shard = str(next(pathlib.Path(noisy_paths[1]).glob('*train.*record-*')))
  entry = json.loads((pathlib.Path(noisy_paths[1]) / frames.FOLDER / frames.INDEX).read_text())
  assert [*entry] == [pathlib.Path(shard).name]
  # All that was written is read again, for that is how a full disk is found.
  with pytest.raises(ValueError, match='holds 2 records after writing 3; is the disk full'):
    frames.index_shard(shard, [0, 0, 0], [], str(tmp_path / 'lean'))
  with pytest.raises(ValueError, match='Record 0 of .* is not what was written'):
    frames.index_shard(shard, [0, 0], [], str(tmp_path / 'lean'))


def test_fingerprints_of_shards_of_one_size_differ(noisy_paths, tmp_path):
  # The same episodes the other way round: names and sizes of the shards are the same.
  other = pathlib.Path(
    convert.convert(write_noisy(tmp_path / 'other', lengths=(20, 12)), tmp_path / 'converted')
  )
  files = [next(pathlib.Path(path).glob('*train.*record-*')) for path in (noisy_paths[1], other)]
  assert files[0].stat().st_size == files[1].stat().st_size
  assert len({end.fingerprint for end in shards.read_ends(files)}) == 2
  assert len({open_noisy(path).fingerprint for path in (noisy_paths[1], other)}) == 2


def test_image_keys_are_those_of_the_steps():
  assert frames.image_keys(synthetic.FEATURES) == [
    'steps/observation/top',
    'steps/observation/wrist',
  ]
