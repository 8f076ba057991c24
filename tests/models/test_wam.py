"""The world action model on random weights: control equals training, and nothing leaks.

Two latent frames a chunk, three chunks, three embodiments. Of the three samples the first has every
action step, the second lacks the last of each chunk, the third is video only.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from tests import weights
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.models import attention
from wam_jax.models import wam

# Rows and columns differ, and so do frames and actions of a chunk: a mix-up changes a shape.
B, Q, F, A, H, W, C, U, X = 3, 3, 2, 3, 4, 2, 3, 3, 4
CONFIG = dataclasses.replace(
  weights.SMALL,
  action_dim=U,
  proprio_dim=X,
  num_embodiments=3,
  frames_per_chunk=F,
  actions_per_chunk=A,
  max_chunks=Q,
  tokenizer=cfg.TokenizerConfig(channels=C),
  text=cfg.TextConfig(dim=8, length=4),
)
CHUNK_STATE = dataclasses.replace(CONFIG, state_rule='chunk')
BFLOAT16 = dataclasses.replace(CONFIG, dtype='bfloat16')
# Not 0, 1, 2: weights must be chosen by the robot, not by the place in the batch.
EMBODIMENT_B = np.int32([0, 2, 1])
VALID_BA = np.bool_([[1, 1, 1] * Q, [1, 1, 0] * Q, [0, 0, 0] * Q])


def make_inputs():
  """Arrays by the names of the fields they are of: one can be changed alone."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  level = lambda *shape: rng.uniform(size=shape).astype(np.float32)
  return dict(
    clean_BFHWC=normal(B, 1 + Q * F, H, W, C),
    video_BFHWC=normal(B, Q * F, H, W, C),
    sigma_video_BF=level(B, Q * F),
    action_BAU=normal(B, Q * A, U),
    sigma_action_BA=level(B, Q * A),
    proprio_BSX=normal(B, Q, X),
    text_BPC=normal(B, 4, 8),
    embodiment_B=EMBODIMENT_B,
    valid_BA=VALID_BA,
  )


INPUTS = make_inputs()


# What a chunk has of each input, along the second axis.
LENGTHS = dict(
  video_BFHWC=F, sigma_video_BF=F, action_BAU=A, sigma_action_BA=A, proprio_BSX=1, valid_BA=A
)


def pick(kind, inputs):
  names = [field.name for field in dataclasses.fields(kind)]
  return kind(**{name: inputs[name] for name in names if name in inputs})


def arguments(inputs):
  """Arguments of the model: without actions, of video alone."""
  return dict(
    clean_BFHWC=inputs['clean_BFHWC'],
    noisy=pick(types.Noisy, inputs),
    body=None if inputs['action_BAU'] is None else pick(types.Body, inputs),
    text_BPC=inputs['text_BPC'],
  )


def init(key):
  return nn.unbox(wam.WorldActionModel(CONFIG).init(key, **arguments(INPUTS))['params'])


@functools.cache
def random_params():
  return weights.draw_like(jax.eval_shape(init, jax.random.key(0)), seed=1)


@functools.cache
def compiled(config):
  """Teacher-forced (video, action) velocities of `(params, inputs)`."""
  model = wam.WorldActionModel(config)
  return jax.jit(lambda params, inputs: model.apply({'params': params}, **arguments(inputs)))


def forward(config=CONFIG, params=None, **changes):
  params = random_params() if params is None else params
  video, action = compiled(config)(params, INPUTS | changes)
  return np.asarray(video), np.asarray(action)


@functools.cache
def compiled_method(config, name):
  """A method of the model with random weights."""
  model = wam.WorldActionModel(config)
  run = jax.jit(lambda params, *args: model.apply({'params': params}, *args, method=name))
  return functools.partial(run, random_params())


