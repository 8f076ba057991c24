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
from tests import samples

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
  parser.addoption(
    '--samples',
    type=pathlib.Path,
    default=samples.HERE,
    help='folder of recordings of real robots, for the tests with `sample` among their arguments',
  )
  parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
  rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
  # Not skipped but left out: a skip is for what can be installed.
  left_out = [item for item in items if is_left_out(item)]
  items[:] = [item for item in items if not is_left_out(item)]
  config.hook.pytest_deselected(items=left_out)


def is_left_out(item) -> bool:
  """Whether it is slow, and none such are asked for, or is given no file of those that it takes."""
  is_slow = item.get_closest_marker('slow') and not item.config.getoption('--slow')
  reasons = [mark.kwargs.get('reason', '') for mark in item.iter_markers('skip')]
  return bool(is_slow) or any(reason.startswith('got empty parameter set') for reason in reasons)


def pytest_generate_tests(metafunc):
  wanted = [key for mark in metafunc.definition.iter_markers('golden_with') for key in mark.args]
  for name in metafunc.fixturenames:
    prefix, _, what = name.partition('_')
    if prefix == 'golden':
      paths = parity.files(metafunc.config.getoption('--golden-dir'), what, wanted)
      metafunc.parametrize(name, paths, ids=[p.stem for p in paths], indirect=True, scope='module')
    elif prefix == 'sample' and what in samples.SAMPLES:
      paths = samples.find(metafunc.config.getoption('--samples'), what)
      metafunc.parametrize(name, paths, ids=[what for _ in paths])


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
