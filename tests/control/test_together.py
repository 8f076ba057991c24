"""Sessions in one pass over the weights, each at its own place, against the same sessions alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import weights
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import apart
from wam_jax.control import places
from wam_jax.control import policy as policy_lib
from wam_jax.control import together
from wam_jax.models import encoders
from wam_jax.models import slots
from wam_jax.models import tokenizer

MODEL = dataclasses.replace(
  weights.SMALL,
  num_layers=1,
  action_dim=3,
  proprio_dim=4,
  num_embodiments=2,
  actions_per_chunk=4,
  max_chunks=3,
  frames_per_chunk=2,
  tokenizer=cfg.TokenizerConfig(temporal=2, spatial=8, channels=6),
  text=cfg.TextConfig(vocab=16, dim=8, length=4),
)
r = MODEL.camera_frames_per_chunk
SIZES = (1, 2, 3)
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 6 * r, 16, 32, 3)).astype(np.uint8)


class Fleet:
  """Three robots of two kinds with words, noise and frames of their own; the third has a step less
  than the others, and began its episode earlier.
  """

  def __init__(self, model, sample, frozen=None):
    if frozen is None:
      patches = tokenizer.fit_patch_tokenizer(FRAMES[:, :5], model.tokenizer)
      frozen = encoders.Encoders(tokenizer=patches, text=None, image=None, config=model)
    self.frozen = frozen
    self.params = weights.draw_params(model, seed=1)
    flow = cfg.FlowConfig(video_hidden=0.2, video_at_noise=0.2)
    self.policy = policy_lib.Policy(model, sample, flow)
    self.together = together.Together(self.policy, SIZES)

  def start(self, robot):
    c = self.policy.cfg
    mask_BAU = np.ones((1, c.actions_per_chunk, c.action_dim), bool)
    mask_BAU[:, :, 2:] = robot != 1
    mask_BAU[:, 3:] = robot != 2
    ids_BP = np.full((1, c.text.length), robot + 1, np.int32)
    task = types.Task(
      prompt_ids_BP=ids_BP,
      embodiment_B=np.int32([robot % 2]),
      action_mask_BAU=mask_BAU,
      negative_ids_BP=np.zeros_like(ids_BP) if self.policy.sample.is_guided else None,
    )
    key = jax.random.key(robot)
    return self.policy.reset(self.params, self.frozen, task, FRAMES[:1, 0], key)

  def look(self, state, robot, call):
    """The state after the frames of a chunk."""
    seen = FRAMES[robot : robot + 1, call * r : (call + 1) * r]
    if self.policy.anchors_next(state):
      return self.policy.anchor(self.params, self.frozen, state, seen[:, -1:])
    per_latent = self.policy.cfg.tokenizer.temporal
    for first in range(0, r, per_latent):
      state = self.policy.observe(self.frozen, state, seen[:, first : first + per_latent])
    return state

  def act(self, states, robots, calls):
    proprio = [self.proprio(robot, call) for robot, call in zip(robots, calls)]
    return self.together.act(self.params, states, np.stack(proprio))

  def proprio(self, robot, call):
    return np.full(self.policy.cfg.proprio_dim, 0.1 * robot + 0.05 * call, np.float32)

  def play_alone(self, robot, calls):
    """(actions, latents) of each call."""
    state = self.start(robot)
    outputs = []
    for call in range(calls):
      state = self.look(state, robot, call)
      proprio_BX = self.proprio(robot, call)[None]
      action, latents, state = self.policy.act(self.params, state, proprio_BX)
      outputs.append([np.asarray(x[0]) for x in (action, latents) if x is not None])
    return outputs

  def play_together(self, head_starts, calls):
    """The same of each robot, and how many of them went through each pass."""
    states = [self.start(robot) for robot in range(len(head_starts))]
    outputs = [[] for _ in states]
    passes = []
    for call in range(calls):
      taken = [robot for robot, head in enumerate(head_starts) if head + call >= 0]
      for robot in taken:
        states[robot] = self.look(states[robot], robot, len(outputs[robot]))
      groups = [[robot for robot in taken if states[robot].begins == begins] for begins in (1, 0)]
      for group in filter(None, groups):
        places = [states[robot].memory.cache.k.unsafe_buffer_pointer() for robot in group]
        asked = [len(outputs[robot]) for robot in group]
        action, latents, after = self.act([states[robot] for robot in group], group, asked)
        for row, robot in enumerate(group):
          outputs[robot].append([np.asarray(x[row]) for x in (action, latents) if x is not None])
          states[robot] = after[row]
        # Each cache is written where it lies.
        assert places == [one.memory.cache.k.unsafe_buffer_pointer() for one in after]
        passes.append(len(group))
    return outputs, passes


def check(fleet, head_starts=(0, -1, -1), calls=5, atol=1e-5):
  got, passes = fleet.play_together(head_starts, calls)
  for robot, outputs in enumerate(got):
    want = fleet.play_alone(robot, len(outputs))
    for one, alone in zip(outputs, want, strict=True):
      for x, y in zip(one, alone, strict=True):
        np.testing.assert_allclose(x, y, atol=atol)  # Sums in another order.
  # Nothing is traced again, whoever goes with whom.
  assert fleet.policy.traces == 1
  return passes


def test_each_is_as_if_alone_at_its_own_place():
  """One is a chunk ahead of the others, so that passes begin, go on, anchor anew and have one or
  two sessions.
  """
  fleet = Fleet(MODEL, cfg.SampleConfig(steps=2))
  assert check(fleet, calls=6) == [1, 2, 1, 3, 1, 2, 2, 1, 3]


def test_sessions_as_on_a_gpu(monkeypatch):
  """Slots and no masks, layers apart, caches that lie as cuDNN's kernels read them."""
  monkeypatch.setattr(slots, 'choose', lambda *_: 'cudnn')
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  monkeypatch.setattr(places, 'choose_order', lambda *_: places.SLOTS_FIRST)
  model = dataclasses.replace(MODEL, video_sees='video', num_layers=2)
  fleet = Fleet(model, cfg.SampleConfig(mode='flash', steps=1, action_steps=3))
  fleet.params = apart.take(fleet.params)
  assert check(fleet) == [1, 2, 1, 3, 1, 2, 2, 1]
  state = fleet.look(fleet.start(0), 0, 0)
  assert state.memory.cache.k.format.layout.major_to_minor == places.SLOTS_FIRST


