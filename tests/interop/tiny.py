"""Tiny random checkpoints in the layouts of others, for the tests of conversion."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import yaml

from wam_jax import config as cfg
from wam_jax.interop import foreign
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.table import dit

I2V = cfg.ModelConfig(
  dim=32,
  mlp_dim=48,
  num_heads=2,
  num_layers=3,
  patch=2,
  image_condition=True,
  image_dim=32,
  image_tokens=5,
  freq_dim=16,
  action_dim=12,
  proprio_dim=10,
  action_hidden=16,
  num_embodiments=1,
  frames_per_chunk=2,
  actions_per_chunk=24,
  max_chunks=4,
  predict_first_frame=True,
  state_rule='reference',
  remat='block',
  tokenizer=cfg.TokenizerConfig(
    'wan2_1', temporal=4, spatial=8, channels=16, vae=cfg.VAEConfig(4, 4)
  ),
  text=cfg.TextConfig(
    'umt5', vocab=40, length=6, dim=20, layers=2, heads=4, attention_dim=24, mlp_dim=28, buckets=8
  ),
  image=cfg.ImageConfig(
    'clip', size=14, patch=7, dim=32, heads=16, layers=3, mlp_ratio=2, out_dim=8
  ),
)
TI2V = dataclasses.replace(
  I2V,
  image_condition=False,
  tokenizer=cfg.TokenizerConfig(
    'wan2_2', temporal=4, spatial=16, channels=48, resize=(160, 320), vae=cfg.VAEConfig(4, 8)
  ),
)

BF16 = np.dtype(ml_dtypes.bfloat16)


def random_weights(
  model: cfg.ModelConfig, layout: str, dtype: Any = BF16, seed: int = 0
) -> dict[str, dict[str, Any]]:
  """Weights by part, under the names of the tables."""
  rng = np.random.default_rng(seed)
  draw = lambda shape: np.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)
  return {
    part: {name: draw(row.torch_shape) for row in table for name in row.names}
    for part, table in foreign.make_tables(model, layout).items()
  }


def prefixed(weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """The state dict of an official checkpoint."""
  return {
    dreamzero_layout.PREFIXES[part] + name: w
    for part, of_part in weights.items()
    for name, w in of_part.items()
  }


def save(path: pathlib.Path, weights: dict[str, Any], stem: str, shards: int = 1) -> None:
  """`weights` as the safetensors library writes them."""
  path.mkdir(parents=True, exist_ok=True)
  if shards == 1:
    safetensors.numpy.save_file(weights, path / f'{stem}.safetensors', metadata={'format': 'pt'})
    return
  names = list(weights)
  files = {
    f'{stem}-{i + 1:05d}-of-{shards:05d}.safetensors': names[i::shards] for i in range(shards)
  }
  for file, held in files.items():
    safetensors.numpy.save_file(
      {name: weights[name] for name in held}, path / file, metadata={'format': 'pt'}
    )
  (path / f'{stem}.safetensors.index.json').write_text(
    json.dumps(
      {'metadata': {}, 'weight_map': {name: file for file, held in files.items() for name in held}}
    )
  )


def load(path: pathlib.Path) -> dict[str, Any]:
  """Every array of the safetensors files in a directory, as that library reads them."""
  return {
    name: w
    for file in sorted(path.glob('*.safetensors'))
    for name, w in safetensors.numpy.load_file(file).items()
  }


def head(model: cfg.ModelConfig) -> dict[str, Any]:
  """config.json as the official training script writes it: few sizes are said, the rest are the
  class's.
  """
  return {
    'model_type': 'vla',
    'hidden_size': 0,
    'action_horizon': 24,
    'action_dim': model.action_dim,
    'backbone_cfg': {'_target_': 'IdentityBackbone'},
    'action_head_cfg': {
      '_target_': 'WANPolicyHead',
      'config': {
        'num_frames': 33,
        'hidden_size': 64,
        'lora_rank': 4,
        'lora_alpha': 8,
        'train_architecture': 'lora',
        'skip_component_loading': True,
        **(
          {'target_video_height': 160, 'target_video_width': 320} if model.tokenizer.resize else {}
        ),
        'diffusion_model_cfg': {
          'model_type': 'i2v' if model.image_condition else 'ti2v',
          'dim': model.dim,
          'in_dim': model.in_channels,
          'ffn_dim': model.mlp_dim,
          'out_dim': model.tokenizer.channels,
          'freq_dim': model.freq_dim,
          'eps': 1e-6,
          'num_heads': model.num_heads,
          'num_layers': model.num_layers,
          'max_chunk_size': 4,
          'frame_seqlen': 880,
          'text_len': model.text.length,
          'num_frame_per_block': 2,
          'num_action_per_block': 24,
          'num_state_per_block': 1,
          'concat_first_frame_latent': model.image_condition,
          'diffusion_model_pretrained_path': '/elsewhere/Wan2.1-I2V-14B-480P',
        },
        'text_encoder_cfg': {'text_encoder_pretrained_path': None},
        'image_encoder_cfg': {},
        'vae_cfg': {'z_dim': model.tokenizer.channels, 'vae_pretrained_path': None},
      },
    },
  }


def conf(size: tuple[int, int] = (176, 320)) -> dict[str, Any]:
  """conf.yaml of a DROID run, with references as people write them by hand."""
  views = [
    f'video.{name}'
    for name in ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
  ]
  parts = ('joint_position', 'gripper_position')
  state, action = ([f'{kind}.{name}' for name in parts] for kind in ('state', 'action'))
  transform = lambda name, **more: {'_target_': f'groot.vla.data.transform.{name}', **more}
  return {
    'height': size[0],
    'model': {'_target_': 'groot.vla.model.dreamzero.base_vla.VLA.from_pretrained'},
    'eval_bf16': False,
    'save_lora_only': False,
    'relative_action': True,
    'relative_action_keys': ['joint_position'],
    'relative_action_per_horizon': False,
    'pretrained_model_path': None,
    'modality_configs': {
      'oxe_droid': {'language': {'modality_keys': ['annotation.language.language_instruction']}}
    },
    'transforms': {
      'oxe_droid': transform(
        'ComposedModalityTransform',
        transforms=[
          transform('VideoToTensor', apply_to=views),
          transform('VideoCrop', apply_to=views, scale=0.95),
          transform('VideoResize', apply_to=views, height='${height}', width=size[1]),
          transform(
            'StateActionTransform',
            apply_to=state,
            normalization_modes=dict.fromkeys(state, 'q99'),
          ),
          transform(
            'StateActionTransform',
            apply_to=action,
            normalization_modes=dict.fromkeys(action, 'q99'),
          ),
          transform(
            'ConcatTransform',
            video_concat_order=views,
            state_concat_order=state,
            action_concat_order=action,
          ),
        ],
      )
    },
  }


def metadata() -> dict[str, Any]:
  """metadata.json of a DROID run."""
  rng = np.random.default_rng(7)
  widths = {'joint_position': 7, 'gripper_position': 1}

  def numbers(width):
    order = ('min', 'q01', 'mean', 'std', 'q99', 'max')
    return dict(
      zip(order, np.sort(rng.standard_normal((6, width)).astype(np.float32), axis=0).tolist())
    )

  return {
    'oxe_droid': {
      'statistics': {
        kind: {name: numbers(width) for name, width in widths.items()}
        for kind in ('state', 'action')
      },
      'modalities': {
        'video': {
          name: {'resolution': [320, 180], 'channels': 3, 'fps': 15.0}
          for name in ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
        },
        **{
          kind: {
            name: {'absolute': True, 'rotation_type': None, 'shape': [width], 'continuous': True}
            for name, width in widths.items()
          }
          for kind in ('state', 'action')
        },
      },
      'embodiment_tag': 'oxe_droid',
    }
  }


def write_experiment(
  path: pathlib.Path, conf_content: dict[str, Any], metadata_content: dict[str, Any]
) -> None:
  (path / 'experiment_cfg').mkdir(parents=True, exist_ok=True)
  (path / 'experiment_cfg/conf.yaml').write_text(yaml.safe_dump(conf_content))
  (path / 'experiment_cfg/metadata.json').write_text(json.dumps(metadata_content))


def write_dreamzero(
  path: pathlib.Path,
  model: cfg.ModelConfig = I2V,
  weights: dict[str, Any] | None = None,
  shards: int = 1,
) -> dict[str, Any]:
  """An official directory; returns its state dict."""
  weights = prefixed(random_weights(model, 'dreamzero')) if weights is None else weights
  save(path, weights, 'model', shards)
  (path / 'config.json').write_text(json.dumps(head(model)))
  write_experiment(path, conf((160, 320) if model.tokenizer.resize else (176, 320)), metadata())
  return weights


def adapted(
  weights: dict[str, Any], rank: int = 4, base_layer: bool = False, default: str = '.default'
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """(adapters of an official checkpoint, the keys of its DiT as peft names them, the weights merged
  with scale 2).
  """
  rng = np.random.default_rng(3)
  adapters, wrapped, merged = {}, {}, copy.copy(weights)
  for name, w in weights.items():
    inner = name.replace('action_head.model.', 'action_head.model.base_model.model.')
    stem = inner.removesuffix('.weight')
    target = (
      name.endswith('.weight')
      and w.ndim == 2
      and stem.endswith(('_attn.q', '_attn.k', '_attn.v', '_attn.o', 'ffn.0', 'ffn.2'))
      and '.blocks.' in stem
      and '.model.' in stem
    )
    target = target and name.startswith('action_head.model.')
    layered = target or (
      name.endswith('.bias')
      and name.replace('.bias', '.weight') in weights
      and base_layer
      and name.startswith('action_head.model.blocks')
      and ('attn' in name or 'ffn' in name)
    )
    wrapped[
      f'{inner.rpartition(".")[0]}.base_layer.{inner.rpartition(".")[2]}'
      if base_layer and layered
      else inner
    ] = w
    if target:
      down, up = (
        rng.standard_normal(shape, np.float32) for shape in ((rank, w.shape[1]), (w.shape[0], rank))
      )
      adapters |= {f'{stem}.lora_A{default}.weight': down, f'{stem}.lora_B{default}.weight': up}
      merged[name] = (w.astype(np.float32) + np.float32(2) * (up @ down)).astype(w.dtype)
  return adapters, wrapped, merged


def trained_only(weights: dict[str, Any], adapters: dict[str, Any]) -> dict[str, Any]:
  """What a checkpoint with save_lora_only holds."""
  names = {row.torch for row in dit.action_rows(I2V)}
  own = {name: w for name, w in weights.items() if name.removeprefix('action_head.model.') in names}
  return adapters | {
    name.replace('action_head.model.', 'action_head.model.base_model.model.'): w
    for name, w in own.items()
  }


def write_lora(
  directory: pathlib.Path, base: str = 'Wan2.1-I2V-14B-480P', layout: str = 'wan'
) -> dict[str, Any]:
  """A checkpoint of adapters and action modules only in `lora`, its base in the directory of that
  name; returns what both make.
  """
  weights = random_weights(I2V, 'dreamzero')
  adapters, _, merged = adapted(prefixed(weights))
  write_dreamzero(directory / 'lora', weights=trained_only(prefixed(weights), adapters))
  said = conf() | {'save_lora_only': True}
  if layout == 'wan':
    # The official code knows where these are; no path is recorded.
    write_wan(directory / base, I2V)
  else:
    said['pretrained_model_path'] = f'./checkpoints/{base}'
    write_dreamzero(directory / base, weights=prefixed(weights), shards=2)
  write_experiment(directory / 'lora', said, metadata())
  return merged


def save_pth(path: pathlib.Path, weights: dict[str, Any]) -> None:
  """`weights` as `torch.save` writes a state dict, opcode by opcode, so that no PyTorch is needed.

  tests/interop/files/state_dict.pth, written by PyTorch itself, is what says that this is right.
  """
  kinds = {'float32': 'FloatStorage', 'bfloat16': 'BFloat16Storage'}
  text = lambda s: b'X' + struct.pack('<I', len(s)) + s.encode()
  number = lambda n: b'J' + struct.pack('<i', n)
  pairs = []
  for i, (name, w) in enumerate(weights.items()):
    strides = [int(n) for n in np.cumprod((1, *w.shape[:0:-1]))[::-1]] if w.ndim else []
    storage = (
      b'('
      + text('storage')
      + f'ctorch\n{kinds[w.dtype.name]}\n'.encode()
      + text(str(i))
      + text('cpu')
      + number(w.size)
      + b'tQ'
    )
    pairs.append(
      text(name)
      + b'ctorch._utils\n_rebuild_tensor_v2\n('
      + storage
      + number(0)
      + b'('
      + b''.join(map(number, w.shape))
      + b't('
      + b''.join(map(number, strides))
      + b't\x89'
      + b'ccollections\nOrderedDict\n)RtR'
    )
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr(
      'archive/data.pkl', b'\x80\x02ccollections\nOrderedDict\n)R(' + b''.join(pairs) + b'u.'
    )
    archive.writestr('archive/byteorder', 'little')
    archive.writestr('archive/version', '3\n')
    for i, w in enumerate(weights.values()):
      archive.writestr(f'archive/data/{i}', np.ascontiguousarray(w).tobytes())


def write_wan(
  path: pathlib.Path, model: cfg.ModelConfig, with_image: bool = True
) -> dict[str, dict[str, Any]]:
  """A Wan-AI directory: no action modules, and image attention only where there is an image
  condition.
  """
  weights = random_weights(model, 'wan')
  published = dit.wan_rows(
    model if model.image_condition else dataclasses.replace(model, image_dim=0)
  )
  names = {name for row in published for name in row.names}
  weights['dit'] = {name: w for name, w in weights['dit'].items() if name in names}
  save(path, weights['dit'], 'diffusion_pytorch_model', shards=2)
  (path / 'config.json').write_text(
    json.dumps(
      {
        '_class_name': 'WanModel',
        'model_type': 'i2v' if model.image_condition else 'ti2v',
        'dim': model.dim,
        'eps': 1e-6,
        'ffn_dim': model.mlp_dim,
        'freq_dim': model.freq_dim,
        'in_dim': model.in_channels,
        'num_heads': model.num_heads,
        'num_layers': model.num_layers,
        'out_dim': model.tokenizer.channels,
        'text_len': model.text.length,
      }
    )
  )
  save_pth(path / 'models_t5_umt5-xxl-enc-bf16.pth', weights['text'])
  save_pth(
    path / ('Wan2.1_VAE.pth' if model.image_condition else 'Wan2.2_VAE.pth'), weights['tokenizer']
  )
  if with_image:
    unused = {'textual.head.weight': np.zeros((2, 3), np.float32)}
    save_pth(
      path / 'models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth', weights['image'] | unused
    )
  else:
    del weights['image']
  return weights
