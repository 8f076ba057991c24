"""A user's mistake is one message; a bug keeps its traceback."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest
from absl import flags
from ml_collections import config_flags

from tests import programs
from wam_jax import cli
from wam_jax import hosts
from wam_jax import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def parse(monkeypatch):
  """Parses the given arguments of a program with a config; returns what is left and the flags."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'Config.', flag_values=values, lock_config=True)
  monkeypatch.setattr(cli.flags, 'FLAGS', values)

  def parse(*args):
    argv = ['program', '--config=tests/train_config.py', *args]
    monkeypatch.setattr(sys, 'argv', argv)  # Where config_flags looks for the overrides.
    return cli._parse_flags(argv), values

  return parse


def test_values_are_set(parse):
  rest, values = parse('--config.steps=7', '--config.optimizer.learning_rate=1', 'rest')
  assert rest == ['program', 'rest']
  assert values.config.steps == 7
  assert values.config.optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('--config.nokey=1', "--config.nokey=1 does not exist: 'nokey'"),
    ('--config.model.dimm=1', 'Did you mean "dim" instead of "dimm"'),
    (
      '--config.data.mixture.other.path=x',
      "--config.data.mixture.other.path=x does not exist: 'other'",
    ),
    ('--config.steps=many', "--config.steps=many: invalid literal for int() with base 10: 'many'"),
    ('--config=tests/train_config.py:large', "This config takes no argument, got 'large'"),
    ('--conf=1', "Unknown command line flag 'conf'"),
  ],
)
def test_wrong_flags(parse, capsys, arg, message):
  with pytest.raises(SystemExit) as stop:
    parse(arg)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert 'Traceback' not in error


def test_no_flag_takes_what_is_no_number(parse, capsys):
  """Bounds let NaN through; keys of a config are checked where they are used."""
  flags.DEFINE_float('rate', 1.0, 'Help.', 0.0, flag_values=cli.flags.FLAGS)
  assert parse('--rate=2', '--config.optimizer.learning_rate=nan')[1].rate == 2.0
  for value in ('nan', 'inf', '-inf'):
    with pytest.raises(SystemExit) as stop:
      parse(f'--rate={value}')
    assert stop.value.code == 2
  said = capsys.readouterr().err
  assert said.count('error: ') == 3
  assert 'error: --rate=nan: expected a finite number\n' in said


def test_a_config_that_is_no_python_is_one_message(parse, tmp_path, capsys):
  file = tmp_path / 'config.py'
  file.write_text('{')
  with pytest.raises(SystemExit) as stop:
    parse(f'--config={file}')
  assert stop.value.code == 2
  assert capsys.readouterr().err.startswith(f'error: --config cannot be loaded: {file}, line 1: ')


@pytest.mark.parametrize('key', [[], ['--config.steps=3']])
def test_a_config_that_is_not_there_is_one_sentence(tmp_path, key):
  done = programs.run('wam_jax.train', '--config=configs/fly.py', f'--workdir={tmp_path}', *key)
  assert done.returncode == 2
  assert done.stderr == (
    'error: --config cannot be loaded: there is no file configs/fly.py; '
    'configs/ has those that come with it.\n'
  )


def test_what_a_missing_flag_is_for(parse, capsys):
  values = cli.flags.FLAGS
  flags.DEFINE_string('place', None, 'Where it lies.', flag_values=values)
  flags.mark_flag_as_required('place', flag_values=values)
  with pytest.raises(SystemExit) as stop:
    parse()
  assert stop.value.code == 2
  said = capsys.readouterr().err
  assert said == 'error: --place is needed: Where it lies.\n--help lists the flags.\n'


def call(main, capsys):
  """The exit status and what went to stderr."""
  with pytest.raises(SystemExit) as stop:
    cli._call(main, ['program'])
  return stop.value.code, capsys.readouterr().err


def test_our_errors_are_messages(capsys, tmp_path):
  (tmp_path / 'config.json').write_text('{')
  code, error = call(lambda argv: workdir_lib.load_config(tmp_path), capsys)
  assert code == 2
  assert error.startswith(f'error: {tmp_path}/config.json is not JSON')
  # The system's errors that name a file are the user's to mend, too.
  assert call(lambda argv: (tmp_path / 'no' / 'file').open('w'), capsys)[0] == 2


