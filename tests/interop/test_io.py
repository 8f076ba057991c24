"""Weights in files: the formats of others, read and written piece by piece, and what is refused."""

import json
import pathlib
import pickle
import resource
import struct
import zipfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy as library
from etils import epath

from tests.interop import tiny
from wam_jax.interop import errors
from wam_jax.interop import lazy
from wam_jax.interop import output
from wam_jax.interop.dreamzero import lora
from wam_jax.interop.files import orbax
from wam_jax.interop.files import pth
from wam_jax.interop.files import safetensors

RNG = np.random.default_rng(0)
WEIGHTS = {
  'a': RNG.standard_normal((3, 4)).astype(np.float32),
  'b': np.arange(6).astype(tiny.BF16).reshape(1, 2, 3),
  'scalar': np.array(2.5, np.float32),
  'none': np.zeros((0, 3), np.float32),
  'ids': np.arange(5),
  'wide': RNG.standard_normal((300, 600)).astype(np.float16),
}


def test_the_safetensors_library_writes_what_we_read(tmp_path):
  library.save_file(WEIGHTS, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
  got = safetensors.open_weights(epath.Path(tmp_path), 'model')
  assert set(got) == set(WEIGHTS)
  for name, w in WEIGHTS.items():
    assert (got[name].shape, got[name].dtype) == (w.shape, w.dtype)
    np.testing.assert_array_equal(got[name].read(), w)


@pytest.mark.parametrize(('shard_bytes', 'files'), [(10**9, 1), (200, 2)])
def test_the_safetensors_library_reads_what_we_write_in_any_order(tmp_path, shard_bytes, files):
  shapes = {name: lazy.Shape(w.shape, w.dtype) for name, w in WEIGHTS.items()}
  with safetensors.Writer(tmp_path, 'model', shapes, shard_bytes) as writer:
    for name in reversed(WEIGHTS):
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
  with pytest.raises(ValueError, match='1 arrays were never written, among them b'):
    with safetensors.Writer(tmp_path / '1', 'model', {'a': shape, 'b': shape}, 10**9) as writer:
      writer.write('a', np.zeros(2, np.float32))
  with safetensors.Writer(tmp_path / '2', 'model', {'a': shape}, 10**9) as writer:
    with pytest.raises(ValueError, match='a is float32 .3,., announced as float32 .2,.'):
      writer.write('a', np.zeros(3, np.float32))
    with pytest.raises(ValueError, match='was not announced, or is written twice'):
      writer.write('a', np.zeros(2, np.float32))


def shard_files(path):
  tiny.save(path, {'a': WEIGHTS['a'], 'b': WEIGHTS['b'], 'c': WEIGHTS['wide']}, 'model', shards=3)
  return sorted(path.glob('*.safetensors'))


def edit_index(path, change):
  index = path / 'model.safetensors.index.json'
  content = json.loads(index.read_text())
  change(content['weight_map'])
  index.write_text(json.dumps(content))


def damage_all(path, files):
  files[0].write_bytes(files[0].read_bytes()[:-4])
  files[1].write_bytes(b'not a header, but long enough')
  files[2].unlink()


def rename_dtype(path, files):
  content = files[0].read_bytes()
  files[0].write_bytes(content.replace(b'"F32"', b'"F8X"'))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      damage_all,
      r'1-of-00003.safetensors is cut: \d+ bytes, its header describes \d+\n.*2-of-00003.* is cut or is no '
      r'safetensors file: 29 bytes, .*\n.*3-of-00003.safetensors does not exist',
    ),
    (rename_dtype, r'unreadable header: a has dtype F8X; known are F64, F32'),
    (lambda path, files: files[0].write_bytes(files[0].read_bytes() + b'more'), 'is too long'),
    (
      lambda path, files: edit_index(path, lambda m: m.update(ghost=files[0].name)),
      'ghost is not in model-00001-of-00003',
    ),
    (lambda path, files: edit_index(path, lambda m: m.clear()), 'has no weight_map'),
    (lambda path, files: (path / 'model.safetensors.index.json').write_text('{'), 'is not JSON'),
  ],
)
def test_damaged_shards_are_all_named(tmp_path, damage, message):
  damage(tmp_path, shard_files(tmp_path))
  with pytest.raises(ValueError, match=message):
    safetensors.open_weights(epath.Path(tmp_path), 'model')


