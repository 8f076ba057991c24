"""Programs are counted where JAX makes them, and those that come late are told."""

from __future__ import annotations

import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

from tests import programs
from wam_jax.control import startup

STAT = pathlib.Path('/proc/self/stat')


def test_programs_are_counted():
  x = jnp.arange(3.0)
  watch = startup.Watch()
  double = jax.jit(lambda x: x + x)
  double(x)
  double(x)
  assert (watch.made, watch.compiled, watch.found) == (1, 1, 0)
  assert watch.made_late == 0
  assert ': 1 programs, 1 compiled, 0 found in the compilation cache' in watch.note_ready()
  double(x)
  assert watch.made_late == 0
  double(x[:2])  # Another shape: the slice, and the program once more.
  assert watch.made_late == 2


@pytest.mark.skipif(not STAT.exists(), reason='needs /proc, as Linux has it')
def test_time_counts_from_the_start_of_the_process_not_of_its_imports():
  code = (
    'import time; time.sleep(1); from wam_jax.control import startup; '
    'print(startup.seconds_since_start())'
  )
  begun = time.monotonic()
  done = programs.run_code(code)
  # The system counts starts in hundredths of a second.
  assert 1 <= float(done.stdout) < time.monotonic() - begun + 0.02


def test_where_nothing_tells_the_start_time_counts_from_the_import(monkeypatch):
  monkeypatch.setattr(startup.pathlib.Path, 'exists', lambda path: path != STAT)
  monkeypatch.setattr(startup, '_IMPORTED_S', time.monotonic() - 5)
  assert 5 < startup.seconds_since_start() < 6
