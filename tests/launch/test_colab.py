"""The demos run as plain scripts at the smallest size, and the notebooks are what is made of
them.
"""

from __future__ import annotations

import ast
import importlib
import json
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from launch.colab import commands
from tests import programs

ROOT = pathlib.Path(__file__).parents[2]
COLAB = ROOT / 'launch/colab'
to_notebook = runpy.run_path(str(COLAB / 'to_notebook.py'))
convert = to_notebook['convert']
DEMOS = to_notebook['DEMOS']
REPOSITORY = 'https://github.com/somebody/wam'


SCRIPT = """\
# ruff: off

# %% [markdown]
# # Title
#
# Text.

# %%
x = 1  # %% stays

# comment
"""


def test_a_script_becomes_its_cells():
  notebook = json.loads(convert(SCRIPT))
  assert [(cell['cell_type'], ''.join(cell['source'])) for cell in notebook['cells']] == [
    ('markdown', '# Title\n\nText.'),
    ('code', 'x = 1  # %% stays\n\n# comment'),
  ]
  # The first version whose cells have ids, which keep diffs small.
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)


def test_text_beside_the_mark_of_a_cell_would_be_lost():
  with pytest.raises(ValueError, match=r"not with '\[markdown\] ## Title'"):
    convert('# %% [markdown] ## Title\n# Text.\n')


@pytest.mark.parametrize('script', ['', '# only a comment\n', 'import os\n# %%\nx = 1\n'])
def test_a_script_begins_with_a_cell(script):
  with pytest.raises(ValueError, match='must begin with a cell'):
    convert(script)


def test_no_script_with_cells_is_left_out():
  scripts = COLAB.glob('*.py')
  demos = {path.stem for path in scripts if re.search(r'^# %%$', path.read_text(), re.M)}
  assert demos == set(DEMOS)


@pytest.mark.parametrize('demo', DEMOS)
def test_what_a_demo_takes_of_the_project_is_there(demo):
  """The demos themselves run in the slow tests alone; a name that moved is told by every run."""
  tree = ast.parse((COLAB / f'{demo}.py').read_text())
  modules = {}
  for node in ast.walk(tree):
    if not isinstance(node, ast.ImportFrom) or not (ROOT / node.module.split('.')[0]).is_dir():
      continue
    for alias in node.names:
      modules[alias.asname or alias.name] = importlib.import_module(f'{node.module}.{alias.name}')
  assert modules
  attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
  for node in attributes:
    if isinstance(node.value, ast.Name) and node.value.id in modules:
      assert hasattr(modules[node.value.id], node.attr), f'line {node.lineno}: {node.attr}'


def test_notebooks_and_their_page_are_up_to_date():
  for path, made in to_notebook['make_all']().items():
    assert path.read_text() == made, f'{path}: run python launch/colab/to_notebook.py'


def read_code(notebook: str) -> list[str]:
  cells = json.loads(notebook)['cells']
  return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']


@pytest.fixture
def colab(tmp_path, monkeypatch):
  """The commands that a notebook ran on a new Colab machine, so far."""
  ran = []

  def run(words, check):
    ran.append([str(word) for word in words])
    # What `git clone` leaves.
    (tmp_path / 'wam_jax/configs').mkdir(parents=True, exist_ok=True)

  monkeypatch.setitem(sys.modules, 'google.colab', sys)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  return ran


@pytest.mark.parametrize('demo', DEMOS)
def test_colab_needs_to_know_the_repository(demo, colab):
  notebook = convert((COLAB / f'{demo}.py').read_text(), demo, '')
  with pytest.raises(ValueError, match='REPOSITORY is empty: write in this cell where'):
    exec('\n'.join(read_code(notebook)[:2]), {})
  assert colab == []


@pytest.mark.parametrize('demo', DEMOS)
def test_colab_gets_the_project_from_the_one_address(demo, colab):
  notebook = convert((COLAB / f'{demo}.py').read_text(), demo, REPOSITORY)
  exec('\n'.join(read_code(notebook)[:2]), {})
  clone, install = colab
  assert clone == ['git', 'clone', '--quiet', REPOSITORY, 'wam_jax']
  assert re.fullmatch(r'wam_jax\[[a-z0-9,]+\]', install[-1])
  link = (
    f'https://colab.research.google.com/github/somebody/wam/blob/main/launch/colab/{demo}.ipynb'
  )
  assert f'[Open in Colab]({link})' in notebook
  page = to_notebook['write_page']({demo: (COLAB / f'{demo}.py').read_text()}, REPOSITORY)
  assert link in page


@pytest.mark.parametrize(
  'text, want', [('# A comment.\n', ''), (f'# x\n{REPOSITORY}.git\n', REPOSITORY)]
)
def test_the_address_of_the_project_is_read(tmp_path, text, want):
  file = tmp_path / 'REPOSITORY'
  file.write_text(text)
  assert to_notebook['read_repository'](file) == want


def test_an_address_that_colab_cannot_open_is_refused(tmp_path):
  file = tmp_path / 'REPOSITORY'
  file.write_text('git@github.com:somebody/wam.git')
  with pytest.raises(ValueError, match='must hold https://github.com/OWNER/NAME, not'):
    to_notebook['read_repository'](file)


