"""Checkpoints in and out: every bit, every config, every robot; and what is refused."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
import yaml
from etils import epath

from tests import programs
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import sharding
from wam_jax import train_step
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.interop import exporting
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import inspection
from wam_jax.interop import layouts
from wam_jax.interop import lazy
from wam_jax.interop import own as own_lib
from wam_jax.interop import sizes
from wam_jax.interop.dreamzero import config as dreamzero_config
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.dreamzero import robots as dreamzero_robots
from wam_jax.interop.files import orbax
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows as rows_lib
from wam_jax.interop.table import text
from wam_jax.interop.table import vae
from wam_jax.models import encoders
from wam_jax.models import tokenizer


def import_from(source, target, dtype='keep', statistics=True, vocabulary=None, **options):
  opened = layouts.open_source(epath.Path(source), foreign.Options(**options))
  return importing.import_checkpoint(opened, pathlib.Path(target), dtype, statistics, vocabulary)


def export_to(workdir, target, **options):
  own = own_lib.open_workdir(pathlib.Path(workdir), None)
  return exporting.export_checkpoint(own, pathlib.Path(target), exporting.Options(**options))


def assert_same_bits(got, want):
  assert got.keys() == want.keys()
  for name, w in want.items():
    assert (got[name].dtype, got[name].shape) == (w.dtype, w.shape), name
    assert got[name].tobytes() == w.tobytes(), name


def write_run(workdir, config, params, frozen, robots, ema=True, step=3):
  """A checkpoint as training writes it: float32, and averages twice the weights."""
  to_f32 = lambda tree: jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.float32), tree)
  params = to_f32(params)
  averages = jax.tree.map(lambda x: 2 * x, params) if ema else None
  state = train_step.TrainState(
    step=jax.numpy.int32(step),
    params=params,
    ema_params=averages,
    opt_state={'count': jax.numpy.ones(1)},
    frozen=encoders.from_tree(to_f32(frozen), config.model),
  )
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    checkpoints.save(
      step, state, {}, {'config': cfg.to_dict(config), 'data': robot_lib.to_metadata(robots)}
    )
  return params


def trees(model, seed=0):
  """(parameters, frozen parameters, the weights they are) of a random model."""
  weights = tiny.random_weights(model, 'wan', np.float32, seed)
  tables = foreign.make_tables(model, 'wan')
  params = {part: rows_lib.to_params(tables[part], weights[part]) for part in weights}
  frozen = {part: {'params': params[part]} for part in params if part != 'dit'}
  return params['dit'], frozen, weights


def droid(ids=0, **changes):
  record = dataclasses.replace(embodiments.get('droid'), **changes)
  arrays = lambda width: {
    key: np.linspace(i, i + 1, width, dtype=np.float32)
    for i, key in enumerate(('min', 'q01', 'mean', 'std', 'q99', 'max'))
  }
  return robot_lib.Robot(
    ids,
    record,
    normalize.Statistics(
      normalize.Quantiles(**arrays(record.proprio_dim)),
      normalize.Quantiles(**arrays(record.action_dim)),
      5,
    ),
    True,
  )


@pytest.mark.parametrize(
  ('model', 'shards', 'dtype'),
  [(tiny.I2V, 3, tiny.BF16), (tiny.TI2V, 1, tiny.BF16), (tiny.I2V, 1, np.float32)],
)
def test_import_then_export_is_bit_identical(tmp_path, model, shards, dtype):
  weights = tiny.prefixed(tiny.random_weights(model, 'dreamzero', dtype))
  tiny.write_dreamzero(tmp_path / 'source', model, weights, shards)
  import_from(tmp_path / 'source', tmp_path / 'run')
  export_to(tmp_path / 'run', tmp_path / 'back', shard_bytes=20_000)
  assert len(list((tmp_path / 'back').glob('*.safetensors'))) > 10
  assert_same_bits(tiny.load(tmp_path / 'back'), weights)
  first, second = (
    layouts.open_source(epath.Path(tmp_path / name), foreign.Options())
    for name in ('source', 'back')
  )
  assert first.model == second.model == model
  assert first.fields == second.fields == dict(flow=foreign.FLOW, sample=foreign.SAMPLE)
  assert robot_lib.to_metadata(first.read_robots()) == robot_lib.to_metadata(second.read_robots())


def test_imported_checkpoint_is_what_training_and_serving_read(tmp_path):
  weights = tiny.write_dreamzero(tmp_path / 'source')
  (tmp_path / 'source' / 'tokenizer').mkdir()
  (tmp_path / 'source' / 'tokenizer' / 'spiece.model').write_bytes(b'pieces')
  import_from(tmp_path / 'source', tmp_path / 'run')
  config, params, frozen, data, step = checkpoint.load_for_inference(tmp_path / 'run')
  assert step == 0
  assert (
    dataclasses.replace(config.model, text=dataclasses.replace(config.model.text, tokenizer=''))
    == tiny.I2V
  )
  assert pathlib.Path(config.model.text.tokenizer).read_bytes() == b'pieces'
  assert json.loads((tmp_path / 'run/config.json').read_text()) == json.loads(
    json.dumps(cfg.to_dict(config))
  )
  mesh = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
  abstract = train_step.abstract_state(config, mesh, frozen)
  assert checkpoint.list_mismatches(abstract.params, params) == []
  tables = foreign.make_tables(tiny.I2V, 'wan')
  got = {
    'dit': params,
    'text': frozen.text.params,
    'image': frozen.image.params,
    'tokenizer': frozen.tokenizer.params,
  }
  for part, tree in got.items():
    prefix = dreamzero_layout.PREFIXES[part]
    of_part = {
      name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)
    }
    want = rows_lib.to_params(tables[part], of_part)
    assert jax.tree.structure(tree) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, tree, want)
    assert {x.dtype for x in jax.tree.leaves(tree)} == {tiny.BF16}
  assert list(robot_lib.from_metadata(data)) == ['droid']


@pytest.mark.parametrize('model', [presets.WAN2_1_I2V_14B, presets.WAN2_2_TI2V_5B])
def test_released_configs_are_recognised(model):
  shapes = {
    part: {name: row.torch_shape for row in table for name in row.names}
    for part, table in foreign.make_tables(model, 'dreamzero').items()
  }
  assert (
    dreamzero_config.infer_model(dreamzero_config.get_head(tiny.head(model)), shapes, bfloat16=True)
    == model
  )
  silent = {
    'diffusion_model_cfg': {'num_heads': model.num_heads, 'num_frame_per_block': 2},
    'target_video_height': 160,
    'target_video_width': 320,
  }
  silent = (
    silent if model.tokenizer.resize else {'diffusion_model_cfg': silent['diffusion_model_cfg']}
  )
  assert dreamzero_config.infer_model(silent, shapes, bfloat16=True) == model
  exported = dreamzero_config.make_config(cfg.TrainConfig(model=model), 880)
  assert (
    dreamzero_config.infer_model(dreamzero_config.get_head(exported), shapes, bfloat16=True)
    == model
  )


def assert_table_fits(table, golden):
  shapes = {name: w.shape for name, w in golden.below('w/').items()}
  assert rows_lib.list_mismatches(table, shapes) == []


def test_golden_dit_is_recognised_at_its_sizes(golden_dit):
  said, shapes = golden_dit.config, {name: w.shape for name, w in golden_dit.below('w/').items()}
  video = dataclasses.replace(presets.WAN2_1_I2V_14B.tokenizer, channels=said['out_dim'])
  text = dataclasses.replace(presets.WAN2_1_I2V_14B.text, dim=said['text_dim'])
  image = dataclasses.replace(presets.WAN2_1_I2V_14B.image, dim=said['image_embed_dim'])
  model = sizes.infer_model(said, shapes, 33, video, text, image)
  assert_table_fits(dit.rows(model), golden_dit)
  silent = {key: said[key] for key in ('num_heads', 'out_dim')}
  assert_table_fits(dit.rows(sizes.infer_model(silent, shapes, 33, video, text, image)), golden_dit)


def test_golden_vae21_is_recognised_at_its_sizes(golden_vae21):
  assert_vae_fits(golden_vae21, 'wan2_1')


def test_golden_vae22_is_recognised_at_its_sizes(golden_vae22):
  assert_vae_fits(golden_vae22, 'wan2_2')


def assert_vae_fits(golden, kind):
  shapes = {name: w.shape for name, w in golden.below('w/').items()}
  config = sizes.infer_tokenizer({}, shapes, (), 'float32')
  assert (config.kind, config.channels, config.vae.encoder_dim) == (
    kind,
    golden.config['z_dim'],
    golden.config['dim'],
  )
  assert_table_fits(vae.rows(config, 'wan'), golden)


def test_golden_umt5_is_recognised_at_its_sizes(golden_umt5):
  shapes = {name: w.shape for name, w in golden_umt5.below('w/').items()}
  config = sizes.infer_text({}, shapes, 8, 'float32')
  assert (config.heads, config.buckets) == (
    golden_umt5.config['num_heads'],
    golden_umt5.config['num_buckets'],
  )
  assert_table_fits(text.rows(config, 'wan', golden_umt5.config['shared_pos']), golden_umt5)


def test_statistics_and_record_come_from_the_checkpoint(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  (robot,) = layouts.open_source(epath.Path(tmp_path / 'source'), foreign.Options()).read_robots()
  shipped = embodiments.get('droid')
  norms = lambda slices: tuple(dataclasses.replace(s, norm='q99_reference') for s in slices)
  assert robot.record == dataclasses.replace(
    shipped, prompt=prompts.DROID, state=norms(shipped.state), action=norms(shipped.action)
  )
  assert robot.center_crop
  assert robot.id == 0
  stored = tiny.metadata()['oxe_droid']['statistics']
  for kind in ('state', 'action'):
    for key in normalize.ARRAYS:
      want = np.float32(stored[kind]['joint_position'][key] + stored[kind]['gripper_position'][key])
      np.testing.assert_array_equal(getattr(getattr(robot.statistics, kind), key), want)
  assert robot.statistics.state.norms == ('q99_reference',) * 8


def test_a_robot_that_is_not_shipped_gets_a_record_of_its_own(tmp_path):
  content, conf = tiny.metadata(), tiny.conf((48, 64))
  content['oxe_droid']['modalities']['action']['joint_position']['shape'] = [3]
  content['oxe_droid']['modalities']['state']['joint_position']['shape'] = [3]
  for kind in ('state', 'action'):
    of_key = content['oxe_droid']['statistics'][kind]['joint_position']
    of_key.update({key: numbers[:3] for key, numbers in of_key.items()})
  tiny.write_experiment(tmp_path, conf, content)
  (robot,) = dreamzero_robots.read_robots(epath.Path(tmp_path), tiny.I2V)
  record = robot.record
  assert (record.name, record.composite, record.proprio_dim) == ('oxe_droid', (96, 128), 4)
  assert (record.control_hz, record.video_fps, record.steps_per_chunk) == (15, 5, 24)
  assert record.views[2] == embodiments.View('wrist_image_left', 0, 0, 48, 128, repeat=2)
  assert record.reference_columns == (0, 1, 2, -1)
  again = dreamzero_robots._describe('oxe_droid', robot, tiny.I2V).record(8)
  assert dataclasses.replace(again, language=record.language) == record


@pytest.mark.parametrize(
  ('base_layer', 'default'), [(False, '.default'), (True, '.default'), (True, '')]
)
def test_adapters_within_a_whole_checkpoint_are_merged(tmp_path, base_layer, default):
  weights = tiny.prefixed(tiny.random_weights(tiny.I2V, 'dreamzero'))
  adapters, wrapped, merged = tiny.adapted(weights, base_layer=base_layer, default=default)
  assert len(adapters) == 2 * 10 * tiny.I2V.num_layers
  tiny.write_dreamzero(tmp_path / 'source', weights=wrapped | adapters)
  report = import_from(tmp_path / 'source', tmp_path / 'run')
  assert report['adapters_merged'] == 30
  export_to(tmp_path / 'run', tmp_path / 'back')
  assert_same_bits(tiny.load(tmp_path / 'back'), merged)


def write_lora(tmp_path, base='Wan2.1-I2V-14B-480P', layout='wan'):
  """A checkpoint of adapters and action modules only, its base, and what both make."""
  weights = tiny.random_weights(tiny.I2V, 'dreamzero')
  adapters, _, merged = tiny.adapted(tiny.prefixed(weights))
  tiny.write_dreamzero(
    tmp_path / 'lora', weights=tiny.trained_only(tiny.prefixed(weights), adapters)
  )
  conf = tiny.conf() | {'save_lora_only': True}
  if layout == 'wan':
    tiny.write_wan(tmp_path / base, tiny.I2V)
  else:
    conf['pretrained_model_path'] = f'./checkpoints/{base}'
    tiny.write_dreamzero(tmp_path / base, weights=tiny.prefixed(weights), shards=2)
  tiny.write_experiment(tmp_path / 'lora', conf, tiny.metadata())
  return merged


@pytest.mark.parametrize('layout', ['wan', 'dreamzero'])
def test_adapters_alone_are_merged_into_their_base(tmp_path, layout):
  base = {'wan': 'Wan2.1-I2V-14B-480P', 'dreamzero': 'DreamZero-AgiBot'}[layout]
  merged = write_lora(tmp_path, base, layout)
  report = import_from(tmp_path / 'lora', tmp_path / 'run', base=epath.Path(tmp_path / base))
  assert (report['base'], report['fresh']) == (str(tmp_path / base), [])
  export_to(tmp_path / 'run', tmp_path / 'back')
  assert_same_bits(tiny.load(tmp_path / 'back'), merged)


def rewrap(tmp_path, change):
  """`change` on the arrays of the LoRA checkpoint."""
  weights = tiny.load(tmp_path / 'lora')
  change(weights)
  tiny.save(tmp_path / 'lora', weights, 'model')


@pytest.mark.parametrize(
  ('base', 'change', 'message'),
  [
    (
      None,
      None,
      r"only weights that were trained, 14 and 30 adapters \(LoRA\); .*'Wan2.1-I2V-14B-480P': pass --base",
    ),
    ('other', None, r"was trained on 'Wan2.1-I2V-14B-480P', but --base=.*/other is something else"),
    (
      'Wan2.1-I2V-14B-480P',
      lambda w: w.update({'action_head.model.base_model.model.head.head.bias': np.zeros(3)}),
      r'does not fit --source=.*\n  dit: head.head.bias is \[3\] here, \[64\] in the base',
    ),
    (
      'Wan2.1-I2V-14B-480P',
      lambda w: [
        w.update({n: w[n][..., :3]}) for n in list(w) if n.endswith('q.lora_A.default.weight')
      ],
      r'adapters do not fit their base:\n  .*cross_attn.q.weight \[32, 32\] has adapters A \[4, 3\] and B \[32, 4\]',
    ),
    (
      'Wan2.1-I2V-14B-480P',
      lambda w: w.pop('action_head.model.base_model.model.blocks.1.ffn.0.lora_B.default.weight'),
      'blocks.1.ffn.0.weight has no lora_B',
    ),
  ],
)
def test_wrong_base_of_adapters(tmp_path, base, change, message):
  write_lora(tmp_path)
  (tmp_path / 'other').mkdir()
  if change:
    rewrap(tmp_path, change)
  with pytest.raises(ValueError, match=message):
    import_from(tmp_path / 'lora', tmp_path / 'run', base=base and epath.Path(tmp_path / base))
  assert not (tmp_path / 'run').exists()


def test_base_under_another_name_may_be_linked(tmp_path):
  write_lora(tmp_path)
  (tmp_path / 'Wan2.1-I2V-14B-480P').rename(tmp_path / 'snapshot')
  (tmp_path / 'Wan2.1-I2V-14B-480P').symlink_to(tmp_path / 'snapshot')
  import_from(
    tmp_path / 'lora', tmp_path / 'run', base=epath.Path(tmp_path / 'Wan2.1-I2V-14B-480P')
  )


def test_base_of_a_whole_checkpoint_is_refused(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  with pytest.raises(ValueError, match='holds all its weights; leave out --base'):
    import_from(tmp_path / 'source', tmp_path / 'run', base=epath.Path(tmp_path))


@pytest.mark.parametrize(
  ('model', 'with_image'), [(tiny.I2V, True), (tiny.TI2V, True), (tiny.TI2V, False)]
)
def test_wan_originals_get_new_action_modules(tmp_path, model, with_image):
  weights = tiny.write_wan(tmp_path / 'source', model, with_image)
  report = import_from(tmp_path / 'source', tmp_path / 'run', num_embodiments=2)
  own = own_lib.open_workdir(tmp_path / 'run', None)
  action = {name for row in dit.action_rows(model) for name in row.names}
  imaged = {name for name in report['fresh'] if 'img' in name}
  assert set(report['fresh']) - imaged == action
  assert bool(imaged) == (with_image and not model.image_condition)
  assert (own.config.model.image_dim, own.config.model.image.kind) == (
    (32, 'clip') if with_image else (0, 'none')
  )
  assert own.config.model.num_embodiments == 2
  assert own.source['fresh'] == report['fresh']
  _, params, _, _, _ = checkpoint.load_for_inference(tmp_path / 'run')
  table = [row for row in dit.wan_rows(own.config.model) if row.torch.format(0) not in imaged]
  assert_same_bits(rows_lib.to_weights(table, params), weights['dit'])
  w, b = params['action_encoder']['mix']['w'], params['action_encoder']['mix']['b']
  assert w.shape == (2, 64, 32)
  assert abs(float(np.std(w.astype(np.float32))) - 0.02) < 0.002
  assert not b.any()
  if imaged:
    assert (params['blocks']['cross_attn']['norm_k_image']['scale'] == 1).all()
    k = params['blocks']['cross_attn']['k_image']['w'].astype(np.float32)
    assert k.shape == (3, 32, 2, 16)
    assert abs(np.abs(k).max() - (6 / 64) ** 0.5) < 0.01
    assert not np.array_equal(k[0], k[1])
  import_from(tmp_path / 'source', tmp_path / 'again', num_embodiments=2)
  again = checkpoint.load_for_inference(tmp_path / 'again')[1]
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_wan_encoders_may_lie_elsewhere(tmp_path):
  tiny.write_wan(tmp_path / 'source', tiny.I2V)
  (tmp_path / 'else').mkdir()
  files = {'text': 'models_t5_umt5-xxl-enc-bf16.pth', 'tokenizer': 'Wan2.1_VAE.pth'}
  for name in files.values():
    (tmp_path / 'source' / name).rename(tmp_path / 'else' / name)
  message = r'models_t5\*.pth is missing; .* pass --text_encoder=FILE .*\n  \*VAE\*.pth is missing; .*--vae=FILE'
  with pytest.raises(ValueError, match=message):
    import_from(tmp_path / 'source', tmp_path / 'run')
  import_from(
    tmp_path / 'source',
    tmp_path / 'run',
    encoders={
      'text': epath.Path(tmp_path / 'else'),
      'tokenizer': epath.Path(tmp_path / 'else' / files['tokenizer']),
    },
  )
  with pytest.raises(ValueError, match='given for the text encoder, does not exist'):
    import_from(
      tmp_path / 'source', tmp_path / 'other', encoders={'text': epath.Path(tmp_path / 'nowhere')}
    )


@pytest.mark.parametrize('model', [tiny.I2V, tiny.TI2V])
def test_diffusers_directory_holds_every_bit(tmp_path, model):
  weights = tiny.prefixed(tiny.random_weights(model, 'dreamzero'))
  for unused in (
    'visual.head',
    'log_scale',
  ):  # Of CLIP; Diffusers has no room for them, and nothing reads them.
    weights[dreamzero_layout.PREFIXES['image'] + unused][...] = 0
  weights[dreamzero_layout.PREFIXES['image'] + 'log_scale'][...] = np.log(1 / 0.07)
  tiny.write_dreamzero(tmp_path / 'source', model, weights)
  (tmp_path / 'source' / 'tokenizer.json').write_text('{}')
  import_from(tmp_path / 'source', tmp_path / 'run')
  export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers', shard_bytes=100_000)
  import_from(tmp_path / 'pipeline', tmp_path / 'again')
  export_to(tmp_path / 'again', tmp_path / 'back')
  assert_same_bits(tiny.load(tmp_path / 'back'), weights)
  first, second = (own_lib.open_workdir(tmp_path / name, None) for name in ('run', 'again'))
  without_file = lambda c: dataclasses.replace(
    c.model, text=dataclasses.replace(c.model.text, tokenizer='')
  )
  assert without_file(first.config) == without_file(second.config) == model
  assert (first.config.flow, first.config.sample, first.data) == (
    second.config.flow,
    second.config.sample,
    second.data,
  )
  assert (tmp_path / 'pipeline/tokenizer/tokenizer.json').read_text() == '{}'
  assert (tmp_path / 'again/tokenizer.json').exists()


@pytest.mark.parametrize('model', [tiny.I2V, tiny.TI2V])
def test_diffusers_and_transformers_open_the_export(tmp_path, model):
  torch, diffusers, transformers = (
    pytest.importorskip(name) for name in ('torch', 'diffusers', 'transformers')
  )
  tiny.write_dreamzero(tmp_path / 'source', model)
  import_from(tmp_path / 'source', tmp_path / 'run')
  export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers')
  for folder, kind in (
    ('transformer', diffusers.WanTransformer3DModel),
    ('vae', diffusers.AutoencoderKLWan),
  ):
    place = tmp_path / 'pipeline' / folder
    opened = kind.from_config(
      kind.load_config(place)
    )  # `from_pretrained` would need one more package.
    opened.load_state_dict(
      {name: torch.tensor(w.astype(np.float32)) for name, w in tiny.load(place).items()}
    )
  for folder, kind in (
    ('text_encoder', transformers.UMT5EncoderModel),
    ('image_encoder', transformers.CLIPVisionModel),
  ):
    opened, said = kind.from_pretrained(tmp_path / 'pipeline' / folder, output_loading_info=True)
    assert not any(said[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), (
      said
    )
    assert opened.config.num_attention_heads in (4, 16)


def test_latents_of_another_mean_are_kept(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  import_from(tmp_path / 'source', tmp_path / 'run')
  export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers')
  path = tmp_path / 'pipeline/vae/config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'latents_mean': [0.5] * 16}))
  import_from(tmp_path / 'pipeline', tmp_path / 'again')
  frozen = checkpoint.load_for_inference(tmp_path / 'again')[2]
  np.testing.assert_array_equal(frozen.tokenizer.mean_std_2C[0], np.full(16, 0.5, np.float32))
  export_to(tmp_path / 'again', tmp_path / 'pipeline2', layout='diffusers')
  assert (
    json.loads((tmp_path / 'pipeline2/vae/config.json').read_text())['latents_mean'] == [0.5] * 16
  )
  with pytest.raises(ValueError, match='other mean and deviation of latents'):
    export_to(tmp_path / 'again', tmp_path / 'back')


@pytest.mark.parametrize(('ema', 'dtype'), [(True, 'keep'), (False, 'bfloat16')])
def test_export_of_a_run_takes_its_averages(tmp_path, ema, dtype):
  params, frozen, weights = trees(tiny.I2V)
  config = cfg.TrainConfig(model=tiny.I2V, data=cfg.DataConfig(embodiments=('droid',)))
  write_run(tmp_path / 'run', config, params, frozen, [droid()], ema)
  report = export_to(tmp_path / 'run', tmp_path / 'back', dtype=dtype)
  assert (report['averaged'], report['step']) == (ema, 3)
  weights['dit'] = {name: w * (2 if ema else 1) for name, w in weights['dit'].items()}
  want = tiny.prefixed(weights)
  assert_same_bits(
    tiny.load(tmp_path / 'back'),
    {name: w.astype(tiny.BF16 if dtype == 'bfloat16' else np.float32) for name, w in want.items()},
  )
  conf = yaml.safe_load((tmp_path / 'back/experiment_cfg/conf.yaml').read_text())
  assert (conf['save_lora_only'], conf['relative_action'], conf['relative_action_keys']) == (
    False,
    True,
    ['joint_position'],
  )
  head = json.loads((tmp_path / 'back/config.json').read_text())['action_head_cfg']['config']
  assert (
    head['train_architecture'],
    head['skip_component_loading'],
    head['defer_lora_injection'],
  ) == ('full', True, False)
  assert head['diffusion_model_cfg']['frame_seqlen'] == 880
  stored = json.loads((tmp_path / 'back/experiment_cfg/metadata.json').read_text())['oxe_droid']
  assert stored['modalities']['video']['wrist_image_left'] == {
    'resolution': [320, 180],
    'channels': 3,
    'fps': 15.0,
  }
  assert (
    stored['statistics']['action']['joint_position']['q01']
    == np.linspace(1, 2, 8, dtype=np.float32)[:7].tolist()
  )


def test_flat_dimensions_are_exported_as_we_floor_them(tmp_path):
  robot = droid()
  robot.statistics.state.q99[3] = robot.statistics.state.q01[3]
  dreamzero_robots.write(tmp_path, {'oxe_droid': robot}, tiny.I2V, None)
  content = json.loads((tmp_path / dreamzero_robots.METADATA).read_text())['oxe_droid'][
    'statistics'
  ]['state']
  q01, q99 = (np.float32(content['joint_position'][key]) for key in ('q01', 'q99'))
  np.testing.assert_allclose(q99 - q01, [3, 3, 3, 1e-3, 3, 3, 3], atol=1e-6)


def test_one_category_of_several_is_exported(tmp_path):
  model = dataclasses.replace(tiny.I2V, num_embodiments=3)
  params, frozen, weights = trees(model)
  config = cfg.TrainConfig(
    model=model, data=cfg.DataConfig(embodiments=('droid', 'other', 'third'))
  )
  write_run(tmp_path / 'run', config, params, frozen, [droid(), droid(2, name='other')], ema=False)
  with pytest.raises(
    ValueError, match=r'no prompt for these robots:\n  other: its tag would be .other.'
  ):
    export_to(tmp_path / 'run', tmp_path / 'back')
  with pytest.raises(ValueError, match='--tag=yam names one robot, but there are droid, other'):
    export_to(tmp_path / 'run', tmp_path / 'back', tag='yam')
  with pytest.raises(
    ValueError, match='--embodiment=nobody has no statistics in .*; known are droid, other'
  ):
    export_to(tmp_path / 'run', tmp_path / 'back', embodiment='nobody')
  with pytest.raises(
    ValueError, match='action modules for 3 embodiments, and there is room for one'
  ):
    export_to(tmp_path / 'run', tmp_path / 'back', layout='diffusers')
  with pytest.raises(
    ValueError,
    match='for 3 embodiments, and there is room for one; pass --embodiment=NAME, one of '
    'droid, other',
  ):
    export_to(tmp_path / 'run', tmp_path / 'back', statistics=False)
  export_to(tmp_path / 'run', tmp_path / 'back', embodiment='other', tag='oxe_droid')
  export_to(tmp_path / 'run', tmp_path / 'alone', embodiment='other', statistics=False)
  assert_same_bits(tiny.load(tmp_path / 'alone'), tiny.load(tmp_path / 'back'))
  action = {name for row in dit.action_rows(model) for name in row.names}
  weights['dit'] = {name: w[2:] if name in action else w for name, w in weights['dit'].items()}
  assert_same_bits(tiny.load(tmp_path / 'back'), tiny.prefixed(weights))


def test_what_the_reference_cannot_express_is_refused(tmp_path):
  record = embodiments.get('droid')
  flipped = tuple(dataclasses.replace(v, flip='rows') for v in record.views)
  with pytest.raises(
    ValueError, match="cannot express embodiment 'droid' under the tag 'oxe_droid':\n  views"
  ):
    dreamzero_robots.write(tmp_path, {'oxe_droid': droid(views=flipped)}, tiny.I2V, None)
  with pytest.raises(ValueError, match='pass --camera_resolution=COLUMNSxROWS'):
    whole = (embodiments.View('image', 0, 0, 352, 640),)
    dreamzero_robots.write(
      tmp_path, {'xdof': droid(views=whole, composite=(352, 640))}, tiny.I2V, None
    )


def test_robots_of_one_tag_are_exported_one_at_a_time(tmp_path):
  robots = [droid(), dataclasses.replace(droid(), record=embodiments.get('droid_wan22'))]
  own = own_lib.Own(
    tmp_path,
    1,
    cfg.TrainConfig(model=tiny.I2V),
    robot_lib.to_metadata(robots),
    {},
    {},
    cfg.LoraConfig(),
    False,
    {},
    {},
  )
  with pytest.raises(ValueError, match='droid, droid_wan22 share a tag of the reference'):
    exporting.export_checkpoint(own, tmp_path / 'back', exporting.Options())


def test_a_key_relative_for_one_robot_only_is_refused(tmp_path):
  absolute = tuple(dataclasses.replace(s, relative_to='') for s in embodiments.get('droid').action)
  with pytest.raises(
    ValueError, match='relative for all robots or for none:\n  joint_position of xdof'
  ):
    views = dreamzero_robots._tile('xdof', ('a', 'b', 'c'), (176, 320))[0]
    dreamzero_robots.write(
      tmp_path,
      {'oxe_droid': droid(), 'xdof': droid(action=absolute, views=views)},
      tiny.I2V,
      None,
    )


def test_models_that_exist_only_here_are_refused(tmp_path):
  own = own_lib.Own(tmp_path, 1, cfg.TrainConfig(), {}, {}, {}, cfg.LoraConfig(), False, {}, {})
  with pytest.raises(
    ValueError, match=r"only here.*:\n  model.tokenizer.kind='patch'\n  model.text.kind='word'"
  ):
    exporting.export_checkpoint(own, tmp_path / 'back', exporting.Options())


def test_damaged_checkpoint_of_ours_is_refused(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  import_from(tmp_path / 'source', tmp_path / 'run')
  path = tmp_path / 'run/checkpoints/0/metadata/metadata'
  content = json.loads(path.read_text())
  content['config']['model']['mlp_dim'] += 2
  path.write_text(json.dumps(content))
  with pytest.raises(
    ValueError,
    match=r'does not fit its config:\n  dit: blocks/ffn/in/b is \(3, 48\); expected '
    r'\(3, 50\)',
  ):
    export_to(tmp_path / 'run', tmp_path / 'back')
  with pytest.raises(ValueError, match='has no checkpoint of step 7; it has 0'):
    own_lib.open_workdir(tmp_path / 'run', 7)


def change(source, edit):
  weights = tiny.load(source)
  edit(weights)
  tiny.save(source, weights, 'model')


def edit_json(path, edit):
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))


def edit_conf(source, edit):
  content = tiny.conf()
  edit(content)
  tiny.write_experiment(source, content, tiny.metadata())


def edit_metadata(source, edit):
  content = tiny.metadata()
  edit(content['oxe_droid'])
  tiny.write_experiment(source, tiny.conf(), content)


D = 'action_head.model.'
BAD_INPUT = {
  'missing weights, more than ten': (
    lambda s: change(s, lambda w: [w.pop(n) for n in list(w) if n.startswith(f'{D}blocks.1.')]),
    r'does not hold the weights that its config asks for:\n  dit: blocks.1.modulation is missing; '
    r'expected \[1, 6, 32\]\n(.*\n){9}  ... and 22 more\nCheck that the copy is whole',
  ),
  'unexpected weight': (
    lambda s: change(s, lambda w: w.update({f'{D}extra': np.zeros(3, np.float32)})),
    r'dit: extra \[3\] is unexpected',
  ),
  'weight of no part': (
    lambda s: change(s, lambda w: w.update({'other.x': np.zeros(3, np.float32)})),
    r'belong to no part of a DreamZero model:\n  other.x \[3\]',
  ),
  'misshapen weight': (
    lambda s: change(s, lambda w: w.update({f'{D}head.head.bias': np.zeros(3, np.float32)})),
    r'dit: head.head.bias is \[3\]; expected \[64\]',
  ),
  'config of another size': (
    lambda s: edit_json(
      s / 'config.json',
      lambda c: c['action_head_cfg']['config']['diffusion_model_cfg'].update(ffn_dim=50),
    ),
    r'dit: blocks.0.ffn.0.weight is \[48, 32\]; expected \[50, 32\]',
  ),
  'a part too many': (
    lambda s: [
      change(s, lambda w: [w.pop(n) for n in list(w) if 'img' in n]),
      edit_json(
        s / 'config.json',
        lambda c: c['action_head_cfg']['config']['diffusion_model_cfg'].update(model_type='t2v'),
      ),
    ],
    'image: 45 weights are unexpected: the config asks for no such part',
  ),
  'heads that do not divide': (
    lambda s: edit_json(
      s / 'config.json',
      lambda c: c['action_head_cfg']['config'].update(image_encoder_cfg={'num_heads': 5}),
    ),
    'is 32 wide, which 5 heads do not divide; pass .* --image_heads',
  ),
  'truncated file': (
    lambda s: (s / 'model.safetensors').write_bytes((s / 'model.safetensors').read_bytes()[:-1]),
    'model.safetensors is cut: ',
  ),
  'no weights': (lambda s: (s / 'model.safetensors').unlink(), 'has neither model.safetensors nor'),
  'no config': (
    lambda s: (s / 'config.json').unlink(),
    'is in no known layout. .* it holds experiment_cfg, model',
  ),
  'config cut': (
    lambda s: (s / 'config.json').write_text('{"action_head_cfg"'),
    'config.json is not JSON',
  ),
  'config without DiT': (
    lambda s: (s / 'config.json').write_text('{"action_head_cfg": {}}'),
    'has no action_head_cfg.config.diffusion_model_cfg',
  ),
  'no statistics': (
    lambda s: (s / 'experiment_cfg/metadata.json').unlink(),
    r'has no statistics:\n  .*/experiment_cfg/metadata.json does not exist\n.*--nostatistics',
  ),
  'a statistic missing': (
    lambda s: edit_metadata(s, lambda m: m['statistics']['action']['joint_position'].pop('q99')),
    r'oxe_droid: statistics.action.joint_position.q99 must be there, with one number per dimension',
  ),
  'statistics of another width': (
    lambda s: edit_metadata(
      s, lambda m: m['statistics']['state']['gripper_position'].update(q01=[1, 2])
    ),
    'statistics.state.gripper_position.q01 must be there',
  ),
  'a camera without size': (
    lambda s: edit_metadata(s, lambda m: m['modalities'].pop('video')),
    'video is missing',
  ),
  'unknown tag': (
    lambda s: tiny.write_experiment(s, tiny.conf(), {'r2d2': {}}),
    'statistics of r2d2 and transforms of oxe_droid, but both of none of oxe_droid, agibot',
  ),
  'no transforms': (
    lambda s: edit_conf(s, lambda c: c.pop('transforms')),
    'statistics of oxe_droid and transforms of nobody',
  ),
  'transforms of another form': (
    lambda s: edit_conf(s, lambda c: c['transforms'].update(oxe_droid=[])),
    'oxe_droid: not of the form that the reference writes',
  ),
  'conf cut': (
    lambda s: (s / 'experiment_cfg/conf.yaml').write_text('a: [1'),
    'conf.yaml is not YAML',
  ),
  'per-horizon statistics': (
    lambda s: edit_conf(s, lambda c: c.update(relative_action_per_horizon=True)),
    'per-horizon statistics are not supported',
  ),
  'other normalization': (
    lambda s: edit_conf(
      s,
      lambda c: c['transforms']['oxe_droid']['transforms'][3]['normalization_modes'].update(
        {'state.joint_position': 'binary'}
      ),
    ),
    'normalization_modes state.joint_position=binary are not supported',
  ),
  'other crop': (
    lambda s: edit_conf(
      s, lambda c: c['transforms']['oxe_droid']['transforms'][1].update(scale=0.9)
    ),
    'VideoCrop.scale=0.9 is not supported',
  ),
  'relative to nothing': (
    lambda s: edit_conf(
      s, lambda c: c['transforms']['oxe_droid']['transforms'][5].update(state_concat_order=[])
    ),
    r"relative_action_keys \['joint_position'\] have no state of the same name",
  ),
  'other blocks': (
    lambda s: edit_json(
      s / 'config.json',
      lambda c: c['action_head_cfg']['config']['diffusion_model_cfg'].update(
        num_state_per_block=2, qk_norm=False, out_dim=17, in_dim=35
      ),
    ),
    r'not supported:\n  in_dim=35 .*\n  out_dim=17 .*\n  num_state_per_block=2 must be 1\n  qk_norm=False',
  ),
}


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, case):
  damage, message = BAD_INPUT[case]
  tiny.write_dreamzero(tmp_path / 'source')
  damage(tmp_path / 'source')
  with pytest.raises(ValueError, match=message):
    import_from(tmp_path / 'source', tmp_path / 'run')
  assert [p.name for p in tmp_path.iterdir()] == ['source']


def test_statistics_may_be_left_out_on_purpose(tmp_path):
  weights = tiny.write_dreamzero(tmp_path / 'source')
  (tmp_path / 'source/experiment_cfg/metadata.json').unlink()
  assert import_from(tmp_path / 'source', tmp_path / 'run', statistics=False)['embodiments'] == []
  with pytest.raises(ValueError, match='knows no robot with statistics'):
    export_to(tmp_path / 'run', tmp_path / 'back')
  export_to(tmp_path / 'run', tmp_path / 'back', statistics=False)
  assert_same_bits(tiny.load(tmp_path / 'back'), weights)


@pytest.mark.parametrize(
  ('write', 'layout', 'message'),
  [
    (
      tiny.write_dreamzero,
      'wan',
      "is in the layout 'dreamzero', not 'wan'; pass --layout=dreamzero",
    ),
    (
      lambda path: tiny.write_wan(path, tiny.I2V),
      'diffusers',
      "is in the layout 'wan', not 'diffusers'",
    ),
    (lambda path: path.mkdir(), '', 'is in no known layout.* it holds nothing'),
    (lambda path: path.write_text(''), '', 'is no directory'),
  ],
)
def test_wrong_layout(tmp_path, write, layout, message):
  write(tmp_path / 'source')
  with pytest.raises(ValueError, match=message):
    import_from(tmp_path / 'source', tmp_path / 'run', layout=layout)


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda p: (p / 'transformer/config.json').unlink(), 'transformer/config.json does not exist'),
    (
      lambda p: edit_json(p / 'vae/config.json', lambda c: c.pop('z_dim')),
      "lacks 'z_dim'; it must be of a Wan",
    ),
    (
      lambda p: [
        next((p / name).glob('*.safetensors')).unlink() for name in ('vae', 'text_encoder')
      ],
      r'is not whole:\n  .*text_encoder has neither model.safetensors.*\n  .*vae has neither diffusion_pytorch_model',
    ),
  ],
)
def test_damaged_diffusers_directory(tmp_path, edit, message):
  tiny.write_dreamzero(tmp_path / 'source')
  import_from(tmp_path / 'source', tmp_path / 'run')
  export_to(tmp_path / 'run', tmp_path / 'pipeline', layout='diffusers')
  edit(tmp_path / 'pipeline')
  with pytest.raises(ValueError, match=message):
    import_from(tmp_path / 'pipeline', tmp_path / 'again')


def test_outputs_are_never_overwritten(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  with pytest.raises(ValueError, match='exists already; nothing was changed'):
    import_from(tmp_path / 'source', tmp_path / 'source')
  import_from(tmp_path / 'source', tmp_path / 'run')
  with pytest.raises(ValueError, match='exists already'):
    export_to(tmp_path / 'run', tmp_path / 'source')


def test_inspect_lists_what_is_missing(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  change(tmp_path / 'source', lambda w: w.pop(f'{D}head.head.bias'))
  (tmp_path / 'source/experiment_cfg/metadata.json').unlink()
  report = inspection.inspect(epath.Path(tmp_path / 'source'), foreign.Options(), None)
  assert report['missing'][0] == 'dit: head.head.bias is missing; expected [64]'
  assert 'metadata.json does not exist' in report['missing'][1]
  assert report['parts']['dit']['arrays'] == 132
  assert 'missing or wrong: 2' in inspection.show(report)


def test_inspect_describes_a_run_of_any_model(tmp_path):
  config = cfg.from_config_dict(cfg.base())
  t = config.model.tokenizer
  video = tokenizer.PatchTokenizer(
    *(jax.numpy.ones(shape) for shape in ((5,), (5, 2), (2, 5))), t.temporal, t.spatial
  )
  state = train_step.TrainState(
    step=jax.numpy.int32(2),
    params={'w': jax.numpy.ones((3, 4))},
    ema_params=None,
    opt_state={'count': jax.numpy.ones(1)},
    frozen=encoders.Encoders(video, None, None, config.model),
  )
  with checkpoint.Checkpoints(tmp_path, 1) as checkpoints:
    checkpoints.save(
      2, state, {}, {'config': cfg.to_dict(config), 'data': robot_lib.to_metadata([droid()])}
    )
  report = inspection.inspect(epath.Path(tmp_path), foreign.Options(), None)
  assert (report['layout'], report['step'], report['averaged']) == ('wam_jax', 2, False)
  assert {part: sizes['parameters'] for part, sizes in report['parts'].items()} == {
    'dit': 12,
    'tokenizer': 25,
  }
  assert 'embodiment droid' in inspection.show(report)


def test_inspect_describes_adapters_without_their_base(tmp_path):
  write_lora(tmp_path)
  report = inspection.inspect(epath.Path(tmp_path / 'lora'), foreign.Options(), None)
  assert list(report['parts']) == ['dit']
  assert report['adapters'] == 30
  assert list(report['embodiments']) == ['droid']
  assert len(report['missing']) == 1
  assert '--base' in report['missing'][0]


def test_one_weight_at_a_time_is_in_memory(tmp_path, monkeypatch):
  tiny.write_dreamzero(tmp_path / 'source')
  monkeypatch.setattr(orbax, '_SLAB_BYTES', 1)  # Nothing is held back to be written with more.
  alive, most = weakref.WeakValueDictionary(), []
  read = lazy.Stored.read

  def watched(stored):
    alive[len(most)] = array = read(stored)
    most.append(len(alive))
    return array

  monkeypatch.setattr(lazy.Stored, 'read', watched)
  import_from(tmp_path / 'source', tmp_path / 'run')
  assert len(most) == 394
  assert max(most) <= 2


def test_benchmark_finds_every_bit(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'benchmarks.convert',
      '--layers=2',
      '--heads=1',
      '--shard_gb=0.01',
      f'--directory={tmp_path}',
      f'--json={tmp_path}/report.json',
    ],
    capture_output=True,
    text=True,
    env=programs.environment(),
    check=False,
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['differing'] == []
  assert report['layers'] == 2
  assert report['weights'] > 300
  assert 0 < report['import']['peak_gb'] < 1
  assert report['export']['seconds'] > 0
  assert [p.name for p in tmp_path.iterdir()] == ['report.json']
  assert 'bit-identical after both: yes' in done.stdout


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'wam_jax.convert', *map(str, arguments)],
    capture_output=True,
    text=True,
    env=programs.environment(),
    check=False,
  )


def test_command_line(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  done = run('inspect', f'--source={tmp_path}/source', f'--json={tmp_path}/report.json')
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['layout'] == 'dreamzero'
  assert report['missing'] == []
  assert report['parts']['tokenizer'] == {
    'arrays': 194,
    'parameters': 243_583,
    'bytes': 2 * 243_583,
    'dtypes': {'bfloat16': 243_583},
  }
  assert 'layout dreamzero' in done.stdout
  assert 'embodiment droid: 15 Hz' in done.stdout
  done = run(
    'import', f'--source={tmp_path}/source', f'--output={tmp_path}/run', '--layout=dreamzero'
  )
  assert done.returncode == 0, done.stderr
  assert f'workdir: {tmp_path}/run' in done.stdout
  done = run('inspect', f'--source={tmp_path}/run')
  assert done.returncode == 0 and 'layout wam_jax, step 0' in done.stdout, done.stderr
  done = run(
    'export', f'--source={tmp_path}/run', f'--output={tmp_path}/back', '--max_shard_gb=0.001'
  )
  assert done.returncode == 0, done.stderr
  assert_same_bits(tiny.load(tmp_path / 'back'), tiny.load(tmp_path / 'source'))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--source=x'], 'error: Say what to do, as in: python -m wam_jax.convert import'),
    (
      ['export', '--source=x', '--output=y', '--layout=wan'],
      'error: --layout=wan cannot be written',
    ),
    (['export', '--source=/', '--output=y'], 'error: --source=/ is no workdir'),
    (['import', '--source=x', '--output=gs://y'], 'error: --output=gs://y is an object store'),
  ],
)
def test_wrong_commands_stop_at_once(arguments, message):
  done = run(*arguments)
  assert done.returncode == 1 and message in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr
