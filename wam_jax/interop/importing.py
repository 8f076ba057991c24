"""A foreign checkpoint becomes one of ours: WORKDIR/checkpoints/0, ready to serve, evaluate or
train further.

Arrays keep their dtype. They pass through memory one weight at a time.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import frozen
from wam_jax import progress as progress_lib
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop.table import rows as rows_lib


def import_checkpoint(
  source: foreign.Foreign,
  target: pathlib.Path,
  dtype: str,
  statistics: bool,
  vocabulary: epath.Path | None,
  record: record_lib.Embodiment | None = None,
) -> dict[str, Any]:
  """Writes `target`; it appears when all of it is on disk.

  Args:
    source: the checkpoint.
    target: the workdir to make.
    dtype: what every weight is rounded to, a key of `lazy.DTYPES`.
    statistics: whether a DreamZero checkpoint must have them.
    vocabulary: that of the text encoder; None for the one in the source, if there is one.
    record: the robot that the action modules are of, where the source names none.
  Returns:
    what was imported, for people and for the record.
  Raises:
    ValueError: weights or statistics are missing or do not fit, or `target` cannot be written.
  """
  errors.fail(
    f'{source.path} does not hold the weights that its config asks for:',
    source.list_problems(),
    f'Check that the copy is whole, that it is of the layout {source.layout!r} and that its config '
    'is its own.',
  )
  robots = source.read_robots() if statistics else []
  if record is not None:
    robots = _name_robot(source, robots, record)
  vocabulary = vocabulary or source.find_vocabulary()
  config = _make_config(source, robots, target, vocabulary)
  items = {
    'params': _collect_arrays(source, 'params', lazy.DTYPES[dtype]),
    'frozen': _collect_arrays(source, 'frozen', lazy.DTYPES[dtype]),
  }
  # What the tables ask for; the few numbers in `source.extra` do not count.
  size = sum(lazy.nbytes(array.announced) for arrays in items.values() for array in arrays)
  report = _make_report(source, target, size, robots, vocabulary)

  with storage.whole_directory(target, size) as partial:
    with progress_lib.Progress('import', size, 'B') as progress:
      place = own.checkpoint_place(partial) / 'params'
      weights = _write_item(place, items['params'], {}, progress, config.model.dim)
      place = partial / frozen.ITEM / 'unnamed'
      _write_item(place, items['frozen'], source.extra, progress)
    # Its name is what the encoders hash to, once they are there.
    hashes = own.Hashes(weights, frozen.hash_stored(place))
    place.rename(frozen.find_place(partial, hashes.encoders))
    own.write_metadata(partial, config, robot_lib.to_metadata(robots), report, hashes)
    if vocabulary:
      workdir_lib.copy_vocabulary(partial, vocabulary)
  return report


def _name_robot(
  source: foreign.Foreign, robots: list[robot_lib.Robot], record: record_lib.Embodiment
) -> list[robot_lib.Robot]:
  """The robot of the first row of action modules. Its statistics are not known: those of the data
  that it is trained on will be used.

  Raises:
    ValueError: the source names its own, or the model has no room for its vectors.
  """
  if robots:
    names = ', '.join(robot.record.name for robot in robots)
    raise ValueError(
      f'{source.path} names its own robots, {names}: leave out --embodiment, or pass '
      '--nostatistics to import the weights without them.'
    )
  model = source.model
  if record.action_dim > model.action_dim or record.proprio_dim > model.proprio_dim:
    raise ValueError(
      f'{record.name!r} has {record.action_dim} action and {record.proprio_dim} state dimensions; '
      f'the model has room for {model.action_dim} and {model.proprio_dim}.'
    )
  return [robot_lib.Robot(id=0, record=record, statistics=None)]


def _make_config(
  source: foreign.Foreign,
  robots: list[robot_lib.Robot],
  target: pathlib.Path,
  vocabulary: epath.Path | None,
) -> cfg.TrainConfig:
  """The config of a run that has just these weights: it evaluates on datasets of its robots."""
  text = source.model.text
  if vocabulary:
    text = dataclasses.replace(
      text, tokenizer=str(target / workdir_lib.name_vocabulary(vocabulary))
    )
  names = tuple(robot.record.name for robot in robots)
  return cfg.TrainConfig(
    name=target.name,
    model=dataclasses.replace(source.model, text=text),
    **source.fields,
    data=cfg.DataConfig(
      # One robot for each category of the action modules.
      embodiments=names[: source.model.num_embodiments],
      # It was trained on random crops, and so it is shown the centre.
      augment=any(robot.center_crop for robot in robots),
    ),
    # There is no simulator of a released robot.
    evaluation=cfg.EvalConfig(env='dataset'),
  )


@dataclasses.dataclass(frozen=True)
class _Array:
  """One array of ours and where its numbers come from.

  Attributes:
    path: its path in the item.
    row: what it is in the source.
    weights: the part of the source that it is in.
    dtype: the type of its numbers.
  """

  path: str
  row: rows_lib.Row
  weights: Mapping[str, lazy.Weight]
  dtype: np.dtype

  @property
  def announced(self) -> lazy.Shape:
    return lazy.Shape(self.row.shape, self.dtype)


def _collect_arrays(source: foreign.Foreign, item: str, dtype: np.dtype | None) -> list[_Array]:
  """The arrays that the tables ask for in one item of the checkpoint."""
  arrays = []
  for part, (its_item, prefix) in own.ITEMS.items():
    if its_item != item or part not in source.tables:
      continue
    weights = source.weights[part]
    for row in source.tables[part]:
      array_dtype = dtype or _find_dtype(row, weights)
      arrays.append(_Array(prefix + row.path, row, weights, array_dtype))
  return arrays


def _find_dtype(row: rows_lib.Row, weights: Mapping[str, lazy.Weight]) -> np.dtype:
  """The dtype of all layers, or float32, which holds every other, where they differ."""
  held = {weights[name].dtype for name in row.names}
  return held.pop() if len(held) == 1 else lazy.DTYPES['float32']


def _write_item(
  place: pathlib.Path,
  arrays: list[_Array],
  extra: Mapping[str, np.ndarray],
  progress: progress_lib.Progress,
  width: int = 0,
) -> str:
  """Writes one item of the checkpoint, as `own.write_item` does."""
  announced = {array.path: array.announced for array in arrays}
  announced |= {path: lazy.Shape(x.shape, x.dtype) for path, x in extra.items()}
  stacked = frozenset(array.path for array in arrays if array.row.layers)

  def read() -> Iterator[own.Part]:
    for array in arrays:
      for number, name in enumerate(array.row.names):
        weight = array.row.to_ours(array.weights[name].read())
        weight = weight.astype(array.dtype, copy=False)
        yield own.Part(array.path, weight, number if array.row.layers else None)
        progress.add(weight.nbytes)
    for path, x in extra.items():
      yield own.Part(path, x)

  return own.write_item(place, announced, stacked, read(), width)


def _make_report(
  source: foreign.Foreign,
  target: pathlib.Path,
  size: int,
  robots: list[robot_lib.Robot],
  vocabulary: epath.Path | None,
) -> dict[str, Any]:
  counts = {}
  for part, table in source.tables.items():
    counts[part] = sum(math.prod(row.shape) for row in table)
  return {
    'layout': source.layout,
    'source': str(source.path),
    'base': str(source.base) if source.base else None,
    'workdir': str(target),
    'parameters': counts,
    'bytes': size,
    'adapters_merged': source.merged,
    'fresh': list(source.fresh),
    'embodiments': [robot.record.name for robot in robots],
    'vocabulary': str(vocabulary) if vocabulary else None,
    'notes': list(source.notes),
  }


def show(report: Mapping[str, Any]) -> str:
  """The report as text, with what to do next."""
  counts = report['parameters'].items()
  lines = [
    f'imported {report["source"]} ({report["layout"]}), {report["bytes"] / 1e9:.2f} GB: '
    + ', '.join(f'{part} {count / 1e6:,.1f} M' for part, count in counts)
  ]
  if report['adapters_merged']:
    base = report['base'] or 'their own base'
    lines.append(f'{report["adapters_merged"]} LoRA adapters merged into {base}')
  if report['fresh']:
    modules = ', '.join(list_modules(report['fresh']))
    lines.append(f'{len(report["fresh"])} weights are new, because the source has none: {modules}')
  robots = ', '.join(report['embodiments']) or 'none; train on a dataset to control a robot'
  lines.append(f'embodiments: {robots}')
  if not report['vocabulary']:
    lines.append(
      'no tokenizer.json or sentencepiece model was found: put one into the workdir before using '
      'prompts'
    )
  lines += [f'note: {note}' for note in report['notes']]
  lines.append(f'workdir: {report["workdir"]}')
  return '\n'.join(lines)


def list_modules(names: list[str]) -> list[str]:
  """The outermost modules of weights, each once."""
  return list(dict.fromkeys(name.split('.')[0] for name in names))
