"""A server that looks for newer checkpoints, where something is wrong with them."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import threading

import pytest

from tests.serving import engines
from wam_jax import checkpoint
from wam_jax import reloading

WEIGHTS = pathlib.Path(__file__).parent.parent / 'weights'


class Generations:
  """Takes weights, or fails as it is told."""

  def __init__(self):
    self.error: Exception | None = None
    self.taken = 0

  def replace(self, params, robots, step):
    if self.error:
      raise self.error
    assert params
    assert robots
    assert step
    self.taken += 1


@pytest.fixture
def run(tmp_path):
  """A workdir with one checkpoint, and what adds one more: of the same weights, or of others."""
  place = tmp_path / 'run'
  shutil.copytree(WEIGHTS / 'tiny', place)

  def add(step, name='tiny'):
    shutil.copytree(WEIGHTS / name / 'checkpoints/0', place / f'checkpoints/{step}')

  return place, add


def make(place, **changes):
  config = checkpoint.load_weights(place, 0, is_read=False).config
  generations, told = Generations(), []
  config = dataclasses.replace(config, **changes)
  return reloading.Reloader(generations, str(place), config, 0, told.append), generations, told


def test_only_what_is_newer_is_taken(run):
  place, add = run
  reloader, generations, told = make(place)
  assert not reloader.look()
  add(3)
  add(7)
  assert reloader.look()
  assert not reloader.look()
  assert (told, generations.taken, reloader.step) == ([7], 1, 7)


def test_a_checkpoint_of_another_model_is_refused_once(run, caplog):
  place, add = run
  add(1, 'tiny_flash')  # Its video sees no actions.
  reloader, generations, told = make(place)
  with caplog.at_level(logging.INFO):
    assert not reloader.look()
    assert not reloader.look()
  ours = [record for record in caplog.records if record.name.startswith('wam_jax')]
  (line,) = [record.getMessage() for record in ours]
  assert line == (
    'checkpoint 1 is not served, 0 still is: its config.model is another one; start the server '
    'again'
  )
  assert (told, generations.taken) == ([], 0)


@pytest.mark.parametrize('error', [OSError('storage is away'), RuntimeError('memory is full')])
def test_whatever_fails_the_looks_go_on(run, caplog, error):
  place, add = run
  reloader, generations, told = make(place)
  generations.error = error
  add(1)
  with caplog.at_level(logging.INFO):
    reloader.start(0.05)
    engines.wait_until(lambda: str(error) in caplog.text, seconds=20)
    generations.error = None
    add(2)
    engines.wait_until(lambda: told, seconds=20)
    reloader.stop()
  assert (told[-1], reloader.step) == (2, 2)
  # Nobody looks any more, and no thread is left to read while the interpreter ends.
  add(3)
  reloader.wake()
  assert not any(thread.name == 'reload' for thread in threading.enumerate())
  assert reloader.step == 2
