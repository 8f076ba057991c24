"""A start touches each shard once, and only the first reads episodes; what is kept is not stale."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import logging
import os
import pathlib
import shutil
import sys
import threading

import numpy as np
import pytest
from array_record.python import array_record_data_source

from tests.data import synthetic
from wam_jax import storage
from wam_jax.data import beside
from wam_jax.data import pipeline
from wam_jax.data import scan
from wam_jax.data import shards
from wam_jax.data import sources
from wam_jax.data import statistics

CLOCK = synthetic.CLOCK

# The counters that are running; an audit hook cannot be taken away again.
_counters: list[collections.Counter] = []


def _count_opening(event: str, arguments: tuple) -> None:
  if event == 'open' and '.array_record-' in str(arguments[0]):
    for counter in _counters:
      counter['open', os.path.basename(arguments[0])] += 1


sys.addaudithook(_count_opening)


@contextlib.contextmanager
def count_operations(monkeypatch):
  """Counts, by (operation, shard), what is done with shards: 'open' and 'stat' by Python, 'reader'
  by the library that reads records.
  """
  counter: collections.Counter = collections.Counter()

  def count(operation, original, path, *args, **kwargs):
    if '.array_record-' in str(path):
      counter[operation, os.path.basename(path)] += 1
    return original(path, *args, **kwargs)

  with monkeypatch.context() as patch:
    for place, name, operation in (
      (os, 'stat', 'stat'),
      (array_record_data_source, '_create_reader', 'reader'),
    ):
      original = getattr(place, name)
      patch.setattr(
        place,
        name,
        lambda *args, original=original, operation=operation, **kwargs: count(
          operation, original, *args, **kwargs
        ),
      )
    _counters.append(counter)
    try:
      yield counter
    finally:
      _counters.remove(counter)


def sum_up(counter: collections.Counter) -> dict[str, tuple[int, int]]:
  """(shards, most operations on one of them) by operation."""
  found: dict[str, list[int]] = collections.defaultdict(list)
  for (operation, _), count in counter.items():
    found[operation].append(count)
  return {operation: (len(counts), max(counts)) for operation, counts in found.items()}


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, str]]:
  """(split, place) of the records that are read."""
  seen, original = [], sources.Episodes.outline

  def outline(self, index):
    seen.append((self.split, self.where(index)))
    return original(self, index)

  monkeypatch.setattr(sources.Episodes, 'outline', outline)
  return seen


# DROID is published in 2048 shards; on an object store each opening is a round trip.
@pytest.mark.parametrize('count', [64, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_start_touches_each_shard_once_and_the_next_reads_no_episode(
  tmp_path, monkeypatch, reads, count
):
  path = synthetic.make_sharded(tmp_path, count)
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  splits = (pipeline.TRAINING, 'val')

  with count_operations(monkeypatch) as first:
    data = pipeline.Data.open(config, splits)
  assert sum_up(first) == {'open': (2 * count, 1), 'reader': (2 * count, 1)}
  # Two episodes a shard, one in `val`.
  assert len(reads) == len(set(reads)) == 3 * count

  reads.clear()
  with count_operations(monkeypatch) as second:
    again = pipeline.Data.open(config, splits)
  assert sum_up(second) == {'open': (2 * count, 1)}
  assert not reads
  assert again.metadata == data.metadata
  batch = again.train_batches().read(0)
  np.testing.assert_array_equal(batch.sample_B2, data.train_batches().read(0).sample_B2)


def test_fingerprints_keep_their_values(tmp_path):
  """They are in checkpoints, statistics and frame indices of earlier versions."""

  def enlarge(episodes):
    rng = np.random.default_rng(0)
    for step in episodes[0]:
      step['language_instruction'] = rng.bytes(1000).hex()

  path = pathlib.Path(synthetic.make_dataset(tmp_path, [300, 12], enlarge))
  (shard,) = path.glob('*train.*record-*')
  content = shard.read_bytes()
  assert len(content) > 128 * 1024
  # Of a shard the name, the size and the last 128 KiB, mostly the positions of its last records.
  tail = content[-128 * 1024 :]
  want = hashlib.sha256(
    (path / 'dataset_info.json').read_bytes()
    + (path / 'features.json').read_bytes()
    + f'{shard.name}:{len(content)}'.encode()
    + tail
  )
  assert sources.Episodes(path, 'train', CLOCK).fingerprint == want.hexdigest()[:16]
  want = hashlib.sha256(f'{len(content)}:'.encode() + tail)
  assert shards.read_end(shard).fingerprint == want.hexdigest()[:16]


def change_last_byte(content: bytes) -> bytes:
  return content[:-1] + bytes([content[-1] ^ 1])


def lengthen(content: bytes) -> bytes:
  return content + b'\0'


@pytest.mark.parametrize('change', [change_last_byte, lengthen])
def test_a_changed_shard_is_noticed(tmp_path, reads, change):
  path = pathlib.Path(synthetic.make_sharded(tmp_path, 4))
  kept = sources.Episodes(path, 'train', CLOCK)
  findings = [statistics.Finding(kept), scan.Spans(kept)]
  scan.complete(findings)
  assert all(finding.load() for finding in findings)

  shard = sorted(path.glob('*train.*record-*'))[2]
  shard.write_bytes(change(shard.read_bytes()))
  changed = sources.Episodes(path, 'train', CLOCK)
  assert changed.fingerprint != kept.fingerprint
  assert not statistics.Finding(changed).load()
  assert not scan.Spans(changed).load()
  # The shards of `val` are as they were.
  assert sources.Episodes(path, 'val', CLOCK).fingerprint


def test_slices_are_read_with_the_split(tmp_path, reads):
  dataset = sources.Dataset(synthetic.make_sharded(tmp_path, 4))
  whole, late, odd = (
    dataset.open(split, CLOCK) for split in ('train', 'train[50%:]', 'train[3:5]+train[:1]')
  )
  spans = [scan.Spans(late), scan.Spans(whole), scan.Spans(odd)]
  scan.complete([*spans, statistics.Finding(whole)])
  # Only the split in another order needs a pass of its own.
  assert collections.Counter(split for split, _ in reads) == {'train': 8, odd.split: 3}
  expected = [[(i, 0, 12, 0) for i in range(len(episodes))] for episodes in (late, whole, odd)]
  assert [found.spans_S4.tolist() for found in spans] == [list(map(list, e)) for e in expected]
  assert dataset.open('train', CLOCK) is whole


def complete_in_two_processes(paths) -> list[scan.Spans]:
  """What two processes find, the first and the second one, that see the data under these paths."""
  found = [scan.Spans(sources.Episodes(path, 'train', CLOCK)) for path in paths]
  barrier = threading.Barrier(2, timeout=60)

  @contextlib.contextmanager
  def together():
    yield
    barrier.wait()

  threads = [
    threading.Thread(target=scan.complete, args=([finding], number == 0, together))
    for number, finding in enumerate(found)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_one_of_two_processes_reads(tmp_path, reads):
  path = synthetic.make_sharded(tmp_path, 4)
  first, second = complete_in_two_processes([path, path])
  assert len(reads) == len(set(reads)) == 8
  np.testing.assert_array_equal(first.spans_S4, second.spans_S4)


def test_processes_with_disks_of_their_own_read_their_own(tmp_path, reads):
  path = synthetic.make_sharded(tmp_path / 'a', 4)
  other = shutil.copytree(path, tmp_path / 'b')
  first, second = complete_in_two_processes([path, other])
  assert len(set(reads)) == 16
  np.testing.assert_array_equal(first.spans_S4, second.spans_S4)


def test_what_can_be_written_nowhere_is_kept_in_memory(tmp_path, monkeypatch, reads, caplog):
  def refuse(path, content):
    raise PermissionError(f'{path} is read-only')

  # Neither beside the dataset nor in the cache of the user.
  monkeypatch.setattr(storage, 'write_whole', refuse)
  monkeypatch.setattr(beside, '_in_memory', {})
  path = synthetic.make_sharded(tmp_path, 2)
  with caplog.at_level(logging.WARNING):
    want = scan.load_spans(sources.Episodes(path, 'train', CLOCK))
    got = scan.load_spans(sources.Episodes(path, 'train', CLOCK))
  np.testing.assert_array_equal(got, want)
  assert len(reads) == 4
  assert caplog.text.count('wam_spans_clock_train.npz cannot be kept beside the dataset') == 1


def test_an_episode_that_cannot_be_read_keeps_nothing(tmp_path):
  path = pathlib.Path(synthetic.make_sharded(tmp_path, 3))
  shard = sorted(path.glob('*train.*record-*'))[1]
  shard.write_bytes(b'nothing')
  episodes = sources.Episodes(path, 'train', CLOCK)
  with pytest.raises(ValueError, match=f'Cannot read record 0 of .*{shard.name}'):
    scan.complete([scan.Spans(episodes), statistics.Finding(episodes)])
  assert not list(path.glob('wam_*'))
