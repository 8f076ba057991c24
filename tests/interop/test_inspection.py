"""What `inspect` says of a checkpoint in any layout."""

from __future__ import annotations

import jax
from etils import epath

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import train_step
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import inspection
from wam_jax.models import encoders
from wam_jax.models import tokenizer


def inspect(path):
  return inspection.inspect(epath.Path(path), foreign.Options(), None)


def test_inspect_lists_what_is_missing(tmp_path):
  # A missing weight and missing statistics would each end an import; `inspect` lists both.
  source = tmp_path / 'source'
  tiny.write_dreamzero(source)
  conversions.edit_weights(source, lambda w: w.pop('action_head.model.head.head.bias'))
  (source / 'experiment_cfg/metadata.json').unlink()
  report = inspect(source)
  assert report['missing'][0] == 'dit: head.head.bias is missing; expected [64]'
  assert 'metadata.json does not exist' in report['missing'][1]
  assert report['parts']['dit']['arrays'] == 132
  assert 'missing or wrong: 2' in inspection.show(report)


def test_inspect_tells_what_an_import_would(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  report = inspect(tmp_path / 'source')
  assert 'note: config.json does not say `tiled`' in inspection.show(report)


def test_inspect_describes_a_run_of_any_model(tmp_path):
  config = cfg.from_config_dict(cfg.base())
  c = config.model.tokenizer
  shapes = ((5,), (5, 2), (2, 5))
  video = tokenizer.PatchTokenizer(*map(jax.numpy.ones, shapes), c.temporal, c.spatial)
  state = train_step.TrainState(
    step=jax.numpy.int32(2),
    params={'w': jax.numpy.ones((3, 4))},
    ema_params=None,
    opt_state={'count': jax.numpy.ones(1)},
    frozen=encoders.Encoders(video, None, None, config.model),
  )
  data = robot_lib.to_metadata([conversions.make_droid()])
  with checkpoint.Checkpoints(tmp_path, 1) as checkpoints:
    metadata = {'config': cfg.to_dict(config), 'data': data}
    metadata['encoders'] = encoders.fingerprint(state.frozen)
    checkpoints.save(2, state, {}, metadata)

  report = inspect(tmp_path)
  assert (report['layout'], report['step'], report['averaged']) == ('wam_jax', 2, False)
  counts = {part: sizes['parameters'] for part, sizes in report['parts'].items()}
  # 3 x 4, and 5 + 5 x 2 + 2 x 5.
  assert counts == {'dit': 12, 'tokenizer': 25}
  assert 'embodiment droid' in inspection.show(report)


def test_inspect_describes_adapters_without_their_base(tmp_path):
  tiny.write_lora(tmp_path)
  report = inspect(tmp_path / 'lora')
  assert list(report['parts']) == ['dit']
  assert report['adapters'] == 30
  assert list(report['embodiments']) == ['droid']
  assert len(report['missing']) == 1
  assert '--base' in report['missing'][0]
