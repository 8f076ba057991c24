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
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop import output
from wam_jax.interop import own
from wam_jax.interop.files import orbax
from wam_jax.interop.table import rows as rows_lib


def import_checkpoint(
  source: foreign.Foreign,
  target: pathlib.Path,
  dtype: str,
  statistics: bool,
  vocabulary: epath.Path | None,
) -> dict[str, Any]:
  """Writes `target`; it appears when all of it is on disk.

  Args:
    dtype: 'keep', or what every weight is rounded to.
    statistics: a DreamZero checkpoint must have them.
    vocabulary: of the text encoder; None for the one in the source, if there is one.
  Returns:
    what was imported, for people and for the record.
  Raises:
    ValueError: weights or statistics are missing or do not fit, or `target` cannot be written.
  """
  errors.fail(
    f'{source.path} does not hold the weights that its config asks for:',
    source.list_problems(),
    f'Check that the copy is whole, that it is of the layout {source.layout!r} and that its config is its own.',
  )
  robots = source.read_robots() if statistics else []
  vocabulary = vocabulary or source.find_vocabulary()
  config = _config(source, robots, target, vocabulary)
  shapes = {
    part: {
      row.path: lazy.Shape(row.shape, _dtype(row, source.weights[part], dtype)) for row in table
    }
    for part, table in source.tables.items()
  }
  size = sum(lazy.nbytes(shape) for of_part in shapes.values() for shape in of_part.values())
  report = _report(source, target, size, robots, vocabulary)
  with output.staged(target, size) as partial:
    progress = output.Progress('import', size)
    for item in ('params', 'frozen'):
      _write_item(own.checkpoint_place(partial) / item, item, source, shapes, progress)
    own.write_metadata(partial, config, robot_lib.to_metadata(robots), report)
    if vocabulary:
      own.copy_vocabulary(partial, vocabulary)
  return report


def _config(
  source: foreign.Foreign,
  robots: list[robot_lib.Robot],
  target: pathlib.Path,
  vocabulary: epath.Path | None,
) -> cfg.TrainConfig:
  text = source.model.text
  if vocabulary:
    text = dataclasses.replace(text, tokenizer=str(target / own.vocabulary_name(vocabulary)))
  names = tuple(robot.record.name for robot in robots)[: source.model.num_embodiments]
  return cfg.TrainConfig(
    name=target.name,
    model=dataclasses.replace(source.model, text=text),
    **source.fields,
    data=cfg.DataConfig(embodiments=names, augment=any(robot.center_crop for robot in robots)),
    evaluation=cfg.EvalConfig(env='dataset'),
  )


def _dtype(row: rows_lib.Row, weights: Mapping[str, lazy.Weight], dtype: str) -> np.dtype:
  """Of our array: that of all layers, or float32, which holds every other, where they differ."""
  if lazy.DTYPES[dtype] is not None:
    return lazy.DTYPES[dtype]
  held = {weights[name].dtype for name in row.names}
  return held.pop() if len(held) == 1 else lazy.DTYPES['float32']


def _write_item(
  place: pathlib.Path,
  item: str,
  source: foreign.Foreign,
  shapes: Mapping[str, Mapping[str, lazy.Shape]],
  progress: output.Progress,
) -> None:
  parts = {
    part: prefix
    for part, (its_item, prefix) in own.ITEMS.items()
    if its_item == item and part in source.tables
  }
  extra = source.extra if item == 'frozen' else {}
  announced = {
    prefix + path: shape for part, prefix in parts.items() for path, shape in shapes[part].items()
  }
  announced |= {path: lazy.Shape(x.shape, x.dtype) for path, x in extra.items()}
  stacked = frozenset(
    prefix + row.path for part, prefix in parts.items() for row in source.tables[part] if row.layers
  )
  writer = orbax.ItemWriter(place, announced, stacked)
  for part, prefix in parts.items():
    for row in source.tables[part]:
      for layer, weight in _converted(row, source.weights[part]):
        weight = weight.astype(shapes[part][row.path].dtype, copy=False)
        writer.write(prefix + row.path, weight, layer)
        progress.add(weight.nbytes)
  for path, x in extra.items():
    writer.write(path, x)
  writer.finish()


def _converted(
  row: rows_lib.Row, weights: Mapping[str, lazy.Weight]
) -> Iterator[tuple[int | None, np.ndarray]]:
  """(layer or None, one weight in our layout), one after the other."""
  for i, name in enumerate(row.names):
    yield i if row.layers else None, row.to_ours(weights[name].read())


def _report(
  source: foreign.Foreign,
  target: pathlib.Path,
  size: int,
  robots: list[robot_lib.Robot],
  vocabulary: epath.Path | None,
) -> dict[str, Any]:
  counts = {
    part: sum(math.prod(row.shape) for row in table) for part, table in source.tables.items()
  }
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
  }


def show(report: Mapping[str, Any]) -> str:
  """The report as text, with what to do next."""
  lines = [
    f'imported {report["source"]} ({report["layout"]}), {report["bytes"] / 1e9:.2f} GB: '
    + ', '.join(f'{part} {count / 1e6:,.1f} M' for part, count in report['parameters'].items())
  ]
  if report['adapters_merged']:
    lines.append(
      f'{report["adapters_merged"]} LoRA adapters merged into {report["base"] or "their own base"}'
    )
  if report['fresh']:
    lines.append(
      f'{len(report["fresh"])} weights are new, because the source has none: '
      + ', '.join(dict.fromkeys(name.split('.')[0] for name in report['fresh']))
    )
  lines.append(
    f'embodiments: {", ".join(report["embodiments"]) or "none; train on a dataset to control a robot"}'
  )
  if not report['vocabulary']:
    lines.append(
      'no tokenizer.json or sentencepiece model was found: put one into the workdir before using prompts'
    )
  return '\n'.join([*lines, f'workdir: {report["workdir"]}'])
