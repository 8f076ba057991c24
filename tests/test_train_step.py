"""The update by hand: learning rate, decayed weights, averaging, and that the loss uses what the
masks say.

Loss, predictions and gradients against the official policy head (tests/golden).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import flow
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows

MODEL = cfg.ModelConfig(
  dim=16,
  mlp_dim=16,
  num_heads=2,
  num_layers=1,
  action_dim=2,
  proprio_dim=2,
  actions_per_chunk=2,
  action_hidden=8,
  text=cfg.TextConfig(dim=8, length=4, layers=0, vocab=16),
  tokenizer=cfg.TokenizerConfig(channels=3, spatial=2),
)
CONFIG = cfg.TrainConfig(
  model=MODEL,
  batch_size=4,
  steps=100,
  flow=cfg.FlowConfig(weighting='uniform'),
  # Round numbers, of which the schedule and the average follow by hand.
  optimizer=cfg.OptimizerConfig(
    learning_rate=0.1, warmup_steps=10, hold_fraction=0.5, ema_decay=0.75
  ),
)


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  B, Q, A = 4, MODEL.max_chunks, MODEL.max_chunks * MODEL.actions_per_chunk
  return types.Batch(
    frames_BRIJ3=rng.integers(0, 256, (B, MODEL.camera_frames(Q), 8, 8, 3), dtype=np.uint8),
    action_BAU=rng.normal(size=(B, A, 2)).astype(np.float32),
    action_mask_BAU=np.ones((B, A, 2), bool),
    proprio_BQX=rng.normal(size=(B, Q, 2)).astype(np.float32),
    chunk_mask_BQ=np.ones((B, Q), bool),
    prompt_ids_BP=np.ones((B, 4), np.int32),
    embodiment_B=np.zeros(B, np.int32),
    sample_B2=np.zeros((B, 2), np.int32),
  )


@pytest.fixture(scope='module')
def start():
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:1])
  frozen = train_step.fit_frozen(MODEL, [make_batch()])
  return mesh, *train_step.init_state(CONFIG, mesh, frozen)


def loss_of(config, state, batch, key):
  noise = train_step.sample_noise(config.model, config.flow, key, state.frozen, batch)
  return train_step.loss_fn(config, state.params, state.frozen, batch, noise)[1]


def test_learning_rate_warms_up_holds_and_decays():
  rate = train_step.make_schedule(CONFIG.optimizer, CONFIG.steps)
  # 10 steps up, then half of the other 90 at the peak, then a cosine over 45.
  np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 54)], [0, 0.05, 0.1, 0.1], rtol=1e-6)
  np.testing.assert_allclose(rate(55 + 45 / 2), 0.05, rtol=1e-5)
  np.testing.assert_allclose(rate(100), 0.0, atol=1e-8)


def test_a_schedule_may_end_after_the_run():
  part = train_step.make_schedule(dataclasses.replace(CONFIG.optimizer, decay_steps=100), 30)
  whole = train_step.make_schedule(CONFIG.optimizer, 100)
  steps = np.arange(30)
  np.testing.assert_array_equal(part(steps), whole(steps))


def test_only_kernels_and_tables_decay(start):
  decayed = jax.tree_util.tree_flatten_with_path(train_step._is_matrix(start[1].params))[0]
  kinds = {True: set(), False: set()}
  for path, is_decayed in decayed:
    kinds[is_decayed].add(path[-1].key)
  assert kinds[True] == {'w', 'table'}
  assert kinds[False] == {'b', 'scale', 'bias', 'modulation', 'head_modulation'}


def test_average_forgets_its_start_then_decays():
  ema = {'x': jnp.float32(100.0)}
  ema = train_step._average(ema, {'x': jnp.float32(1.0)}, jnp.int32(0), 0.75)
  assert ema['x'] == 1.0
  ema = train_step._average(ema, {'x': jnp.float32(2.0)}, jnp.int32(1), 0.75)
  # The decay begins at step / (step + 1): the plain mean of the two.
  assert ema['x'] == 1.5
  ema = train_step._average(ema, {'x': jnp.float32(3.5)}, jnp.int32(99), 0.75)
  # 0.75 * 1.5 + 0.25 * 3.5.
  assert ema['x'] == 2.0
  assert train_step._average(None, {}, jnp.int32(0), 0.0) is None


def test_untrained_loss_is_that_of_zero_velocity(start):
  """The video head starts at zero, so the video loss is the mean square of noise - clean."""
  _, state, _ = start
  batch = make_batch()
  loss = jax.jit(lambda key: loss_of(CONFIG, state, batch, key)['video_loss'])
  losses = [loss(jax.random.key(k)) for k in range(16)]
  clean = np.asarray(state.frozen.encode(batch.frames_BRIJ3))[:, 1:]
  # Sixteen draws of 384 latents: the standard error is about 0.02.
  np.testing.assert_allclose(np.mean(losses), 1 + np.mean(clean**2), atol=0.08)


@pytest.mark.parametrize('schedule', ['coupled', 'flash'])
def test_masked_entries_and_chunks_change_no_loss(start, schedule):
  _, state, _ = start
  flow_config = dataclasses.replace(CONFIG.flow, schedule=schedule)
  config = dataclasses.replace(CONFIG, flow=flow_config)
  loss = jax.jit(lambda batch: loss_of(config, state, batch, jax.random.key(3)))
  batch = make_batch()
  batch.chunk_mask_BQ[0, 1] = False
  batch.action_mask_BAU[0, 2:] = False
  batch.action_mask_BAU[1] = False  # Video only.
  batch = batch.replace(action_BAU=np.where(batch.action_mask_BAU, batch.action_BAU, 0))
  want = loss(batch)

  frames = batch.frames_BRIJ3.copy()
  frames[0, 3:] = 0  # Those of the masked chunk.
  got = loss(batch.replace(frames_BRIJ3=frames))
  for name in ('video_loss', 'action_loss'):
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)

  # A state says nothing of a sample without actions.
  proprio = batch.proprio_BQX.copy()
  proprio[1] = 7.0
  assert loss(batch.replace(proprio_BQX=proprio))['loss'] == want['loss']


def test_rows_of_zeros_are_the_same_as_zeros_in_padded_dimensions(start):
  """What an export does for a server that always feeds noise there."""
  _, state, _ = start
  batch = make_batch()
  batch.action_mask_BAU[..., 1] = False
  noise = train_step.sample_noise(MODEL, CONFIG.flow, jax.random.key(3), state.frozen, batch)

  @functools.partial(jax.jit, static_argnums=0)
  def predict(is_masked, params):
    config = dataclasses.replace(CONFIG.flow, mask_padded_noise=is_masked)
    window = train_step.encode_batch(MODEL, params, state.frozen, batch)
    return train_step.predict(MODEL, config, params, window, noise)

  params = jax.tree.map(lambda x: x + 0.1, state.params)
  encoder = params['action_encoder']['action']
  zeroed = encoder | {'w': encoder['w'].at[:, 1:].set(0)}
  exported = params | {'action_encoder': params['action_encoder'] | {'action': zeroed}}
  want = predict(True, params)
  for got, wanted, noisy in zip(predict(False, exported), want, predict(False, params)):
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert np.abs(noisy - wanted).max() > 1e-3


def test_hidden_video_is_neither_seen_nor_counted(start):
  """Frames of the last chunk, which nobody has as clean history either."""
  _, state, _ = start
  flow_config = dataclasses.replace(CONFIG.flow, video_hidden=0.5)

  @jax.jit
  def loss(batch, seen_BF):
    noise = train_step.sample_noise(MODEL, flow_config, jax.random.key(3), state.frozen, batch)
    noise = noise.replace(seen_BF=seen_BF)
    return train_step.loss_fn(CONFIG, state.params, state.frozen, batch, noise)[1]

  batch = make_batch()
  seen_BF = np.ones((4, 3), bool)
  seen_BF[0, 2] = False
  frames = batch.frames_BRIJ3.copy()
  frames[0, -MODEL.camera_frames_per_chunk :] = 0
  other = batch.replace(frames_BRIJ3=frames)
  for name in ('video_loss', 'action_loss'):
    np.testing.assert_array_equal(loss(other, seen_BF)[name], loss(batch, seen_BF)[name])
    assert loss(other, np.ones_like(seen_BF))[name] != loss(batch, np.ones_like(seen_BF))[name]


def test_actions_that_are_given_are_seen_and_do_not_count(start):
  """Of chunks of two actions and one that overlaps, the first one of each."""
  _, state, _ = start
  model = dataclasses.replace(MODEL, action_overlap=1)
  config = dataclasses.replace(CONFIG, model=model)
  rng = np.random.default_rng(1)
  batch = make_batch().replace(
    action_BAU=rng.normal(size=(4, 6, 2)).astype(np.float32),
    action_mask_BAU=np.ones((4, 6, 2), bool),
  )
  given_BA = np.tile([True, False, False], (4, 2))
  noise = train_step.sample_noise(model, config.flow, jax.random.key(3), state.frozen, batch)
  # As drawn: nothing but the first of a chunk, and that clean.
  drawn_BA = np.asarray(noise.given_BA)
  assert drawn_BA.any()
  assert not drawn_BA[~given_BA].any()
  assert not np.asarray(noise.sigma_BA)[drawn_BA].any()
  noise = noise.replace(
    given_BA=jnp.asarray(given_BA), sigma_BA=jnp.where(given_BA, 0.0, noise.sigma_BA)
  )
  assert train_step.count(model, batch, noise).actions == 4 * 4 * 2

  @jax.jit
  def run(batch, noise):
    window = train_step.encode_batch(model, state.params, state.frozen, batch)
    velocities = train_step.predict(model, config.flow, state.params, window, noise)
    return window, velocities

  window, (video, action) = run(batch, noise)
  loss = lambda action: train_step.velocity_loss(
    model, config.flow, window, noise, (video, action)
  )[1]['action_loss']
  wrong = np.where(given_BA[..., None], np.float32(9), action)
  np.testing.assert_array_equal(loss(wrong), loss(action))
  # By hand: the mean over the others.
  error = np.square(action - (noise.action_BAU - window.action_BAU))[~given_BA]
  np.testing.assert_allclose(loss(action), error.mean(), rtol=1e-5)

  # Their noise is not seen; they themselves are.
  other = noise.action_BAU + np.where(given_BA[..., None], 3.0, 0.0)
  np.testing.assert_array_equal(run(batch, noise.replace(action_BAU=other))[1][1], action)
  moved = batch.replace(action_BAU=batch.action_BAU + np.where(given_BA[..., None], 0.5, 0.0))
  after = np.asarray(run(moved, noise)[1][1])
  assert (np.abs(after - action)[~given_BA] > 0).any()


def test_steps_differ_in_noise_and_repeat_exactly(start):
  mesh, state, shardings = start
  step = train_step.make_train_step(CONFIG, mesh, shardings)
  # The step donates its state, and the fixture's serves other tests.
  copy = lambda: jax.tree.map(jnp.copy, state)
  state_1, first = step(copy(), make_batch())
  _, again = step(copy(), make_batch())
  _, second = step(state_1, make_batch())
  assert first['loss'] == again['loss']
  assert first['loss'] != second['loss']
  # Held-out batches share their noise neither with a step nor with each other.
  evaluate = train_step.make_eval_step(CONFIG, mesh, shardings)
  numbers = [np.uint32(number) for number in (0, 1, 0)]
  held_out = [float(evaluate(copy(), make_batch(), number)['loss']) for number in numbers]
  assert held_out[0] == held_out[2] != held_out[1]
  assert float(first['loss']) not in held_out
  # The first of ten steps to 0.1 begins at 0.
  assert first['learning_rate'] == 0.0
  np.testing.assert_allclose(second['learning_rate'], 0.01, rtol=1e-6)


def test_accumulation_changes_no_number(start):
  """Uneven masks, so that a mean of the parts' means would differ."""
  _, state, _ = start
  batch = make_batch()
  batch.chunk_mask_BQ[0, 1] = False
  batch.action_mask_BAU[0, 2:] = False
  batch.action_mask_BAU[1] = False

  def trace(mean, parts):
    flow_config = dataclasses.replace(CONFIG.flow, action_mean=mean, video_hidden=0.5)
    config = dataclasses.replace(CONFIG, accumulate=parts, flow=flow_config)
    key = jax.random.key(0)
    noise = train_step.sample_noise(MODEL, config.flow, key, state.frozen, batch)
    compute = functools.partial(train_step._gradients, config)
    return jax.jit(compute).trace(state, batch, noise), (state, batch, noise)

  def gradients(mean, parts):
    traced, arguments = trace(mean, parts)
    return traced.lower().compile()(*arguments)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  for mean, several in (('real', (2, 4)), ('padded', (2,))):
    want = gradients(mean, parts=1)
    for parts in several:
      jax.tree.map(close, gradients(mean, parts), want)

  # Nor is the work of a part in the program more than once.
  once, several = (str(trace('real', parts)[0].jaxpr).count('dot_general') for parts in (1, 4))
  assert once == several > 10


