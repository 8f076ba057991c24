"""The frozen encoders of the released kind, tiny and random: what training and control get from
them, and storing.
"""

from __future__ import annotations

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import weights
from wam_jax import config as cfg
from wam_jax import train_step
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.models import encoders
from wam_jax.models import tokenizer

B, Q, A, U, X, P = 2, 2, 3, 3, 4, 5
MODEL = dataclasses.replace(
  weights.SMALL,
  action_dim=U,
  proprio_dim=X,
  frames_per_chunk=1,
  actions_per_chunk=A,
  max_chunks=Q,
  image_condition=True,
  image_dim=8,
  image_tokens=5,
  tokenizer=cfg.TokenizerConfig(
    'wan2_1', temporal=4, spatial=8, channels=4, resize=(16, 32), vae=cfg.VAEConfig(4, 4)
  ),
  text=cfg.TextConfig(
    'umt5', vocab=32, dim=8, length=P, layers=1, heads=2, attention_dim=8, mlp_dim=16
  ),
  image=cfg.ImageConfig('clip', size=8, patch=4, dim=8, heads=2, layers=2, out_dim=4),
)
FRAMES = np.random.default_rng(0).integers(0, 256, (B, 1 + 4 * Q, 32, 64, 3)).astype(np.uint8)
BATCH = types.Batch(
  frames_BRIJ3=FRAMES,
  action_BAU=np.zeros((B, Q * A, U), np.float32),
  action_mask_BAU=np.ones((B, Q * A, U), bool),
  proprio_BQX=np.random.default_rng(1).normal(size=(B, Q, X)).astype(np.float32),
  chunk_mask_BQ=np.ones((B, Q), bool),
  prompt_ids_BP=np.int32([[5, 6, 1, 0, 0], [7, 8, 9, 3, 1]]),
  embodiment_B=np.zeros(B, np.int32),
  sample_B2=np.zeros((B, 2), np.int32),
)


CONFIG = cfg.TrainConfig(model=MODEL, flow=cfg.FlowConfig(mask_padded_noise=False))


@pytest.fixture(scope='module')
def frozen():
  return weights.draw_encoders(MODEL)


@functools.cache
def params():
  return weights.draw_params(MODEL, seed=9)


def test_condition_is_the_first_frame_before_grey(frozen):
  condition = frozen.encode_condition(FRAMES[:, :1])
  # Half the size without antialiasing is the mean of two by two pixels.
  order = 'B R (I p) (J q) C -> B R I J C'
  small = einops.reduce(FRAMES[:, :1].astype(np.float32), order, 'mean', p=2, q=2) / 127.5 - 1
  grey = np.concatenate([small, np.zeros((B, 4 * Q, *small.shape[2:]), np.float32)], 1)
  latents = condition.latents_BFHWC[..., 4:]
  np.testing.assert_allclose(latents, frozen.tokenizer.encode(grey), atol=1e-5)
  np.testing.assert_allclose(latents[:, 0], frozen.encode(FRAMES)[:, 0], atol=1e-5)
  # Four channels of mask before the latents, as Wan2.1-I2V has them: 1 where a frame is given.
  np.testing.assert_array_equal(condition.latents_BFHWC[:, 0, ..., :4], 1)
  np.testing.assert_array_equal(condition.latents_BFHWC[:, 1:, ..., :4], 0)
  np.testing.assert_allclose(condition.image_BIC, frozen.image.encode(small[:, 0]), atol=1e-5)


def test_models_without_such_inputs_get_none(frozen):
  plain = dataclasses.replace(MODEL, image_condition=False, image_dim=0, image=cfg.ImageConfig())
  without = frozen.replace(image=None, config=plain)
  assert without.encode_condition(FRAMES[:, :1]) == types.Condition()


def test_stored_and_back(frozen):
  tree = encoders.to_tree(frozen)
  assert set(tree) == {'tokenizer', 'text', 'image'}
  again = encoders.from_tree(tree, MODEL)
  assert jax.tree.structure(again) == jax.tree.structure(frozen)
  jax.tree.map(np.testing.assert_array_equal, again, frozen)


