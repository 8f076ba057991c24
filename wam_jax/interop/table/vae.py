"""Weights of the video VAEs. Sources: DreamZero checkpoint keys below `action_head.vae.model.`,
which are those of the Wan-AI files; Diffusers `AutoencoderKLWan`. Neither holds the mean and
standard deviation of the latents.
"""

from __future__ import annotations

from wam_jax import config as cfg
from wam_jax.interop.table.rows import Row
from wam_jax.models import vae_network

WAN = {
  'in': 'conv1',
  'norm': 'head.0',
  'out': 'head.2',
  'moments': 'conv1',
  'latents': 'conv2',
  'block_in': 'middle.0',
  'attention': 'middle.1',
  'block_out': 'middle.2',
  'norm1': 'residual.0',
  'conv1': 'residual.2',
  'norm2': 'residual.3',
  'conv2': 'residual.6',
  'shortcut': 'shortcut',
}
DIFFUSERS = {
  'in': 'conv_in',
  'norm': 'norm_out',
  'out': 'conv_out',
  'moments': 'quant_conv',
  'latents': 'post_quant_conv',
  'block_in': 'mid_block.resnets.0',
  'attention': 'mid_block.attentions.0',
  'block_out': 'mid_block.resnets.1',
  'norm1': 'norm1',
  'conv1': 'conv1',
  'norm2': 'norm2',
  'conv2': 'conv2',
  'shortcut': 'conv_shortcut',
}
LAYOUTS = {'wan': WAN, 'diffusers': DIFFUSERS}


def rows(c: cfg.TokenizerConfig, layout: str) -> list[Row]:
  """One row per weight of `WanVAE.params`.

  Args:
    layout: of the PyTorch names, 'wan' or 'diffusers'.
  """
  word, Z, pixels = LAYOUTS[layout], c.channels, 3 * vae_network.patch(c) ** 2
  table = [
    *_conv(word['moments'], 'encoder/moments', 2 * Z, 2 * Z, (1, 1, 1)),
    *_conv(word['latents'], 'decoder/latents', Z, Z, (1, 1, 1)),
  ]
  for side, stages, inputs, outputs in (
    ('encoder', vae_network.encoder_stages(c), pixels, 2 * Z),
    ('decoder', vae_network.decoder_stages(c), Z, pixels),
  ):
    top, bottom = stages[0].inputs, stages[-1].features
    table += [
      *_conv(f'{side}.{word["in"]}', f'{side}/in', inputs, top, (3, 3, 3)),
      _norm(f'{side}.{word["norm"]}', f'{side}/norm', bottom),
      *_conv(f'{side}.{word["out"]}', f'{side}/out', bottom, outputs, (3, 3, 3)),
      *_middle(side, bottom if side == 'encoder' else top, word),
    ]
    for i, stage in enumerate(stages):
      names = _stage_names(c, layout, side, i, stage.blocks)
      for j, name in enumerate(names[:-1]):
        table += _block(
          name,
          f'{side}/stages_{i}/blocks_{j}',
          stage.features if j else stage.inputs,
          stage.features,
          word,
        )
      if stage.resampled:
        table += _resample(names[-1], f'{side}/stages_{i}/resample', side, stage)
  return table


def _stage_names(c, layout, side, stage, blocks):
  """Names of the residual blocks of a stage, then of its resampling."""
  way = 'down' if side == 'encoder' else 'up'
  flat = [stage * (blocks + 1) + j for j in range(blocks + 1)]
  if layout == 'wan' and c.kind == 'wan2_1':
    return [f'{side}.{way}samples.{n}' for n in flat]
  if layout == 'wan':
    return [f'{side}.{way}samples.{stage}.{way}samples.{j}' for j in range(blocks + 1)]
  if c.kind == 'wan2_1' and side == 'encoder':
    return [f'encoder.down_blocks.{n}' for n in flat]
  resample = f'{way}sampler' if c.kind == 'wan2_2' else 'upsamplers.0'
  return [
    f'{side}.{way}_blocks.{stage}.{name}'
    for name in [*(f'resnets.{j}' for j in range(blocks)), resample]
  ]


def _middle(side, width, word):
  name = f'{side}.{word["attention"]}'
  table = [
    _norm(f'{name}.norm', f'{side}/middle/attention/norm', width, '1 1'),
    *_conv(f'{name}.to_qkv', f'{side}/middle/attention/qkv', width, 3 * width, (1, 1, 1), '1 1'),
    *_conv(f'{name}.proj', f'{side}/middle/attention/out', width, width, (1, 1, 1), '1 1'),
  ]
  for block in ('block_in', 'block_out'):
    table += _block(f'{side}.{word[block]}', f'{side}/middle/{block}', width, width, word)
  return table


def _block(torch, path, inputs, features, word):
  table = [
    _norm(f'{torch}.{word["norm1"]}', f'{path}/norm1', inputs),
    *_conv(f'{torch}.{word["conv1"]}', f'{path}/conv1', inputs, features, (3, 3, 3)),
    _norm(f'{torch}.{word["norm2"]}', f'{path}/norm2', features),
    *_conv(f'{torch}.{word["conv2"]}', f'{path}/conv2', features, features, (3, 3, 3)),
  ]
  if inputs != features:
    table += _conv(f'{torch}.{word["shortcut"]}', f'{path}/shortcut', inputs, features, (1, 1, 1))
  return table


def _resample(torch, path, side, stage):
  width = stage.features
  table = _conv(f'{torch}.resample.1', f'{path}/space', width, stage.resampled, (1, 3, 3), 'h w')
  if stage.time:
    table += _conv(
      f'{torch}.time_conv',
      f'{path}/time',
      width,
      width if side == 'encoder' else 2 * width,
      (3, 1, 1),
    )
  return table


def _conv(torch, path, inputs, outputs, kernel, axes='t h w'):
  """`axes`: of the PyTorch kernel after its channels; an axis of size 1 it lacks is one of ours."""
  ours = ' '.join(axis if axis in axes.split() else '1' for axis in ['t', 'h', 'w'])
  sizes = dict(o=outputs, i=inputs) | dict(zip('thw', kernel))
  return [
    Row(f'{torch}.weight', f'{path}/w', f'o i {axes} -> {ours} i o', sizes),
    Row(f'{torch}.bias', f'{path}/b', 'o -> o', sizes),
  ]


def _norm(torch, path, width, ones='1 1 1'):
  return Row(f'{torch}.gamma', f'{path}/scale', f'c {ones} -> c', dict(c=width))
