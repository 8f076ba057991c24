"""Datasets that are not there yet are made first, by the command that the config names; then what
is kept beside them.

Of several processes the first one works, and the others wait for it. The commands are modules of
data/, which stands beside this package in a checkout and is not installed with it.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from etils import epath

import wam_jax
from wam_jax import config as cfg
from wam_jax import extras
from wam_jax import hosts
from wam_jax import progress
from wam_jax import storage
from wam_jax.data import scan


def make_missing(config: cfg.DataConfig) -> None:
  """Runs `prepare` of every dataset whose directory is not there; of several processes the first
  one, and then each whose disk is its own.

  Raises:
    ValueError: the command cannot be run, failed, or left no dataset.
  """
  with hosts.all_or_none('making the datasets', hosts.FOREVER_S):
    if progress.is_first_process():
      _prepare_all(config)
  with hosts.all_or_none('making the datasets on disks of their own', hosts.FOREVER_S):
    _prepare_all(config)


def complete_findings(findings: Sequence[scan.Finding]) -> None:
  """`scan.complete`, with the episodes read by the first process of the job alone; every process
  must call it with the same findings.
  """
  # Reading all episodes may take long: days, of a large dataset without a frame index.
  together = lambda: hosts.all_or_none('reading the episodes', hosts.FOREVER_S)
  scan.complete(findings, progress.is_first_process(), together)


def _prepare_all(config: cfg.DataConfig) -> None:
  for name, dataset in config.mixture.items():
    path = storage.make_path(dataset.path, f'data.mixture.{name}.path')
    if dataset.prepare and not path.exists():
      _prepare(name, dataset, path, config.root)


def _prepare(name: str, dataset: cfg.DatasetConfig, path: epath.Path, root: str) -> None:
  if '{source}' in dataset.prepare and not dataset.source:
    raise ValueError(
      f'data.mixture.{name}.path={path} is not there, and data.mixture.{name}.source, from which '
      f'it is made, is empty; set either, as --config.data.mixture.{name}.source=DIR.'
    )
  command = dataset.prepare.format(path=path, source=dataset.source, root=root)
  module, *arguments = shlex.split(command)
  checkout = _find_checkout()
  if checkout is None and not extras.is_installed(module):
    raise ValueError(
      f'data.mixture.{name}.path={path} is not there, and python -m {module}, which makes it, is '
      f'not installed with wam_jax: run "python -m {command}" in a checkout of the project, or '
      f'name a dataset that is there with --config.data.mixture.{name}.path=DIR.'
    )
  done = _run([sys.executable, '-m', module, *arguments], _make_environment(checkout), path)
  if done.returncode or not path.exists():
    raise ValueError(
      f'data.mixture.{name}.prepare: python -m {command} ended with code {done.returncode} '
      f'and {path} {"exists" if path.exists() else "does not exist"}.'
    )


def _run(
  command: Sequence[str], environment: dict[str, str], path: epath.Path
) -> subprocess.CompletedProcess[str]:
  """Runs the command that makes `path`, and shows what it prints: of several processes that of the
  first one, and of the others what one that fails says.
  """
  is_shown = progress.is_first_process()
  if is_shown:
    shown = shlex.join(['python', *command[1:]])
    print(f'{path} is not there; making it: {shown}', file=sys.stderr)
  done = subprocess.run(
    command, env=environment, check=False, capture_output=not is_shown, text=True
  )
  if done.returncode and not is_shown:
    sys.stderr.write(done.stderr)
  return done


def _find_checkout() -> pathlib.Path | None:
  """The checkout that this package is part of or was installed from (`pip install -e .`)."""
  root = pathlib.Path(wam_jax.__file__).resolve().parents[1]
  is_checkout = (root / 'data' / '__init__.py').exists() and (root / 'pyproject.toml').exists()
  return root if is_checkout else None


def _make_environment(checkout: pathlib.Path | None) -> dict[str, str]:
  """This process's, in which modules of the checkout are found from any directory."""
  environment = dict(os.environ)
  if checkout is not None:
    others = environment.get('PYTHONPATH', '')
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(checkout), others]))
  return environment
