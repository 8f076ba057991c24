"""TFRecord in, ArrayRecord out, byte for byte; broken shards are named and leave nothing behind."""
from __future__ import annotations

import pathlib
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest

from data import convert
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import sources

BRIDGE = pathlib.Path(__file__).parents[3] / 'shared/data/bridge_rlds_sample/bridge_dataset/1.0.0'


@pytest.fixture
def tfrecord_path(clock_path, tmp_path) -> pathlib.Path:
  """The clock dataset as TFRecord."""
  return synthetic.copy_as_tfrecord(clock_path, tmp_path / 'tfrecord', synthetic.CLOCK)


def test_framing_by_hand(tmp_path):
  # Length 3, its masked checksum, 'abc', its masked checksum; as TensorFlow's writer gives them.
  shard = tmp_path / 'shard'
  shard.write_bytes(synthetic.frame(b'abc') + synthetic.frame(b''))
  assert list(convert.read_tfrecord(shard)) == [b'abc', b'']
  assert google_crc32c.value(b'123456789') == 0xE3069283  # CRC-32C's check value.


@pytest.mark.parametrize('workers', [1, 2])
def test_converted_episodes_equal_the_original(clock_path, tfrecord_path, tmp_path, workers):
  output = convert.convert(tfrecord_path, tmp_path / 'out/1.0.0', workers)
  for split in ('train', 'val'):
    want = sources.Episodes(clock_path, split, synthetic.CLOCK)
    got = sources.Episodes(output, split, synthetic.CLOCK)
    assert [got._records[i] for i in range(len(got))] == [want._records[i] for i in range(len(want))]
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['1.0.0']


@pytest.mark.parametrize('damage, message', [
    (lambda b: b[:-5], 'record 7 of .*tfrecord-00000-of-00001 is truncated'),
    (lambda b: b + b'12345', 'record 8 of .* is truncated: 5 of 12 bytes'),
    (lambda b: b[:100] + bytes([b[100] ^ 255]) + b[101:], 'record 0 of .* is corrupt: its checksum does not match'),
    (lambda b: b'\x01' + b[1:], 'The length of record 0 of .* is corrupt'),
    (lambda b: b + synthetic.frame(b'more'), 'holds 9 records; dataset_info.json says 8'),
    (lambda b: b'', 'holds 0 records; dataset_info.json says 8'),
])
def test_broken_shards_leave_nothing_behind(tfrecord_path, tmp_path, damage, message):
  shard = next(tfrecord_path.glob('*train.*record-*'))
  shard.write_bytes(damage(shard.read_bytes()))
  with pytest.raises(ValueError, match=message):
    convert.convert(tfrecord_path, tmp_path / 'out/1.0.0')
  assert not list((tmp_path / 'out').iterdir())


def test_refusals(clock_path, tfrecord_path, tmp_path):
  with pytest.raises(ValueError, match='exists already; remove it'):
    convert.convert(tfrecord_path, tmp_path)
  with pytest.raises(ValueError, match='is in array_record format; only tfrecord needs converting'):
    convert.convert(clock_path, tmp_path / 'out')
  with pytest.raises(ValueError, match='has no dataset_info.json'):
    convert.convert(tmp_path, tmp_path / 'out')
  next(tfrecord_path.glob('*val.*record-*')).unlink()
  with pytest.raises(ValueError, match='1 shards of .* are missing: .*val'):
    convert.convert(tfrecord_path, tmp_path / 'out')


def run(module, *args):
  return subprocess.run([sys.executable, '-m', module, *map(str, args)], capture_output=True, text=True,
                        cwd=pathlib.Path(__file__).parents[2])


def test_commands(clock_path, tfrecord_path, tmp_path):
  done = run('data.convert', f'--source={tfrecord_path}', f'--output={tmp_path / "out"}')
  assert done.returncode == 0 and 'train 8 episodes, val 2 episodes' in done.stdout
  again = run('data.convert', f'--source={tfrecord_path}', f'--output={tmp_path / "out"}')
  assert again.returncode == 1 and 'error: ' in again.stderr and 'Traceback' not in again.stderr
  wrong = run('data.statistics', f'--dataset={tmp_path / "out"}', '--embodiment=bridge_widowx')
  assert wrong.returncode == 1 and "does not fit embodiment 'bridge_widowx'" in wrong.stderr


@pytest.mark.skipif(not BRIDGE.exists(), reason=f'no BridgeData sample at {BRIDGE}')
def test_real_bridge_episodes_become_batches(tmp_path):
  output = str(convert.convert(BRIDGE, tmp_path / 'bridge/1.0.0'))
  done = run('data.statistics', f'--dataset={output}', '--embodiment=bridge_widowx')
  assert done.returncode == 0 and '25 episodes, 250 steps' in done.stdout
  config = cfg.TrainConfig(
      batch_size=4, model=cfg.ModelConfig(action_dim=7, proprio_dim=7, actions_per_chunk=4),
      data=cfg.DataConfig(mixture={'bridge': cfg.DatasetConfig(path=output, embodiment='bridge_widowx')},
                          embodiments=('bridge_widowx',)))
  iterator = pipeline.make_train_iterator(config)
  batch = next(iterator)
  iterator.close()
  assert batch.frames_BRIJ3.shape == (4, 5, 64, 64, 3) and batch.frames_BRIJ3.std() > 20
  assert np.abs(batch.action_BAU).max() <= 1 and batch.action_mask_BAU[:, :4].all()
  episodes = sources.Episodes(output, 'train', embodiments.get('bridge_widowx'))
  assert len(episodes) == 25 and episodes[0].texts(0) != ('',)
