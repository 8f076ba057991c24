"""`python -m tests.small_files BYTES MODULE ARGUMENTS`: a program whose process may write no file
that is larger, as on a full disk of its own.
"""

from __future__ import annotations

import resource
import runpy
import sys
from unittest import mock

from wam_jax import cli

HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
_stop = cli._stop


def stop(*args, **kwargs) -> None:
  resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))  # What it prints may go to a file, too.
  _stop(*args, **kwargs)


def main() -> None:
  size, module = sys.argv[1:3]
  del sys.argv[:2]
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), HARD))  # Python ignores SIGXFSZ.
  with mock.patch.object(cli, '_stop', stop):
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
