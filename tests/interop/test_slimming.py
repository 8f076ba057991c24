"""`wam_jax.convert slim`: the weights of a run alone act as the run does."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop import slimming


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with averages, which are twice the weights."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  params, frozen, _ = conversions.make_trees(tiny.I2V)
  config = cfg.TrainConfig(model=tiny.I2V, data=cfg.DataConfig(embodiments=('droid',)))
  conversions.write_run(workdir, config, params, frozen, [conversions.make_droid()])
  return workdir


@pytest.mark.parametrize('dtype', ['keep', 'bfloat16'])
def test_what_acts_is_that_of_the_run(tmp_path, run, dtype):
  report = slimming.slim(own.open_workdir(run, None), tmp_path / 'slim', dtype)
  assert (report['averaged'], report['step'], report['dtype']) == (True, 3, dtype)
  want, got = checkpoint.load_for_inference(run), checkpoint.load_for_inference(tmp_path / 'slim')
  assert (got.config, got.metadata, got.step) == (want.config, want.metadata, 0)
  rounded = lazy.DTYPES[dtype] or np.float32
  jax.tree.map(np.testing.assert_array_equal, got.frozen, want.frozen)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(rounded), strict=True),
    got.params,
    want.params,
  )
  # Neither optimizer nor a second set of weights.
  directories = [path.name for path in (tmp_path / 'slim/checkpoints/0').iterdir() if path.is_dir()]
  assert sorted(directories) == ['metadata', 'params']


def test_a_slim_workdir_can_be_made_slim_and_exported(tmp_path, run):
  slimming.slim(own.open_workdir(run, None), tmp_path / 'slim', 'keep')
  again = slimming.slim(own.open_workdir(tmp_path / 'slim', None), tmp_path / 'again', 'keep')
  first, second = (own.open_workdir(tmp_path / name, None) for name in ('slim', 'again'))
  assert first.source['step'] == 3
  assert second.source['base'] == first.source
  assert again['weights'] == checkpoint.load_metadata(first_place(first))['weights']
  conversions.export_to(tmp_path / 'slim', tmp_path / 'back')
  conversions.export_to(run, tmp_path / 'want')
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), tiny.load(tmp_path / 'want'))


def test_training_does_not_go_on_in_it(tmp_path, run):
  slimming.slim(own.open_workdir(run, None), tmp_path / 'slim', 'keep')
  message = f'weights alone.* another --workdir, and --config.init_from={tmp_path / "slim"}'
  config = own.open_workdir(run, None).config
  checkpoints = checkpoint.Checkpoints(tmp_path / 'slim', 1)
  with checkpoints, pytest.raises(checkpoint.CheckpointError, match=message):
    checkpoints.restore(config, lambda frozen: frozen, print)


def first_place(opened):
  return opened.workdir / 'checkpoints' / str(opened.step)


def test_an_output_that_is_there_stays(tmp_path, run):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/notes.txt').write_text('mine')
  with pytest.raises(ValueError, match='exists already; nothing was changed'):
    slimming.slim(own.open_workdir(run, None), tmp_path / 'mine', 'keep')
  assert [path.name for path in tmp_path.rglob('*')] == ['mine', 'notes.txt']


def test_records_say_where_below_home_and_not_whose():
  home = pathlib.Path.home()
  told = {'path': f'{home}/data', 'parts': [['a', 0, 2]], 'name': 'home', 'none': None}
  assert slimming.without_home(told) == {**told, 'path': '~/data'}
