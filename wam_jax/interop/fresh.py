"""Weights that were never published in a layout, made new: action modules, and the image attention
that Wan2.2-TI2V-5B is released without and DreamZero trains.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from wam_jax import config as cfg
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop.table import dit
from wam_jax.interop.table import rows as rows_lib


class Fresh(NamedTuple):
  """A weight that was never trained, as the reference initialises it; the same for one name on
  every machine.

  Matrices are Xavier uniform, those of the action modules N(0, 0.02); norms are 1 and biases 0.
  """

  name: str
  row: rows_lib.Row
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.row.torch_shape

  def read(self) -> np.ndarray:
    leaf = self.row.path.rsplit('/', 1)[-1]
    if leaf == 'scale':
      return np.ones(self.shape, self.dtype)
    if leaf in ('b', 'bias'):
      return np.zeros(self.shape, self.dtype)

    # Seeded by name alone, so that two imports of one source are the same checkpoint.
    rng = np.random.default_rng(zlib.crc32(self.name.encode()))
    if self.name.endswith('.W'):
      return (0.02 * rng.standard_normal(self.shape, np.float32)).astype(self.dtype)
    # Xavier: sqrt(6 / (inputs + outputs)).
    bound = np.float32((6 / sum(self.shape)) ** 0.5)
    return ((2 * rng.random(self.shape, np.float32) - 1) * bound).astype(self.dtype)


def complete(source: foreign.Foreign, num_embodiments: int) -> foreign.Foreign:
  """`source` with its tables, and with new weights for what its layout was never published with.

  Args:
    num_embodiments: the categories of the action modules, where these are new.
  """
  model = source.model
  held = source.weights['dit']
  if not _is_any_held(dit.action_rows(model), held):
    # Action modules that are there say themselves how many robots they serve.
    model = dataclasses.replace(model, num_embodiments=num_embodiments)

  # As the weights beside them.
  dtype = np.dtype(np.float32)
  if 'patch_embedding.weight' in held:
    dtype = held['patch_embedding.weight'].dtype
  fresh: dict[str, lazy.Weight] = {}
  for group in (dit.action_rows(model), _list_image_rows(model, source.layout)):
    # A group that is there in part is damaged, not new: its missing weights are a problem.
    if _is_any_held(group, held):
      continue
    for row in group:
      fresh |= {name: Fresh(name, row, dtype) for name in row.names}

  return dataclasses.replace(
    source,
    model=model,
    tables=foreign.make_tables(model, source.layout),
    fresh=tuple(fresh),
    weights={**source.weights, 'dit': {**held, **fresh}},
  )


def _is_any_held(group: list[rows_lib.Row], held: Mapping[str, lazy.Weight]) -> bool:
  return any(name in held for row in group for name in row.names)


def _list_image_rows(model: cfg.ModelConfig, layout: str) -> list[rows_lib.Row]:
  """The rows that a transformer has only if it attends to an image."""
  without_image = dit.wan_rows(dataclasses.replace(model, image_dim=0))
  known = {row.path for row in without_image}
  return [row for row in dit.wan_rows(model, layout) if row.path not in known]