def make_cache(config, frames):
  """An empty cache with room for so many frames."""
  tokens_per_frame = (H // config.patch) * (W // config.patch)
  return attention.KVCache.empty(
    layers=config.num_layers,
    batch=B,
    heads=config.num_heads,
    slots=frames * tokens_per_frame,
    head_dim=config.head_dim,
    dtype=config.dtype,
  )


def of_chunk(x, chunk, length):
  """The share of a chunk, counted from 1."""
  return x[:, (chunk - 1) * length : chunk * length]


def frames_of_chunk(chunk):
  """The latent frames of a chunk, of which chunk 0 is frame 0."""
  if chunk == 0:
    return slice(0, 1)
  return slice(1 + (chunk - 1) * F, 1 + chunk * F)


def cached(config):
  """The same velocities chunk by chunk, from a cache of the clean frames before."""
  # Neither prompt nor commit has states: one program for both rules.
  without_states = dataclasses.replace(config, state_rule='self')
  commit = compiled_method(without_states, 'commit')
  denoise = compiled_method(config, 'denoise')
  prompt = compiled_method(without_states, 'prompt_kv')(INPUTS['text_BPC'])

  cache = make_cache(config, frames=1 + (Q - 1) * F)
  cache = commit(cache, INPUTS['clean_BFHWC'][:, :1], jnp.int32(0), prompt)
  outputs = []
  for c in range(1, Q + 1):
    if c > 1:
      seen = frames_of_chunk(c - 1)
      cache = commit(cache, INPUTS['clean_BFHWC'][:, seen], jnp.int32(seen.start), prompt)
    noisy, body = chunk_of(INPUTS, c)
    outputs.append(denoise(cache, noisy, body, cache.frames, prompt))
  return [np.concatenate(parts, 1) for parts in zip(*outputs)]


@pytest.mark.parametrize('config', [CONFIG, CHUNK_STATE], ids=['self', 'chunk'])
def test_cached_chunks_equal_teacher_forcing(config):
  for got, want in zip(cached(config), forward(config)):
    # Float32, sums in another order; outputs are near 1.
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Two outputs of zero would agree, too.
    assert np.std(want) > 0.1


def test_a_past_too_large_to_be_copied(monkeypatch):
  """As those of released sizes are, which is attended to apart from the chunk's own keys."""
  want = forward(CONFIG)
  forget_programs()
  monkeypatch.setattr(attention, '_SMALL_PAST', 0)
  try:
    got = cached(CONFIG)
  finally:
    forget_programs()
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, atol=1e-5)


@flax.struct.dataclass(kw_only=True)
class NoisyAfterPrefix(types.Noisy):
  """A field that the project does not have: action steps that are already decided."""

  prefix_BA: types.Array


class ModelWithPrefix(wam.WorldActionModel):
  """The one place that reads the field."""

  def _register(self, noisy, body, chunk=0):
    level_BA = jnp.where(noisy.prefix_BA, 0, noisy.sigma_action_BA)
    return super()._register(noisy.replace(sigma_action_BA=level_BA), body, chunk)


def forget_programs():
  compiled.cache_clear()
  compiled_method.cache_clear()


@pytest.fixture
def forgotten_programs():
  """Compiled programs of a changed model are nobody else's."""
  yield
  forget_programs()


def test_a_new_field_needs_its_class_and_its_reader_alone(monkeypatch, forgotten_programs):
  """Training's pass and control's carry it from the one who makes it to the one who reads it."""
  prefix_BA = np.zeros((B, Q * A), bool)
  prefix_BA[:, ::A] = True  # The first action step of each chunk.
  clean_prefix = np.where(prefix_BA, 0, INPUTS['sigma_action_BA'])
  want = forward(sigma_action_BA=clean_prefix)
  assert np.abs(want[1] - forward()[1]).max() > 1e-3

  monkeypatch.setattr(types, 'Noisy', NoisyAfterPrefix)
  monkeypatch.setattr(wam, 'WorldActionModel', ModelWithPrefix)
  monkeypatch.setitem(INPUTS, 'prefix_BA', prefix_BA)
  monkeypatch.setitem(LENGTHS, 'prefix_BA', A)
  compiled.cache_clear()
  compiled_method.cache_clear()
  for run in (forward, cached):
    for got, expected in zip(run(CONFIG), want):
      np.testing.assert_allclose(got, expected, atol=1e-5)  # Float32, sums in another order.


