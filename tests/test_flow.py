"""Noise schedule, weights and targets against the official scheduler (tests/golden), levels and
losses by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import flow

COUPLED = cfg.FlowConfig()
FLASH = cfg.FlowConfig(schedule='flash')
# Enough draws for their laws to show.
BATCH, CHUNKS = 4096, 4
sample_levels = jax.jit(flow.sample_levels, static_argnums=(1, 2, 3))


@pytest.fixture(scope='module')
def draws():
  """Levels of many samples, by schedule."""
  return {c.schedule: sample_levels(jax.random.key(0), BATCH, CHUNKS, c) for c in (COUPLED, FLASH)}


def test_golden_training_schedule(golden_flow_match_scheduler, request):
  """The setting of the policy head and the class defaults; timesteps are 1000 sigma."""
  golden = golden_flow_match_scheduler
  for run in sorted({name.split('/')[0] for name in golden.below('train')}):
    given = {name: np.asarray(x) for name, x in golden.below(f'train{run}/').items()}
    check = functools.partial(parity.check_scheduler, request, 'flow', given)
    config = json.loads(str(given['config_json']))
    # Defaults of the official class, which the file does not repeat.
    init = {'shift': 3.0, 'sigma_min': 0.003 / 1.002, 'extra_one_step': False, **config['init']}
    sigmas = flow.schedule(
      levels=config['n'],
      shift=init['shift'],
      smallest=init['sigma_min'],
      drop_last=init['extra_one_step'],
    )
    weights = flow.level_weights(sigmas, 1000 / config['n'])
    check('sigmas', sigmas)
    check('timesteps', 1000 * sigmas)
    check('weights', weights)
    noisy = flow.interpolate(given['sample'], given['noise'], given['query_t'] / 1000)
    check('add_noise', noisy)
    check('training_target', flow.velocity(given['sample'], given['noise']))
    # Off the grid the official code takes the weight of the nearest level.
    for where in ('', '_offgrid'):
      query = given[f'query_t{where}'] / 1000
      check(f'training_weight{where}', flow.nearest_weight(query, sigmas, weights))


def test_level_weights_are_those_of_the_reference():
  # Three decimals of its bell, at these timesteps.
  ids = [0, 100, 250, 500, 750, 833, 900, 950, 990, 999]
  want = [0, 0.139, 0.398, 1.025, 1.914, 2.076, 1.865, 1.251, 0.307, 0.032]
  weights = flow.level_weights(flow.schedule(1000, 5.0))
  np.testing.assert_allclose(weights[ids], want, atol=6e-4)
  np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
  assert weights.argmax() == 833


def test_loss_weight_keeps_the_shape_and_can_be_uniform():
  # 5/6 is id 500: 5 * 0.5 / (1 + 4 * 0.5).
  sigma_BQ = jnp.float32([[1.0, 5 / 6, 0.0], [0.5, 0.5, 1.0]])
  weight_BQ = flow.loss_weight(sigma_BQ, COUPLED)
  np.testing.assert_allclose(weight_BQ[0, :2], [0, 1.025], atol=6e-4)
  np.testing.assert_allclose(weight_BQ[1, 0], 2.076, atol=6e-4)
  uniform_BQ = flow.loss_weight(sigma_BQ, cfg.FlowConfig(weighting='uniform'))
  np.testing.assert_array_equal(uniform_BQ, np.ones((2, 3)))


@pytest.mark.parametrize('sigma', [0.0, 0.25, 1.0])
def test_path_is_straight(sigma):
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
  noisy = flow.interpolate(clean, noise, np.full((2, 3), sigma, np.float32))
  v = flow.velocity(clean, noise)
  # Float32 rounding of numbers near 1.
  np.testing.assert_allclose(noisy - sigma * v, clean, atol=1e-6)
  np.testing.assert_allclose(noisy + (1 - sigma) * v, noise, atol=1e-6)


def test_noise_is_that_of_its_whole_shape():
  key, shape = jax.random.key(0), (2, 3, 2, 2, 5)
  np.testing.assert_array_equal(flow.sample_noise(key, shape), jax.random.normal(key, shape))


def test_levels_of_each_frame_stay_apart():
  clean = np.zeros((1, 3, 2))
  noise = np.ones((1, 3, 2))
  noisy = flow.interpolate(clean, noise, np.float32([[0.1, 0.5, 1.0]]))
  np.testing.assert_allclose(noisy[0], [[0.1, 0.1], [0.5, 0.5], [1, 1]])


def test_too_many_level_axes_raise():
  message = r'sigma of shape \(2, 3, 4\) has more axes than the array of shape \(2, 3\)'
  frames = np.zeros((2, 3))
  with pytest.raises(ValueError, match=message):
    flow.interpolate(frames, frames, np.zeros((2, 3, 4)))


def test_coupled_levels_are_one_uniform_draw_per_chunk(draws):
  levels = draws['coupled']
  np.testing.assert_array_equal(levels.action_BA, levels.video_BQ)
  table = flow.schedule(1000, 5.0)
  assert np.isin(levels.video_BQ, table).all()
  assert np.isin(levels.first_B, table).all()
  # Of the table: mean 0.7476, deviation of one draw 0.231, so 0.0018 of the mean of 4 * 4096.
  np.testing.assert_allclose(np.mean(levels.video_BQ), 0.7476, atol=4 * 0.0018)
  np.testing.assert_allclose(np.median(levels.video_BQ), 5 / 6, atol=0.01)
  assert_unrelated(levels.video_BQ[:, 0], levels.video_BQ[:, 1])
  assert_unrelated(levels.first_B, levels.video_BQ[:, 0])


def test_emphasized_levels_are_one_beta_draw_per_chunk():
  # The reference draws them as the video's of its decoupled schedule, with Beta(3, 1).
  config = cfg.FlowConfig(schedule='coupled_beta', video_beta=3.0)
  decoupled = dataclasses.replace(config, schedule='decoupled')
  levels = sample_levels(jax.random.key(0), BATCH, CHUNKS, config)
  np.testing.assert_array_equal(levels.action_BA, levels.video_BQ)
  want = sample_levels(jax.random.key(0), BATCH, CHUNKS, decoupled)
  np.testing.assert_array_equal(levels.video_BQ, want.video_BQ)
  np.testing.assert_array_equal(levels.first_B, want.first_B)
  # The median of Beta(3, 1) is 0.5^(1/3); the shift moves it to 0.954.
  median = flow.warp(0.5 ** (1 / 3), 5.0)
  np.testing.assert_allclose(np.median(levels.video_BQ), median, atol=0.005)


def test_flash_video_is_beta_and_action_uniform(draws):
  levels = draws['flash']
  # Beta(7, 1) has the mean 7/8 and the variance 7/576.
  standard_error = (7 / 576 / levels.video_BQ.size) ** 0.5
  np.testing.assert_allclose(np.mean(levels.video_BQ), 7 / 8, atol=4 * standard_error)
  assert_uniform(levels.video_BQ**7)  # Beta(7, 1) has the distribution function x^7.
  assert_uniform(levels.first_B**7)
  assert_uniform(levels.action_BA)


def test_flash_levels_are_independent(draws):
  levels = draws['flash']
  assert_unrelated(levels.video_BQ, levels.action_BA)
  assert_unrelated(levels.video_BQ[:, 0], levels.video_BQ[:, 1])
  assert_unrelated(levels.action_BA[:, 0], levels.action_BA[:, 1])
  assert_unrelated(levels.first_B, levels.video_BQ[:, 0])


def test_flash_shift_warps_both_draws(draws):
  shifted = cfg.FlowConfig(schedule='flash', flash_shift=5.0)
  warped = sample_levels(jax.random.key(0), BATCH, CHUNKS, shifted)
  for got, plain in zip(warped[:3], draws['flash'][:3]):
    np.testing.assert_allclose(got, flow.warp(plain, 5.0), rtol=1e-6)


@pytest.mark.parametrize('schedule', ['coupled', 'flash', 'decoupled'])
def test_shares_of_chunks_with_video_at_noise_and_hidden(schedule):
  plain = cfg.FlowConfig(schedule=schedule)
  config = dataclasses.replace(plain, video_at_noise=0.3, video_hidden=0.2)
  levels = sample_levels(jax.random.key(0), BATCH, CHUNKS, config)
  before = sample_levels(jax.random.key(0), BATCH, CHUNKS, plain)
  assert before.video_seen_BQ is None
  at_noise = np.asarray(levels.video_BQ != before.video_BQ)
  np.testing.assert_array_equal(levels.video_BQ[at_noise], 1.0)
  # Of 16,384 chunks; the standard error is at most 0.004. Draws of level 1 do not show.
  np.testing.assert_allclose(np.mean(at_noise), 0.3, atol=0.015)
  np.testing.assert_allclose(np.mean(levels.video_seen_BQ), 0.8, atol=0.015)
  assert_unrelated(at_noise, levels.video_seen_BQ)
  # Actions of every level meet video at noise, and video that nobody sees.
  for share in (at_noise, levels.video_seen_BQ):
    assert_unrelated(share, levels.action_BA)
    assert_unrelated(share, before.video_BQ)
  first_BQ = np.repeat(levels.first_B[:, None], CHUNKS, 1)
  assert_unrelated(levels.video_seen_BQ, first_BQ)
  # What else is drawn is drawn as before, the actions of such chunks, too.
  np.testing.assert_array_equal(levels.action_BA, before.action_BA)
  np.testing.assert_array_equal(levels.first_B, before.first_B)


def test_a_uniform_weight_does_not_vanish_where_one_step_is_taken():
  """The bell does."""
  for weighting, want in (('bump', 0.0), ('uniform', 1.0)):
    config = cfg.FlowConfig(weighting=weighting)
    np.testing.assert_allclose(flow.loss_weight(jnp.float32([1.0]), config), want, atol=1e-6)


def assert_uniform(x):
  """Kolmogorov-Smirnov distance to the uniform law below its 0.1 % point."""
  x = np.sort(np.ravel(x))
  quantiles = (np.arange(x.size) + 0.5) / x.size
  assert np.abs(x - quantiles).max() < 1.95 / x.size**0.5


def assert_unrelated(x, y):
  """Correlation within four standard errors of 0."""
  correlation = np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]
  assert abs(correlation) < 4 / np.size(x) ** 0.5


def test_video_loss_by_hand():
  error_BF = np.float32([[1, 2], [3, 4]])
  # The same error at every pixel: its mean square is the square.
  prediction = np.broadcast_to(error_BF[..., None, None, None], (2, 2, 2, 2, 3))
  weight_BF = np.float32([[1, 0.5], [2, 9]])
  mask_BF = np.bool_([[1, 1], [1, 0]])
  # The masked frame would bring 9 * 16; the mean is over the three others.
  got = flow.video_loss(prediction, np.zeros_like(prediction), weight_BF, mask_BF)
  np.testing.assert_allclose(got, (1 * 1 + 0.5 * 4 + 2 * 9) / 3)


@pytest.mark.parametrize(
  ('count', 'want'),
  # The same sum over the three real numbers, or over all eight.
  [(None, (2 * 1 + 2 * 4 + 0.5 * 9) / 3), (8, 14.5 / 8)],
  ids=['real', 'padded'],
)
def test_action_loss_by_hand(count, want):
  """Sample 0: two dimensions at step 0, one at step 1. Sample 1 is video only."""
  error_BAU = np.float32([[[1, 2], [3, 100]], [[100, 100], [100, 100]]])
  mask_BAU = np.bool_([[[1, 1], [1, 0]], [[0, 0], [0, 0]]])
  weight_BA = np.float32([[2, 0.5], [3, 3]])

  def loss(prediction):
    target = np.zeros_like(error_BAU)
    return flow.action_loss(prediction, target, weight_BA, mask_BAU, count)

  value, gradient = jax.value_and_grad(loss)(error_BAU)
  np.testing.assert_allclose(value, want)
  # Errors of 100 under the mask must not reach the weights either.
  np.testing.assert_array_equal(gradient != 0, mask_BAU)


@pytest.mark.parametrize('count', [None, 24, 0])
def test_batch_of_videos_only_has_no_action_loss(count):
  # Not 0 / 0: a batch may hold human videos alone.
  ones = np.ones((2, 3, 4), np.float32)
  nothing_is_real = np.zeros(ones.shape, bool)
  assert flow.action_loss(ones, 0 * ones, ones[..., 0], nothing_is_real, count) == 0


@pytest.mark.parametrize('config', [COUPLED, FLASH, cfg.FlowConfig(schedule='decoupled')])
def test_chunks_begin_with_clean_actions_of_every_number(config):
  """Each from none to the whole overlap is as likely; all else is drawn as without."""
  horizon, overlap = 5, 3
  draw = functools.partial(flow.sample_levels, jax.random.key(0), BATCH, CHUNKS, config, horizon)
  plain, got = draw(), draw(overlap)
  assert plain.given_BA is None
  given = np.asarray(got.given_BA).reshape(-1, horizon)
  length = given.sum(1)
  # The first ones, and none beyond.
  np.testing.assert_array_equal(given, np.arange(horizon) < length[:, None])
  # 16,384 chunks: 4 deviations of a share of a quarter.
  np.testing.assert_allclose(np.bincount(length) / len(length), np.full(4, 0.25), atol=0.0135)
  # Chunks of a sample have lengths of their own.
  first, second = length.reshape(BATCH, CHUNKS)[:, :2].T
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.07
  np.testing.assert_array_equal(got.action_BA, np.where(got.given_BA, 0, plain.action_BA))
  np.testing.assert_array_equal(got.video_BQ, plain.video_BQ)
  np.testing.assert_array_equal(got.first_B, plain.first_B)


def test_a_share_of_chunks_has_no_prefix_and_the_others_are_as_drawn():
  horizon, overlap = 5, 3
  plain = cfg.FlowConfig()
  config = dataclasses.replace(plain, without_prefix=0.5)
  draw = lambda flow_config: flow.sample_levels(
    jax.random.key(0), BATCH, CHUNKS, flow_config, horizon, overlap
  )
  lengths = {}
  for name, flow_config in (('plain', plain), ('half', config)):
    given_BQA = np.asarray(draw(flow_config).given_BA).reshape(BATCH, CHUNKS, horizon)
    lengths[name] = given_BQA.sum(-1)
  is_kept = lengths['half'] == lengths['plain']
  np.testing.assert_array_equal(lengths['half'][~is_kept], 0)
  # Half of the three quarters that had one; the standard error is 0.004.
  np.testing.assert_allclose(np.mean(~is_kept), 3 / 8, atol=0.015)
  np.testing.assert_array_equal(draw(config).video_BQ, draw(plain).video_BQ)


def test_prefixes_that_the_data_give_stand_in_place_of_drawn_ones():
  horizon, overlap = 5, 3
  config = dataclasses.replace(cfg.FlowConfig(), without_prefix=1.0)
  given_BQ = np.random.default_rng(0).integers(0, overlap + 1, (BATCH, CHUNKS))
  levels = flow.sample_levels(
    jax.random.key(0), BATCH, CHUNKS, config, horizon, overlap, given_BQ=given_BQ
  )
  length_BQ = np.asarray(levels.given_BA).reshape(BATCH, CHUNKS, horizon).sum(-1)
  np.testing.assert_array_equal(length_BQ, given_BQ)
  drawn = dataclasses.replace(config, without_prefix=0.0)
  levels = flow.sample_levels(
    jax.random.key(0), BATCH, CHUNKS, drawn, horizon, overlap, given_BQ=given_BQ
  )
  length_BQ = np.asarray(levels.given_BA).reshape(BATCH, CHUNKS, horizon).sum(-1)
  np.testing.assert_array_equal(length_BQ[given_BQ > 0], given_BQ[given_BQ > 0])
  assert length_BQ[given_BQ == 0].max() == overlap