def fail(error: Exception) -> None:
  raise error


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (hosts.HostFailure('Failed while reading, on 1 of 2 hosts.'), 1),
    (hosts.HostMistake('Failed while reading, on 1 of 2 hosts.'), 2),
    (FloatingPointError('Step 7 is not finite'), 2),
    (PermissionError(13, 'Permission denied', '/runs'), 2),
    (OSError(28, 'No space left on device', '/runs'), 1),
    (TimeoutError(110, 'Connection timed out'), 1),
  ],
)
def test_the_status_says_whether_trying_again_may_help(capsys, error, status):
  ours = types.FunctionType(fail.__code__, globals() | {'__package__': 'wam_jax'})
  code, said = call(lambda argv: ours(error), capsys)
  assert code == status
  assert said == f'error: {error}\n'


def test_ctrl_c_is_one_message(capsys):
  def stop(argv):
    raise KeyboardInterrupt

  assert call(stop, capsys) == (130, 'error: stopped by Ctrl-C.\n')


def test_errors_of_libraries_keep_their_traceback():
  with pytest.raises(json.JSONDecodeError):
    cli._call(lambda argv: json.loads('{'), ['program'])


@pytest.mark.parametrize(
  ('beside', 'message'),
  [
    (True, 'error: mesh={'),
    (False, "error: --config cannot be loaded: it imports 'configs', which is not installed"),
  ],
)
def test_configs_import_each_other_from_any_directory(tmp_path, beside, message):
  """`beside`: whether wam_jax is that of a checkout, as `pip install -e` leaves it."""
  package = tmp_path / 'installed' / 'wam_jax'
  package.parent.mkdir()
  if beside:
    package.symlink_to(ROOT / 'wam_jax')
  else:
    shutil.copytree(ROOT / 'wam_jax', package)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'wam_jax.train', f'--workdir={tmp_path}/run'),
      *(f'--config={ROOT}/configs/tiny_flash.py:smoke', '--config.mesh.data=7'),
    ],
    cwd=tmp_path,
    env=programs.environment() | {'PYTHONPATH': str(package.parent), 'JAX_PLATFORMS': 'cpu'},
    check=False,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(message)


def test_help_needs_no_config():
  done = programs.run('wam_jax.train', '--help')
  assert 'python -m wam_jax.train --config=configs/tiny.py' in done.stdout
  assert '--compilation_cache' in done.stdout


def test_what_main_returns_is_the_status():
  assert cli._call(lambda argv: 143, ['program']) == 143


def test_stray_arguments_are_refused_unless_they_are_asked_for(capsys):
  with pytest.raises(SystemExit) as stop:
    cli._call(lambda argv: pytest.fail('must not start'), ['program', 'stray', 'more'])
  assert stop.value.code == 2
  assert capsys.readouterr().err == (
    "error: Unexpected arguments ['stray', 'more']; every option starts with --.\n"
  )
  assert cli._call(len, ['program', 'import'], takes_arguments=True) == 2


def test_mistakes_of_worker_processes_are_messages(capsys):
  def main(argv):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
      pool.submit(workdir_lib.make_path, 's3://bucket/run').result()

  # The frame that asks for the result must be ours.
  ours = types.FunctionType(main.__code__, globals() | {'__package__': 'data.lerobot'})
  code, error = call(ours, capsys)
  assert code == 2
  assert 'other than gs://. Mount it' in error


def test_the_report_goes_to_the_file_of_json(monkeypatch, tmp_path):
  values = flags.FlagValues()
  monkeypatch.setattr(cli.flags, 'FLAGS', values)
  monkeypatch.setattr(
    cli.flags, 'DEFINE_string', functools.partial(flags.DEFINE_string, flag_values=values)
  )
  cli.define_json('It is somewhere else, too.')
  values(['program', f'--json={tmp_path}/report.json'])
  assert values['json'].help == 'File for what is printed, as JSON. It is somewhere else, too.'
  cli.write_json({'a': 1})
  assert (tmp_path / 'report.json').read_text() == '{\n  "a": 1\n}\n'
  values.unparse_flags()
  values(['program'])
  # As when the flag is not given: nothing is written.
  values.json = None
  cli.write_json({'a': 1})
  assert [path.name for path in tmp_path.iterdir()] == ['report.json']


def test_a_report_that_could_not_be_written_is_told_before_anything_is_measured(
  monkeypatch, tmp_path, capsys
):
  values = flags.FlagValues()
  monkeypatch.setattr(cli.flags, 'FLAGS', values)
  flags.DEFINE_string('json', None, 'File.', flag_values=values)
  flags.DEFINE_integer('verbosity', 0, 'Of absl.', flag_values=values)
  (tmp_path / 'file').write_text('')
  for place, said in (
    (tmp_path, 'is a directory; name a file in it'),
    (tmp_path / 'file' / 'report.json', 'file: Not a directory. Name a place where you may write'),
    ('/proc/report.json', '--json cannot be written in /proc: /proc: No such file or directory'),
    ('s3://bucket/report.json', 'object store other than gs://'),
  ):
    values.unparse_flags()
    values(['program', f'--json={place}'])
    status, error = call(lambda argv: pytest.fail('must not start'), capsys)
    assert status == 2
    assert said in error
  values.unparse_flags()
  values(['program', f'--json={tmp_path}/new/report.json'])
  assert cli._call(lambda argv: cli.write_json([1]), ['program']) is None
  assert (tmp_path / 'new/report.json').read_text() == '[\n  1\n]\n'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'new']


