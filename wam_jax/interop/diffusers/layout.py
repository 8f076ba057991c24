"""A Diffusers directory: one folder of weights per component, both ways. The configs beside them
are `config`.

Action modules and robots are ours: `action_modules/`, with DreamZero's names and our whole config.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import fresh
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop import shards
from wam_jax.interop.diffusers import config as config_lib
from wam_jax.interop.files import safetensors
from wam_jax.interop.table import dit
from wam_jax.interop.table import image
from wam_jax.interop.table import rows as rows_lib
from wam_jax.interop.table import text

# By part, the name of its files without suffix.
STEMS = {
  'dit': 'diffusion_pytorch_model',
  'text': 'model',
  'image': 'model',
  'tokenizer': 'diffusion_pytorch_model',
}
ACTION_STEM = 'model'
# A buffer that CLIP's files hold beside its weights: 0, 1, 2, ...
_POSITION_IDS = 'vision_model.embeddings.position_ids'


def open_source(path: epath.Path, options: foreign.Options) -> foreign.Foreign:
  """The checkpoint at `path`; errors as `layouts.open_source`."""
  described = config_lib.read_configs(path)
  parts = _open_parts(path, has_image=described.model.image.kind != 'none')
  extra = {}
  if described.mean_std_2C is not None:
    extra[own.MEAN_STD] = described.mean_std_2C
  source = foreign.Foreign(
    layout='diffusers',
    path=path,
    model=described.model,
    fields=described.fields or {'flow': foreign.FLOW, 'sample': foreign.SAMPLE},
    weights=parts,
    extra=extra,
    read_robots=lambda: list(described.robots),
  )
  source = fresh.complete(source, options.num_embodiments)
  return _complete_image(source) if 'image' in source.tables else source


def _open_parts(path: epath.Path, has_image: bool) -> dict[str, dict[str, lazy.Weight]]:
  """The weights by part; those of the action modules, if there are any, with the transformer's."""
  parts: dict[str, dict[str, lazy.Weight]] = {}
  problems = []
  for part, folder in config_lib.FOLDERS.items():
    if part == 'image' and not has_image:
      continue
    try:
      parts[part] = dict(safetensors.open_weights(path / folder, STEMS[part]))
    except ValueError as e:
      problems.append(str(e))
  errors.fail(f'{path} is not whole:', problems, 'Copy or download these files again.')

  action_folder = path / config_lib.ACTION_FOLDER
  if action_folder.exists():
    parts['dit'] |= safetensors.open_weights(action_folder, ACTION_STEM)
  parts['text'] = {text.TIED.get(name, name): w for name, w in parts['text'].items()}
  return parts


def _complete_image(source: foreign.Foreign) -> foreign.Foreign:
  """`source` with CLIP's weights joined as in the table, and what Diffusers leaves out of CLIP."""
  c = source.model.image
  weights = source.weights['image']
  # Without it the files are of `CLIPVisionModel`, which projects to nothing.
  has_projection = 'visual_projection.weight' in weights
  held = c if has_projection else dataclasses.replace(c, out_dim=0)
  table = image.rows(held, 'diffusers')

  dtype = next(iter(weights.values())).dtype
  completed = image.complete({'cls_embedding': np.zeros(0, dtype), 'projection': {}}, c)
  missing = {row.path for row in image.rows(c, 'wan')} - {row.path for row in table}
  made = {f'image/params/{path}': rows_lib.look_up(completed, path) for path in sorted(missing)}
  return dataclasses.replace(
    source,
    tables={**source.tables, 'image': table},
    extra={**source.extra, **made},
    weights={**source.weights, 'image': join_image(table, weights)},
  )


class Joined(NamedTuple):
  """Weights that are one in our tables, joined along their first axis."""

  pieces: tuple[lazy.Weight, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    _, *others = self.pieces[0].shape
    return (sum(piece.shape[0] for piece in self.pieces), *others)

  @property
  def dtype(self) -> np.dtype:
    return self.pieces[0].dtype

  def read(self) -> np.ndarray:
    return np.concatenate([piece.read() for piece in self.pieces])


def join_image(
  table: Iterable[rows_lib.Row], weights: Mapping[str, lazy.Weight]
) -> dict[str, lazy.Weight]:
  """Weights under the names of the table, read lazily as `table.image.fuse` does in memory."""
  joined: dict[str, lazy.Weight] = {}
  used = {_POSITION_IDS}
  for row in table:
    for name in row.names:
      pieces = image.parts(name)
      if len(pieces) > 1 and all(piece in weights for piece in pieces):
        joined[name] = Joined(tuple(weights[piece] for piece in pieces))
        used.update(pieces)
  return {name: w for name, w in weights.items() if name not in used} | joined


def list_shards(model: cfg.ModelConfig) -> list[shards.Shards]:
  """The files of weights that an export has; the action modules come first."""
  tables = foreign.make_tables(model, 'diffusers')
  tables['dit'] = dit.wan_rows(model, 'diffusers')
  if 'image' in tables:
    # Pipelines take a `CLIPVisionModel`, which has no projection.
    tables['image'] = image.rows(dataclasses.replace(model.image, out_dim=0), 'diffusers')

  action = shards.Section(part='dit', rows=dit.action_rows(model))
  files = [shards.Shards(config_lib.ACTION_FOLDER, ACTION_STEM, [action])]
  for part, table in tables.items():
    split = image.parts if part == 'image' else shards.keep_whole
    section = shards.Section(part=part, rows=table, split=split)
    files.append(shards.Shards(config_lib.FOLDERS[part], STEMS[part], [section]))
  return files


def write_configs(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  source: own.Own,
  robots: Mapping[str, robot_lib.Robot],
  torch_dtype: str,
) -> None:
  """Every file of an export but the weights, whose folders are there already.

  Args:
    torch_dtype: what `transformers` loads its components in.
  """
  mean_std_2C = None
  if own.MEAN_STD in source.frozen:
    mean_std_2C = source.frozen[own.MEAN_STD].read()
  # There is one category of action modules, and so one id.
  known = [dataclasses.replace(robot, id=0) for robot in robots.values()]
  config_lib.write_configs(
    directory,
    config,
    robot_lib.to_metadata(known),
    torch_dtype,
    mean_std_2C=mean_std_2C,
    vocabulary=workdir_lib.find_vocabulary(source.workdir),
  )
