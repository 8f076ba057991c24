"""Programs are counted where JAX makes them, and those that come late are told."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wam_jax.control import startup


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


def test_time_goes_on_from_the_start_of_the_process():
  before = startup.seconds_since_start()
  assert 0 < before <= startup.seconds_since_start() < before + 60
