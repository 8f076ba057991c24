"""A process whose workdir in a bucket is taken while it saves: `python -m tests.taken`, with the
variables of an `object_store`. Each function asserts what must hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from google.cloud import storage as gcs

from tests import damaged
from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import frozen
from wam_jax import integrity
from wam_jax import items
from wam_jax import storage
from wam_jax.models import encoders


def expect_taken(call) -> None:
  with pytest.raises(storage.TakenError, match='taken'):
    call()


def take_twice_at_once(place) -> None:
  """Another process writes between this one's look and its own write."""
  get_blob = gcs.Bucket.get_blob

  def get_and_lose(self, name):
    found = get_blob(self, name)
    with mock.patch.object(gcs.Bucket, 'get_blob', get_blob):
      winners.append(storage.Owner(place))
    return found

  winners: list[storage.Owner] = []
  with mock.patch.object(gcs.Bucket, 'get_blob', get_and_lose):
    expect_taken(lambda: storage.Owner(place))
  winners[0].check()
  busy = mock.Mock(side_effect=RuntimeError('503 busy'))
  with mock.patch.object(gcs.Bucket, 'get_blob', busy), pytest.raises(OSError, match='503 busy'):
    winners[0].check()
  assert busy.call_count == 1 + len(storage.WAITS_S)
  storage.Owner(place)
  expect_taken(winners[0].check)


def save_two(workdir, lose: Callable[[checkpoint.Checkpoints], contextlib.AbstractContextManager]):
  """Saves steps 1 and 2, of which one is kept; `lose` is in force during the second save."""
  owner = storage.Owner(workdir)
  with checkpoint.Checkpoints(workdir, keep=1, check_owner=owner.check) as checkpoints:
    checkpoints.save(1, damaged.make_state(1), {'next': 1}, damaged.METADATA)
    checkpoints.wait()
    with lose(checkpoints):
      checkpoints.save(2, damaged.make_state(2), {'next': 2}, damaged.METADATA)
      checkpoints.wait()


def lose_before_it_counts(workdir) -> None:
  write = integrity.write_list

  def write_and_lose(*args) -> None:
    write(*args)
    storage.Owner(workdir)

  lose = lambda _: mock.patch.object(integrity, 'write_list', write_and_lose)
  expect_taken(lambda: save_two(workdir, lose))
  assert checkpoint.list_steps(workdir) == [1]


def lose_before_the_old_one_goes(workdir) -> None:
  def lose(checkpoints):
    finish = checkpoints._writer.wait_until_finished

    def finish_and_lose() -> None:
      finish()
      if 2 in checkpoint.list_steps(workdir):  # It is called before the save, too.
        storage.Owner(workdir)

    return mock.patch.object(checkpoints._writer, 'wait_until_finished', finish_and_lose)

  expect_taken(lambda: save_two(workdir, lose))
  # The new owner may be reading the old one.
  assert checkpoint.list_steps(workdir) == [1, 2]


def fail_when_lost(place) -> None:
  with storage.owned_folder(place, ()) as folder:
    (folder.local / 'metrics.jsonl').write_text('{}')
    storage.Owner(place)
    raise FloatingPointError('Step 7 is not finite')


def lose_with_an_error(place) -> None:
  """The error that ends a run is what is raised, though its files cannot be sent any more."""
  with pytest.raises(FloatingPointError):
    fail_when_lost(place)
  assert not (place / 'metrics.jsonl').exists()


def skip_a_damaged_one(workdir) -> None:
  """A damaged checkpoint stays where it is, and its step can be saved again."""
  damaged.save(workdir, [1, 2])
  place = workdir / 'checkpoints' / '2'
  cut = [name for name in storage.list_files(place) if name.startswith('params/d/')]
  (place / cut[0]).write_bytes(b'cut')
  before = storage.list_files(workdir)
  assert damaged.restore(workdir) == 'step 1'
  after = storage.list_files(workdir)
  assert before.keys() ^ after.keys() == {
    'checkpoints/2/commit_success.txt',
    'checkpoints/2/unreadable.json',
  }
  assert 'has 3 of' in (place / 'unreadable.json').read_text()
  # The next save leaves it, as it leaves nothing of a save that was killed.
  half = workdir / 'checkpoints' / '4' / 'params' / 'd' / 'half'
  half.write_bytes(b'half')
  damaged.save(workdir, [3])
  assert (place / 'unreadable.json').exists()
  assert not half.exists()
  damaged.save(workdir, [2])
  assert not (place / 'unreadable.json').exists()
  assert checkpoint.list_steps(workdir) == [1, 2, 3]
  assert damaged.restore(workdir) == 'step 3'


def store_encoders_twice(workdir) -> None:
  """A new owner stores the encoders while an earlier one is about to finish the same."""
  state = damaged.make_state(1)
  hashes = damaged.METADATA['encoders']
  finalize = ocp.PyTreeCheckpointHandler.finalize
  names = []

  def store() -> None:
    names.append(frozen.store(workdir, state.frozen, hashes, storage.Owner(workdir).check))

  def finalize_and_lose(self, *args):
    with mock.patch.object(ocp.PyTreeCheckpointHandler, 'finalize', finalize):
      store()
    return finalize(self, *args)

  with mock.patch.object(ocp.PyTreeCheckpointHandler, 'finalize', finalize_and_lose):
    store()
  store()
  # Of two that wrote at the same time, both are whole; the third found one of them.
  assert len(names) == 3
  assert len(set(names)) == 2
  for name in names:
    place = workdir / 'frozen' / name
    assert not integrity.find_damage_of_item(place)
    found = items.load_whole(place)
    jax.tree.map(np.testing.assert_array_equal, found, encoders.to_tree(state.frozen))


def main(unused_argv: list[str]) -> None:
  storage.WAITS_S = (0.01,)
  root = storage.make_path('gs://bucket')
  take_twice_at_once(root / 'owned')
  lose_before_it_counts(root / 'early')
  lose_before_the_old_one_goes(root / 'late')
  lose_with_an_error(root / 'failed')
  skip_a_damaged_one(root / 'damaged')
  store_encoders_twice(root / 'twice')
  print('all held')


if __name__ == '__main__':
  cli.run(main)
