"""Missing datasets are made by their command, from whatever directory, or it is said what to do."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess

import pytest

import wam_jax
from tests import programs
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import prepare

ROOT = pathlib.Path(__file__).parents[2]
# Run in a process of its own, with the dataset's path and command as arguments.
SCRIPT = """
import sys
from wam_jax import config as cfg
from wam_jax.data import prepare
path, command = sys.argv[1:]
dataset = cfg.DatasetConfig(path=path, embodiment='tabletop_disc', prepare=command)
try:
  prepare.make_missing(cfg.DataConfig(mixture={'a': dataset}, embodiments=('tabletop_disc',)))
except ValueError as e:
  sys.exit(f'error: {e}')
"""


def make_data(path: pathlib.Path, command: str, source: str = '') -> cfg.DataConfig:
  data = synthetic.make_config({'a': (str(path), 'clock', 1.0)}).data
  dataset = dataclasses.replace(data.mixture['a'], prepare=command, source=source)
  return dataclasses.replace(data, mixture={'a': dataset})


def test_the_command_of_a_missing_dataset_is_run(tmp_path, monkeypatch):
  (tmp_path / 'maker.py').write_text('import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir()')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  target = tmp_path / 'made'
  with pytest.raises(
    ValueError, match=r'data.mixture.a.prepare: python -m maker elsewhere? ended|does not exist'
  ):
    prepare.make_missing(make_data(target, f'maker {tmp_path / "elsewhere"}'))
  prepare.make_missing(make_data(target, f'maker {target}'))
  assert target.exists()


@pytest.mark.parametrize('is_first', [True, False])
def test_of_several_processes_the_first_shows_how_it_is_made(
  tmp_path, monkeypatch, capfd, is_first
):
  maker = 'import pathlib, sys; print("made"); pathlib.Path(sys.argv[1]).mkdir(); sys.argv[2]'
  (tmp_path / 'maker.py').write_text(maker)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(prepare.progress, 'is_first_process', lambda: is_first)
  prepare.make_missing(make_data(tmp_path / 'made', f'maker {tmp_path / "made"} x'))
  out, err = capfd.readouterr()
  assert ('made' in out, 'making it: python -m maker' in err) == (is_first, is_first)
  # An error is shown by all.
  with pytest.raises(ValueError, match='ended with code 1'):
    prepare.make_missing(make_data(tmp_path / 'other', f'maker {tmp_path / "other"}'))
  assert 'IndexError' in capfd.readouterr().err


def test_a_source_that_is_not_given_is_asked_for(tmp_path):
  data = make_data(tmp_path / 'made', 'maker {path} {source}')
  with pytest.raises(ValueError, match=r'source, from which it is made, is empty; set either, as'):
    prepare.make_missing(data)


def run_elsewhere(cwd: pathlib.Path, site: pathlib.Path, *args: str) -> subprocess.CompletedProcess:
  """SCRIPT in another directory than the checkout, `site` being all that is installed."""
  return programs.run_code(SCRIPT, *args, variables={'PYTHONPATH': str(site)}, cwd=cwd)


def test_commands_of_the_checkout_run_from_another_directory(tmp_path):
  """As after `pip install -e .`: the package is found, and data/ is not on the path."""
  site, cwd = tmp_path / 'site', tmp_path / 'cwd'
  site.mkdir()
  (cwd / 'data').mkdir(parents=True)  # A folder of the user's that hides nothing.
  (site / 'wam_jax').symlink_to(pathlib.Path(wam_jax.__file__).parent)
  target = tmp_path / 'root/tabletop/disc_reach/1.0.0'
  command = (
    f'data.tabletop --output={tmp_path / "root"} --embodiment=disc --tasks=reach --episodes=1 '
    '--other_episodes=1 --workers=1'
  )
  done = run_elsewhere(cwd, site, str(target), command)
  assert done.returncode == 0, done.stderr
  assert (target / 'dataset_info.json').exists()


def test_without_the_checkout_it_is_said_what_to_do(tmp_path):
  site = tmp_path / 'site'
  shutil.copytree(ROOT / 'wam_jax', site / 'wam_jax')
  done = run_elsewhere(tmp_path, site, str(tmp_path / 'made'), 'makers.tabletop --tasks=reach')
  assert done.returncode == 1
  assert (
    f'error: data.mixture.a.path={tmp_path / "made"} is not there, and python -m makers.tabletop, '
    'which makes it, is not installed with wam_jax: run "python -m makers.tabletop --tasks=reach" '
    'in a checkout of the project, or name a dataset that is there with '
    '--config.data.mixture.a.path=DIR.'
  ) in done.stderr
