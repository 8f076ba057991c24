"""`python -m wam_jax.convert` by commands, and the benchmark of it."""

from __future__ import annotations

import functools
import json

import pytest

from tests import programs
from tests.interop import conversions
from tests.interop import tiny

# What a conversion that ends well prints.
convert = functools.partial(programs.output, 'wam_jax.convert')


def test_weights_go_in_and_out_by_commands_with_the_same_bits(tmp_path):
  source = tmp_path / 'source'
  workdir = tmp_path / 'run'
  back = tmp_path / 'back'
  tiny.write_dreamzero(source)
  said = convert('inspect', f'--source={source}', f'--json={tmp_path}/report.json')
  assert 'layout dreamzero' in said
  assert 'embodiment droid: 15 Hz' in said
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['layout'] == 'dreamzero'
  assert report['missing'] == []
  assert report['parts']['tokenizer'] == {
    'arrays': 194,
    'parameters': 243_583,
    'bytes': 2 * 243_583,
    'dtypes': {'bfloat16': 243_583},
  }

  said = convert('import', f'--source={source}', f'--output={workdir}', '--layout=dreamzero')
  assert f'workdir: {workdir}' in said
  assert 'layout wam_jax, step 0' in convert('inspect', f'--source={workdir}')
  # A megabyte, so that there are several files and an index.
  convert('export', f'--source={workdir}', f'--output={back}', '--max_shard_gb=0.001')
  conversions.assert_same_bits(tiny.load(back), tiny.load(source))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--source=x'], 'error: Say what to do, as in: python -m wam_jax.convert import'),
    (
      ['export', '--source=x', '--output=y', '--layout=wan'],
      'error: --layout=wan cannot be written',
    ),
    (['export', '--source=/', '--output=y'], 'error: --source=/ is no workdir'),
    (['import', '--source=x', '--output=gs://y'], 'error: --output=gs://y is an object store'),
    (
      ['import', '--source=x', '--output=y', '--tag=yam', '--max_shard_gb=2'],
      'error: import has no use for --max_shard_gb, --tag; see --help',
    ),
    (['slim', '--source=/', '--output=y'], 'error: --source=/ is no workdir'),
    (['slim', '--source=x', '--output=y', '--tag=z'], 'error: slim has no use for --tag; see'),
    (
      ['export', '--source=x', '--output=y', '--layout=diffusers', '--keys=a:0:1=b'],
      'error: export --layout=diffusers has no use for --keys',
    ),
  ],
)
def test_wrong_commands_stop_at_once(arguments, message):
  done = programs.run('wam_jax.convert', *arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_benchmark_finds_every_bit(tmp_path):
  flags = (
    '--layers=2',
    '--heads=1',
    '--shard_gb=0.01',
    f'--directory={tmp_path}',
    f'--json={tmp_path}/report.json',
  )
  done = programs.run('benchmarks.convert', *flags)
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['differing'] == []
  assert report['layers'] == 2
  assert report['weights'] > 300
  assert 0 < report['import']['peak_gb'] < 1
  assert report['export']['seconds'] > 0
  # Two copies of 33 GB must not be left behind.
  assert [place.name for place in tmp_path.iterdir()] == ['report.json']
  assert 'bit-identical after both: yes' in done.stdout
