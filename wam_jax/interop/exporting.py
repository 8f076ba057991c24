"""One of our checkpoints becomes a foreign one, complete: weights, configs, statistics.

Averaged weights where the run keeps them. Arrays pass through memory one weight at a time, or as
many layers at a time as share a chunk on disk.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import importing
from wam_jax.interop import layouts
from wam_jax.interop import lazy
from wam_jax.interop import output
from wam_jax.interop import own as own_lib
from wam_jax.interop.diffusers import config as diffusers_config
from wam_jax.interop.dreamzero import config as dreamzero_config
from wam_jax.interop.dreamzero import robots as dreamzero_robots
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import orbax
from wam_jax.interop.files import safetensors
from wam_jax.interop.table import dit
from wam_jax.interop.table import image
from wam_jax.interop.table import rows as rows_lib


@dataclasses.dataclass(frozen=True)
class Options:
  """How to export.

  Attributes:
    layout: 'dreamzero' or 'diffusers'.
    dtype: 'keep', or what every weight is rounded to.
    shard_bytes: of one file, at most, but for a single larger weight.
    embodiment: the robot to export, by name; '' for all. Needed where the model has a category for
      each.
    tag: the reference's name for it; '' for the known one.
    camera: columns and rows of its camera images; None for the published ones.
    statistics: whether the robots must be described; without, the result serves no robot.
  """

  layout: str = 'dreamzero'
  dtype: str = 'keep'
  shard_bytes: int = 5 * 10**9
  embodiment: str = ''
  tag: str = ''
  camera: tuple[int, int] | None = None
  statistics: bool = True


@dataclasses.dataclass(frozen=True)
class _File:
  """One set of shards: the weights of `rows` under `prefix` + their name."""

  folder: str
  stem: str
  part: str
  prefix: str
  rows: list[rows_lib.Row]


def export_checkpoint(own: own_lib.Own, target: pathlib.Path, options: Options) -> dict[str, Any]:
  """Writes `target`; it appears when all of it is on disk.

  Returns:
    what was exported, for people.
  Raises:
    ValueError: the model or a robot has no counterpart there, weights are missing, or `target`
      cannot be written.
  """
  _check_kinds(own, options.layout)
  robots = _choose_robots(own, options)
  category = _category(own, robots, options)
  model = dataclasses.replace(own.config.model, num_embodiments=1)
  config = dataclasses.replace(
    own.config,
    model=model,
    data=dataclasses.replace(own.config.data, embodiments=own.config.data.embodiments[:1]),
  )
  _check_arrays(own)
  files = _files(model, options.layout)
  shapes = [_shapes(file, own, options.dtype) for file in files]
  size = sum(lazy.nbytes(shape) for of_file in shapes for shape in of_file.values())
  with output.staged(target, size) as partial:
    if options.layout == 'dreamzero':
      _write_dreamzero(partial, config, robots, options)
    progress = output.Progress('export', size)
    for stem in dict.fromkeys((file.folder, file.stem) for file in files):
      together = [
        (file, of_file) for file, of_file in zip(files, shapes) if (file.folder, file.stem) == stem
      ]
      _write_shards(
        partial / stem[0], stem[1], together, own, category, options.shard_bytes, progress
      )
    if options.layout == 'diffusers':
      _write_diffusers(partial, config, own, list(robots.values()), shapes[0])
  return {
    'layout': options.layout,
    'workdir': str(own.workdir),
    'step': own.step,
    'averaged': own.averaged,
    'adapters_merged': own.adapters,
    'base': own.base or None,
    'output': str(target),
    'bytes': size,
    'weights': sum(map(len, shapes)),
    'embodiments': sorted(robots),
  }


def _check_kinds(own: own_lib.Own, layout: str) -> None:
  c = own.config.model
  wanted = [f'model.tokenizer.kind={c.tokenizer.kind!r}'] * (c.tokenizer.kind == 'patch')
  wanted += [f'model.text.kind={c.text.kind!r}'] * (c.text.kind != 'umt5')
  wanted += ['model.prompt_in_modulation=True'] * c.prompt_in_modulation
  wanted += ['other mean and deviation of latents than the released'] * (
    layout == 'dreamzero' and own_lib.MEAN_STD in own.frozen
  )
  errors.fail(
    'This model has parts that exist only here, so there is nothing to export them to:',
    wanted,
    "Models with a Wan VAE ('wan2_1', 'wan2_2') and the text encoder 'umt5' can be exported.",
  )


def _choose_robots(own: own_lib.Own, options: Options) -> dict[str, robot_lib.Robot]:
  """Robots to describe, by the reference's tag."""
  if not options.statistics:
    return {}
  known = {
    name: robot for name, robot in own.robots().items() if robot.statistics and robot.record.action
  }
  if options.embodiment:
    if options.embodiment not in known:
      raise ValueError(
        f'--embodiment={options.embodiment} has no statistics in {own.workdir}; known are '
        f'{", ".join(sorted(known)) or "none"}.'
      )
    known = {options.embodiment: known[options.embodiment]}
  if not known and options.layout == 'dreamzero':
    raise ValueError(
      f'{own.workdir} knows no robot with statistics, and without them no robot can be controlled. '
      'Train it on a dataset first, or pass --nostatistics to export the weights alone.'
    )
  if options.tag and len(known) > 1:
    raise ValueError(
      f'--tag={options.tag} names one robot, but there are {", ".join(sorted(known))}; add '
      '--embodiment=NAME.'
    )
  tagged = {options.tag or dreamzero_robots.find_tag(name): robot for name, robot in known.items()}
  if len(tagged) < len(known):
    raise ValueError(
      f'{", ".join(sorted(known))} share a tag of the reference; pass --embodiment=NAME of one.'
    )
  if options.layout == 'dreamzero':
    lost = [
      f'{robot.record.name}: its tag would be {tag!r}'
      for tag, robot in tagged.items()
      if tag not in dreamzero_robots.TAGS
    ]
    errors.fail(
      'The official server has no prompt for these robots:',
      lost,
      f'Pass --embodiment=NAME --tag=TAG to export one under another tag: {", ".join(dreamzero_robots.TAGS)}.',
    )
  return tagged


