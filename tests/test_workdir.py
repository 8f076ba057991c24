"""A workdir belongs to one config and one process."""

from __future__ import annotations

import dataclasses
import json

import fsspec
import pytest

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib

CONFIG = cfg.from_config_dict(cfg.base())


def changed(**kwargs):
  return dataclasses.replace(CONFIG, **kwargs)


def claim(workdir, config):
  with workdir_lib.claim(workdir, config):
    pass


def bind(workdir, config):
  """As a run does that has saved its first checkpoint."""
  claim(workdir, config)
  (workdir / 'checkpoints' / '2').mkdir(parents=True)


def test_config_is_recorded_and_readable(tmp_path):
  claim(tmp_path / 'a' / 'run', CONFIG)
  stored = workdir_lib.load_config(tmp_path / 'a' / 'run')
  assert cfg.from_config_dict(stored) == CONFIG
  assert workdir_lib.load_config(tmp_path) is None


def test_a_start_that_saved_nothing_binds_nothing(tmp_path):
  claim(tmp_path, CONFIG)
  (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp').mkdir(parents=True)
  claim(tmp_path, changed(seed=3))
  assert workdir_lib.load_config(tmp_path)['seed'] == 3
  # A checkpoint that cannot be read is one all the same.
  (tmp_path / 'unreadable' / '2').mkdir(parents=True)
  with pytest.raises(ValueError, match='config.seed: 3 there, 0 now'):
    claim(tmp_path, CONFIG)


def test_the_vocabulary_is_that_of_the_start_that_saved(tmp_path):
  def keep(name, content=''):
    if content is not None:
      (tmp_path / name).write_text(name)
    text = dataclasses.replace(CONFIG.model.text, kind='umt5', tokenizer=str(tmp_path / name))
    config = changed(model=dataclasses.replace(CONFIG.model, text=text))
    workdir_lib.keep_vocabulary(tmp_path / 'run', config)
    return workdir_lib.find_vocabulary(tmp_path / 'run').read_text()

  claim(tmp_path / 'run', CONFIG)
  assert keep('first.json') == 'first.json'
  assert keep('second.model') == 'second.model'
  bind(tmp_path / 'run', CONFIG)
  with pytest.raises(ValueError, match=r"third.json' is not the vocabulary that the run in .* was"):
    keep('third.json')
  # The same one, from elsewhere, or from a place that is no more.
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'second.model').write_text('second.model')
  for path in ('elsewhere/second.model', 'nowhere.json'):
    assert keep(path, content=None) == 'second.model'


def test_other_config_is_refused_and_changes_nothing(tmp_path):
  bind(tmp_path, CONFIG)
  before = (tmp_path / 'config.json').read_text()
  # Both would give other numbers under the same name.
  other = changed(seed=3, optimizer=dataclasses.replace(CONFIG.optimizer, b1=0.5))
  with pytest.raises(
    ValueError,
    match=r'another config:\n  config.optimizer.b1: 0.95 there, 0.5 now\n'
    r'  config.seed: 0 there, 3 now\nPass another',
  ):
    claim(tmp_path, other)
  assert (tmp_path / 'config.json').read_text() == before


def move(config, root):
  data = dataclasses.replace(config.data, root=root)
  return dataclasses.replace(config, data=data, init_from=f'{root}/weights')


def test_the_data_root_may_move_with_what_is_below_it(tmp_path):
  bind(tmp_path, move(CONFIG, '~/data'))
  claim(tmp_path, move(CONFIG, 'gs://bucket/data'))
  assert workdir_lib.load_config(tmp_path)['init_from'] == 'gs://bucket/data/weights'
  with pytest.raises(ValueError, match="init_from: 'gs://bucket/data/weights' there, '' now"):
    claim(tmp_path, dataclasses.replace(move(CONFIG, '/mnt'), init_from=''))


def test_ten_differences_are_listed(tmp_path):
  bind(tmp_path, CONFIG)
  model = dataclasses.replace(
    CONFIG.model,
    dim=32,
    mlp_dim=1,
    num_layers=1,
    patch=1,
    freq_dim=1,
    action_dim=1,
    proprio_dim=1,
    action_hidden=1,
    eps=1.0,
    max_chunks=1,
    image_tokens=1,
    state_rule='chunk',
  )
  with pytest.raises(ValueError, match='\n  ... and 2 more\n') as error:
    claim(tmp_path, changed(model=model))
  assert str(error.value).count(' there, ') == 10


