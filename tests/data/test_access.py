"""What reading costs, in bytes: a window reads its own images, a stored feature none, and a dataset
without an index is told of or refused.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from data import convert
from data.lerobot import convert as lerobot
from data.tabletop import builder as tabletop
from tests.builders import lerobot_dirs
from tests.data import synthetic
from wam_jax import types
from wam_jax.data import access
from wam_jax.data import embodiments
from wam_jax.data import episode as episode_lib
from wam_jax.data import payload
from wam_jax.data import pipeline
from wam_jax.data import sources


@pytest.fixture
def read(monkeypatch) -> list[int]:
  """Bytes of each read of a shard or of its episodes without images."""
  sizes = []
  real = payload._LocalFile.read
  monkeypatch.setattr(
    payload._LocalFile,
    'read',
    lambda self, start, size: sizes.append(size) or real(self, start, size),
  )
  return sizes


def make_from_lerobot(root: pathlib.Path) -> sources.Episodes:
  source = lerobot_dirs.write_v2(root / 'robot', [120])
  record = lerobot.convert(source, root / '1.0.0').record
  return sources.Episodes(root / '1.0.0', 'train', record)


def make_tabletop(root: pathlib.Path) -> sources.Episodes:
  config = tabletop.BuildConfig(embodiment='disc', tasks=('reach',), episodes=1, other_episodes=1)
  path, _ = tabletop.build(root, config)
  return sources.Episodes(path, 'train', embodiments.get('tabletop_disc'))


@pytest.mark.parametrize('make', [make_from_lerobot, make_tabletop])
def test_what_a_builder_writes_is_read_by_the_window(tmp_path, read, make):
  episodes = make(tmp_path)
  assert episodes.has_index
  read.clear()
  # State and actions are those of the episode; its images are tables of 24 bytes each.
  numbers = episodes.numbers(0)
  views = episodes.record.views
  values = numbers.state_TX.nbytes + numbers.action_TU.nbytes
  (lean,) = read
  assert lean < 2 * values + numbers.length * (24 * len(views) + 150)

  read.clear()
  episode = episodes[0].load([3, 5, 6])
  for view in views:
    for step in (3, 5, 6):
      episode.decode(view.key, step)
  images = sum(len(episode.encoded[view.key][step]) for view in views for step in (3, 5, 6))
  # Steps 5 and 6 of a view lie side by side; blocks of the shard have headers.
  assert len(read) == 1 + 2 * len(views)
  assert images <= sum(read) - lean < images + 40 * len(read)
  assert sum(read) < 0.25 * episodes.record_bytes


class Stored:
  """Stored features of no content, of every window."""

  variants = 1

  def find_anchor(self, window: int) -> int:
    return window

  def read(self, window, variant, ids_P):
    return {'clean_BFHWC': np.zeros((1, 1, 1, 1), np.float32)}


def test_stored_features_read_no_image(clock_path, tmp_path, read):
  path = str(convert.convert(clock_path, tmp_path / 'indexed'))
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  (sampler,) = pipeline.Data.open(config).open_mixture()
  want = sampler(5, np.random.default_rng(0))
  sampler = dataclasses.replace(sampler, stored=Stored())
  read.clear()
  got = sampler(5, np.random.default_rng(0))
  shard = next(pathlib.Path(path).glob('*train.*record-*'))
  assert len(read) == 1
  assert read[0] < 0.5 * shard.stat().st_size / len(sampler.episodes)
  for name in set(want) & {field.name for field in dataclasses.fields(types.Batch)}:
    if name != 'frames_BRIJ3':
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)
  assert sampler.episodes.numbers(0).encoded == {}


def test_without_an_index_images_of_a_record_stay_one_block():
  class Images:
    """A field of images that may be counted and not be looked at."""

    def __len__(self):
      return 4

  class Field:
    def __init__(self, kind, values):
      self._kind = kind
      setattr(self, kind, self)
      self.value = values

    def WhichOneof(self, unused):
      return self._kind

  clock = synthetic.CLOCK
  images = {f'steps/observation/{view.key}': Field('bytes_list', Images()) for view in clock.views}
  features = images | {
    'steps/observation/proprio': Field('float_list', np.arange(12.0)),
    'steps/action': Field('float_list', np.arange(8.0)),
    'steps/language_instruction': Field('bytes_list', [b'go'] * 4),
  }
  specs = {key.removeprefix('steps/'): np.empty(3) for key in features} | {'action': np.empty(2)}
  episode = episode_lib.Outline(
    place=episode_lib.Place('here', ''),
    features=features,
    record=clock,
    specs=specs,
    open_images=None,
  ).parse_numbers()
  assert episode.length == 4
  np.testing.assert_array_equal(episode.action_TU, np.arange(8.0).reshape(4, 2))


@pytest.fixture
def limits(monkeypatch, clock_path) -> float:
  """The record's size, of which the limits are a half and more; without what was said before."""
  size = sources.Episodes(clock_path, 'train', synthetic.CLOCK).record_bytes
  monkeypatch.setattr(access, '_NOTICED', 0.5 * size)
  access._warn_once.cache_clear()
  return size


def open_clock(path, **data):
  config = synthetic.make_config({'clock': (str(path), 'clock', 1.0)}, **data)
  return pipeline.Data.open(config)


def test_small_episodes_without_an_index_are_told_of_once(clock_path, limits, caplog):
  for _ in range(2):
    open_clock(clock_path)
  assert caplog.text.count('has no index of its images') == 1
  assert f'python -m data.convert --source={clock_path}' in caplog.text


def test_long_episodes_need_an_index_or_a_cache_that_holds_them(
  clock_path, limits, monkeypatch, tmp_path
):
  monkeypatch.setattr(access, '_REFUSED', 0.9 * limits)
  open_clock(clock_path)
  with pytest.raises(ValueError, match='data.mixture.clock: .*python -m data.convert --source='):
    open_clock(clock_path, cache_gib=1e-6)
  # Held-out windows are few.
  config = synthetic.make_config({'clock': (clock_path, 'clock', 1.0)}, cache_gib=1e-6)
  pipeline.Data.open(config, ['val'])
  open_clock(convert.convert(clock_path, tmp_path / 'indexed'), cache_gib=1e-6)