# Each command with the flags it cannot do without, and a mistake that its own checks find.
COMMANDS = {
  'wam_jax.train': (
    ['--config=tests/train_config.py', '--workdir=/proc/run'],
    ['--config.mesh.data=7'],
  ),
  'wam_jax.check': (
    ['--config=tests/train_config.py', '--workdir=/proc/run'],
    ['--topology=v9:1'],
  ),
  'wam_jax.evaluate': (['--workdir=/nowhere'], []),
  'wam_jax.serve': (['--workdir=/nowhere'], ['--api_key_file=/nowhere']),
  'wam_jax.convert': (['--source=/nowhere', 'inspect'], []),
  'wam_jax.compile': (['--config=tests/train_config.py', '--topology=v9:1'], []),
  'data.tabletop': (['--output=/proc/data'], ['--tasks=fly']),
  'data.stand_in': (['--output=/proc/data'], ['--episodes=0']),
  'data.metaworld': (['--output=/proc/data'], ['--tasks=fly']),
  'data.human_video': (['--source=/nowhere', '--output=/proc/data'], []),
  'data.from_lerobot': (['--source=/nowhere', '--output=/proc/data'], []),
  'data.from_sessions': (['--source=/nowhere', '--output=/proc/data'], []),
  'data.convert': (['--source=/nowhere', '--output=/proc/data'], []),
  'data.exclude': (['--dataset=/nowhere'], []),
  'data.suggest': (['--dataset=/nowhere'], []),
  'data.statistics': (['--dataset=/nowhere', '--embodiment=droid'], []),
  'data.validate': (['--dataset=/nowhere', '--embodiment=droid'], []),
  'data.encode': (['--workdir=/nowhere', '--dataset=/nowhere', '--embodiment=droid'], []),
  'benchmarks.tabletop': ([], None),
  'benchmarks.attention': ([], None),
  'benchmarks.pods': ([], None),
  'benchmarks.control_step': ([], ['--rungs=naive,cache,naive']),
  'benchmarks.convert': ([], ['--directory=/nowhere']),
  'benchmarks.kills': ([], ['--workdir=ROOT']),
  'benchmarks.data': ([], ['--tensorflow_python=/nowhere']),
  'benchmarks.latency': (['--workdir=weights/tiny'], ['--delays=0,99']),
  'benchmarks.precision': (['--workdir=/nowhere'], []),
  'benchmarks.sampling': (['--workdir=weights/tiny'], ['--tasks=fly']),
  'benchmarks.serving': ([], ['--part=dance']),
  'benchmarks.step': ([], ['--threads=4096']),
  'docs.make': ([], None),
  'docs.make.gallery': ([], ['--workdirs=/nowhere']),
}
STRAY, UNKNOWN = 'stray', '--no_such_flag=1'


def list_mistakes() -> list[tuple[list[str], str]]:
  """(a command with a mistake, part of the message it must end with)."""
  cases = []
  for module, (needed, mistake) in COMMANDS.items():
    stray = 'inspect stray' if module == 'wam_jax.convert' else "Unexpected arguments ['stray']"
    cases.append(([module, *needed, UNKNOWN], "Unknown command line flag 'no_such_flag'"))
    cases.append(([module, *needed, STRAY], stray))
    if mistake is not None:
      cases.append(([module, *needed, *mistake], ''))
  return cases


@pytest.mark.parametrize('case, message', list_mistakes(), ids=str)
def test_every_command_answers_a_mistake_with_one_message(tmp_path, case, message):
  (tmp_path / 'straight').mkdir()  # A run that `benchmarks.kills` must not touch.
  done = programs.run(*(word.replace('ROOT', str(tmp_path)) for word in case))
  assert done.returncode == 2, done
  assert done.stdout == ''
  assert 'Traceback' not in done.stderr
  assert done.stderr.count('error: ') == 1
  assert done.stderr.startswith('error: ')
  assert message in done.stderr


def test_every_command_is_in_the_test_above():
  found = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
    for package in ('wam_jax', 'data', 'benchmarks', 'docs')
    for path in (ROOT / package).rglob('*.py')
    if re.search(r'^  cli\.run\(main', path.read_text(), re.MULTILINE)
  }
  assert found == set(COMMANDS)
