"""One of our checkpoints becomes a foreign one, complete: weights, configs, statistics.

Averaged weights where the run keeps them. What the files of a layout are is in its folder.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg
from wam_jax import presets
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
from wam_jax.interop.dreamzero import serving
from wam_jax.interop.table import dit


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
    where: what is known of where a DreamZero export will be served.
    statistics: whether the robots must be described; without, the result serves no robot.
  """

  layout: str = 'dreamzero'
  dtype: str = 'keep'
  shard_bytes: int = 5 * 10**9
  embodiment: str = ''
  tag: str = ''
  where: serving.Serving = dataclasses.field(default_factory=serving.Serving)
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
  zeroed = {}
  if options.layout == 'dreamzero':
    zeroed = _find_zeroed(source, robots, category)
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
  selection = shards.Selection(source, category, lazy.DTYPES[options.dtype], zeroed)
  shapes = [selection.announce(of_file) for of_file in files]
  size = sum(lazy.nbytes(shape) for of_file in shapes for shape in of_file.values())

  torch_dtype = str(next(iter(shapes[0].values())).dtype)
  notes = [_say_zeroed(first, config.model.action_dim) for first in zeroed.values()]
  with storage.whole_directory(target, size) as partial:
    if options.layout == 'dreamzero':
      # First, because a robot that cannot be described stops the export.
      notes += dreamzero_layout.write_configs(partial, config, robots, options.where, torch_dtype)
    with progress_lib.Progress('export', size, 'B') as progress:
      for of_file in files:
        selection.write(of_file, partial, options.shard_bytes, progress)
    if options.layout == 'diffusers':
      # Last, because the folders are made with the weights.
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
    'notes': notes,
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
  if c.action_overlap:
    wanted.append(f'model.action_overlap={c.action_overlap}: chunks end there where the next begin')
  if layout == 'dreamzero':
    wanted += _list_constants(source)
  errors.fail(
    'This model has parts that exist only here, so there is nothing to export them to:',
    wanted,
    "Models with a Wan VAE ('wan2_1', 'wan2_2') and the text encoder 'umt5' can be exported.",
  )


def _list_constants(source: own.Own) -> list[str]:
  """What the official code has as constants, and this model otherwise."""
  c = source.config.model
  wanted = []
  if own.MEAN_STD in source.frozen:
    # Diffusers keeps them in a config.
    wanted.append('other mean and deviation of latents than the released')
  if c.state_rule == 'self':
    wanted.append("model.state_rule='self': in control, states see there what actions see")
  if c.video_sees == 'video':
    wanted.append("model.video_sees='video': noisy video sees there the actions of its chunk")
  if c.text.max_distance != cfg.TextConfig.max_distance:
    wanted.append(f'model.text.max_distance={c.text.max_distance}')
  of_kind = {'wan2_1': presets.WAN2_1_I2V_14B, 'wan2_2': presets.WAN2_2_TI2V_5B}
  if c.tokenizer.kind in of_kind:
    released = of_kind[c.tokenizer.kind].tokenizer.vae
    pairs = [(key, getattr(c.tokenizer.vae, key)) for key in ('multipliers', 'blocks')]
    others = [f'{key}={x}' for key, x in pairs if x != getattr(released, key)]
    wanted += [f'model.tokenizer.vae.{text}' for text in others]
  return wanted


def _find_zeroed(
  source: own.Own, robots: Mapping[str, robot_lib.Robot], category: int
) -> dict[str, int]:
  """By path of an array, the row from which on it is written as zeros.

  With `flow.mask_padded_noise` the model saw zeros in padded action dimensions, where the official
  server feeds noise. Without the rows that it would enter by, both are the same.

  Raises:
    ValueError: robots of several widths share these rows.
  """
  if not source.config.flow.mask_padded_noise:
    return {}
  sharing = robots.values() or [r for r in source.robots().values() if r.id == category]
  widths = {r.record.name: r.record.action_dim for r in sharing if r.record.action}
  if len(set(widths.values())) > 1:
    raise ValueError(
      'Robots of different numbers of action dimensions, '
      f'{", ".join(f"{name} ({width})" for name, width in widths.items())}: training fed zeros in '
      'those that a robot lacks, the official server feeds noise, and only for one robot can the '
      'rows that it would enter by be zeros; pass --embodiment=NAME.'
    )
  width = next(iter(widths.values()), source.config.model.action_dim)
  return {dit.ACTION_INPUT: width} if width < source.config.model.action_dim else {}


def _say_zeroed(first: int, dimensions: int) -> str:
  return (
    f'training saw zeros in the padded action dimensions {first} to {dimensions - 1}, where the '
    'official server feeds noise: their rows of action_encoder.W1 are written as zeros, so that it '
    'acts the same'
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
  text = (
    f'exported step {report["step"]} of {report["workdir"]}{how}: '
    f'{report["weights"]} weights, {report["bytes"] / 1e9:.2f} GB\n'
    f'embodiments: {robots}\n'
    f'{report["layout"]}: {report["output"]}'
  )
  return '\n'.join([text, *(f'note: {note}' for note in report['notes'])])
