"""What the launchers install is all that the configs for pods need to start.

An environment is made with exactly that, but libtpu: read off what `launch/tpu.sh` prints that it
runs, not repeated here.
"""

from __future__ import annotations

import ast
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tokenizers

from tests import test_layers

ROOT = pathlib.Path(__file__).parents[2]
# What a machine has to be asked for: by a flag of training or of control, or because it computes on
# TPUs.
BY_FLAG = {'wandb', 'qwix', 'libtpu'}
CONFIGS = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  if importlib.import_module(f'configs.{path.stem}').get_config().model.text.kind == 'umt5'
)
# In the environment, with the names of packages and the vocabulary as arguments.
PROGRAM = """
import importlib, json, sys

import wam_jax.train
from configs import NAMES
from wam_jax import config as cfg
from wam_jax import storage
from wam_jax.data import prompts

packages, vocabulary = json.loads(sys.argv[1]), sys.argv[2]
missing = {}
for package in packages:
  try:
    importlib.import_module(package)
  except ImportError as e:
    missing[package] = str(e)
for module in (NAMES,):
  c = module.get_config()
  c.model.text.tokenizer = vocabulary
  text = cfg.from_config_dict(c).model.text
  assert prompts.make_tokenizer(text)('pick up the cup')[:2].tolist() == [3, 4]
  storage.make_path(f'gs://bucket/{c.name}')
print(json.dumps(missing))
"""


def read_extras() -> str:
  """Those that `launch/tpu.sh` installs on every host."""
  done = subprocess.run(
    [
      *(ROOT / 'launch/tpu.sh', 'sync', 'droid', '--zone=us-east5-a', '--ref=HEAD', '--dry_run'),
    ],
    check=True,
    text=True,
    capture_output=True,
  )
  setup = shlex.split(done.stdout.splitlines()[-1])[-1]
  return re.search(r'tpu_host.sh setup (\S+)', setup)[1]


def list_packages(modules: set[str]) -> set[str]:
  """Packages of others that these modules of ours import, wherever they do, and in turn."""
  found, waiting = set(), sorted(modules)
  while waiting:
    current = waiting.pop()
    for target in (test_layers.arrows(current) | list_late_imports(current)) - found:
      found.add(target)
      if target in test_layers.modules():
        waiting.append(target)
  return {
    name
    for name in found
    if name not in sys.stdlib_module_names and not test_layers.within(name, test_layers.FOLDERS)
  }


def list_late_imports(module: str) -> set[str]:
  """Packages that a module of ours imports by name when it needs them."""
  calls = [node for node in ast.walk(test_layers.parse(module)) if isinstance(node, ast.Call)]
  return {
    call.args[0].value.split('.')[0]
    for call in calls
    if ast.unparse(call.func) in ('importlib.import_module', '_import')
    and call.args
    and isinstance(call.args[0], ast.Constant)
  }


def list_modules() -> set[str]:
  """What runs on hosts for these configs: training, what makes their data, and the configs."""
  modules = {'wam_jax.train', 'data.statistics', 'data.encode.__main__'}
  for name in CONFIGS:
    modules.add(f'configs.{name}')
    for dataset in importlib.import_module(f'configs.{name}').get_config().data.mixture.values():
      maker = dataset.prepare.split()[0]
      modules.add(maker if not (ROOT / maker.replace('.', '/')).is_dir() else f'{maker}.__main__')
  return modules


def make_environment(place: pathlib.Path, extras: str) -> pathlib.Path:
  """The Python of a new environment in which the checkout is installed as hosts do it."""
  run = lambda *words: subprocess.run([*map(str, words)], cwd=ROOT, check=True)
  run(sys.executable, '-m', 'venv', place / 'uv')
  run(place / 'uv/bin/pip', 'install', '--quiet', 'uv')
  uv, python = place / 'uv/bin/uv', place / 'venv/bin/python'
  run(uv, 'venv', '--quiet', f'--python={sys.executable}', place / 'venv')
  run(uv, 'pip', 'install', '--quiet', f'--python={python}', '--editable', f'.[{extras}]')
  return python


def test_the_page_says_what_is_installed():
  (row,) = re.findall(r'^\|.*launch/tpu.sh run.*$', (ROOT / 'launch/README.md').read_text(), re.M)
  assert [extra for extra in read_extras().split(',') if f'`{extra}`' not in row] == []


@pytest.mark.slow
def test_every_pod_config_can_start_with_what_is_installed(tmp_path):
  assert len(CONFIGS) >= 6
  extras = read_extras().split(',')
  assert extras[0] == 'tpu'
  python = make_environment(tmp_path, ','.join(extras[1:]))

  words = {'<pad>': 0, '</s>': 1, '<unk>': 2, 'pick': 3, 'up': 4}
  vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<unk>'))
  vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  vocabulary.save(str(tmp_path / 'tokenizer.json'))
  # Vocabularies come in two formats, each read by a package that its file asks for.
  packages = sorted(list_packages(list_modules()) - BY_FLAG | {'sentencepiece', 'tokenizers'})
  assert {'jax', 'orbax', 'cv2', 'ftfy', 'av', 'pyarrow'} <= set(packages)
  done = subprocess.run(
    [
      *(python, '-c', PROGRAM.replace('NAMES', ', '.join(CONFIGS))),
      *(json.dumps(packages), tmp_path / 'tokenizer.json'),
    ],
    cwd=ROOT,
    # Nothing of the environment that the tests run in.
    env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'},
    text=True,
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == {}