@pytest.mark.slow
@pytest.mark.parametrize('kernels', ['dense', 'cudnn'])
def test_a_window_that_slides_and_guidance_and_actions_that_step_alone(kernels, monkeypatch):
  monkeypatch.setattr(slots, 'choose', lambda *_: kernels)
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  model = dataclasses.replace(MODEL, video_sees='video')
  sample = cfg.SampleConfig(
    mode='flash', steps=1, action_steps=3, guidance_scale=2.0, history='sliding'
  )
  assert check(Fleet(model, sample)) == [1, 2, 1, 3, 3, 3]


@pytest.mark.slow
def test_with_images_and_streams_of_the_released_kind():
  model = dataclasses.replace(
    MODEL,
    frames_per_chunk=1,
    image_condition=True,
    image_dim=8,
    image_tokens=5,
    tokenizer=cfg.TokenizerConfig(
      'wan2_1', temporal=4, spatial=8, channels=4, vae=cfg.VAEConfig(4, 4)
    ),
    image=cfg.ImageConfig('clip', size=8, patch=4, dim=8, heads=2, layers=2, out_dim=4),
    text=cfg.TextConfig(
      'umt5', vocab=16, dim=8, length=4, layers=1, heads=2, attention_dim=8, mlp_dim=16
    ),
  )
  assert check(Fleet(model, cfg.SampleConfig(steps=2), weights.draw_encoders(model)), atol=1e-4)


def test_what_goes_through_no_pass_is_refused_and_forgets_nothing():
  sample = cfg.SampleConfig(steps=2, reuse='cosine')
  with pytest.raises(ValueError, match="'cosine' chooses the steps of all rows of a pass"):
    Fleet(MODEL, sample)
  fleet = Fleet(MODEL, cfg.SampleConfig(steps=2))
  states = [fleet.look(fleet.start(0), 0, 0), fleet.start(1)]
  with pytest.raises(ValueError, match='that begin and sessions that go on are no pass together'):
    fleet.act(states, (0, 1), (0, 0))
  with pytest.raises(ValueError, match='4 sessions go through no pass; sizes=.1, 2, 3.'):
    fleet.act(states * 2, (0, 1) * 2, (0,) * 4)
  bad = np.full((2, MODEL.proprio_dim), np.nan)
  with pytest.raises(ValueError, match='proprio_BX is not finite'):
    fleet.together.act(fleet.params, [states[0]] * 2, bad)
  # It can still be used, once.
  fleet.act(states[:1], (0,), (0,))
  with pytest.raises(ValueError, match='This state is gone: each call gives a new one'):
    fleet.act(states[:1], (0,), (0,))
