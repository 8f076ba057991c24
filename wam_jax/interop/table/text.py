"""Weights of UMT5 in the layouts 'wan' and 'diffusers'.

Sources: DreamZero checkpoint keys below `action_head.text_encoder.`, which are those of Wan-AI's
`models_t5_umt5-xxl-enc-bf16.pth`; transformers `UMT5EncoderModel`, the `text_encoder` of a
Diffusers directory.
"""

from __future__ import annotations

from wam_jax import config as cfg
from wam_jax.interop.table.rows import Row

# A second name that a Diffusers directory may hold a weight under, beside its row's: dropped when
# read, not written.
TIED = {'encoder.embed_tokens.weight': 'shared.weight'}

_LAYOUTS = ('wan', 'diffusers')
# Our path, layout, and the names in both; the names of blocks follow _BLOCKS.
_WEIGHTS = (
  ('table', 'V D -> V D', 'token_embedding.weight', 'shared.weight'),
  ('norm/scale', 'D -> D', 'norm.weight', 'encoder.final_layer_norm.weight'),
  ('blocks/norm1/scale', 'D -> D', 'norm1.weight', 'layer.0.layer_norm.weight'),
  ('blocks/q/w', '(N K) D -> D N K', 'attn.q.weight', 'layer.0.SelfAttention.q.weight'),
  ('blocks/k/w', '(N K) D -> D N K', 'attn.k.weight', 'layer.0.SelfAttention.k.weight'),
  ('blocks/v/w', '(N K) D -> D N K', 'attn.v.weight', 'layer.0.SelfAttention.v.weight'),
  ('blocks/o/w', 'D (N K) -> N K D', 'attn.o.weight', 'layer.0.SelfAttention.o.weight'),
  ('blocks/norm2/scale', 'D -> D', 'norm2.weight', 'layer.1.layer_norm.weight'),
  ('blocks/gate/w', 'M D -> D M', 'ffn.gate.0.weight', 'layer.1.DenseReluDense.wi_0.weight'),
  ('blocks/in/w', 'M D -> D M', 'ffn.fc1.weight', 'layer.1.DenseReluDense.wi_1.weight'),
  ('blocks/out/w', 'D M -> M D', 'ffn.fc2.weight', 'layer.1.DenseReluDense.wo.weight'),
)
# UMT5 has a table of biases in each layer, T5 one for all.
# UMT5 has a table of biases in each layer, T5 one for all.
_BIAS = (
  'blocks/relative_bias',
  'R N -> R N',
  'pos_embedding.embedding.weight',
  'layer.0.SelfAttention.relative_attention_bias.weight',
)
_SHARED_BIAS = (
  'relative_bias',
  'R N -> R N',
  'pos_embedding.embedding.weight',
  f'encoder.block.0.{_BIAS[3]}',
)
_BLOCKS = ('blocks.{}.', 'encoder.block.{}.')


def rows(c: cfg.TextConfig, layout: str, shared_bias: bool = False) -> list[Row]:
  """One row per weight of `UMT5Encoder`.

  Args:
    c: the sizes of the encoder.
    layout: 'wan' or 'diffusers'.
    shared_bias: whether all layers have one bias table (in the layout 'diffusers', with the names
      of transformers' T5).
  """
  column = _LAYOUTS.index(layout)
  sizes = {
    'V': c.vocab,
    'D': c.dim,
    'N': c.heads,
    'K': c.attention_dim // c.heads,
    'M': c.mlp_dim,
    'R': c.buckets,
  }
  bias = _SHARED_BIAS if shared_bias else _BIAS
  table = []
  for path, change, *names in (*_WEIGHTS, bias):
    name = names[column]
    if path.startswith('blocks/'):
      table.append(Row(_BLOCKS[column] + name, path, change, sizes, c.layers))
    else:
      table.append(Row(name, path, change, sizes))
  return table
