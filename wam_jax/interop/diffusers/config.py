"""The folders of a Diffusers directory and the config.json in each, both ways.

Sources: diffusers `WanTransformer3DModel`, `AutoencoderKLWan`, `WanImageToVideoPipeline`;
transformers `UMT5EncoderModel`, `CLIPVisionModel`. Action modules and robots are ours:
`action_modules/`, with DreamZero's names and our whole config.
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
    fields: of a TrainConfig, as `action_modules/config.json` has them; {} in a directory that is
      not ours.
    mean_std_2C: of the VAE's latents where they are not the released ones, else None.
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
  said = {
    part: jsonfile.read(path / folder / 'config.json')
    for part, folder in FOLDERS.items()
    if part != 'image' or (path / folder).exists()
  }
  try:
    tokenizer, mean_std_2C = _read_vae(said['tokenizer'])
    model = _read_dit(
      said['dit'], tokenizer, _read_text(said['text']), _read_image(said.get('image'))
    )
  except KeyError as e:
    raise ValueError(
      f'A config.json below {path} lacks {e.args[0]!r}; it must be of a Wan pipeline.'
    ) from e
  if not (path / ACTION_FOLDER / 'config.json').exists():
    return Configs(model, {}, (), mean_std_2C)
  ours = jsonfile.read(path / ACTION_FOLDER / 'config.json')
  config = cfg.from_config_dict(workdir.fill_config(ours['config']))
  of_model = {
    f.name: getattr(config.model, f.name)
    for f in dataclasses.fields(config.model)
    if f.name not in ('tokenizer', 'text', 'image')
  }
  video = dataclasses.replace(
    tokenizer, resize=config.model.tokenizer.resize, dtype=config.model.tokenizer.dtype
  )
  model = dataclasses.replace(
    model,
    **of_model,
    tokenizer=video,
    text=dataclasses.replace(
      model.text, length=config.model.text.length, dtype=config.model.text.dtype
    ),
    image=dataclasses.replace(model.image, dtype=config.model.image.dtype),
  )
  robots = tuple(robot_lib.from_metadata(ours['data']).values())
  return Configs(model, dict(flow=config.flow, sample=config.sample), robots, mean_std_2C)


def _read_dit(said: Mapping[str, Any], tokenizer, text, clip) -> cfg.ModelConfig:
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
  return sizes.infer_model(words, {}, 33, tokenizer, text, clip)


def _read_vae(said: Mapping[str, Any]) -> tuple[cfg.TokenizerConfig, np.ndarray | None]:
  residual = said.get('is_residual', False)
  released = (presets.WAN2_2_TI2V_5B if residual else presets.WAN2_1_I2V_14B).tokenizer
  base = said['base_dim']
  config = dataclasses.replace(
    released,
    channels=said['z_dim'],
    resize=(),
    vae=cfg.VAEConfig(
      base,
      said.get('decoder_base_dim') or base,
      tuple(said['dim_mult']),
      said['num_res_blocks'],
      tuple(said['temperal_downsample']),
    ),
  )
  mean_std_2C = np.float32([said['latents_mean'], said['latents_std']])
  known = said['z_dim'] in vae.RELEASED and np.array_equal(
    mean_std_2C, np.float32(vae.RELEASED[said['z_dim']])
  )
  return config, None if known else mean_std_2C


def _read_text(said: Mapping[str, Any]) -> cfg.TextConfig:
  released = presets.WAN2_1_I2V_14B.text
  return cfg.TextConfig(
    'umt5',
    said['vocab_size'],
    released.length,
    said['d_model'],
    said['num_layers'],
    said['num_heads'],
    said['num_heads'] * said['d_kv'],
    said['d_ff'],
    said['relative_attention_num_buckets'],
    said.get('relative_attention_max_distance', released.max_distance),
    released.dtype,
  )


def _read_image(said: Mapping[str, Any] | None) -> cfg.ImageConfig:
  if said is None:
    return cfg.ImageConfig()
  return cfg.ImageConfig(
    'clip',
    said['image_size'],
    said['patch_size'],
    said['hidden_size'],
    said['num_attention_heads'],
    said['num_hidden_layers'],
    said['intermediate_size'] // said['hidden_size'],
    said.get('projection_dim', 0),
    presets.WAN2_1_I2V_14B.image.dtype,
  )


def write_configs(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  data: Mapping[str, Any],
  torch_dtype: str,
  mean_std_2C: np.ndarray | None,
  vocabulary: pathlib.Path | None,
) -> None:
  """Every file but the weights, whose folders are there already."""
  c = config.model
  dtype = {'torch_dtype': torch_dtype}
  jsonfile.write(
    directory / 'transformer/config.json',
    {
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
    },
  )
  jsonfile.write(directory / 'vae/config.json', _vae_config(c.tokenizer, mean_std_2C))
  jsonfile.write(
    directory / 'text_encoder/config.json',
    dtype
    | {
      'architectures': ['UMT5EncoderModel'],
      'model_type': 'umt5',
      'vocab_size': c.text.vocab,
      'd_model': c.text.dim,
      'd_kv': c.text.attention_dim // c.text.heads,
      'd_ff': c.text.mlp_dim,
      'num_layers': c.text.layers,
      'num_heads': c.text.heads,
      'relative_attention_num_buckets': c.text.buckets,
      'relative_attention_max_distance': c.text.max_distance,
      'feed_forward_proj': 'gated-gelu',
      'layer_norm_epsilon': 1e-6,
      'dropout_rate': 0.1,
      'is_encoder_decoder': False,
      'use_cache': False,
      'tie_word_embeddings': False,
      'pad_token_id': 0,
      'eos_token_id': 1,
      'tokenizer_class': 'T5Tokenizer',
    },
  )
  components = {
    'transformer': ['diffusers', 'WanTransformer3DModel'],
    'vae': ['diffusers', 'AutoencoderKLWan'],
    'text_encoder': ['transformers', 'UMT5EncoderModel'],
    'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
    'tokenizer': ['transformers', 'T5TokenizerFast'] if vocabulary else [None, None],
    'image_encoder': [None, None],
    'image_processor': [None, None],
  }
  if c.image.kind == 'clip':
    components |= {
      'image_encoder': ['transformers', 'CLIPVisionModel'],
      'image_processor': ['transformers', 'CLIPImageProcessor'],
    }
    _write_image_configs(directory, c.image, dtype)
  if vocabulary:
    _write_tokenizer(directory / 'tokenizer', vocabulary)
  (directory / 'scheduler').mkdir()
  jsonfile.write(
    directory / 'scheduler/scheduler_config.json',
    {
      '_class_name': 'UniPCMultistepScheduler',
      'num_train_timesteps': config.flow.levels,
      'use_flow_sigmas': True,
      'prediction_type': 'flow_prediction',
      'flow_shift': config.sample.shift,
    },
  )
  jsonfile.write(
    directory / 'model_index.json',
    {
      '_class_name': 'WanImageToVideoPipeline',
      **components,
      'boundary_ratio': None,
      'transformer_2': [None, None],
      'expand_timesteps': not c.image_condition,
    },
  )
  jsonfile.write(
    directory / ACTION_FOLDER / 'config.json', {'config': cfg.to_dict(config), 'data': data}
  )


def _vae_config(c: cfg.TokenizerConfig, mean_std_2C: np.ndarray | None) -> dict[str, Any]:
  mean, std = vae.RELEASED[c.channels] if mean_std_2C is None else mean_std_2C.tolist()
  pixels, residual = 3 * vae_network.patch(c) ** 2, c.kind == 'wan2_2'
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
    'is_residual': residual,
    'in_channels': pixels,
    'out_channels': pixels,
    'patch_size': vae_network.patch(c) if residual else None,
    'scale_factor_temporal': c.temporal,
    'scale_factor_spatial': c.spatial,
  }


def _write_image_configs(
  directory: pathlib.Path, c: cfg.ImageConfig, dtype: Mapping[str, str]
) -> None:
  jsonfile.write(
    directory / 'image_encoder/config.json',
    {
      'architectures': ['CLIPVisionModel'],
      'model_type': 'clip_vision_model',
      **dtype,
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
    },
  )
  (directory / 'image_processor').mkdir()
  jsonfile.write(
    directory / 'image_processor/preprocessor_config.json',
    {
      'image_processor_type': 'CLIPImageProcessor',
      'do_resize': True,
      'size': {'height': c.size, 'width': c.size},
      'resample': 3,
      'do_center_crop': False,
      'do_rescale': True,
      'rescale_factor': 1 / 255,
      'do_normalize': True,
      'do_convert_rgb': True,
      'image_mean': [0.48145466, 0.4578275, 0.40821073],
      'image_std': [0.26862954, 0.26130258, 0.27577711],
    },
  )


def _write_tokenizer(directory: pathlib.Path, vocabulary: pathlib.Path) -> None:
  directory.mkdir()
  shutil.copyfile(
    vocabulary, directory / ('tokenizer.json' if vocabulary.suffix == '.json' else 'spiece.model')
  )
  jsonfile.write(
    directory / 'tokenizer_config.json',
    {
      'tokenizer_class': 'T5Tokenizer',
      'pad_token': '<pad>',
      'eos_token': '</s>',
      'unk_token': '<unk>',
      'extra_ids': 0,
      'model_max_length': 512,
    },
  )
