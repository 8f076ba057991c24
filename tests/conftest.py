"""Eight simulated CPU devices, set before JAX starts; programs are compiled once for all tests and
subprocesses; the order of the files and what is left out without `--slow`.
"""

import os
import pathlib
import tempfile

from tests import programs

os.environ['XLA_FLAGS'] = ' '.join(
  (os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', programs.FAST_XLA)
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(tempfile.gettempdir()) / f'wam_jax_test_programs_{os.getuid()}'),
)
# JAX keeps only programs that took a second to compile; those of the tests take less each, and
# minutes together. Below a quarter of a second, writing one costs as much as it saves.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.25')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import pytest

from tests import parity

# Files that take longest come first: with two workers a long file at the end would be alone.
LONGEST_FIRST = (
  'test_train.py',
  'test_configs.py',
  'test_remote.py',
  'test_sharding.py',
  'test_encode.py',
  'test_finetuning.py',
  'test_vae.py',
  'test_wam.py',
  'test_train_step.py',
)


def pytest_addoption(parser):
  parser.addoption(
    '--golden-dir',
    type=pathlib.Path,
    default=parity.HERE,
    help='folder of golden .npz files that the tests with `golden` in their name read',
  )
  parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
  rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
  if config.getoption('--slow'):
    return
  # Not skipped but left out: a skip is for what this machine lacks.
  slow = [item for item in items if item.get_closest_marker('slow')]
  items[:] = [item for item in items if not item.get_closest_marker('slow')]
  config.hook.pytest_deselected(items=slow)


def pytest_generate_tests(metafunc):
  for name in metafunc.fixturenames:
    if name.startswith('golden_'):
      paths = parity.files(metafunc.config.getoption('--golden-dir'), name.removeprefix('golden_'))
      metafunc.parametrize(name, paths, ids=[p.stem for p in paths], indirect=True, scope='module')


def _fixture(prefix):
  @pytest.fixture(name=f'golden_{prefix}', scope='module')
  def golden(request):
    return parity.Golden(request.param)

  return golden


globals().update({f'golden_{prefix}': _fixture(prefix) for prefix in parity.PREFIXES})


def pytest_terminal_summary(terminalreporter):
  reports = [r for kind in ('passed', 'failed') for r in terminalreporter.stats.get(kind, [])]
  rows = [
    value for r in reports for key, value in getattr(r, 'user_properties', ()) if key == 'parity'
  ]
  if rows:
    terminalreporter.section('parity with the official modules')
    for line in parity.table(rows):
      terminalreporter.write_line(line)
