"""What a checkpoint is, in any layout: parts and their sizes, model, robots with statistics, what
is missing.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import layouts
from wam_jax.interop import lazy
from wam_jax.interop import own


def inspect(path: epath.Path, options: foreign.Options, step: int | None) -> dict[str, Any]:
  """JSON-ready description; reads headers only.

  Raises:
    ValueError: the directory is in no known layout, or damaged.
  """
  if own.is_workdir(path) and not options.layout:
    ours = own.open_workdir(pathlib.Path(path), step)
    encoders = [part for part in own.ITEMS if part != 'dit']
    parts = {'dit': ours.params} | {
      part: {path: x for path, x in ours.frozen.items() if path.startswith(f'{part}/')}
      for part in encoders
    }
    robots, missing = list(ours.robots().values()), []
    report = {
      'layout': 'wam_jax',
      'step': ours.step,
      'averaged': ours.averaged,
      'source': ours.source,
      'base': ours.base,
      'adapters': ours.adapters,
      'lora': cfg.to_dict(ours.lora),
    }
    model = ours.config.model
  else:
    source = layouts.open_source(path, options)
    parts, model, missing = source.weights, source.model, source.list_problems()
    report = {
      'layout': source.layout,
      'adapters': source.merged,
      'fresh': list(source.fresh),
      'vocabulary': str(source.find_vocabulary() or ''),
    }
    try:
      robots = source.read_robots()
    except ValueError as e:
      robots, missing = [], [*missing, str(e).replace('\n', ' ')]
  return report | {
    'path': str(path),
    'parts': {part: _describe_part(weights) for part, weights in parts.items() if weights},
    'model': cfg.to_dict(model),
    'embodiments': {robot.record.name: _describe_robot(robot) for robot in robots},
    'missing': missing,
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
    'views': [v.key for v in record.views],
    'composite': list(record.composite),
    'control_hz': record.control_hz,
    'video_fps': record.video_fps,
    'chunk_s': record.chunk_s,
    'state': embodiments.names(record.state),
    'action': embodiments.names(record.action),
    'relative': [
      record.action[i].key for i in range(len(record.action)) if record.action[i].relative_to
    ],
    'statistics': robot.statistics and normalize.to_dict(robot.statistics),
  }


def show(report: Mapping[str, Any]) -> str:
  """The report as text."""
  lines = [
    f'{report["path"]}: layout {report["layout"]}'
    + (f', step {report["step"]}' if 'step' in report else ''),
    f'{"part":<10}{"arrays":>8}{"parameters":>16}{"GB":>10}  dtypes',
  ]
  for part, sizes in report['parts'].items():
    lines.append(
      f'{part:<10}{sizes["arrays"]:>8}{sizes["parameters"]:>16,}{sizes["bytes"] / 1e9:>10.3f}  '
      + ', '.join(sizes['dtypes'])
    )
  m = report['model']
  lines.append(
    f'model: {m["num_layers"]} layers of {m["dim"]} ({m["num_heads"]} heads, mlp {m["mlp_dim"]}), '
    f'{m["tokenizer"]["kind"]} latents of {m["tokenizer"]["channels"]}, {m["max_chunks"]} chunks of '
    f'{m["frames_per_chunk"]} frames and {m["actions_per_chunk"]} actions, {m["num_embodiments"]} categories, '
    f'text {m["text"]["kind"]} {m["text"]["dim"]}, image {m["image"]["kind"]} {m["image_dim"]}'
  )
  for name, robot in report['embodiments'].items():
    lines += _show_robot(name, robot)
  if not report['embodiments']:
    lines.append('embodiments: none')
  if report.get('adapters'):
    lines.append(
      f'LoRA: {report["adapters"]} adapters'
      + (
        f' of rank {report["lora"]["rank"]}, alpha {report["lora"]["alpha"]:g}; above and on export merged into what '
        'they adapt'
        if 'lora' in report
        else ''
      )
    )
  if report.get('base'):
    base = report['base']
    lines.append(
      f'started from step {base["step"]} of {base["workdir"]}, parameters of SHA-256 {base["sha256"]}'
    )
  if report.get('fresh'):
    lines.append(
      f'new weights, not in the source: {len(report["fresh"])}, of '
      + ', '.join(dict.fromkeys(name.split('.')[0] for name in report['fresh']))
    )
  missing = report['missing']
  lines += (
    [f'missing or wrong: {len(missing)}', *(f'  {line}' for line in missing[:10])]
    if missing
    else ['missing: nothing']
  )
  return '\n'.join(lines)


def _show_robot(name: str, robot: Mapping[str, Any]) -> list[str]:
  lines = [
    f'embodiment {name}: {robot["control_hz"]:g} Hz, video {robot["video_fps"]:g} fps, chunks of '
    f'{robot["chunk_s"]:g} s, composite {robot["composite"][0]} x {robot["composite"][1]} of '
    + ', '.join(robot['views'])
  ]
  if not robot['statistics']:
    return [*lines, '  no statistics']
  for kind in ('state', 'action'):
    quantiles = robot['statistics'][kind]
    low, high = np.asarray(quantiles['q01']), np.asarray(quantiles['q99'])
    lines += [
      f'  {kind} {dimension:<36} q01 {a:>10.4g}  q99 {b:>10.4g}'
      + (
        '  relative'
        if kind == 'action' and dimension.rsplit('[', 1)[0] in robot['relative']
        else ''
      )
      for dimension, a, b in zip(robot[kind], low, high)
    ]
  return lines
