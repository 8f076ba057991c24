"""Every command on every page parses as it is typed, and those that a test can afford run, on small
stand-ins for what a reader has. docs/pods.md and docs/your_robot.md have tests of their own.
"""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest

from tests import programs
from tests import test_cli
from tests.data import synthetic
from tests.interop import test_imported_run
from tests.interop import tiny

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
  path.relative_to(ROOT).as_posix()
  for path in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md'))
  if path.name not in ('pods.md', 'your_robot.md')
)
# Programs that are not ours.
OTHERS = {'pip', 'pytest', 'mkdocs'}
# What a reader puts in the place of a word.
WORDS = {'configs/CONFIG.py': 'configs/tiny.py', 'configs/NAME.py': 'configs/tiny.py'}


def read_commands(page: str) -> list[list[str]]:
  """The words of the commands in the blocks of a page."""
  blocks = re.findall(r'^```(\w*)\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S)
  commands = [text for language, text in blocks if language in ('', 'sh')]
  lines = ''.join(commands).replace('\\\n', ' ').splitlines()
  words = [shlex.split(part, comments=True) for line in lines for part in line.split(' && ')]
  return [command for command in words if command]


def fill_in(words: list[str]) -> list[str]:
  """Module and flags of a command, with files in the place of names."""
  flags = words[2:]
  for name, value in WORDS.items():
    flags = [word.replace(name, value) for word in flags]
  return flags


def find(page: str, *wanted: str) -> list[str]:
  """Module and flags of the one command of a page that has these words or their starts."""

  def has(words: list[str]) -> bool:
    return all(any(word.startswith(start) for word in words) for start in wanted)

  (found,) = [words for words in read_commands(page) if has(words)]
  return fill_in(found)


@pytest.mark.parametrize('page', PAGES)
def test_blocks_hold_commands_that_are_ours_or_known(page):
  for words in read_commands(page):
    ours = words[0] == 'python' and (words[1] == '-m' or (ROOT / words[1]).exists())
    assert ours or words[0] in OTHERS, words


def test_every_command_has_its_row():
  page = (ROOT / 'docs/commands.md').read_text()
  named = {word for _, word in re.findall(r'(`python -m (?:wam_jax|data)|`)\.(\w+)', page)}
  for module in test_cli.COMMANDS:
    package, name = module.split('.', 1)
    # The others are for those who change the project: benchmarks/README.md, CONTRIBUTING.md.
    assert name in named or package in ('benchmarks', 'docs'), module


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_every_command_parses(page):
  """By the command itself, which stops when flags and config are read."""
  for words in read_commands(page):
    if words[:2] == ['python', '-m']:
      done = programs.run(*fill_in(words), '--only_check_args')
      assert done.returncode == 0, (words, done.stderr)
      assert done.stdout == ''


class Reader:
  """Somebody who types commands of a page, in a home of their own."""

  def __init__(self, home: pathlib.Path, places: dict[str, str] | None = None):
    self.home = home
    self.places = places or {}

  def type(self, page: str, *wanted: str, more: tuple[str, ...] = (), status: int = 0) -> str:
    """What the command of a page prints, with `more` after it, that keeps it small."""
    words = find(page, *wanted)
    for name, place in self.places.items():
      words = [word.replace(name, place) for word in words]
    return programs.output(*words, *more, status=status, variables={'HOME': str(self.home)})


@pytest.mark.slow
def test_start_here(tmp_path):
  reader = Reader(tmp_path)
  page = 'docs/index.md'
  assert 'done: step 4' in reader.type(page, 'wam_jax.train', '--config=configs/tiny.py:smoke')
  printed = reader.type(page, 'wam_jax.evaluate', '--workdir=~/wam/smoke')
  assert '95 % interval' in printed
  # What the page says lies there.
  (shown,) = (tmp_path / 'wam/smoke/evaluation').iterdir()
  kinds = {path.suffix for path in shown.rglob('*')}
  assert {'.mp4', '.png', '.json'} <= kinds

  # The same workdir in the place of the trained one.
  (tmp_path / 'wam/smoke').rename(tmp_path / 'wam/tiny')
  page = 'docs/evaluation.md'
  small = ('--episodes=2', '--videos=0')
  assert '0/2' in reader.type(page, 'wam_jax.evaluate', '--policy=hold', more=small)
  reader.type(page, 'wam_jax.evaluate', '--world=unseen_look', '--json', more=small)
  assert (tmp_path / 'wam/look.json').exists()


@pytest.mark.slow
def test_data_at_scale(tmp_path):
  """As published, that is TFRecord; BridgeData's robot in the place of DROID's."""
  synthetic.write_bridge(tmp_path, episodes=12, steps=24)
  reader = Reader(
    tmp_path,
    {
      'gs://gresearch/robotics/droid/1.0.1': f'{tmp_path}/tfrecord',
      '--workers=32': '--workers=1',
      '--embodiment=droid': '--embodiment=bridge_widowx',
    },
  )
  page = 'docs/data.md'
  made = tmp_path / 'wam_jax_data/droid/1.0.1'
  reader.type(page, 'data.convert')
  assert list(made.glob('*.array_record*'))
  reader.type(page, 'data.statistics')
  assert '12 episodes' in reader.type(
    page, 'data.validate', status=1
  )  # Made up, and found strange.
  assert list((tmp_path / 'wam/card').iterdir())


@pytest.mark.slow
def test_to_and_from_pytorch(tmp_path):
  official = tmp_path / 'official'
  tiny.write_dreamzero(official)
  test_imported_run.write_vocabulary(tmp_path / 'spiece.model')
  reader = Reader(
    tmp_path,
    {
      'DREAMZERO_DIRECTORY': str(official),
      'NEW_WORKDIR': f'{tmp_path}/imported',
      '--output=WORKDIR': f'--output={tmp_path}/imported',
      '--output=DIRECTORY': f'--output={tmp_path}/exported',
      'spiece.model': f'{tmp_path}/spiece.model',
    },
  )
  page = 'docs/pytorch.md'
  assert 'dreamzero' in reader.type(page, 'inspect')
  reader.type(page, 'import')
  reader.type(page, 'export')
  assert list((tmp_path / 'exported').glob('model*.safetensors'))
