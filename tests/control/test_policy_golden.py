"""Closed-loop calls of the compiled policy against the official policy head (tests/golden)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows


@flax.struct.dataclass
class StoredText:
  """A prompt's ids are all its row in the table."""

  table_EPC: jax.Array

  def encode(self, ids_BP):
    return self.table_EPC[ids_BP[:, 0]]


@flax.struct.dataclass
class StoredEncoders:
  """Gives the file's tensors for any anchor frame; what it is shown as observed frames are latents
  already.
  """

  first_latent_B1HWC: jax.Array
  condition: types.Condition
  text: Any

  def encode_start(self, frame_B1IJ3):
    return self.first_latent_B1HWC, ()

  def encode_more(self, stream, latents_BFHWC):
    return latents_BFHWC, stream

  def encode_condition(self, frame_B1IJ3):
    return self.condition


@pytest.fixture(scope='module')
def calls(golden_head_rollout):
  """(file, policy, per call: actions, latents, frames in the cache)."""
  g, c = golden_head_rollout, golden_head_rollout.config
  model = parity.model_config(c)
  # What stands for frames here are latents.
  one_each = dataclasses.replace(model.tokenizer, temporal=1)
  model = dataclasses.replace(model, tokenizer=one_each)
  final = c['video_inference_final_noise']
  sample = cfg.SampleConfig(
    mode='joint' if final is None else 'flash',
    video_final_sigma=0.8 if final is None else final,
    solver='unipc',
    steps=c['num_inference_steps'],
    shift=c['sigma_shift'],
    guidance_scale=c['cfg_scale'],
    # As the official sampler, which truncates what the network is told.
    integer_timesteps=True,
    evaluate_steps=tuple(i for i, run in enumerate(c['step_mask']) if run),
  )
  # The official head feeds noise in padded dimensions.
  policy = policy_lib.Policy(model, sample, cfg.FlowConfig(mask_padded_noise=False))
  params = rows.to_params(dit.rows(model), g.below('w/'))
  frozen = StoredEncoders(
    parity.channels_last(g['in/first_latent']),
    types.Condition(latents_BFHWC=parity.channels_last(g['in/y']), image_BIC=g['in/clip_feature']),
    StoredText(np.concatenate([g['in/context'], g['in/context_negative']])),
  )
  noise = (parity.channels_last(g['in/noise_video']), g['in/noise_action'])
  ids = lambda row: np.full((1, 1), row, np.int32)
  observed = [parity.channels_last(x) for x in g['in/observed_latents']]
  task = types.Task(
    prompt_ids_BP=ids(0),
    embodiment_B=np.zeros(1, np.int32),
    action_mask_BAU=np.ones(noise[1].shape, bool),
    negative_ids_BP=ids(1),
  )
  state = policy.reset(params, frozen, task, observed[0][:, 0], jax.random.key(0))
  outputs = []
  for call in range(c['calls']):
    # The first call's latents are of no chunk: the policy anchors.
    observation = types.Observation(
      frames_BRIJ3=observed[call], proprio_BX=g['in/state'][call][:, 0]
    )
    action, latents, state = policy.step(params, frozen, state, observation, noise)
    outputs.append((np.asarray(action), np.asarray(latents), state.frames))
  return g, policy, outputs


def test_golden_rollout_outputs(calls, request):
  g, _, outputs = calls
  for call, (action, latents, _) in enumerate(outputs):
    want = parity.channels_last(g[f'out/call{call}/video'])
    if want.shape[1] > latents.shape[1]:  # The official head puts the anchor's latent in front.
      latents = np.concatenate([parity.channels_last(g['in/first_latent']), latents], 1)
    parity.check(
      request,
      'policy head rollout, actions',
      action,
      g[f'out/call{call}/action'],
      absolute=parity.ROLLOUTS,
    )
    parity.check(request, 'policy head rollout, video', latents, want, absolute=parity.ROLLOUTS)


def test_golden_rollout_starts_over_where_the_official_head_does(calls):
  g, policy, outputs = calls
  per_chunk, tokens = g.config['num_frame_per_block'], g.config['frame_seqlen']
  starts = [frames for _, _, frames in outputs]
  assert [s + per_chunk for s in starts] == [
    int(g[f'out/call{i}/start_frame_after']) for i in range(len(starts))
  ]
  assert [s * tokens for s in starts] == [
    int(g[f'out/call{i}/cache_len']) for i in range(len(starts))
  ]
  # Before a call the official counter still stands where it will start over.
  before = g.config['start_frames_before_call']
  assert before[0] == 0
  assert before[1:] == [s + per_chunk for s in starts[:-1]]
  # Through all calls and new beginnings.
  assert policy.traces == 1
