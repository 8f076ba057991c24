"""A run becomes a small workdir of its weights alone: to be kept, copied or published.

What stays is what acts: the weights, averaged where the run keeps an average and with adapters
merged, the frozen encoders, the config, the robots with their statistics, and which episodes were
trained on. Optimizer, data position and logs do not.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import frozen
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop.files import orbax


def slim(source: own.Own, target: pathlib.Path, dtype: str) -> dict[str, Any]:
  """Writes `target`, a workdir whose checkpoint 0 has the weights of `source`; it appears when all
  of it is on disk.

  Args:
    dtype: what the weights are rounded to, a key of `lazy.DTYPES`. Encoders stay as they are: what
      they have encoded stays valid.
  Returns:
    what was written, for people and for the record.
  Raises:
    ValueError: `target` cannot be written.
  """
  rounded = lazy.DTYPES[dtype]
  params = {path: lazy.Shape(x.shape, rounded or x.dtype) for path, x in source.params.items()}
  encoders = {path: lazy.Shape(x.shape, x.dtype) for path, x in source.frozen.items()}
  size = sum(map(lazy.nbytes, (*params.values(), *encoders.values())))
  record = {
    'layout': 'wam_jax',
    'workdir': str(source.workdir),
    'step': source.step,
    'averaged': source.averaged,
    'adapters_merged': source.adapters,
    'dtype': dtype,
    'base': source.base or source.source or None,
  }
  with storage.whole_directory(target, size) as partial:
    weights = _write(own.checkpoint_place(partial) / 'params', source.params, params)
    place = partial / frozen.ITEM / 'unnamed'
    _write(place, source.frozen, encoders)
    # Its name is what the encoders hash to.
    hashes = own.Hashes(weights, frozen.hash_stored(place))
    place.rename(frozen.find_place(partial, hashes.encoders))
    own.write_metadata(
      partial,
      source.config,
      source.data,
      without_home(record),
      hashes,
      datasets=without_home(source.datasets),
    )
    if vocabulary := workdir_lib.find_vocabulary(epath.Path(source.workdir)):
      workdir_lib.copy_vocabulary(partial, vocabulary)
    written = sum(storage.list_files(partial).values())
  return record | {'output': str(target), 'weights': weights, 'bytes': written}


def without_home(tree: Any) -> Any:
  """JSON with paths below the home directory begun by `~`: they say where, and not of whom."""
  if isinstance(tree, Mapping):
    return {key: without_home(x) for key, x in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [without_home(x) for x in tree]
  home = f'{pathlib.Path.home()}/'
  return f'~/{tree.removeprefix(home)}' if isinstance(tree, str) and tree.startswith(home) else tree


def _write(
  place: pathlib.Path,
  arrays: Mapping[str, orbax.Array | own.Adapted],
  announced: Mapping[str, lazy.Shape],
) -> str:
  """Writes one item, a layer at a time where its arrays are stored so; the hash of its arrays."""
  stacked = frozenset(path for path, x in arrays.items() if x.shape and x.layers < x.shape[0])

  def read() -> Iterator[own.Part]:
    for path, array in arrays.items():
      shape, dtype = announced[path]
      for layer in range(shape[0]) if path in stacked else (None,):
        yield own.Part(path, _read(array, layer).astype(dtype, copy=False), layer)

  return own.write_item(place, announced, stacked, read())


def _read(array: orbax.Array | own.Adapted, layer: int | None) -> np.ndarray:
  """All of it, or one layer without its axis."""
  if layer is not None:
    return array.read(slice(layer, layer + 1))[0]
  return array.read(slice(None)) if array.shape else array.read()


def show(report: Mapping[str, Any]) -> str:
  """The report as text, with what to do next."""
  what = 'averaged weights' if report['averaged'] else 'weights'
  if report['adapters_merged']:
    what += f' with {report["adapters_merged"]} adapters merged'
  rounded = '' if report['dtype'] == 'keep' else f', rounded to {report["dtype"]}'
  return (
    f'{what} of step {report["step"]} of {report["workdir"]}{rounded}: '
    f'{report["bytes"] / 1e6:.2f} MB, hash {report["weights"]}\n'
    f'workdir: {report["output"]}, for --workdir of evaluate and serve, or --config.init_from'
  )
