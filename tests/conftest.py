"""Eight simulated CPU devices, set before JAX starts; programs are compiled once for all tests and subprocesses."""
import os
import pathlib
import tempfile

from tests import programs

os.environ['XLA_FLAGS'] = ' '.join((
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', programs.FAST_XLA))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      str(pathlib.Path(tempfile.gettempdir()) / f'wam_jax_test_programs_{os.getuid()}'))
