"""`config.json` of an official DreamZero directory: how its policy head is built, both ways.

Source: DreamZero `VLAConfig`, `WANPolicyHeadConfig`, `CausalWanModel` and the launch scripts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from wam_jax import config as cfg
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import sizes
from wam_jax.interop.files import jsonfile

CONFIG = 'config.json'

# Where their classes are.
_MODULES = 'groot.vla.model.dreamzero.modules.'
_HEAD = 'groot.vla.model.dreamzero.action_head.wan_flow_matching_action_tf.'
_BACKBONE = 'groot.vla.model.dreamzero.backbone.identity.IdentityBackbone'

# By part, the settings of its class.
_PARTS = {
  'dit': 'diffusion_model_cfg',
  'text': 'text_encoder_cfg',
  'image': 'image_encoder_cfg',
  'tokenizer': 'vae_cfg',
}
# By part, the setting that says where it is loaded from; None says nowhere.
_BASES = {
  'dit': 'diffusion_model_pretrained_path',
  'text': 'text_encoder_pretrained_path',
  'image': 'image_encoder_pretrained_path',
  'tokenizer': 'vae_pretrained_path',
}
# What the official code downloads where no path is recorded.
_DOWNLOADED_2_1 = 'Wan2.1-I2V-14B-480P'
_DOWNLOADED_2_2 = 'Wan2.2-TI2V-5B'
_LATENTS_2_2 = 48  # Channels of the latents of Wan2.2's VAE.
# Frames of so many tokens are those of the 5B model, and come to this size unless another is said.
_RESIZED_TOKENS = (50, 55)
_RESIZED = (176, 320)


def read_head(directory: epath.Path) -> dict[str, Any]:
  """The settings of the policy head.

  Raises:
    ValueError: config.json is missing or not that of a DreamZero checkpoint.
  """
  head = get_head(jsonfile.read(directory / CONFIG))
  if not isinstance(head.get(_PARTS['dit']), dict):
    raise ValueError(
      f'{directory / CONFIG} has no action_head_cfg.config.diffusion_model_cfg; it is not of a '
      'DreamZero checkpoint.'
    )
  return head


def get_head(config: Mapping[str, Any]) -> dict[str, Any]:
  """The settings in the content of config.json, {} where it has none."""
  head = config.get('action_head_cfg')
  inner = head.get('config', head) if isinstance(head, dict) else None
  return inner if isinstance(inner, dict) else {}


def infer_model(
  head: Mapping[str, Any], shapes: Mapping[str, sizes.Shapes], bfloat16: bool
) -> cfg.ModelConfig:
  """The whole model.

  Args:
    head: the settings of the policy head.
    shapes: the shapes of the weights, by part.
    bfloat16: whether it computes in bfloat16, else in float32.
  Raises:
    ValueError: the head has settings that nothing here does.
  """
  said = {part: head.get(key) or {} for part, key in _PARTS.items()}
  dtype = 'bfloat16' if bfloat16 else 'float32'

  has_image_weights = any(name.startswith('img_emb.') for name in shapes['dit'])
  image = cfg.ImageConfig()
  if has_image_weights or said['dit'].get('model_type') != 't2v':
    image = sizes.infer_image(said['image'], shapes['image'], dtype)
  model = sizes.infer_model(
    said['dit'],
    shapes['dit'],
    num_frames=head.get('num_frames', 33),
    tokenizer=sizes.infer_tokenizer(
      said['tokenizer'],
      shapes['tokenizer'],
      resize=_find_resize(head),
      dtype=dtype,
    ),
    text=sizes.infer_text(said['text'], shapes['text'], said['dit'].get('text_len'), dtype),
    image=image,
  )
  _check_head(head, model)
  return model


def _find_resize(head: Mapping[str, Any]) -> tuple[int, ...]:
  """Rows and columns that frames are resized to before they are encoded; () for as they are."""
  said = (head.get('target_video_height'), head.get('target_video_width'))
  if all(said):
    return said
  # Where nothing is said, the official code decides by the number of tokens of a frame.
  tokens = (head.get(_PARTS['dit']) or {}).get('frame_seqlen')
  return _RESIZED if tokens in _RESIZED_TOKENS else ()


def _check_head(head: Mapping[str, Any], model: cfg.ModelConfig) -> None:
  """Raises ValueError for settings that change numbers and have no counterpart here."""
  transformer = head.get(_PARTS['dit']) or {}
  problems = []
  states = transformer.get('num_state_per_block', 1)
  if states != 1:
    problems.append(
      f'num_state_per_block={states}: neither data nor policy have more than 1 state a chunk here'
    )
  if head.get('tiled'):
    problems.append('tiled=true: frames are encoded whole here, as with false')
  beta = head.get('video_noise_beta_beta', 1.0)
  if head.get('decouple_video_action_noise') and beta != 1:
    problems.append(f'video_noise_beta_beta={beta}: the law of video noise is Beta(alpha, 1) here')

  frames = head.get('num_frames', model.camera_frames(model.max_chunks))
  needed = model.camera_frames(model.max_chunks)
  if model.image_condition and frames < needed:
    covered = (frames - 1) // model.camera_frames_per_chunk
    problems.append(
      f'num_frames={frames}: the image condition of {model.max_chunks} chunks '
      f'(max_chunk_size) has {needed} frames; with fewer the official code uses the last again. '
      f'Where training windows had {covered} chunks, max_chunk_size is {covered}'
    )
  errors.fail(
    'The policy head has settings that nothing here does:',
    problems,
    'config.json says them. Its weights would not act here as they do there.',
  )


def list_notes(head: Mapping[str, Any]) -> tuple[str, ...]:
  """What the settings leave open, and how they are understood here."""
  notes = []
  if 'tiled' not in head:
    notes.append(
      'config.json does not say `tiled`, which the official class takes for true: it would encode '
      'frames of more than 34 x 34 latents in tiles; here they are encoded whole, as the released '
      'configs say'
    )
  said = (head.get('target_video_height'), head.get('target_video_width'))
  if _find_resize(head) and not all(said):
    rows, columns = _find_resize(head)
    notes.append(
      f'config.json says no size for frames; as of all models with such a frame_seqlen, the '
      f'official code resizes them to {rows} x {columns}, and so it is here'
    )
  return tuple(notes)


def make_flow_and_sample(head: Mapping[str, Any]) -> dict[str, Any]:
  """Fields `flow` and `sample` of a TrainConfig that train and act as the head does."""
  flow = foreign.FLOW
  # In the order in which the official code asks.
  if head.get('decouple_video_action_noise'):
    beta = float(head.get('video_noise_beta_alpha', 3.0))
    flow = dataclasses.replace(flow, schedule='decoupled', video_beta=beta)
  elif head.get('use_high_noise_emphasis'):
    beta = float(head.get('high_noise_beta_alpha', 3.0))
    flow = dataclasses.replace(flow, schedule='coupled_beta', video_beta=beta)
  sample = foreign.SAMPLE
  if head.get('decouple_inference_noise'):
    final = float(head.get('video_inference_final_noise', 0.8))
    sample = dataclasses.replace(sample, mode='flash', video_final_sigma=final)
  return {'flow': flow, 'sample': sample}


def name_base(head: Mapping[str, Any], conf: Mapping[str, Any]) -> str:
  """The name of the directory with the weights that a LoRA checkpoint leaves out.

  Args:
    head: the settings of the policy head.
    conf: the content of conf.yaml.
  """
  transformer = head.get(_PARTS['dit']) or {}
  path = conf.get('pretrained_model_path') or transformer.get(_BASES['dit'])
  if path:
    return str(path).rstrip('/').rsplit('/', 1)[-1]
  vae = head.get(_PARTS['tokenizer']) or {}
  return _DOWNLOADED_2_2 if vae.get('z_dim') == _LATENTS_2_2 else _DOWNLOADED_2_1


def make_config(
  config: cfg.TrainConfig,
  tokens_per_frame: int,
  paths: Mapping[str, str],
  torch_dtype: str = 'bfloat16',
) -> dict[str, Any]:
  """The content of config.json of an export of the whole model.

  Args:
    config: of the run.
    tokens_per_frame: tokens of a latent frame.
    paths: by part, the file that the server loads before it puts the weights of the export in its
      place; without one it asks the hub.
    torch_dtype: of the weights.
  """
  c = config.model
  head = {
    '_target_': f'{_HEAD}WANPolicyHeadConfig',
    '_recursive_': False,
    'model_dtype': 'float32',
    # Frames are encoded whole, so that the tiles mean nothing.
    'tiled': False,
    'tile_size_height': 34,
    'tile_size_width': 34,
    'tile_stride_height': 18,
    'tile_stride_width': 16,
    'num_frames': c.camera_frames(c.max_chunks),
    'num_frame_per_block': c.frames_per_chunk,
    # Everything is in the files: no adapters, and no base to be loaded before.
    'lora_rank': 4,
    'lora_alpha': 4,
    'lora_target_modules': 'q,k,v,o,ffn.0,ffn.2',
    'init_lora_weights': 'kaiming',
    'train_architecture': 'full',
    'skip_component_loading': True,
    'defer_lora_injection': False,
    'use_gradient_checkpointing': True,
    # As the released configs have them; this `hidden_size` is not that of any module here.
    'add_pos_embed': True,
    'hidden_size': 64,
    'input_embedding_dim': 1536,
    'backbone_embedding_dim': 0,
    'max_state_dim': c.proprio_dim,
    'max_action_dim': c.action_dim,
    'action_dim': c.action_dim,
    'action_horizon': c.actions_per_chunk,
    'num_inference_timesteps': 4,
    'noise_beta_alpha': 1.5,
    'noise_beta_beta': 1.0,
    'noise_s': 0.999,
    'num_timestep_buckets': 1000,
    'use_high_noise_emphasis': config.flow.schedule == 'coupled_beta',
    'high_noise_beta_alpha': config.flow.video_beta,
    'decouple_video_action_noise': config.flow.schedule in ('flash', 'decoupled'),
    'video_noise_beta_alpha': config.flow.video_beta,
    'video_noise_beta_beta': 1.0,
    'decouple_inference_noise': config.sample.mode == 'flash',
    'video_inference_final_noise': config.sample.video_final_sigma,
    'tune_projector': True,
    'tune_diffusion_model': True,
    _PARTS['dit']: _make_transformer(c, tokens_per_frame),
    _PARTS['text']: _make_text(c.text),
    _PARTS['image']: _make_image(c.image),
    _PARTS['tokenizer']: _make_vae(c.tokenizer),
  }
  for part, path in paths.items():
    if part in _BASES:
      head[_PARTS[part]][_BASES[part]] = path
  if c.tokenizer.resize:
    head['target_video_height'], head['target_video_width'] = c.tokenizer.resize
  return {
    'architectures': ['VLA'],
    'model_type': 'vla',
    'torch_dtype': torch_dtype,
    'model_dtype': 'float32',
    'compute_dtype': 'float32',
    'hidden_size': 0,
    'action_horizon': c.actions_per_chunk,
    'action_dim': c.action_dim,
    'backbone_cfg': {'_target_': _BACKBONE},
    'action_head_cfg': {
      '_target_': f'{_HEAD}WANPolicyHead',
      '_convert_': 'object',
      'config': head,
    },
  }


def _make_transformer(c: cfg.ModelConfig, tokens_per_frame: int) -> dict[str, Any]:
  # 'i2v' has the first frame beside its latents, 'ti2v' attends to it alone.
  model_type = 'ti2v' if c.image_dim else 't2v'
  if c.image_condition:
    model_type = 'i2v'
  return {
    '_target_': f'{_MODULES}wan_video_dit_action_casual_chunk.CausalWanModel',
    '_convert_': 'object',
    _BASES['dit']: None,
    'model_type': model_type,
    'patch_size': [1, c.patch, c.patch],
    'frame_seqlen': tokens_per_frame,
    'text_len': c.text.length,
    'in_dim': c.in_channels,
    'dim': c.dim,
    'ffn_dim': c.mlp_dim,
    'freq_dim': c.freq_dim,
    'text_dim': c.text.dim,
    'out_dim': c.tokenizer.channels,
    'num_heads': c.num_heads,
    'num_layers': c.num_layers,
    'max_chunk_size': c.max_chunks if c.history_rule == 'chunk' else -1,
    'eps': c.eps,
    'num_frame_per_block': c.frames_per_chunk,
    'action_dim': c.action_dim,
    'max_state_dim': c.proprio_dim,
    'hidden_size': c.action_hidden,
    'num_action_per_block': c.actions_per_chunk,
    'num_state_per_block': 1,
    'concat_first_frame_latent': c.image_condition,
  }


def _make_text(c: cfg.TextConfig) -> dict[str, Any]:
  return {
    '_target_': f'{_MODULES}wan_video_text_encoder.WanTextEncoder',
    '_convert_': 'object',
    _BASES['text']: None,
    'vocab': c.vocab,
    'dim': c.dim,
    'dim_attn': c.attention_dim,
    'dim_ffn': c.mlp_dim,
    'num_heads': c.heads,
    'num_layers': c.layers,
    'num_buckets': c.buckets,
  }


def _make_image(c: cfg.ImageConfig) -> dict[str, Any]:
  image = {
    '_target_': f'{_MODULES}wan_video_image_encoder.WanImageEncoder',
    '_convert_': 'object',
    _BASES['image']: None,
  }
  # A word of ours: the official class takes no sizes, and no shape tells the heads.
  if c.kind == 'clip' and c.heads != sizes.IMAGE_HEADS:
    image['num_heads'] = c.heads
  return image


def _make_vae(c: cfg.TokenizerConfig) -> dict[str, Any]:
  is_2_2 = c.kind == 'wan2_2'
  kind = 'WanVideoVAE38' if is_2_2 else 'WanVideoVAE'
  vae = {
    '_target_': f'{_MODULES}wan_video_vae.{kind}',
    '_convert_': 'object',
    'z_dim': c.channels,
    _BASES['tokenizer']: None,
  }
  if is_2_2:
    vae['dim'] = c.vae.encoder_dim
  return vae
