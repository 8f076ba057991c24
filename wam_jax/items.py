"""The arrays of one item of a checkpoint: what they are, all of them, or each host's own parts.

Reading is no collective: any process may do it alone.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

PyTree = Any

# Of what one file access reads: a host of another mesh reads little beyond its own parts.
_CHUNK_BYTES = 2**25


def load_shapes(path: pathlib.Path) -> PyTree:
  """ShapeDtypeStructs, as they are stored."""
  stored = _make_handler().metadata(epath.Path(path)).tree
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)


def load_whole(path: pathlib.Path) -> PyTree:
  """NumPy arrays, whatever devices wrote them."""
  shapes = load_shapes(path)
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
  args = ocp.args.PyTreeRestore(restore_args=as_numpy)
  return _make_handler().restore(epath.Path(path), args=args)


def load_parts(path: pathlib.Path, like: PyTree) -> PyTree:
  """Arrays on devices, of which this process reads the parts of its own devices alone.

  Args:
    like: ShapeDtypeStructs with shardings, of all arrays of the item or of some.
  Raises:
    ValueError: an array is not there, or of another shape.
  """
  args = ocp.args.PyTreeRestore(
    item=like,
    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
    partial_restore=True,
  )
  return _make_handler().restore(epath.Path(path), args=args)


def make_save_args(tree: PyTree) -> PyTree:
  """How the arrays of an item are laid out on disk."""
  return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)


def _make_handler() -> ocp.PyTreeCheckpointHandler:
  # Not ocp.Checkpointer, which waits for the other processes.
  return ocp.PyTreeCheckpointHandler()