@pytest.mark.parametrize('mean', ['real', 'padded'])
def test_a_window_that_misses_chunks_has_the_loss_of_the_shorter_window(mean):
  """The reference's windows end where ours are padded: 2 of 4 chunks are a window of 2."""
  model = dataclasses.replace(MODEL, max_chunks=4, frames_per_chunk=2, predict_first_frame=True)
  config = cfg.FlowConfig(action_mean=mean)
  rng = np.random.default_rng(0)
  frames, actions = 9, 8

  def draw(*shape):
    return rng.normal(size=(1, *shape)).astype(np.float32)

  # One of two dimensions is this robot's.
  mask_BAU = np.ones((1, actions, 2), bool)
  mask_BAU[..., 1] = False
  video, action = draw(frames, 2, 2, 3), draw(actions, 2)
  noise = train_step.Noise(
    sigma_BF=rng.uniform(size=(1, frames)).astype(np.float32),
    sigma_BA=rng.uniform(size=(1, actions)).astype(np.float32),
    video_BFHWC=draw(frames, 2, 2, 3),
    action_BAU=draw(actions, 2),
  )
  clean_BFHWC, action_BAU = draw(frames, 2, 2, 3), draw(actions, 2)

  def loss(real, held):
    """Of a window of `held` chunks, of which the first `real` are there."""
    f, a = 1 + 2 * held, 2 * held
    window = train_step.Window(
      clean_BFHWC=clean_BFHWC[:, :f],
      frame_mask_BF=np.arange(f)[None] < 1 + 2 * real,
      action_BAU=action_BAU[:, :a],
      action_mask_BAU=mask_BAU[:, :a] & (np.arange(a)[:, None] < 2 * real),
      body=None,
      text_BPC=None,
      condition=types.Condition(latents_BFHWC=None, image_BIC=None),
    )
    cut = jax.tree.map(lambda x: x[:, : f if x.shape[1] == frames else a], noise)
    return train_step.velocity_loss(model, config, window, cut, (video[:, :f], action[:, :a]))[1]

  parts = loss(real=2, held=4), loss(real=2, held=2)
  for name in ('video_loss', 'action_loss'):
    np.testing.assert_allclose(parts[0][name], parts[1][name], rtol=1e-6)


