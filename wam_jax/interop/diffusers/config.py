"""The config.json of each folder of a Diffusers directory, both ways.

Sources: diffusers `WanTransformer3DModel`, `AutoencoderKLWan`, `UniPCMultistepScheduler`,
`WanImageToVideoPipeline`; transformers `UMT5EncoderModel`, `CLIPVisionModel`, `CLIPImageProcessor`.
That of `action_modules/` is ours and holds our whole config.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import workdir
from wam_jax.data import robot as robot_lib
from wam_jax.interop import sizes
from wam_jax.interop.files import jsonfile
from wam_jax.models import vae
from wam_jax.models import vae_network

# By part.
FOLDERS = {
  'dit': 'transformer',
  'text': 'text_encoder',
  'image': 'image_encoder',
  'tokenizer': 'vae',
}
ACTION_FOLDER = 'action_modules'


class Configs(NamedTuple):
  """What the config files say.

  Attributes:
    model: the model that they describe.
    fields: fields of a TrainConfig, as `action_modules/config.json` has them; {} in a directory
      that is not ours.
    robots: the robots that it knows, as that file has them.
    mean_std_2C: mean and deviation of the VAE's latents where they are not the released ones, else
      None.
  """

  model: cfg.ModelConfig
  fields: dict[str, Any]
  robots: tuple[robot_lib.Robot, ...]
  mean_std_2C: np.ndarray | None


def read_configs(path: epath.Path) -> Configs:
  """Everything but the weights.

  Raises:
    ValueError: a config.json is missing, incomplete or of another kind of model.
  """
  said = {}
  for part, folder in FOLDERS.items():
    # Pipelines of Wan2.2-TI2V have no image encoder.
    if part != 'image' or (path / folder).exists():
      said[part] = jsonfile.read(path / folder / 'config.json')
  try:
    model = _read_transformer(
      said['dit'],
      tokenizer=_read_vae(said['tokenizer']),
      text=_read_text(said['text']),
      image=_read_image(said['image']) if 'image' in said else cfg.ImageConfig(),
    )
    mean_std_2C = _read_mean_std(said['tokenizer'])
  except KeyError as e:
    raise ValueError(
      f'A config.json below {path} lacks {e.args[0]!r}; it must be of a Wan pipeline.'
    ) from e

  ours = path / ACTION_FOLDER / 'config.json'
  if not ours.exists():
    return Configs(model=model, fields={}, robots=(), mean_std_2C=mean_std_2C)
  content = jsonfile.read(ours)
  config = cfg.from_config_dict(workdir.fill_config(content['config']))
  return Configs(
    model=_combine(model, config.model),
    fields={'flow': config.flow, 'sample': config.sample},
    robots=tuple(robot_lib.from_metadata(content['data']).values()),
    mean_std_2C=mean_std_2C,
  )


def _combine(read: cfg.ModelConfig, ours: cfg.ModelConfig) -> cfg.ModelConfig:
  """Our config, but for the sizes of the encoders, which their own files say."""
  return dataclasses.replace(
    ours,
    tokenizer=dataclasses.replace(
      read.tokenizer, resize=ours.tokenizer.resize, dtype=ours.tokenizer.dtype
    ),
    # No file of transformers says how long a prompt is.
    text=dataclasses.replace(read.text, length=ours.text.length, dtype=ours.text.dtype),
    image=dataclasses.replace(read.image, dtype=ours.image.dtype),
  )


def _read_transformer(
  said: Mapping[str, Any],
  tokenizer: cfg.TokenizerConfig,
  text: cfg.TextConfig,
  image: cfg.ImageConfig,
) -> cfg.ModelConfig:
  # In Wan-AI's words. How frames form chunks is nothing that Diffusers knows.
  words = {
    'dim': said['num_attention_heads'] * said['attention_head_dim'],
    'ffn_dim': said['ffn_dim'],
    'freq_dim': said['freq_dim'],
    'in_dim': said['in_channels'],
    'out_dim': said['out_channels'],
    'num_heads': said['num_attention_heads'],
    'num_layers': said['num_layers'],
    'patch_size': said['patch_size'],
    'eps': said.get('eps', 1e-6),
  }
  return sizes.infer_model(words, {}, 33, tokenizer=tokenizer, text=text, image=image)


def _read_vae(said: Mapping[str, Any]) -> cfg.TokenizerConfig:
  is_residual = said.get('is_residual', False)
  released = (presets.WAN2_2_TI2V_5B if is_residual else presets.WAN2_1_I2V_14B).tokenizer
  return dataclasses.replace(
    released,
    channels=said['z_dim'],
    resize=(),
    vae=cfg.VAEConfig(
      encoder_dim=said['base_dim'],
      decoder_dim=said.get('decoder_base_dim') or said['base_dim'],
      multipliers=tuple(said['dim_mult']),
      blocks=said['num_res_blocks'],
      temporal_down=tuple(said['temperal_downsample']),  # Spelled so in Diffusers.
    ),
  )


def _read_mean_std(said: Mapping[str, Any]) -> np.ndarray | None:
  """[2, C] float32, None for the released ones."""
  mean_std_2C = np.float32([said['latents_mean'], said['latents_std']])
  released = vae.RELEASED.get(said['z_dim'])
  if released is not None and np.array_equal(mean_std_2C, np.float32(released)):
    return None
  return mean_std_2C


def _read_text(said: Mapping[str, Any]) -> cfg.TextConfig:
  released = presets.WAN2_1_I2V_14B.text
  return cfg.TextConfig(
    kind='umt5',
    vocab=said['vocab_size'],
    length=released.length,
    dim=said['d_model'],
    layers=said['num_layers'],
    heads=said['num_heads'],
    attention_dim=said['num_heads'] * said['d_kv'],
    mlp_dim=said['d_ff'],
    buckets=said['relative_attention_num_buckets'],
    max_distance=said.get('relative_attention_max_distance', released.max_distance),
    dtype=released.dtype,
  )


def _read_image(said: Mapping[str, Any]) -> cfg.ImageConfig:
  return cfg.ImageConfig(
    kind='clip',
    size=said['image_size'],
    patch=said['patch_size'],
    dim=said['hidden_size'],
    heads=said['num_attention_heads'],
    layers=said['num_hidden_layers'],
    mlp_ratio=said['intermediate_size'] // said['hidden_size'],
    out_dim=said.get('projection_dim', 0),
    dtype=presets.WAN2_1_I2V_14B.image.dtype,
  )


def write_configs(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  data: Mapping[str, Any],
  torch_dtype: str,
  *,
  mean_std_2C: np.ndarray | None,
  vocabulary: pathlib.Path | None,
) -> None:
  """Every file but the weights, whose folders are there already.

  Args:
    directory: the pipeline.
    config: the config of what is exported.
    data: what is known of robots, as `robot.to_metadata` gives it.
    torch_dtype: what `transformers` loads its components in.
    mean_std_2C: mean and deviation of the VAE's latents, None for the released ones.
    vocabulary: that of the text encoder, if it is known.
  """
  c = config.model
  contents = {
    'transformer/config.json': _make_transformer(c),
    'vae/config.json': _make_vae(c.tokenizer, mean_std_2C),
    'text_encoder/config.json': _make_text(c.text, torch_dtype),
    'scheduler/scheduler_config.json': _make_scheduler(config),
    'model_index.json': _make_index(c, has_vocabulary=vocabulary is not None),
    f'{ACTION_FOLDER}/config.json': {'config': cfg.to_dict(config), 'data': data},
  }
  if c.image.kind == 'clip':
    contents['image_encoder/config.json'] = _make_image(c.image, torch_dtype)
    contents['image_processor/preprocessor_config.json'] = _make_image_processor(c.image)
  if vocabulary:
    contents['tokenizer/tokenizer_config.json'] = _make_tokenizer()
  for name, content in contents.items():
    (directory / name).parent.mkdir(exist_ok=True)
    jsonfile.write(directory / name, content)
  if vocabulary:
    name = 'tokenizer.json' if vocabulary.suffix == '.json' else 'spiece.model'
    shutil.copyfile(vocabulary, directory / 'tokenizer' / name)


def _make_transformer(c: cfg.ModelConfig) -> dict[str, Any]:
  return {
    '_class_name': 'WanTransformer3DModel',
    'patch_size': [1, c.patch, c.patch],
    'num_attention_heads': c.num_heads,
    'attention_head_dim': c.head_dim,
    'in_channels': c.in_channels,
    'out_channels': c.tokenizer.channels,
    'text_dim': c.text.dim,
    'freq_dim': c.freq_dim,
    'ffn_dim': c.mlp_dim,
    'num_layers': c.num_layers,
    'cross_attn_norm': True,
    'qk_norm': 'rms_norm_across_heads',
    'eps': c.eps,
    'image_dim': c.image_dim or None,
    'added_kv_proj_dim': c.dim if c.image_dim else None,
    'rope_max_seq_len': 1024,
    'pos_embed_seq_len': None,
  }


def _make_vae(c: cfg.TokenizerConfig, mean_std_2C: np.ndarray | None) -> dict[str, Any]:
  mean, std = vae.RELEASED[c.channels] if mean_std_2C is None else mean_std_2C.tolist()
  # Wan2.2's folds patches of pixels into channels before its first convolution.
  pixels = 3 * vae_network.patch(c) ** 2
  is_residual = c.kind == 'wan2_2'
  return {
    '_class_name': 'AutoencoderKLWan',
    'base_dim': c.vae.encoder_dim,
    'decoder_base_dim': c.vae.decoder_dim,
    'z_dim': c.channels,
    'dim_mult': c.vae.multipliers,
    'num_res_blocks': c.vae.blocks,
    'attn_scales': [],
    'temperal_downsample': c.vae.temporal_down,
    'dropout': 0.0,
    'latents_mean': mean,
    'latents_std': std,
    'is_residual': is_residual,
    'in_channels': pixels,
    'out_channels': pixels,
    'patch_size': vae_network.patch(c) if is_residual else None,
    'scale_factor_temporal': c.temporal,
    'scale_factor_spatial': c.spatial,
  }


def _make_text(c: cfg.TextConfig, torch_dtype: str) -> dict[str, Any]:
  return {
    'torch_dtype': torch_dtype,
    'architectures': ['UMT5EncoderModel'],
    'model_type': 'umt5',
    'vocab_size': c.vocab,
    'd_model': c.dim,
    'd_kv': c.attention_dim // c.heads,
    'd_ff': c.mlp_dim,
    'num_layers': c.layers,
    'num_heads': c.heads,
    'relative_attention_num_buckets': c.buckets,
    'relative_attention_max_distance': c.max_distance,
    'feed_forward_proj': 'gated-gelu',
    'layer_norm_epsilon': 1e-6,
    'dropout_rate': 0.1,
    'is_encoder_decoder': False,
    'use_cache': False,
    'tie_word_embeddings': False,
    'pad_token_id': 0,
    'eos_token_id': 1,
    'tokenizer_class': 'T5Tokenizer',
  }


def _make_image(c: cfg.ImageConfig, torch_dtype: str) -> dict[str, Any]:
  return {
    'architectures': ['CLIPVisionModel'],
    'model_type': 'clip_vision_model',
    'torch_dtype': torch_dtype,
    'image_size': c.size,
    'patch_size': c.patch,
    'hidden_size': c.dim,
    'num_attention_heads': c.heads,
    'num_hidden_layers': c.layers,
    'intermediate_size': c.mlp_ratio * c.dim,
    'projection_dim': c.out_dim,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
    'num_channels': 3,
    'attention_dropout': 0.0,
  }


def _make_image_processor(c: cfg.ImageConfig) -> dict[str, Any]:
  """How pixels are brought to CLIP; mean and deviation are those of its training, by colour."""
  return {
    'image_processor_type': 'CLIPImageProcessor',
    'do_resize': True,
    'size': {'height': c.size, 'width': c.size},
    'resample': 3,  # Bicubic.
    'do_center_crop': False,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'do_convert_rgb': True,
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
  }


def _make_scheduler(config: cfg.TrainConfig) -> dict[str, Any]:
  return {
    '_class_name': 'UniPCMultistepScheduler',
    'num_train_timesteps': config.flow.levels,
    'use_flow_sigmas': True,
    'prediction_type': 'flow_prediction',
    'flow_shift': config.sample.shift,
  }


def _make_tokenizer() -> dict[str, Any]:
  return {
    'tokenizer_class': 'T5Tokenizer',
    'pad_token': '<pad>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'extra_ids': 0,
    'model_max_length': 512,
  }


def _make_index(c: cfg.ModelConfig, has_vocabulary: bool) -> dict[str, Any]:
  """Which library and class each folder is for; [None, None] where it is not there."""
  has_image = c.image.kind == 'clip'
  absent = [None, None]
  return {
    '_class_name': 'WanImageToVideoPipeline',
    'transformer': ['diffusers', 'WanTransformer3DModel'],
    'vae': ['diffusers', 'AutoencoderKLWan'],
    'text_encoder': ['transformers', 'UMT5EncoderModel'],
    'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
    'tokenizer': ['transformers', 'T5TokenizerFast'] if has_vocabulary else absent,
    'image_encoder': ['transformers', 'CLIPVisionModel'] if has_image else absent,
    'image_processor': ['transformers', 'CLIPImageProcessor'] if has_image else absent,
    # A second transformer for high noise, of which these models have none.
    'boundary_ratio': None,
    'transformer_2': absent,
    # Wan2.2-TI2V gives each frame its own noise level: none to the first.
    'expand_timesteps': not c.image_condition,
  }
