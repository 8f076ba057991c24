"""What a training start costs on the disk, counted in a real run: every dataset is opened once, the
end of every shard is read once, and nothing is decoded to be dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import sys
from collections.abc import Iterator

import pytest

from data.encode import work
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import source as source_lib
from wam_jax import train
from wam_jax.data import beside
from wam_jax.data import pipeline
from wam_jax.data import samples
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import record_files

SHARDS = 3


class Counts:
  """What happens to files and objects of the data while a test runs.

  Attributes:
    opened: by file name, how often Python opened it; ArrayRecord's own reader is not seen.
    builders: by directory, how often TFDS opened it.
    splits: by (directory, split), how often its episodes were opened.
    painted: by split, samples whose frames were decoded.
    readers: iterators of training that began to read.
  """

  def __init__(self):
    self.clear()

  def clear(self) -> None:
    """Counts from zero."""
    self.opened = collections.Counter()
    self.builders = collections.Counter()
    self.splits = collections.Counter()
    self.painted = collections.Counter()
    self.readers = 0


_watching: list[tuple[str, Counts]] = []


def _audit(event: str, arguments: tuple) -> None:
  if event == 'open' and _watching and isinstance(arguments[0], (str, bytes)):
    root, counts = _watching[-1]
    path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
    if path.startswith(root):
      counts.opened[path.removeprefix(root)] += 1


sys.addaudithook(_audit)  # It cannot be taken away again; it does nothing outside of a test here.


@pytest.fixture
def counts(tmp_path, monkeypatch) -> Iterator[Counts]:
  """Counts of what happens below `tmp_path`."""
  counts = Counts()

  def count(owner, name, add):
    real = getattr(owner, name)

    def counting(*args, **kwargs):
      add(*args)
      return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)

  def count_split(unused_self, dataset, split, unused_record, *unused):
    counts.splits[dataset.path.parts[-3], split] += 1

  def count_painted(film, unused_frames):
    counts.painted[film.key[1] if len(film.key) > 1 else 'to encode'] += 1

  def count_builder(path):
    counts.builders[pathlib.Path(path).parts[-3]] += 1

  def count_reader(*unused):
    counts.readers += 1

  count(sources.tfds, 'builder_from_directory', count_builder)
  count(sources.Episodes, '__init__', count_split)
  count(samples.Film, 'paint', count_painted)
  count(pipeline, '_read_ahead', count_reader)
  _watching.append((f'{tmp_path}/', counts))
  yield counts
  _watching.pop()


@pytest.fixture
def config(tmp_path) -> cfg.TrainConfig:
  """Two steps on two datasets of the same robot, with held-out batches at the end."""
  datasets = {
    name: (synthetic.make_sharded(tmp_path / name, SHARDS), 'clock', 1.0) for name in ('a', 'b')
  }
  config = synthetic.make_config(datasets)
  model = dataclasses.replace(
    config.model,
    dim=16,
    mlp_dim=32,
    num_layers=1,
    action_hidden=16,
    text=cfg.TextConfig(dim=16, layers=1),
    # Every image is of one colour: patches vary in few directions.
    tokenizer=dataclasses.replace(config.model.tokenizer, channels=2, fit_windows=8),
  )
  return dataclasses.replace(
    config, model=model, steps=2, eval_every=1, eval_batches=2, log_every=1, save_every=2
  )


def list_shards(split: str) -> set[str]:
  return {
    f'{name}/synthetic_rlds/1.0.0/synthetic_rlds-{split}.array_record-{number:05d}-of-{SHARDS:05d}'
    for name in ('a', 'b')
    for number in range(SHARDS)
  }


def assert_opened_once(counts: Counts) -> None:
  """Each dataset and each split of it once, and of each shard the end."""
  assert counts.builders == {'a': 1, 'b': 1}
  assert counts.splits == {(name, split): 1 for name in ('a', 'b') for split in ('train', 'val')}
  shards = {path: n for path, n in counts.opened.items() if '.array_record-' in path}
  assert shards == dict.fromkeys(list_shards('train') | list_shards('val'), 1)


@pytest.mark.slow
def test_a_training_start_opens_everything_once(config, tmp_path, counts, monkeypatch):
  kept = []
  write = beside.write
  monkeypatch.setattr(
    beside, 'write', lambda *args, **kwargs: kept.append(args[1]) or write(*args, **kwargs)
  )

  optimizer = dataclasses.replace(config.optimizer, decay_steps=config.steps)
  first = dataclasses.replace(config, steps=1, save_every=1, optimizer=optimizer)
  assert train.train(first, tmp_path / 'run') == 0
  assert_opened_once(counts)
  # The windows that the tokenizer is fitted on, and the run itself.
  assert counts.readers == 2
  assert counts.painted['val'] == config.eval_batches * config.batch_size
  assert kept

  # A run that goes on finds what the first one kept beside the data, and scans no episode.
  counts.clear()
  kept.clear()
  assert train.train(config, tmp_path / 'run') == 0
  assert_opened_once(counts)
  assert counts.readers == 1
  assert counts.painted['val'] == config.eval_batches * config.batch_size
  assert not kept


def store_features(config: cfg.TrainConfig, workdir: pathlib.Path) -> None:
  """What the encoders of the run in `workdir` make of every window of `config`."""
  source = source_lib.open_source(workdir)
  hashes = source.hash_encoders(print)
  machine = work.make_machine(8, 2)
  frozen = source.read_encoders(machine.place_shapes(source.frozen))
  storing = record_files.Storing(anchor_stride=1)
  for dataset in config.data.mixture.values():
    for split in ('train', 'val'):
      episodes = sources.Dataset(dataset.path).open(split, synthetic.CLOCK)
      anchors = windows.make_anchors(episodes)
      job = work.make_job(source.config.model, episodes, anchors, storing, 'none')
      work.encode(job, frozen, hashes, machine)


@pytest.mark.slow
def test_where_features_are_stored_no_picture_is_read(config, tmp_path, counts):
  """Neither for the tokenizer, which is another run's, nor for training or evaluation."""
  first = dataclasses.replace(config, steps=1, save_every=1)
  train.train(first, tmp_path / 'run')
  store_features(config, tmp_path / 'run')

  counts.clear()
  data = dataclasses.replace(config.data, features='require')
  from_features = dataclasses.replace(config, data=data, encoders_from=str(tmp_path / 'run'))
  assert train.train(from_features, tmp_path / 'features') == 0
  assert counts.readers == 1
  assert not counts.painted
