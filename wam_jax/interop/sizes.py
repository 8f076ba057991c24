"""The config of each component, from what a checkpoint says of itself and, where it is silent, from
its shapes.

`said` is the component's part of a foreign config file, with DreamZero's names, which are those of
Wan-AI's config.json. What neither says has the value that the official class is built with. A shape
that contradicts what is said is not noticed here: comparing all weights with the tables finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg
from wam_jax import presets

Shapes = Mapping[str, tuple[int, ...]]

IMAGE_HEADS = 16  # Of the only CLIP that the official class can build; no shape tells.


def infer_tokenizer(
  said: Mapping[str, Any], shapes: Shapes, resize: tuple[int, ...], dtype: str
) -> cfg.TokenizerConfig:
  """Of a Wan VAE; `resize` is what the policy head does to frames before."""
  nested = any(name.startswith('encoder.downsamples.0.downsamples.') for name in shapes)
  released = (
    presets.WAN2_2_TI2V_5B.tokenizer
    if nested or said.get('z_dim') == 48
    else presets.WAN2_1_I2V_14B.tokenizer
  )
  top = released.vae.multipliers[-1]
  encoder = said.get('dim') or _axis(shapes, 'encoder.conv1.weight', 0, released.vae.encoder_dim)
  decoder = _axis(shapes, 'decoder.conv1.weight', 0, top * released.vae.decoder_dim) // top
  return cfg.TokenizerConfig(
    released.kind,
    released.temporal,
    released.spatial,
    said.get('z_dim') or _axis(shapes, 'conv2.weight', 0, released.channels),
    resize=resize,
    dtype=dtype,
    vae=cfg.VAEConfig(encoder, decoder),
  )


def infer_text(
  said: Mapping[str, Any], shapes: Shapes, length: int | None, dtype: str
) -> cfg.TextConfig:
  """Of a UMT5 encoder; `length` is that of the prompts that the DiT takes, None for the released
  one.
  """
  released = presets.WAN2_1_I2V_14B.text
  of = lambda key, name, axis, default: said.get(key) or _axis(shapes, name, axis, default)
  bias = 'blocks.0.pos_embedding.embedding.weight'
  return cfg.TextConfig(
    'umt5',
    of('vocab', 'token_embedding.weight', 0, released.vocab),
    length or released.length,
    of('dim', 'token_embedding.weight', 1, released.dim),
    said.get('num_layers') or _count(shapes, 'blocks.') or released.layers,
    heads=of('num_heads', bias, 1, released.heads),
    attention_dim=of('dim_attn', 'blocks.0.attn.q.weight', 0, released.attention_dim),
    mlp_dim=of('dim_ffn', 'blocks.0.ffn.fc1.weight', 0, released.mlp_dim),
    buckets=of('num_buckets', bias, 0, released.buckets),
    dtype=dtype,
  )


def infer_image(said: Mapping[str, Any], shapes: Shapes, dtype: str) -> cfg.ImageConfig:
  """Of a CLIP vision tower.

  Raises:
    ValueError: the number of heads, which no shape tells, cannot be right.
  """
  released = presets.WAN2_1_I2V_14B.image
  dim = _axis(shapes, 'visual.cls_embedding', 2, released.dim)
  patch = _axis(shapes, 'visual.patch_embedding.weight', 2, released.patch)
  heads = said.get('num_heads', IMAGE_HEADS)
  if dim % heads:
    raise ValueError(
      f'The image encoder is {dim} wide, which {heads} heads do not divide; pass its number of heads as '
      '--image_heads.'
    )
  side = round((_axis(shapes, 'visual.pos_embedding', 1, released.tokens) - 1) ** 0.5)
  return cfg.ImageConfig(
    'clip',
    side * patch,
    patch,
    dim,
    heads,
    _count(shapes, 'visual.transformer.') or released.layers,
    _axis(shapes, 'visual.transformer.0.mlp.0.weight', 0, released.mlp_ratio * dim) // dim,
    _axis(shapes, 'visual.head', 1, released.out_dim),
    dtype,
  )


def infer_model(
  said: Mapping[str, Any],
  shapes: Shapes,
  num_frames: int,
  tokenizer: cfg.TokenizerConfig,
  text: cfg.TextConfig,
  image: cfg.ImageConfig,
) -> cfg.ModelConfig:
  """Of the DiT and its action modules, with the reference's behaviour.

  Args:
    num_frames: camera frames of a training window.
  Raises:
    ValueError: it is built in a way that this model is not.
  """
  released = presets.WAN2_1_I2V_14B
  of = lambda key, name, axis, default: said.get(key) or _axis(shapes, name, axis, default)
  channels = of('in_dim', 'patch_embedding.weight', 1, released.in_channels)
  problems = []
  if channels not in (tokenizer.channels, 2 * tokenizer.channels + 4):
    problems.append(
      f'in_dim={channels} must be the {tokenizer.channels} latent channels of the VAE, or twice that and '
      '4 of a mask'
    )
  if said.get('out_dim', tokenizer.channels) != tokenizer.channels:
    problems.append(
      f'out_dim={said["out_dim"]} must be the {tokenizer.channels} latent channels of the VAE'
    )
  if said.get('num_state_per_block', 1) != 1:
    problems.append(f'num_state_per_block={said["num_state_per_block"]} must be 1')
  patch = tuple(said.get('patch_size', (1, released.patch, released.patch)))
  if patch[0] != 1 or patch[1] != patch[2]:
    problems.append(f'patch_size={patch} must be (1, n, n)')
  problems += [
    f'{key}=False must be True' for key in ('qk_norm', 'cross_attn_norm') if not said.get(key, True)
  ]
  if problems:
    raise ValueError(
      'This DiT is built in a way that is not supported:\n  ' + '\n  '.join(problems)
    )
  frames = said.get('num_frame_per_block', released.frames_per_chunk)
  chunks = said.get('max_chunk_size', released.max_chunks)
  return cfg.ModelConfig(
    dim=of('dim', 'patch_embedding.weight', 0, released.dim),
    mlp_dim=of('ffn_dim', 'blocks.0.ffn.0.weight', 0, released.mlp_dim),
    num_heads=said.get('num_heads', released.num_heads),
    num_layers=said.get('num_layers') or _count(shapes, 'blocks.') or released.num_layers,
    patch=patch[1],
    image_condition=channels != tokenizer.channels,
    image_dim=image.dim if image.kind == 'clip' else 0,
    image_tokens=image.tokens,
    freq_dim=of('freq_dim', 'time_embedding.0.weight', 1, released.freq_dim),
    action_dim=of('action_dim', 'action_encoder.W1.W', 1, released.action_dim),
    proprio_dim=of('max_state_dim', 'state_encoder.layer1.W', 1, released.proprio_dim),
    action_hidden=_axis(shapes, 'state_encoder.layer1.W', 2, released.action_hidden),
    num_embodiments=_axis(shapes, 'state_encoder.layer1.W', 0, 1),
    frames_per_chunk=frames,
    actions_per_chunk=said.get('num_action_per_block', released.actions_per_chunk),
    max_chunks=chunks if chunks > 0 else max(1, (num_frames - 1) // (tokenizer.temporal * frames)),
    predict_first_frame=True,
    state_rule='reference',
    eps=said.get('eps', released.eps),
    dtype=tokenizer.dtype,
    remat='block',
    tokenizer=tokenizer,
    text=text,
    image=image,
  )


def _axis(shapes: Shapes, name: str, axis: int, default: int) -> int:
  shape = shapes.get(name, ())
  return shape[axis] if len(shape) > axis else default


def _count(shapes: Shapes, prefix: str) -> int:
  """How many layers there are below `prefix`."""
  numbers = {
    name.removeprefix(prefix).split('.', 1)[0] for name in shapes if name.startswith(prefix)
  }
  return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)
