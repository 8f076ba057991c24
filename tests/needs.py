"""Marks of tests for what an installation may lack; what is skipped says how to install it.

Data that nobody need have is no such thing: see `samples.py`.
"""

from __future__ import annotations

import importlib.util

import pytest


def _make_mark(module: str, extra: str) -> pytest.MarkDecorator:
  return pytest.mark.skipif(
    importlib.util.find_spec(module) is None, reason=f"pip install -e '.[{extra}]'"
  )


gpu_compiler = _make_mark('jax_cuda13_plugin', 'aot-gpu')
libtpu = _make_mark('libtpu', 'aot')
metaworld = _make_mark('metaworld', 'metaworld')
mkdocs = _make_mark('mkdocs', 'docs')
