"""A disk that fills up while a file or an item is written."""

from __future__ import annotations

import contextlib
import resource

import numpy as np
import pytest

from wam_jax import storage
from wam_jax.interop import lazy
from wam_jax.interop.files import orbax
from wam_jax.interop.files import safetensors


@contextlib.contextmanager
def limit_files(size):
  """A file-size limit stands for the full disk; both come to the writers as an OSError."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Python ignores SIGXFSZ: write() fails.
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_item(place, shapes, array):
  writer = orbax.ItemWriter(place / 'item', shapes, frozenset())
  writer.write('w', array)
  writer.finish()


def write_file(place, shapes, array):
  with safetensors.Writer(place, 'model', shapes, 10**9) as writer:
    writer.write('w', array)


@pytest.mark.parametrize('write', [write_item, write_file])
def test_disk_that_fills_up(tmp_path, write):
  # 640 kB, which does not compress below the limit of 100 kB.
  big = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32)
  shapes = {'w': lazy.Shape(big.shape, big.dtype)}
  message = 'could not be written .*File too large.*removed again; make room'
  with (
    limit_files(100_000),
    pytest.raises(ValueError, match=message),
    storage.whole_directory(tmp_path / 'result', 10) as partial,
  ):
    write(partial, shapes, big)
  assert not list(tmp_path.iterdir())
