"""Writing datasets: shards of equal work, restart, several processes, bad requests."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import rlds

FEATURES = tfds.features.FeaturesDict(
  {'steps': tfds.features.Dataset({'t': tfds.features.Scalar(np.int64)})}
)


# `failing` is a file, for workers are other processes and what fails changes between two runs.
def _make(failing: pathlib.Path, split: str, index: int) -> dict:
  if failing.exists() and str(index) in failing.read_text().split():
    raise ValueError(f'episode {index} of {split} is broken')
  return {'steps': [{'t': 100 * index + t} for t in range(3)]}


def _open_split(failing, split):
  return functools.partial(_make, failing, split)


def _dataset(failing, **changes):
  return dataclasses.replace(
    rlds.Dataset(
      name='numbers',
      config='',
      module='data.numbers',
      description='Numbers.',
      features=FEATURES,
      open_split=functools.partial(_open_split, failing),
      sizes={'train': (3,) * 10, 'val': (3,)},
      unit='steps',
      shard_size=9,
      min_shards=1,
      parameters={'seed': 0},
    ),
    **changes,
  )


def _plan(sizes, shard_size, min_shards):
  template = tfds.core.ShardedFileTemplate(
    data_dir=pathlib.Path('/x'),
    dataset_name='t',
    split='train',
    filetype_suffix='array_record',
    template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE,
  )
  return rlds.plan_shards('train', sizes, shard_size, min_shards, template)


@pytest.mark.parametrize(
  'sizes, shard_size, min_shards, want',
  [
    ((1,) * 601, 250, 1, [200, 201, 200]),
    # Fewer episodes than the least number of shards: one each, none empty.
    ((1,) * 3, 250, 8, [1, 1, 1]),
    ((21, 9, 14), 8192, 8, [1, 1, 1]),
    # Three shards; a long episode has one for itself.
    ((5, 5, 90, 5, 5), 50, 1, [2, 1, 2]),
    ((100, 1, 1), 51, 1, [1, 2]),
  ],
)
def test_shards_hold_about_equal_work(sizes, shard_size, min_shards, want):
  shards = _plan(sizes, shard_size, min_shards)
  assert [len(s.sizes) for s in shards] == want
  assert tuple(itertools.chain.from_iterable(s.sizes for s in shards)) == sizes
  assert [s.first for s in shards] == np.cumsum([0, *want[:-1]]).tolist()
  assert shards[-1].path.name == f't-train.array_record-{len(want) - 1:05d}-of-{len(want):05d}'


def test_written_episodes_are_read_back(tmp_path):
  failing = tmp_path / 'failing'
  assert rlds.write(tmp_path / 'a/1.0.0', _dataset(failing, files={'note.txt': b'hello'}))
  assert not rlds.write(tmp_path / 'a/1.0.0', _dataset(failing))
  source = tfds.builder_from_directory(tmp_path / 'a/1.0.0').as_data_source('train')
  assert [[int(step['t']) for step in source[i]['steps']] for i in (0, 9)] == [
    [0, 1, 2],
    [900, 901, 902],
  ]
  assert (tmp_path / 'a/1.0.0/note.txt').read_text() == 'hello'
  with pytest.raises(ValueError, match='workers=0 must be at least 1'):
    rlds.write(tmp_path / 'b', _dataset(failing), workers=0)


@pytest.mark.parametrize('workers', [1, 2])
def test_an_interrupted_run_goes_on(tmp_path, capsys, workers):
  failing = tmp_path / 'failing'
  rlds.write(tmp_path / 'want', _dataset(failing))
  failing.write_text('5')
  path = tmp_path / 'made'
  with pytest.raises(ValueError, match='episode 5 of train is broken'):
    rlds.write(path, _dataset(failing), workers)
  kept = [
    p
    for p in (tmp_path / '.made.partial').iterdir()
    if 'array_record' in p.name and p.suffix != '.unfinished'
  ]
  assert kept
  assert not path.exists()
  stamps = {p.name: p.stat().st_mtime_ns for p in kept}
  with pytest.raises(
    ValueError, match=r'\.made\.partial was made with other parameters: seed=0 there, 7 asked'
  ):
    rlds.write(path, _dataset(failing, parameters={'seed': 7}))
  failing.write_text('')
  capsys.readouterr()
  assert rlds.write(path, _dataset(failing), workers)
  error = capsys.readouterr().err
  assert f'going on after {len(kept)} of 5 shards' in error
  assert '33/33 steps' in error
  # What was finished is kept as it was, and all is as if it had never been interrupted.
  assert {name: (path / name).stat().st_mtime_ns for name in stamps} == stamps
  assert _read_files(path) == _read_files(tmp_path / 'want')


def _read_files(path: pathlib.Path) -> dict[str, bytes]:
  """The content of each file below `path`."""
  return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob('*') if p.is_file()}


def test_a_shard_of_before_there_was_an_index_is_written_again(tmp_path):
  failing = tmp_path / 'failing'
  rlds.write(tmp_path / 'want', _dataset(failing))
  failing.write_text('9')
  with pytest.raises(ValueError, match='episode 9 of train'):
    rlds.write(tmp_path / 'made', _dataset(failing))
  shutil.rmtree(tmp_path / '.made.partial/wam_frames')
  failing.write_text('')
  rlds.write(tmp_path / 'made', _dataset(failing))
  assert _read_files(tmp_path / 'made') == _read_files(tmp_path / 'want')


def test_a_failure_with_nothing_finished_leaves_nothing(tmp_path):
  failing = tmp_path / 'failing'
  failing.write_text('0')
  with pytest.raises(ValueError, match='is broken'):
    rlds.write(tmp_path / 'a/made', _dataset(failing))
  assert not list((tmp_path / 'a').iterdir())


def _write_and_tell(path, results):
  results.put(rlds.write(path, _dataset(path.parent / 'failing')))


def test_two_processes_make_one_dataset(tmp_path):
  context = multiprocessing.get_context('spawn')
  results = context.Queue()
  # Both find nothing there; one makes it, and the other waits for that.
  processes = [
    context.Process(target=_write_and_tell, args=(tmp_path / 'made', results)) for _ in range(2)
  ]
  for process in processes:
    process.start()
  assert sorted(results.get(timeout=60) for _ in processes) == [False, True]
  for process in processes:
    process.join()
  assert [p.name for p in tmp_path.iterdir()] == ['made']
  assert json.loads((tmp_path / 'made/build.json').read_text()) == {'seed': 0}


def test_an_object_store_is_no_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='--output=gs://bucket/x is an object store. Make the'):
    rlds.write('gs://bucket/x', _dataset(tmp_path / 'failing'))
  assert not list(tmp_path.iterdir())
