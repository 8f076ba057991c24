"""The control step: compiled once, equal to training's view of the same window, re-anchoring, true
to what it sees.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import trees
from tests import weights
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import encoders
from wam_jax.models import tokenizer
from wam_jax.models import wam

B, Q, r, A, U, X = 2, 2, 2, 3, 3, 4
MODEL = dataclasses.replace(
  weights.SMALL,
  action_dim=U,
  proprio_dim=X,
  num_embodiments=2,
  actions_per_chunk=A,
  max_chunks=Q,
  tokenizer=cfg.TokenizerConfig(temporal=r, spatial=2, channels=6),
  text=cfg.TextConfig(vocab=16, dim=8, length=4),
)
JOINT = cfg.SampleConfig(steps=2)
# One step, whose result the teacher-forced pass can give, too.
FLASH = cfg.SampleConfig(mode='flash', steps=1, video_final_sigma=0.8)
FRAMES = np.random.default_rng(0).integers(0, 256, (B, 1 + 4 * r, 8, 4, 3)).astype(np.uint8)
PROPRIO = np.random.default_rng(1).normal(size=(B, 5, X)).astype(np.float32)
PROMPT_BP = np.int32([[1, 2, 3, 0], [4, 5, 0, 0]])
EMBODIMENT_B = np.int32([0, 1])
MASK_BAU = np.ones((B, A, U), bool)
# Robot 1 has fewer steps and dimensions.
MASK_BAU[1, -1:] = False
MASK_BAU[1, :, -1:] = False


@functools.cache
def fitted():
  patches = tokenizer.fit_patch_tokenizer(FRAMES, MODEL.tokenizer)
  return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)


@functools.cache
def random_params():
  return weights.draw_params(MODEL, seed=2)


@functools.cache
def policy(sample, model=MODEL):
  return policy_lib.Policy(model, sample, cfg.FlowConfig(video_hidden=0.2))


TASK = types.Task(prompt_ids_BP=PROMPT_BP, embodiment_B=EMBODIMENT_B, action_mask_BAU=MASK_BAU)


def reset(sample=JOINT, key=0, prompt_BP=PROMPT_BP):
  key = jax.random.key(key) if isinstance(key, int) else key
  task = TASK.replace(prompt_ids_BP=prompt_BP)
  return policy(sample).reset(random_params(), fitted(), task, FRAMES[:, 0], key)


def observe(call, frames=FRAMES):
  """What the robots see at a call: the current frame at call 0, then the frames of the chunk just
  executed.
  """
  start = 1 + (call - 1) * r
  seen = frames[:, start : start + r] if call else np.repeat(frames[:, :1], r, 1)
  return types.Observation(frames_BRIJ3=seen, proprio_BX=PROPRIO[:, call])


def act(state, observation, sample=JOINT):
  action_BAU, latents, state = policy(sample).step(random_params(), fitted(), state, observation)
  return np.asarray(action_BAU), np.asarray(latents), state


def act_all(state, observations, sample=JOINT):
  """(actions, latents) of each call."""
  outputs = []
  for observation in observations:
    *output, state = act(state, observation, sample)
    outputs.append(output)
  return outputs


@pytest.fixture(scope='module')
def episode():
  """Five calls of one episode; the third and the fifth anchor anew."""
  return act_all(reset(), [observe(call) for call in range(5)])


def test_one_trace_through_calls_resets_and_new_anchors(episode):
  act_all(reset(key=3, prompt_BP=PROMPT_BP[::-1]), [observe(call) for call in range(4)])
  act_all(reset(key=4), [observe(0)])
  # A second trace would stop the robot for the time of a compilation.
  assert policy(JOINT).traced == dict.fromkeys(('reset', 'observe', 'anchor', 'begin', 'act'), 1)


def test_frames_that_arrive_one_by_one_give_what_they_give_at_once(episode):
  """And what was seen before the robot asks for actions is not seen again when it asks."""
  brain = policy(JOINT)
  state = reset()
  for call in range(Q):
    observation = observe(call)
    if brain.anchors_next(state):
      state = brain.anchor(random_params(), fitted(), state, observation.frames_BRIJ3[:, -1:])
    else:
      # A latent frame is r camera frames, and a chunk is one of them.
      state = brain.observe(fitted(), state, observation.frames_BRIJ3)
    action, latents, state = brain.act(random_params(), state, observation.proprio_BX)
    trees.assert_same((action, latents), episode[call])


def test_the_cache_is_never_copied():
  """Every array that is remembered stays at its place in memory."""

  def places(state):
    cache = state.memory.cache
    return [x.unsafe_buffer_pointer() for x in (cache.k, cache.v, state.memory.clean_BFHWC)]

  state = reset()
  before = places(state)
  for call in range(Q + 1):
    *_, state = act(state, observe(call))
    assert places(state) == before


def test_calls_out_of_turn_say_what_is_next():
  brain = policy(JOINT)
  state = reset()
  with pytest.raises(ValueError, match='an anchor is next'):
    brain.observe(fitted(), state, FRAMES[:, 1 : 1 + r])
  *_, state = act(state, observe(0))
  with pytest.raises(ValueError, match='0 of 1 latent frames of the last chunk are observed'):
    brain.act(random_params(), state, PROPRIO[:, 0])
  state = brain.observe(fitted(), state, FRAMES[:, 1 : 1 + r])
  with pytest.raises(ValueError, match='act is next'):
    brain.observe(fitted(), state, FRAMES[:, 1 : 1 + r])


def describe(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def test_the_state_keeps_its_shapes_in_bfloat16():
  """So that a second call cannot compile again; also that the mixed types fit together."""
  brain = policy_lib.Policy(dataclasses.replace(MODEL, dtype='bfloat16'), JOINT, cfg.FlowConfig())
  params, frozen = random_params(), fitted()

  def run(name, *args):
    return jax.eval_shape(brain.programs[name], *args)

  memory, eyes = run('reset', params, frozen, TASK, FRAMES[:, 0], jax.random.key(0))
  before = describe((memory, eyes))
  assert memory.cache.k.dtype == jnp.bfloat16

  assert describe(run('anchor', params, frozen, memory, eyes, FRAMES[:, :1])) == before
  assert describe(run('observe', frozen, eyes, FRAMES[:, 1 : 1 + r], np.int32(0))) == before[1]
  start = np.int32(1)
  asked = memory_lib.Asked(PROPRIO[:, 0])
  begun = run('begin', params, memory, asked)
  acted = run('act', params, memory, eyes.latents_BFHWC, start, asked)
  for action, latents, after in (begun, acted):
    assert action.dtype == latents.dtype == jnp.float32
    assert describe(after) == before[0]


def test_same_key_same_actions(episode):
  trees.assert_same(act_all(reset(), [observe(0), observe(1)])[1], episode[1])


def test_another_key_or_prompt_or_pose_changes_the_actions(episode):
  other_pose = observe(0).replace(proprio_BX=PROPRIO[:, 4])
  for state, observation in (
    (reset(key=1), observe(0)),
    (reset(prompt_BP=PROMPT_BP[::-1]), observe(0)),
    (reset(), other_pose),
  ):
    # Actions are near 1, rounding near 1e-6.
    assert np.abs(act(state, observation)[0] - episode[0][0]).max() > 1e-3


def test_callers_arrays_survive_two_resets():
  """The state is donated, what it was made from is not."""
  arrays = jax.device_put((TASK, FRAMES[:, 0], jax.random.key(5)))
  outputs = []
  for _ in range(2):
    state = policy(JOINT).reset(random_params(), fitted(), *arrays)
    outputs.append(act(state, observe(0))[:2])
  trees.assert_same(*outputs)


def test_observed_frames_replace_predicted_ones(episode):
  """After the same first call, other frames seen give other actions; the predictions had been the
  same.
  """
  others = FRAMES.copy()
  # The frames of the chunk that was executed after the first call.
  others[:, 1 : 1 + r] = 255 - others[:, 1 : 1 + r]
  first, second = act_all(reset(), [observe(0), observe(1, others)])
  trees.assert_same(first, episode[0])
  assert np.abs(second[0] - episode[1][0]).max() > 1e-3


def test_only_the_newest_frame_anchors(episode):
  frames = observe(0).frames_BRIJ3.copy()
  frames[:, :-1] = 0
  trees.assert_same(act(reset(), observe(0).replace(frames_BRIJ3=frames))[:2], episode[0])


def test_anchor_of_the_reference():
  """Four frames sent, each here twice: the newest; eight: the oldest. Of each robot by itself."""
  model = dataclasses.replace(
    MODEL,
    frames_per_chunk=2,
    max_chunks=4,
    history_rule='reference_global',
    tokenizer=dataclasses.replace(MODEL.tokenizer, temporal=4, channels=12),
  )
  frames = FRAMES[:, :8].copy()
  frames[0] = np.repeat(frames[0, ::2], 2, axis=0)
  sample = dataclasses.replace(FLASH, anchor='reference')
  choose = policy_lib.Policy(model, sample, cfg.FlowConfig())._choose_anchor
  np.testing.assert_array_equal(choose(frames)[0, 0], frames[0, -1])
  np.testing.assert_array_equal(choose(frames)[1, 0], frames[1, 0])
  choose = policy_lib.Policy(model, FLASH, cfg.FlowConfig())._choose_anchor
  np.testing.assert_array_equal(choose(frames)[:, 0], frames[:, -1])


def test_every_call_starts_over_with_the_global_rule_of_the_reference():
  model = dataclasses.replace(MODEL, history_rule='reference_global')
  starting_over = policy_lib.Policy(model, FLASH, cfg.FlowConfig())
  state = starting_over.reset(random_params(), fitted(), TASK, FRAMES[:, 0], jax.random.key(0))
  for call in (0, 1):
    *_, state = starting_over.step(random_params(), fitted(), state, observe(call))
    # Frame 0 alone is remembered: that of this call.
    assert state.frames == 1
    want = fitted().encode(observe(call).frames_BRIJ3[:, -1:])
    np.testing.assert_array_equal(state.memory.clean_BFHWC[:, :1], want)


def test_new_anchor_equals_a_fresh_episode(episode):
  """The call after `max_chunks` chunks forgets everything but its newest frame, and so does the
  next but one.
  """
  state = reset()
  for call in range(Q):
    *_, state = act(state, observe(call))
  # The same noise from here on; the history is the only difference.
  fresh = reset(key=jax.random.clone(state.memory.key))
  again = act_all(fresh, [observe(Q), observe(Q + 1)])
  trees.assert_same(again[0], episode[Q])
  trees.assert_same(again[1], episode[Q + 1])


def test_each_call_of_a_window_starts_over_a_chunk_ago(episode):
  """It gives what an episode gives that began then, whatever was called in between."""
  window = dataclasses.replace(JOINT, history='window')
  assert policy(window).frames_per_call == 1 + r
  state = reset(window)
  for call in range(2 * Q):
    # The third call comes half a chunk late.
    start = max(0, call - 1) * r + (call == 2)
    frames = FRAMES[:, start : start + 1 + r] if call else np.repeat(FRAMES[:, :1], 1 + r, 1)
    observation = types.Observation(frames_BRIJ3=frames, proprio_BX=PROPRIO[:, call])
    *output, state = act(state, observation, window)
    if call != 2:
      trees.assert_same(output, episode[call])
  assert policy(window).traces == 1
  with pytest.raises(ValueError, match=r'shape \(2, 2, 8, 4, 3\), expected \(2, 3, 8, 4, 3\)'):
    act(state, observe(1), window)


def test_robots_of_a_batch_do_not_see_each_other(episode):
  others = FRAMES.copy()
  others[1] = 255 - others[1]
  outputs = act_all(reset(), [observe(call, others) for call in range(Q)])
  for got, want in zip(outputs, episode):
    for g, w in zip(got, want, strict=True):
      np.testing.assert_array_equal(g[0], w[0])
      assert np.abs(g[1] - w[1]).max() > 1e-3


def test_padded_actions_are_zero(episode):
  for action_BAU, _ in episode:
    np.testing.assert_array_equal(action_BAU[~MASK_BAU], 0)
    assert np.all(action_BAU[MASK_BAU] != 0)


def test_one_flash_step_equals_the_teacher_forced_velocity():
  """Control over a window of real frames is one Euler step along the velocities that training sees.

  Both go from noise to what is predicted clean, the video as well, though it would stop at 0.8;
  noise by the policy's own use of its key.
  """
  outputs = act_all(reset(FLASH), [observe(call) for call in range(Q)], FLASH)
  key = jax.random.key(0)
  noises_video = []
  noises_action = []
  for _ in range(Q):
    key, key_video, key_action = jax.random.split(key, 3)
    noises_video.append(jax.random.normal(key_video, (B, 1, 4, 2, 6)))
    noises_action.append(jax.random.normal(key_action, (B, A, U)) * MASK_BAU)
  noise_video = np.concatenate(noises_video, 1)
  noise_action = np.concatenate(noises_action, 1)

  @jax.jit
  def teacher_forced(params, clean):
    noisy = types.Noisy(
      video_BFHWC=noise_video,
      sigma_video_BF=np.ones((B, Q)),
      action_BAU=noise_action,
      sigma_action_BA=np.ones((B, Q * A)),
    )
    body = types.Body(
      proprio_BSX=PROPRIO[:, :Q],
      embodiment_B=EMBODIMENT_B,
      valid_BA=np.tile(MASK_BAU.any(-1), (1, Q)),
    )
    run = lambda m: m(clean, noisy, body, m.encode_text(PROMPT_BP))
    return nn.apply(run, wam.WorldActionModel(MODEL))({'params': params})

  video, action = teacher_forced(random_params(), fitted().encode(FRAMES[:, : 1 + (Q - 1) * r]))
  got_action, got_video = (np.concatenate(parts, 1) for parts in zip(*outputs))
  # Float32, sums in another order.
  want_action = (noise_action - action) * np.tile(MASK_BAU, (1, Q, 1))
  np.testing.assert_allclose(got_action, want_action, atol=1e-5)
  np.testing.assert_allclose(got_video, noise_video - video, atol=1e-5)
  assert policy(FLASH).traces == 1


def act_in_turn(sample, model, calls=Q + 2):
  """(actions, latents) of each call of an episode that anchors twice, guided if `sample` is."""
  one = policy(sample, model)
  task = TASK
  if sample.is_guided:
    task = TASK.replace(negative_ids_BP=np.tile(PROMPT_BP[:1, ::-1], (B, 1)))
  state = one.reset(random_params(), fitted(), task, FRAMES[:, 0], jax.random.key(0))
  outputs = []
  for call in range(calls):
    *output, state = one.step(random_params(), fitted(), state, observe(call))
    outputs.append(output)
  assert one.traces == 1
  return outputs


@pytest.mark.parametrize(
  'rule, guidance', [('chunk', 3.0), pytest.param('self', 1.0, marks=pytest.mark.slow)]
)
def test_one_pass_of_the_video_and_three_of_the_actions_equal_three_of_both(rule, guidance):
  """Everything is computed again at each step, of a video that stays noise; through anchors, with
  robots of fewer steps, with guidance.
  """
  model = dataclasses.replace(MODEL, video_sees='video', state_rule=rule)
  once = cfg.SampleConfig(mode='flash', steps=1, action_steps=3, guidance_scale=guidance)
  again = dataclasses.replace(once, steps=3, action_steps=0, shift=1.0, video_final_sigma=1.0)
  for got, want in zip(act_in_turn(once, model), act_in_turn(again, model), strict=True):
    for g, w in zip(got, want):
      np.testing.assert_allclose(g, w, atol=1e-5)  # Float32, sums in another order.
      assert np.std(w) > 0.1


@pytest.mark.slow
def test_kept_video_is_an_approximation_of_running_it_again_where_it_sees_the_actions():
  """What the approximation is compared with is three full steps with the video at noise."""
  kept = cfg.SampleConfig(mode='flash', steps=1, action_steps=3, approximate_kept_video=True)
  again = dataclasses.replace(kept, steps=3, action_steps=0, shift=1.0, video_final_sigma=1.0)
  exact = policy_lib.Policy(MODEL, kept, cfg.FlowConfig(), recompute=True)
  state = exact.reset(random_params(), fitted(), TASK, FRAMES[:, 0], jax.random.key(0))
  approximate, wanted = act_in_turn(kept, MODEL), act_in_turn(again, MODEL)
  for call in range(Q):
    action, _, state = exact.step(random_params(), fitted(), state, observe(call))
    np.testing.assert_allclose(action, wanted[call][0], atol=1e-5)
    assert np.abs(action - approximate[call][0]).max() > 1e-4


def test_actions_alone_do_not_depend_on_noise_of_the_video():
  """Nor on its guidance, for which nothing is computed."""
  act_only = cfg.SampleConfig(mode='act_only', steps=2)
  (action, video), *_ = act_in_turn(act_only, MODEL)
  assert video is None
  one = policy(dataclasses.replace(act_only, guidance_scale=3.0))
  state = one.reset(random_params(), fitted(), TASK, FRAMES[:, 0], jax.random.key(0))
  _, _, key_action = jax.random.split(jax.random.key(0), 3)
  noise = (np.zeros((B, 1, 4, 2, 6)), jax.random.normal(key_action, (B, A, U)))
  again, *_ = one.step(random_params(), fitted(), state, observe(0), noise)
  np.testing.assert_array_equal(again, action)
  assert state.memory.text_GPC.shape[0] == B


def test_sampling_that_the_weights_do_not_know_is_refused():
  flash = cfg.SampleConfig(mode='flash', steps=1, action_steps=4)
  with pytest.raises(ValueError, match="model.video_sees='all' they follow the actions"):
    policy_lib.Policy(MODEL, flash, cfg.FlowConfig())
  act_only = cfg.SampleConfig(mode='act_only')
  with pytest.raises(ValueError, match='flow.video_hidden=0 never met in training'):
    policy_lib.Policy(MODEL, act_only, cfg.FlowConfig())


def test_guidance_moves_the_video_towards_the_prompt_and_leaves_the_actions():
  """The first call has no history, so that the actions of the prompt's branch are those without
  guidance.
  """
  plain = dataclasses.replace(FLASH, steps=1)
  guided = dataclasses.replace(plain, guidance_scale=3.0)
  one = policy(guided)
  # Any other prompt does: guidance is linear in the two.
  negative_BP = np.tile(PROMPT_BP[:1, ::-1], (B, 1))
  task = TASK.replace(negative_ids_BP=negative_BP)
  state = one.reset(random_params(), fitted(), task, FRAMES[:, 0], jax.random.key(0))
  action, video, state = one.step(random_params(), fitted(), state, observe(0))
  want_action, positive, _ = act(reset(plain), observe(0), plain)
  _, negative, _ = act(reset(plain, prompt_BP=negative_BP), observe(0), plain)
  np.testing.assert_allclose(action, want_action, atol=1e-5)  # Float32, sums in another order.
  np.testing.assert_allclose(video, negative + 3 * (positive - negative), atol=1e-4)
  one.step(random_params(), fitted(), state, observe(1))
  assert one.traces == 1
  with pytest.raises(ValueError, match='guidance_scale=3.0 needs negative prompts'):
    one.reset(random_params(), fitted(), TASK, FRAMES[:, 0], jax.random.key(0))


def test_the_same_noise_at_every_call():
  same = dataclasses.replace(FLASH, same_noise=True)
  _, _, state = act(reset(same), observe(0), same)
  key = jax.random.key_data(jax.random.key(0))
  np.testing.assert_array_equal(jax.random.key_data(state.memory.key), key)


def test_observed_chunks_as_fresh_streams_agree_where_the_tokenizer_has_no_memory(episode):
  fresh = dataclasses.replace(JOINT, observed='fresh')
  for got, want in zip(act_all(reset(fresh), [observe(0), observe(1)], fresh), episode):
    for g, w in zip(got, want):
      np.testing.assert_allclose(g, w, atol=1e-5)


def test_imagined_frames_are_the_decoded_latents(episode):
  _, latents, state = act(reset(), observe(0))
  frames = policy(JOINT).imagine(fitted(), state, latents)
  # A latent frame is r camera frames.
  assert frames.shape == (B, r, 8, 4, 3)
  np.testing.assert_allclose(frames, fitted().tokenizer.decode_more((), latents)[0], atol=1e-5)


def test_cosine_rule_skips_passes_of_the_compiled_step():
  """Never less than two evaluations, and the rest where velocities turn; one trace for all."""
  sample = dataclasses.replace(JOINT, steps=8, reuse='cosine')
  state = reset(sample)
  for call in range(Q):
    *_, state = act(state, observe(call), sample)
    assert 2 <= int(state.memory.evaluations) <= 8
  assert policy(sample).traces == 1


def test_a_bad_observation_is_refused_and_changes_nothing(episode):
  state = reset()
  *_, state = act(state, observe(0))
  good = observe(1)
  nan = good.proprio_BX.copy()
  nan[1, 2] = np.nan
  for bad, message in (
    (good.replace(frames_BRIJ3=good.frames_BRIJ3[:, :1]), r'shape \(2, 1, 8, 4, 3\), expected'),
    (good.replace(frames_BRIJ3=good.frames_BRIJ3[:, :, :4]), 'views tiled as at reset'),
    (good.replace(frames_BRIJ3=good.frames_BRIJ3 / 255), 'is float64, expected uint8'),
    (good.replace(proprio_BX=good.proprio_BX[:, 1:]), r'proprio_BX has shape \(2, 3\)'),
    (good.replace(proprio_BX=nan), r'not finite at \[\(1, 2\)\]'),
  ):
    with pytest.raises(ValueError, match=message):
      act(state, bad)
  trees.assert_same(act(state, good)[:2], episode[1])
  assert policy(JOINT).traces == 1