def test_what_a_command_says_is_shown_and_its_failure_told(capfd):
  running = commands.start('python -c \'print(1); print("at: x"); raise SystemExit(3)\'')
  assert commands.follow(running, until='at: ') == 'x'
  with pytest.raises(RuntimeError, match='ended with status 3'):
    commands.follow(running)
  assert capfd.readouterr().out.splitlines()[1:] == ['1', 'at: x']


def test_the_loss_is_a_picture_while_its_file_is_written(tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(commands, 'display', lambda what, **_: shown.append(what))
  line = '{"step": 1, "loss": 2.0}'
  (tmp_path / 'metrics.jsonl').write_text(f'{line}\n{line[:9]}')
  commands.train("python -c 'print(1)'", tmp_path)
  # Of a figure alone a notebook would show the name.
  assert shown[0]._repr_png_()
  axis = commands.draw_loss(tmp_path).axes[0]
  assert axis.lines[0].get_xydata().tolist() == [[1, 2]]


def run_smoke(demo: str, home: pathlib.Path) -> str:
  """What a notebook prints in a terminal, at the smallest size."""
  content = (COLAB / f'{demo}.ipynb').read_text()
  notebook = home / 'demo.ipynb'
  notebook.write_text(content.replace("SIZE = ''", "SIZE = 'smoke'", 1))
  # The line is there: at full size the demo would not end in time.
  assert notebook.read_text() != content
  done = subprocess.run(
    [sys.executable, '-m', 'IPython', notebook],
    cwd=ROOT,
    env=programs.environment() | {'HOME': str(home)},
    text=True,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.mark.slow
def test_the_notebook_train_and_watch(tmp_path):
  said = run_smoke('train_and_watch', tmp_path)
  assert 'done: step 4' in said
  assert 'traced 1 time(s)' in said
  workdir = tmp_path / 'wam/tiny'
  assert (workdir / 'loss.png').exists()
  assert {path.name for path in (workdir / 'watch').iterdir()} >= {
    f'disc_0{end}' for end in ('.mp4', '.png', '_actions.png')
  }


@pytest.mark.slow
def test_the_notebook_flash(tmp_path):
  said = run_smoke('flash', tmp_path)
  ways = json.loads((tmp_path / 'wam/flash/sampling.json').read_text())['ways']
  assert list(ways) == ['flash1', 'pass1_actions4']
  # The weights act: these are no random ones.
  assert ways['pass1_actions4']['successes'] == 1
  assert 'traced 1 time(s)' in said
  assert (tmp_path / 'wam/flash/success_and_time.png').exists()
  assert (tmp_path / 'wam/flash/watch/disc_0.mp4').exists()


@pytest.mark.slow
def test_the_notebook_serve_and_connect(tmp_path):
  said = run_smoke('serve_and_connect', tmp_path)
  assert 'scene 0: done' in said
  assert 'scene 1: done' in said
  assert len(list((tmp_path / 'wam/served').glob('**/*.mp4'))) >= 2


@pytest.mark.slow
def test_look_at_your_data(tmp_path):
  said = run_smoke('look_at_your_data', tmp_path)
  assert 'passed: 0 failures' in said
  # Two cameras of 32 x 32 side by side; two chunks of 8 frames and 24 actions of 3 numbers.
  assert 'frames (16, 17, 32, 64, 3), actions (16, 48, 3)' in said
  place = tmp_path / 'wam/look'
  assert {path.name for path in (place / 'card').glob('*.png')} == {
    f'wam_validation_tabletop_{name}.png' for name in ('sheet', 'state', 'action')
  }
  assert (place / 'window.png').exists()
  assert (place / 'actions.png').exists()


@pytest.mark.slow
def test_the_notebook_fine_tune(tmp_path):
  said = run_smoke('fine_tune', tmp_path)
  assert said.count('my_arm gets row 4, new') == 2
  assert said.count('weights from step 0 of weights/tiny') == 2
  assert said.count('open loop on ') == 2
  configs = [
    json.loads((tmp_path / f'wam/fine_tune/{name}/config.json').read_text())
    for name in ('lora', 'all')
  ]
  assert [config['model']['lora']['rank'] for config in configs] == [4, 0]


@pytest.mark.slow
def test_the_notebook_released_checkpoint(tmp_path):
  said = run_smoke('released_checkpoint', tmp_path)
  assert 'CHECKPOINT is empty: from here on random weights' in said
  assert 'layout dreamzero' in said
  assert 'embodiment droid_wan22: 15 Hz' in said
  assert 'open loop on 1 windows' in said
  came, of = re.search(r'(\d+) of (\d+) arrays came back as they were', said).groups()
  assert came == of
  assert int(of) > 100
  place = tmp_path / 'wam/released'
  assert (place / 'predicted/window_0.png').exists()
  assert (place / 'predicted/window_0_actions.png').exists()


@pytest.mark.slow
def test_the_notebook_tpu_host(tmp_path):
  said = run_smoke('tpu_host', tmp_path)
  assert "SIZE = 'smoke': a narrow model on whatever is here" in said
  assert 'devices: 1 cpu' in said
  # The compiler of TPUs is no part of what the tests install; with it, the plan is made.
  assert 'The compiler of TPUs is not installed' in said or 'HBM per device' in said
  assert 'the command would start there' in said
  assert 'done: step 5' in said
  config = json.loads((tmp_path / 'wam/tpu_host/run/config.json').read_text())
  assert (config['name'], config['steps'], config['mesh']['fsdp']) == ('droid_5b_smoke', 5, 1)
