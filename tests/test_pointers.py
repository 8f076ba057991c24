"""A Git LFS pointer is called one by every reader, and never damaged."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from data import convert
from data import video
from data.human_video import builder
from data.lerobot import source as source_lib
from tests.builders import lerobot_dirs as dirs
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import pointers
from wam_jax.data import embodiments
from wam_jax.data import prompts
from wam_jax.data import sources
from wam_jax.data.features import lookup
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import pth
from wam_jax.interop.files import safetensors

TEXT = (
  'version https://git-lfs.github.com/spec/v1\n'
  'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
  'size 146946961\n'
)
MESSAGE = f'is a Git LFS pointer: {len(TEXT)} bytes of text that stand for 146,946,961 bytes'


@pytest.fixture(scope='module')
def clock_path(tmp_path_factory):
  return synthetic.make_dataset(tmp_path_factory.mktemp('clock'), [12] * 3)


def _open_tokenizer(path):
  prompts.make_tokenizer(cfg.TextConfig(kind='umt5', tokenizer=str(path)))


@pytest.mark.parametrize(
  'name, read',
  [
    ('model-00001-of-00002.safetensors', safetensors.open_file),
    ('Wan2.1_VAE.pth', pth.open_file),
    ('config.json', jsonfile.read),
    ('tokenizer.json', _open_tokenizer),
    ('spiece.model', _open_tokenizer),
    (experiment.CONF, lambda path: experiment.read_conf(path.parent.parent)),
    ('embodiment.json', lambda path: embodiments.resolve(str(path))),
    ('a.mp4', video.probe),
    ('captions.jsonl', lambda path: builder._read_captions(path.parent, [])),
  ],
)
def test_a_pointer_is_called_one(tmp_path, name, read):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(TEXT)
  with pytest.raises(ValueError, match=f'{name} {MESSAGE}'):
    read(path)


@pytest.mark.parametrize('name', ['*.array_record*', 'dataset_info.json', 'wam_frames/index.json'])
def test_an_rlds_dataset(tmp_path, clock_path, name):
  copy = pathlib.Path(shutil.copytree(clock_path, tmp_path / 'copy'))
  (copy / name).parent.mkdir(exist_ok=True)
  file = next(copy.glob(name), copy / name)
  file.write_text(TEXT)
  with pytest.raises(ValueError, match=MESSAGE):
    sources.Episodes(copy, 'train', synthetic.CLOCK)


def test_stored_features_that_are_pointers_are_told(tmp_path):
  (tmp_path / 'windows-00000').write_text(TEXT)
  with pytest.raises(ValueError, match=f'windows-00000 {MESSAGE}'):
    lookup._check_sizes(epath.Path(tmp_path), {'windows-00000': 10_000})


def test_shards_to_be_converted(tmp_path, clock_path):
  copy = synthetic.copy_as_tfrecord(clock_path, tmp_path / 'tf', synthetic.CLOCK)
  shard = next(copy.glob('*val*tfrecord*'))
  shard.write_text(TEXT)
  with pytest.raises(ValueError, match=f'{shard.name} {MESSAGE}'):
    convert.convert(str(copy), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['meta/info.json', 'meta/episodes.jsonl', 'meta/tasks.jsonl'])
def test_metadata_of_lerobot_that_are_pointers_are_told(tmp_path, name):
  source = dirs.write_v2(tmp_path / 'robot', [3])
  (source / name).write_text(TEXT)
  with pytest.raises(ValueError, match=f'{name} {MESSAGE}'):
    source_lib.load(source)


def test_other_files_are_none(tmp_path):
  (tmp_path / 'a').write_bytes(np.arange(1000).tobytes())
  (tmp_path / 'b').write_text('version https://git-lfs.github.com')
  for name in ('a', 'b', 'not there', '.'):
    pointers.check(tmp_path / name)
