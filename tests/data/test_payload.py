"""Reads of shards in an object store, counted: a window is a request a view, and little of what
comes is thrown away. A request that nobody answers is made again.
"""

from __future__ import annotations

import importlib
import os
import pathlib

import fsspec
import gcsfs.core
import numpy as np
import pytest
from etils import epath
from etils.epath import backend

from data import convert
from tests import object_store
from tests.data import synthetic
from tests.data import test_frames
from wam_jax import storage
from wam_jax.data import cache as cache_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import payload
from wam_jax.data import robot as robot_lib
from wam_jax.data import samples
from wam_jax.data import shards
from wam_jax.data import sources

LENGTH = 110
IMAGE = 96 * 96 * 3  # Bytes of an image, about: noise does not shrink.


@pytest.fixture(scope='module')
def local(tmp_path_factory) -> str:
  """A dataset with an index, of one episode of noise."""
  root = tmp_path_factory.mktemp('reads')
  written = test_frames.write_noisy(root / 'written', lengths=(LENGTH,), size=96)
  return str(convert.convert(written, root / '1.0.0'))


@pytest.fixture
def bucket(monkeypatch):
  """An object store that this process reads; gcsfs waits for it in a thread of its own."""
  with object_store.ObjectStore() as store:
    for name, value in store.environment.items():
      monkeypatch.setenv(name, value)
    registered = importlib.import_module('fsspec.registry')._registry
    # The class that the environment would have chosen, had it been there at the import.
    for protocol in ('gcs', 'gs'):
      monkeypatch.setitem(registered, protocol, gcsfs.core.GCSFileSystem)
    forget_stores()
    yield store
    forget_stores()


def forget_stores() -> None:
  """Clients are kept, by each library that opens them."""
  payload._open.cache_clear()
  backend.fsspec_backend._get_filesystem.cache_clear()
  gcsfs.core.GCSFileSystem.clear_instance_cache()


def put(bucket: object_store.ObjectStore, directory: str) -> str:
  """Copies a directory to the bucket."""
  for path in pathlib.Path(directory).rglob('*'):
    if path.is_file():
      name = f'data/{path.relative_to(directory).as_posix()}'
      bucket.objects[name] = next(bucket.generations), path.read_bytes()
  return 'gs://bucket/data'


def open_first(path: str) -> episode_lib.Episode:
  return sources.Episodes(path, 'train', synthetic.CLOCK)[0]


def paint(episode: episode_lib.Episode, steps, cache: cache_lib.Cache | None = None) -> np.ndarray:
  """The frames of an episode at these steps, as evaluation sees them."""
  film = samples.Film(
    robot=robot_lib.Robot(id=0, record=synthetic.CLOCK, statistics=None, center_crop=False),
    episode=episode,
    key=(0,),
    steps_R=np.asarray(steps),
    augmentation=None,
    cache=cache or cache_lib.Cache(0),
  )
  frames_RIJ3 = np.empty(film.shape, np.uint8)
  film.paint(frames_RIJ3)
  return frames_RIJ3


@pytest.mark.parametrize('stride', [1, 3, 6])
def test_a_window_in_a_bucket_is_a_request_a_view(bucket, local, stride):
  steps = [min(2 + stride * i, LENGTH - 1) for i in range(33)]
  want = paint(open_first(local), steps)
  episode = open_first(put(bucket, local))
  bucket.reads.clear()
  np.testing.assert_array_equal(paint(episode, steps), want)
  # One where a window is nearly the whole episode, whose views lie one after the other.
  views = len(synthetic.CLOCK.views)
  assert 1 <= len(bucket.reads) <= views
  assert all('train.array_record' in name for name, _ in bucket.reads)
  # Where every sixth image is wanted, the five between come with it.
  wanted = views * len(set(steps)) * IMAGE
  assert wanted < sum(size for _, size in bucket.reads) < 1.1 * stride * wanted


def test_images_far_apart_are_requests_of_their_own():
  mib = 1 << 20
  near = [(0, 100_000), (600_000, 100_000), (1_200_000, 100_000)]
  assert payload._join(near, mib) == [(0, 1_300_000, 300_000)]
  # A request costs less than what lies between.
  assert len(payload._join([(0, 100_000), (2 * mib, 100_000)], mib)) == 2
  # And of small images not one in twelve bytes would be wanted.
  assert len(payload._join([(0, 1000), (50_000, 1000), (100_000, 1000)], mib)) == 3
  # On a disk only what follows directly is one read.
  assert payload._join([(10, 5), (0, 10), (16, 4)], 0) == [(0, 15, 15), (16, 20, 4)]


def test_pieces_of_any_size_and_order_are_found(local):
  (shard,) = pathlib.Path(local).glob('*train.*record-*')
  file = payload.Shard(str(shard), '')
  rng = np.random.default_rng(0)
  pieces = [(int(rng.integers(200_000)), int(rng.choice([0, 1, 40, 70_000]))) for _ in range(50)]
  want = [payload.read(file, *piece) for piece in pieces]
  assert payload.read_pieces(file, pieces) == want
  assert payload.read_pieces(file, []) == []


def test_frames_in_the_cache_are_not_read_again(local, monkeypatch):
  read = []
  real = payload.read_pieces
  monkeypatch.setattr(
    payload, 'read_pieces', lambda shard, pieces: read.append(len(pieces)) or real(shard, pieces)
  )
  cache = cache_lib.Cache(1.0)
  episode = open_first(local)
  want = paint(episode, range(10), cache)
  np.testing.assert_array_equal(paint(episode, range(5, 15), cache)[:5], want[5:])
  # Five frames of two views are new.
  assert read == [20, 10]


def test_the_sizes_of_a_directory_are_one_request(bucket, local):
  path = epath.Path(put(bucket, local))
  want = storage.list_sizes(epath.Path(local))
  assert want['features.json'] == len(bucket.read('data/features.json'))
  before = bucket.requests
  assert storage.list_sizes(path) == want
  assert bucket.requests == before + 1
  assert storage.list_sizes(path / 'none') == storage.list_sizes(epath.Path(local) / 'none') == {}


def test_the_ends_of_shards_are_a_request_each(bucket, tmp_path):
  path = synthetic.make_sharded(tmp_path, 5)
  local = sorted(map(str, pathlib.Path(path).glob('*record-*')))
  remote = [f'{put(bucket, path)}/{pathlib.Path(file).name}' for file in local]
  before = bucket.requests
  found = shards.read_ends([*remote, 'gs://bucket/data/none'])
  # And one that lists them.
  assert bucket.requests - before == len(remote) + 1
  assert found == [*shards.read_ends(local), None]


def test_a_request_that_nobody_answers_is_made_again(bucket, monkeypatch):
  monkeypatch.setattr(storage, '_STALL_S', 0.3)
  monkeypatch.setitem(fsspec.config.conf, 'gcs', {})
  bucket.objects['data/x'] = next(bucket.generations), b'content'
  bucket.stalls = 1
  store = storage.open_store()
  assert store.cat_file('gs://bucket/data/x', 2, 5) == b'nte'
  assert bucket.stalls == 0


def test_what_is_set_already_stays(monkeypatch):
  monkeypatch.setenv('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', '7')
  monkeypatch.delenv('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', raising=False)
  monkeypatch.setitem(fsspec.config.conf, 'gcs', {'requests_timeout': 5})
  storage.make_path('gs://bucket/x')
  assert os.environ['TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS'] == '7'
  assert os.environ['TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES'] == '256'
  assert fsspec.config.conf['gcs'] == {'requests_timeout': 5}
