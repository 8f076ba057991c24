"""Every file in configs/ with `smoke`: data made, trained, stopped, resumed, evaluated, as a user would."""
import dataclasses
import importlib
import json
import pathlib

import pytest

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import train
from wam_jax.evaluation import run

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
  """Where all smoke datasets of this module go; those that configs share are made once."""
  return tmp_path_factory.mktemp('datasets')


@pytest.fixture
def load(monkeypatch, data_root):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(cfg, 'DATA_ROOT', str(data_root))

  def make(name: str) -> cfg.TrainConfig:
    c = importlib.import_module(f'configs.{name}').get_config('smoke')
    if name == 'bridge':
      c.data.mixture.bridge.source = synthetic.write_bridge(data_root / 'published')
    return cfg.from_config_dict(c)

  return make


@pytest.mark.parametrize('name', NAMES)
def test_trains_resumes_and_evaluates(name, load, tmp_path, capsys):
  config = load(name)
  workdir = tmp_path / 'run'
  train.train(dataclasses.replace(config, steps=2), workdir)
  train.train(config, workdir)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2, 3, 4]
  output = tmp_path / 'evaluation'
  report = run.evaluate(run.Options(workdir=str(workdir), output=str(output), videos=1))
  assert report == json.loads((output / 'evaluation.json').read_text())
  printed = capsys.readouterr().out
  if config.evaluation.env == 'tabletop':
    assert set(report['traces'].values()) == {1}
    assert {row['robot'] for row in report['success']} <= {'disc', 'arm', 'cart'}
    assert 'control step' in printed
    assert list(output.glob('*_0.mp4')) and list(output.glob('*_0_actions.png'))
  else:
    assert report['traces'] == 1 and report['open_loop']['action_error_hold'] > 0
  assert list(output.glob('*_0.png'))


@pytest.mark.parametrize('name', NAMES)
def test_full_config_is_valid(name):
  """The real sizes pass every check made before data is read."""
  assert cfg.from_config_dict(importlib.import_module(f'configs.{name}').get_config()).steps >= 1000

