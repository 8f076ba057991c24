"""Compiled programs are kept where the flag says, in a bucket too, and found again."""

from __future__ import annotations

import jax
import pytest
from jax._src import compilation_cache as packing

from tests import object_store
from tests import programs
from wam_jax import compilation_cache

KEYS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_entry_size_bytes',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_enable_compilation_cache',
  'jax_persistent_cache_enable_xla_caches',
)


@pytest.fixture(autouse=True)
def settings():
  """JAX's settings, none of its cache before and as they were afterwards."""
  before = {key: getattr(jax.config, key) for key in KEYS}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for key, value in before.items():
    jax.config.update(key, value)


@pytest.mark.parametrize(
  ('platform', 'given', 'place'),
  [
    ('tpu', None, 'run/compilation_cache'),
    ('gpu', None, 'run/compilation_cache'),
    ('cpu', None, None),
    ('cpu', 'elsewhere', 'elsewhere'),
    ('tpu', 'elsewhere', 'elsewhere'),
  ],
)
def test_where_programs_are_kept(tmp_path, monkeypatch, platform, given, place):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  compilation_cache.keep(given and f'{tmp_path}/{given}', tmp_path / 'run')
  assert jax.config.jax_compilation_cache_dir == (place and f'{tmp_path}/{place}')
  if place:
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_empty_is_nowhere_and_what_jax_was_told_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  jax.config.update('jax_compilation_cache_dir', '/told')
  compilation_cache.keep(None, tmp_path)
  assert jax.config.jax_compilation_cache_dir == '/told'
  compilation_cache.keep('', tmp_path)
  assert not jax.config.jax_enable_compilation_cache


def test_other_object_stores_are_refused(tmp_path):
  with pytest.raises(ValueError, match="--compilation_cache 's3://x' is an object store other"):
    compilation_cache.keep('s3://x', tmp_path)


def test_a_program_that_a_kill_cut_short_is_written_again(tmp_path):
  content = packing.compress_executable(bytes(range(256)) * 100)
  (tmp_path / 'jit_whole-cache').write_bytes(content)
  (tmp_path / 'jit_cut-cache').write_bytes(content[:-2])
  (tmp_path / 'jit_empty-cache').touch()
  (tmp_path / 'other').write_bytes(b'of somebody else')
  compilation_cache.keep(str(tmp_path), None)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['jit_whole-cache', 'other']


def test_a_bucket_keeps_programs(tmp_path):
  code = (
    'import jax; from wam_jax import compilation_cache, storage\n'
    'compilation_cache.keep("gs://bucket/run/programs", None)\n'
    'double = jax.jit(lambda x: x + x)\n'
    'assert double(2) == 4; jax.clear_caches(); assert double(3) == 6'
  )
  with object_store.ObjectStore() as store:
    variables = store.environment | {'PYTHONPATH': str(programs.ROOT)}
    done = programs.run_code(code, variables=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = store.list('run/programs/')
    assert [name for name in kept if 'lambda' in name]
    # Read by the second call, which compiles nothing.
    assert {name for name, _ in store.reads} >= set(kept)
  # No directory of that name.
  assert not list(tmp_path.iterdir())


def test_a_server_keeps_its_programs_to_itself(tmp_path):
  place = tmp_path / 'programs'
  compilation_cache.keep(str(place), tmp_path, is_private=True)
  assert place.stat().st_mode & 0o777 == 0o700
  place.chmod(0o770)
  with pytest.raises(ValueError, match=f'others than you may write there: chmod 700 {place}'):
    compilation_cache.keep(str(place), tmp_path, is_private=True)
  # A training job on a cluster may share them.
  compilation_cache.keep(str(place), tmp_path)
