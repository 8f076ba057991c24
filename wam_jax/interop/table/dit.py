"""Weights of the DiT and the action modules.

Layout 'wan' is that of DreamZero checkpoints below `action_head.model.` and of Wan-AI's files;
'diffusers' that of `WanTransformer3DModel`. The arrays are the same in both, only names differ.
Diffusers has no action modules: beside its weights they keep DreamZero's names.
"""

from __future__ import annotations

import functools

from wam_jax import config as cfg
from wam_jax.interop.table.rows import Row

# Wan module or parameter to Diffusers; `{}` stands for the layer.
DIFFUSERS = {
  'patch_embedding': 'patch_embedding',
  'time_embedding.0': 'condition_embedder.time_embedder.linear_1',
  'time_embedding.2': 'condition_embedder.time_embedder.linear_2',
  'time_projection.1': 'condition_embedder.time_proj',
  'text_embedding.0': 'condition_embedder.text_embedder.linear_1',
  'text_embedding.2': 'condition_embedder.text_embedder.linear_2',
  'img_emb.proj.0': 'condition_embedder.image_embedder.norm1',
  'img_emb.proj.1': 'condition_embedder.image_embedder.ff.net.0.proj',
  'img_emb.proj.3': 'condition_embedder.image_embedder.ff.net.2',
  'img_emb.proj.4': 'condition_embedder.image_embedder.norm2',
  'head.modulation': 'scale_shift_table',
  'head.head': 'proj_out',
  'blocks.{}.modulation': 'blocks.{}.scale_shift_table',
  'blocks.{}.norm3': 'blocks.{}.norm2',
  'blocks.{}.ffn.0': 'blocks.{}.ffn.net.0.proj',
  'blocks.{}.ffn.2': 'blocks.{}.ffn.net.2',
}
# Within an attention; self-attention has no keys and values of an image.
_DIFFUSERS_ATTENTION = {
  'q': 'to_q',
  'k': 'to_k',
  'v': 'to_v',
  'o': 'to_out.0',
  'norm_q': 'norm_q',
  'norm_k': 'norm_k',
  'k_img': 'add_k_proj',
  'v_img': 'add_v_proj',
  'norm_k_img': 'norm_added_k',
}
DIFFUSERS |= {
  f'blocks.{{}}.{wan}.{part}': f'blocks.{{}}.{theirs}.{name}'
  for wan, theirs in (('self_attn', 'attn1'), ('cross_attn', 'attn2'))
  for part, name in _DIFFUSERS_ATTENTION.items()
}

# Our path of the matrix that noisy actions enter by, a row for each of their dimensions.
ACTION_INPUT = 'action_encoder/action/w'
# Theirs, ours, and the axes of the matrix in and out.
_ACTION_MODULES = (
  ('action_encoder.W1', 'action_encoder/action', 'U', 'D'),
  ('action_encoder.W2', 'action_encoder/mix', 'B', 'D'),
  ('action_encoder.W3', 'action_encoder/out', 'A', 'D'),
  ('state_encoder.layer1', 'state_encoder/in', 'X', 'H'),
  ('state_encoder.layer2', 'state_encoder/out', 'H', 'D'),
  ('action_decoder.layer1', 'action_decoder/in', 'D', 'H'),
  ('action_decoder.layer2', 'action_decoder/out', 'H', 'U'),
)


def rows(c: cfg.ModelConfig, layout: str = 'wan') -> list[Row]:
  """One row per weight of `WorldActionModel` but its own text encoder.

  Raises:
    ValueError: `layout` is neither 'wan' nor 'diffusers'.
  """
  return wan_rows(c, layout) + action_rows(c)


def wan_rows(c: cfg.ModelConfig, layout: str = 'wan') -> list[Row]:
  """The video transformer; without `image_dim` as Wan2.2-TI2V-5B is published, without image
  embedding and keys.
  """
  if layout not in ('wan', 'diffusers'):
    raise ValueError(f"layout={layout!r} must be 'wan' or 'diffusers'.")
  table = _list_ends(c) + _list_blocks(c)
  if c.image_dim:
    table += _list_image_embedding(c)
  if layout == 'wan':
    return table
  return [row._replace(torch=_find_diffusers_name(row.torch)) for row in table]


def action_rows(c: cfg.ModelConfig) -> list[Row]:
  """Action encoder, state encoder, action decoder, with one matrix per embodiment."""
  once = functools.partial(Row, sizes=_make_sizes(c))
  table = []
  for theirs, ours, inputs, outputs in _ACTION_MODULES:
    matrix = f'E {inputs} {outputs}'
    bias = f'E {outputs}'
    table += [
      once(f'{theirs}.W', f'{ours}/w', f'{matrix} -> {matrix}'),
      once(f'{theirs}.b', f'{ours}/b', f'{bias} -> {bias}'),
    ]
  return table


