"""TFRecord in, ArrayRecord with a frame index out, byte for byte; stopped, killed and broken
conversions.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil

import fsspec
import google_crc32c
import numpy as np
import pytest
from etils import epath
from fsspec.implementations import memory

from data import convert
from tests import programs
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import sources


@pytest.fixture
def tfrecord_path(clock_path, tmp_path) -> pathlib.Path:
  """The clock dataset as TFRecord."""
  return synthetic.copy_as_tfrecord(clock_path, tmp_path / 'tfrecord', synthetic.CLOCK)


def test_framing_by_hand(tmp_path):
  # Length 3, its masked checksum, 'abc', its masked checksum; as TensorFlow's writer gives them.
  shard = tmp_path / 'shard'
  shard.write_bytes(synthetic.frame(b'abc') + synthetic.frame(b''))
  assert list(convert.read_tfrecord(shard)) == [b'abc', b'']
  # CRC-32C's check value, of the catalogue of CRCs.
  assert google_crc32c.value(b'123456789') == 0xE3069283


@pytest.mark.parametrize('workers', [1, 2])
def test_converted_episodes_equal_the_original(clock_path, tfrecord_path, tmp_path, workers):
  output = convert.convert(tfrecord_path, tmp_path / 'out/1.0.0', workers)
  for split in ('train', 'val'):
    assert_same_records(clock_path, output, split)
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['1.0.0']
  assert sorted(p.name for p in output.iterdir()) == sorted(
    [*(p.name for p in pathlib.Path(clock_path).iterdir()), 'wam_frames']
  )
  # The index and a file per shard.
  assert len(list((output / 'wam_frames').iterdir())) == 3


def test_shards_with_names_of_their_own_are_not_copied(clock_path, tfrecord_path, tmp_path):
  file = tfrecord_path / 'dataset_info.json'
  described = json.loads(file.read_text())
  for split in described['splits']:
    split['filepathTemplate'] = '{SPLIT}_part_{SHARD_X_OF_Y}.{FILEFORMAT}'
    (shard,) = tfrecord_path.glob(f'*-{split["name"]}.*')
    shard.rename(tfrecord_path / f'{split["name"]}_part_00000-of-00001.tfrecord')
  file.write_text(json.dumps(described))
  output = convert.convert(tfrecord_path, tmp_path / 'out')
  assert_same_records(clock_path, output, 'train')
  assert not list(output.glob('*part*'))


def assert_same_records(one, other, split):
  want, got = (sources.Episodes(path, split, synthetic.CLOCK) for path in (one, other))
  assert [got._records[i] for i in range(len(got))] == [want._records[i] for i in range(len(want))]


def test_array_record_is_packed_anew(clock_path, tmp_path):
  # TFDS compresses what it writes; an index needs the bytes of an image as they are.
  output = convert.convert(clock_path, tmp_path / 'out')
  assert_same_records(clock_path, output, 'train')
  assert sources.Episodes(output, 'train', synthetic.CLOCK)._index


@pytest.mark.parametrize(
  'damage, message',
  [
    (gzip.compress, 'tfrecord-00000-of-00001 is compressed as a whole .GZIP.'),
    (lambda b: b[:-5], 'record 7 of .*tfrecord-00000-of-00001 is truncated'),
    (lambda b: b + b'12345', 'record 8 of .* is truncated: 5 of 12 bytes'),
    # A byte of a record's content, then one of its length.
    (
      lambda b: b[:100] + bytes([b[100] ^ 255]) + b[101:],
      'record 0 of .* is corrupt: its checksum does not match',
    ),
    (lambda b: b'\x01' + b[1:], 'The length of record 0 of .* is corrupt'),
    # Whole records, but not as many as dataset_info.json says.
    (lambda b: b + synthetic.frame(b'more'), 'holds 9 records; dataset_info.json says 8'),
    (lambda b: b'', 'holds 0 records; dataset_info.json says 8'),
  ],
)
def test_broken_shards_give_no_output(tfrecord_path, tmp_path, damage, message):
  shard = next(tfrecord_path.glob('*train.*record-*'))
  shard.write_bytes(damage(shard.read_bytes()))
  with pytest.raises(ValueError, match=message):
    convert.convert(tfrecord_path, tmp_path / 'out/1.0.0')
  assert [p.name for p in (tmp_path / 'out').iterdir()] == ['.1.0.0.partial']


def test_broken_array_record_is_named(clock_path, tmp_path):
  source = pathlib.Path(shutil.copytree(clock_path, tmp_path / 'copy'))
  shard = next(source.glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes()[:-70000])
  with pytest.raises(ValueError, match=f'record 0 of .*{shard.name} is truncated or corrupt'):
    convert.convert(source, tmp_path / 'out')


def test_a_repaired_source_continues_with_the_broken_shard(
  clock_path, tfrecord_path, tmp_path, capsys
):
  shard = next(tfrecord_path.glob('*val.*record-*'))
  content = shard.read_bytes()
  shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match='record 1 of .*val.* is corrupt'):
    convert.convert(tfrecord_path, tmp_path / 'out')
  # The finished shard is neither written again nor copied: it stays the same file.
  finished = next((tmp_path / '.out.partial').glob('*train.array_record*')).stat()
  shard.write_bytes(content)
  output = convert.convert(tfrecord_path, tmp_path / 'out')
  assert '1 of 2 shards are there already' in capsys.readouterr().err
  now = next(pathlib.Path(output).glob('*train.array_record*')).stat()
  assert (now.st_ino, now.st_mtime_ns) == (finished.st_ino, finished.st_mtime_ns)
  assert_same_records(clock_path, output, 'val')


# Source, output, and the number of the delivery at which the process is killed.
KILLED = """
import os, sys
from data import convert
deliver, calls = convert._deliver, []
def killed(local, target):
  calls.append(target)
  if len(calls) == int(sys.argv[3]):
    os.kill(os.getpid(), 9)
  deliver(local, target)
