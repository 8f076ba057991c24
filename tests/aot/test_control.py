"""The control step compiled for machines that are not here: what a robot would wait for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests import needs
from tests import train_config
from wam_jax import config as cfg
from wam_jax.aot import control
from wam_jax.aot import hlo
from wam_jax.control import quantize

LAYERS = 40  # Of the 14B.


def compile_control(tmp_path, *flags):
  """(the command that has ended, its report or None)."""
  file = tmp_path / 'report.json'
  environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-m', 'wam_jax.compile', '--program=control', f'--json={file}', *flags],
    env=environment,
    check=False,
    timeout=500,
    text=True,
    capture_output=True,
  )
  return done, json.loads(file.read_text()) if file.exists() else None


def report(tmp_path, *flags):
  done, made = compile_control(tmp_path, *flags)
  assert done.returncode == 0, done.stdout + done.stderr
  return made


@needs.gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
  'way',
  ['--config.sample.action_steps=4', '--config.sample.action_steps=0 --config.sample.steps=4'],
)
def test_14b_on_an_h200_copies_nothing_large(way, tmp_path):
  flags = ['--config=configs/droid_14b_flash.py', '--topology=h200', *way.split()]
  made = report(tmp_path, *flags)
  m = made['memory']
  assert m['fits']
  assert m['aliased'] == m['state']  # To the byte.
  assert m['temporaries'] <= 3e9
  # A layer's weights are read where they lie, too.
  assert made['copies'] == made['weight_copies'] == made['logits'] == []
  # Self-attention, words and image of each layer.
  assert made['kernels']['__cudnn$fmhaSoftmax'] >= 3 * LAYERS
  assert not made['loops_counted_once']


@needs.gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp8', 'w8a8'])
def test_14b_in_bytes_multiplies_bytes_and_transposes_no_weights(precision, tmp_path):
  flags = ['--config=configs/droid_14b_flash.py', '--topology=h200', f'--precision={precision}']
  made = report(tmp_path, *flags)
  m, sizes = made['memory'], made['sizes']
  # One byte for each of the 16.4 G numbers of the layers' kernels.
  assert 16.4e9 < m['weights'] < 17e9
  assert m['aliased'] == m['state']
  assert m['temporaries'] <= 3e9
  assert made['copies'] == made['weight_copies'] == made['logits'] == []
  actions, sweep = sorted(made['narrow_products'], key=lambda products: products['flops'])
  # q, k, v, o; q, o of the prompt; in, out. For the actions alone XLA joins the first three.
  assert sweep['count'] == 8 * LAYERS
  assert actions['count'] in (6 * LAYERS, 8 * LAYERS)
  kernels = 6 * 5120**2 + 2 * 5120 * 13824
  for products, rows in (
    (sweep, sizes['clean'] + sizes['video'] + sizes['register']),
    (actions, sizes['register']),
  ):
    assert products['dtype'] == quantize.SCHEMES[precision].dtype
    assert products['flops'] == LAYERS * 2 * rows * kernels
  assert made['kernels']['__cudnn$fmhaSoftmax'] >= 3 * LAYERS


@needs.libtpu
@pytest.mark.slow
def test_14b_on_eight_v6e_is_real_time(tmp_path):
  one_step = '--config.sample.action_steps=0'
  flags = ['--config=configs/droid_14b_flash.py', '--topology=v6e:2x4', one_step]
  made = report(tmp_path, *flags)
  m = made['memory']
  assert m['fits']
  # TPUs pad arrays to tiles, and single numbers have another place.
  assert m['aliased'] >= 0.999 * m['state']
  assert made['copies'] == made['logits'] == []
  # An eighth of the hidden units is no whole number of lanes: XLA turns these kernels around.
  assert all('[40,5120,1728]' in copy for copy in made['weight_copies'])
  assert len(made['weight_copies']) <= 1
  assert made['kernels']['tpu_custom_call'] >= 2
  # Half of it on the links, which the compiler lets the rest wait for.
  assert made['bound']['step_with_perfect_overlap_s'] <= 0.040


@pytest.mark.parametrize(
  ('hidden', 'machine', 'message'),
  [
    (['libtpu'], 'v6e:2x4', r'libtpu is not installed: .*\[aot\]'),
    (['jax_cuda13_plugin', 'nvidia'], 'h200', r'jax_cuda13_plugin is not .*\[aot-gpu\]'),
    # Also where the package is missing that it would be a part of.
    (['nvidia'], 'h200', r'is not installed: .*\[aot-gpu\]'),
  ],
)
def test_what_is_missing_is_named(hidden, machine, message, monkeypatch, tmp_path):
  for name in hidden:
    monkeypatch.setitem(sys.modules, name, None)  # As if it were not installed.
  config = cfg.from_config_dict(train_config.get_config())
  with pytest.raises(ValueError, match=message):
    control.compile_act(config, control.find(machine), tmp_path)


def test_what_a_machine_cannot_multiply_is_told_before_it_is_compiled(tmp_path):
  pytest.importorskip('libtpu', reason="pip install -e '.[aot]'")
  command = [sys.executable, '-m', 'wam_jax.compile', '--program=control', '--precision=fp8']
  done = subprocess.run(
    [*command, '--config=configs/droid_14b_flash.py', '--topology=v6e:2x4'],
    text=True,
    capture_output=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: v6e does not multiply float8_e4m3fn')


@pytest.mark.parametrize(
  ('flags', 'idle'),
  [
    (['--search', '--plan', '--trials=3'], '--plan, --search, --trials'),
    (['--config.mesh.slice=2'], '--config.mesh.slice'),
    (
      ['--config.mesh.tensor=2', '--config.batch_size=8'],
      '--config.mesh.tensor, --config.batch_size',
    ),
  ],
)
def test_what_would_be_passed_over_is_refused(flags, idle, tmp_path):
  given = ['--config=tests/train_config.py', '--topology=h200', *flags]
  done, _ = compile_control(tmp_path, *given)
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: --program=control has no use for {idle}, which ')
  assert done.stderr.count('\n') == 1


@needs.libtpu
def test_what_does_not_fit_is_reported_as_for_training(tmp_path):
  """Also where the compiler refuses: 35 GB of weights for the 16 of a v5e."""
  done, made = compile_control(
    tmp_path,
    '--config=tests/train_config.py',
    '--topology=v5e:1x1',
    '--config.model.mlp_dim=268435456',
  )
  assert done.returncode == 1, done.stderr
  assert 'DOES NOT FIT' in done.stdout
  assert 'Ran out of memory' in done.stdout
  m = made['memory']
  assert not m['fits']
  assert m['shortage'].startswith('RESOURCE_EXHAUSTED')
  assert m['weights'] > 2 * m['usable']


PROGRAM = """
HloModule act