@pytest.mark.parametrize('rule', ['chunk', pytest.param('self', marks=pytest.mark.slow)])
def test_actions_against_kept_video_equal_all_of_it_again(rule):
  """Later steps of the actions see the video as it was kept: what recomputing everything gives,
  with several robots, padding and a robot without actions; and `act` is both passes in one.
  """
  config = dataclasses.replace(CONFIG, state_rule=rule, video_sees='video')
  method = functools.partial(compiled_method, config)
  prompt = method('prompt_kv')(INPUTS['text_BPC'])
  want_video, want_action = forward(config)
  later = INPUTS | dict(
    action_BAU=0.5 * INPUTS['action_BAU'] + 0.3, sigma_action_BA=0.5 * INPUTS['sigma_action_BA']
  )
  want_later = forward(config, **later)
  # The video does not notice the actions.
  np.testing.assert_array_equal(want_later[0], want_video)
  assert np.abs(want_later[1] - want_action).max() > 1e-2

  # One pass a call: what was executed is committed, the next chunk is denoised and kept.
  cache = make_cache(config, frames=config.window_frames)
  for c in range(1, Q + 1):
    seen = frames_of_chunk(c - 1)
    clean_BFHWC, start = INPUTS['clean_BFHWC'][:, seen], jnp.int32(seen.start)
    noisy, body = chunk_of(INPUTS, c)
    separate = method('commit')(cache, clean_BFHWC, start, prompt)
    separate = method('act')(separate, None, noisy, body, separate.frames, prompt)
    cache, *velocities = method('act')(cache, clean_BFHWC, noisy, body, start, prompt)
    jax.tree.map(close, (cache, *velocities), separate)
    wanted = (of_chunk(want_video, c, F), of_chunk(want_action, c, A))
    jax.tree.map(close, tuple(velocities), wanted)

    # Another step of the actions, without the video.
    noisy, body = chunk_of(later, c)
    alone = types.Noisy(action_BAU=noisy.action_BAU, sigma_action_BA=noisy.sigma_action_BA)
    action = denoise_actions(config, F)(cache, alone, body, cache.frames, prompt)
    close(action, of_chunk(want_later[1], c, A))


def test_actions_alone_equal_training_that_hides_the_video():
  """What a share of training shows is what control without future video computes."""
  # The video sees actions in this model: it makes no difference to actions that do not see it.
  hidden = np.ones((B, Q * F), bool)
  hidden[:, F : 2 * F] = False  # Of chunk 2.
  _, want = forward(video_seen_BF=hidden)
  np.testing.assert_array_equal(of_chunk(want, 1, A), of_chunk(forward()[1], 1, A))

  method = functools.partial(compiled_method, CONFIG)
  prompt = method('prompt_kv')(INPUTS['text_BPC'])
  cache = make_cache(CONFIG, frames=1 + F)
  cache = method('commit')(cache, INPUTS['clean_BFHWC'][:, :1], jnp.int32(0), prompt)
  noisy, body = chunk_of(INPUTS, 2)
  alone = types.Noisy(action_BAU=noisy.action_BAU, sigma_action_BA=noisy.sigma_action_BA)
  clean_BFHWC = INPUTS['clean_BFHWC'][:, frames_of_chunk(1)]
  cache, video, action = method('act')(cache, clean_BFHWC, alone, body, jnp.int32(1), prompt)
  assert video is None
  close(action, of_chunk(want, 2, A))
  # A further step, when the frames are in the cache.
  again = denoise_actions(CONFIG, 0)(cache, alone, body, cache.frames, prompt)
  close(again, of_chunk(want, 2, A))


def close(got, want):
  np.testing.assert_allclose(got, want, atol=1e-5)  # Float32, sums in another order.


