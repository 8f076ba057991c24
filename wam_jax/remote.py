"""The names that storage.py had; deleted once nobody imports it."""

from __future__ import annotations

from wam_jax import storage

make_path = storage.make_path
is_remote = storage.is_remote
write = storage.write_whole
staged = storage.local_directory
