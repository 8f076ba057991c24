"""Asking for a compiler that is not there; what it says is in test_compile and test_memory."""

from __future__ import annotations

import pytest

from tests import needs
from tests import programs
from tests import train_config
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.aot import compiler


def test_without_libtpu_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setattr(compiler.importlib.util, 'find_spec', lambda name: None)
  config = cfg.from_config_dict(train_config.get_config())
  with pytest.raises(ValueError, match='pip install'):
    compiler.compile_step(config, chips.find('v5e:2x2'), tmp_path)


DESCRIBE_ALL = """
from wam_jax import chips
from wam_jax.aot import compiler

for chip in chips.CHIPS:
  for where in chips.slices(chip):
    devices = compiler.describe(where)
    assert len(devices) == where.devices, where.name
"""


@needs.libtpu
def test_the_compiler_knows_every_slice_that_can_be_named_a_single_chip_too():
  done = programs.run_code(DESCRIBE_ALL, variables=compiler.ENVIRONMENT)
  assert done.returncode == 0, done.stderr
