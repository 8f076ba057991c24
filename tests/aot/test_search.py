"""The search for a layout: what it weighs, and how it learns from a compiler that is a stub."""

from __future__ import annotations

import dataclasses
import math

import pytest

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import sharding
from wam_jax.aot import search


def large(**changes) -> cfg.TrainConfig:
  data = cfg.DataConfig(embodiments=('droid',))
  config = cfg.TrainConfig(model=presets.WAN2_1_I2V_14B, batch_size=128, data=data)
  return dataclasses.replace(config, **changes)


def test_what_search_weighs_divides_everything():
  config, where = large(), chips.find('v6e:16x16')
  found = list(search.choices(config, where))
  assert len(found) > 100
  for choice in found:
    axes = dict(choice.mesh)
    assert math.prod(axes.values()) == 256
    assert 40 % axes['tensor'] == 0
    assert 5120 % axes['fsdp'] == 0
    assert 128 % (axes['data'] * axes['fsdp'] * choice.accumulate) == 0
    # What training itself checks, with devices in the order of their links.
    assert list(axes) == list(sharding.AXES)
  pair = list(search.choices(config, chips.find('v5p:4x4x4', count=2)))
  assert {dict(choice.mesh)['slice'] for choice in pair} == {2}
  assert {math.prod(dict(choice.mesh).values()) for choice in pair} == {128}
  # The count is by formula, for bounds; 16.484e9 is that of the arrays (test_abstract).
  assert abs(search.count_parameters(config.model) / 16.484e9 - 1) < 0.02
  # Recomputing takes time and saves memory: else the search would order them wrongly.
  by = {(c.remat, c.mesh, c.accumulate): c for c in found}
  for (remat, mesh, accumulate), choice in by.items():
    if remat == 'block' and ('none', mesh, accumulate) in by:
      assert choice.bytes < by['none', mesh, accumulate].bytes
      assert choice.seconds > by['none', mesh, accumulate].seconds


def stub(total_of):
  """`compiler.compile_step` and `report.make` without a compiler; `total_of`: bytes that a config
  takes.
  """

  def make(config, where, compiled):
    used = total_of(config)
    # Recomputing more takes longer.
    step_s = {'none': 1.0, 'dots_and_attention': 2.0}.get(config.model.remat, 3.0)
    return {
      'memory': {'total': used, 'fits': used < 95e9},
      'flops': {'ratio': 1.0},
      'bound': {'step_s': step_s / 2, 'mfu': 1.0},
      'expected': {'step_s': step_s, 'mfu': 0.5},
    }

  return (lambda *args, **kwargs: None), make


def run(config, topology, directory, *, trials, machine_code=False):
  return search.run(
    config,
    chips.find(topology),
    directory,
    trials=trials,
    machine_code=machine_code,
    say=lambda text: None,
  )


def test_search_learns_what_does_not_fit_and_keeps_the_fastest(monkeypatch, tmp_path):
  compile_step, make = stub(lambda c: 1e12 if c.model.remat == 'none' else 200e9 / c.accumulate)
  monkeypatch.setattr(search.compiler, 'compile_step', compile_step)
  monkeypatch.setattr(search.report, 'make', make)
  found = run(large(), 'v5p:4x4x4', tmp_path, trials=16)
  tried = [(row['remat'], row['accumulate']) for row in found['tried']]
  assert len(tried) == 16
  assert found['considered'] > 50
  assert found['best']['remat'] == 'dots_and_attention'
  assert found['best']['report']['memory']['fits']
  # Told once that it takes ten times as much.
  assert sum(remat == 'none' for remat, _ in tried) <= 2
  assert '--config.model.remat=dots_and_attention' in found['best']['flags']


def test_the_best_is_compiled_to_the_end_and_the_next_if_it_does_not_fit_there(
  monkeypatch, tmp_path
):
  ends = []

  def compile_step(config, where, directory, machine_code, say):
    assert directory.is_dir()
    if machine_code:
      ends.append(config.model.remat)
    return machine_code

  def make(config, where, compiled):
    made = stub(lambda c: 1e9)[1](config, where, compiled)
    # At the end the kernels of what keeps everything do not fit the vector memory.
    made['memory']['fits'] = not (compiled and config.model.remat == 'none')
    return made

  monkeypatch.setattr(search.compiler, 'compile_step', compile_step)
  monkeypatch.setattr(search.report, 'make', make)
  monkeypatch.setattr(search, '_expect_bytes', lambda config, work, way: 1e9)
  found = run(large(), 'v5p:4x4x4', tmp_path, trials=30, machine_code=True)
  assert ends[0] == 'none'
  assert ends[-1] == found['best']['remat'] != 'none'
  assert ends == ['none'] * (len(ends) - 1) + [ends[-1]]


def test_search_says_when_nothing_fits(monkeypatch, tmp_path):
  compile_step, make = stub(lambda c: 1e12)
  monkeypatch.setattr(search.compiler, 'compile_step', compile_step)
  monkeypatch.setattr(search.report, 'make', make)
  found = run(large(), 'v5p:2x2x1', tmp_path, trials=2)
  assert found['best'] is None
  assert 'larger slice' in search.show(found)
  with pytest.raises(ValueError, match='nearest valid batch'):
    run(large(batch_size=7), 'v5p:8x8x8', tmp_path, trials=2)
