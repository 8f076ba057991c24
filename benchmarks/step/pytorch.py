"""The transformer of `wam_jax` and its training step once more in PyTorch, as the baseline of
`benchmarks.step`.

For models with the word encoder and the patch tokenizer, as configs/tiny.py. Module names are those
of DreamZero's checkpoints, so that weights come by the table that also reads those. What is
traced for torch.compile takes tensors, tuples of them, and nothing of JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import train_step
from wam_jax import types
from wam_jax.interop.table import dit as table
from wam_jax.interop.table import rows
from wam_jax.models import attention
from wam_jax.models import tokenizer


def to_tensor(array: Any) -> torch.Tensor:
  """A copy of a NumPy or JAX array."""
  return torch.from_numpy(np.array(array))


class Category(nn.Module):
  """Linear layer with a matrix per embodiment."""

  def __init__(self, num: int, width_in: int, width_out: int):
    super().__init__()
    self.W = nn.Parameter(torch.empty(num, width_in, width_out))
    self.b = nn.Parameter(torch.empty(num, width_out))

  def forward(self, x_BTI: torch.Tensor, embodiment_B: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(self.b[embodiment_B][:, None], x_BTI, self.W[embodiment_B])


class CategoryMLP(nn.Module):
  def __init__(self, num: int, width_in: int, hidden: int, width_out: int):
    super().__init__()
    self.layer1 = Category(num, width_in, hidden)
    self.layer2 = Category(num, hidden, width_out)

  def forward(self, x_BTI: torch.Tensor, embodiment_B: torch.Tensor) -> torch.Tensor:
    return self.layer2(F.relu(self.layer1(x_BTI, embodiment_B)), embodiment_B)


class ActionEncoder(nn.Module):
  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    E, D = c.num_embodiments, c.dim
    self.W1 = Category(E, c.action_dim, D)
    self.W2 = Category(E, 2 * D, D)
    self.W3 = Category(E, D, D)

  def forward(
    self, action_BAU: torch.Tensor, sigma_BA: torch.Tensor, embodiment_B: torch.Tensor
  ) -> torch.Tensor:
    # Sines before cosines here, unlike everywhere else.
    level = make_sinusoid(1000 * sigma_BA, self.W3.W.shape[-1]).flip(-2).flatten(-2)
    x_BAD = self.W1(action_BAU, embodiment_B)
    h_BAD = self.W2(torch.cat([x_BAD, level], -1), embodiment_B)
    return self.W3(F.silu(h_BAD), embodiment_B)


class Layout(NamedTuple):
  """What is fixed about the tokens of a window.

  Attributes:
    cos_TR, sin_TR: rotary embedding of each token.
    group_T: the frame or action step whose level of noise the token has.
  """

  cos_TR: torch.Tensor
  sin_TR: torch.Tensor
  group_T: torch.Tensor


class Attention(nn.Module):
  """Self-attention with rotary embedding, or attention to a prompt."""

  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    self.heads = c.num_heads
    self.q = nn.Linear(c.dim, c.dim)
    self.k = nn.Linear(c.dim, c.dim)
    self.v = nn.Linear(c.dim, c.dim)
    self.o = nn.Linear(c.dim, c.dim)
    self.norm_q = nn.RMSNorm(c.dim, c.eps)
    self.norm_k = nn.RMSNorm(c.dim, c.eps)

  def forward(self, x_BTD, y_BSD, turn=None, mask=None):
    q_BNTK = self._split(self.norm_q(self.q(x_BTD)))
    k_BNSK = self._split(self.norm_k(self.k(y_BSD)))
    v_BNSK = self._split(self.v(y_BSD))
    if turn is not None:
      q_BNTK = rotate(q_BNTK, *turn)
      k_BNSK = rotate(k_BNSK, *turn)
    y_BNTK = F.scaled_dot_product_attention(q_BNTK, k_BNSK, v_BNSK, mask)
    return self.o(y_BNTK.transpose(1, 2).flatten(-2))

  def _split(self, x_BTD):
    return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    self.self_attn = Attention(c)
    self.cross_attn = Attention(c)
    self.norm1 = nn.LayerNorm(c.dim, c.eps, elementwise_affine=False)
    self.norm3 = nn.LayerNorm(c.dim, c.eps)
    self.ffn = nn.Sequential(
      nn.Linear(c.dim, c.mlp_dim), nn.GELU('tanh'), nn.Linear(c.mlp_dim, c.dim)
    )
    self.modulation = nn.Parameter(torch.empty(1, 6, c.dim))

  def forward(self, x_BTD, modulation_BG6D, prompt_BPD, layout: Layout, mask):
    # Tokens of one frame or action step share their level of noise, and with it their modulation.
    modulation_BT6D = (self.modulation + modulation_BG6D)[:, layout.group_T]
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation_BT6D.unbind(2)
    y_BTD = self.norm1(x_BTD) * (1 + scale1) + shift1
    x_BTD = x_BTD + gate1 * self.self_attn(y_BTD, y_BTD, (layout.cos_TR, layout.sin_TR), mask)
    x_BTD = x_BTD + self.cross_attn(self.norm3(x_BTD), prompt_BPD)
    return x_BTD + gate2 * self.ffn(self.norm1(x_BTD) * (1 + scale2) + shift2)


class Head(nn.Module):
  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    self.norm = nn.LayerNorm(c.dim, c.eps, elementwise_affine=False)
    self.head = nn.Linear(c.dim, c.patch**2 * c.tokenizer.channels)
    self.modulation = nn.Parameter(torch.empty(1, 2, c.dim))

  def forward(self, x_BTD, time_BTD):
    shift, scale = (self.modulation + time_BTD[:, :, None]).unbind(2)
    return self.head(self.norm(x_BTD) * (1 + scale) + shift)


class WordEncoder(nn.Module):
  """Word embeddings and pre-norm transformer layers of two heads."""

  def __init__(self, c: cfg.TextConfig):
    super().__init__()
    D = c.dim
    self.table = nn.Embedding(c.vocab, D)
    self.layers = nn.ModuleList(
      nn.ModuleDict(
        {
          'norm1': nn.LayerNorm(D, 1e-6),
          'qkv': nn.Linear(D, 3 * D),
          'o': nn.Linear(D, D),
          'norm2': nn.LayerNorm(D, 1e-6),
          'in': nn.Linear(D, 4 * D),
          'out': nn.Linear(4 * D, D),
        }
      )
      for _ in range(c.layers)
    )
    position = 0.1 * make_sinusoid(torch.arange(c.length), D).flatten(-2)
    self.register_buffer('position', position, persistent=False)

  def forward(self, ids_BP):
    real_BP = ids_BP > 0
    x = self.table(ids_BP) + self.position
    for layer in self.layers:
      qkv = layer['qkv'](layer['norm1'](x))
      q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute((2, 0, 3, 1, 4))
      y = F.scaled_dot_product_attention(q, k, v, real_BP[:, None, None])
      x = x + layer['o'](y.transpose(1, 2).flatten(-2))
      x = x + layer['out'](F.gelu(layer['in'](layer['norm2'](x)), approximate='tanh'))
    return x * real_BP[..., None]


class Inputs(NamedTuple):
  """What the model is shown of a window with Q chunks.

  Attributes:
    clean, noisy: [B, F, H, W, C] latents: those that later chunks see, and those to be denoised.
    sigma_BF: noise of `noisy`.
    action_BAU, sigma_BA: noisy actions of all chunks, and their noise.
    proprio_BQX: states at the start of each chunk.
    ids_BP: prompts.
    embodiment_B: robots, int64.
    valid_BA: real action steps.
  """

  clean: torch.Tensor
  noisy: torch.Tensor
  sigma_BF: torch.Tensor
  action_BAU: torch.Tensor
  sigma_BA: torch.Tensor
  proprio_BQX: torch.Tensor
  ids_BP: torch.Tensor
  embodiment_B: torch.Tensor
  valid_BA: torch.Tensor


class Model(nn.Module):
  """`wam.WorldActionModel`, teacher-forced on a full window of frames of `rows` x `columns`
  patches.
  """

  def __init__(self, c: cfg.ModelConfig, rows: int, columns: int):
    super().__init__()
    D, E = c.dim, c.num_embodiments
    self.c = c
    self.text_encoder = WordEncoder(c.text)
    self.patch_embedding = nn.Linear(c.in_channels * c.patch**2, D)
    self.text_embedding = _make_mlp(c.text.dim, D, nn.GELU('tanh'))
    self.time_embedding = _make_mlp(c.freq_dim, D, nn.SiLU())
    self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
    self.action_encoder = ActionEncoder(c)
    self.state_encoder = CategoryMLP(E, c.proprio_dim, c.action_hidden, D)
    self.action_decoder = CategoryMLP(E, D, c.action_hidden, c.action_dim)
    self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
    self.head = Head(c)
    # Frame 0 is always clean and the last chunk never is.
    self.frame_tokens = rows * columns
    self.clean_frames = 1 + (c.max_chunks - 1) * c.frames_per_chunk
    self._register_layout(rows, columns)

  def _register_layout(self, rows: int, columns: int) -> None:
    c = self.c
    frames = 1 + c.max_chunks * c.frames_per_chunk
    layout = masks.training_layout(
      clean_frames=self.clean_frames,
      noisy_frames=range(1, frames),
      tokens_per_frame=self.frame_tokens,
      frames_per_chunk=c.frames_per_chunk,
      actions_per_chunk=c.actions_per_chunk,
      states_per_chunk=1,
      chunks=c.max_chunks,
    )
    angles = np.concatenate(
      [
        attention.video_angles(0, self.clean_frames, rows, columns, c.head_dim),
        attention.video_angles(1, frames - 1, rows, columns, c.head_dim),
        attention.sequence_angles(0, c.max_chunks * c.actions_per_chunk, c.head_dim),
        attention.sequence_angles(0, c.max_chunks, c.head_dim),
      ]
    )
    for name, array in (
      ('cos', np.cos(angles)),
      ('sin', np.sin(angles)),
      ('group', layout.group.astype(np.int64)),
      ('visible', attention.training_mask(c, layout)),
    ):
      self.register_buffer(name, torch.from_numpy(array), persistent=False)

  def forward(self, given: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocities like `noisy`, [B, F, H, W, C], and like the actions."""
    # Tokens: clean frames, noisy frames, actions, states.
    patches = self._make_patches(torch.cat([given.clean, given.noisy], 1))
    actions = self.action_encoder(given.action_BAU, given.sigma_BA, given.embodiment_B)
    states = self.state_encoder(given.proprio_BQX, given.embodiment_B)
    x_BTD = torch.cat([self.patch_embedding(patches), actions, states], 1)

    # Levels: one for all clean frames, then one per noisy frame, action step and state; a state has
    # that of its chunk's first action.
    clean_level = torch.zeros_like(given.sigma_BF[:, :1])
    state_level = given.sigma_BA[:, :: self.c.actions_per_chunk]
    levels_BG = torch.cat([clean_level, given.sigma_BF, given.sigma_BA, state_level], 1)
    time_BGD = self.time_embedding(make_sinusoid(1000 * levels_BG, self.c.freq_dim).flatten(-2))
    modulation_BG6D = self.time_projection(time_BGD).unflatten(-1, (6, -1))

    prompt_BPD = self.text_embedding(self.text_encoder(given.ids_BP))
    layout = Layout(self.cos, self.sin, self.group)
    mask = self._make_mask(given, patches.shape[1])
    for block in self.blocks:
      x_BTD = block(x_BTD, modulation_BG6D, prompt_BPD, layout, mask)

    # Of what comes out, only noisy frames and actions have velocities.
    clean_tokens = self.clean_frames * self.frame_tokens
    video_tokens = patches.shape[1]
    action_stop = video_tokens + given.action_BAU.shape[1]
    noisy_frames = given.sigma_BF.shape[1]
    time_BTD = time_BGD[:, 1 : 1 + noisy_frames].repeat_interleave(self.frame_tokens, 1)
    video_patches = self.head(x_BTD[:, clean_tokens:video_tokens], time_BTD)
    video = self._join_patches(video_patches, given.noisy)
    action = self.action_decoder(x_BTD[:, video_tokens:action_stop], given.embodiment_B)
    return video, action

  def _make_mask(self, given: Inputs, video_tokens: int) -> torch.Tensor:
    """[B, 1, T, S]: what the layout lets see each other, without padded actions and states."""
    B, Q, _ = given.proprio_BQX.shape
    has_state_BQ = given.valid_BA.any(1, keepdim=True).expand(B, Q)
    video = torch.ones(B, video_tokens, dtype=bool)
    seen_BS = torch.cat([video, given.valid_BA, has_state_BQ], 1)
    return (self.visible & seen_BS[:, None])[:, None]

  def _make_patches(self, x_BFHWC: torch.Tensor) -> torch.Tensor:
    p = self.c.patch
    x = x_BFHWC.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # B F h p w q C
    return x.permute((0, 1, 2, 4, 6, 3, 5)).flatten(4).flatten(1, 3)

  def _join_patches(self, y_BTP: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    p = self.c.patch
    y = y_BTP.unflatten(1, (like.shape[1], like.shape[2] // p, -1)).unflatten(-1, (p, p, -1))
    return y.permute((0, 1, 2, 4, 3, 5, 6)).reshape(like.shape)  # From B F h w p q C.


def _make_mlp(width_in: int, width_out: int, activation: nn.Module) -> nn.Sequential:
  return nn.Sequential(nn.Linear(width_in, width_out), activation, nn.Linear(width_out, width_out))


def make_sinusoid(position: torch.Tensor, width: int) -> torch.Tensor:
  """[..., 2, width / 2] cosines and sines."""
  octave = np.arange(width // 2) / (width // 2)
  frequency = torch.from_numpy((10000.0**-octave).astype(np.float32))
  angle = position[..., None].float() * frequency
  return torch.stack([angle.cos(), angle.sin()], -2)


def rotate(x_BNTK: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> torch.Tensor:
  """Rotary embedding of interleaved pairs."""
  even = x_BNTK[..., ::2]
  odd = x_BNTK[..., 1::2]
  turned = torch.stack([even * cos_TR - odd * sin_TR, even * sin_TR + odd * cos_TR], -1)
  return turned.flatten(-2)


def make_weights(c: cfg.ModelConfig, params: Mapping) -> dict[str, torch.Tensor]:
  """The state dict of `Model` from parameters of `WorldActionModel`, or from their gradients."""
  found = rows.to_weights(table.rows(c), params)
  found['patch_embedding.weight'] = found['patch_embedding.weight'].reshape(c.dim, -1)
  # The word encoder is our own, so the table of released weights has no rows for it.
  words = params['text_encoder']
  found['text_encoder.table.weight'] = words['table']
  for i in range(c.text.layers):
    layer = _make_word_layer(words, i, c.text.dim)
    found |= {f'text_encoder.layers.{i}.{name}': array for name, array in layer.items()}
  return {name: to_tensor(array) for name, array in found.items()}


def _make_word_layer(words: Mapping, layer: int, D: int) -> dict[str, Any]:
  own, mlp = words[f'attention_{layer}'], words[f'mlp_{layer}']
  matrices = [np.reshape(own[name]['w'], (D, D)).T for name in 'qkv']
  biases = [np.reshape(own[name]['b'], D) for name in 'qkv']
  return {
    'qkv.weight': np.concatenate(matrices),
    'qkv.bias': np.concatenate(biases),
    'o.weight': np.reshape(own['o']['w'], (D, D)).T,
    'o.bias': own['o']['b'],
    'in.weight': np.transpose(mlp['in']['w']),
    'in.bias': mlp['in']['b'],
    'out.weight': np.transpose(mlp['out']['w']),
    'out.bias': mlp['out']['b'],
    'norm1.weight': words[f'norm1_{layer}']['scale'],
    'norm1.bias': words[f'norm1_{layer}']['bias'],
    'norm2.weight': words[f'norm2_{layer}']['scale'],
    'norm2.bias': words[f'norm2_{layer}']['bias'],
  }


class Trainer:
  """A training step: tokenizer, noise, loss, gradients, clipped AdamW, mean of the weights."""

  def __init__(
    self,
    config: cfg.TrainConfig,
    params: Mapping,
    frozen: tokenizer.PatchTokenizer,
    batch: types.Batch,
    compiled: bool = False,
  ):
    """Takes over the weights and the batch.

    Args:
      compiled: whether forward and backward pass go through torch.compile; eager otherwise.
    """
    self.config = config
    self.frozen = frozen
    self.batch = jax.tree.map(to_tensor, batch)
    _, _, height, width, _ = self.batch.frames_BRIJ3.shape
    cell = frozen.spatial * config.model.patch
    self.model = Model(config.model, height // cell, width // cell)
    self.model.load_state_dict(make_weights(config.model, params))
    self.forward = torch.compile(self.model) if compiled else self.model
    self.parameters = list(self.model.parameters())
    self.average = [p.detach().clone() for p in self.parameters]
    self.optimizer = self._make_optimizer()
    self._mean_P = to_tensor(frozen.mean_P)
    self._encode_PC = to_tensor(frozen.encode_PC)

  def _make_optimizer(self) -> torch.optim.Optimizer:
    o = self.config.optimizer
    matrices = [p for p in self.parameters if p.ndim > 1]
    vectors = [p for p in self.parameters if p.ndim < 2]
    return torch.optim.AdamW(
      [
        {'params': matrices, 'weight_decay': o.weight_decay},
        {'params': vectors, 'weight_decay': 0.0},
      ],
      lr=o.learning_rate,
      betas=(o.b1, o.b2),
      eps=o.adam_eps,
      # PyTorch's fastest: one kernel over all parameters.
      fused=True,
    )

  def step(self) -> torch.Tensor:
    """One update; the loss before it."""
    self.optimizer.zero_grad()
    loss = self.loss(self.sample_noise())
    loss.backward()
    nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
    self.optimizer.step()
    with torch.no_grad():
      # No public function updates all means at once.
      torch._foreach_lerp_(self.average, self.parameters, 1 - self.config.optimizer.ema_decay)
    return loss.detach()

  def loss(self, noise: train_step.Noise) -> torch.Tensor:
    """`train_step.loss_fn` with uniform weights over real entries."""
    batch = self.batch
    clean = self.encode()
    is_real_BAU = batch.action_mask_BAU
    # Frame 0 is never denoised.
    noisy = _interpolate(clean, noise.video_BFHWC, noise.sigma_BF)[:, 1:]
    given = Inputs(
      clean=clean[:, : self.model.clean_frames],
      noisy=noisy,
      sigma_BF=noise.sigma_BF[:, 1:],
      action_BAU=_interpolate(batch.action_BAU, noise.action_BAU, noise.sigma_BA) * is_real_BAU,
      sigma_BA=noise.sigma_BA,
      proprio_BQX=batch.proprio_BQX,
      ids_BP=batch.prompt_ids_BP,
      embodiment_B=batch.embodiment_B.long(),
      valid_BA=is_real_BAU.any(-1),
    )
    video, action = self.forward(given)

    is_real_BF = batch.chunk_mask_BQ.repeat_interleave(self.config.model.frames_per_chunk, 1)
    velocity = (noise.video_BFHWC - clean)[:, 1:]
    error_BF = (video - velocity).square().mean((2, 3, 4))
    video_loss = (error_BF * is_real_BF).sum() / is_real_BF.sum().clamp(min=1)

    error_BAU = (action - (noise.action_BAU - batch.action_BAU)).square()
    action_loss = (error_BAU * is_real_BAU).sum() / is_real_BAU.sum().clamp(min=1)
    f = self.config.flow
    return f.video_weight * video_loss + f.action_weight * action_loss

  def encode(self) -> torch.Tensor:
    """[B, F, H, W, C] latents of the batch's frames."""
    t, s = self.frozen.temporal, self.frozen.spatial
    frames = self.batch.frames_BRIJ3
    # The first latent is of one frame, shown as often as the others have frames.
    pixels = torch.cat([frames[:, :1]] * t + [frames[:, 1:]], 1).float() / 127.5 - 1
    x = pixels.unflatten(3, (-1, s)).unflatten(2, (-1, s)).unflatten(1, (-1, t))  # B k t h s w s 3
    patches = x.permute((0, 1, 3, 5, 2, 4, 6, 7)).flatten(4)
    return (patches - self._mean_P) @ self._encode_PC

  def sample_noise(self) -> train_step.Noise:
    """Coupled levels of the shifted schedule, and normal noise."""
    c, f = self.config.model, self.config.flow
    B, Q = self.batch.chunk_mask_BQ.shape
    levels = torch.arange(f.levels, 0, -1) / f.levels
    shifted = f.shift * levels / (1 + (f.shift - 1) * levels)
    sigma_BQ = shifted[torch.randint(f.levels, (B, 1 + Q))]  # Frame 0, then each chunk.
    frame_sigmas = sigma_BQ[:, 1:].repeat_interleave(c.frames_per_chunk, 1)
    _, _, height, width, _ = self.batch.frames_BRIJ3.shape
    s = self.frozen.spatial
    latent_shape = (height // s, width // s, c.tokenizer.channels)
    return train_step.Noise(
      sigma_BF=torch.cat([sigma_BQ[:, :1], frame_sigmas], 1),
      sigma_BA=sigma_BQ[:, 1:].repeat_interleave(c.actions_per_chunk, 1),
      video_BFHWC=torch.randn(B, 1 + Q * c.frames_per_chunk, *latent_shape),
      action_BAU=torch.randn(self.batch.action_BAU.shape),
    )


def _interpolate(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
  """As `flow.interpolate`: `sigma` is broadcast from the left."""
  sigma = sigma.reshape(*sigma.shape, *(1,) * (clean.ndim - sigma.ndim))
  return clean + sigma * (noise - clean)
