"""The kinds of attention against the masked reference: values, gradients, and what they never
make.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.extend import core

from tests import parity
from tests.models import test_wam_golden
from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import presets
from wam_jax import sharding
from wam_jax import types
from wam_jax.models import attention
from wam_jax.models import dit
from wam_jax.models import wam

CONFIG = cfg.ModelConfig(dim=16, mlp_dim=32, num_heads=2, num_layers=2)
KINDS = ('chunks', 'splash')
# A window of training has no cached past.
NOTHING_PAST = dit.Layer(index=None, cached=None)
# Layouts with chunks of two frames, chunks in the window, state rule.
WINDOWS = {
  # Frame 0 is denoised too, as in the released models.
  'released': ((5, range(0, 7), 6, 3, 3), 3, 'reference'),
  'states see their chunk': ((5, range(1, 7), 5, 3, 3), 3, 'chunk'),
  # Four chunks of which two fit, so that pairs between far ones are left out.
  'short window': ((7, range(1, 9), 3, 2, 4), 2, 'self'),
  # 300 tokens a chunk, more than the 128 of a block.
  'frames of several blocks': ((3, range(1, 5), 150, 5, 2), 2, 'self'),
  'one chunk': ((1, range(1, 3), 7, 4, 1), 1, 'self'),
  'video alone': ((3, range(0, 5), 4, 0, 0), 2, 'self'),
  'without clean video': ((0, range(0, 7), 4, 3, 3), 2, 'chunk'),
}


def layout_of(clean, noisy, cells, actions, chunks, states=1):
  """Chunks of two frames of `cells` tokens, with so many actions and states each."""
  return masks.training_layout(
    clean_frames=clean,
    noisy_frames=noisy,
    tokens_per_frame=cells,
    frames_per_chunk=2,
    actions_per_chunk=actions,
    states_per_chunk=states,
    chunks=chunks,
  )


class Window:
  """A layout with random tokens of two samples, one of which has padded actions."""

  def __init__(self, name):
    arguments, chunks, rule = WINDOWS[name]
    self.layout = layout_of(*arguments)
    self.config = dataclasses.replace(
      CONFIG, frames_per_chunk=2, max_chunks=chunks, state_rule=rule
    )
    T = len(self.layout.kind)
    rng = np.random.default_rng(0)
    self.x_BTD = rng.normal(size=(2, T, CONFIG.dim)).astype(np.float32)
    self.angles_TR = rng.normal(size=(T, CONFIG.head_dim // 2)).astype(np.float32)
    self.seen_BT = np.ones((2, T), bool)
    self.seen_BT[1] = (self.layout.kind < masks.ACTION) | (rng.random(T) < 0.5)

  def attend(self, kind):
    """(output, parameters' and tokens' gradients) of the self-attention module; of tokens that see
    anything.
    """
    config = dataclasses.replace(self.config, attention=kind)
    module = dit.SelfAttention(config)
    plan = attention.make_plan(config, self.layout)
    mask = attention.training_mask(config, self.layout) & self.seen_BT[:, None]
    tokens = dit.Tokens(
      modulation_BG6D=None,
      group_T=self.layout.group[plan.order],
      angles_TR=self.angles_TR[plan.order],
      mask=mask[:, None] if kind == 'dense' else attention.arrange(self.seen_BT, plan.order),
      alone_T=plan.alone_T,
      pattern=plan.pattern,
    )
    # Where in the plan's order each token of the layout stands; padding sorts to the end.
    padding_last = np.where(plan.order < 0, len(plan.order), plan.order)
    back_T = np.argsort(padding_last)[: len(self.layout.kind)]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, x_BTD):
      arranged = attention.arrange(x_BTD, plan.order)
      y_BTD, _ = module.apply({'params': params}, arranged, tokens, NOTHING_PAST)
      sees_any = mask.any(-1)[..., None]
      y_BTD = jnp.where(sees_any, attention.arrange(y_BTD, back_T), 0)
      return jnp.mean(y_BTD**2) * y_BTD.size, y_BTD

    given = (self.x_BTD, _all_see_all(self), NOTHING_PAST)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given)['params'])
    rng = np.random.default_rng(1)
    params = jax.tree.map(
      lambda p: rng.normal(size=p.shape).astype(np.float32) / 4, dit.nn.unbox(shapes)
    )
    (_, y_BTD), gradients = run(params, self.x_BTD)
    return jax.tree.leaves((y_BTD, gradients))


def _all_see_all(window):
  return dit.Tokens(
    modulation_BG6D=None,
    group_T=window.layout.group,
    angles_TR=window.angles_TR,
    mask=True,
  )


@pytest.mark.parametrize('name', WINDOWS)
def test_kinds_agree(name):
  window = Window(name)
  want = window.attend('dense')
  for kind in KINDS:
    for got, expected in zip(window.attend(kind), want):
      # Float32, sums in another order.
      atol = 2e-6 * np.abs(expected).max()
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=kind)


def test_fused_kernels_get_the_keys_that_are_seen(monkeypatch):
  """What cuDNN's kernels are given, with the same function of JAX in their place."""
  calls = []

  def attend(*arrays, **named):
    calls.append(named)
    return fused(*arrays, **named, implementation='xla')

  fused = attention.attend_fused
  monkeypatch.setattr(attention, 'attend_fused', attend)
  monkeypatch.setattr(attention, 'is_fused', lambda q_BNTK: True)
  for name in ('released', 'states see their chunk', 'without clean video'):
    window = Window(name)
    want = window.attend('dense')
    for got, expected in zip(window.attend('chunks'), want):
      atol = 2e-6 * np.abs(expected).max()
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=name)
  assert any(named['seen_BS'] is None for named in calls)
  assert any(named['seen_BS'] is not None for named in calls)


