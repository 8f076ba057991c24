"""Weights of the CLIP vision tower in the layouts 'wan' and 'diffusers'.

Sources: DreamZero checkpoint keys below `action_head.image_encoder.model.`, which are those of
Wan-AI's `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` without its `textual.`;
transformers `CLIPVisionModel` and `CLIPVisionModelWithProjection`, the `image_encoder` of a
Diffusers directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wam_jax import config as cfg
from wam_jax.interop.table.rows import Row

_LAYOUTS = ('wan', 'diffusers')
# Our path, layout, and the names in both ('' where one has none).
_WEIGHTS = (
  ('cls_embedding', '1 1 D -> D', 'visual.cls_embedding', ''),
  ('cls_embedding', 'D -> D', '', 'vision_model.embeddings.class_embedding'),
  ('pos_embedding', '1 T D -> T D', 'visual.pos_embedding', ''),
  ('pos_embedding', 'T D -> T D', '', 'vision_model.embeddings.position_embedding.weight'),
  (
    'patch_embedding/w',
    'D C p q -> p q C D',
    'visual.patch_embedding.weight',
    'vision_model.embeddings.patch_embedding.weight',
  ),
  ('pre_norm/scale', 'D -> D', 'visual.pre_norm.weight', 'vision_model.pre_layrnorm.weight'),
  ('pre_norm/bias', 'D -> D', 'visual.pre_norm.bias', 'vision_model.pre_layrnorm.bias'),
  (
    'projection/norm/scale',
    'D -> D',
    'visual.post_norm.weight',
    'vision_model.post_layernorm.weight',
  ),
  ('projection/norm/bias', 'D -> D', 'visual.post_norm.bias', 'vision_model.post_layernorm.bias'),
  ('projection/head', 'D O -> D O', 'visual.head', ''),
  ('projection/head', 'O D -> D O', '', 'visual_projection.weight'),
  ('projection/log_scale', ' -> ', 'log_scale', ''),
)
_BLOCK_WEIGHTS = (
  ('norm1/scale', 'D -> D', 'norm1.weight', 'layer_norm1.weight'),
  ('norm1/bias', 'D -> D', 'norm1.bias', 'layer_norm1.bias'),
  ('qkv/w', '(i N K) D -> D i N K', 'attn.to_qkv.weight', 'self_attn.qkv_proj.weight'),
  ('qkv/b', '(i N K) -> i N K', 'attn.to_qkv.bias', 'self_attn.qkv_proj.bias'),
  ('o/w', 'D (N K) -> N K D', 'attn.proj.weight', 'self_attn.out_proj.weight'),
  ('o/b', 'D -> D', 'attn.proj.bias', 'self_attn.out_proj.bias'),
  ('norm2/scale', 'D -> D', 'norm2.weight', 'layer_norm2.weight'),
  ('norm2/bias', 'D -> D', 'norm2.bias', 'layer_norm2.bias'),
  ('mlp/in/w', 'M D -> D M', 'mlp.0.weight', 'mlp.fc1.weight'),
  ('mlp/in/b', 'M -> M', 'mlp.0.bias', 'mlp.fc1.bias'),
  ('mlp/out/w', 'D M -> M D', 'mlp.2.weight', 'mlp.fc2.weight'),
  ('mlp/out/b', 'D -> D', 'mlp.2.bias', 'mlp.fc2.bias'),
)
_BLOCKS = ('visual.transformer.{}.', 'vision_model.encoder.layers.{}.')


def rows(c: cfg.ImageConfig, layout: str) -> list[Row]:
  """One row per weight of `ClipTower`; the last block stands beside the stacked ones.

  The layout 'diffusers' has no row for `log_scale`, and with `c.out_dim` 0 (`CLIPVisionModel`) none
  for `head`; there `complete` gives them a value. Its q, k and v of a block are one row: see
  `fuse`.

  Args:
    c: the sizes of the tower.
    layout: 'wan' or 'diffusers'.
  """
  column = _LAYOUTS.index(layout)
  sizes = {
    'D': c.dim,
    'T': c.tokens,
    'C': 3,
    'p': c.patch,
    'q': c.patch,
    'O': c.out_dim,
    'M': c.mlp_ratio * c.dim,
    'N': c.heads,
    'K': c.dim // c.heads,
    'i': 3,  # Query, key and value.
  }
  table = []
  for path, change, *names in _WEIGHTS:
    # `CLIPVisionModel` has no head.
    has_name = names[column] and (path != 'projection/head' or c.out_dim)
    if has_name:
      table.append(Row(names[column], path, change, sizes))
  # The last block stands alone: encoding stops before it.
  for path, change, *names in _BLOCK_WEIGHTS:
    name = _BLOCKS[column] + names[column]
    table += [
      Row(name, f'blocks/{path}', change, sizes, c.layers - 1),
      Row(name.format(c.layers - 1), f'last_block/{path}', change, sizes),
    ]
  return table


def parts(name: str) -> list[str]:
  """Tensors of a Diffusers directory that, joined along their first axis, are the weight that a row
  names.
  """
  if '.qkv_proj.' not in name:
    return [name]
  return [name.replace('.qkv_proj.', f'.{part}_proj.') for part in 'qkv']


def fuse(table: Iterable[Row], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A transformers state dict with the names of `table`; incomplete parts and what no row names
  stay as they are.
  """
  joined = {}
  used: set[str] = set()
  for row in table:
    for name in row.names:
      pieces = parts(name)
      if len(pieces) > 1 and all(piece in weights for piece in pieces):
        joined[name] = np.concatenate([weights[piece] for piece in pieces])
        used.update(pieces)
  return {name: w for name, w in weights.items() if name not in used} | joined


def split(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A transformers state dict from one with the names of the rows; inverse of `fuse`."""
  pieces = {}
  for name, w in weights.items():
    names = parts(name)
    pieces |= zip(names, np.split(w, len(names)), strict=True)
  return pieces


def complete(params: Mapping[str, Any], c: cfg.ImageConfig) -> dict[str, Any]:
  """`params` of a Diffusers directory and, where it has none, the weights that no encoding reads.

  They are CLIP's initial temperature and a projection of zeros; an export to the layout 'wan' needs
  the names.
  """
  dtype = params['cls_embedding'].dtype
  unread = {
    'log_scale': np.array(np.log(1 / 0.07), dtype),
    'head': np.zeros((c.dim, c.out_dim), dtype),
  }
  return dict(params) | {'projection': unread | params['projection']}