def test_the_schedule_of_a_run_stays(tmp_path):
  def of(steps, decay_steps=0):
    optimizer = dataclasses.replace(CONFIG.optimizer, decay_steps=decay_steps)
    return changed(steps=steps, optimizer=optimizer)

  bind(tmp_path, of(40))
  # A part of it, and the rest.
  claim(tmp_path, of(10, decay_steps=40))
  claim(tmp_path, of(30, decay_steps=40))
  claim(tmp_path, of(40))
  for other in (of(80), of(20), of(40, decay_steps=80)):
    with pytest.raises(ValueError, match='now\nPass another') as error:
      claim(tmp_path, other)
    assert (
      'The learning rate of that run falls to 0 at step 40: to train longer, start from its '
      f'weights by another --workdir with --config.init_from={tmp_path}; to stop earlier, and go '
      'on later, set --config.optimizer.decay_steps=40 beside config.steps.'
    ) in str(error.value)
  with pytest.raises(ValueError, match=r'decay_steps=10, .* must be 0, for config.steps=40, or at'):
    of(40, decay_steps=10)


def test_length_speed_and_places_may_change(tmp_path):
  here = cfg.DatasetConfig(path='/here', embodiment='disc', prepare='a')
  data = dataclasses.replace(CONFIG.data, mixture={'d': here}, embodiments=('disc',))
  bind(tmp_path, changed(data=data))
  there = dataclasses.replace(
    data,
    mixture={'d': dataclasses.replace(here, path='/there', prepare='b')},
    workers=2,
    threads=1,
    prefetch=9,
    cache_gib=1.0,
  )
  now = changed(
    data=there,
    steps=7,
    optimizer=dataclasses.replace(CONFIG.optimizer, decay_steps=CONFIG.steps),
    log_every=8,
    save_every=9,
    eval_every=3,
    keep=1,
    mesh={'data': 2, 'fsdp': -1},
  )
  claim(tmp_path, now)
  assert workdir_lib.load_config(tmp_path)['steps'] == 7
  # The weight decides which samples come: another experiment.
  heavier = dataclasses.replace(there, mixture={'d': dataclasses.replace(here, weight=2.0)})
  with pytest.raises(ValueError, match='config.data.mixture.d.weight: 1.0 there, 2.0 now'):
    claim(tmp_path, changed(data=heavier))


def test_key_added_since_counts_as_its_default(tmp_path):
  bind(tmp_path, CONFIG)
  stored = json.loads((tmp_path / 'config.json').read_text())
  # As in a workdir of an older version.
  del stored['model']['remat']
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  claim(tmp_path, CONFIG)
  assert workdir_lib.load_config(tmp_path)['model']['remat'] == 'none'


def test_second_process_is_refused(tmp_path):
  with (
    workdir_lib.claim(tmp_path, CONFIG),
    pytest.raises(ValueError, match='in use by another training process'),
  ):
    claim(tmp_path, CONFIG)
  claim(tmp_path, CONFIG)


def test_unwritable_places_are_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='file cannot be written: '):
    claim(tmp_path / 'file', CONFIG)
  with pytest.raises(ValueError, match='cannot be written: '):
    # Not even root may make a directory there.
    claim(workdir_lib.make_path('/proc/run'), CONFIG)
  with pytest.raises(ValueError, match='other than gs://. Mount it'):
    workdir_lib.make_path('s3://bucket/run')


def test_a_bucket_without_gcsfs_names_the_command(monkeypatch):
  def get(protocol):
    raise ImportError(protocol)

  monkeypatch.setattr(fsspec, 'get_filesystem_class', get)
  with pytest.raises(
    ValueError, match=r"'gs://bucket/run' needs gcsfs: pip install -e '\.\[gcs\]', or mount"
  ):
    workdir_lib.make_path('gs://bucket/run')


def test_broken_config_json_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json is not JSON'):
    claim(tmp_path, CONFIG)