def _list_ends(c: cfg.ModelConfig) -> list[Row]:
  """What stands before and after the blocks."""
  once = functools.partial(Row, sizes=_make_sizes(c))
  table = [
    once('patch_embedding.weight', 'patch_embedding/w', 'D Z 1 p q -> p q Z D'),
    once('patch_embedding.bias', 'patch_embedding/b', 'D -> D'),
    once('time_projection.1.weight', 'time_projection/w', '(i A) D -> D i A'),
    once('time_projection.1.bias', 'time_projection/b', '(i D) -> i D'),
    once('head.head.weight', 'head/w', '(p q C) D -> D p q C'),
    once('head.head.bias', 'head/b', '(p q C) -> p q C'),
    once('head.modulation', 'head_modulation', '1 two D -> two D'),
  ]
  for name, width in (('text_embedding', 'T'), ('time_embedding', 'S')):
    table += [
      once(f'{name}.0.weight', f'{name}/in/w', f'D {width} -> {width} D'),
      once(f'{name}.0.bias', f'{name}/in/b', 'D -> D'),
      once(f'{name}.2.weight', f'{name}/out/w', 'A D -> D A'),
      once(f'{name}.2.bias', f'{name}/out/b', 'D -> D'),
    ]
  return table


def _list_blocks(c: cfg.ModelConfig) -> list[Row]:
  """The blocks, stacked over layers."""
  layer = functools.partial(Row, sizes=_make_sizes(c), layers=c.num_layers)
  table = [
    layer('blocks.{}.modulation', 'blocks/modulation', '1 i D -> i D'),
    layer('blocks.{}.norm3.weight', 'blocks/norm3/scale', 'D -> D'),
    layer('blocks.{}.norm3.bias', 'blocks/norm3/bias', 'D -> D'),
    layer('blocks.{}.ffn.0.weight', 'blocks/ffn/in/w', 'M D -> D M'),
    layer('blocks.{}.ffn.0.bias', 'blocks/ffn/in/b', 'M -> M'),
    layer('blocks.{}.ffn.2.weight', 'blocks/ffn/out/w', 'D M -> M D'),
    layer('blocks.{}.ffn.2.bias', 'blocks/ffn/out/b', 'D -> D'),
  ]
  # Module, their name, ours.
  projections = [(module, n, n) for module in ('self_attn', 'cross_attn') for n in 'qkv']
  norms = [(module, n, n) for module in ('self_attn', 'cross_attn') for n in 'qk']
  if c.image_dim:
    projections += [('cross_attn', 'k_img', 'k_image'), ('cross_attn', 'v_img', 'v_image')]
    norms.append(('cross_attn', 'k_img', 'k_image'))

  for module, theirs, ours in projections:
    name = f'blocks.{{}}.{module}.{theirs}'
    path = f'blocks/{module}/{ours}'
    table += [
      layer(f'{name}.weight', f'{path}/w', '(N K) D -> D N K'),
      layer(f'{name}.bias', f'{path}/b', '(N K) -> N K'),
    ]
  for module, theirs, ours in norms:
    name = f'blocks.{{}}.{module}.norm_{theirs}'
    path = f'blocks/{module}/norm_{ours}'
    table.append(layer(f'{name}.weight', f'{path}/scale', '(N K) -> N K'))
  for module in ('self_attn', 'cross_attn'):
    name = f'blocks.{{}}.{module}.o'
    path = f'blocks/{module}/o'
    table += [
      layer(f'{name}.weight', f'{path}/w', 'D (N K) -> N K D'),
      layer(f'{name}.bias', f'{path}/b', 'D -> D'),
    ]
  return table


def _list_image_embedding(c: cfg.ModelConfig) -> list[Row]:
  """What brings CLIP's tokens to the width of the transformer."""
  once = functools.partial(Row, sizes=_make_sizes(c))
  return [
    once('img_emb.proj.0.weight', 'image_embedding/norm_in/scale', 'I -> I'),
    once('img_emb.proj.0.bias', 'image_embedding/norm_in/bias', 'I -> I'),
    once('img_emb.proj.4.weight', 'image_embedding/norm_out/scale', 'D -> D'),
    once('img_emb.proj.4.bias', 'image_embedding/norm_out/bias', 'D -> D'),
    once('img_emb.proj.1.weight', 'image_embedding/in/w', 'J I -> I J'),
    once('img_emb.proj.1.bias', 'image_embedding/in/b', 'I -> I'),
    once('img_emb.proj.3.weight', 'image_embedding/out/w', 'D I -> I D'),
    once('img_emb.proj.3.bias', 'image_embedding/out/b', 'D -> D'),
  ]


def _make_sizes(c: cfg.ModelConfig) -> dict[str, int]:
  """The sizes of the letters of the layouts."""
  return {
    'D': c.dim,
    'M': c.mlp_dim,
    'N': c.num_heads,
    'K': c.head_dim,
    'p': c.patch,
    'q': c.patch,
    'i': 6,  # Shift, scale and gate, before attention and before the MLP.
    'two': 2,  # Shift and scale.
    'T': c.text.dim,
    'S': c.freq_dim,
    'I': c.image_dim,
    'C': c.tokenizer.channels,
    'Z': c.in_channels,
    'E': c.num_embodiments,
    'U': c.action_dim,
    'X': c.proprio_dim,
    'H': c.action_hidden,
    # A letter stands once in a layout, so that a width that comes twice needs another.
    'A': c.dim,
    'B': 2 * c.dim,
    'J': c.image_dim,
  }


def _find_diffusers_name(torch: str) -> str:
  """The Diffusers name of a weight with the Wan name `torch`."""
  if torch in DIFFUSERS:
    return DIFFUSERS[torch]
  module, _, leaf = torch.rpartition('.')
  return f'{DIFFUSERS[module]}.{leaf}'
