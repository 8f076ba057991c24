"""The frozen encoders of a run on disk: WORKDIR/frozen/NAME, written once and whole, where NAME is
made of the hashes of their weights. Checkpoints hold those hashes, and NAME, in their metadata.

In a bucket, which nothing locks, two starts may write them at the same time: there NAME ends with
letters of each writer's own, and checkpoints name the one that is whole.

Checkpoints of before hold the encoders themselves, in the item `frozen`, and no hashes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import integrity
from wam_jax import items
from wam_jax import storage
from wam_jax.interop.files import orbax
from wam_jax.models import encoders

ITEM = 'frozen'


def find_place(workdir: pathlib.Path, hashes: Mapping[str, str]) -> pathlib.Path:
  """Where encoders with these hashes are, where nothing else is said."""
  described = json.dumps(dict(hashes), sort_keys=True)
  return workdir / ITEM / hashlib.sha256(described.encode()).hexdigest()[:16]


def find(checkpoint: pathlib.Path, metadata: Mapping[str, Any]) -> pathlib.Path:
  """Where the encoders of the checkpoint in the directory `checkpoint` are."""
  if metadata.get('encoders') is None:
    return checkpoint / ITEM
  plain = find_place(checkpoint.parent.parent, metadata['encoders'])
  return plain.with_name(metadata.get('encoders_in', plain.name))


def store(
  workdir: pathlib.Path,
  frozen: encoders.Encoders,
  hashes: Mapping[str, str],
  check_owner: Callable[[], None],
) -> str:
  """Writes the encoders into `workdir` unless they are there; every process must call it.

  Args:
    check_owner: raises where `workdir` belongs to another run by now; called on the first process.
  Returns:
    The name of their directory, for the metadata of checkpoints.
  """

  def choose() -> tuple[str, bool]:
    check_owner()
    plain = find_place(workdir, hashes)
    for place in _list_places(workdir):
      if place.name.split('-')[0] == plain.name and _is_whole(place):
        return place.name, True
    own = f'-{uuid.uuid4().hex[:8]}' if storage.is_remote(workdir) else ''
    return plain.name + own, False

  name, is_there = hosts.decide('looking for the stored encoders', choose)
  place = workdir / ITEM / name
  if not is_there:
    tree = encoders.to_tree(frozen)
    args = ocp.args.PyTreeSave(tree, save_args=items.make_save_args(tree))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
      writer.save(place, args=args, force=True)  # Over what a killed run has left.
  hosts.decide('listing the stored encoders', lambda: integrity.write_list_of_item(place))
  return name


def find_unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
  """What starts that were killed have left of encoders in a bucket."""
  if not storage.is_remote(workdir):
    return []  # There the next start writes over it.
  return [place for place in _list_places(workdir) if not _is_whole(place)]


def _list_places(workdir: pathlib.Path) -> list[pathlib.Path]:
  directory = workdir / ITEM
  return sorted(directory.iterdir()) if directory.is_dir() else []


def _is_whole(place: pathlib.Path) -> bool:
  return place.is_dir() and ocp.utils.is_checkpoint_finalized(place)


def load(place: pathlib.Path, c: cfg.ModelConfig) -> encoders.Encoders:
  """The encoders, of NumPy arrays."""
  return encoders.from_tree(items.load_whole(place), c)


def load_shapes(place: pathlib.Path, c: cfg.ModelConfig) -> encoders.Encoders:
  """The encoders, of ShapeDtypeStructs."""
  return encoders.from_tree(items.load_shapes(place), c)


def load_parts(place: pathlib.Path, like: encoders.Encoders) -> encoders.Encoders:
  """The encoders on devices, of which this process reads its own parts.

  Args:
    like: encoders of ShapeDtypeStructs with shardings.
  """
  return encoders.from_tree(items.load_parts(place, encoders.to_tree(like)), like.config)


def hash_stored(place: pathlib.Path) -> dict[str, str]:
  """As `encoders.fingerprint` of what is stored, which passes through memory chunk by chunk."""
  arrays = orbax.open_item(place)
  parts: dict[str, list[encoders.Named]] = {}
  for path in sorted(arrays, key=lambda path: path.split('/')):
    part, *keys = path.split('/')
    name = ''.join(f'[{key!r}]' for key in keys)
    array = arrays[path]
    named = encoders.Named(name, array.shape, array.dtype, _read_in_order(array))
    parts.setdefault(part, []).append(named)
  return {part: encoders.hash_arrays(named) for part, named in parts.items()}


def hash_once(
  place: pathlib.Path, metadata: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, str]:
  """The hashes of the encoders of a checkpoint: those it names, or, of one of before, what the
  first process makes of them; every process must call it.
  """
  if metadata.get('encoders') is not None:
    return metadata['encoders']

  def compute() -> dict[str, str]:
    say(f'hashing the encoders in {place}, this once: checkpoints of before have no hash of them')
    return hash_stored(place)

  return hosts.decide(f'hashing the encoders in {place}', compute, hosts.FOREVER_S)


def _read_in_order(array: orbax.Array) -> Iterable[np.ndarray]:
  if not array.shape:
    yield array.read()
    return
  for start in range(0, array.shape[0], array.layers):
    yield array.read(slice(start, start + array.layers))