def _category(own: own_lib.Own, robots: Mapping[str, robot_lib.Robot], options: Options) -> int:
  """Which category of the action modules is exported: others have only one."""
  known, count = own.robots(), own.config.model.num_embodiments
  if options.embodiment in known:
    return known[options.embodiment].id
  ids = {robot.id for robot in robots.values()} or set(range(count))
  if len(ids) > 1:
    raise ValueError(
      f'The model has action modules for {count} embodiments, and there is room for one; pass '
      f'--embodiment=NAME, one of {", ".join(sorted(known))}.'
    )
  return ids.pop()


def _check_arrays(own: own_lib.Own) -> None:
  """Raises unless the checkpoint holds every weight that its config asks for, and no other."""
  problems = []
  for part, table in layouts.tables(own.config.model, 'wan').items():
    want, have = (
      {row.path: row.shape for row in table},
      {path: x.shape for path, x in own.part(part).items()},
    )
    problems += [
      f'{part}: {path} is {have.get(path, "missing")}; expected {want.get(path, "no such array")}'
      for path in sorted(want.keys() | have.keys())
      if want.get(path) != have.get(path)
    ]
  errors.fail(
    f'Checkpoint {own.step} of {own.workdir} does not fit its config:',
    problems,
    'It may be damaged, or of another version; pass another --checkpoint_step.',
  )


def _files(model: cfg.ModelConfig, layout: str) -> list[_File]:
  tables = layouts.tables(model, layout)
  if layout == 'dreamzero':
    return [
      _File('.', 'model', part, layouts.PREFIXES[part], table) for part, table in tables.items()
    ]
  files = [
    _File(
      diffusers_config.ACTION_FOLDER,
      diffusers_config.ACTION_STEM,
      'dit',
      '',
      dit.action_rows(model),
    )
  ]
  tables['dit'] = dit.wan_rows(model, layout)
  if 'image' in tables:
    tables['image'] = image.rows(dataclasses.replace(model.image, out_dim=0), layout)
  return files + [
    _File(*diffusers_config.FOLDERS[part], part, '', table) for part, table in tables.items()
  ]


