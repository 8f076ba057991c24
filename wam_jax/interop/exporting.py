"""One of our checkpoints becomes a foreign one, complete: weights, configs, statistics.

Averaged weights where the run keeps them. What the files of a layout are is in its folder.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from wam_jax import progress as progress_lib
from wam_jax import storage
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop import shards
from wam_jax.interop.diffusers import layout as diffusers_layout
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.dreamzero import robots as dreamzero_robots


@dataclasses.dataclass(frozen=True)
class Options:
  """How to export.

  Attributes:
    layout: 'dreamzero' or 'diffusers'.
    dtype: what every weight is rounded to, a key of `lazy.DTYPES`.
    shard_bytes: the size of one file, at most, but for a single larger weight.
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


def export_checkpoint(source: own.Own, target: pathlib.Path, options: Options) -> dict[str, Any]:
  """Writes `target`; it appears when all of it is on disk.

  Returns:
    what was exported, for people.
  Raises:
    ValueError: the model or a robot has no counterpart there, weights are missing, or `target`
      cannot be written.
  """
  # All that can be refused is refused before the first array is read.
  _check_kinds(source, options.layout)
  robots = _choose_robots(source, options)
  category = _choose_category(source, robots, options)
  _check_arrays(source)

  # The config of what is exported: one category of action modules.
  data = source.config.data
  config = dataclasses.replace(
    source.config,
    model=dataclasses.replace(source.config.model, num_embodiments=1),
    data=dataclasses.replace(data, embodiments=data.embodiments[:1]),
  )
  layout = dreamzero_layout if options.layout == 'dreamzero' else diffusers_layout
  files = layout.list_shards(config.model)
  selection = shards.Selection(source, category, lazy.DTYPES[options.dtype])
  shapes = [selection.announce(of_file) for of_file in files]
  size = sum(lazy.nbytes(shape) for of_file in shapes for shape in of_file.values())

  with storage.whole_directory(target, size) as partial:
    if options.layout == 'dreamzero':
      # First, because a robot that cannot be described stops the export.
      dreamzero_layout.write_configs(partial, config, robots, options.camera)
    with progress_lib.Progress('export', size, 'B') as progress:
      for of_file in files:
        selection.write(of_file, partial, options.shard_bytes, progress)
    if options.layout == 'diffusers':
      # Last, because the folders are made with the weights.
      torch_dtype = str(next(iter(shapes[0].values())).dtype)
      diffusers_layout.write_configs(partial, config, source, robots, torch_dtype)

  return {
    'layout': options.layout,
    'workdir': str(source.workdir),
    'step': source.step,
    'averaged': source.averaged,
    'adapters_merged': source.adapters,
    'base': source.base or None,
    'output': str(target),
    'bytes': size,
    'weights': sum(map(len, shapes)),
    'embodiments': sorted(robots),
  }


def _check_kinds(source: own.Own, layout: str) -> None:
  """Raises unless the official code can build such a model."""
  c = source.config.model
  wanted = []
  if c.tokenizer.kind == 'patch':
    wanted.append(f'model.tokenizer.kind={c.tokenizer.kind!r}')
  if c.text.kind != 'umt5':
    wanted.append(f'model.text.kind={c.text.kind!r}')
  if c.prompt_in_modulation:
    wanted.append('model.prompt_in_modulation=True')
  if layout == 'dreamzero' and own.MEAN_STD in source.frozen:
    # The official code has them as constants; Diffusers keeps them in a config.
    wanted.append('other mean and deviation of latents than the released')
  errors.fail(
    'This model has parts that exist only here, so there is nothing to export them to:',
    wanted,
    "Models with a Wan VAE ('wan2_1', 'wan2_2') and the text encoder 'umt5' can be exported.",
  )


def _choose_robots(source: own.Own, options: Options) -> dict[str, robot_lib.Robot]:
  """Robots to describe, by the reference's tag."""
  if not options.statistics:
    return {}
  every = source.robots()
  known = {name: r for name, r in every.items() if r.statistics and r.record.action}
  if options.embodiment:
    if options.embodiment not in known:
      raise ValueError(
        f'--embodiment={options.embodiment} has no statistics in {source.workdir}; known are '
        f'{", ".join(sorted(known)) or "none"}.'
      )
    known = {options.embodiment: known[options.embodiment]}
  if not known and options.layout == 'dreamzero':
    raise ValueError(
      f'{source.workdir} knows no robot with statistics, and without them no robot can be '
      'controlled. Train it on a dataset first, or pass --nostatistics to export the weights alone.'
    )

  if options.tag and len(known) > 1:
    raise ValueError(
      f'--tag={options.tag} names one robot, but there are {", ".join(sorted(known))}; add '
      '--embodiment=NAME.'
    )
  # The files hold robots by tag, so that two of one tag would be one.
  tagged = {}
  for name, robot in known.items():
    tagged[options.tag or dreamzero_robots.find_tag(name)] = robot
  if len(tagged) < len(known):
    raise ValueError(
      f'{", ".join(sorted(known))} share a tag of the reference; pass --embodiment=NAME of one.'
    )
  if options.layout == 'dreamzero':
    dreamzero_robots.check_tags(tagged)
  return tagged


def _choose_category(
  source: own.Own, robots: Mapping[str, robot_lib.Robot], options: Options
) -> int:
  """Which category of the action modules is exported: others have only one."""
  known = source.robots()
  count = source.config.model.num_embodiments
  if options.embodiment in known:
    return known[options.embodiment].id
  # All robots that are described must mean the same category; without any, there must be one.
  ids = {robot.id for robot in robots.values()} or set(range(count))
  if len(ids) > 1:
    raise ValueError(
      f'The model has action modules for {count} embodiments, and there is room for one; pass '
      f'--embodiment=NAME, one of {", ".join(sorted(known))}.'
    )
  return ids.pop()


def _check_arrays(source: own.Own) -> None:
  """Raises unless the checkpoint holds every weight that its config asks for, and no other."""
  problems = []
  for part, table in foreign.make_tables(source.config.model, 'wan').items():
    want = {row.path: row.shape for row in table}
    have = {path: array.shape for path, array in source.part(part).items()}
    paths = sorted(want.keys() | have.keys())
    problems += [
      f'{part}: {path} is {have.get(path, "missing")}; expected {want.get(path, "no such array")}'
      for path in paths
      if want.get(path) != have.get(path)
    ]
  errors.fail(
    f'Checkpoint {source.step} of {source.workdir} does not fit its config:',
    problems,
    'It may be damaged, or of another version; pass another --checkpoint_step.',
  )


def show(report: Mapping[str, Any]) -> str:
  """The report as text."""
  how = ''
  if report['averaged']:
    how += ', averaged weights'
  if report['adapters_merged']:
    how += f', {report["adapters_merged"]} LoRA adapters merged'
  robots = ', '.join(report['embodiments']) or 'none'
  return (
    f'exported step {report["step"]} of {report["workdir"]}{how}: '
    f'{report["weights"]} weights, {report["bytes"] / 1e9:.2f} GB\n'
    f'embodiments: {robots}\n'
    f'{report["layout"]}: {report["output"]}'
  )
