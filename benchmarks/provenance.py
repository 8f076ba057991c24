"""What a figure comes from: the command, the commit and the machine, printed and kept with it."""

from __future__ import annotations

import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from wam_jax import cli

_ROOT = pathlib.Path(__file__).parents[1]


def describe() -> dict[str, str]:
  """The command line, the commit of this directory and the processors of this machine."""
  command = shlex.join(['python', '-m', _name_module(), *sys.argv[1:]])
  return {'command': command, 'commit': _find_commit(), 'machine': _name_machine()}


def write(report: Mapping[str, Any]) -> None:
  """Prints what the figures come from, and writes both to the file of --json, if that is given."""
  made_by = describe()
  print(', '.join(f'{key}: {text}' for key, text in made_by.items()))
  cli.write_json({**report, 'made_by': made_by})


def _name_module() -> str:
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  return spec.name.removesuffix('.__main__') if spec else pathlib.Path(sys.argv[0]).stem


def _find_commit() -> str:
  """The commit, with a plus where files of it were changed; 'unknown' outside of a repository."""
  try:
    commit = _run_git('rev-parse', '--short', 'HEAD')
    return f'{commit}+' if _run_git('status', '--porcelain', '--untracked-files=no') else commit
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def _run_git(*arguments: str) -> str:
  done = subprocess.run(
    ['git', '-C', str(_ROOT), *arguments], capture_output=True, text=True, check=True
  )
  return done.stdout.strip()


def _name_machine() -> str:
  model = platform.processor() or platform.machine()
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    model = names[0] if names else model
  except OSError:
    pass  # Not Linux.
  return f'{os.cpu_count()} x {model}'
