"""Ahead-of-time compilation: the tiny config compiled with libtpu, mistakes, and the search around
a stub.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import pytest

from tests import train_config
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import presets
from wam_jax import train
from wam_jax import train_step
from wam_jax.aot import abstract
from wam_jax.aot import compiler
from wam_jax.aot import hlo
from wam_jax.aot import memory
from wam_jax.aot import report
from wam_jax.aot import search
from wam_jax.data import shapes

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="pip install -e '.[aot]'"
)


def run(*flags: str, code: int = 0) -> tuple[str, str]:
  """`python -m wam_jax.compile` on the test config; what it prints on stdout and on stderr."""
  environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  config = ['--config=tests/train_config.py', '--config.mesh.fsdp=2', '--config.mesh.data=2']
  done = subprocess.run(
    [sys.executable, '-m', 'wam_jax.compile', *config, *flags],
    env=environment,
    text=True,
    timeout=500,
    capture_output=True,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout, done.stderr


@needs_libtpu
def test_reports_what_a_slice_would_do(tmp_path):
  file = tmp_path / 'report.json'
  printed, progress = run(
    '--topology=v5e:2x2',
    f'--json={file}',
    '--config.model.attention=chunks',
    '--config.model.remat=block',
    '--config.accumulate=2',
  )
  made = json.loads(file.read_text())
  assert (made['topology'], made['chips'], made['devices']) == ('v5e:2x2', 4, 4)
  assert made['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 1, 'seq': 1}
  m = made['memory']
  assert m['fits']
  assert 'fits' in printed
  assert m['usable'] == int(15.75 * 2**30)
  assert m['total'] >= m['arguments'] + m['outputs'] + m['temporaries'] > m['temporaries'] > 0
  # The state is donated: all but the batch, the encoders and single numbers comes back in place.
  of = m['of_arguments']
  assert of['parameters'] + of['optimizer'] + of['average'] <= m['reused'] <= m['arguments']
  config = cfg.from_config_dict(train_config.get_config())
  model = (
    config.batch_size
    * flops.total(flops.training(config.model, shapes.sizes(config).tokens_per_frame)).train
  )
  assert made['flops']['model'] == model
  assert 1.1 < made['flops']['ratio'] < 2.5
  assert not made['flops']['loops_counted_once']
  assert made['collectives']
  assert all(t['bytes'] > 0 and t['count'] > 0 for t in made['collectives'].values())
  e = made['estimate']
  assert e['step_s'] >= e['compute_s'] > 0
  assert e['mfu'] == pytest.approx(model / e['step_s'] / (4 * 197e12))
  assert 'at the peak of the chip' in printed
  assert '197 TFLOP/s' in printed
  assert progress.startswith('tracing, ')
  assert 'Traceback' not in progress


@needs_libtpu
def test_says_what_does_not_fit_and_exits_with_1(tmp_path):
  file = tmp_path / 'report.json'
  printed, _ = run('--topology=v5e:2x2', '--config.batch_size=400000', f'--json={file}', code=1)
  assert 'DOES NOT FIT' in printed
  assert 'of 15.75 usable' in printed
  assert 'largest temporaries' in printed
  assert not json.loads(file.read_text())['memory']['fits']


@needs_libtpu
@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--topology=v5e:3x3'], 'nearest: v5e:2x4, v5e:4x4, v5e:2x2'),
    (['--topology=v5p:4x4x4', '--config.mesh.tensor=5'], 'does not fit 64 devices'),
    (['--topology=v5e:2x2', '--config.batch_size=6'], 'must be divisible by 4.* nearest valid: 8'),
    (
      [
        '--topology=v5e:2x2',
        '--config.mesh.fsdp=1',
        '--config.mesh.data=1',
        '--config.mesh.tensor=4',
      ],
      'model.num_heads=2 must be divisible by 4.* nearest valid: 2',
    ),
    (['--topology=v5e:2x2', '--config.data.embodiments=()'], 'embodiments'),
  ],
)
def test_mistakes_end_before_compilation(flags, message):
  _, said = run(*flags, code=1)
  assert re.search('^error: .*' + message, said, re.S | re.M), said


@needs_libtpu
def test_memory_is_what_the_finished_program_states(tmp_path):
  config = dataclasses.replace(
    cfg.from_config_dict(train_config.get_config()),
    mesh={'data': 2, 'fsdp': 2, 'tensor': 1, 'seq': 1},
  )
  compiled = compiler.compile_step(config, chips.find('v5e:2x2'), tmp_path, machine_code=True)
  found, said = memory.planned(compiled, chips.CHIPS['v5e']), compiled.analysis
  assert found.program == said['generated_code'] > 0
  assert (found.arguments, found.reused) == (said['argument'], said['alias'])
  assert (
    0 <= said['temp'] - found.temporaries < 8 * 2**20
  )  # Scratch of the machine code, some MiB in any program.
  assert found.outputs == said['output'] - said['alias']


def test_without_libtpu_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setattr(compiler.importlib.util, 'find_spec', lambda name: None)
  config = cfg.from_config_dict(train_config.get_config())
  with pytest.raises(ValueError, match='pip install'):
    compiler.compile_step(config, chips.find('v5e:2x2'), tmp_path)


def test_abstract_arguments_are_those_of_training():
  config = cfg.from_config_dict(train_config.get_config())
  mesh = abstract.sharding.make_mesh(
    {'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, abstract.jax.devices()[:1]
  )
  state, batch = abstract.arguments(config, mesh)
  shapes = {
    f.name: getattr(batch, f.name).shape for f in dataclasses.fields(batch) if f.name != 'features'
  }
  assert shapes == {
    'frames_BRIJ3': (8, 5, 32, 48, 3),
    'action_BAU': (8, 16, 4),
    'action_mask_BAU': (8, 16, 4),
    'proprio_BQX': (8, 2, 8),
    'chunk_mask_BQ': (8, 2),
    'prompt_ids_BP': (8, 16),
    'embodiment_B': (8,),
    'sample_B2': (8, 2),
  }
  count = sum(math.prod(x.shape) for x in abstract.jax.tree.leaves(state.params))
  assert abstract.bytes_per_device(state.params) == 4 * count
  step = train_step.make_train_step(
    config, mesh, abstract.jax.tree.map(lambda x: x.sharding, state)
  )
  out, metrics = abstract.jax.eval_shape(step, state, batch)
  assert abstract.jax.tree.map(lambda x: x.shape, out) == abstract.jax.tree.map(
    lambda x: x.shape, state
  )
  assert 'loss' in metrics


def test_training_divides_by_the_peak_of_its_devices(monkeypatch):
  config = cfg.from_config_dict(train_config.get_config())
  mesh = abstract.sharding.make_mesh(
    {'data': 2, 'fsdp': 1, 'tensor': 1, 'seq': 1}, abstract.jax.devices()[:2]
  )
  assert train._count_work(config, mesh) == {}  # CPUs have no known peak.
  monkeypatch.setattr(train.chips, 'peak_flops', lambda kind: 3e12)
  work = flops.training(config.model, shapes.sizes(config).tokens_per_frame)
  assert train._count_work(config, mesh) == {
    'sample_flops': flops.total(work).train,
    'peak_flops': 6e12,
  }


def large(**changes) -> cfg.TrainConfig:
  return dataclasses.replace(
    cfg.TrainConfig(
      model=presets.WAN2_1_I2V_14B, batch_size=128, data=cfg.DataConfig(embodiments=('droid',))
    ),
    **changes,
  )


def test_large_models_are_given_features_and_frozen_encoders():
  mesh = abstract.sharding.make_mesh(
    {'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, abstract.jax.devices()[:1]
  )
  state, batch = abstract.arguments(large(), mesh)
  assert batch.frames_BRIJ3 is None
  assert batch.features.clean_BFHWC.shape == (128, 9, 44, 80, 16)
  assert batch.features.text_BPC.shape == (128, 512, 4096)
  assert batch.features.image_BIC.shape == (
    128,
    257,
    1280,
  )
  assert round(abstract.bytes_per_device(state.params) / 4e9, 3) == 16.484
  assert 11e9 < abstract.bytes_per_device(state.frozen.text) < 12e9


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
  assert abs(search.count_parameters(config.model) / 16.484e9 - 1) < 0.02
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
    return {
      'memory': {'total': used, 'fits': used < 95e9},
      'flops': {'ratio': 1.0},
      'estimate': {'step_s': {'none': 1.0, 'dots': 2.0}.get(config.model.remat, 3.0), 'mfu': 0.5},
    }

  return (lambda *args, **kwargs: None), make


def test_search_learns_what_does_not_fit_and_keeps_the_fastest(monkeypatch, tmp_path):
  compile_step, make = stub(lambda c: 1e12 if c.model.remat == 'none' else 200e9 / c.accumulate)
  monkeypatch.setattr(search.compiler, 'compile_step', compile_step)
  monkeypatch.setattr(search.report, 'make', make)
  found = search.run(large(), chips.find('v5p:4x4x4'), tmp_path, 8, lambda text: None)
  tried = [(row['remat'], row['accumulate']) for row in found['tried']]
  assert len(tried) == 8
  assert found['considered'] > 50
  assert found['best']['remat'] == 'dots'
  assert found['best']['report']['memory']['fits']
  assert (
    sum(remat == 'none' for remat, _ in tried) <= 2
  )  # Told once that it takes ten times as much.
  assert '--config.model.remat=dots' in found['best']['flags']


def test_search_says_when_nothing_fits(monkeypatch, tmp_path):
  compile_step, make = stub(lambda c: 1e12)
  monkeypatch.setattr(search.compiler, 'compile_step', compile_step)
  monkeypatch.setattr(search.report, 'make', make)
  found = search.run(large(), chips.find('v5p:2x2x1'), tmp_path, 2, lambda text: None)
  assert found['best'] is None
  assert 'larger slice' in search.show(found)
  with pytest.raises(ValueError, match='nearest valid batch'):
    search.run(large(batch_size=7), chips.find('v5p:8x8x8'), tmp_path, 2, lambda text: None)


def test_slices():
  assert chips.find('v5p:4x4x4').wraps == (True,) * 3
  assert chips.find('v5p:2x2x1').wraps == (False,) * 3
  assert chips.find('v6e:8x16').wraps == (False, True)
  assert chips.find('tpu7x:4x4x4').devices == 128
  with pytest.raises(ValueError, match='nearest: v5p:4x4x8'):
    chips.find('v5p-128')
  assert chips.compiler_options('cpu') == {}
  assert chips.compiler_options('TPU v5')
  assert chips.peak_flops('TPU7x') == 2307e12 / 2
  assert chips.peak_flops('cpu') == 0


def test_memory_is_read_off_the_buffers():
  buffers = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <77 x @0> (size=512,offset=0): s32[]
allocation 1: size 1000, parameter 4, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 300, parameter 5, shape |f32[75]| at ShapeIndex {}:
allocation 3: size 40, maybe-live-out:
allocation 4: size 7000, preallocated-temp:
allocation 5: size 900, color 1, preallocated-temp:
allocation 6: size 60, color 5, preallocated-temp:
"""
  usage = (
    'Memory Space: default (color=0)\nTotal bytes: 8900 (8.7KiB)\n  cumulative_size;       size;\n'
    '    5.00KiB( 70%);    5.00KiB;          128;        1; f32[1280]\n'
  )
  compiled = compiler.Compiled(
    '', buffers, usage, {}, [], {}, (0, 0), '', 1.0, {'generated_code': 100}
  )
  found = memory.planned(compiled, chips.CHIPS['v6e'])
  assert dataclasses.asdict(found) == dict(
    arguments=1300,
    reused=1000,
    outputs=40,
    temporaries=7000,
    program=100,
    total=9000,
    host=60,
    usable=int(31.25 * 2**30),
  )
  assert memory.largest_temporaries(compiled) == ['5.00KiB: f32[1280]']


def test_attention_kernels_by_hand():
  count = report._kernel_flops(1024, 1000)
  queries, keys, prompt = (hlo.Array('bf16', (2, 5, n, 128)) for n in (512, 1024, 384))

  def call(name):
    return hlo.Instruction(
      name=name,
      shape='',
      opcode='custom-call',
      operands=(),
      literal='',
      attributes='',
      is_root=False,
    )

  forward = count(call('splash_mha_fwd_residuals.3'), [queries, keys])
  assert forward == 2 * 2 * 10 * 1000 * 128
  to_prompt = count(call('splash_mha_dkv_no_residuals'), [queries, prompt])
  assert to_prompt == 4 * 2 * 10 * 512 * 384 * 128
  assert count(call('another'), [queries, keys]) is None