def test_weight_in_two_shards_is_refused(tmp_path):
  files = shard_files(tmp_path)
  library.save_file({'a': WEIGHTS['a'], 'b': WEIGHTS['b']}, files[0])
  with pytest.raises(ValueError, match='b is in model-00001-of-00003.safetensors, against'):
    safetensors.open_weights(epath.Path(tmp_path), 'model')


def test_absent_weights(tmp_path):
  with pytest.raises(
    ValueError, match='has neither model.safetensors nor model.safetensors.index.json'
  ):
    safetensors.open_weights(epath.Path(tmp_path), 'model')


def test_only_ten_problems_are_listed():
  errors.fail('title', [], 'remedy')
  with pytest.raises(ValueError, match=r'title\n  0\n(.*\n){9}  \.\.\. and 2 more\nremedy'):
    errors.fail('title', map(str, range(12)), 'remedy')


def test_pytorch_wrote_what_we_read():
  """The file is of torch 2.13: tensors dense, in bfloat16, transposed, sliced, scalar, shared,
  empty, a parameter.
  """
  big = np.arange(24, dtype=np.float32).reshape(4, 6)
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
  got = pth.open_file(epath.Path(pathlib.Path(__file__).with_name('files') / 'state_dict.pth'))
  assert list(got) == list(want)
  for name, w in want.items():
    assert got[name].shape == w.shape
    np.testing.assert_array_equal(got[name].read().astype(np.float64), w)
  assert [got[name].dtype.name for name in ('half', 'ints', 'dense')] == [
    'bfloat16',
    'int64',
    'float32',
  ]


def test_test_helper_writes_pytorch_files(tmp_path):
  weights = {'a': WEIGHTS['a'], 'b': WEIGHTS['b'], 'scalar': WEIGHTS['scalar']}
  tiny.save_pth(tmp_path / 'x.pth', weights)
  for name, w in pth.open_file(epath.Path(tmp_path / 'x.pth')).items():
    np.testing.assert_array_equal(w.read(), weights[name])


def rewrite(path, **members):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(f'archive/{name.replace("_", ".")}', content)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: path.write_bytes(path.read_bytes()[:-30]), 'not a zip file'),
    (
      lambda path: rewrite(path, data_pkl=pickle.dumps(pathlib.PurePosixPath('/'))),
      'it needs pathlib.PurePosixPath, which is no tensor',
    ),
    (
      lambda path: rewrite(path, data_pkl=pickle.dumps({'a': 1})),
      'holds dict of other things than tensors',
    ),
    (lambda path: rewrite(path, data_pkl=b'\x80\x02}.', byteorder='big'), 'big-endian'),
    (
      lambda path: rewrite(path, other='x'),
      "cannot be read as a PyTorch file of tensors: 'data.pkl'",
    ),
    (lambda path: path.unlink(), 'does not exist'),
  ],
)
def test_other_pth_files_are_refused(tmp_path, damage, message):
  path = tmp_path / 'x.pth'
  tiny.save_pth(path, {'a': WEIGHTS['a']})
  damage(path)
  with pytest.raises(ValueError, match=message):
    pth.open_file(epath.Path(path))


