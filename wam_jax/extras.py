"""Which modules are installed, without importing them: those of the extras of `setup.py` may not
be.
"""

from __future__ import annotations

import importlib.util


def is_installed(module: str) -> bool:
  """Whether `import module` would find it; one in a package as 'package.module'."""
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # Of a parent package.
    return False
