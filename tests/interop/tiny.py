"""Tiny random checkpoints in the layouts of others, for the tests of conversion."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import yaml

from wam_jax import config as cfg
from wam_jax.interop import foreign
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.table import dit

# Both released models, as small as their rules allow: three layers, so that a first, a middle and a
# last one are told apart.
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
  weights: dict[str, dict[str, Any]] = {}
  for part, table in foreign.make_tables(model, layout).items():
    weights[part] = {}
    for row in table:
      for name in row.names:
        w = rng.standard_normal(row.torch_shape, np.float32)
        weights[part][name] = np.asarray(w).astype(dtype)
  return weights


def prefixed(weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """The state dict of an official checkpoint."""
  return dreamzero_layout.join_parts(weights)


def save(path: pathlib.Path, weights: dict[str, Any], stem: str, shards: int = 1) -> None:
  """`weights` as the safetensors library writes them."""
  path.mkdir(parents=True, exist_ok=True)
  if shards == 1:
    _save_file(path / f'{stem}.safetensors', weights)
    return
  # In turns, so that the weights of one layer lie in several files.
  shard_of = {}
  names = list(weights)
  for i in range(shards):
    file = f'{stem}-{i + 1:05d}-of-{shards:05d}.safetensors'
    held = names[i::shards]
    _save_file(path / file, {name: weights[name] for name in held})
    shard_of |= dict.fromkeys(held, file)
  index = {'metadata': {}, 'weight_map': shard_of}
  (path / f'{stem}.safetensors.index.json').write_text(json.dumps(index))


def _save_file(path: pathlib.Path, weights: dict[str, Any]) -> None:
  safetensors.numpy.save_file(weights, path, metadata={'format': 'pt'})


def load(path: pathlib.Path) -> dict[str, Any]:
  """Every array of the safetensors files in a directory, as that library reads them."""
  weights = {}
  for file in sorted(path.glob('*.safetensors')):
    weights |= safetensors.numpy.load_file(file)
  return weights


def head(model: cfg.ModelConfig) -> dict[str, Any]:
  """config.json as the official training script writes it: few sizes are said, the rest are the
  class's.
  """
  settings = {
    'num_frames': 33,
    'hidden_size': 64,
    'lora_rank': 4,
    'lora_alpha': 8,
    'train_architecture': 'lora',
    'skip_component_loading': True,
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
  }
  # Said by the smaller model alone, whose frames are shrunk.
  if model.tokenizer.resize:
    settings |= {'target_video_height': 160, 'target_video_width': 320}
  return {
    'model_type': 'vla',
    'hidden_size': 0,
    'action_horizon': 24,
    'action_dim': model.action_dim,
    'backbone_cfg': {'_target_': 'IdentityBackbone'},
    'action_head_cfg': {'_target_': 'WANPolicyHead', 'config': settings},
  }


VIEWS = ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
WIDTHS = {'joint_position': 7, 'gripper_position': 1}  # Of the state, and of the action.


def make_step(name: str, **settings: Any) -> dict[str, Any]:
  """One step of a transform in conf.yaml."""
  return {'_target_': f'groot.vla.data.transform.{name}', **settings}


def conf(size: tuple[int, int] = (176, 320)) -> dict[str, Any]:
  """conf.yaml of a DROID run, with references as people write them by hand."""
  views = [f'video.{name}' for name in VIEWS]
  state = [f'state.{name}' for name in WIDTHS]
  action = [f'action.{name}' for name in WIDTHS]
  steps = [
    make_step('VideoToTensor', apply_to=views),
    make_step('VideoCrop', apply_to=views, scale=0.95),
    # A reference to the key `height` of this file.
    make_step('VideoResize', apply_to=views, height='${height}', width=size[1]),
    make_step(
      'StateActionTransform', apply_to=state, normalization_modes=dict.fromkeys(state, 'q99')
    ),
    make_step(
      'StateActionTransform', apply_to=action, normalization_modes=dict.fromkeys(action, 'q99')
    ),
    make_step(
      'ConcatTransform',
      video_concat_order=views,
      state_concat_order=state,
      action_concat_order=action,
    ),
  ]
  language = {'modality_keys': ['annotation.language.language_instruction']}
  return {
    'height': size[0],
    'model': {'_target_': 'groot.vla.model.dreamzero.base_vla.VLA.from_pretrained'},
    'eval_bf16': False,
    'save_lora_only': False,
    'relative_action': True,
    'relative_action_keys': ['joint_position'],
    'relative_action_per_horizon': False,
    'pretrained_model_path': None,
    'modality_configs': {'oxe_droid': {'language': language}},
    'transforms': {'oxe_droid': make_step('ComposedModalityTransform', transforms=steps)},
  }


def metadata() -> dict[str, Any]:
  """metadata.json of a DROID run."""
  rng = np.random.default_rng(7)
  camera = {'resolution': [320, 180], 'channels': 3, 'fps': 15.0}
  statistics: dict[str, Any] = {}
  modalities: dict[str, Any] = {'video': {name: dict(camera) for name in VIEWS}}
  for kind in ('state', 'action'):
    statistics[kind] = {}
    modalities[kind] = {}
    for name, width in WIDTHS.items():
      statistics[kind][name] = _draw_statistics(rng, width)
      modalities[kind][name] = {
        'absolute': True,
        'rotation_type': None,
        'shape': [width],
        'continuous': True,
      }
  return {
    'oxe_droid': {
      'statistics': statistics,
      'modalities': modalities,
      'embodiment_tag': 'oxe_droid',
    }
  }


def _draw_statistics(rng: np.random.Generator, width: int) -> dict[str, list[float]]:
  """Random numbers, of each dimension in the order that they must have."""
  numbers = np.sort(rng.standard_normal((6, width)).astype(np.float32), axis=0)
  return dict(zip(('min', 'q01', 'mean', 'std', 'q99', 'max'), numbers.tolist(), strict=True))


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
  if weights is None:
    weights = prefixed(random_weights(model, 'dreamzero'))
  save(path, weights, 'model', shards)
  (path / 'config.json').write_text(json.dumps(head(model)))
  size = (160, 320) if model.tokenizer.resize else (176, 320)
  write_experiment(path, conf(size), metadata())
  return weights


DIT = 'action_head.model.'
WRAPPED = 'action_head.model.base_model.model.'  # What peft makes of it.
# What the official training adapts, in every block.
_ADAPTED = ('_attn.q', '_attn.k', '_attn.v', '_attn.o', 'ffn.0', 'ffn.2')


def adapted(
  weights: dict[str, Any], rank: int = 4, base_layer: bool = False, default: str = '.default'
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """(adapters of an official checkpoint, the keys of its DiT as peft names them, the weights merged
  with scale 2).

  Args:
    weights: its state dict.
    rank: the rank of the adapters.
    base_layer: whether peft names what an adapter changes, as its newer versions do.
    default: what it puts after lora_A and lora_B; '' where it saved them itself.
  """
  rng = np.random.default_rng(3)
  adapters = {}
  wrapped = {}
  merged = dict(weights)
  for name, w in weights.items():
    module, _, leaf = name.rpartition('.')
    inner = module.replace(DIT, WRAPPED)
    is_adapted = module.startswith(f'{DIT}blocks.') and module.endswith(_ADAPTED)

    # Once it adapts anything, peft wraps every module of the transformer.
    if is_adapted and base_layer:
      wrapped[f'{inner}.base_layer.{leaf}'] = w
    else:
      wrapped[name.replace(DIT, WRAPPED)] = w

    # The scale is alpha / rank, of the settings in `head` 8 / 4.
    if is_adapted and leaf == 'weight':
      down = rng.standard_normal((rank, w.shape[1]), np.float32)
      up = rng.standard_normal((w.shape[0], rank), np.float32)
      adapters[f'{inner}.lora_A{default}.weight'] = down
      adapters[f'{inner}.lora_B{default}.weight'] = up
      merged[name] = (w.astype(np.float32) + np.float32(2) * (up @ down)).astype(w.dtype)
  return adapters, wrapped, merged


def trained_only(weights: dict[str, Any], adapters: dict[str, Any]) -> dict[str, Any]:
  """What a checkpoint with save_lora_only holds: adapters and action modules."""
  trained = dict(adapters)
  for row in dit.action_rows(I2V):
    trained[f'{WRAPPED}{row.torch}'] = weights[f'{DIT}{row.torch}']
  return trained


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
    # A path where it was trained; its last part tells which checkpoint it was.
    said['pretrained_model_path'] = f'./checkpoints/{base}'
    write_dreamzero(directory / base, weights=prefixed(weights), shards=2)
  write_experiment(directory / 'lora', said, metadata())
  return merged


def save_pth(path: pathlib.Path, weights: dict[str, Any]) -> None:
  """`weights` as `torch.save` writes a state dict, opcode by opcode, so that no PyTorch is needed.

  tests/interop/files/state_dict.pth, written by PyTorch itself, is what says that this is right.
  """
  pairs = [_pickle_tensor(str(i), name, w) for i, (name, w) in enumerate(weights.items())]
  # Protocol 2; an empty ordered dict; its items, between a mark and SETITEMS.
  state_dict = b'\x80\x02' + _EMPTY_DICT + b'(' + b''.join(pairs) + b'u.'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', state_dict)
    archive.writestr('archive/byteorder', 'little')
    archive.writestr('archive/version', '3\n')
    for i, w in enumerate(weights.values()):
      archive.writestr(f'archive/data/{i}', np.ascontiguousarray(w).tobytes())


_EMPTY_DICT = b'ccollections\nOrderedDict\n)R'
_STORAGES = {'float32': b'FloatStorage', 'bfloat16': b'BFloat16Storage'}


def _pickle_tensor(key: str, name: str, w: np.ndarray) -> bytes:
  """A name and the call that builds its tensor from storage `key`."""
  strides = [stride // w.itemsize for stride in np.ascontiguousarray(w).strides]
  # ('storage', class, key, 'cpu', size), by BINPERSID.
  storage = (
    b'('
    + _pickle_text('storage')
    + b'ctorch\n'
    + _STORAGES[w.dtype.name]
    + b'\n'
    + _pickle_text(key)
    + _pickle_text('cpu')
    + _pickle_number(w.size)
    + b'tQ'
  )
  # (storage, offset, size, stride, requires_grad False, backward hooks), by REDUCE.
  arguments = (
    b'('
    + storage
    + _pickle_number(0)
    + _pickle_numbers(w.shape)
    + _pickle_numbers(strides)
    + b'\x89'
    + _EMPTY_DICT
    + b't'
  )
  return _pickle_text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n' + arguments + b'R'


def _pickle_text(text: str) -> bytes:
  return b'X' + struct.pack('<I', len(text)) + text.encode()


def _pickle_number(number: int) -> bytes:
  return b'J' + struct.pack('<i', number)


def _pickle_numbers(numbers: Sequence[int]) -> bytes:
  return b'(' + b''.join(map(_pickle_number, numbers)) + b't'


def write_wan(
  path: pathlib.Path, model: cfg.ModelConfig, with_image: bool = True
) -> dict[str, dict[str, Any]]:
  """A Wan-AI directory: no action modules, and image attention only where there is an image
  condition.
  """
  weights = random_weights(model, 'wan')
  published = model if model.image_condition else dataclasses.replace(model, image_dim=0)
  names = {name for row in dit.wan_rows(published) for name in row.names}
  weights['dit'] = {name: w for name, w in weights['dit'].items() if name in names}
  save(path, weights['dit'], 'diffusion_pytorch_model', shards=2)
  said = {
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
  (path / 'config.json').write_text(json.dumps(said))

  vae = 'Wan2.1_VAE.pth' if model.image_condition else 'Wan2.2_VAE.pth'
  save_pth(path / 'models_t5_umt5-xxl-enc-bf16.pth', weights['text'])
  save_pth(path / vae, weights['tokenizer'])
  if not with_image:
    del weights['image']
    return weights
  # The published file holds both halves of CLIP; the half that reads text is not used.
  both = weights['image'] | {'textual.head.weight': np.zeros((2, 3), np.float32)}
  save_pth(path / 'models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth', both)
  return weights