def test_golden_forward_and_gradients_by_chunks(golden_dit, request):
  """As `test_wam_golden` has it for the masked reference."""
  case = test_wam_golden.Case(golden_dit)
  by_chunks = functools.partial(dataclasses.replace, case.config, attention='chunks')
  if case.config.history_rule == 'reference_global':
    with pytest.raises(ValueError, match="cannot do model.history_rule='reference_global'"):
      by_chunks()
    return
  model = wam.WorldActionModel(by_chunks())

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    video, action = model.apply({'params': params}, **case.inputs())
    return jnp.mean(video**2) + jnp.mean(action**2), (video, action)

  (_, (video, action)), gradients = run(case.params)
  check = functools.partial(parity.check, request)
  check(
    'DiT by chunks: video',
    np.moveaxis(video, -1, 1),
    golden_dit['out/train/video'],
    absolute=parity.OUTPUTS,
  )
  check('DiT by chunks: action', action, golden_dit['out/train/action'], absolute=parity.OUTPUTS)
  gradients = test_wam_golden.rows.to_weights(case.rows, gradients)
  given = golden_dit.below('out/grad/')
  assert given.keys() & gradients.keys()
  for name in given.keys() & gradients.keys():
    check('DiT by chunks: gradients', gradients[name], given[name], relative=parity.GRADIENTS)


# Fewer than a block, CLIP's 257 tokens, and more than the queries; none divides by 128.
@pytest.mark.parametrize('keys', [5, 257, 700])
def test_attention_to_a_prompt_in_blocks(keys):
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(2, 2, n, 16)).astype(np.float32) for n in (256, keys, keys))
  in_blocks = functools.partial(attention.attend_first, side=128)
  np.testing.assert_allclose(in_blocks(q, k, v), attention.attend(q, k, v), atol=2e-6)

  def gradients(attend):
    loss = lambda *qkv: jnp.sum(attend(*qkv) ** 2)
    return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

  for got, want in zip(gradients(in_blocks), gradients(attention.attend)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)  # Float32, sums in another order.


