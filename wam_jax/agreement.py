"""What all hosts of a job must have alike, compared before anything is made, read or compiled.

Hosts that differ would train on numbers that nobody asked for, or wait for each other for ever in
different programs. Owns no means of talking: that is hosts.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import secrets
import time

import jax
from etils import epath

from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.data import pipeline

_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # They change the program that is compiled.
_SETTINGS = (
  'jax_enable_x64',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
)


def check_programs(config: cfg.TrainConfig) -> None:
  """Returns if all hosts run the same command, by the same code, on the same kind of devices.

  Raises:
    HostError: on every host, naming what differs, and where.
    ValueError: this host does not know the others.
  """
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise ValueError(
      f'This is one of {jax.process_count()} hosts, and knows no other: pass --distributed.'
    )
  given = cfg.to_dict(config)
  facts = {f'config.{key}': value for key, value in workdir_lib.flatten(given)}
  facts |= {f'version of {name}': _find_version(name) for name in _PACKAGES}
  facts |= {name: _drop_dumps(os.environ.get(name, '')) for name in _VARIABLES}
  facts |= {name: getattr(jax.config, name) for name in _SETTINGS}
  facts |= {
    'code of wam_jax': hash_code(),
    'devices': f'{jax.local_device_count()} of {jax.local_devices()[0].device_kind}',
  }
  hosts.agree(
    'comparing commands and programs',
    facts,
    'Start the same command, with the same installation, on every host.',
  )


def check_workdir(workdir: pathlib.Path) -> None:
  """Returns if all hosts see the same directory, and may write to it; the first one has made it.

  Raises:
    HostError: on every host, naming those that do not.
  """
  if jax.process_count() == 1:
    return

  def leave_word() -> str:
    name = f'.hosts_{secrets.token_hex(8)}'
    storage.write_whole(epath.Path(workdir) / name, '')
    return name

  word = epath.Path(workdir) / hosts.decide('writing to --workdir', leave_word)
  with hosts.all_or_none('looking at --workdir'):
    if not _appears(word):
      raise ValueError(
        f'--workdir={workdir} is not the directory of that name on the first host. Checkpoints are '
        'written by all hosts to one place: give a bucket, or a disk that all of them mount.'
      )
    own = word.with_name(f'{word.name}_{jax.process_index()}')
    storage.write_whole(own, '')
    own.unlink()
  hosts.decide('writing to --workdir', word.unlink)


def _appears(path: epath.Path) -> bool:
  """Whether a file is there, or comes while a network file system forgets what it knew."""
  for pause_s in (0, 1, 2, 4, 8):
    time.sleep(pause_s)
    if path.exists():
      return True
  return False


def check_data(data: pipeline.Data) -> None:
  """Returns if all hosts have opened the same datasets, and mean the same by their numbers.

  Raises:
    HostError: on every host, naming the datasets that differ, and where.
  """
  facts = {
    f'config.data.mixture.{sampler.name} ({split or "training"})': (
      f'{sampler.episodes.fingerprint[:12]}, {len(sampler)} windows'
    )
    for split, mixture in data.mixtures.items()
    for sampler in mixture
  }
  described = json.dumps(data.metadata, sort_keys=True)
  facts['robots and statistics'] = hashlib.sha256(described.encode()).hexdigest()[:12]
  hosts.agree(
    'comparing the datasets',
    facts,
    'Give every host the same files: copy them again, or name one place that all of them read.',
  )


def hash_code() -> str:
  """Twelve digits of a hash of this package's source, which a checkout's commit may not tell."""
  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parent
  for path in sorted(root.rglob('*.py')):
    digest.update(f'{path.relative_to(root)}\0'.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def _find_version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'absent'


def _drop_dumps(variable: str) -> str:
  """Flags without those that say where the compiler writes what it did."""
  return ' '.join(flag for flag in variable.split() if not flag.startswith('--xla_dump'))
