"""The frozen encoders of a run on disk: WORKDIR/frozen/NAME, written once and whole, where NAME is
made of the hashes of their weights. Checkpoints hold those hashes, in their metadata.

Checkpoints of before hold the encoders themselves, in the item `frozen`, and no hashes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import integrity
from wam_jax import items
from wam_jax.interop.files import orbax
from wam_jax.models import encoders

ITEM = 'frozen'


def find_place(workdir: pathlib.Path, hashes: Mapping[str, str]) -> pathlib.Path:
  """Where encoders with these hashes are, or should be."""
  described = json.dumps(dict(hashes), sort_keys=True)
  return workdir / ITEM / hashlib.sha256(described.encode()).hexdigest()[:16]


def find(checkpoint: pathlib.Path, metadata: Mapping[str, Any]) -> pathlib.Path:
  """Where the encoders of the checkpoint in the directory `checkpoint` are."""
  if metadata.get('encoders') is None:
    return checkpoint / ITEM
  return find_place(checkpoint.parent.parent, metadata['encoders'])


def store(
  workdir: pathlib.Path,
  frozen: encoders.Encoders,
  hashes: Mapping[str, str],
  check_owner: Callable[[], None],
) -> None:
  """Writes the encoders into `workdir` unless they are there; every process must call it.

  Args:
    check_owner: raises where `workdir` belongs to another run by now; called on the first process.
  """
  place = find_place(workdir, hashes)

  def is_there() -> bool:
    check_owner()
    return place.is_dir() and ocp.utils.is_checkpoint_finalized(place)

  if not hosts.decide('looking for the stored encoders', is_there):
    tree = encoders.to_tree(frozen)
    args = ocp.args.PyTreeSave(tree, save_args=items.make_save_args(tree))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
      writer.save(place, args=args, force=True)  # Over what a killed run has left.
  hosts.decide('listing the stored encoders', lambda: integrity.write_list_of_item(place))


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