@pytest.mark.parametrize(
  'small_past, most_logits', [(2**30, 2**30), (0, 2**30), (0, 0)], ids=['copied', 'not', 'by head']
)
def test_a_past_gives_the_same_copied_or_not(small_past, most_logits, monkeypatch):
  """Beside one softmax over all keys; the past in halves, as control keeps it."""
  monkeypatch.setattr(attention, '_SMALL_PAST', small_past)
  monkeypatch.setattr(attention, '_MOST_LOGITS', most_logits)
  rng = np.random.default_rng(0)
  draw = lambda length: jnp.asarray(rng.normal(size=(2, 3, length, 8)), jnp.float32)
  q, k, v = draw(5), draw(5), draw(5)
  past_k, past_v = draw(7).astype(jnp.bfloat16), draw(7).astype(jnp.bfloat16)
  mask = jnp.asarray(rng.random((5, 12)) < 0.6).at[:, -1].set(True)
  got = attention.attend_after(q, past_k, past_v, k, v, mask)
  join = lambda past, own: jnp.concatenate([past.astype(jnp.float32), own], 2)
  want = attention.attend(q, join(past_k, k), join(past_v, v), mask)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_rotations_agree():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
  angles = rng.normal(size=(5, 4)).astype(np.float32)
  got = attention.rotate_by_product(x, angles)
  np.testing.assert_allclose(got, attention.rotate(x, angles), atol=1e-6)
  # Exact in bfloat16: either rounds once, at its end.
  half = jnp.bfloat16(x)
  got = attention.rotate_by_product(half, angles)
  np.testing.assert_array_equal(got, attention.rotate(half, angles))


@pytest.mark.parametrize(
  'order',
  [[0, 1, 2, 3], [2, 3, 0, 1], [-1, 0, 1, -1, -1, 3], [3, 2, 1, 0, -1], [-1, -1], [1]],
  ids=str,
)
def test_tokens_are_arranged_and_gaps_are_zeros(order):
  x = np.arange(1, 9).reshape(2, 4)
  want = np.where(np.array(order) < 0, 0, x[:, order])
  np.testing.assert_array_equal(attention.arrange(jnp.asarray(x), np.array(order)), want)


def test_which_attention_is_chosen_for_a_number_of_tokens(monkeypatch):
  # At both edges of the choice, and at the released window.
  choose = lambda *tokens: [attention.choose(CONFIG, n) for n in tokens]
  assert choose(512, 513, 14180) == ['dense', 'chunks', 'chunks']
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  assert choose(512, 513, 4095, 4096) == ['dense', 'chunks', 'chunks', 'splash']
  defective = dataclasses.replace(CONFIG, history_rule='reference_global')
  assert attention.choose(defective, 14180) == 'dense'
  assert attention.choose(dataclasses.replace(CONFIG, attention='chunks'), 3) == 'chunks'


def plan_on(sizes, **changes):
  devices = np.prod(list(sizes.values()))
  mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
  config = dataclasses.replace(CONFIG, **changes)
  layout, _, _ = WINDOWS['one chunk']
  with sharding.activate(mesh, cfg.DEFAULT_RULES):
    return attention.make_plan(config, layout_of(*layout))


def test_meshes_that_do_not_fit_raise():
  with pytest.raises(
    ValueError, match=r'num_heads=2 must be divisible by the 8 shards .* nearest valid: 2\.'
  ):
    plan_on({'data': 1, 'fsdp': 1, 'tensor': 8, 'seq': 1})
  with pytest.raises(
    ValueError, match=r'26 tokens cannot be split into the 8 shards .* nearest valid: 2\.'
  ):
    plan_on({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 8}, attention='splash', frames_per_chunk=2)
  several = layout_of(3, range(1, 5), cells=2, actions=4, chunks=2, states=2)
  config = dataclasses.replace(CONFIG, attention='splash', frames_per_chunk=2)
  with pytest.raises(ValueError, match="needs one state a chunk, or model.state_rule='chunk'"):
    attention.make_plan(config, several)