@functools.cache
def denoise_actions(config, kept):
  """`denoise_actions` against so many kept frames of the chunk."""
  of_frame = dict(tokens_per_frame=(H // config.patch) * (W // config.patch))
  model = wam.WorldActionModel(config)
  run = lambda params, *args: model.apply(
    {'params': params}, *args, kept=kept, **of_frame, method='denoise_actions'
  )
  return functools.partial(jax.jit(run), random_params())


def chunk_of(inputs, chunk):
  """(noisy, body) of a chunk, counted from 1."""
  here = inputs | {name: of_chunk(inputs[name], chunk, n) for name, n in LENGTHS.items()}
  return pick(types.Noisy, here), pick(types.Body, here)


def test_bfloat16_is_close():
  """bfloat16 keeps 8 bits, 0.4 %, through some ten roundings a layer."""
  for got, want in zip(forward(BFLOAT16), forward()):
    mean_square = np.mean((got - want) ** 2) / np.mean(want**2)
    assert 1e-3 < np.sqrt(mean_square) < 0.05


def test_state_rules_differ():
  """A state that sees its chunk carries it to the others, from the second layer on."""
  for got, other in zip(forward(), forward(CHUNK_STATE)):
    assert np.abs(got - other).max() > 1e-3


def test_chunks_see_the_clean_past_and_their_own_inputs_only():
  """Changes one input of one chunk at a time and lists the chunks whose outputs change at all.

  Exact, not close: a masked key has weight zero. Clean chunk c is one of frames; clean chunk 0 is
  frame 0.
  """
  before = forward()

  def chunks_changed(**inputs):
    """[of the video, of the actions]."""
    return [
      [c for c in range(1, Q + 1) if differ(of_chunk(a, c, n), of_chunk(b, c, n))]
      for a, b, n in zip(before, forward(**inputs), (F, A))
    ]

  for c in range(Q + 1):
    later = list(range(c + 1, Q + 1))
    changed = chunks_changed(clean_BFHWC=moved('clean_BFHWC', 0, frames_of_chunk(c)))
    assert changed == [later, later], f'clean chunk {c}'
  # What is noisy of a chunk reaches that chunk alone.
  for name in ('video_BFHWC', 'sigma_video_BF', 'action_BAU', 'sigma_action_BA', 'proprio_BSX'):
    n = LENGTHS[name]
    for c in range(1, Q + 1):
      changed = chunks_changed(**{name: moved(name, 0, slice((c - 1) * n, c * n))})
      assert changed == [[c], [c]], f'{name} of chunk {c}'


def differ(a, b):
  """Of sample 0, at all."""
  return bool(np.any(a[0] != b[0]))


def moved(name, sample, steps=slice(None)):
  """Input `name` with some steps of one sample changed."""
  values = INPUTS[name].copy()
  values[sample, steps] = 0.5 * values[sample, steps] + 0.3
  return values


def test_clean_frames_that_nobody_sees_may_be_left_out():
  shorter = forward(clean_BFHWC=INPUTS['clean_BFHWC'][:, :-F])
  for got, want in zip(shorter, forward()):
    np.testing.assert_allclose(got, want, atol=1e-5)  # Float32, sums of another length.


@pytest.mark.parametrize('name', ['action_BAU', 'sigma_action_BA', 'proprio_BSX'])
def test_video_only_samples_ignore_actions_and_states(name):
  video, _ = forward()
  after = forward(**{name: moved(name, sample=2)})[0]
  np.testing.assert_array_equal(after, video)
  # The same change where actions are valid does reach the video.
  with_actions = forward(**{name: moved(name, sample=0)})[0]
  assert np.any(with_actions[0] != video[0])
  np.testing.assert_array_equal(with_actions[1:], video[1:])


@pytest.mark.parametrize('name', ['action_BAU', 'sigma_action_BA'])
def test_padded_action_steps_change_nothing_else(name):
  padded = ~VALID_BA[1]
  video, action = forward()
  values = INPUTS[name].copy()
  values[1, padded] += 0.3
  after_video, after_action = forward(**{name: values})
  np.testing.assert_array_equal(after_video, video)
  np.testing.assert_array_equal(after_action[1, ~padded], action[1, ~padded])
  assert np.all(np.any(after_action[1, padded] != action[1, padded], -1))


def test_actions_of_an_overlap_are_where_their_time_is():
  """Those of two actions a chunk and one that overlaps; in control the start is traced."""
  model = wam.WorldActionModel(dataclasses.replace(CONFIG, actions_per_chunk=2, action_overlap=1))
  angles_TR = attention.sequence_angles(0, 5, CONFIG.head_dim)
  want_TR = angles_TR[[0, 1, 2, 2, 3, 4]]
  np.testing.assert_array_equal(model._action_angles(3, 2, 0), want_TR)
  np.testing.assert_allclose(model._action_angles(3, 1, jnp.int32(1)), want_TR[3:], atol=1e-6)


def test_samples_of_a_batch_do_not_mix():
  """Each alone gives what it gives in the batch; float32 sums may run in another order."""
  together = forward()
  for i in range(B):
    repeated = {name: np.repeat(value[i : i + 1], B, 0) for name, value in INPUTS.items()}
    alone = forward(**repeated)
    for got, want in zip(alone, together):
      np.testing.assert_allclose(got[i], want[i], atol=1e-5)


def test_each_embodiment_has_its_own_action_weights():
  """Sample 1 is of embodiment 2; sample 0, of embodiment 0, must not notice."""
  want_video, want_action = forward()
  of_embodiment_2 = lambda w: np.concatenate([w[:2], w[2:] + 0.1])
  for module in ('action_encoder', 'state_encoder', 'action_decoder'):
    params = dict(random_params())
    params[module] = jax.tree.map(of_embodiment_2, params[module])
    video, action = forward(params=params)
    np.testing.assert_array_equal(action[0], want_action[0])
    assert np.any(action[1] != want_action[1])
    np.testing.assert_array_equal(video[0], want_video[0])
    assert np.any(video[1] != want_video[1]) == (module != 'action_decoder')


def test_video_alone_is_video_whose_actions_nobody_sees():
  """Sample 2 has no valid action; the sums over masked keys are those without the keys."""
  video_alone = INPUTS | dict(action_BAU=None, sigma_action_BA=None)
  video, action = compiled(CONFIG)(random_params(), video_alone)
  assert action is None
  np.testing.assert_allclose(video[2], forward()[0][2], atol=1e-5)


def test_actions_need_a_body_and_a_body_actions():
  given = arguments(INPUTS)
  video_alone = given['noisy'].replace(action_BAU=None, sigma_action_BA=None)
  model = wam.WorldActionModel(CONFIG)
  for half in (dict(body=None), dict(noisy=video_alone)):
    with pytest.raises(ValueError, match='action_BAU and body must come together'):
      jax.eval_shape(lambda half=half: model.apply({'params': random_params()}, **given | half))


def test_without_clean_video_chunks_see_their_noisy_past():
  """Noise in chunk c reaches the velocities of chunk c and of later ones; chunk 0 is frame 0."""
  inputs = dict(
    clean_BFHWC=None,
    # Frame 0 is noisy as well: one frame more than elsewhere.
    video_BFHWC=INPUTS['clean_BFHWC'],
    sigma_video_BF=np.full((B, 1 + Q * F), 0.5),
  )
  before, _ = forward(**inputs)
  for c in range(Q + 1):
    noisy = inputs['video_BFHWC'].copy()
    noisy[:, frames_of_chunk(c)] += 0.3
    after, _ = forward(**{**inputs, 'video_BFHWC': noisy})
    moved_frames = np.any(after != before, (0, 2, 3, 4))
    changed = [k for k in range(Q + 1) if moved_frames[frames_of_chunk(k)].any()]
    assert changed == list(range(c, Q + 1))


def test_full_cache_drops_the_oldest_frames():
  """A window of one chunk and frame 0: a cache of its size gives what a cache that drops nothing
  gives.
  """
  config = dataclasses.replace(CONFIG, max_chunks=1)
  commit = compiled_method(config, 'commit')
  denoise = compiled_method(config, 'denoise')
  prompt = compiled_method(config, 'prompt_kv')(INPUTS['text_BPC'])
  noisy = types.Noisy(
    video_BFHWC=INPUTS['video_BFHWC'][:, :F], sigma_video_BF=INPUTS['sigma_video_BF'][:, :F]
  )
  outputs = []
  # A cache that wraps around, and one in which every frame has a slot.
  for frames in (config.window_frames, 1 + Q * F):
    cache = make_cache(config, frames)
    videos = []
    for c in range(Q + 1):
      seen = frames_of_chunk(c)
      clean_BFHWC = INPUTS['clean_BFHWC'][:, seen]
      cache = commit(cache, clean_BFHWC, jnp.int32(seen.start), prompt)
      video, _ = denoise(cache, noisy, None, cache.frames, prompt)
      videos.append(video)
    assert cache.frames == 1 + Q * F
    outputs.append(videos)
  for got, want in zip(*outputs, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5)  # Float32, sums in another order.
    assert np.std(want) > 0.1


def test_prompt_matters():
  for got, want in zip(forward(text_BPC=-INPUTS['text_BPC']), forward()):
    assert np.abs(got - want).max() > 1e-2


def test_untrained_video_velocity_is_zero():
  """Whatever the other weights, because the head starts at zero."""
  head = jax.jit(lambda key: init(key)['head'])(jax.random.key(0))
  video, action = forward(params={**random_params(), 'head': head})
  np.testing.assert_array_equal(video, 0)
  assert np.std(action) > 0.1


# The video of sample 0's second chunk is seen by nobody.
HIDDEN = np.ones((B, Q * F), bool)
HIDDEN[0, F : 2 * F] = False


def loss(config, blocks):
  params = {**random_params(), 'blocks': blocks}
  # One case has all there is about who sees the video.
  inputs = INPUTS | (dict(video_seen_BF=HIDDEN) if config.video_sees == 'video' else {})
  video, action = wam.WorldActionModel(config).apply({'params': params}, **arguments(inputs))
  if config.video_sees == 'video':
    video = video * HIDDEN[:, :, None, None, None]
  return jnp.mean(video**2) + jnp.mean(action**2)


@functools.cache
def gradients(config):
  return jax.jit(jax.value_and_grad(functools.partial(loss, config)))(random_params()['blocks'])


@pytest.mark.parametrize(
  'attention, remat, video_sees',
  [
    ('chunks', 'none', 'all'),
    pytest.param('splash', 'none', 'all', marks=pytest.mark.slow),
    ('dense', 'block', 'all'),
    pytest.param('chunks', 'block', 'all', marks=pytest.mark.slow),
    pytest.param('chunks', 'dots', 'all', marks=pytest.mark.slow),
    ('splash', 'dots_and_attention', 'all'),
    ('chunks', 'narrow', 'all'),
    ('dense', 'offload', 'all'),
    ('chunks', 'none', 'video'),
    pytest.param('splash', 'none', 'video', marks=pytest.mark.slow),
  ],
)
def test_kinds_of_attention_and_rematerialisation_give_the_same_gradients(
  attention, remat, video_sees
):
  """A window of two of the three chunks; one sample has padded actions, one none."""
  config = dataclasses.replace(CONFIG, attention='dense', max_chunks=2, video_sees=video_sees)
  want_loss, want = gradients(config)
  got_loss, got = gradients(dataclasses.replace(config, attention=attention, remat=remat))
  np.testing.assert_allclose(got_loss, want_loss, rtol=1e-5)
  for (path, w), g in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got)):
    # Float32, the same numbers added in another order; keys' biases have no gradient but rounding.
    atol = 1e-5 * max(np.abs(w).max(), 0.01)
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(g, w, rtol=1e-4, atol=atol, err_msg=name)


