"""The demos run as plain scripts at the smallest size, and the notebooks are what is made of
them.
"""

from __future__ import annotations

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from tests import programs

ROOT = pathlib.Path(__file__).parents[2]
COLAB = ROOT / 'launch/colab'
# Any new demo is tested by being there.
DEMOS = sorted(path.stem for path in COLAB.glob('*.py') if path.stem != 'to_notebook')
convert = runpy.run_path(str(COLAB / 'to_notebook.py'))['convert']


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


def test_cells():
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


@pytest.mark.parametrize('demo', DEMOS)
def test_notebook_is_up_to_date(demo):
  made = convert((COLAB / f'{demo}.py').read_text())
  assert (COLAB / f'{demo}.ipynb').read_text() == made, 'run: python launch/colab/to_notebook.py'


def test_colab_needs_to_know_the_repository(tmp_path, monkeypatch):
  cells = json.loads((COLAB / 'train_and_watch.ipynb').read_text())['cells']
  code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
  monkeypatch.setitem(sys.modules, 'google.colab', sys)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: pytest.fail('must not clone'))
  with pytest.raises(ValueError, match='REPOSITORY is empty: write in the cell above what'):
    exec('\n'.join(code[:2]), {})


@pytest.mark.slow
def test_train_and_watch_runs(tmp_path):
  source = (COLAB / 'train_and_watch.py').read_text()
  script = tmp_path / 'demo.py'
  script.write_text(source.replace("\nSIZE = ''", "\nSIZE = 'smoke'"))
  # The line is there: at full size the demo would not end in time.
  assert script.read_text() != source
  done = subprocess.run(
    [sys.executable, script],
    cwd=ROOT,
    env=programs.environment() | {'HOME': str(tmp_path)},
    text=True,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'done: step 4' in done.stdout
  assert 'traced 1 time(s)' in done.stdout
  workdir = tmp_path / 'wam/tiny'
  assert (workdir / 'loss.png').exists()
  assert {path.name for path in (workdir / 'watch').iterdir()} >= {
    f'disc_{number}{end}' for number in range(2) for end in ('.mp4', '.png', '_actions.png')
  }
