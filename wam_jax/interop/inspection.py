"""What a checkpoint is, in any layout: parts and their sizes, model, robots with statistics, what
is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import storage
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import layouts
from wam_jax.interop import lazy
from wam_jax.interop import own

_LISTED = 10  # Of what is missing.


def inspect(path: epath.Path, options: foreign.Options, step: int | None) -> dict[str, Any]:
  """JSON-ready description; reads headers only.

  Raises:
    ValueError: the directory is in no known layout, or damaged.
  """
  if own.is_workdir(path) and not options.layout:
    return _inspect_own(path, step)
  return _inspect_foreign(path, options)


def _inspect_own(path: epath.Path, step: int | None) -> dict[str, Any]:
  cure = 'A workdir is read as files: mount the bucket (gcsfuse, s3fs), or copy the directory.'
  source = own.open_workdir(storage.make_local_path(path, '--source', cure), step)
  parts: dict[str, Mapping[str, lazy.Weight]] = {'dit': source.params}
  for part in own.ITEMS:
    if part != 'dit':
      # With what the encoders hold beside their tables.
      prefix = f'{part}/'
      parts[part] = {name: x for name, x in source.frozen.items() if name.startswith(prefix)}
  return {
    'layout': 'wam_jax',
    'step': source.step,
    'averaged': source.averaged,
    'source': source.source,
    'base': source.base,
    'adapters': source.adapters,
    'lora': cfg.to_dict(source.lora),
    **_describe(path, parts, source.config.model, list(source.robots().values())),
    'missing': [],
  }


def _inspect_foreign(path: epath.Path, options: foreign.Options) -> dict[str, Any]:
  source = layouts.open_source(path, options)
  missing = source.list_problems()
  try:
    robots = source.read_robots()
  except ValueError as e:
    # What is missing is what one asks about.
    robots = []
    missing.append(str(e).replace('\n', ' '))
  return {
    'layout': source.layout,
    'adapters': source.merged,
    'fresh': list(source.fresh),
    'vocabulary': str(source.find_vocabulary() or ''),
    **_describe(path, source.weights, source.model, robots),
    'notes': list(source.notes),
    'missing': missing,
  }


def _describe(
  path: epath.Path,
  parts: Mapping[str, Mapping[str, lazy.Weight]],
  model: cfg.ModelConfig,
  robots: list[robot_lib.Robot],
) -> dict[str, Any]:
  """What is said of a checkpoint in any layout."""
  return {
    'path': str(path),
    'parts': {part: _describe_part(weights) for part, weights in parts.items() if weights},
    'model': cfg.to_dict(model),
    'embodiments': {robot.record.name: _describe_robot(robot) for robot in robots},
  }


def _describe_part(weights: Mapping[str, lazy.Weight]) -> dict[str, Any]:
  return {
    'arrays': len(weights),
    'parameters': sum(math.prod(w.shape) for w in weights.values()),
    'bytes': sum(map(lazy.nbytes, weights.values())),
    'dtypes': lazy.count_dtypes(weights.values()),
  }


def _describe_robot(robot: robot_lib.Robot) -> dict[str, Any]:
  record = robot.record
  return {
    'id': robot.id,
    'views': [view.key for view in record.views],
    'composite': list(record.composite),
    'control_hz': record.control_hz,
    'video_fps': record.video_fps,
    'chunk_s': record.chunk_s,
    'state': record_lib.names(record.state),
    'action': record_lib.names(record.action),
    'relative': [s.key for s in record.action if s.relative_to],
    'statistics': robot.statistics and normalize.to_dict(robot.statistics),
  }


def show(report: Mapping[str, Any]) -> str:
  """The report as text."""
  step = f', step {report["step"]}' if 'step' in report else ''
  lines = [
    f'{report["path"]}: layout {report["layout"]}{step}',
    f'{"part":<10}{"arrays":>8}{"parameters":>16}{"GB":>10}  dtypes',
  ]
  for part, sizes in report['parts'].items():
    gigabytes = sizes['bytes'] / 1e9
    dtypes = ', '.join(sizes['dtypes'])
    counts = f'{sizes["arrays"]:>8}{sizes["parameters"]:>16,}'
    lines.append(f'{part:<10}{counts}{gigabytes:>10.3f}  {dtypes}')
  lines.append(_show_model(report['model']))
  for name, robot in report['embodiments'].items():
    lines += _show_robot(name, robot)
  if not report['embodiments']:
    lines.append('embodiments: none')
  lines += _show_origin(report)
  lines += [f'note: {note}' for note in report.get('notes', ())]

  missing = report['missing']
  if missing:
    lines.append(f'missing or wrong: {len(missing)}')
    lines += [f'  {line}' for line in missing[:_LISTED]]
  else:
    lines.append('missing: nothing')
  return '\n'.join(lines)


def _show_model(model: Mapping[str, Any]) -> str:
  tokenizer = model['tokenizer']
  text = model['text']
  # All that decides whether weights of two checkpoints fit each other, on one line.
  return (
    f'model: {model["num_layers"]} layers of {model["dim"]} '
    f'({model["num_heads"]} heads, mlp {model["mlp_dim"]}), '
    f'{tokenizer["kind"]} latents of {tokenizer["channels"]}, '
    f'{model["max_chunks"]} chunks of {model["frames_per_chunk"]} frames '
    f'and {model["actions_per_chunk"]} actions, {model["num_embodiments"]} categories, '
    f'text {text["kind"]} {text["dim"]}, image {model["image"]["kind"]} {model["image_dim"]}'
  )


def _show_origin(report: Mapping[str, Any]) -> list[str]:
  """Where the weights are from, in so far as that is not their own files."""
  lines = []
  if report.get('adapters'):
    line = f'LoRA: {report["adapters"]} adapters'
    if 'lora' in report:
      lora = report['lora']
      line += (
        f' of rank {lora["rank"]}, alpha {lora["alpha"]:g}; above and on export merged into what '
        'they adapt'
      )
    lines.append(line)
  if report.get('base'):
    base = report['base']
    # Records of before have a SHA-256.
    lines.append(
      f'started from step {base["step"]} of {base["workdir"]}, weights of hash '
      f'{base.get("weights") or base["sha256"]}'
    )
  if report.get('fresh'):
    modules = ', '.join(importing.list_modules(report['fresh']))
    lines.append(f'new weights, not in the source: {len(report["fresh"])}, of {modules}')
  return lines


def _show_robot(name: str, robot: Mapping[str, Any]) -> list[str]:
  rows, columns = robot['composite']
  lines = [
    f'embodiment {name}: {robot["control_hz"]:g} Hz, video {robot["video_fps"]:g} fps, chunks of '
    f'{robot["chunk_s"]:g} s, composite {rows} x {columns} of {", ".join(robot["views"])}'
  ]
  if not robot['statistics']:
    lines.append('  no statistics')
    return lines
  for kind in ('state', 'action'):
    quantiles = robot['statistics'][kind]
    low = np.asarray(quantiles['q01'])
    high = np.asarray(quantiles['q99'])
    for dimension, q01, q99 in zip(robot[kind], low, high):
      line = f'  {kind} {dimension:<36} q01 {q01:>10.4g}  q99 {q99:>10.4g}'
      # A dimension is called KEY[COLUMN].
      if kind == 'action' and dimension.rsplit('[', 1)[0] in robot['relative']:
        line += '  relative'
      lines.append(line)
  return lines
