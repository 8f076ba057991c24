"""Acting ahead of what is seen: with a perfect prediction as if the policy had waited, and right
again as soon as the real frames have come.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import trees
from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.control import lookahead as lookahead_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import encoders
from wam_jax.models import tokenizer

B, A, U, X = test_policy.B, test_policy.A, test_policy.U, test_policy.X
F, r, CHUNKS = 2, 4, 6  # Latent and camera frames of a chunk; chunks of an episode.
MODEL = dataclasses.replace(test_policy.MODEL, frames_per_chunk=F, num_layers=1, max_chunks=3)
RANDOM = np.random.default_rng(5)
FRAMES = RANDOM.integers(0, 256, (B, 1 + CHUNKS * r, 8, 4, 3)).astype(np.uint8)
PROPRIO = RANDOM.normal(size=(CHUNKS + 1, B, X)).astype(np.float32)


@functools.cache
def fitted():
  patches = tokenizer.fit_patch_tokenizer(FRAMES[:, :17], MODEL.tokenizer)
  return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)


@functools.cache
def params():
  whole = test_policy.random_params()
  return {**whole, 'blocks': jax.tree.map(lambda x: x[:1], whole['blocks'])}


@functools.cache
def make(history):
  sample = cfg.SampleConfig(steps=2, history=history)
  policy = policy_lib.Policy(MODEL, sample, cfg.FlowConfig())
  return policy, lookahead_lib.Lookahead(policy)


def reset(history):
  args = (params(), fitted(), test_policy.TASK, FRAMES[:, 0], jax.random.key(0))
  return make(history)[0].reset(*args)


def window(history, call, frames=FRAMES):
  """What a call takes that is made when chunk `call` begins."""
  count = make(history)[0].frames_per_call
  return frames[:, 1 + call * r - count : 1 + call * r]


def step(history, state, call):
  frames = window(history, call) if call else np.repeat(FRAMES[:, :1], r + (history == 'window'), 1)
  observation = types.Observation(frames_BRIJ3=frames, proprio_BX=PROPRIO[call])
  return make(history)[0].step(params(), fitted(), state, observation)


def look_ahead(history, state, call, seen, imagined=FRAMES):
  """A call when `seen` camera frames of the chunk before are there, and the others imagined."""
  real, other = window(history, call), window(history, call, imagined)
  seen += real.shape[1] - r
  frames = np.concatenate([real[:, :seen], other[:, seen:]], axis=1)
  latents = fitted().encode(imagined)[:, 1 + (call - 1) * F : 1 + call * F]
  outlook = lookahead_lib.Outlook(frames_BRIJ3=frames, seen=seen, latents_BFHWC=latents)
  return make(history)[1].act(params(), fitted(), state, outlook, PROPRIO[call])


def amend(history, state, call):
  return make(history)[1].amend(params(), fitted(), state, window(history, call))


@functools.cache
def waited(history):
  """Actions and predictions of each call of an episode that waits for its frames, and its end."""
  state, outputs = reset(history), []
  for call in range(CHUNKS):
    *output, state = step(history, state, call)
    outputs.append(output)
  return outputs, state


def read_slots(state, last):
  """Keys and values of the frames up to the `last` committed one, and their latents."""
  memory = state.memory
  slots = last * 2  # Tokens of a frame: 4 x 2 latents in patches of 2.
  committed = [x[..., :slots, :] for x in (memory.cache.k, memory.cache.v)]
  return [*committed, memory.cache.frames, memory.clean_BFHWC[:, :last]]


@pytest.mark.parametrize('history', ['reset', 'sliding', 'window'])
def test_a_perfect_prediction_is_as_good_as_waiting(history):
  """With every number of frames seen, through new anchors and a window that slides."""
  outputs, end = waited(history)
  *output, state = step(history, reset(history), 0)
  trees.assert_close(output, outputs[0])
  for call in range(1, CHUNKS):
    *output, state = look_ahead(history, state, call, seen=(call - 1) % (r + 1))
    trees.assert_close(output, outputs[call])
    state = amend(history, state, call)
  last = min(state.frames, 1 + 2 * F)
  trees.assert_close(read_slots(state, last), read_slots(end, last))
  policy, _ = make(history)
  assert policy.traces == 1


@pytest.mark.parametrize('history', ['reset', 'sliding'])
def test_real_frames_take_the_places_of_what_was_foreseen(history):
  """A wrong prediction costs the chunk that is computed with it, and nothing after it: neither of
  an observed chunk nor of an anchor.
  """
  outputs, end = waited(history)
  wrong = 255 - FRAMES
  *_, state = step(history, reset(history), 0)
  for call in range(1, CHUNKS):
    if call % 2:
      action, _, state = look_ahead(history, state, call, seen=1, imagined=wrong)
      assert np.abs(action - outputs[call][0]).max() > 1e-3
      state = amend(history, state, call)
    else:
      *output, state = step(history, state, call)
      trees.assert_close(output, outputs[call])
  assert state.frames == end.frames
  last = min(state.frames, 1 + 2 * F)
  trees.assert_close(read_slots(state, last), read_slots(end, last))


def test_an_anchor_that_was_foreseen_is_anchored_again():
  """Chunk 3 of a window of three begins with a new anchor."""
  outputs, _ = waited('reset')
  state = reset('reset')
  for call in range(3):
    *_, state = step('reset', state, call)
  action, _, state = look_ahead('reset', state, 3, seen=3, imagined=255 - FRAMES)
  assert np.abs(action - outputs[3][0]).max() > 1e-3
  state = amend('reset', state, 3)
  *output, state = step('reset', state, 4)
  trees.assert_close(output, outputs[4])


def test_what_is_owed_comes_first():
  policy, ahead = make('reset')
  state = reset('reset')
  with pytest.raises(ValueError, match='first call of an episode has no chunk under way'):
    look_ahead('reset', state, 1, seen=0)
  *_, state = step('reset', state, 0)
  assert amend('reset', state, 1) is state
  with pytest.raises(ValueError, match=r'seen=5 must be 0 ... 4'):
    look_ahead('reset', state, 1, seen=5)
  *_, state = look_ahead('reset', state, 1, seen=2)
  with pytest.raises(ValueError, match='first amend it by the frames that came'):
    step('reset', state, 2)
  with pytest.raises(ValueError, match='first amend it'):
    look_ahead('reset', state, 2, seen=0)
  with pytest.raises(ValueError, match=r'shape \(2, 2, 8, 4, 3\), expected \(2, 4, 8, 4, 3\)'):
    ahead.amend(params(), fitted(), state, FRAMES[:, :2])
  state = amend('reset', state, 1)
  trees.assert_close(step('reset', state, 2)[:2], waited('reset')[0][2])
  assert policy.traces == 1


def test_the_agents_policy_fills_what_is_not_there_by_what_it_imagined():
  """Of the frames that `step` would take one is there; latents and frames of the others are those
  that the call before gave.
  """
  config = cfg.TrainConfig(model=MODEL, sample=cfg.SampleConfig(steps=2))
  timed = agent_lib.TimedPolicy(config, params(), fitted())
  # The programs that are compiled already.
  timed._policy.programs, timed._policy.ahead = make('reset')
  timed.reset(test_policy.TASK, FRAMES[:, 0], 0)
  given = types.Observation(frames_BRIJ3=np.repeat(FRAMES[:, :1], r, 1), proprio_BX=PROPRIO[0])
  _, imagined_BRIJ3 = timed.step(given)
  early = types.Observation(frames_BRIJ3=FRAMES[:, 1:2], proprio_BX=PROPRIO[1])
  got, _ = timed.step_ahead(early)

  _, latents, state = step('reset', reset('reset'), 0)
  frames = np.concatenate([FRAMES[:, 1:2], imagined_BRIJ3[:, 1:]], axis=1)
  outlook = lookahead_lib.Outlook(frames_BRIJ3=frames, seen=1, latents_BFHWC=latents)
  want, *_ = make('reset')[1].act(params(), fitted(), state, outlook, PROPRIO[1])
  np.testing.assert_array_equal(got, want)
  with pytest.raises(ValueError, match='first amend it by the frames that came'):
    timed.step(given)
  timed.amend(FRAMES[:, 1 : 1 + r])
  after = types.Observation(frames_BRIJ3=FRAMES[:, 1 + r : 1 + 2 * r], proprio_BX=PROPRIO[2])
  np.testing.assert_allclose(timed.step(after)[0], waited('reset')[0][2][0], atol=1e-5)
  timed.reset(test_policy.TASK, FRAMES[:, 0], 0)
  with pytest.raises(ValueError, match='not before its first chunk'):
    timed.step_ahead(early)
