"""Adapters and trainable sets: what is trained, what is left alone to the bit, and that merging
changes no output.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import train_config
from tests import weights
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import guards
from wam_jax import identity
from wam_jax import presets
from wam_jax import sharding
from wam_jax import source
from wam_jax import train
from wam_jax import train_step
from wam_jax import types
from wam_jax.models import encoders
from wam_jax.models import layers
from wam_jax.models import tokenizer

B, Q, A = 8, 2, 2
MODEL = dataclasses.replace(
  weights.SMALL,
  action_dim=3,
  proprio_dim=4,
  actions_per_chunk=A,
  max_chunks=Q,
  text=cfg.TextConfig(vocab=16, dim=16, length=4, layers=0),
  tokenizer=cfg.TokenizerConfig(spatial=2, channels=6),
  lora=cfg.LoraConfig(rank=3),
)
CONFIG = cfg.TrainConfig(
  model=MODEL,
  batch_size=B,
  init_from='base',
  trainable=('lora',),
  # A large epsilon keeps Adam from blowing up the rounding of tiny gradients.
  optimizer=cfg.OptimizerConfig(learning_rate=0.01, warmup_steps=0, adam_eps=1e-3, ema_decay=0.9),
)
ONE = {'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}
RELEASED = {'14B': presets.WAN2_1_I2V_14B, '5B': presets.WAN2_2_TI2V_5B}


def make_batch():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return types.Batch(
    frames_BRIJ3=rng.integers(0, 256, (B, MODEL.camera_frames(Q), 8, 4, 3)).astype(np.uint8),
    action_BAU=normal(B, Q * A, 3),
    action_mask_BAU=np.ones((B, Q * A, 3), bool),
    proprio_BQX=normal(B, Q, 4),
    chunk_mask_BQ=np.ones((B, Q), bool),
    prompt_ids_BP=rng.integers(0, 16, (B, 4)).astype(np.int32),
    embodiment_B=np.zeros(B, np.int32),
    sample_B2=np.zeros((B, 2), np.int32),
  )


@functools.cache
def fitted():
  patches = tokenizer.fit_patch_tokenizer(make_batch().frames_BRIJ3, MODEL.tokenizer)
  return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)


@functools.cache
def two_steps(mesh_sizes, accumulate=1):
  """(state before, state after, metrics of the second step) on a mesh, from weights that are all
  random.
  """
  config = dataclasses.replace(CONFIG, accumulate=accumulate)
  devices = math.prod(size for _, size in mesh_sizes)
  mesh = sharding.make_mesh(dict(mesh_sizes), jax.devices()[:devices])
  abstract = train_step.abstract_state(config, mesh, fitted())
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  rng = np.random.default_rng(1)
  draw = lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32)
  params = jax.tree.map(draw, abstract.params)
  trained, _ = finetuning.split(params, config.trainable)
  optimizer = train_step.make_optimizer(config.optimizer, config.steps)
  start = train_step.TrainState(
    step=jnp.int32(0),
    params=params,
    ema_params=trained,
    opt_state=optimizer.init(trained),
    frozen=fitted(),
  )
  start = jax.device_get(start)  # As numpy: the step donates its arrays.
  state = jax.device_put(start, shardings)
  step = train_step.make_train_step(config, mesh, shardings)
  for _ in range(2):
    state, metrics = step(state, make_batch())
  metrics = {name: float(value) for name, value in metrics.items()}
  return start, jax.device_get(state), metrics


def leaves(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): x
    for path, x in jax.tree.leaves_with_path(tree)
  }


def test_only_the_trainable_set_changes_and_has_moments_and_averages():
  start, state, _ = two_steps(tuple(ONE.items()))
  before, after = leaves(start.params), leaves(state.params)
  changed = {path for path in before if not np.array_equal(before[path], after[path])}
  modules = ('state_encoder/', 'action_encoder/', 'action_decoder/')
  in_set = lambda path: path.startswith(modules) or path.endswith(('lora_a', 'lora_b'))
  assert changed == set(filter(in_set, before))
  # q, k, v, o of two kinds of attention, and the two layers of the feed-forward.
  assert len([path for path in changed if path.endswith('lora_a')]) == 10
  has_moments = lambda part: hasattr(part, 'mu')
  parts = jax.tree.leaves(state.opt_state, is_leaf=has_moments)
  moments = next(filter(has_moments, parts))
  for tree in (moments.mu, moments.nu, state.ema_params):
    assert leaves(tree).keys() == changed
  average, evaluated = leaves(state.ema_params), leaves(state.eval_params)
  for path, x in after.items():
    np.testing.assert_array_equal(evaluated[path], average.get(path, x))


def test_mesh_and_accumulation_change_no_number():
  """But for float32 sums in another order."""
  _, want, want_metrics = two_steps(tuple(ONE.items()))
  _, got, metrics = two_steps((('data', 2), ('fsdp', 2), ('tensor', 2), ('seq', 1)), accumulate=2)
  for name, value in want_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got.params, want.params)


@pytest.mark.parametrize(
  ('equation', 'shape', 'inputs'),
  [('BTD,DNK->BNTK', (6, 2, 4), (2, 3, 6)), ('BNTK,NKD->BTD', (2, 4, 6), (2, 2, 3, 4))],
)
def test_adapter_is_the_formula_of_peft(equation, shape, inputs):
  """y = x W + b + alpha / rank * (x A) B, on matrices; new adapters add exactly nothing."""
  contracted = 1 if len(inputs) == 3 else 2
  # As matrices, heads and their dimensions are one axis.
  flat = lambda y: y if y.ndim == 3 else y.transpose(0, 2, 1, 3).reshape(2, 3, -1)
  lora = cfg.LoraConfig(rank=2, alpha=5.0)
  make = functools.partial(layers.Einsum, equation, shape, ('embed',) * 3)
  x = np.random.default_rng(0).normal(size=inputs).astype(np.float32)
  init = lambda module: nn.unbox(module.init(jax.random.key(0), x)['params'])
  plain, params = init(make()), init(make(lora=lora))
  np.testing.assert_array_equal(params['w'], plain['w'])
  without = make().apply({'params': plain}, x)
  np.testing.assert_array_equal(make(lora=lora).apply({'params': params}, x), without)
  # PEFT's Kaiming-uniform initialisation of A, with its a = sqrt(5).
  bound = np.prod(shape[:contracted]) ** -0.5
  assert 0.6 * bound < np.abs(params['lora_a']).max() <= bound
  assert not params['lora_b'].any()

  drawn = np.random.default_rng(1).normal(size=params['lora_b'].shape)
  params['lora_b'] = drawn.astype(np.float32)
  I, O = math.prod(shape[:contracted]), math.prod(shape[contracted:])
  want = flat(x) @ params['w'].reshape(I, O) + params['b'].reshape(O)
  # alpha / rank is 5 / 2.
  want += 5 / 2 * flat(x) @ params['lora_a'].reshape(I, 2) @ params['lora_b'].reshape(2, O)
  got = make(lora=lora).apply({'params': params}, x)
  np.testing.assert_allclose(flat(got), want, atol=1e-5)


def test_merged_weights_give_the_same_velocities():
  _, state, _ = two_steps(tuple(ONE.items()))
  params = state.params
  key = jax.random.key(0)
  noise = train_step.sample_noise(MODEL, CONFIG.flow, key, fitted(), make_batch())

  def outputs(config, params):
    window = train_step.encode_batch(config.model, params, fitted(), make_batch())
    predict = functools.partial(train_step.predict, config.model, config.flow)
    return jax.jit(predict)(params, window, noise)

  plain = finetuning.merged_config(CONFIG)
  wanted = outputs(CONFIG, params)
  merged = outputs(plain, finetuning.merge(params, MODEL.lora))
  without = outputs(plain, finetuning.without_adapters(params))
  for got, want, other in zip(merged, wanted, without, strict=True):
    largest = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=1e-5 * largest)
    # The adapters matter, so that equal outputs mean something.
    assert np.abs(want - other).max() > 1e-2 * largest


def abstract_state(config):
  """Shapes of a fresh state, without the frozen encoders."""
  return nn.unbox(jax.eval_shape(lambda: train_step._init(config, None)))


@pytest.mark.parametrize(('size', 'adapters', 'actions'), [('14B', 19.2, 89.4), ('5B', 10.1, 34.8)])
def test_released_sizes(size, adapters, actions):
  """Spec of the reference: rank 4, in millions; only these have gradients, moments and averages."""
  model = dataclasses.replace(RELEASED[size], lora=cfg.LoraConfig(rank=4))
  config = cfg.TrainConfig(
    model=model, init_from='base', trainable=('lora',), frozen_dtype='bfloat16'
  )
  state = abstract_state(config)
  trained, kept = finetuning.split(state.params, config.trainable)
  sizes = {path: x.size / 1e6 for path, x in leaves(trained).items()}
  in_adapters = sum(size for path, size in sizes.items() if 'lora_' in path)
  in_modules = sum(sizes.values()) - in_adapters
  assert (round(in_adapters, 1), round(in_modules, 1)) == (adapters, actions)
  assert {x.dtype.name for x in jax.tree.leaves(kept)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(trained)} == {'float32'}
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  # Two moments of what is trained, and a few counters.
  assert count(state.opt_state) < 2.01 * count(trained)


@pytest.mark.parametrize('frozen_dtype', ['float32', 'bfloat16'])
def test_other_sets_are_patterns_of_paths(frozen_dtype):
  config = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(MODEL, lora=cfg.LoraConfig()),
    trainable=('action_decoder', 'blocks/*/b'),
    frozen_dtype=frozen_dtype,
  )
  trained, kept = finetuning.split(abstract_state(config).params, config.trainable)
  assert trained['blocks']['ffn'].keys() == {'in', 'out'}
  assert trained['blocks']['ffn']['in'].keys() == {'b'}
  assert trained.keys() == {'blocks', 'action_decoder'}
  assert 'action_decoder' not in kept
  assert {x.dtype.name for x in jax.tree.leaves(kept)} == {frozen_dtype}
  with pytest.raises(
    ValueError,
    match=r"no parameter matches 'acton_\*', 'blocks/lora'; use 'all', 'lora' or patterns "
    r'of the names here: .*action_encoder/mix, .*blocks/cross_attn, ',
  ):
    finetuning.split(finetuning.overlay(kept, trained), ('acton_*', 'blocks/lora', 'head'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'init_from': ''}, 'would leave random weights as they are; set config.init_from'),
    ({'model': dataclasses.replace(MODEL, lora=cfg.LoraConfig())}, 'set config.model.lora.rank'),
    ({'trainable': ('all',)}, 'would train adapters and what they adapt'),
    ({'trainable': ()}, 'trains nothing'),
    ({'frozen_dtype': 'int8'}, 'must be one of'),
  ],
)
def test_sets_that_make_no_sense(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)
  with pytest.raises(ValueError, match="model.lora.targets='qkv' must be one of"):
    cfg.LoraConfig(targets=('qkv',))


def run_config(data, task):
  """A short run on an episode set that is made first."""
  c = train_config.get_config()
  c.data.mixture.disc.path = f'{data}/tabletop/disc_{task}/1.0.0'
  c.data.mixture.disc.prepare = (
    f'data.tabletop --output={data} --embodiment=disc --tasks={task} --episodes=8 '
    '--other_episodes=2'
  )
  c.steps = 4
  c.log_every = 1
  c.save_every = 2
  c.eval_every = 0
  return cfg.from_config_dict(c)


def make_counting_step(*_):
  """A training step that counts and compiles nothing."""

  def step(state, unused_batch):
    with jax.transfer_guard('allow'):  # The loop forbids copies in secret.
      return state.replace(step=state.step + 1), {'loss': jnp.float32(1)}

  return step


@pytest.mark.slow
def test_adapters_on_another_run_for_another_task(tmp_path):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_step, 'make_train_step', make_counting_step)
    train.train(run_config(tmp_path, 'reach'), tmp_path / 'base')
  base = checkpoint.load_for_inference(tmp_path / 'base').params

  config = run_config(tmp_path, 'push')
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, lora=cfg.LoraConfig(rank=2)),
    trainable=('lora',),
    init_from=str(tmp_path / 'base'),
    optimizer=dataclasses.replace(config.optimizer, learning_rate=0.05, warmup_steps=1),
  )
  train.train(config, tmp_path / 'straight')
  with pytest.MonkeyPatch.context() as patch:
    # As a SIGTERM would, but at a known step.
    patch.setattr(guards.StopSignal, 'requested', lambda self, step: step == 2)
    train.train(config, tmp_path / 'resumed')
  train.train(config, tmp_path / 'resumed')
  lines = lambda run: (tmp_path / run / 'metrics.jsonl').read_bytes()
  assert lines('resumed') == lines('straight')

  resumed = checkpoint.load_for_inference(tmp_path / 'resumed')
  loaded, tuned = resumed.config, resumed.params
  assert loaded.model.lora.rank == 0
  assert not checkpoint.list_mismatches(base, tuned)
  straight = checkpoint.load_for_inference(tmp_path / 'straight').params
  jax.tree.map(np.testing.assert_array_equal, tuned, straight)
  after = leaves(tuned)
  same = {path for path, x in leaves(base).items() if np.array_equal(x, after[path])}
  # Of what is frozen, not a bit changed on the way through two checkpoints.
  assert 'text_encoder/table' in same
  assert 'blocks/self_attn/q/b' in same
  assert not same & {'blocks/self_attn/q/w', 'blocks/ffn/out/w', 'action_decoder/out/w'}
  found = source.open_source(tmp_path / 'resumed').metadata['base']
  assert found == {
    'workdir': str(tmp_path / 'base'),
    'step': 4,
    'weights': identity.hash_arrays(base),
    'origin': None,
  }
