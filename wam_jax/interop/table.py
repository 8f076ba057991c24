"""One row per weight: PyTorch name, our path, layout. The only place that knows PyTorch spelling.

A block row stands for all layers: `{}` is the layer in the PyTorch name and axis 0 of our stacked parameter.
"""
from __future__ import annotations

from typing import Any, NamedTuple
from collections.abc import Callable, Mapping

import numpy as np

from wam_jax import config as cfg


class Row(NamedTuple):
  """torch: PyTorch name. path: ours, '/'-separated. to_ours: array of PyTorch's layout to ours (one layer)."""

  torch: str
  path: str
  to_ours: Callable[[np.ndarray], np.ndarray]


def rows(c: cfg.ModelConfig) -> list[Row]:
  """Every weight of the DiT and the action modules. Source: DreamZero checkpoint keys below `action_head.model.`"""
  D, N, K, p = c.dim, c.num_heads, c.head_dim, c.patch
  same = lambda w: w
  transposed = lambda w: w.T
  heads_out = lambda w: w.T.reshape(-1, N, K)
  split_heads = lambda w: w.reshape(N, K)
  heads_in = lambda w: w.T.reshape(N, K, D)
  table = [
      Row('patch_embedding.weight', 'patch_embedding/w', lambda w: w[:, :, 0].transpose(2, 3, 1, 0)),
      Row('patch_embedding.bias', 'patch_embedding/b', same),
      Row('time_projection.1.weight', 'time_projection/w', lambda w: w.T.reshape(D, 6, D)),
      Row('time_projection.1.bias', 'time_projection/b', lambda w: w.reshape(6, D)),
      Row('head.head.weight', 'head/w', lambda w: w.T.reshape(D, p, p, -1)),
      Row('head.head.bias', 'head/b', lambda w: w.reshape(p, p, -1)),
      Row('head.modulation', 'head_modulation', lambda w: w[0]),
      Row('blocks.{}.modulation', 'blocks/modulation', lambda w: w[0]),
      Row('blocks.{}.norm3.weight', 'blocks/norm3/scale', same),
      Row('blocks.{}.norm3.bias', 'blocks/norm3/bias', same),
  ]
  for ours, theirs in (('text_embedding', 'text_embedding'), ('time_embedding', 'time_embedding'),
                       ('blocks/ffn', 'blocks.{}.ffn')):
    table += _linear(f'{theirs}.0', f'{ours}/in', transposed) + _linear(f'{theirs}.2', f'{ours}/out', transposed)
  projections = [('self_attn', n, n) for n in 'qkv'] + [('cross_attn', n, n) for n in 'qkv']
  norms = [('self_attn', n, n) for n in 'qk'] + [('cross_attn', n, n) for n in 'qk']
  if c.image_dim:
    projections += [('cross_attn', 'k_img', 'k_image'), ('cross_attn', 'v_img', 'v_image')]
    norms.append(('cross_attn', 'k_img', 'k_image'))
  for module, theirs, ours in projections:
    table += _linear(f'blocks.{{}}.{module}.{theirs}', f'blocks/{module}/{ours}', heads_out, split_heads)
  table += [Row(f'blocks.{{}}.{module}.norm_{theirs}.weight', f'blocks/{module}/norm_{ours}/scale', split_heads)
            for module, theirs, ours in norms]
  for module in ('self_attn', 'cross_attn'):
    table += _linear(f'blocks.{{}}.{module}.o', f'blocks/{module}/o', heads_in)
  for ours, theirs in (('action', 'action_encoder.W1'), ('mix', 'action_encoder.W2'), ('out', 'action_encoder.W3')):
    table += _category(theirs, f'action_encoder/{ours}')
  for module in ('state_encoder', 'action_decoder'):
    table += _category(f'{module}.layer1', f'{module}/in') + _category(f'{module}.layer2', f'{module}/out')
  if c.image_dim:
    table += [Row(f'img_emb.proj.{i}.{theirs}', f'image_embedding/{name}/{ours}', same) for i, name in (
        (0, 'norm_in'), (4, 'norm_out')) for theirs, ours in (('weight', 'scale'), ('bias', 'bias'))]
    table += _linear('img_emb.proj.1', 'image_embedding/in', transposed)
    table += _linear('img_emb.proj.3', 'image_embedding/out', transposed)
  return table


def to_params(weights: Mapping[str, np.ndarray], c: cfg.ModelConfig) -> dict[str, Any]:
  """Nested parameters of the DiT from a PyTorch state dict.

  Raises:
    ValueError: weights missing or left over, up to ten of each.
  """
  params: dict[str, Any] = {}
  used: set[str] = set()
  missing: list[str] = []
  for row in rows(c):
    names = [row.torch.format(i) for i in range(c.num_layers)] if '{}' in row.torch else [row.torch]
    missing += [n for n in names if n not in weights]
    if missing:
      continue
    used.update(names)
    arrays = [row.to_ours(np.asarray(weights[n])) for n in names]
    *parents, leaf = row.path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.stack(arrays) if '{}' in row.torch else arrays[0]
  extra = sorted(set(weights) - used)
  if missing or extra:
    raise ValueError(f'The weights do not match the model: missing {missing[:10]}, unexpected {extra[:10]}; '
                     'check num_layers, image_dim and the checkpoint layout.')
  return params


def _linear(theirs: str, ours: str, weight, bias=lambda b: b) -> list[Row]:
  return [Row(f'{theirs}.weight', f'{ours}/w', weight), Row(f'{theirs}.bias', f'{ours}/b', bias)]


def _category(theirs: str, ours: str) -> list[Row]:
  return [Row(f'{theirs}.W', f'{ours}/w', lambda w: w), Row(f'{theirs}.b', f'{ours}/b', lambda w: w)]