@pytest.fixture(scope='module')
def official(golden_head_loss):
  """(file, config, weights, window, noise) of the official policy head's training step."""
  g = golden_head_loss
  model = parity.model_config(g.config)
  config = cfg.TrainConfig(
    model=model,
    flow=cfg.FlowConfig(
      schedule='decoupled' if 'in/beta_sample' in g else 'coupled',
      shift=g.config['scheduler']['shift'],
      levels=g.config['scheduler']['num_train_timesteps'],
      action_mean='padded',
      mask_padded_noise=False,
      video_beta=g.config['head_config']['video_noise_beta_alpha'],
    ),
  )
  latents = parity.channels_last(g['in/latents'])
  B, F = latents.shape[:2]
  window = train_step.Window(
    clean_BFHWC=latents,
    frame_mask_BF=np.ones((B, F), bool),
    action_BAU=g['in/action'],
    # The official loss has a flag for videos without actions; ours has the mask alone.
    action_mask_BAU=g['in/action_mask'] * g['in/has_real_action'][:, None, None],
    body=types.Body(
      proprio_BSX=g['in/state'],
      embodiment_B=np.zeros(B, np.int32),
      valid_BA=np.ones(g['in/action'].shape[:2], bool),
    ),
    text_BPC=g['in/context'],
    condition=types.Condition(
      latents_BFHWC=parity.channels_last(g['in/y']), image_BIC=g['in/clip_feature']
    ),
  )
  noise = train_step.Noise(
    sigma_BF=g['in/timestep'] / 1000,
    sigma_BA=g['in/timestep_action'] / 1000,
    video_BFHWC=parity.channels_last(g['in/noise_video']),
    action_BAU=g['in/noise_action'],
  )
  return g, config, rows.to_params(dit.rows(model), g.below('w/')), window, noise


