"""Weights of a PyTorch `.pth` file, one at a time, without PyTorch.

`torch.save` writes a zip archive whose members are stored uncompressed: `NAME/data.pkl`, a pickle
of the state dict in which each tensor is a call `_rebuild_tensor_v2(storage, offset, size, stride,
...)`, and `NAME/data/KEY`, the bytes of each storage
(pytorch.org/docs/stable/notes/serialization.html). Only those calls are understood: a file that
wants to run anything else is refused.
"""

from __future__ import annotations

import collections
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from wam_jax import pointers
from wam_jax.interop import lazy

_DTYPES = {
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(bool),
}
# What a damaged archive, pickle or header raises.
_DAMAGE = (
  zipfile.BadZipFile,
  KeyError,
  pickle.UnpicklingError,
  EOFError,
  ValueError,
  struct.error,
)
_LOCAL_HEADER = 30  # Bytes of a zip member's own header before its name.
_LENGTHS = 26  # Where in that header the lengths of its name and of its extra field are.


class _Strided(NamedTuple):
  """A tensor whose elements do not lie one after the other.

  Attributes:
    storage: all that the tensor is a view of.
    offset: the place of its first element there, in elements.
    shape: its sizes.
    strides: the step of each axis, in elements.
  """

  storage: lazy.Stored
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def dtype(self) -> np.dtype:
    return self.storage.dtype

  def read(self) -> np.ndarray:
    elements = self.storage.read()[self.offset :]
    steps = [stride * self.dtype.itemsize for stride in self.strides]
    view = np.lib.stride_tricks.as_strided(elements, self.shape, steps, writeable=False)
    return np.ascontiguousarray(view)


def open_file(path: epath.Path) -> dict[str, lazy.Weight]:
  """Every tensor of the state dict in a `.pth` file, by name; reads the list of tensors only.

  Raises:
    ValueError: no such file, or it is cut, in the format of PyTorch before 1.6, or holds something
      else.
  """
  if not path.exists():
    raise ValueError(f'{path} does not exist')
  pointers.check(path)
  try:
    with path.open('rb') as f, zipfile.ZipFile(f) as archive:
      # The archive is one folder, named as the file was when it was saved.
      members = {name.split('/', 1)[-1]: archive.getinfo(name) for name in archive.namelist()}
      if members.get('byteorder') and archive.read(members['byteorder']) != b'little':
        raise ValueError('it was written on a big-endian machine')
      with archive.open(members['data.pkl']) as pickled:
        content = _Unpickler(pickled).load()
      starts = {}
      for name, info in members.items():
        if name.startswith('data/'):
          starts[name] = _find_start(f, info)
  except _DAMAGE as e:
    raise ValueError(
      f'{path} cannot be read as a PyTorch file of tensors: {e}. Copy or download it again; a file '
      'from PyTorch before 1.6 must be saved anew by torch.save.'
    ) from e

  # A whole model would need its classes; weights are all that is taken from a file.
  if not isinstance(content, Mapping) or not all(isinstance(v, _Tensor) for v in content.values()):
    raise ValueError(
      f'{path} holds {type(content).__name__} of other things than tensors; expected a state dict.'
    )
  return {name: tensor.locate(path, starts) for name, tensor in content.items()}


def _find_start(file: Any, info: zipfile.ZipInfo) -> int:
  """Offset of a stored member's bytes: its own header may be longer than the archive's directory
  says.
  """
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'member {info.filename} is compressed')
  file.seek(info.header_offset)
  header = file.read(_LOCAL_HEADER)
  name, extra = struct.unpack('<HH', header[_LENGTHS:])
  return info.header_offset + _LOCAL_HEADER + name + extra


class _Storage(NamedTuple):
  """What the pickle says of a storage: its member `data/KEY` and how many numbers of what type."""

  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  """What the pickle says of a tensor: a view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def locate(self, path: epath.Path, starts: Mapping[str, int]) -> lazy.Weight:
    """The tensor in the file; `starts` are the offsets of the archive's members."""
    dtype = self.storage.dtype
    start = starts[f'data/{self.storage.key}']
    if self._is_dense():
      return lazy.Stored(path, start + self.offset * dtype.itemsize, self.shape, dtype)
    # A transposed or cut tensor shares a storage that is read whole.
    storage = lazy.Stored(path, start, (self.storage.size,), dtype)
    return _Strided(storage, self.offset, self.shape, self.strides)

  def _is_dense(self) -> bool:
    """Whether its elements lie one after the other; axes of size 1 may have any stride."""
    step = 1
    for size, stride in zip(reversed(self.shape), reversed(self.strides)):
      if stride != step and size != 1:
        return False
      step *= size
    return True


def _rebuild_tensor(storage, offset, size, stride, *_) -> _Tensor:
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor, *_) -> _Tensor:
  return tensor


# Everything that a state dict needs to be built.
_CALLED = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
  """Builds `_Tensor`s; every other class or function is refused."""

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, size = pid
    if kind != 'storage':
      raise pickle.UnpicklingError(f'unknown reference {kind!r}')
    return _Storage(key, dtype, size)

  def find_class(self, module: str, name: str) -> Any:
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    if (module, name) not in _CALLED:
      raise pickle.UnpicklingError(f'it needs {module}.{name}, which is no tensor')
    return _CALLED[module, name]