def test_control_sees_what_training_sees(frozen):
  """One Euler step from pure noise, chunk by chunk with streams and cache, is the teacher-forced
  velocity.
  """
  sample = cfg.SampleConfig(mode='flash', steps=1, video_final_sigma=0.5)
  policy = policy_lib.Policy(MODEL, sample, CONFIG.flow)
  rng = np.random.default_rng(3)
  noise_video = rng.normal(size=(B, Q, 2, 4, 4)).astype(np.float32)
  noise_action = rng.normal(size=(B, Q * A, U)).astype(np.float32)
  task = types.Task(
    prompt_ids_BP=BATCH.prompt_ids_BP,
    embodiment_B=BATCH.embodiment_B,
    action_mask_BAU=np.ones((B, A, U), bool),
  )
  state = policy.reset(params(), frozen, task, FRAMES[:, 0], jax.random.key(0))
  actions, videos, imagined = [], [], []
  for q in range(Q):
    # At the first call nothing was executed: the camera shows the same frame.
    seen = np.repeat(FRAMES[:, :1], 4, 1) if q == 0 else FRAMES[:, 1:5]
    noise = noise_video[:, q : q + 1], noise_action[:, q * A : (q + 1) * A]
    observation = types.Observation(frames_BRIJ3=seen, proprio_BX=BATCH.proprio_BQX[:, q])
    action, video, state = policy.step(params(), frozen, state, observation, noise)
    actions.append(action)
    videos.append(video)
    imagined.append(policy.imagine(frozen, state, video))

  window = jax.jit(functools.partial(train_step.encode_batch, MODEL))(params(), frozen, BATCH)
  draw = train_step.Noise(
    sigma_BF=np.ones((B, 1 + Q)),
    sigma_BA=np.ones((B, Q * A)),
    # Training's noise has frame 0, which is never denoised here.
    video_BFHWC=jnp.pad(noise_video, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0))),
    action_BAU=noise_action,
  )
  predict = jax.jit(functools.partial(train_step.predict, MODEL, CONFIG.flow))
  video, action = predict(params(), window, draw)
  # Float32 sums.
  np.testing.assert_allclose(np.concatenate(actions, 1), noise_action - action, atol=2e-5)
  # What is shown of the video is the clean one that its only step predicts.
  np.testing.assert_allclose(np.concatenate(videos, 1), noise_video - video, atol=2e-5)
  assert policy.traces == 1
  # Imagined frames continue the observed ones.
  clean = window.clean_BFHWC[:, :Q]
  want = frozen.decode(jnp.concatenate([clean, videos[-1]], 1))[:, -4:]
  np.testing.assert_allclose(imagined[-1], want, atol=1e-4)


def test_a_training_step_leaves_the_encoders_alone(frozen):
  noise = lambda: train_step.sample_noise(MODEL, CONFIG.flow, jax.random.key(0), frozen, BATCH)
  loss = lambda frozen: train_step.loss_fn(CONFIG, params(), frozen, BATCH, noise())[0]
  grads = jax.jit(jax.grad(loss, allow_int=True))(frozen)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_imported_encoders_are_not_made_up():
  with pytest.raises(
    ValueError,
    match=r"model.tokenizer.kind='wan2_1', model.text.kind='umt5', model.image.kind='clip'"
    ' has trained weights: .*convert import',
  ):
    train_step.fit_frozen(MODEL, [])


def test_weights_are_known_by_their_bits():
  draw = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

  def frozen(x, mean=np.zeros(16, np.float32)):
    patches = tokenizer.PatchTokenizer(
      mean_P=mean, encode_PC=x, decode_CP=draw.T, temporal=2, spatial=4
    )
    return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)

  want = encoders.fingerprint(frozen(draw))
  mesh = jax.make_mesh((8,), ('data',))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  assert set(want) == {'tokenizer'}
  assert encoders.fingerprint(frozen(jax.device_put(draw, spread))) == want
  # The lowest bit of one number: no tolerance would see it.
  one_bit = draw.view(np.uint32) ^ (np.arange(128).reshape(16, 8) == 77).astype(np.uint32)
  for other in (
    frozen(one_bit.view(np.float32)),
    frozen(draw[::-1]),
    frozen(draw.astype(ml_dtypes.bfloat16)),
    frozen(draw.reshape(8, 16)),
    frozen(draw, np.ones(16, np.float32)),
  ):
    assert encoders.fingerprint(other) != want