def test_golden_head_loss(official, request):
  g, config, params, window, noise = official
  m, f = config.model, config.flow

  def loss(params):
    velocities = train_step.predict(m, f, params, window, noise)
    value, metrics = train_step.velocity_loss(m, f, window, noise, velocities)
    return value, (velocities, metrics)

  (_, ((video, action), metrics)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  check = functools.partial(parity.check, request, absolute=parity.OUTPUTS)
  check('policy head, predictions', video, parity.channels_last(g['out/video_pred']))
  check('policy head, predictions', action, g['out/action_pred'])
  check('policy head, loss', metrics['loss'], g['out/loss'])
  check('policy head, video_loss', metrics['video_loss'], g['out/dynamics_loss'])
  check('policy head, action_loss', metrics['action_loss'], g['out/action_loss'])

  # Below 1e-6 a norm is rounding: a bias under a softmax has no gradient.
  check = functools.partial(parity.check, request, absolute=1e-6, relative=parity.GRADIENTS)
  gradients = rows.to_weights(dit.rows(m), grads)
  for name, want in zip(g['out/grad_names'], g['out/grad_l2'], strict=True):
    norm = np.linalg.norm(gradients.pop(str(name)))
    check('policy head, gradient norms', norm, want)
  # Each of ours was in the file: none is left unchecked.
  assert not gradients


def test_golden_head_loss_noise(official, request):
  g, config, _, window, noise = official
  check = functools.partial(parity.check, request, absolute=1e-6, relative=parity.SCHEDULERS)
  noisy = flow.interpolate(window.clean_BFHWC, noise.video_BFHWC, noise.sigma_BF)
  check('policy head, noisy inputs', noisy, parity.channels_last(g['sub/noisy_latents']))
  noisy = flow.interpolate(window.action_BAU, noise.action_BAU, noise.sigma_BA)
  check('policy head, noisy inputs', noisy, g['sub/noisy_action'])

  if config.flow.schedule == 'decoupled':
    # The official draw is of every frame; a chunk takes that of its first.
    per_chunk, frames = config.model.frames_per_chunk, noise.sigma_BF.shape[1]
    first_of_chunk = [0] + [1 + (f - 1) // per_chunk * per_chunk for f in range(1, frames)]
    parity.check(
      request,
      'policy head, decoupled levels',
      flow.beta_level(g['in/beta_sample'], config.flow)[:, first_of_chunk],
      noise.sigma_BF,
      relative=parity.SCHEDULERS,
    )
