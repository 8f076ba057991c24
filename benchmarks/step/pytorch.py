"""The transformer of `wam_jax` and its training step once more in PyTorch, as the baseline of
`benchmarks.step`.

For models with the word encoder and the patch tokenizer, as configs/tiny.py. Module names are those
of DreamZero's checkpoints, so that weights come by the table that also reads those.
"""

from __future__ import annotations

from collections.abc import Mapping

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


class Category(nn.Module):
  """Linear layer with a matrix per embodiment."""

  def __init__(self, num: int, width_in: int, width_out: int):
    super().__init__()
    self.W, self.b = (
      nn.Parameter(torch.empty(num, width_in, width_out)),
      nn.Parameter(torch.empty(num, width_out)),
    )

  def forward(self, x_BTI, embodiment_B):
    return torch.baddbmm(self.b[embodiment_B][:, None], x_BTI, self.W[embodiment_B])


class CategoryMLP(nn.Module):
  def __init__(self, num: int, width_in: int, hidden: int, width_out: int):
    super().__init__()
    self.layer1, self.layer2 = Category(num, width_in, hidden), Category(num, hidden, width_out)

  def forward(self, x_BTI, embodiment_B):
    return self.layer2(F.relu(self.layer1(x_BTI, embodiment_B)), embodiment_B)


class ActionEncoder(nn.Module):
  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    E, D = c.num_embodiments, c.dim
    self.W1, self.W2, self.W3 = (
      Category(E, c.action_dim, D),
      Category(E, 2 * D, D),
      Category(E, D, D),
    )

  def forward(self, action_BAU, sigma_BA, embodiment_B):
    level = sinusoid(1000 * sigma_BA, self.W3.W.shape[-1]).flip(-2).flatten(-2)
    h = self.W2(torch.cat([self.W1(action_BAU, embodiment_B), level], -1), embodiment_B)
    return self.W3(F.silu(h), embodiment_B)


class Attention(nn.Module):
  """Self-attention with rotary embedding, or attention to a prompt."""

  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    self.heads = c.num_heads
    self.q, self.k, self.v, self.o = (nn.Linear(c.dim, c.dim) for _ in range(4))
    self.norm_q, self.norm_k = nn.RMSNorm(c.dim, c.eps), nn.RMSNorm(c.dim, c.eps)

  def forward(self, x_BTD, y_BSD, turn=None, mask=None):
    split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    q, k, v = (
      split(self.norm_q(self.q(x_BTD))),
      split(self.norm_k(self.k(y_BSD))),
      split(self.v(y_BSD)),
    )
    if turn is not None:
      q, k = rotate(q, *turn), rotate(k, *turn)
    return self.o(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(-2))


