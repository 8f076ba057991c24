"""A user's mistake is one message; a bug keeps its traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from wam_jax import cli
from wam_jax import workdir as workdir_lib


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
  assert stop.value.code == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert 'Traceback' not in error


def call(main, capsys):
  """The exit status and what went to stderr."""
  with pytest.raises(SystemExit) as stop:
    cli._call(main, ['program'])
  return stop.value.code, capsys.readouterr().err


def test_our_errors_are_messages(capsys, tmp_path):
  (tmp_path / 'config.json').write_text('{')
  code, error = call(lambda argv: workdir_lib.load_config(tmp_path), capsys)
  assert code == 1
  assert error.startswith(f'error: {tmp_path}/config.json is not JSON')
  assert call(lambda argv: (tmp_path / 'no' / 'file').open('w'), capsys)[0] == 1


def test_errors_of_libraries_keep_their_traceback():
  with pytest.raises(json.JSONDecodeError):
    cli._call(lambda argv: json.loads('{'), ['program'])


def test_help_needs_no_config():
  done = subprocess.run(
    [sys.executable, '-m', 'wam_jax.train', '--help'], check=False, text=True, capture_output=True
  )
  assert 'python -m wam_jax.train --config=configs/tiny.py' in done.stdout
  assert '--compilation_cache' in done.stdout