def write_item(place):
  rng = np.random.default_rng(1)
  tree = {
    'blocks/w': rng.standard_normal((3, 40, 50)).astype(tiny.BF16),
    'bias': np.arange(7, dtype=np.float32),
    'scale/deep': np.array(2.0, np.float32),
    'zeros': np.zeros((2, 2), np.float32),
  }
  writer = orbax.ItemWriter(
    place, {path: lazy.Shape(x.shape, x.dtype) for path, x in tree.items()}, frozenset({'blocks/w'})
  )
  for layer in (2, 0, 1):
    writer.write('blocks/w', np.asfortranarray(tree['blocks/w'][layer]), layer)
  for path in ('bias', 'scale/deep', 'zeros'):
    writer.write(path, tree[path])
  writer.finish()
  return tree


@pytest.mark.parametrize('chunk_bytes', [2**25, 500])
def test_item_comes_back_whole_and_by_layers(tmp_path, monkeypatch, chunk_bytes):
  monkeypatch.setattr(orbax, '_CHUNK_BYTES', chunk_bytes)
  monkeypatch.setattr(orbax, '_SLAB_BYTES', 4 * chunk_bytes)
  tree = write_item(tmp_path / 'item')
  got = orbax.open_item(tmp_path / 'item')
  assert got.keys() == tree.keys()
  for path, x in tree.items():
    assert (got[path].shape, got[path].dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(got[path].read(), x)
  assert got['blocks/w'].layers == 1
  np.testing.assert_array_equal(got['blocks/w'].read(slice(1, 3)), tree['blocks/w'][1:])


def test_orbax_reads_our_items_to_numpy_and_onto_a_mesh(tmp_path):
  tree = write_item(tmp_path / 'item')
  nested = {
    'blocks': {'w': tree['blocks/w']},
    'bias': tree['bias'],
    'scale': {'deep': tree['scale/deep']},
    'zeros': tree['zeros'],
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    stored = reader.metadata(tmp_path / 'item').item_metadata.tree
    restored = reader.restore(
      tmp_path / 'item',
      args=ocp.args.PyTreeRestore(
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
      ),
    )
  assert jax.tree.structure(restored) == jax.tree.structure(nested)
  jax.tree.map(np.testing.assert_array_equal, restored, nested)
  mesh = jax.make_mesh((8,), ('x',))
  spread = lambda x: jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(*(None, 'x')[: x.ndim])
  )
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      np.float32,
      sharding=spread(x)
      if x.ndim == 3
      else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    ),
    nested,
  )
  with ocp.StandardCheckpointer() as reader:
    on_mesh = reader.restore(tmp_path / 'item', abstract)
  jax.tree.map(
    np.testing.assert_array_equal, on_mesh, jax.tree.map(lambda x: x.astype(np.float32), nested)
  )
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
  for path in (tmp_path / 'item').glob('d/*'):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='of .*item cannot be opened'):
    orbax.open_item(tmp_path / 'item')
  with pytest.raises(ValueError, match='_METADATA does not exist'):
    orbax.open_item(tmp_path)


@pytest.mark.parametrize(
  ('base_layer', 'default'), [(False, ''), (False, '.default'), (True, ''), (True, '.default')]
)
def test_adapters_are_merged_in_float32_and_rounded_once(base_layer, default):
  rng = np.random.default_rng(0)
  plain = {
    'action_head.model.blocks.0.self_attn.q.weight': rng.standard_normal((6, 5)).astype(tiny.BF16),
    'action_head.model.blocks.0.self_attn.q.bias': np.ones(6, np.float32),
    'action_head.model.blocks.0.norm3.weight': np.ones(6, np.float32),
  }
  adapters, wrapped, merged = tiny.adapted(plain, rank=2, base_layer=base_layer, default=default)
  assert len(adapters) == 2
  assert any('.base_layer.' in name for name in wrapped) == base_layer
  as_weights = lambda tree: {name: Held(w) for name, w in tree.items()}
  found, halves = lora.split(as_weights(wrapped | adapters))
  assert found.keys() == plain.keys()
  got = lora.merge(found, halves, rank=2, alpha=4)
  for name, w in merged.items():
    np.testing.assert_array_equal(got[name].read(), w)
    assert (got[name].shape, got[name].dtype) == (w.shape, w.dtype)
  assert not np.array_equal(
    merged['action_head.model.blocks.0.self_attn.q.weight'],
    plain['action_head.model.blocks.0.self_attn.q.weight'],
  )


