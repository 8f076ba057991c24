"""Checkpoint items, against Orbax in both directions."""

from __future__ import annotations

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.interop import tiny
from wam_jax.interop import lazy
from wam_jax.interop.files import orbax


def write_item(place):
  """An item with an array of three layers, written out of order; what it holds, by path."""
  rng = np.random.default_rng(1)
  arrays = {
    'blocks/w': rng.standard_normal((3, 40, 50)).astype(tiny.BF16),
    'bias': np.arange(7, dtype=np.float32),
    'scale/deep': np.array(2.0, np.float32),
    'zeros': np.zeros((2, 2), np.float32),
  }
  shapes = {path: lazy.Shape(x.shape, x.dtype) for path, x in arrays.items()}
  # Layers come in the order in which they lie in the source, and transposed.
  writer = orbax.ItemWriter(place, shapes, frozenset({'blocks/w'}))
  for layer in (2, 0, 1):
    writer.write('blocks/w', np.asfortranarray(arrays['blocks/w'][layer]), layer)
  for path in ('bias', 'scale/deep', 'zeros'):
    writer.write(path, arrays[path])
  writer.finish()
  return arrays


# As shipped, and so small that the array of layers is many chunks and several slabs.
@pytest.mark.parametrize('chunk_bytes', [2**25, 500])
def test_item_comes_back_whole_and_by_layers(tmp_path, monkeypatch, chunk_bytes):
  monkeypatch.setattr(orbax, '_CHUNK_BYTES', chunk_bytes)
  monkeypatch.setattr(orbax, '_LEAST_BYTES', chunk_bytes)
  monkeypatch.setattr(orbax, '_SLAB_BYTES', 4 * chunk_bytes)
  arrays = write_item(tmp_path / 'item')
  got = orbax.open_item(tmp_path / 'item')
  assert got.keys() == arrays.keys()
  for path, x in arrays.items():
    assert (got[path].shape, got[path].dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(got[path].read(), x)
  assert got['blocks/w'].layers == 1
  np.testing.assert_array_equal(got['blocks/w'].read(slice(1, 3)), arrays['blocks/w'][1:])


def test_orbax_reads_our_items_to_numpy_and_onto_a_mesh(tmp_path):
  arrays = write_item(tmp_path / 'item')
  tree = {
    'blocks': {'w': arrays['blocks/w']},
    'bias': arrays['bias'],
    'scale': {'deep': arrays['scale/deep']},
    'zeros': arrays['zeros'],
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    stored = reader.metadata(tmp_path / 'item').item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    restored = reader.restore(tmp_path / 'item', args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  assert jax.tree.structure(restored) == jax.tree.structure(tree)
  jax.tree.map(np.testing.assert_array_equal, restored, tree)

  # As training restores it: float32, and sharded.
  mesh = jax.make_mesh((8,), ('x',))

  def describe(x):
    """Float32, and the array of layers spread over the mesh."""
    axes = (None, 'x') if x.ndim == 3 else ()
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.ShapeDtypeStruct(
      x.shape, np.float32, sharding=jax.sharding.NamedSharding(mesh, spec)
    )

  with ocp.StandardCheckpointer() as reader:
    on_mesh = reader.restore(tmp_path / 'item', jax.tree.map(describe, tree))
  want = jax.tree.map(lambda x: x.astype(np.float32), tree)
  jax.tree.map(np.testing.assert_array_equal, on_mesh, want)
  assert on_mesh['blocks']['w'].sharding.spec == jax.sharding.PartitionSpec(None, 'x')


def test_we_read_items_of_orbax(tmp_path):
  tree = {'a': {'w': np.arange(12, dtype=np.float32).reshape(3, 4)}, 'none': None}
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / 'item', jax.tree.map(jax.numpy.asarray, tree))
  got = orbax.open_item(tmp_path / 'item')
  assert list(got) == ['a/w']
  assert got['a/w'].layers == 3
  np.testing.assert_array_equal(got['a/w'].read(), tree['a']['w'])


def test_damaged_item_is_named(tmp_path):
  write_item(tmp_path / 'item')
  # The directory of the data files, of which a copy that stopped left empty ones.
  for path in (tmp_path / 'item').glob('d/*'):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='of .*item cannot be opened'):
    orbax.open_item(tmp_path / 'item')
  with pytest.raises(ValueError, match='_METADATA does not exist'):
    orbax.open_item(tmp_path)


def test_arrays_are_cut_as_hosts_divide_them(tmp_path):
  """Rows of the model's width for weights, the longest axis for what has no such axis."""
  whole = {
    'ffn/w': (2, 512, 1024),
    'out/w': (2, 1024, 512),
    'table': (4096, 64),
    'bias': (512,),
  }
  shapes = {path: lazy.Shape(shape, np.dtype(np.float32)) for path, shape in whole.items()}
  writer = orbax.ItemWriter(tmp_path / 'item', shapes, frozenset({'ffn/w', 'out/w'}), width=512)
  for path, shape in whole.items():
    writer.write(path, np.ones(shape, np.float32))
  writer.finish()
  chunks = {
    path: array.store.chunk_layout.read_chunk.shape
    for path, array in orbax.open_item(tmp_path / 'item').items()
  }
  # Down to 128 KiB.
  assert chunks == {
    'ffn/w': (1, 32, 1024),
    'out/w': (1, 1024, 32),
    'table': (512, 64),
    'bias': (512,),
  }