convert._deliver = killed
convert.convert(sys.argv[1], sys.argv[2])
"""


# Each of two shards is delivered in two files, itself and its episodes without images.
@pytest.mark.parametrize('delivered, finished', [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_a_killed_conversion_continues(
  clock_path, tfrecord_path, tmp_path, monkeypatch, delivered, finished
):
  done = programs.run_code(KILLED, tfrecord_path, tmp_path / 'out', delivered)
  assert done.returncode == -9
  assert not (tmp_path / 'out').exists()
  converted, original = [], convert._convert_shard
  monkeypatch.setattr(convert, '_convert_shard', lambda job: converted.append(job) or original(job))
  output = convert.convert(tfrecord_path, tmp_path / 'out')
  assert len(converted) == 2 - finished
  for split in ('train', 'val'):
    assert_same_records(clock_path, output, split)
  assert not [p for p in pathlib.Path(output).rglob('*') if p.is_dir() and p.name != 'wam_frames']


def test_an_unfinished_conversion_of_something_else_is_refused(clock_path, tfrecord_path, tmp_path):
  shard = next(tfrecord_path.glob('*val.*record-*'))
  content = shard.read_bytes()
  shard.write_bytes(content[:-5])
  with pytest.raises(ValueError, match='truncated'):
    convert.convert(tfrecord_path, tmp_path / 'out')
  with pytest.raises(
    ValueError, match='.out.partial holds an unfinished conversion of .*tfrecord, which is not, or'
  ):
    convert.convert(clock_path, tmp_path / 'out')


class Bucket(memory.MemoryFileSystem):
  """An object store in memory, in the place of gs://."""

  protocol, store, pseudo_dirs = ('gs', 'gcs'), {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs:/'))


def use_bucket(monkeypatch):
  monkeypatch.setattr(Bucket, 'store', {})
  monkeypatch.setattr(Bucket, 'pseudo_dirs', [''])
  fsspec.register_implementation('gcs', Bucket, clobber=True)


def test_object_stores_are_read_and_written(clock_path, tfrecord_path, monkeypatch):
  use_bucket(monkeypatch)
  for file in tfrecord_path.iterdir():
    epath.Path('gs://bucket/source').mkdir(parents=True, exist_ok=True)
    epath.Path(file).copy(epath.Path('gs://bucket/source') / file.name)
  output = convert.convert('gs://bucket/source', 'gs://bucket/out/1.0.0')
  assert sorted(p.name for p in epath.Path('gs://bucket/out').iterdir()) == ['1.0.0']
  want, got = (sources.Episodes(path, 'train', synthetic.CLOCK) for path in (clock_path, output))
  assert len(got) == 8
  for number in (0, 5):
    np.testing.assert_array_equal(got[number].decode('wrist', 3), want[number].decode('wrist', 3))
    np.testing.assert_array_equal(got[number].state_TX, want[number].state_TX)
  with pytest.raises(ValueError, match='gs://bucket/out/1.0.0 exists already'):
    convert.convert('gs://bucket/source', 'gs://bucket/out/1.0.0')


def test_what_a_store_garbles_is_found(tfrecord_path, monkeypatch):
  use_bucket(monkeypatch)
  epath.Path('gs://bucket').mkdir(parents=True, exist_ok=True)
  # Of the file that is sent and of what arrived.
  crcs = iter((1, 2))
  monkeypatch.setattr(convert, '_file_crc', lambda path: next(crcs))
  with pytest.raises(ValueError, match='gs://bucket/out/.* is not what was sent there; run again'):
    convert.convert(tfrecord_path, 'gs://bucket/out')
  assert not epath.Path('gs://bucket/out/dataset_info.json').exists()


def test_what_cannot_be_converted_is_refused(clock_path, tfrecord_path, tmp_path):
  with pytest.raises(ValueError, match='exists already; remove it'):
    convert.convert(tfrecord_path, tmp_path)
  with pytest.raises(ValueError, match='has no dataset_info.json'):
    convert.convert(tmp_path, tmp_path / 'out')
  next(tfrecord_path.glob('*val.*record-*')).unlink()
  with pytest.raises(ValueError, match='1 shards of .* are missing: .*val'):
    convert.convert(tfrecord_path, tmp_path / 'out')
  description = tfrecord_path / 'dataset_info.json'
  description.write_text(description.read_text().replace('"tfrecord"', '"riegeli"'))
  with pytest.raises(
    ValueError, match=r"is in riegeli format; expected one of \['array_record', 'tfrecord'\]"
  ):
    convert.convert(tfrecord_path, tmp_path / 'out')


def test_commands_end_mistakes_as_messages(clock_path, tfrecord_path, tmp_path):
  done = programs.run('data.convert', f'--source={tfrecord_path}', f'--output={tmp_path / "out"}')
  assert done.returncode == 0
  assert 'train 8 episodes, val 2 episodes' in done.stdout
  again = programs.run('data.convert', f'--source={tfrecord_path}', f'--output={tmp_path / "out"}')
  assert again.returncode == 2
  assert 'error: ' in again.stderr
  assert 'Traceback' not in again.stderr
  wrong = programs.run(
    'data.statistics', f'--dataset={tmp_path / "out"}', '--embodiment=bridge_widowx'
  )
  assert wrong.returncode == 2
  assert "does not fit embodiment 'bridge_widowx'" in wrong.stderr


def test_real_bridge_episodes_become_batches(tmp_path, sample_bridge):
  output = str(convert.convert(sample_bridge, tmp_path / 'bridge/1.0.0'))
  done = programs.run('data.statistics', f'--dataset={output}', '--embodiment=bridge_widowx')
  assert done.returncode == 0
  assert '25 episodes, 250 steps' in done.stdout
  config = cfg.TrainConfig(
    batch_size=4,
    model=cfg.ModelConfig(action_dim=7, proprio_dim=7, actions_per_chunk=4),
    data=cfg.DataConfig(
      mixture={'bridge': cfg.DatasetConfig(path=output, embodiment='bridge_widowx')},
      embodiments=('bridge_widowx',),
    ),
  )
  iterator = pipeline.Data.open(config).train_batches()
  batch = next(iterator)
  iterator.close()
  assert batch.frames_BRIJ3.shape == (4, 5, 64, 64, 3)
  assert batch.frames_BRIJ3.std() > 20
  assert np.abs(batch.action_BAU).max() <= 1
  assert batch.action_mask_BAU[:, :4].all()
  episodes = sources.Episodes(output, 'train', embodiments.get('bridge_widowx'))
  assert len(episodes) == 25
  assert episodes[0].texts(0) != ('',)


def publish(tmp_path) -> tuple[str, pathlib.Path]:
  """Four shards of two episodes, as ArrayRecord and as TFRecord."""
  path = synthetic.make_sharded(tmp_path / 'made', 4)
  return path, synthetic.copy_as_tfrecord(path, tmp_path / 'tfrecord', synthetic.CLOCK)


def list_numbers(path) -> list[float]:
  """Which episodes a split holds."""
  episodes = sources.Episodes(path, 'train', synthetic.CLOCK)
  return [episodes[i].state_TX[0, 1] / 100 for i in range(len(episodes))]


def test_the_part_of_a_download_that_is_there(tmp_path):
  _, source = publish(tmp_path)
  for number in (1, 3):
    next(source.glob(f'*train*-{number:05}-of-*')).unlink()
  done = programs.run(
    'data.convert', f'--source={source}', f'--output={tmp_path / "out"}', '--split=train'
  )
  assert done.returncode == 2
  assert '2 shards of' in done.stderr
  assert 'Download them; or convert the 2 that are there: --shards=present' in done.stderr
  done = programs.run(
    'data.convert', f'--source={source}', f'--output={tmp_path / "out"}', '--shards=present'
  )
  assert done.returncode == 0, done.stderr
  assert 'left out: train, 2 of 4 shards (1, 3), 4 episodes' in done.stdout
  assert 'train 4 episodes' in done.stdout
  assert list_numbers(tmp_path / 'out') == [0, 1, 4, 5]
  assert sources.Dataset(tmp_path / 'out').splits == ['train', 'val']


def test_some_shards_of_a_split_and_what_was_excluded(tmp_path):
  path, _ = publish(tmp_path)
  file = pathlib.Path(path) / 'exclusions.json'
  said = [{'episode': 1}, {'episode': 5, 'why': 'a'}, {'episode': 6, 'steps': [[2, 4]]}]
  file.write_text(json.dumps({'train': said, 'val': [{'episode': 0}]}))
  output = convert.convert(path, tmp_path / 'out', splits='train', shards='2:')
  assert sources.Dataset(output).splits == ['train']
  assert list_numbers(output) == [4, 6, 7]
  kept = json.loads((output / 'exclusions.json').read_text())
  assert kept == {'train': [{'episode': 1, 'why': 'a'}, {'episode': 2, 'steps': [[2, 4]]}]}
  # All of it has all that was said.
  whole = convert.convert(path, tmp_path / 'whole')
  assert json.loads((whole / 'exclusions.json').read_text()) == json.loads(file.read_text())


def test_parts_that_there_are_not(tmp_path):
  path, source = publish(tmp_path)
  for options, message in (
    ({'splits': 'test'}, r"has no split \['test'\]; it has \['train', 'val'\]"),
    ({'shards': '0'}, '--shards=0 needs --split'),
    ({'splits': 'train', 'shards': '4'}, r'--shards=4 means \[4\]; there are 0 to 3'),
  ):
    with pytest.raises(ValueError, match=message):
      convert.convert(path, tmp_path / 'out', **options)
  for shard in source.glob('*.tfrecord*'):
    shard.unlink()
  with pytest.raises(ValueError, match='None of the shards of .* is there'):
    convert.convert(source, tmp_path / 'out', shards='present')
