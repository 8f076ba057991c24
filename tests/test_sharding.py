"""Meshes and logical rules: mistakes raise, parameters split as written, and every mesh trains like
one device.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import droid_14b
from tests import weights
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.aot import abstract as aot
from wam_jax.models import encoders
from wam_jax.models import tokenizer

RULES = cfg.DEFAULT_RULES
MESHES = {
  # Of the 8 devices that the tests simulate: each axis alone, and those that meet.
  'data8': {'data': 8, 'fsdp': 1, 'tensor': 1, 'seq': 1},
  'data2_fsdp2_tensor2': {'data': 2, 'fsdp': 2, 'tensor': 2, 'seq': 1},
  'fsdp4_tensor2': {'data': 1, 'fsdp': 4, 'tensor': 2, 'seq': 1},
  'fsdp8': {'data': 1, 'fsdp': 8, 'tensor': 1, 'seq': 1},
  'fsdp2_tensor2_seq2': {'data': 1, 'fsdp': 2, 'tensor': 2, 'seq': 2},
  'seq8': {'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 8},
}
ONE = {'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}
B, Q, R, A, U, X = 8, 3, 2, 2, 3, 4
MODEL = dataclasses.replace(
  weights.SMALL,
  action_dim=U,
  proprio_dim=X,
  num_embodiments=2,
  actions_per_chunk=A,
  max_chunks=Q,
  text=cfg.TextConfig(vocab=16, dim=16, length=4, layers=0),
  tokenizer=cfg.TokenizerConfig(temporal=R, spatial=2, channels=6),
)
# Adam divides by the gradient's size; a large epsilon keeps it from blowing up rounding in tiny
# gradients.
CONFIG = cfg.TrainConfig(
  model=MODEL,
  batch_size=B,
  optimizer=cfg.OptimizerConfig(learning_rate=0.01, warmup_steps=0, adam_eps=1e-3, ema_decay=0.9),
)


def make_batch(seed):
  """A batch with a video-only sample, padded dimensions and a window that leaves its episode."""
  rng = np.random.default_rng(seed)
  mask_BAU = np.ones((B, Q * A, U), bool)
  mask_BAU[0] = False
  mask_BAU[1, :, -1] = False
  mask_BAU[2, -A:] = False
  chunk_mask_BQ = np.ones((B, Q), bool)
  chunk_mask_BQ[2, -1] = False
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return types.Batch(
    frames_BRIJ3=rng.integers(0, 256, (B, 1 + Q * R, 8, 4, 3)).astype(np.uint8),
    action_BAU=normal(B, Q * A, U) * mask_BAU,
    action_mask_BAU=mask_BAU,
    proprio_BQX=normal(B, Q, X),
    chunk_mask_BQ=chunk_mask_BQ,
    prompt_ids_BP=rng.integers(0, 16, (B, 4)).astype(np.int32),
    embodiment_B=np.int32([0, 1] * 4),
    sample_B2=np.zeros((B, 2), np.int32),
  )


BATCHES = make_batch(0), make_batch(1)


def make_mesh(sizes):
  return sharding.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


def abstract(mesh, config=CONFIG):
  return train_step.abstract_state(config, mesh, fitted())


@functools.cache
def fitted():
  fitted_tokenizer = tokenizer.fit_patch_tokenizer(BATCHES[0].frames_BRIJ3, MODEL.tokenizer)
  return encoders.Encoders(fitted_tokenizer, None, None, MODEL)


@functools.cache
def initial_state():
  """On one device, as numpy."""
  return jax.device_get(train_step.init_state(CONFIG, make_mesh(ONE), fitted())[0])


@functools.cache
def two_steps(sizes, attention='dense'):
  """Metrics of two steps from random weights on a mesh, and the state after them."""
  mesh = make_mesh(dict(sizes))
  config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, attention=attention))
  rng = np.random.default_rng(0)

  def move(p):
    """So that the head, which is zero at first, matters too."""
    return p + 0.1 * rng.normal(size=p.shape).astype(np.float32)

  start = initial_state().replace(params=jax.tree.map(move, initial_state().params))
  shardings = jax.tree.map(lambda x: x.sharding, abstract(mesh, config))
  step = train_step.make_train_step(config, mesh, shardings)
  state = jax.device_put(start, shardings)
  metrics = []
  for batch in BATCHES:
    state, values = step(state, batch)
    metrics.append({name: float(value) for name, value in values.items()})
  # Were they to move, the next step would be compiled again.
  assert jax.tree.map(lambda x: x.sharding, state) == shardings
  return metrics, start, jax.device_get(state)


def list_pairs():
  """Each mesh with each kind of attention; slow where the mesh splits nothing that attention sees,
  and the kinds differ no more than on one device, and where the kernels are simulated twice over.
  """
  for mesh in ('data8', 'fsdp8', 'fsdp2_tensor2_seq2', 'seq8'):
    for attention in ('dense', 'chunks', 'splash'):
      is_slow = mesh in ('data8', 'fsdp8') and attention != 'dense'
      is_slow |= (mesh, attention) == ('fsdp2_tensor2_seq2', 'splash')
      yield pytest.param(mesh, attention, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize('mesh, attention', list(list_pairs()))
def test_two_steps_equal_one_device(mesh, attention, capfd):
  """Sums over shards run in another order: float32 rounding, carried through one update to the
  second loss.

  The 21 tokens do not divide over 'seq': XLA pads them, or for 'splash' the plan does, to blocks of
  128.
  """
  metrics, _, state = two_steps(tuple(MESHES[mesh].items()), attention)
  # XLA would say so where it gathers an activation over all devices.
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err
  want_metrics, start, want = two_steps(tuple(ONE.items()))
  for got, expected in zip(metrics, want_metrics):
    for name in expected:
      np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, err_msg=name)
  for part in ('params', 'ema_params'):
    wanted = jax.tree.leaves_with_path(getattr(want, part))
    for (path, w), g in zip(wanted, jax.tree.leaves(getattr(state, part))):
      np.testing.assert_allclose(g, w, atol=1e-5, err_msg=jax.tree_util.keystr(path))
  change = jax.tree.map(lambda w, s: np.abs(w - s).max(), want.params, start.params)
  # The updates compared are far above the tolerance.
  assert np.median(jax.tree.leaves(change)) > 1e-3


def test_fresh_state_does_not_depend_on_the_mesh():
  state, _ = train_step.init_state(CONFIG, make_mesh(MESHES['data2_fsdp2_tensor2']), fitted())
  for (path, want), got in zip(jax.tree.leaves_with_path(initial_state()), jax.tree.leaves(state)):
    # The random bits are the same; normals may round differently in differently fused programs.
    np.testing.assert_allclose(got, want, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_parameters_split_as_the_rules_say():
  params = abstract(make_mesh(MESHES['data2_fsdp2_tensor2'])).params
  blocks, text = params['blocks'], params['text_encoder']
  for parameter, spec in (
    # Of the blocks, the first axis is the layers'; here then embed, heads, head_dim.
    (blocks['self_attn']['q']['w'], P(None, 'fsdp', 'tensor', None)),
    (blocks['self_attn']['q']['b'], P(None, 'tensor', None)),
    (blocks['self_attn']['o']['w'], P(None, 'tensor', None, 'fsdp')),
    (blocks['self_attn']['norm_q']['scale'], P(None, 'tensor', None)),
    (blocks['cross_attn']['v']['w'], P(None, 'fsdp', 'tensor', None)),
    (blocks['ffn']['in']['w'], P(None, 'fsdp', 'tensor')),
    (blocks['ffn']['out']['w'], P(None, 'tensor', 'fsdp')),
    (blocks['modulation'], P(None, None, 'fsdp')),
    (blocks['norm3']['scale'], P(None, None)),
    (params['patch_embedding']['w'], P(None, None, None, 'fsdp')),
    (params['time_projection']['w'], P('fsdp', None, 'tensor')),
    (params['head']['w'], P('fsdp', None, None, None)),
    (params['action_encoder']['mix']['w'], P(None, None, 'fsdp')),
    (params['action_decoder']['in']['w'], P(None, 'fsdp', 'tensor')),
    (text['table'], P(None, 'fsdp')),
  ):
    assert parameter.sharding.spec == spec


def test_every_large_parameter_is_split_and_so_are_its_moments():
  """On fsdp 2 x tensor 2 every matrix of the blocks lies on four devices in quarters; Adam's
  moments likewise.
  """
  state = abstract(make_mesh(MESHES['data2_fsdp2_tensor2']))
  for path, p in jax.tree.leaves_with_path(state.params['blocks']):
    if path[-1].key == 'w':
      shard = p.sharding.shard_shape(p.shape)
      assert shard != p.shape
      assert 4 * np.prod(shard) == np.prod(p.shape), jax.tree_util.keystr(path)
  specs = jax.tree.map(lambda x: x.sharding.spec, state.params)
  has_moments = lambda part: hasattr(part, 'mu')
  parts = jax.tree.leaves(state.opt_state, is_leaf=has_moments)
  moments = list(filter(has_moments, parts))
  assert len(moments) == 1
  for tree in (moments[0].mu, moments[0].nu, state.ema_params):
    assert jax.tree.map(lambda x: x.sharding.spec, tree) == specs


@pytest.mark.parametrize('is_there', [True, False])
def test_bytes_of_a_device_are_those_of_its_parts_random_keys_too(is_there):
  split = NamedSharding(make_mesh(MESHES['fsdp4_tensor2']), P('fsdp', 'tensor'))
  tree = {
    'eighths': jax.device_put(np.zeros((8, 6), np.float16), split),
    'whole': jax.device_put(np.float32([1, 2, 3]), NamedSharding(split.mesh, P())),
    'key': jax.random.key(0),
  }
  held = sum(
    jax.random.key_data(x).nbytes
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x.addressable_shards[0].data.nbytes
    for x in tree.values()
  )
  if not is_there:
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
  assert sharding.bytes_per_device(tree) == held == 2 * 2 * 3 + 4 * 3 + 8


# Of DROID 14B, what is not split over 'fsdp', and why.
WHOLE = {
  'blocks/ffn/in/b': "a bias of the hidden width, which 'tensor' splits: 2 MiB, 6 with its moments",
}


@pytest.mark.parametrize(
  # What the config takes on v5p-128, v6e-256 and 64 chips of tpu7x, and a mesh that splits heads.
  # That of v4 is that of v5p.
  ('layout', 'sizes'),
  [
    ('v5p', (2, 32, 1, 1)),
    ('v6e', (2, 64, 1, 2)),
    ('tpu7x', (4, 32, 1, 1)),
    ('v5p', (2, 32, 4, 1)),
  ],
  ids=str,
)
def test_each_large_array_of_droid_14b_is_split(layout, sizes):
  """Parameters, moments and encoders above 1 MiB: a device holds at most a 32nd of each (`pytest
  -s` lists them).
  """
  config = cfg.from_config_dict(droid_14b.get_config(layout))
  # More devices than there are; nothing is allocated.
  mesh = jax.sharding.AbstractMesh((1, *sizes), ('slice', 'data', 'fsdp', 'tensor', 'seq'))
  state, _ = aot.arguments(config, mesh)
  fsdp = sizes[1]
  total = 0
  whole = {}
  print(f'\n{dict(mesh.shape)}')
  for path, x in jax.tree.leaves_with_path(state):
    size = math.prod(x.shape) * x.dtype.itemsize
    total += size
    if size <= 2**20:
      continue
    held = sharding.bytes_per_device(x)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    line = (
      f'{name:<64}{x.shape!s:<26}{size / 2**20:>9.1f} MiB  1/{size / held:<4.0f} {x.sharding.spec}'
    )
    print(line)
    # Of the VAE, 192 channels do not divide by 128.
    divisible = any(n % fsdp == 0 for n in x.shape)
    if held > size / 32 and divisible:
      whole[name] = line
  unexpected = [line for name, line in whole.items() if not name.endswith(tuple(WHOLE))]
  assert not unexpected, 'Replicated, or nearly so:\n' + '\n'.join(unexpected)
  # The rest is what the VAE and the above cannot split.
  assert sharding.bytes_per_device(state) < 1.15 * total / fsdp


def test_mesh_keeps_unused_axes_and_fills_in_the_rest():
  assert dict(sharding.make_mesh({'data': -1, 'fsdp': 2, 'tensor': 1, 'seq': 1}).shape) == {
    'slice': 1,
    'data': 4,
    'fsdp': 2,
    'seq': 1,
    'tensor': 1,
  }
  assert tuple(cfg.TrainConfig().mesh) == sharding.AXES


@pytest.mark.parametrize(
  'sizes',
  [
    {'data': 3},
    {'data': 4},
    {'data': 16},
    {'data': -1, 'fsdp': 3},
    {'data': -1, 'fsdp': -1},
    {},
    {'data': 0, 'fsdp': 8},
    {'data': -1, 'fsdp': 0},
    {'data': -2, 'fsdp': -4},
  ],
  ids=str,
)
def test_meshes_that_do_not_fit_raise(sizes):
  with pytest.raises(ValueError, match='does not fit 8 devices: .* nearest valid: {') as error:
    sharding.make_mesh(sizes)
  # The advice must work when it is taken literally.
  sharding.make_mesh(ast.literal_eval(str(error.value).split('nearest valid: ')[1].rstrip('.')))


def test_the_nearest_mesh_keeps_what_it_can():
  with pytest.raises(ValueError, match="nearest valid: {'data': 1, 'fsdp': 2, 'tensor': 4}"):
    sharding.make_mesh({'data': -1, 'fsdp': 2, 'tensor': 3})
  with pytest.raises(ValueError, match="nearest valid: {'data': 1, 'fsdp': 8}"):
    sharding.make_mesh({'data': 1, 'fsdp': 16})


@pytest.mark.parametrize(
  ('change', 'mesh', 'message'),
  [
    (
      {'batch_size': 12},
      {'data': 8},
      r'config.batch_size=12 must be divisible by 8, .* nearest valid: (8|16)\.',
    ),
    (
      {'batch_size': 100, 'accumulate': 3},
      {'data': 4, 'fsdp': 2},
      r'config.batch_size=100 must be divisible by 24, config.accumulate=3 .* \* data \* fsdp .* '
      r'nearest valid: 96\.',
    ),
    (
      {},
      {'tensor': 4},
      r'model.num_heads=2 must be divisible by 4, .* tensor .* nearest valid: 2 of them',
    ),
    (
      {'model': {'num_heads': 6, 'dim': 24}},
      {'tensor': 4},
      r'model.num_heads=6 .* nearest valid: 3 of them',
    ),
    (
      {'model': {'mlp_dim': 33}},
      {'tensor': 2},
      r'model.mlp_dim=33 .* nearest valid: (1|3) of them',
    ),
    ({'model': {'dim': 20}}, {'fsdp': 8}, r'model.dim=20 .* fsdp .* nearest valid: 10 of them'),
  ],
)
def test_sizes_that_the_mesh_does_not_divide(change, mesh, message):
  model = dataclasses.replace(MODEL, **change.get('model', {}))
  config = dataclasses.replace(CONFIG, **change | {'model': model})
  with pytest.raises(ValueError, match=message):
    sharding.check_sizes(config, make_mesh(ONE | mesh))


def test_all_sizes_are_reported_at_once():
  with pytest.raises(ValueError, match='model.num_heads=2 .*\nconfig.batch_size=3 '):
    sharding.check_sizes(
      dataclasses.replace(CONFIG, batch_size=3), make_mesh(ONE | {'fsdp': 2, 'tensor': 4})
    )
  sharding.check_sizes(CONFIG, make_mesh(MESHES['data2_fsdp2_tensor2']))


def test_shard_splits_activations():
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 1, 'seq': 2})

  @jax.jit
  def constrained(x):
    with sharding.activate(mesh, RULES):
      return sharding.shard(x, 'batch', 'tokens', 'act_embed')

  x = np.arange(8 * 4 * 3, dtype=np.float32).reshape(8, 4, 3)
  assert constrained(x).sharding.spec == P(('data', 'fsdp'), 'seq')
  np.testing.assert_array_equal(constrained(x), x)
  assert sharding.shard(x, 'batch', 'tokens', 'act_embed') is x  # No mesh is active.


# Fewer than the two shards of 'seq', and odd.
@pytest.mark.parametrize('tokens', [1, 7])
def test_tokens_need_not_divide(tokens):
  mesh = make_mesh({'data': 2, 'fsdp': 1, 'tensor': 2, 'seq': 2})

  @jax.jit
  def products(x):
    with sharding.activate(mesh, RULES):
      x = sharding.shard(x, 'batch', 'tokens', 'act_embed')
    return x, x @ x.swapaxes(1, 2)

  x = np.random.default_rng(0).normal(size=(2, tokens, 5)).astype(np.float32)
  same, product = products(x)
  np.testing.assert_array_equal(same, x)
  np.testing.assert_allclose(product, x @ x.swapaxes(1, 2), atol=1e-5)  # Sums in another order.


def boxed(**leaves):
  """Abstract parameters from (shape, axis names)."""
  return {
    name: nn.Partitioned(jax.ShapeDtypeStruct(shape, np.float32), names)
    for name, (shape, names) in leaves.items()
  }


def test_unknown_axis_names_raise():
  mesh = make_mesh(MESHES['data8'])
  with pytest.raises(
    ValueError, match=r"No rule for the axis names \['haeds'\]; config.rules has \['act_embed'"
  ):
    sharding.state_shardings(boxed(w=((4, 2), ('embed', 'haeds'))), mesh, RULES)
  with sharding.activate(mesh, RULES), pytest.raises(ValueError, match=r"\['token'\]"):
    sharding.shard(np.zeros((8, 2)), 'batch', 'token')


def test_rules_for_absent_mesh_axes_raise():
  mesh = sharding.make_mesh({'data': 8})
  with pytest.raises(
    ValueError,
    match=r"mesh axes \['fsdp'\], but the mesh has \['slice', 'data'\]; add them to config.mesh",
  ):
    sharding.batch_sharding(mesh, RULES)


def test_axes_that_do_not_divide_raise_together():
  mesh = make_mesh(MESHES['fsdp4_tensor2'])
  with pytest.raises(ValueError, match='does not divide:') as error:
    sharding.state_shardings(
      boxed(
        good=((8, 4), ('embed', 'mlp')),
        embed=((6, 4), ('embed', 'mlp')),
        both=((3, 5), ('mlp', 'embed')),
      ),
      mesh,
      RULES,
    )
  message = str(error.value)
  assert "['embed'] (6, 4): axis of 6 over fsdp = 4" in message
  assert "['both'] (3, 5): axis of 3 over tensor = 2" in message
  assert "['both'] (3, 5): axis of 5 over fsdp = 4" in message
  assert 'good' not in message
  assert "'fsdp': 4" in message
  many = boxed(**{f'w{i:02}': ((3,), ('mlp',)) for i in range(30)})
  with pytest.raises(ValueError, match='does not divide:') as error:
    sharding.state_shardings(many, mesh, RULES)
  # A model has hundreds of arrays; ten are enough to see what is wrong.
  assert str(error.value).count('axis of 3') == 10


def test_leaves_without_names_are_replicated():
  mesh = make_mesh(MESHES['data8'])
  state = {'step': jax.ShapeDtypeStruct((), np.int32)}
  assert sharding.state_shardings(state, mesh, RULES)['step'].spec == P()


def test_advice_names_a_mesh_that_works():
  config = dataclasses.replace(CONFIG, batch_size=4)
  with pytest.raises(ValueError, match='The nearest mesh for this config: ') as error:
    sharding.check_sizes(config, make_mesh(ONE | {'data': 8}))
  advice = str(error.value).split('for this config: ')[1]
  named = [flag.removeprefix('--config.mesh.').split('=') for flag in advice.split()]
  sizes = {axis: int(n) for axis, n in named}
  sharding.check_sizes(config, sharding.make_mesh(sizes))
  assert sizes['data'] == 4
  # Nothing else than the batch is split over slices, and that is.
  config = dataclasses.replace(CONFIG, rules={**RULES, 'batch': ('data', 'fsdp')})
  with pytest.raises(ValueError, match=r'config.mesh.slice=2 needs config.rules .* split \[\]'):
    sharding.check_sizes(config, make_mesh(ONE | {'slice': 2}))


@dataclasses.dataclass(frozen=True)
class Tpu:
  """What of a TPU decides where it stands in a mesh."""

  coords: tuple[int, int, int]
  slice_index: int = 0
  device_kind: str = 'TPU v5'
  platform: str = 'tpu'
  core_on_chip: int = 0


def make_slice(shape, **which) -> list[Tpu]:
  return [Tpu(coords, **which) for coords in np.ndindex(*shape)]


def place_tpus(sizes, devices):
  """Coordinates of the devices along a mesh."""
  return np.array([d.coords for d in sharding.make_mesh(sizes, devices).devices.flat])


@pytest.mark.parametrize(
  ('sizes', 'linked'),
  [
    ({'fsdp': -1}, 48),  # Of 63 steps, those along a line of four.
    ({'fsdp': 16, 'data': -1}, 48),
    ({'fsdp': 32, 'data': -1}, 32),  # Here every second one, across one half.
  ],
)
def test_tpus_stand_in_the_mesh_as_they_are_linked(sizes, linked):
  """In a run and ahead of time, which give the devices another order and other names."""
  devices = make_slice((4, 4, 4))
  places = place_tpus(sizes, devices)
  steps = np.abs(np.diff(places, axis=0)).sum(1)
  assert (steps == 1).sum() == linked
  in_a_run = [dataclasses.replace(d, device_kind='TPU v5p') for d in devices]
  shuffled = [in_a_run[i] for i in np.random.default_rng(0).permutation(64)]
  np.testing.assert_array_equal(place_tpus(sizes, shuffled), places)


def test_groups_of_the_layouts_are_blocks_of_a_slice():
  """Of v4 as of v5p, and of the two devices of each tpu7x: a group has links of its own."""
  cube = list(np.ndindex(4, 4, 4))
  kinds = {
    'v4': [Tpu(place, device_kind='TPU v4') for place in cube],
    'tpu7x': [
      Tpu(place, device_kind='TPU7x', core_on_chip=core) for place in cube for core in (0, 1)
    ],
  }
  for name, devices in kinds.items():
    sizes = droid_14b.LAYOUTS[name]['mesh']
    mesh = sharding.make_mesh({'slice': 1, **sizes}, devices)
    groups = mesh.devices.reshape(-1, sizes['fsdp'])
    assert len(groups) * sizes['fsdp'] == len(devices)
    for group in groups:
      chips = np.array([d.coords for d in group])
      extent = chips.max(0) - chips.min(0) + 1
      # All of a box, each chip as often as it has devices.
      assert np.prod(extent) * len(devices) // 64 == sizes['fsdp']


def test_the_ring_of_a_small_slice_does_not_depend_on_the_name_of_its_chips():
  """JAX has an order of its own for eight v5p, which it knows by one of two names."""
  ahead = place_tpus({'fsdp': 8}, make_slice((2, 2, 2)))
  run = place_tpus({'fsdp': 8}, make_slice((2, 2, 2), device_kind='TPU v5p'))
  np.testing.assert_array_equal(ahead, run)
  assert (np.abs(np.diff(ahead, axis=0)).sum(1) == 1).all()


def test_slices_are_the_outer_axis_and_as_many_as_there_are():
  devices = make_slice((2, 2, 2), slice_index=1) + make_slice((2, 2, 2), slice_index=0)
  mesh = sharding.make_mesh({'fsdp': -1, 'slice': 2, 'data': 2}, devices)
  assert dict(mesh.shape) == {'slice': 2, 'data': 2, 'fsdp': 4}
  assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
  for wrong in (1, 4):
    with pytest.raises(ValueError, match='are of 2 slices; set --config.mesh.slice=2'):
      sharding.make_mesh({'slice': wrong, 'data': 1, 'fsdp': -1}, devices)


def test_an_unknown_tpu_has_no_mesh():
  with pytest.raises(ValueError, match="'TPU v9', a TPU that is not known"):
    sharding.make_mesh({'data': 8}, make_slice((2, 2, 2), device_kind='TPU v9'))
