"""What the tests of conversion do again and again: import, export, damage, compare."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import train_step
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.interop import exporting
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import layouts
from wam_jax.interop import own
from wam_jax.interop.table import rows as rows_lib
from wam_jax.models import encoders


def import_from(
  source: pathlib.Path,
  target: pathlib.Path,
  dtype: str = 'keep',
  statistics: bool = True,
  **options: Any,
) -> dict[str, Any]:
  """Imports a directory; `options` are those of opening it."""
  opened = layouts.open_source(epath.Path(source), foreign.Options(**options))
  return importing.import_checkpoint(opened, target, dtype, statistics, vocabulary=None)


def export_to(workdir: pathlib.Path, target: pathlib.Path, **options: Any) -> dict[str, Any]:
  """Exports the newest checkpoint of a workdir."""
  source = own.open_workdir(workdir, None)
  return exporting.export_checkpoint(source, target, exporting.Options(**options))


def assert_same_bits(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
  assert got.keys() == want.keys()
  for name, w in want.items():
    assert (got[name].dtype, got[name].shape) == (w.dtype, w.shape), name
    assert got[name].tobytes() == w.tobytes(), name


def assert_refused(
  directory: pathlib.Path, damage: Callable[[pathlib.Path], None], message: str
) -> None:
  """A DreamZero checkpoint in `directory` with some damage is one clear error, and leaves
  nothing.
  """
  tiny.write_dreamzero(directory / 'source')
  damage(directory / 'source')
  with pytest.raises(ValueError, match=message):
    import_from(directory / 'source', directory / 'run')
  assert [place.name for place in directory.iterdir()] == ['source']


def write_run(
  workdir: pathlib.Path,
  config: cfg.TrainConfig,
  params: Any,
  frozen: Any,
  robots: list[robot_lib.Robot],
  has_averages: bool = True,
) -> None:
  """Checkpoint 3 as training writes it: float32, and averages twice the weights."""

  def to_float32(tree):
    return jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.float32), tree)

  # Twice the weights, so that a test sees which of the two it was given.
  params = to_float32(params)
  averages = jax.tree.map(lambda x: 2 * x, params) if has_averages else None
  state = train_step.TrainState(
    step=jax.numpy.int32(3),
    params=params,
    ema_params=averages,
    opt_state={'count': jax.numpy.ones(1)},
    frozen=encoders.from_tree(to_float32(frozen), config.model),
  )
  metadata = {
    'config': cfg.to_dict(config),
    'data': robot_lib.to_metadata(robots),
    'encoders': encoders.fingerprint(state.frozen),
  }
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    checkpoints.save(3, state, {}, metadata)


def make_trees(model: cfg.ModelConfig) -> tuple[Any, Any, dict[str, dict[str, np.ndarray]]]:
  """(parameters, frozen parameters, the weights they are) of a random model."""
  weights = tiny.random_weights(model, 'wan', np.float32)
  tables = foreign.make_tables(model, 'wan')
  params = {part: rows_lib.to_params(tables[part], weights[part]) for part in weights}
  frozen = {part: {'params': params[part]} for part in params if part != 'dit'}
  return params['dit'], frozen, weights


def make_droid(category: int = 0, **changes: Any) -> robot_lib.Robot:
  """DROID with statistics; `changes` to its record."""
  record = dataclasses.replace(embodiments.get('droid'), **changes)
  return robot_lib.Robot(
    id=category,
    record=record,
    statistics=normalize.Statistics(
      state=make_quantiles(record.proprio_dim),
      action=make_quantiles(record.action_dim),
      steps=5,
    ),
    center_crop=True,
  )


def make_quantiles(width: int) -> normalize.Quantiles:
  """Each array a step above the one before: min from 0 to 1, q01 from 1 to 2, ..."""
  arrays = {}
  for i, key in enumerate(('min', 'q01', 'mean', 'std', 'q99', 'max')):
    arrays[key] = np.linspace(i, i + 1, width, dtype=np.float32)
  return normalize.Quantiles(**arrays)


def edit_weights(
  source: pathlib.Path, edit: Callable[[dict[str, np.ndarray]], Any], stem: str = 'model'
) -> None:
  """`edit` on the arrays of a directory, which are one file then."""
  weights = tiny.load(source)
  edit(weights)
  tiny.save(source, weights, stem)


def edit_json(path: pathlib.Path, edit: Callable[[dict[str, Any]], Any]) -> None:
  """`edit` on the object in a JSON file."""
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))