def _shapes(file: _File, own: own_lib.Own, dtype: str) -> dict[str, lazy.Shape]:
  """Of every weight in the file, in its order: layer by layer."""
  held = own.part(file.part)
  shapes = {}
  for layer in range(max((row.layers for row in file.rows), default=0) or 1):
    for row in file.rows:
      if layer < max(1, row.layers):
        name, kind = row.names[layer], importing.DTYPES[dtype] or held[row.path].dtype
        shapes |= {
          file.prefix + piece: lazy.Shape(x, kind)
          for piece, x in _pieces(file, name, row.torch_shape)
        }
  return shapes


def _pieces(file: _File, name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
  """The tensors that a row's weight is split into: one, but for CLIP's in Diffusers."""
  names = image.parts(name) if file.part == 'image' else [name]
  return [
    (piece, (shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape) for piece in names
  ]


def _write_shards(
  folder: pathlib.Path,
  stem: str,
  files: list[tuple[_File, dict[str, lazy.Shape]]],
  own: own_lib.Own,
  category: int,
  shard_bytes: int,
  progress: output.Progress,
) -> None:
  announced = {name: shape for _, shapes in files for name, shape in shapes.items()}
  with safetensors.Writer(folder, stem, announced, shard_bytes) as writer:
    for file, _ in files:
      held = own.part(file.part)
      for row in file.rows:
        for name, weight in _converted(row, held[row.path], category):
          names = [piece for piece, _ in _pieces(file, name, row.torch_shape)]
          for piece, part in zip(
            names, np.split(weight, len(names)) if len(names) > 1 else [weight], strict=True
          ):
            writer.write(
              file.prefix + piece, part.astype(announced[file.prefix + piece].dtype, copy=False)
            )
          progress.add(weight.nbytes)


def _converted(
  row: rows_lib.Row, array: orbax.Array, category: int
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, weight in PyTorch's layout), one after the other."""
  if not row.layers:
    part = slice(category, category + 1) if row.layout.split('->')[1].split()[:1] == ['E'] else ()
    yield row.torch, row.to_torch(array.read(part))
    return
  for start in range(0, row.layers, array.layers):
    block = array.read(slice(start, min(start + array.layers, row.layers)))
    for name, layer in zip(row.names[start:], block):
      yield name, row.to_torch(layer)


def _write_dreamzero(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  robots: Mapping[str, robot_lib.Robot],
  options: Options,
) -> None:
  dreamzero_robots.write(directory, robots, config.model, options.camera)
  jsonfile.write(
    directory / dreamzero_config.CONFIG,
    dreamzero_config.head_config(config, _tokens_per_frame(config.model, robots)),
  )


def _tokens_per_frame(c: cfg.ModelConfig, robots: Mapping[str, robot_lib.Robot]) -> int:
  """Of the robots' composite images; of the published ones where there is no robot."""
  sizes = {tuple(c.tokenizer.resize) or robot.record.composite for robot in robots.values()}
  if len(sizes) > 1:
    raise ValueError(
      f'Robots with images of different sizes, {sorted(sizes)}, cannot share one config.json; pass '
      '--embodiment=NAME.'
    )
  cell = c.tokenizer.spatial * c.patch
  return math.prod(
    n // cell for n in (sizes.pop() if sizes else tuple(c.tokenizer.resize) or (352, 640))
  )


def _write_diffusers(
  directory: pathlib.Path,
  config: cfg.TrainConfig,
  own: own_lib.Own,
  robots: list[robot_lib.Robot],
  shapes: Mapping[str, lazy.Shape],
) -> None:
  mean_std = own.frozen[own_lib.MEAN_STD].read() if own_lib.MEAN_STD in own.frozen else None
  data = robot_lib.to_metadata([dataclasses.replace(robot, id=0) for robot in robots])
  diffusers_config.write_configs(
    directory,
    config,
    data,
    str(next(iter(shapes.values())).dtype),
    mean_std,
    workdir_lib.find_vocabulary(own.workdir),
  )


def show(report: Mapping[str, Any]) -> str:
  """The report as text."""
  how = ', averaged weights' if report['averaged'] else ''
  how += f', {report["adapters_merged"]} LoRA adapters merged' if report['adapters_merged'] else ''
  return (
    f'exported step {report["step"]} of {report["workdir"]}{how}: {report["weights"]} weights, '
    f'{report["bytes"] / 1e9:.2f} GB\nembodiments: {", ".join(report["embodiments"]) or "none"}\n'
    f'{report["layout"]}: {report["output"]}'
  )