class Block(nn.Module):
  def __init__(self, c: cfg.ModelConfig):
    super().__init__()
    self.self_attn, self.cross_attn = Attention(c), Attention(c)
    self.norm1 = nn.LayerNorm(c.dim, c.eps, elementwise_affine=False)
    self.norm3 = nn.LayerNorm(c.dim, c.eps)
    self.ffn = nn.Sequential(
      nn.Linear(c.dim, c.mlp_dim), nn.GELU('tanh'), nn.Linear(c.mlp_dim, c.dim)
    )
    self.modulation = nn.Parameter(torch.empty(1, 6, c.dim))

  def forward(self, x, modulation_BG6D, group_T, prompt, turn, mask):
    shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + modulation_BG6D)[
      :, group_T
    ].unbind(2)
    y = self.norm1(x) * (1 + scale1) + shift1
    x = x + gate1 * self.self_attn(y, y, turn, mask)
    x = x + self.cross_attn(self.norm3(x), prompt)
    return x + gate2 * self.ffn(self.norm1(x) * (1 + scale2) + shift2)


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
    self.register_buffer(
      'position', 0.1 * sinusoid(torch.arange(c.length), D).flatten(-2), persistent=False
    )

  def forward(self, ids_BP):
    real_BP = ids_BP > 0
    x = self.table(ids_BP) + self.position
    for layer in self.layers:
      q, k, v = layer['qkv'](layer['norm1'](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
      y = F.scaled_dot_product_attention(q, k, v, real_BP[:, None, None])
      x = x + layer['o'](y.transpose(1, 2).flatten(-2))
      x = x + layer['out'](F.gelu(layer['in'](layer['norm2'](x)), approximate='tanh'))
    return x * real_BP[..., None]


class Model(nn.Module):
  """`wam.WorldActionModel`, teacher-forced on a full window of frames of `rows` x `columns`
  patches.
  """

  def __init__(self, c: cfg.ModelConfig, rows: int, columns: int):
    super().__init__()
    D, E, p, Q = c.dim, c.num_embodiments, c.patch, c.max_chunks
    two = lambda width, activation: nn.Sequential(nn.Linear(width, D), activation, nn.Linear(D, D))
    self.c, self.text_encoder = c, WordEncoder(c.text)
    self.patch_embedding = nn.Linear(c.in_channels * p * p, D)
    self.text_embedding, self.time_embedding = (
      two(c.text.dim, nn.GELU('tanh')),
      two(c.freq_dim, nn.SiLU()),
    )
    self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
    self.action_encoder = ActionEncoder(c)
    self.state_encoder = CategoryMLP(E, c.proprio_dim, c.action_hidden, D)
    self.action_decoder = CategoryMLP(E, D, c.action_hidden, c.action_dim)
    self.blocks, self.head = nn.ModuleList(Block(c) for _ in range(c.num_layers)), Head(c)
    A, frames = Q * c.actions_per_chunk, 1 + Q * c.frames_per_chunk
    self.clean_frames, self.frame_tokens, self.chunk = (
      frames - c.frames_per_chunk,
      rows * columns,
      c.actions_per_chunk,
    )
    layout = masks.training_layout(
      self.clean_frames,
      range(1, frames),
      self.frame_tokens,
      c.frames_per_chunk,
      c.actions_per_chunk,
      1,
      Q,
    )
    angles = np.concatenate(
      [
        attention.video_angles(0, self.clean_frames, rows, columns, c.head_dim),
        attention.video_angles(1, frames - 1, rows, columns, c.head_dim),
        attention.sequence_angles(0, A, c.head_dim),
        attention.sequence_angles(0, Q, c.head_dim),
      ]
    )
    for name, array in (
      ('cos', np.cos(angles)),
      ('sin', np.sin(angles)),
      ('group', layout.group.astype(np.int64)),
      ('visible', attention.training_mask(c, layout)),
    ):
      self.register_buffer(name, torch.from_numpy(array), persistent=False)

  def forward(
    self, clean, noisy, sigma_BF, action_BAU, sigma_BA, proprio_BQX, ids_BP, embodiment_B, valid_BA
  ):
    """Velocities like `noisy`, [B, F, H, W, C], and like the actions."""
    B, video = len(clean), self.clean_frames * self.frame_tokens
    patches = self._patches(torch.cat([clean, noisy], 1))
    x = torch.cat(
      [
        self.patch_embedding(patches),
        self.action_encoder(action_BAU, sigma_BA, embodiment_B),
        self.state_encoder(proprio_BQX, embodiment_B),
      ],
      1,
    )
    levels = torch.cat(
      [torch.zeros_like(sigma_BF[:, :1]), sigma_BF, sigma_BA, sigma_BA[:, :: self.chunk]], 1
    )
    time_BGD = self.time_embedding(sinusoid(1000 * levels, self.c.freq_dim).flatten(-2))
    modulation = self.time_projection(time_BGD).unflatten(-1, (6, -1))
    seen_BT = torch.cat(
      [
        torch.ones(B, patches.shape[1], dtype=bool),
        valid_BA,
        valid_BA.any(1, keepdim=True).expand(B, proprio_BQX.shape[1]),
      ],
      1,
    )
    mask = (self.visible & seen_BT[:, None])[:, None]
    prompt = self.text_embedding(self.text_encoder(ids_BP))
    for block in self.blocks:
      x = block(x, modulation, self.group, prompt, (self.cos, self.sin), mask)
    shown, stop = patches.shape[1] - video, patches.shape[1]
    time_BTD = time_BGD[:, 1 : 1 + sigma_BF.shape[1]].repeat_interleave(self.frame_tokens, 1)
    y = self.head(x[:, stop - shown : stop], time_BTD)
    p = self.c.patch
    y = y.unflatten(1, (noisy.shape[1], noisy.shape[2] // p, -1)).unflatten(-1, (p, p, -1))
    y = y.permute(0, 1, 2, 4, 3, 5, 6).reshape(noisy.shape)
    return y, self.action_decoder(x[:, stop : stop + action_BAU.shape[1]], embodiment_B)

  def _patches(self, x_BFHWC):
    p = self.c.patch
    x = x_BFHWC.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # B F h p w q C
    return x.permute(0, 1, 2, 4, 6, 3, 5).flatten(4).flatten(1, 3)


def sinusoid(position, width: int):
  """[..., 2, width / 2] cosines and sines."""
  frequency = torch.from_numpy(
    (10000.0 ** (-np.arange(width // 2) / (width // 2))).astype(np.float32)
  )
  angle = position[..., None].float() * frequency
  return torch.stack([angle.cos(), angle.sin()], -2)


def rotate(x_BNTK, cos_TR, sin_TR):
  """Rotary embedding of interleaved pairs."""
  even, odd = x_BNTK[..., ::2], x_BNTK[..., 1::2]
  return torch.stack([even * cos_TR - odd * sin_TR, even * sin_TR + odd * cos_TR], -1).flatten(-2)


def weights(c: cfg.ModelConfig, params: Mapping) -> dict[str, torch.Tensor]:
  """The state dict of `Model` from parameters of `WorldActionModel`."""
  found = rows.to_weights(table.rows(c), params)
  found['patch_embedding.weight'] = found['patch_embedding.weight'].reshape(c.dim, -1)
  words = params['text_encoder']
  found['text_encoder.table.weight'] = words['table']
  for i in range(c.text.layers):
    here, D = f'text_encoder.layers.{i}', c.text.dim
    own, mlp = words[f'attention_{i}'], words[f'mlp_{i}']
    found[f'{here}.qkv.weight'] = np.concatenate(
      [np.reshape(own[name]['w'], (D, D)).T for name in 'qkv']
    )
    found[f'{here}.qkv.bias'] = np.concatenate([np.reshape(own[name]['b'], D) for name in 'qkv'])
    found[f'{here}.o.weight'], found[f'{here}.o.bias'] = (
      np.reshape(own['o']['w'], (D, D)).T,
      own['o']['b'],
    )
    for name in ('in', 'out'):
      found[f'{here}.{name}.weight'], found[f'{here}.{name}.bias'] = (
        np.transpose(mlp[name]['w']),
        mlp[name]['b'],
      )
    for name in ('norm1', 'norm2'):
      norm = words[f'{name}_{i}']
      found[f'{here}.{name}.weight'], found[f'{here}.{name}.bias'] = norm['scale'], norm['bias']
  return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


class Trainer:
  """A training step: tokenizer, noise, loss, gradients, clipped AdamW, running mean of the weights.

  Attributes:
    compiled: the loss by torch.compile, forward and backward; else eager.
  """

  def __init__(
    self,
    config: cfg.TrainConfig,
    params: Mapping,
    frozen: tokenizer.PatchTokenizer,
    batch: types.Batch,
    compiled: bool = False,
  ):
    self.config, self.frozen = config, frozen
    self.batch = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), batch)
    self.encode = [torch.from_numpy(np.array(x)) for x in (frozen.mean_P, frozen.encode_PC)]
    _, _, height, width, _ = self.batch.frames_BRIJ3.shape
    cells = frozen.spatial * config.model.patch
    self.model = Model(config.model, height // cells, width // cells)
    self.model.load_state_dict(weights(config.model, params))
    self.forward = torch.compile(self.model) if compiled else self.model
    parameters = list(self.model.parameters())
    self.average = [p.detach().clone() for p in parameters]
    o = config.optimizer
    self.optimizer = torch.optim.AdamW(
      [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': o.weight_decay},
        {'params': [p for p in parameters if p.ndim < 2], 'weight_decay': 0.0},
      ],
      o.learning_rate,
      (o.b1, o.b2),
      o.adam_eps,
      fused=True,
    )

  def step(self) -> torch.Tensor:
    """One update; the loss before it."""
    self.optimizer.zero_grad()
    loss = self.loss(self.sample_noise())
    loss.backward()
    parameters = list(self.model.parameters())
    nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm)
    self.optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.average, parameters, 1 - self.config.optimizer.ema_decay)
    return loss.detach()

  def loss(self, noise: train_step.Noise) -> torch.Tensor:
    """`train_step.loss_fn` with uniform weights over real entries."""
    f, batch, clean = self.config.flow, self.batch, self.latents()
    mix = lambda x, n, s: x + s.reshape(*s.shape, *(1,) * (x.ndim - s.ndim)) * (n - x)
    mask, valid_BA = batch.action_mask_BAU, batch.action_mask_BAU.any(-1)
    video, action = self.forward(
      clean[:, : self.model.clean_frames],
      mix(clean, noise.video_BFHWC, noise.sigma_BF)[:, 1:],
      noise.sigma_BF[:, 1:],
      mix(batch.action_BAU, noise.action_BAU, noise.sigma_BA) * mask,
      noise.sigma_BA,
      batch.proprio_BQX,
      batch.prompt_ids_BP,
      batch.embodiment_B.long(),
      valid_BA,
    )
    shown = batch.chunk_mask_BQ.repeat_interleave(self.config.model.frames_per_chunk, 1)
    error = (video - (noise.video_BFHWC - clean)[:, 1:]).square().mean((2, 3, 4))
    video_loss = (error * shown).sum() / shown.sum().clamp(min=1)
    error = (action - (noise.action_BAU - batch.action_BAU)).square()
    action_loss = (error * mask).sum() / mask.sum().clamp(min=1)
    return f.video_weight * video_loss + f.action_weight * action_loss

  def latents(self) -> torch.Tensor:
    """[B, F, H, W, C] of the batch's frames."""
    frames, t, s = self.batch.frames_BRIJ3, self.frozen.temporal, self.frozen.spatial
    pixels = torch.cat([frames[:, :1]] * t + [frames[:, 1:]], 1).float() / 127.5 - 1
    x = pixels.unflatten(3, (-1, s)).unflatten(2, (-1, s)).unflatten(1, (-1, t))  # B k t h s w s 3
    mean_P, encode_PC = self.encode
    return (x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4) - mean_P) @ encode_PC

  def sample_noise(self) -> train_step.Noise:
    """Coupled levels of the shifted schedule, and normal noise."""
    c, f = self.config.model, self.config.flow
    (B, Q), levels = self.batch.chunk_mask_BQ.shape, torch.arange(f.levels, 0, -1) / f.levels
    level = (f.shift * levels / (1 + (f.shift - 1) * levels))[torch.randint(f.levels, (B, 1 + Q))]
    _, R, height, width, _ = self.batch.frames_BRIJ3.shape
    s = self.frozen.spatial
    video = torch.randn(
      B, 1 + Q * c.frames_per_chunk, height // s, width // s, c.tokenizer.channels
    )
    return train_step.Noise(
      sigma_BF=torch.cat([level[:, :1], level[:, 1:].repeat_interleave(c.frames_per_chunk, 1)], 1),
      sigma_BA=level[:, 1:].repeat_interleave(c.actions_per_chunk, 1),
      video_BFHWC=video,
      action_BAU=torch.randn(self.batch.action_BAU.shape),
    )
