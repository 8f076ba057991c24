"""DreamZero directories: every bit there and back, adapters on their base, and what is refused."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from etils import epath

from tests.interop import conversions
from tests.interop import tiny
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import layouts

DIT = 'action_head.model.'
WRAPPED = 'action_head.model.base_model.model.'  # As peft names what it adapts.
BASE = 'Wan2.1-I2V-14B-480P'  # What the official code loads when no path is recorded.


@pytest.mark.parametrize(
  ('model', 'shards', 'dtype'),
  [(tiny.I2V, 3, tiny.BF16), (tiny.TI2V, 1, tiny.BF16), (tiny.I2V, 1, np.float32)],
)
def test_import_then_export_is_bit_identical(tmp_path, model, shards, dtype):
  weights = tiny.prefixed(tiny.random_weights(model, 'dreamzero', dtype))
  tiny.write_dreamzero(tmp_path / 'source', model, weights, shards)
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  # Shards of other sizes than came in.
  conversions.export_to(tmp_path / 'run', tmp_path / 'back', shard_bytes=20_000)
  assert len(list((tmp_path / 'back').glob('*.safetensors'))) > 10
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), weights)

  first = layouts.open_source(epath.Path(tmp_path / 'source'), foreign.Options())
  second = layouts.open_source(epath.Path(tmp_path / 'back'), foreign.Options())
  assert first.model == second.model == model
  assert first.fields == second.fields == {'flow': foreign.FLOW, 'sample': foreign.SAMPLE}
  assert robot_lib.to_metadata(first.read_robots()) == robot_lib.to_metadata(second.read_robots())


# Older and newer versions of peft, and what it saves itself.
@pytest.mark.parametrize(
  ('base_layer', 'default'), [(False, '.default'), (True, '.default'), (True, '')]
)
def test_adapters_within_a_whole_checkpoint_are_merged(tmp_path, base_layer, default):
  weights = tiny.prefixed(tiny.random_weights(tiny.I2V, 'dreamzero'))
  adapters, wrapped, merged = tiny.adapted(weights, base_layer=base_layer, default=default)
  # Two halves; in each layer 4 of either attention and 2 of the feed-forward network.
  assert len(adapters) == 2 * 10 * tiny.I2V.num_layers
  tiny.write_dreamzero(tmp_path / 'source', weights=wrapped | adapters)
  report = conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  assert report['adapters_merged'] == 30
  conversions.export_to(tmp_path / 'run', tmp_path / 'back')
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), merged)


@pytest.mark.parametrize(('layout', 'name'), [('wan', BASE), ('dreamzero', 'DreamZero-AgiBot')])
def test_adapters_alone_are_merged_into_their_base(tmp_path, layout, name):
  merged = tiny.write_lora(tmp_path, name, layout)
  base = tmp_path / name
  report = conversions.import_from(tmp_path / 'lora', tmp_path / 'run', base=epath.Path(base))
  assert (report['base'], report['fresh']) == (str(base), [])
  conversions.export_to(tmp_path / 'run', tmp_path / 'back')
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), merged)


def keep_as_it_is(weights):
  del weights


def shorten_a_bias(weights):
  weights[f'{WRAPPED}head.head.bias'] = np.zeros(3)


def narrow_adapters(weights):
  for name in list(weights):
    if name.endswith('q.lora_A.default.weight'):
      weights[name] = weights[name][..., :3]


def drop_half_an_adapter(weights):
  del weights[f'{WRAPPED}blocks.1.ffn.0.lora_B.default.weight']


@pytest.mark.parametrize(
  ('base', 'edit', 'message'),
  [
    (
      None,
      keep_as_it_is,
      r'only weights that were trained, 14 and 30 adapters \(LoRA\); '
      r".*'Wan2.1-I2V-14B-480P': pass --base",
    ),
    (
      'other',
      keep_as_it_is,
      r"was trained on 'Wan2.1-I2V-14B-480P', but --base=.*/other is something else",
    ),
    (
      BASE,
      shorten_a_bias,
      r'does not fit --source=.*\n  dit: head.head.bias is \[3\] here, \[64\] in the base',
    ),
    (
      BASE,
      narrow_adapters,
      r'adapters do not fit their base:\n  '
      r'.*cross_attn.q.weight \[32, 32\] has adapters A \[4, 3\] and B \[32, 4\]',
    ),
    (BASE, drop_half_an_adapter, 'blocks.1.ffn.0.weight has no lora_B'),
  ],
)
def test_wrong_base_of_adapters(tmp_path, base, edit, message):
  tiny.write_lora(tmp_path)
  (tmp_path / 'other').mkdir()
  conversions.edit_weights(tmp_path / 'lora', edit)
  given = base and epath.Path(tmp_path / base)
  with pytest.raises(ValueError, match=message):
    conversions.import_from(tmp_path / 'lora', tmp_path / 'run', base=given)
  assert not (tmp_path / 'run').exists()


def test_base_under_another_name_may_be_linked(tmp_path):
  # As in a cache of downloads, where a directory is called by its commit.
  tiny.write_lora(tmp_path)
  base = tmp_path / BASE
  base.rename(tmp_path / 'snapshot')
  base.symlink_to(tmp_path / 'snapshot')
  conversions.import_from(tmp_path / 'lora', tmp_path / 'run', base=epath.Path(base))


def test_base_of_a_whole_checkpoint_is_refused(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  with pytest.raises(ValueError, match='holds all its weights; leave out --base'):
    conversions.import_from(tmp_path / 'source', tmp_path / 'run', base=epath.Path(tmp_path))


def drop_a_layer(source: pathlib.Path) -> None:
  def edit(weights):
    for name in list(weights):
      if name.startswith(f'{DIT}blocks.1.'):
        del weights[name]

  conversions.edit_weights(source, edit)


def add_to_the_transformer(source: pathlib.Path) -> None:
  extra = {f'{DIT}extra': np.zeros(3, np.float32)}
  conversions.edit_weights(source, lambda weights: weights.update(extra))


def add_to_no_part(source: pathlib.Path) -> None:
  extra = {'other.x': np.zeros(3, np.float32)}
  conversions.edit_weights(source, lambda weights: weights.update(extra))


def shorten_a_weight(source: pathlib.Path) -> None:
  short = {f'{DIT}head.head.bias': np.zeros(3, np.float32)}
  conversions.edit_weights(source, lambda weights: weights.update(short))


def edit_head(source: pathlib.Path, **changes) -> None:
  """`changes` to the settings of the policy head."""

  def edit(content):
    content['action_head_cfg']['config'].update(changes)

  conversions.edit_json(source / 'config.json', edit)


def edit_transformer(source: pathlib.Path, **changes) -> None:
  """`changes` to the settings of the transformer in them."""

  def edit(content):
    content['action_head_cfg']['config']['diffusion_model_cfg'].update(changes)

  conversions.edit_json(source / 'config.json', edit)


def say_another_size(source: pathlib.Path) -> None:
  edit_transformer(source, ffn_dim=50)


def deny_the_image_encoder(source: pathlib.Path) -> None:
  # Of a model that takes no image, but with the encoder's own weights left behind.
  def edit(weights):
    for name in list(weights):
      if 'img' in name:
        del weights[name]

  conversions.edit_weights(source, edit)
  edit_transformer(source, model_type='t2v')


def say_heads_that_do_not_divide(source: pathlib.Path) -> None:
  edit_head(source, image_encoder_cfg={'num_heads': 5})


def cut_the_weights(source: pathlib.Path) -> None:
  file = source / 'model.safetensors'
  # One byte: lengths are checked, not only whether the header can be read.
  file.write_bytes(file.read_bytes()[:-1])


def remove_the_weights(source: pathlib.Path) -> None:
  (source / 'model.safetensors').unlink()


def remove_the_config(source: pathlib.Path) -> None:
  (source / 'config.json').unlink()


def cut_the_config(source: pathlib.Path) -> None:
  (source / 'config.json').write_text('{"action_head_cfg"')


def empty_the_config(source: pathlib.Path) -> None:
  (source / 'config.json').write_text('{"action_head_cfg": {}}')


def say_other_blocks(source: pathlib.Path) -> None:
  edit_transformer(source, qk_norm=False, out_dim=17, in_dim=35)


def say_what_nothing_here_does(source: pathlib.Path) -> None:
  edit_transformer(source, num_state_per_block=2, max_chunk_size=5)
  edit_head(source, tiled=True, decouple_video_action_noise=True, video_noise_beta_beta=2.0)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      drop_a_layer,
      r'does not hold the weights that its config asks for:\n'
      r'  dit: blocks.1.modulation is missing; expected \[1, 6, 32\]\n(.*\n){9}'
      r'  ... and 22 more\nCheck that the copy is whole',
    ),
    (add_to_the_transformer, r'dit: extra \[3\] is unexpected'),
    (add_to_no_part, r'belong to no part of a DreamZero model:\n  other.x \[3\]'),
    (shorten_a_weight, r'dit: head.head.bias is \[3\]; expected \[64\]'),
    (say_another_size, r'dit: blocks.0.ffn.0.weight is \[48, 32\]; expected \[50, 32\]'),
    (
      deny_the_image_encoder,
      'image: 45 weights are unexpected: the config asks for no such part',
    ),
    (
      say_heads_that_do_not_divide,
      'is 32 wide, which 5 heads do not divide; pass .* --image_heads',
    ),
    (cut_the_weights, 'model.safetensors is cut: '),
    (remove_the_weights, 'has neither model.safetensors nor'),
    (remove_the_config, 'is in no known layout. .* it holds experiment_cfg, model'),
    (cut_the_config, 'config.json is not JSON'),
    (empty_the_config, 'has no action_head_cfg.config.diffusion_model_cfg'),
    (
      say_other_blocks,
      r'not supported:\n  in_dim=35 .*\n  out_dim=17 .*\n  qk_norm=False',
    ),
    (
      say_what_nothing_here_does,
      r'settings that nothing here does:\n  num_state_per_block=2: .*\n  tiled=true: .*\n'
      r'  video_noise_beta_beta=2.0: .*\n  num_frames=33: the image condition of 5 chunks .* has '
      r'41 frames; .* had 4 chunks, max_chunk_size is 4\nconfig.json says',
    ),
  ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, damage, message):
  conversions.assert_refused(tmp_path, damage, message)
