"""Weights of the video VAEs. Sources: DreamZero checkpoint keys below `action_head.vae.model.`,
which are those of the Wan-AI files; Diffusers `AutoencoderKLWan`. Neither holds the mean and
standard deviation of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    c: the sizes of the VAE.
    layout: whose names the PyTorch weights have, 'wan' or 'diffusers'.
  """
  words = LAYOUTS[layout]
  channels = c.channels
  table = [
    *_list_conv(words['moments'], 'encoder/moments', 2 * channels, 2 * channels, (1, 1, 1)),
    *_list_conv(words['latents'], 'decoder/latents', channels, channels, (1, 1, 1)),
  ]
  pixels = 3 * vae_network.patch(c) ** 2
  encoder = vae_network.encoder_stages(c)
  table += _list_ends(words, 'encoder', encoder, inputs=pixels, outputs=2 * channels)
  # The middle is where the features are smallest in time and space.
  table += _list_middle(words, 'encoder', encoder[-1].features)
  table += _list_stages(c, layout, 'encoder', encoder)
  decoder = vae_network.decoder_stages(c)
  table += _list_ends(words, 'decoder', decoder, inputs=channels, outputs=pixels)
  table += _list_middle(words, 'decoder', decoder[0].inputs)
  table += _list_stages(c, layout, 'decoder', decoder)
  return table


def _list_ends(
  words: Mapping[str, str],
  side: str,
  stages: Sequence[vae_network.Stage],
  inputs: int,
  outputs: int,
) -> list[Row]:
  """What stands before and after the stages of one side."""
  top = stages[0].inputs
  bottom = stages[-1].features
  return [
    *_list_conv(f'{side}.{words["in"]}', f'{side}/in', inputs, top, (3, 3, 3)),
    _make_norm(f'{side}.{words["norm"]}', f'{side}/norm', bottom),
    *_list_conv(f'{side}.{words["out"]}', f'{side}/out', bottom, outputs, (3, 3, 3)),
  ]


def _list_middle(words: Mapping[str, str], side: str, width: int) -> list[Row]:
  """Attention within a frame, between two blocks; its kernels have no axis of time."""
  name = f'{side}.{words["attention"]}'
  path = f'{side}/middle/attention'
  table = [
    _make_norm(f'{name}.norm', f'{path}/norm', width, ones='1 1'),
    *_list_conv(f'{name}.to_qkv', f'{path}/qkv', width, 3 * width, (1, 1, 1), axes='1 1'),
    *_list_conv(f'{name}.proj', f'{path}/out', width, width, (1, 1, 1), axes='1 1'),
  ]
  for block in ('block_in', 'block_out'):
    table += _list_block(words, f'{side}.{words[block]}', f'{side}/middle/{block}', width, width)
  return table


def _list_stages(
  c: cfg.TokenizerConfig, layout: str, side: str, stages: Sequence[vae_network.Stage]
) -> list[Row]:
  """The residual blocks of each stage and its resampling."""
  table = []
  for i, stage in enumerate(stages):
    *blocks, resample = _name_stage(c, layout, side, i, stage.blocks)
    inputs = stage.inputs
    for j, name in enumerate(blocks):
      path = f'{side}/stages_{i}/blocks_{j}'
      table += _list_block(LAYOUTS[layout], name, path, inputs, stage.features)
      inputs = stage.features
    if stage.resampled:
      table += _list_resample(resample, f'{side}/stages_{i}/resample', side, stage)
  return table


def _name_stage(
  c: cfg.TokenizerConfig, layout: str, side: str, stage: int, blocks: int
) -> list[str]:
  """Names of the residual blocks of a stage, then of its resampling.

  Wan2.1 counts the modules of all stages in one list, the others within each stage.
  """
  way = 'down' if side == 'encoder' else 'up'
  # Every stage counts as one with resampling; the last has none, and so leaves its number unused.
  within = range(blocks + 1)
  through = [stage * (blocks + 1) + j for j in within]
  if layout == 'wan':
    if c.kind == 'wan2_1':
      return [f'{side}.{way}samples.{n}' for n in through]
    return [f'{side}.{way}samples.{stage}.{way}samples.{j}' for j in within]
  if c.kind == 'wan2_1' and side == 'encoder':
    return [f'encoder.down_blocks.{n}' for n in through]
  prefix = f'{side}.{way}_blocks.{stage}'
  resample = f'{way}sampler' if c.kind == 'wan2_2' else 'upsamplers.0'
  return [*(f'{prefix}.resnets.{j}' for j in range(blocks)), f'{prefix}.{resample}']


def _list_block(
  words: Mapping[str, str], torch: str, path: str, inputs: int, features: int
) -> list[Row]:
  """A residual block; with a shortcut where the number of features changes."""
  table = [
    _make_norm(f'{torch}.{words["norm1"]}', f'{path}/norm1', inputs),
    *_list_conv(f'{torch}.{words["conv1"]}', f'{path}/conv1', inputs, features, (3, 3, 3)),
    _make_norm(f'{torch}.{words["norm2"]}', f'{path}/norm2', features),
    *_list_conv(f'{torch}.{words["conv2"]}', f'{path}/conv2', features, features, (3, 3, 3)),
  ]
  if inputs != features:
    name = f'{torch}.{words["shortcut"]}'
    table += _list_conv(name, f'{path}/shortcut', inputs, features, (1, 1, 1))
  return table


def _list_resample(torch: str, path: str, side: str, stage: vae_network.Stage) -> list[Row]:
  """Half or twice the size in space, and in time where the stage changes that."""
  width = stage.features
  table = _list_conv(
    f'{torch}.resample.1', f'{path}/space', width, stage.resampled, (1, 3, 3), axes='h w'
  )
  if stage.time:
    # The decoder makes two frames of one, side by side in the features.
    outputs = width if side == 'encoder' else 2 * width
    table += _list_conv(f'{torch}.time_conv', f'{path}/time', width, outputs, (3, 1, 1))
  return table


def _list_conv(
  torch: str,
  path: str,
  inputs: int,
  outputs: int,
  kernel: tuple[int, int, int],
  *,
  axes: str = 't h w',
) -> list[Row]:
  """Kernel and bias of a convolution.

  Args:
    torch: its PyTorch name.
    path: ours.
    inputs: the features that go in.
    outputs: the features that come out.
    kernel: the sizes of our kernel in time, rows and columns.
    axes: the axes of the PyTorch kernel after its channels; one that it lacks has size 1 in ours.
  """
  ours = [axis if axis in axes.split() else '1' for axis in ('t', 'h', 'w')]
  time, rows, columns = kernel
  sizes = {'o': outputs, 'i': inputs, 't': time, 'h': rows, 'w': columns}
  return [
    Row(f'{torch}.weight', f'{path}/w', f'o i {axes} -> {" ".join(ours)} i o', sizes),
    Row(f'{torch}.bias', f'{path}/b', 'o -> o', sizes),
  ]


def _make_norm(torch: str, path: str, width: int, ones: str = '1 1 1') -> Row:
  """The scale of a norm; in PyTorch it has axes of size 1 for what it is multiplied with."""
  return Row(f'{torch}.gamma', f'{path}/scale', f'c {ones} -> c', {'c': width})
