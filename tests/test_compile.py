"""The command: the tiny config compiled with libtpu, what is printed and written, and mistakes."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import needs
from tests import train_config
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.data import shapes


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


@needs.libtpu
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
  assert made['mesh'] == {'slice': 1, 'data': 2, 'fsdp': 2, 'seq': 1, 'tensor': 1}
  m = made['memory']
  assert m['fits']
  assert 'fits' in printed
  # Of 16 GiB; the runtime keeps the rest.
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
  bound, expected = made['bound'], made['expected']
  assert bound['step_s'] >= bound['compute_s'] > 0
  # v5e: 197 TFLOP/s in bfloat16 each.
  assert bound['mfu'] == pytest.approx(model / bound['step_s'] / (4 * 197e12))
  assert 'at the peak of the chip' in printed
  assert bound['step_s'] < expected['step_s'] <= expected['step_without_overlap_s']
  assert expected['mfu_without_overlap'] <= expected['mfu'] < bound['mfu']
  assert expected['step_with_perfect_overlap_s'] <= expected['step_s']
  assert re.search(r'each 10 % of the hidden collectives that are not costs [\d.]+ s', printed)
  # To the end by default: the program is made, and takes HBM.
  assert made['compiler']['reached'] == 'machine code'
  assert m['program'] == made['compiler']['analysis']['generated_code'] > 0
  assert 'every kernel fits the vector memory' in printed
  assert '197 TFLOP/s' in printed
  assert progress.startswith('tracing, ')
  assert 'Traceback' not in progress


@needs.libtpu
def test_says_what_does_not_fit_and_exits_with_1(tmp_path):
  file = tmp_path / 'report.json'
  # Tiny samples, but enough of them.
  printed, _ = run(
    '--topology=v5e:2x2', '--plan', '--config.batch_size=400000', f'--json={file}', code=1
  )
  assert 'DOES NOT FIT' in printed
  assert 'of 15.75 usable' in printed
  assert 'largest temporaries' in printed
  made = json.loads(file.read_text())
  assert not made['memory']['fits']
  # The compiler may be stopped at the plan, or refuse by itself before that.
  assert made['compiler']['reached'] in ('plan', 'no room')


@needs.libtpu
@pytest.mark.slow
def test_two_slices_send_gradients_alone_to_each_other(tmp_path):
  file = tmp_path / 'report.json'
  flags = ('--config.mesh.slice=2', '--config.mesh.data=1', '--config.mesh.fsdp=4')
  run('--topology=v5e:2x2', '--plan', *flags, f'--json={file}')
  made = json.loads(file.read_text())
  assert (made['topology'], made['chips'], made['devices']) == ('2 x v5e:2x2', 8, 8)
  between = made['collectives']['between-slices']
  # Gradients once, of what a device keeps or, where 'fsdp' is the whole slice, of all parameters;
  # and a few numbers for the metrics.
  held = made['memory']['of_arguments']['parameters']
  assert held < between['bytes'] < 4.5 * held


@needs.libtpu
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
    (
      ['--topology=v5e:2x2', "--config.data.embodiments=('droid',)"],
      "'tabletop_disc' is not in data.embodiments",
    ),
    (['--topology=v5e:2x2', '--trials=3'], '--trials is of --search'),
  ],
)
def test_mistakes_end_before_compilation(flags, message):
  _, said = run(*flags, code=2)
  assert re.search('^error: .*' + message, said, re.S | re.M), said
