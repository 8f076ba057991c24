"""A window that slides: what is seen is seen as in training, however long the episode lasts."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import trees
from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.models import attention
from wam_jax.models import dit
from wam_jax.models import encoders
from wam_jax.models import slots
from wam_jax.models import tokenizer
from wam_jax.models import wam

B, A, U, X = test_policy.B, test_policy.A, test_policy.U, test_policy.X
M, F, r = 3, 2, 4
CHUNKS = 20
MODEL = dataclasses.replace(test_policy.MODEL, max_chunks=M, frames_per_chunk=F, num_layers=1)
RANDOM = np.random.default_rng(7)
FRAMES = RANDOM.integers(0, 256, (B, 1 + CHUNKS * r, 8, 4, 3)).astype(np.uint8)
PROPRIO = RANDOM.normal(size=(CHUNKS, B, X)).astype(np.float32)
NOISE_VIDEO = RANDOM.normal(size=(CHUNKS, B, F, 4, 2, 6)).astype(np.float32)
NOISE_ACTION = RANDOM.normal(size=(CHUNKS, B, A, U)).astype(np.float32)
WAYS = {
  'joint': cfg.SampleConfig(steps=2),
  'flash': cfg.SampleConfig(mode='flash', steps=1, action_steps=3),
}


@functools.cache
def fitted():
  patches = tokenizer.fit_patch_tokenizer(FRAMES[:, :17], MODEL.tokenizer)
  return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)


@functools.cache
def params(layers):
  whole = test_policy.random_params()
  return {**whole, 'blocks': jax.tree.map(lambda x: x[:layers], whole['blocks'])}


def make(layers, way, history):
  sees = 'video' if WAYS[way].action_steps else 'all'
  model = dataclasses.replace(MODEL, num_layers=layers, video_sees=sees)
  sample = dataclasses.replace(WAYS[way], history=history)
  return policy_lib.Policy(model, sample, cfg.FlowConfig())


def run(brain, layers, chunks):
  """(actions, latents) of calls at the starts of these chunks, all but the first after the frames
  of the chunk before it; and the state.
  """
  state = brain.reset(params(layers), fitted(), test_policy.TASK, FRAMES[:, 0], jax.random.key(0))
  outputs = []
  for i, chunk in enumerate(chunks):
    seen = FRAMES[:, 1 + (chunk - 1) * r : 1 + chunk * r]
    if i == 0:
      seen = np.repeat(FRAMES[:, :1], r, 1)
    observation = types.Observation(frames_BRIJ3=seen, proprio_BX=PROPRIO[chunk])
    noise = (NOISE_VIDEO[chunk], NOISE_ACTION[chunk])
    *output, state = brain.step(params(layers), fitted(), state, observation, noise)
    outputs.append(jax.tree.map(np.asarray, output))
  return outputs, state


@pytest.mark.parametrize('way', ['joint', pytest.param('flash', marks=pytest.mark.slow)])
def test_each_chunk_is_the_last_one_of_a_short_episode(way):
  """With one layer, where keys do not depend on what their tokens saw: frame 0, then the newest
  chunks, at the positions that training has; nothing is started over.
  """
  brain = make(1, way, 'sliding')
  outputs, state = run(brain, 1, range(CHUNKS))
  assert state.frames == 1 + (CHUNKS - 1) * F
  assert brain.traced == dict.fromkeys(('reset', 'observe', 'anchor', 'begin', 'act'), 1)
  short = make(1, way, 'reset')
  for chunk in (1, M - 1, M, M + 1, CHUNKS - 1):
    # What is seen of the past: frame 0 and the chunks before this one that are in the window.
    recent = range(max(1, chunk - M + 2), chunk + 1)
    want, _ = run(short, 1, [0, *recent])
    trees.assert_close(outputs[chunk], want[-1], atol=2e-5)


def recompute(model, clean_BFHWC, text_BPC):
  """Velocities of the frames after frame 0, denoised from level 0, all at once and without a cache.

  Frame 0 stands in the sequence once for every time at which some chunk sees it, then each other
  frame as it is committed, then each as it is denoised.
  """
  grid = model._grid(clean_BFHWC)
  n = grid.tokens
  K = model.cfg.head_dim
  x_BTD = model._video_tokens(clean_BFHWC, None)
  shifts = [max(0, 1 + (c + 2) * F - MODEL.window_frames) for c in range(CHUNKS)]
  sinks = sorted(set(shifts))
  angles = [attention.video_angles(shift, 1, *grid, K) for shift in sinks]
  angles += 2 * [attention.video_angles(1, CHUNKS * F, *grid, K)]
  denoised = len(sinks) + CHUNKS * F
  frames = denoised + CHUNKS * F
  sees = np.eye(frames, dtype=bool)
  for c, shift in enumerate(shifts):
    own = slice(len(sinks) + c * F, len(sinks) + (c + 1) * F)
    # Frame f stands at len(sinks) + f - 1; those after `shift` are in the window.
    sees[own, len(sinks) + shift : own.stop] = True
    sees[own, sinks.index(shift)] = True
    # The window slides when the chunk before it is committed.
    shift = shifts[c - 1] if c else 0
    again = slice(denoised + c * F, denoised + (c + 1) * F)
    sees[again, len(sinks) + shift : own.start] = True
    sees[again, sinks.index(shift)] = True
    sees[again, again] = True
  mask = np.kron(sees, np.ones((n, n), bool))

  prompt = model._embed_prompt(text_BPC, None)
  time_B1D, modulation = model._modulation(jnp.zeros((B, 1)), jnp.mean(prompt.text_BPD, 1))
  tokens = dit.Tokens(
    modulation_BG6D=modulation,
    group_T=np.zeros(frames * n, np.int32),
    angles_TR=np.concatenate(angles),
    mask=mask[None, None],
  )
  sequence = jnp.concatenate([x_BTD[:, :n]] * len(sinks) + [x_BTD[:, n:]] * 2, 1)
  (x_BTD, _), _ = model.blocks((sequence, None), None, None, prompt, tokens)
  time_BFD = jnp.repeat(time_B1D, CHUNKS * F, 1)
  return model._video_head(x_BTD[:, denoised * n :], time_BFD, grid)


def test_a_cache_that_slides_equals_a_recompute_without_one():
  model = wam.WorldActionModel(dataclasses.replace(MODEL, num_layers=2))
  weights = {'params': params(2)}
  clean = RANDOM.normal(size=(B, 1 + CHUNKS * F, 4, 2, 6)).astype(np.float32)
  text = RANDOM.normal(size=(B, 4, 8)).astype(np.float32)
  want = jax.jit(lambda w: nn.apply(recompute, model)(w, clean, text))(weights)

  prompt = model.apply(weights, text, method='prompt_kv')
  cache = attention.KVCache.empty(
    layers=2,
    batch=B,
    heads=MODEL.num_heads,
    slots=MODEL.window_frames * 2,
    head_dim=MODEL.head_dim,
    dtype='float32',
    sink=2,
  )
  cache = model.apply(weights, cache, clean[:, :1], 0, prompt, method='commit')

  @jax.jit
  def step(cache, frames, start):
    """(cache with the frames, what denoising gives for them before)."""
    noisy = types.Noisy(video_BFHWC=frames, sigma_video_BF=jnp.zeros(frames.shape[:2]))
    video, _ = model.apply(weights, cache, noisy, None, start, prompt, method='denoise')
    return model.apply(weights, cache, frames, start, prompt, method='commit'), video

  for c in range(CHUNKS):
    start = 1 + c * F
    cache, got = step(cache, clean[:, start : start + F], np.int32(start))
    chunk = want[:, c * F : (c + 1) * F]
    np.testing.assert_allclose(got, chunk, atol=2e-5)  # Float32, sums in another order.
  assert np.std(want) > 0.1


@pytest.mark.slow
def test_kernels_agree_when_the_slots_have_wrapped(monkeypatch):
  want, _ = run(make(2, 'flash', 'sliding'), 2, range(3 * M))
  monkeypatch.setattr(slots, 'choose', lambda *_: 'cudnn')
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  got, _ = run(make(2, 'flash', 'sliding'), 2, range(3 * M))
  trees.assert_close(got, want, atol=2e-5)


def test_imagined_frames_follow_those_that_are_remembered():
  brain = make(1, 'joint', 'sliding')
  outputs, state = run(brain, 1, range(CHUNKS))
  _, latents = outputs[-1]
  frames = brain.imagine(fitted(), state, latents)
  want = fitted().tokenizer.decode_more((), latents)[0]
  np.testing.assert_allclose(frames, want, atol=1e-5)
  # Remembered are the frames before the chunk that is imagined, the newest last.
  seen = fitted().encode(FRAMES)[:, -2 * F : -F]
  kept = state.memory.clean_BFHWC[:, -2 * F : -F]
  np.testing.assert_allclose(kept, seen, atol=1e-5)


def test_what_cannot_slide_is_refused():
  model = dataclasses.replace(MODEL, max_chunks=1)
  with pytest.raises(ValueError, match='at least 2, not 1'):
    policy_lib.Policy(model, cfg.SampleConfig(history='sliding'), cfg.FlowConfig())
