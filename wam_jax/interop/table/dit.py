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
} | {
  f'blocks.{{}}.{wan}.{part}': f'blocks.{{}}.{theirs}.{name}'
  for wan, theirs in (('self_attn', 'attn1'), ('cross_attn', 'attn2'))
  for part, name in (
    ('q', 'to_q'),
    ('k', 'to_k'),
    ('v', 'to_v'),
    ('o', 'to_out.0'),
    ('norm_q', 'norm_q'),
    ('norm_k', 'norm_k'),
    ('k_img', 'add_k_proj'),
    ('v_img', 'add_v_proj'),
    ('norm_k_img', 'norm_added_k'),
  )
}


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
  table = _ends(c) + _blocks(c) + (_image_embedding(c) if c.image_dim else [])
  return (
    table if layout == 'wan' else [row._replace(torch=_diffusers_name(row.torch)) for row in table]
  )


def action_rows(c: cfg.ModelConfig) -> list[Row]:
  """Action encoder, state encoder, action decoder, with one matrix per embodiment."""
  table = []
  for theirs, ours, width_in, width_out in (
    ('action_encoder.W1', 'action_encoder/action', 'U', 'D'),
    ('action_encoder.W2', 'action_encoder/mix', 'B', 'D'),
    ('action_encoder.W3', 'action_encoder/out', 'A', 'D'),
    ('state_encoder.layer1', 'state_encoder/in', 'X', 'H'),
    ('state_encoder.layer2', 'state_encoder/out', 'H', 'D'),
    ('action_decoder.layer1', 'action_decoder/in', 'D', 'H'),
    ('action_decoder.layer2', 'action_decoder/out', 'H', 'U'),
  ):
    table += [
      Row(
        f'{theirs}.W',
        f'{ours}/w',
        f'E {width_in} {width_out} -> E {width_in} {width_out}',
        _sizes(c),
      ),
      Row(f'{theirs}.b', f'{ours}/b', f'E {width_out} -> E {width_out}', _sizes(c)),
    ]
  return table


def _ends(c):
  """What stands before and after the blocks."""
  once = functools.partial(Row, sizes=_sizes(c))
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


def _blocks(c):
  layer = functools.partial(Row, sizes=_sizes(c), layers=c.num_layers)
  table = [
    layer('blocks.{}.modulation', 'blocks/modulation', '1 i D -> i D'),
    layer('blocks.{}.norm3.weight', 'blocks/norm3/scale', 'D -> D'),
    layer('blocks.{}.norm3.bias', 'blocks/norm3/bias', 'D -> D'),
    layer('blocks.{}.ffn.0.weight', 'blocks/ffn/in/w', 'M D -> D M'),
    layer('blocks.{}.ffn.0.bias', 'blocks/ffn/in/b', 'M -> M'),
    layer('blocks.{}.ffn.2.weight', 'blocks/ffn/out/w', 'D M -> M D'),
    layer('blocks.{}.ffn.2.bias', 'blocks/ffn/out/b', 'D -> D'),
  ]
  projections = [(module, n, n) for module in ('self_attn', 'cross_attn') for n in 'qkv']
  norms = [(module, n, n) for module in ('self_attn', 'cross_attn') for n in 'qk']
  if c.image_dim:
    projections += [('cross_attn', 'k_img', 'k_image'), ('cross_attn', 'v_img', 'v_image')]
    norms.append(('cross_attn', 'k_img', 'k_image'))
  for module, theirs, ours in projections:
    table += [
      layer(
        f'blocks.{{}}.{module}.{theirs}.weight', f'blocks/{module}/{ours}/w', '(N K) D -> D N K'
      ),
      layer(f'blocks.{{}}.{module}.{theirs}.bias', f'blocks/{module}/{ours}/b', '(N K) -> N K'),
    ]
  table += [
    layer(
      f'blocks.{{}}.{module}.norm_{theirs}.weight',
      f'blocks/{module}/norm_{ours}/scale',
      '(N K) -> N K',
    )
    for module, theirs, ours in norms
  ]
  for module in ('self_attn', 'cross_attn'):
    table += [
      layer(f'blocks.{{}}.{module}.o.weight', f'blocks/{module}/o/w', 'D (N K) -> N K D'),
      layer(f'blocks.{{}}.{module}.o.bias', f'blocks/{module}/o/b', 'D -> D'),
    ]
  return table


def _image_embedding(c):
  once = functools.partial(Row, sizes=_sizes(c))
  return [
    once(f'img_emb.proj.{i}.{theirs}', f'image_embedding/{name}/{ours}', f'{width} -> {width}')
    for i, name, width in ((0, 'norm_in', 'I'), (4, 'norm_out', 'D'))
    for theirs, ours in (('weight', 'scale'), ('bias', 'bias'))
  ] + [
    once('img_emb.proj.1.weight', 'image_embedding/in/w', 'J I -> I J'),
    once('img_emb.proj.1.bias', 'image_embedding/in/b', 'I -> I'),
    once('img_emb.proj.3.weight', 'image_embedding/out/w', 'D I -> I D'),
    once('img_emb.proj.3.bias', 'image_embedding/out/b', 'D -> D'),
  ]


def _sizes(c):
  """Of the letters of the layouts; where a width comes twice in one, A, B = 2 D and J are the
  second.
  """
  return dict(
    D=c.dim,
    A=c.dim,
    B=2 * c.dim,
    M=c.mlp_dim,
    N=c.num_heads,
    K=c.head_dim,
    p=c.patch,
    q=c.patch,
    i=6,
    T=c.text.dim,
    S=c.freq_dim,
    I=c.image_dim,
    J=c.image_dim,
    C=c.tokenizer.channels,
    Z=c.in_channels,
    E=c.num_embodiments,
    U=c.action_dim,
    X=c.proprio_dim,
    H=c.action_hidden,
    two=2,
  )


def _diffusers_name(torch):
  if torch in DIFFUSERS:
    return DIFFUSERS[torch]
  module, _, leaf = torch.rpartition('.')
  return f'{DIFFUSERS[module]}.{leaf}'