%fused (p: bf16[8,4]) -> bf16[4,8] {
  %p = bf16[8,4] parameter(0)
  ROOT %t = bf16[4,8] transpose(%p), dimensions={1,0}
}

ENTRY %main (a: bf16[8,4], b: f32[40,8]) -> bf16[4,8] {
  %a = bf16[8,4] parameter(0)
  %b = f32[40,8] parameter(1)
  %logits = f32[2,5,40] dot(%b, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %kernel = bf16[8,4] custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %f = bf16[4,8] fusion(%kernel), kind=kLoop, calls=%fused
}
"""


def test_copies_logits_and_kernels_are_found():
  program = hlo.parse(PROGRAM)
  assert control.list_weight_copies(program, [32]) == control.list_copies(program, 64) != []
  assert control.list_weight_copies(program, [31, 33]) == []
  (product,) = control.list_products(
    hlo.parse(PROGRAM.replace('bf16', 's8').replace('f32[40', 's8[40'))
  )
  assert product == {'dtype': 'int8', 'count': 1, 'flops': 2 * 10 * 40 * 8, 'place': 'main'}
  # A product with floats is none of bytes.
  assert control.list_products(hlo.parse(PROGRAM.replace('bf16', 's8'))) == []
  sizes = {'slots': 40, 'clean': 4, 'video': 0, 'register': 1}
  assert [line.split()[0] for line in control.list_copies(program, 64)] == ['transpose']
  assert control.list_copies(program, 65) == []
  assert len(control.list_logits(program, sizes)) == 1
  assert control.list_logits(program, sizes | {'slots': 41}) == []
  assert control.count_calls(program) == {'__cudnn$fmhaSoftmax': 1}
