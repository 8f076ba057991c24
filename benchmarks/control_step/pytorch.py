"""One cached denoising pass of the same network in PyTorch: the baseline outside of this project.

Written as one would for speed: keys and values of the past and of the prompt are there already,
attention is `scaled_dot_product_attention`, nothing records gradients.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.control_step import scene as scene_lib
from benchmarks.step import pytorch as network
from wam_jax import types
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import attention

# Float32, sums in another order.
_SAME = 1e-4


class Denoiser(network.Model):
  """`WorldActionModel.denoise` with the cache of a policy."""

  def __init__(self, scene: scene_lib.Scene, params: Any, memory: memory_lib.Memory):
    c = scene.model
    H, W, _ = scene.clean_BFHWC.shape[2:]
    rows, columns = H // c.patch, W // c.patch
    super().__init__(c, rows, columns)
    self.load_state_dict(network.make_weights(c, params))
    seen = scene.clean_BFHWC.shape[1] * scene.tokens_per_frame
    self.past = [
      tuple(network.to_tensor(x[layer, :, :, :seen]) for x in (memory.cache.k, memory.cache.v))
      for layer in range(c.num_layers)
    ]
    self.prompts = [
      tuple(network.to_tensor(x[layer]) for x in memory.prompt.layers[0])
      for layer in range(c.num_layers)
    ]
    first = scene.clean_BFHWC.shape[1]
    chunk = (first - 1) // c.frames_per_chunk
    A = c.actions_per_chunk
    angles = np.concatenate(
      [
        attention.video_angles(first, c.frames_per_chunk, rows, columns, c.head_dim),
        attention.sequence_angles(chunk * A, A, c.head_dim),
        attention.sequence_angles(chunk, 1, c.head_dim),
      ]
    )
    self.turn = tuple(torch.from_numpy(x) for x in (np.cos(angles), np.sin(angles)))
    self.mask = torch.from_numpy(_mask(scene, seen))
    # Levels: of each frame, each action, and the state.
    frames = np.repeat(np.arange(c.frames_per_chunk), rows * columns)
    rest = c.frames_per_chunk + np.arange(A + 1)
    self.level = torch.from_numpy(np.concatenate([frames, rest]))

  @torch.inference_mode()
  def forward(self, noisy, sigma_BF, action_BAU, sigma_BA, proprio_BSX, embodiment_B):
    patches = self._make_patches(noisy)
    actions = self.action_encoder(action_BAU, sigma_BA, embodiment_B)
    states = self.state_encoder(proprio_BSX, embodiment_B)
    x_BTD = torch.cat([self.patch_embedding(patches), actions, states], 1)
    levels_BG = torch.cat([sigma_BF, sigma_BA, sigma_BA[:, :1]], 1)
    sinusoid = network.make_sinusoid(1000 * levels_BG, self.c.freq_dim).flatten(-2)
    time_BGD = self.time_embedding(sinusoid)
    modulation_BG6D = self.time_projection(time_BGD).unflatten(-1, (6, -1))
    for number, block in enumerate(self.blocks):
      x_BTD = self._run(block, number, x_BTD, modulation_BG6D)
    video_tokens = patches.shape[1]
    time_BTD = time_BGD[:, : sigma_BF.shape[1]].repeat_interleave(self.frame_tokens, 1)
    video = self._join_patches(self.head(x_BTD[:, :video_tokens], time_BTD), noisy)
    return video, self.action_decoder(x_BTD[:, video_tokens:-1], embodiment_B)

  def _run(self, block, number: int, x_BTD, modulation_BG6D):
    modulation_BT6D = (block.modulation + modulation_BG6D)[:, self.level]
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation_BT6D.unbind(2)
    own, to_prompt = block.self_attn, block.cross_attn
    y_BTD = block.norm1(x_BTD) * (1 + scale1) + shift1
    q_BNTK = network.rotate(own._split(own.norm_q(own.q(y_BTD))), *self.turn)
    k_BNTK = network.rotate(own._split(own.norm_k(own.k(y_BTD))), *self.turn)
    v_BNTK = own._split(own.v(y_BTD))
    past_k, past_v = self.past[number]
    keys, values = torch.cat([past_k, k_BNTK], 2), torch.cat([past_v, v_BNTK], 2)
    y_BNTK = F.scaled_dot_product_attention(q_BNTK, keys, values, self.mask)
    x_BTD = x_BTD + gate1 * own.o(y_BNTK.transpose(1, 2).flatten(-2))

    q_BNTK = to_prompt._split(to_prompt.norm_q(to_prompt.q(block.norm3(x_BTD))))
    y_BNTK = F.scaled_dot_product_attention(q_BNTK, *self.prompts[number])
    x_BTD = x_BTD + to_prompt.o(y_BNTK.transpose(1, 2).flatten(-2))
    return x_BTD + gate2 * block.ffn(block.norm1(x_BTD) * (1 + scale2) + shift2)


def _mask(scene: scene_lib.Scene, seen: int) -> np.ndarray:
  """[1, 1, T, past + T]: video sees the past and video, actions see all, a state sees itself."""
  c = scene.model
  video = c.frames_per_chunk * scene.tokens_per_frame
  T = video + c.actions_per_chunk + 1
  mask = np.ones((T, seen + T), bool)
  mask[:video, seen + video :] = False
  mask[-1, :-1] = False
  return mask[None, None]


def compare(
  scene: scene_lib.Scene, policy: policy_lib.Policy, threads: int, rounds: int
) -> dict[str, float]:
  """Milliseconds of a pass of both, in turns, once they are known to give the same.

  Args:
    policy: one without guidance, whose pass is timed.
  Raises:
    ValueError: the model has what benchmarks/step/pytorch.py lacks, or they are not the same.
  """
  c = scene.model
  if c.text.kind != 'word' or c.image_dim or c.state_rule != 'self' or c.dtype != 'float32':
    raise ValueError('The PyTorch baseline is of models like configs/tiny.py alone; --size=tiny.')
  torch.set_num_threads(threads)
  commit = jax.jit(policy._commit)
  params = scene.params
  before = scene_lib.remember(policy, scene, params)
  memory = commit(params, before, scene.observed_BFHWC, jnp.int32(scene.start))
  B = len(scene.clean_BFHWC)
  video, action = scene.noise
  sigma_BF = np.full((B, c.frames_per_chunk), 0.7, np.float32)
  sigma_BA = np.full((B, c.actions_per_chunk), 0.7, np.float32)
  body = scene.body

  @jax.jit
  def denoise(params, cache, prompt, video, action):
    noisy = types.Noisy(
      video_BFHWC=video,
      sigma_video_BF=sigma_BF,
      action_BAU=action,
      sigma_action_BA=sigma_BA,
    )
    start = jnp.int32(scene.clean_BFHWC.shape[1])
    return policy._apply(params, policy._wam.denoise, cache, noisy, body, start, prompt)

  theirs = Denoiser(scene, params, memory).eval()
  arrays = (video, sigma_BF, action, sigma_BA, body.proprio_BSX, body.embodiment_B)
  tensors = [network.to_tensor(x) for x in arrays]
  tensors[-1] = tensors[-1].long()

  def run_ours():
    ours = denoise(params, memory.cache, memory.prompt, video, action)
    return jax.block_until_ready(ours)

  def run_theirs():
    return theirs(*tensors)

  errors = [
    float(np.abs(np.asarray(g) - w.numpy()).max() / np.abs(w.numpy()).max())
    for g, w in zip(run_ours(), run_theirs())
  ]
  if not max(errors) < _SAME:
    raise ValueError(f'benchmarks/control_step/pytorch.py is not the same network: {errors}.')
  times: dict[str, list[float]] = {'wam_jax': [], 'pytorch': []}
  for _ in range(rounds):
    for name, run in (('wam_jax', run_ours), ('pytorch', run_theirs)):
      start = time.perf_counter()
      run()
      times[name].append(1e3 * (time.perf_counter() - start))
  p50 = {name: statistics.median(each) for name, each in times.items()}
  least = {f'{name}_least': min(each) for name, each in times.items()}
  return {**p50, **least, 'faster': p50['pytorch'] / p50['wam_jax'], 'error': max(errors)}