class Held:
  """A weight that is in memory after all."""

  def __init__(self, array):
    self.array, self.shape, self.dtype = array, array.shape, array.dtype

  def read(self):
    return self.array


def test_adapters_that_do_not_fit_are_named():
  q = 'blocks.0.self_attn.q'
  weights = {f'{q}.weight': Held(np.zeros((6, 5))), f'{q}.lora_A.weight': Held(np.zeros((2, 5)))}
  with pytest.raises(ValueError, match=r'not whole:\n  blocks.0.self_attn.q.weight has no lora_B'):
    lora.split(weights)
  with pytest.raises(ValueError, match='is there twice'):
    lora.split(weights | {f'base_model.model.{q}.weight': Held(np.zeros(1))})
  halves = lora.Adapter(Held(np.zeros((2, 5))), Held(np.zeros((6, 3))))
  with pytest.raises(
    ValueError, match=r'A \[2, 5\] and B \[6, 3\]; expected rank 2\n  k is adapted, but not there'
  ):
    lora.merge(weights, {f'{q}.weight': halves, 'k': halves}, 2, 2)


def test_output_appears_only_when_complete(tmp_path):
  target = tmp_path / 'deep' / 'result'
  with output.staged(target, 10) as partial:
    (partial / 'folder').mkdir()
    (partial / 'folder' / 'file').write_text('x')
    assert not target.exists()
    assert partial.parent == target.parent
  assert (target / 'folder' / 'file').read_text() == 'x'
  assert [p.name for p in target.parent.iterdir()] == ['result']
  with pytest.raises(KeyboardInterrupt), output.staged(tmp_path / 'other', 10) as partial:
    (partial / 'file').write_text('x')
    raise KeyboardInterrupt
  assert [p.name for p in tmp_path.iterdir()] == ['deep']


def test_output_that_exists_is_left_alone(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match='exists already; nothing was changed'):
    with output.staged(tmp_path, 10):
      pytest.fail('must not start')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_output_without_room(tmp_path):
  with pytest.raises(ValueError, match='GB free; up to 1000000000.0 GB are needed'):
    with output.staged(tmp_path / 'result', 10**18):
      pytest.fail('must not start')
  with pytest.raises(ValueError, match='cannot be written: File exists'):
    (tmp_path / 'file').write_text('')
    with output.staged(tmp_path / 'file' / 'result', 1):
      pytest.fail('must not start')


@pytest.mark.parametrize('kind', ['item', 'file'])
def test_disk_that_fills_up(tmp_path, kind):
  """A file-size limit stands for the full disk; both come to the writers as an OSError."""
  big = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(
    resource.RLIMIT_FSIZE, (100_000, limits[1])
  )  # Python ignores SIGXFSZ: write() fails.
  try:
    with (
      pytest.raises(
        ValueError, match='could not be written .*File too large.*removed again; make room'
      ),
      output.staged(tmp_path / 'result', 10) as partial,
    ):
      shape = {'w': lazy.Shape(big.shape, big.dtype)}
      if kind == 'item':
        writer = orbax.ItemWriter(partial / 'item', shape, frozenset())
        writer.write('w', big)
        writer.finish()
      else:
        with safetensors.Writer(partial, 'model', shape, 10**9) as writer:
          writer.write('w', big)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not list(tmp_path.iterdir())


def test_progress_says_rate_and_time_left(capsys):
  progress = output.Progress('import', 4 * 10**9, every_s=0)
  progress.add(10**9)
  line = capsys.readouterr().err
  assert line.startswith('import: 1.0 of 4.0 GB, ')
  assert line.endswith(' s left\n')


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
