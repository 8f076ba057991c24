"""PyTorch files without PyTorch: what `torch.save` wrote is read, anything else is refused."""

from __future__ import annotations

import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from etils import epath

from tests.interop import tiny
from wam_jax.interop.files import pth

WEIGHTS = {
  'a': np.arange(12, dtype=np.float32).reshape(3, 4),
  'b': np.arange(6).astype(tiny.BF16).reshape(1, 2, 3),
  'scalar': np.array(2.5, np.float32),
}


def test_pytorch_wrote_what_we_read():
  """The file is of torch 2.13: tensors dense, in bfloat16, transposed, sliced, scalar, shared,
  empty, a parameter.
  """
  big = np.arange(24, dtype=np.float32).reshape(4, 6)
  # Views of one storage are written by PyTorch as offset, size and stride.
  want = {
    'dense': np.arange(6).reshape(2, 3),
    'half': np.arange(4),
    'transposed': np.arange(6).reshape(2, 3).T,
    'rows': big[1:3],
    'columns': big[:, 2:4],
    'scalar': np.float32(1.5),
    'parameter': np.arange(3),
    'shared': big,
    'ints': np.arange(3),
    'empty': np.zeros((0, 3)),
  }
  got = pth.open_file(epath.Path(pathlib.Path(__file__).with_name('state_dict.pth')))
  assert list(got) == list(want)
  for name, w in want.items():
    assert got[name].shape == w.shape
    np.testing.assert_array_equal(got[name].read().astype(np.float64), w)
  assert got['half'].dtype.name == 'bfloat16'
  assert got['ints'].dtype.name == 'int64'
  assert got['dense'].dtype.name == 'float32'


def test_test_helper_writes_pytorch_files(tmp_path):
  tiny.save_pth(tmp_path / 'x.pth', WEIGHTS)
  got = pth.open_file(epath.Path(tmp_path / 'x.pth'))
  assert got.keys() == WEIGHTS.keys()
  for name, w in got.items():
    np.testing.assert_array_equal(w.read(), WEIGHTS[name])


def write_archive(path, **members):
  """A zip archive as PyTorch lays it out; '_' in a name stands for '.'."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(f'archive/{name.replace("_", ".")}', content)


def cut(path):
  path.write_bytes(path.read_bytes()[:-30])


# A pickle may run any function on loading; only what builds tensors is let through.
def pickle_a_path(path):
  write_archive(path, data_pkl=pickle.dumps(pathlib.PurePosixPath('/')))


def pickle_a_number(path):
  write_archive(path, data_pkl=pickle.dumps({'a': 1}))


def say_big_endian(path):
  write_archive(path, data_pkl=b'\x80\x02}.', byteorder='big')


def leave_out_the_pickle(path):
  write_archive(path, other='x')


def remove(path):
  path.unlink()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (cut, 'not a zip file'),
    (pickle_a_path, 'it needs pathlib.*PurePosixPath, which is no tensor'),
    (pickle_a_number, 'holds dict of other things than tensors'),
    (say_big_endian, 'big-endian'),
    (leave_out_the_pickle, "cannot be read as a PyTorch file of tensors: 'data.pkl'"),
    (remove, 'does not exist'),
  ],
)
def test_other_pth_files_are_refused(tmp_path, damage, message):
  path = tmp_path / 'x.pth'
  tiny.save_pth(path, {'a': WEIGHTS['a']})
  damage(path)
  with pytest.raises(ValueError, match=message):
    pth.open_file(epath.Path(path))