def test_no_matrix_of_all_pairs():
  """In the 14B window at a quarter of the rows and columns, no array has two axes of tokens."""
  c = dataclasses.replace(
    presets.WAN2_1_I2V_14B,
    dim=64,
    mlp_dim=64,
    num_heads=4,
    num_layers=2,
    image_dim=0,
    attention='chunks',
    text=cfg.TextConfig(dim=8),
  )
  # Frames, then 12 x 20 cells for 44 x 80, a quarter of each; 6 x 10 tokens a frame.
  noisy = (1, 9, 12, 20, 16)
  zeros = lambda *shape: np.zeros(shape, np.float32)
  arguments = dict(
    clean_BFHWC=zeros(1, 7, *noisy[2:]),
    noisy=types.Noisy(
      video_BFHWC=zeros(*noisy),
      sigma_video_BF=zeros(1, 9),
      action_BAU=zeros(1, 96, 32),
      sigma_action_BA=zeros(1, 96),
    ),
    body=types.Body(
      proprio_BSX=zeros(1, 4, 64),
      embodiment_B=np.zeros(1, np.int32),
      valid_BA=np.ones((1, 96), bool),
    ),
    text_BPC=zeros(1, 4, 8),
    condition=types.Condition(latents_BFHWC=zeros(1, 9, 12, 20, 20)),
  )
  model = wam.WorldActionModel(c)
  params = jax.eval_shape(
    lambda: dit.nn.unbox(model.init(jax.random.key(0), **arguments)['params'])
  )
  loss = lambda params: jnp.sum(model.apply({'params': params}, **arguments)[0] ** 2)
  # 7 clean and 9 noisy frames, 96 actions and 4 states.
  tokens = 16 * 60 + 100
  shapes = [v.aval.shape for v in _variables(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)]
  # Tokens do appear under that number: the next line looks for the right thing.
  assert any(tokens in shape for shape in shapes)
  assert not [shape for shape in shapes if sum(n > tokens // 2 for n in shape) > 1]


def _variables(jaxpr):
  """Constants and results of a program and of those inside it."""
  yield from jaxpr.constvars
  for equation in jaxpr.eqns:
    yield from equation.outvars
    for inner in core.jaxprs_in_params(equation.params):
      yield from _variables(inner)


@pytest.mark.slow
@pytest.mark.parametrize(
  'topology, video_sees', [('v5p:2x2x1', 'all'), ('v6e:2x2', 'all'), ('v6e:2x2', 'video')]
)
def test_kernels_compile_for_tpus(topology, video_sees, monkeypatch):
  """Attention of the 14B training window and to its prompt, with gradients, heads and tokens split;
  needs no TPU.
  """
  pytest.importorskip('libtpu', reason="pip install -e '.[aot]'")
  # The processors' backend reads its flags here; TPUs' would end the process over them.
  jax.devices()
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[:4]
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 2, 'seq': 2}, devices)
  c = dataclasses.replace(presets.WAN2_1_I2V_14B, video_sees=video_sees)
  layout = layout_of(7, range(9), cells=880, actions=24, chunks=4)
  with sharding.activate(mesh, cfg.DEFAULT_RULES):
    plan = attention.make_plan(c, layout)
    # 16 blocks of 896, a multiple of the 128 lanes of the chip, hold 14,180 tokens.
    assert plan.pattern.side == 896
    assert len(plan.order) == 14336

    def loss(q, k, v, seen, prompt):
      q, k = (
        attention.rotate_by_product(x, np.zeros((len(plan.order), c.head_dim // 2), np.float32))
        for x in (q, k)
      )
      y = attention.attend_blocks(q, k, v, seen, blocks=plan.pattern, name=dit.SAVED)
      return jnp.sum(
        (y + attention.attend_first(q, prompt, prompt, side=plan.pattern.side)).astype(jnp.float32)
        ** 2
      )

    tokens = jax.ShapeDtypeStruct((1, c.num_heads, len(plan.order), c.head_dim), jnp.bfloat16)
    prompt = jax.ShapeDtypeStruct((1, c.num_heads, c.image_tokens, c.head_dim), jnp.bfloat16)
    split = sharding.batch_sharding(mesh, cfg.DEFAULT_RULES)
    lowered = jax.jit(jax.grad(loss, (0, 1, 2, 4)), out_shardings=split).lower(
      tokens, tokens, tokens, jax.ShapeDtypeStruct((1, len(plan.order)), bool), prompt
    )
  assert 'splash_mha_dkv' in lowered.as_text()
  # The logits alone would be 33 GB.
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 4e9
