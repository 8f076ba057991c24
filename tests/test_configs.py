"""Every file in configs/ with `smoke`: data made, trained; one of each kind by the commands,
continued, evaluated.
"""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from tests import programs
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import train

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
# Variants of one large experiment: trained in this process, but for one that goes through the
# commands.
VARIANTS = {'droid_14b', 'droid_14b_flash', 'droid_5b', 'agibot_14b', 'yam_fewshot'}


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
  """Where all smoke datasets of this module go; those that configs share are made once."""
  return tmp_path_factory.mktemp('datasets')


def run(module: str, *flags: str) -> str:
  """`python -m module flags` on one device; what it prints."""
  done = subprocess.run(
    [sys.executable, '-m', module, *flags],
    cwd=ROOT,
    env=programs.environment(),
    text=True,
    timeout=300,
    capture_output=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def place_flags(name: str, data_root: pathlib.Path) -> list[str]:
  """Flags that put the datasets of a smoke config below `data_root`."""
  if name == 'bridge':
    source = data_root / 'published'
    path = synthetic.write_bridge(source) if not source.exists() else str(source / 'tfrecord')
    place = f'{data_root}/bridge/1.0.0'
    return [
      f'--config.data.mixture.bridge.source={path}',
      f'--config.data.mixture.bridge.path={place}',
    ]
  mixture = importlib.import_module(f'configs.{name}').get_config('smoke').data.mixture
  return [
    f'--config.data.mixture.{key}.{field}={getattr(dataset, field).replace(cfg.DATA_ROOT, str(data_root))}'
    for key, dataset in mixture.items()
    for field in ('path', 'prepare')
  ]


@pytest.mark.parametrize('name', sorted(set(NAMES) - VARIANTS))
def test_trains_continues_and_evaluates(name, data_root, tmp_path):
  workdir, output = tmp_path / 'run', tmp_path / 'evaluation'
  train = [
    f'--config=configs/{name}.py:smoke',
    f'--workdir={workdir}',
    *place_flags(name, data_root),
  ]
  assert 'stopped' not in run('wam_jax.train', *train, '--config.steps=2')
  assert 'continuing after step 2 of 4' in run('wam_jax.train', *train)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2, 3, 4]
  printed = run('wam_jax.evaluate', f'--workdir={workdir}', f'--output={output}', '--videos=1')
  report = json.loads((output / 'evaluation.json').read_text())
  if report.get('open_loop'):
    assert report['open_loop']['action_error_hold'] > 0
    assert 'PSNR' in printed
  else:
    assert {row['robot'] for row in report['success']} <= {'disc', 'arm', 'cart', 'all'}
    assert list(output.glob('*_0.mp4'))
    assert list(output.glob('*_0_actions.png'))
  assert report['traces'] == 1
  assert 'traced 1 time(s)' in printed
  assert list(output.glob('*_0.png'))


@pytest.mark.parametrize('name', sorted(VARIANTS))
def test_variants_train(name, data_root, tmp_path):
  c = importlib.import_module(f'configs.{name}').get_config('smoke')
  c.steps = 2
  for dataset in c.data.mixture.values():
    dataset.path, dataset.prepare = (
      text.replace(cfg.DATA_ROOT, str(data_root)) for text in (dataset.path, dataset.prepare)
    )
  assert train.train(cfg.from_config_dict(c), tmp_path) == 0
  assert [
    json.loads(line)['step'] for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ] == [1, 2]


@pytest.mark.parametrize('name', NAMES)
def test_full_config_is_valid(name):
  """The real sizes pass every check made before data is read."""
  assert cfg.from_config_dict(importlib.import_module(f'configs.{name}').get_config()).steps >= 1000
