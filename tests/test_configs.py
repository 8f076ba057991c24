"""Every file in configs/ with `smoke`: data made, trained, continued, evaluated; one of them by the
commands as a user types them.
"""

import importlib
import json
import pathlib
import re

import pytest

from tests import needs
from tests import programs
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import train

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
# Variants of one large experiment, which share a small stand-in of the model.
VARIANTS = {
  'droid_14b',
  'droid_14b_flash',
  'droid_5b',
  'agibot_14b',
  'yam_fewshot',
  'your_robot',
}


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
  """Where all smoke datasets of this module go; those that configs share are made once."""
  return tmp_path_factory.mktemp('datasets')


def steps_of(workdir: pathlib.Path) -> list[int]:
  """Steps of the lines of metrics.jsonl."""
  return [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').open()]


def load_config(name: str, data_root: pathlib.Path):
  """The smoke config of an experiment, as a ConfigDict, with its datasets below `data_root`."""
  c = importlib.import_module(f'configs.{name}').get_config('smoke')
  c.data.root = str(data_root)
  if name == 'bridge':
    source = data_root / 'published'
    made = source.exists()
    c.data.mixture.bridge.source = f'{source}/tfrecord' if made else synthetic.write_bridge(source)
  return c


def list_flags(c) -> list[str]:
  """Flags of the train command that put the datasets where `load_config` did."""
  sources = [
    f'--config.data.mixture.{name}.source={dataset.source}'
    for name, dataset in c.data.mixture.items()
    if dataset.source
  ]
  return [f'--config.data.root={c.data.root}', *sources]


def check_evaluation(output: pathlib.Path, printed: str) -> None:
  """What an evaluation leaves behind: figures, pictures, and a policy that was traced once."""
  report = json.loads((output / 'evaluation.json').read_text())
  # All that it was asked for.
  assert {'policy', 'seed', 'sample', 'evaluation', 'timing'} <= set(report)
  if report.get('open_loop'):
    assert report['open_loop']['action_error_hold'] > 0
    assert 'PSNR' in printed
  else:
    assert {row['robot'] for row in report['success']} <= {
      'disc',
      'arm',
      'cart',
      'metaworld',
      'all',
    }
    assert list(output.glob('*_0.mp4'))
    assert list(output.glob('*_0_actions.png'))
  assert report['traces'] == 1
  assert 'traced 1 time(s)' in printed
  assert list(output.glob('*_0.png'))


def list_configs() -> list:
  """Those that differ in more than numbers; the main job always runs."""
  marks = {name: [] if name == 'tiny' else [pytest.mark.slow] for name in sorted(NAMES)}
  marks['metaworld'].append(needs.metaworld)
  return [pytest.param(name, marks=marks[name]) for name in marks if name not in VARIANTS]


@pytest.mark.parametrize('name', list_configs())
def test_trains_continues_and_evaluates(name, data_root, tmp_path):
  workdir, output = tmp_path / 'run', tmp_path / 'evaluation'
  train_flags = [
    f'--config=configs/{name}.py:smoke',
    f'--workdir={workdir}',
    *list_flags(load_config(name, data_root)),
  ]
  # A part of the schedule of four steps ends as usual.
  part = ('--config.steps=2', '--config.optimizer.decay_steps=4')
  assert 'stopped' not in programs.output('wam_jax.train', *train_flags, *part)
  assert 'continuing after step 2 of 4' in programs.output('wam_jax.train', *train_flags)
  assert steps_of(workdir) == [1, 2, 3, 4]
  printed = programs.output(
    'wam_jax.evaluate', f'--workdir={workdir}', f'--output={output}', '--videos=1'
  )
  check_evaluation(output, printed)


def list_variants() -> list:
  """Of those that differ in numbers alone, one of each tokenizer and noise always runs."""
  always = {'droid_14b', 'droid_14b_flash', 'droid_5b'}
  return [
    pytest.param(name, marks=[] if name in always else [pytest.mark.slow])
    for name in sorted(VARIANTS)
  ]


@pytest.mark.parametrize('name', list_variants())
def test_variants_train(name, data_root, tmp_path):
  c = load_config(name, data_root)
  c.steps = 2
  assert train.train(cfg.from_config_dict(c), tmp_path) == 0
  assert steps_of(tmp_path) == [1, 2]


def list_paths(c) -> list[str]:
  """Every path that a config names by itself."""
  datasets = [dataset.path for dataset in c.data.mixture.values()]
  return [path for path in (c.init_from, c.model.text.tokenizer, *datasets) if path]


@pytest.mark.parametrize('arg', ['', 'smoke'])
@pytest.mark.parametrize('name', NAMES)
def test_one_key_moves_every_path(name, arg):
  c = importlib.import_module(f'configs.{name}').get_config(arg)
  default = list_paths(c)
  assert all(path.startswith('~/wam_jax_data/') for path in default)
  c.data.root = 'gs://bucket/data'
  moved = [path.replace('~/wam_jax_data', 'gs://bucket/data') for path in default]
  assert list_paths(c) == moved
  config = cfg.from_config_dict(c)
  assert [dataset.path for dataset in config.data.mixture.values()] == [
    path for path in moved if '1.0' in path
  ]


def test_the_vocabulary_follows_the_weights():
  c = importlib.import_module('configs.droid_14b').get_config()
  c.init_from = 'gs://other/run'
  c.data.root = '/mnt/data'
  assert c.model.text.tokenizer == 'gs://other/run/tokenizer.json'
  assert c.data.mixture.droid.path == '/mnt/data/droid/1.0.1'


@pytest.mark.parametrize('name', NAMES)
def test_full_config_is_valid(name):
  """The real sizes pass every check made before data is read."""
  assert cfg.from_config_dict(importlib.import_module(f'configs.{name}').get_config()).steps >= 1000


def test_days_that_configs_and_the_page_promise_are_those_of_the_results():
  """benchmarks/RESULTS.md is the truth: the last column of its table of runs on pods."""
  results = (ROOT / 'benchmarks' / 'RESULTS.md').read_text()
  rows = re.findall(r'^\| `(\w+?)(?::(\w+))?` \| `v\d.*\| ([\d.]+) \|$', results, re.M)
  assert {name for name, _, _ in rows} >= {'droid_5b', 'droid_14b', 'agibot_14b'}
  page = (ROOT / 'docs/fits.md').read_text()
  for name, layout, days in rows:
    doc = importlib.import_module(f'configs.{name}').__doc__
    assert f'{days} days' in ' '.join(doc.split()), (name, layout, days)
    lines = [line for line in page.splitlines() if re.match(rf'\| .*`{name}`', line)]
    assert f'{days} days' in lines[0], (name, layout, days)
