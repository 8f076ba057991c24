"""docs/pods.md does what it says: its launchers print, its meshes fit, and its commands run one
after the other, on stand-ins for the bucket, the robot and the weights.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess

import pytest

from tests import object_store
from tests import programs
from tests.data import synthetic

ROOT = pathlib.Path(__file__).parents[2]
OTHERS = {'gcloud', 'pip', 'xpk'}  # Programs that are not ours.


def read_commands() -> list[list[str]]:
  """The words of every command on the page, with names in place of what a reader fills in."""
  text = (ROOT / 'docs/pods.md').read_text()
  for name in ('PROJECT', 'BUCKET', 'NET'):
    text = text.replace(name, name.lower())
  blocks = re.findall(r'^```\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
  return [shlex.split(line) for line in lines]


COMMANDS = read_commands()
LAUNCHERS = [words for words in COMMANDS if words[0].startswith('launch/')]


def find_flag(words: list[str], name: str) -> str:
  """The value of --NAME=VALUE, '' where there is none."""
  return next((w.split('=', 1)[1] for w in words if w.startswith(f'--{name}=')), '')


def cut(words: list[str], module: str) -> list[str]:
  """The flags of `python -m MODULE`, wherever that stands in a command."""
  return words[words.index(module) + 1 :]


def test_the_page_names_programs_that_are_ours_or_known():
  assert {words[0] for words in COMMANDS} == {
    *OTHERS,
    'python',
    'launch/tpu.sh',
    'launch/xpk.sh',
  }
  # Every step has its command.
  assert {words[1] for words in LAUNCHERS} >= {'check', 'run', 'watch', 'status', 'stop', 'delete'}


@pytest.mark.parametrize('words', LAUNCHERS, ids=lambda words: ' '.join(words[:3]))
def test_launchers_take_what_the_page_gives_them(words):
  given = [ROOT / words[0], *words[1:3], '--dry_run', *words[3:]]
  done = subprocess.run(given, cwd=ROOT, text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout


def test_prices_are_linked_and_not_copied():
  text = (ROOT / 'docs/pods.md').read_text()
  assert 'https://cloud.google.com/tpu/pricing' in text
  assert not re.search(r'[$€]\s?\d|\d\s?(USD|dollars?)', text)


TRAININGS = [words for words in COMMANDS if {'wam_jax.train', 'wam_jax.check'} & set(words)]


@pytest.mark.slow
@pytest.mark.parametrize('words', TRAININGS, ids=lambda words: ' '.join(words[:3]))
def test_every_mesh_fits_its_slice(words, tmp_path):
  """Nothing else can be right here, where there are no data."""
  module = 'wam_jax.check' if 'wam_jax.check' in words else 'wam_jax.train'
  flags = [w for w in cut(words, module) if not w.startswith(('--workdir', '--topology'))]
  slices = find_flag(words, 'slices') or '1'
  slice_name = (
    find_flag(words, 'accelerator')
    or find_flag(words, 'topology')
    or find_flag(words, 'tpu_type').replace('-', ':')
  )
  place = (f'--topology={slice_name}', f'--slices={slices}', f'--workdir={tmp_path}')
  done = programs.run('wam_jax.check', *flags, *place, '--config.data.root=/nowhere')
  found = dict(line.split(': ', 1) for line in done.stdout.splitlines())
  assert found['mesh'] != 'FAILED', done.stderr
  # The two that are not there, not three.
  assert [what for what, said in found.items() if said == 'FAILED'] == [
    'vocabulary',
    'dataset droid',
    'init_from',
  ]


def stand_in(word: str, source: str) -> str:
  """A word of the page with the robot, the buckets and the config that a test can have."""
  for here, there in (
    ('gs://gresearch/robotics/droid/1.0.1', source),
    ('gs://bucket-data/wan2_1_i2v_14b', 'gs://bucket/data/weights'),
    ('gs://bucket-data/droid/1.0.1', 'gs://bucket/data/bridge_dataset/1.0.0'),
    ('gs://bucket-runs', 'gs://bucket/runs'),
    ('--config.data.root=/mnt/data', '--config.data.root=gs://bucket/data'),
    ('--config=configs/droid_14b.py', '--config=configs/bridge.py'),
    ('--embodiment=droid', '--embodiment=bridge_widowx'),
    ('--workers=32', '--workers=1'),
  ):
    word = word.replace(here, there)
  return word


@pytest.mark.slow
def test_from_the_published_dataset_to_a_checkpoint(tmp_path):
  """The commands of steps 2 and 4 to 6 in a row; a run of two steps stands for the import."""
  synthetic.write_bridge(tmp_path, episodes=12, steps=12)
  source = f'{tmp_path}/tfrecord'
  small = (
    '--config.batch_size=8',
    '--config.steps=2',
    '--config.model.dim=24',
    '--config.model.mlp_dim=48',
    '--config.model.num_layers=1',
    '--config.model.tokenizer.fit_windows=16',
  )

  with object_store.ObjectStore() as store:
    # Of one host, as srun starts it.
    variables = store.environment | {
      'SLURM_JOB_ID': str(os.getpid()),
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': '1',
      'SLURM_PROCID': '0',
      'SLURM_LOCALID': '0',
    }

    def run(module: str, words: list[str], *more: str) -> str:
      flags = [stand_in(word, source) for word in cut(words, module)]
      return programs.output(module, *flags, *more, variables=variables)

    def find(*wanted: str) -> list[str]:
      return next(words for words in COMMANDS if set(wanted) <= set(words))

    run('data.convert', find('data.convert'))
    run('data.statistics', find('data.statistics'))
    data = '--config.data.root=gs://bucket/data'
    imported = ('--config=configs/bridge.py', '--workdir=gs://bucket/data/weights', data, *small)
    done = programs.run('wam_jax.train', *imported, variables=variables)
    assert done.returncode == 0, done.stderr

    printed = run('data.encode', find('run', 'data.encode'))
    assert 'encoded now' in printed
    training = find('run', 'wam_jax.train')
    from_there = (
      *small,
      '--config.init_from=gs://bucket/data/weights',
      '--config.data.features=require',
    )
    checked = [word for word in training if word != 'wam_jax.train']
    checked.insert(checked.index('-m') + 1, 'wam_jax.check')
    printed = run('wam_jax.check', checked, *from_there)
    assert printed.endswith('the command would start there\n')
    assert 'windows stored' in printed
    assert 'done: step 2' in run('wam_jax.train', training, *from_there)
    assert store.read('runs/droid_14b/metrics.jsonl')
    assert [name for name in store.list('runs/droid_14b/checkpoints/2/') if 'params' in name]
