"""Safetensors files, against the library of that name, and what is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy as library
from etils import epath

from tests.interop import tiny
from wam_jax.interop import lazy
from wam_jax.interop.files import safetensors

RNG = np.random.default_rng(0)
# Every form that checkpoints hold: bfloat16, no dimension, no element, integers, more than a block.
WEIGHTS = {
  'a': RNG.standard_normal((3, 4)).astype(np.float32),
  'b': np.arange(6).astype(tiny.BF16).reshape(1, 2, 3),
  'scalar': np.array(2.5, np.float32),
  'none': np.zeros((0, 3), np.float32),
  'ids': np.arange(5),
  'wide': RNG.standard_normal((300, 600)).astype(np.float16),
}


def test_the_library_writes_what_we_read(tmp_path):
  library.save_file(WEIGHTS, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
  got = safetensors.open_weights(epath.Path(tmp_path), 'model')
  assert set(got) == set(WEIGHTS)
  for name, w in WEIGHTS.items():
    assert (got[name].shape, got[name].dtype) == (w.shape, w.dtype)
    np.testing.assert_array_equal(got[name].read(), w)


@pytest.mark.parametrize(('shard_bytes', 'files'), [(10**9, 1), (200, 2)])
def test_the_library_reads_what_we_write_in_any_order(tmp_path, shard_bytes, files):
  shapes = {name: lazy.Shape(w.shape, w.dtype) for name, w in WEIGHTS.items()}
  with safetensors.Writer(tmp_path, 'model', shapes, shard_bytes) as writer:
    for name in reversed(WEIGHTS):
      # In Fortran's order, as a transposed weight comes out of a table.
      writer.write(name, np.copy(WEIGHTS[name], order='F'))
  got = tiny.load(tmp_path)
  assert len(list(tmp_path.glob('*.safetensors'))) == files
  assert (tmp_path / 'model.safetensors.index.json').exists() == (files > 1)
  assert got.keys() == WEIGHTS.keys()
  for name, w in WEIGHTS.items():
    assert got[name].dtype == w.dtype
    np.testing.assert_array_equal(got[name], w)
  assert safetensors.open_weights(epath.Path(tmp_path), 'model').keys() == WEIGHTS.keys()


def test_writer_takes_each_announced_weight_once(tmp_path):
  shape = lazy.Shape((2,), np.dtype(np.float32))
  with (
    pytest.raises(ValueError, match='1 arrays were never written, among them b'),
    safetensors.Writer(tmp_path / '1', 'model', {'a': shape, 'b': shape}, 10**9) as writer,
  ):
    writer.write('a', np.zeros(2, np.float32))
  with safetensors.Writer(tmp_path / '2', 'model', {'a': shape}, 10**9) as writer:
    with pytest.raises(ValueError, match='a is float32 .3,., announced as float32 .2,.'):
      writer.write('a', np.zeros(3, np.float32))
    with pytest.raises(ValueError, match='was not announced, or is written twice'):
      writer.write('a', np.zeros(2, np.float32))


def test_header_of_the_format():
  """The file byte by byte: length, JSON padded to 8 bytes, arrays."""
  header, offsets = safetensors._make_header({'x': lazy.Shape((2,), np.dtype(np.float32))})
  assert struct.unpack('<Q', header[:8]) == (len(header) - 8,)
  assert len(header) % 8 == 0
  assert json.loads(header[8:]) == {
    '__metadata__': {'format': 'pt'},
    'x': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]},
  }
  assert offsets == {'x': 0}


def write_shards(path):
  """A, B and C in three files; their paths."""
  weights = {'a': WEIGHTS['a'], 'b': WEIGHTS['b'], 'c': WEIGHTS['wide']}
  tiny.save(path, weights, 'model', shards=3)
  return sorted(path.glob('*.safetensors'))


def edit_index(path, change):
  index = path / 'model.safetensors.index.json'
  content = json.loads(index.read_text())
  change(content['weight_map'])
  index.write_text(json.dumps(content))


def damage_all(path, files):
  # A cut copy, something else in the place of a file, and a file that is not there.
  files[0].write_bytes(files[0].read_bytes()[:-4])
  files[1].write_bytes(b'not a header, but long enough')
  files[2].unlink()


def rename_dtype(path, files):
  content = files[0].read_bytes()
  files[0].write_bytes(content.replace(b'"F32"', b'"F8X"'))


def lengthen(path, files):
  files[0].write_bytes(files[0].read_bytes() + b'more')


def list_a_ghost(path, files):
  edit_index(path, lambda shard_of: shard_of.update(ghost=files[0].name))


def clear_index(path, files):
  edit_index(path, lambda shard_of: shard_of.clear())


def cut_index(path, files):
  (path / 'model.safetensors.index.json').write_text('{')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      damage_all,
      r'1-of-00003.safetensors is cut: \d+ bytes, its header describes \d+\n'
      r'.*2-of-00003.* is cut or is no safetensors file: 29 bytes, .*\n'
      r'.*3-of-00003.safetensors does not exist',
    ),
    (rename_dtype, 'unreadable header: a has dtype F8X; known are F64, F32'),
    (lengthen, 'is too long'),
    (list_a_ghost, 'ghost is not in model-00001-of-00003'),
    (clear_index, 'has no weight_map'),
    (cut_index, 'is not JSON'),
  ],
)
def test_damaged_shards_are_all_named(tmp_path, damage, message):
  damage(tmp_path, write_shards(tmp_path))
  with pytest.raises(ValueError, match=message):
    safetensors.open_weights(epath.Path(tmp_path), 'model')


def write_header(path, entries):
  """Twelve bytes behind a header of (name, first byte, last byte); of bytes."""
  header = {}
  for name, first, last in entries:
    header[name] = {'dtype': 'U8', 'shape': [last - first], 'data_offsets': [first, last]}
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(12))


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ([('a', 0, 4), ('b', 8, 12)], 'b begins at byte .* and leaves a hole after a, which ends'),
    ([('a', 0, 8), ('b', 4, 12)], 'b begins at byte .* and overlaps with a, which ends'),
    ([('b', 4, 12)], 'b begins at byte .* and leaves a hole after the header'),
    ([('a', 0, 12), ('b', 0, 12)], 'b begins at byte .* and overlaps with a'),
  ],
)
def test_holes_and_overlaps_are_refused_as_the_library_does(tmp_path, entries, message):
  path = tmp_path / 'model.safetensors'
  write_header(path, entries)
  with pytest.raises(Exception, match='(?i)invalid|InvalidOffset|incomplete|overlap'):
    library.load_file(path)
  with pytest.raises(ValueError, match=message):
    safetensors.open_file(epath.Path(path))
  # In any order, and with an array of no byte between.
  write_header(path, [('b', 4, 12), ('none', 4, 4), ('a', 0, 4)])
  found = set(safetensors.open_file(epath.Path(path)))
  assert found == set(library.load_file(path)) == {'a', 'b', 'none'}


def test_weight_in_two_shards_is_refused(tmp_path):
  # The first shard also holds what the index places in the second.
  files = write_shards(tmp_path)
  library.save_file({'a': WEIGHTS['a'], 'b': WEIGHTS['b']}, files[0])
  with pytest.raises(ValueError, match='b is in model-00001-of-00003.safetensors, against'):
    safetensors.open_weights(epath.Path(tmp_path), 'model')


def test_a_directory_without_weights_is_told(tmp_path):
  with pytest.raises(
    ValueError, match='has neither model.safetensors nor model.safetensors.index.json'
  ):
    safetensors.open_weights(epath.Path(tmp_path), 'model')
