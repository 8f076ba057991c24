"""The config of each component, from what a checkpoint says of itself and, where it is silent, from
its shapes.

`said` is the component's part of a foreign config file, with DreamZero's names, which are those of
Wan-AI's config.json. What neither says has the value that the official class is built with. A shape
that contradicts what is said is not noticed here: comparing all weights with the tables finds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg
from wam_jax import presets

Shapes = Mapping[str, tuple[int, ...]]

IMAGE_HEADS = 16  # Of the only CLIP that the official class can build; no shape tells.


@dataclasses.dataclass(frozen=True)
class _Evidence:
  """What is known of a component.

  Attributes:
    said: its part of the config file.
    shapes: the shapes of its weights, by name.
  """

  said: Mapping[str, Any]
  shapes: Shapes

  def find(self, word: str, name: str, axis: int, default: int) -> int:
    """What is said by `word`, else the size of an axis of the weight `name`."""
    return self.said.get(word) or self.measure(name, axis, default)

  def measure(self, name: str, axis: int, default: int) -> int:
    """The size of an axis of a weight; `default` where it is not there."""
    shape = self.shapes.get(name, ())
    return shape[axis] if len(shape) > axis else default

  def count_layers(self, prefix: str) -> int:
    """How many layers there are below `prefix`."""
    numbers = set()
    for name in self.shapes:
      if name.startswith(prefix):
        numbers.add(name.removeprefix(prefix).split('.', 1)[0])
    return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)


def infer_tokenizer(
  said: Mapping[str, Any], shapes: Shapes, resize: tuple[int, ...], dtype: str
) -> cfg.TokenizerConfig:
  """The config of a Wan VAE.

  Args:
    said: its part of the config file.
    shapes: the shapes of its weights, by name.
    resize: rows and columns that the policy head brings frames to before; () for as they are.
    dtype: the dtype of its computation.
  """
  evidence = _Evidence(said, shapes)
  # Wan2.2's has stages within stages.
  is_nested = any(name.startswith('encoder.downsamples.0.downsamples.') for name in shapes)
  is_2_2 = is_nested or said.get('z_dim') == presets.WAN2_2_TI2V_5B.tokenizer.channels
  released = (presets.WAN2_2_TI2V_5B if is_2_2 else presets.WAN2_1_I2V_14B).tokenizer

  # The decoder begins at its widest stage.
  widest = released.vae.multipliers[-1]
  decoder = evidence.measure('decoder.conv1.weight', 0, widest * released.vae.decoder_dim)
  return cfg.TokenizerConfig(
    kind=released.kind,
    temporal=released.temporal,
    spatial=released.spatial,
    channels=evidence.find('z_dim', 'conv2.weight', 0, released.channels),
    resize=resize,
    dtype=dtype,
    vae=cfg.VAEConfig(
      encoder_dim=evidence.find('dim', 'encoder.conv1.weight', 0, released.vae.encoder_dim),
      decoder_dim=decoder // widest,
    ),
  )


def infer_text(
  said: Mapping[str, Any], shapes: Shapes, length: int | None, dtype: str
) -> cfg.TextConfig:
  """The config of a UMT5 encoder.

  Args:
    said: its part of the config file.
    shapes: the shapes of its weights, by name.
    length: the length of the prompts that the DiT takes, None for the released one.
    dtype: the dtype of its computation.
  """
  released = presets.WAN2_1_I2V_14B.text
  evidence = _Evidence(said, shapes)
  find = evidence.find
  table = 'token_embedding.weight'
  bias = 'blocks.0.pos_embedding.embedding.weight'
  layers = said.get('num_layers') or evidence.count_layers('blocks.')
  return cfg.TextConfig(
    kind='umt5',
    vocab=find('vocab', table, 0, released.vocab),
    length=length or released.length,
    dim=find('dim', table, 1, released.dim),
    layers=layers or released.layers,
    heads=find('num_heads', bias, 1, released.heads),
    attention_dim=find('dim_attn', 'blocks.0.attn.q.weight', 0, released.attention_dim),
    mlp_dim=find('dim_ffn', 'blocks.0.ffn.fc1.weight', 0, released.mlp_dim),
    buckets=find('num_buckets', bias, 0, released.buckets),
    dtype=dtype,
  )


def infer_image(said: Mapping[str, Any], shapes: Shapes, dtype: str) -> cfg.ImageConfig:
  """The config of a CLIP vision tower.

  Raises:
    ValueError: the number of heads, which no shape tells, cannot be right.
  """
  released = presets.WAN2_1_I2V_14B.image
  evidence = _Evidence(said, shapes)
  measure = evidence.measure
  dim = measure('visual.cls_embedding', 2, released.dim)
  heads = said.get('num_heads', IMAGE_HEADS)
  if dim % heads:
    raise ValueError(
      f'The image encoder is {dim} wide, which {heads} heads do not divide; pass its number of '
      'heads as --image_heads.'
    )
  patch = measure('visual.patch_embedding.weight', 2, released.patch)
  # One token for the class, the others a square of patches.
  tokens = measure('visual.pos_embedding', 1, released.tokens)
  patches_a_side = round((tokens - 1) ** 0.5)
  mlp_dim = measure('visual.transformer.0.mlp.0.weight', 0, released.mlp_ratio * dim)
  layers = evidence.count_layers('visual.transformer.')
  return cfg.ImageConfig(
    kind='clip',
    size=patches_a_side * patch,
    patch=patch,
    dim=dim,
    heads=heads,
    layers=layers or released.layers,
    mlp_ratio=mlp_dim // dim,
    out_dim=measure('visual.head', 1, released.out_dim),
    dtype=dtype,
  )


def infer_model(
  said: Mapping[str, Any],
  shapes: Shapes,
  num_frames: int,
  *,
  tokenizer: cfg.TokenizerConfig,
  text: cfg.TextConfig,
  image: cfg.ImageConfig,
) -> cfg.ModelConfig:
  """The config of the DiT and its action modules, with the reference's behaviour.

  Args:
    said: its part of the config file.
    shapes: the shapes of its weights, by name.
    num_frames: the camera frames of a training window.
    tokenizer: the config of its VAE.
    text: the config of its text encoder.
    image: the config of its image encoder.
  Raises:
    ValueError: it is built in a way that this model is not.
  """
  released = presets.WAN2_1_I2V_14B
  evidence = _Evidence(said, shapes)
  find = evidence.find
  channels = find('in_dim', 'patch_embedding.weight', 1, released.in_channels)
  patch = tuple(said.get('patch_size', (1, released.patch, released.patch)))
  _check_build(said, channels, patch, tokenizer)

  frames = said.get('num_frame_per_block', released.frames_per_chunk)
  chunks = said.get('max_chunk_size', released.max_chunks)
  # -1 is no limit to what is seen, which the official class does by another rule.
  has_limit = chunks > 0
  if not has_limit:
    # As many as fit into a window, whose first frame stands alone.
    chunks = max(1, (num_frames - 1) // (tokenizer.temporal * frames))
  layers = said.get('num_layers') or evidence.count_layers('blocks.')
  # The matrices of the action modules are [embodiment, input, output].
  state = 'state_encoder.layer1.W'
  return cfg.ModelConfig(
    dim=find('dim', 'patch_embedding.weight', 0, released.dim),
    mlp_dim=find('ffn_dim', 'blocks.0.ffn.0.weight', 0, released.mlp_dim),
    num_heads=said.get('num_heads', released.num_heads),
    num_layers=layers or released.num_layers,
    patch=patch[1],
    image_condition=channels != tokenizer.channels,
    image_dim=image.dim if image.kind == 'clip' else 0,
    image_tokens=image.tokens,
    freq_dim=find('freq_dim', 'time_embedding.0.weight', 1, released.freq_dim),
    action_dim=find('action_dim', 'action_encoder.W1.W', 1, released.action_dim),
    proprio_dim=find('max_state_dim', state, 1, released.proprio_dim),
    action_hidden=evidence.measure(state, 2, released.action_hidden),
    num_embodiments=evidence.measure(state, 0, 1),
    frames_per_chunk=frames,
    actions_per_chunk=said.get('num_action_per_block', released.actions_per_chunk),
    max_chunks=chunks,
    predict_first_frame=True,
    state_rule='reference',
    history_rule='chunk' if has_limit else 'reference_global',
    eps=said.get('eps', released.eps),
    dtype=tokenizer.dtype,
    remat='block',
    tokenizer=tokenizer,
    text=text,
    image=image,
  )


def _check_build(
  said: Mapping[str, Any],
  channels: int,
  patch: tuple[int, ...],
  tokenizer: cfg.TokenizerConfig,
) -> None:
  """Raises ValueError, with everything that this model has no place for."""
  latents = tokenizer.channels
  problems = []
  # With an image condition: the noisy latents, the first frame's, and a mask of the four camera
  # frames of a latent frame.
  if channels not in (latents, 2 * latents + 4):
    problems.append(
      f'in_dim={channels} must be the {latents} latent channels of the VAE, or twice that and 4 of '
      'a mask'
    )
  if said.get('out_dim', latents) != latents:
    problems.append(f'out_dim={said["out_dim"]} must be the {latents} latent channels of the VAE')
  if patch[0] != 1 or patch[1] != patch[2]:
    problems.append(f'patch_size={patch} must be (1, n, n)')
  denied = [key for key in ('qk_norm', 'cross_attn_norm') if not said.get(key, True)]
  problems += [f'{key}=False must be True' for key in denied]
  if problems:
    lines = '\n  '.join(problems)
    raise ValueError(f'This DiT is built in a way that is not supported:\n  {lines}')
