"""Eight simulated CPU devices, set before JAX starts; programs are compiled once for all tests and subprocesses."""
import os
import pathlib
import tempfile

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      str(pathlib.Path(tempfile.gettempdir()) / f'wam_jax_test_programs_{os.getuid()}'))