def test_rematerialisation_saves_what_it_says():
  """Counted in the program of the gradient: forward kernels, products, and copies to the host."""

  def count(name, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    program = jax.make_jaxpr(jax.grad(functools.partial(loss, config)))(random_params()['blocks'])
    return sum(name in operation for operation in operations(program.jaxpr))

  kernels = {
    remat: count('splash_mha_fwd', attention='splash', remat=remat)
    for remat in ('none', 'save_attention', 'dots', 'dots_and_attention', 'block')
  }
  # Self-attention and prompt, once or twice.
  twice = {'dots': 4, 'block': 4}
  assert kernels == {'none': 2, 'save_attention': 3, 'dots_and_attention': 3} | twice
  products = {
    remat: count('dot_general', attention='chunks', remat=remat)
    for remat in ('none', 'dots', 'dots_and_attention', 'narrow', 'block')
  }
  assert products['none'] < products['dots'] < products['block']
  # One product of the one scanned block is computed again.
  assert products['narrow'] == products['dots_and_attention'] + 1
  assert count('Host', remat='offload')
  assert not count('Host', remat='block')


def operations(jaxpr):
  """Names of a program's operations, and where they put their results; without calls that give
  nothing.
  """
  for equation in jaxpr.eqns:
    if not equation.outvars:
      continue
    name, devices = (equation.params.get(key, '') for key in ('name', 'devices'))
    yield f'{equation.primitive} {name} {devices}'
    if equation.primitive.name != 'pallas_call':
      for inner in core.jaxprs_in_params(equation.params):
        yield from operations(inner)


def test_unrolled_layers_are_the_same():
  for got, want in zip(forward(dataclasses.replace(CONFIG, scan_unroll=2)), forward()):
    np.testing.assert_allclose(got, want, atol=1e-5)  # The same operations, fused in other ways.
