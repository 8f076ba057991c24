"""Eight simulated CPU devices, set before JAX starts; programs are compiled once for all tests and
subprocesses.
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

import pytest

from tests import parity


def pytest_addoption(parser):
  parser.addoption(
    '--golden-dir',
    type=pathlib.Path,
    default=parity.HERE,
    help='folder of golden .npz files that the tests with `golden` in their name read',
  )


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
