"""Whether a training command would start on machines that nobody holds yet: everything that can be
known from the config and its files, found out here.

  python -m wam_jax.check --config=configs/droid_14b.py --workdir=gs://BUCKET/droid_14b \
      --distributed --config.data.root=gs://BUCKET/data --topology=v5p:4x4x4

Takes the flags of wam_jax.train and runs the checks that its start runs, without a step: the mesh
on so many devices, options of the compiler, the vocabulary, the datasets with their statistics and
stored features, the weights it starts from, whose run the workdir is and whether it can be written.
--mounts are the buckets that those machines have as directories. Prints what it found; status 2 and
all mistakes if there are any. Nothing is made or computed. Whether the step fits the memory of a
chip, `wam_jax.compile` says.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from wam_jax import checkpoint
from wam_jax import chips
from wam_jax import cli
from wam_jax import compiler_options
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import source as source_lib
from wam_jax import start
from wam_jax import storage
from wam_jax import train
from wam_jax import workdir as workdir_lib
from wam_jax.aot import options as aot_options
from wam_jax.data import pipeline
from wam_jax.data import prompts
from wam_jax.data import roster
from wam_jax.data.features import lookup

_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'The slice, as v5p:4x4x4 or v5p-128; by default the devices of this machine.'
)
_SLICES = flags.DEFINE_integer('slices', 1, 'How many of them.', lower_bound=1)
_MOUNTS = flags.DEFINE_list(
  'mounts', [], 'BUCKET:/mnt/DIR of each bucket that the machines have as a directory.'
)
_WHERE = re.compile(r'([a-z0-9][a-z0-9._-]+):(/[^/].*)')


def main(unused_argv: Sequence[str]) -> None:
  mounts = _read_mounts(_MOUNTS.value)
  config = cfg.from_config_dict(_unmount(cli.read_config(flags.FLAGS['config']), mounts))
  cfg.check_weights(config.flow, config.sample)
  workdir = workdir_lib.make_path(_unmount(flags.FLAGS.workdir, mounts))
  if _TOPOLOGY.value:
    # They stand for the slice: a mesh is made of any devices.
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', chips.find(_TOPOLOGY.value, _SLICES.value).devices)

  mistakes = []
  for what, look in list_checks(config, workdir):
    try:
      print(f'{what}: {look()}', flush=True)
    except (ValueError, OSError) as e:
      print(f'{what}: FAILED', flush=True)
      mistakes.append(f'{what}: {e}')
  if mistakes:
    raise ValueError('the command would not start there.\n' + '\n'.join(mistakes))
  print('the command would start there')


def list_checks(
  config: cfg.TrainConfig, workdir: epath.Path
) -> Iterator[tuple[str, Callable[[], str]]]:
  """(what is looked at, a function that says what it is or raises ValueError or OSError)."""
  yield 'mesh', lambda: _check_mesh(config)
  yield 'compiler options', lambda: _check_options(config)
  yield 'workdir', lambda: _check_workdir(config, workdir)
  yield 'vocabulary', lambda: _check_vocabulary(config.model.text)
  if flags.FLAGS.wandb_project:
    yield 'wandb', _check_wandb
  for name in config.data.mixture:
    yield f'dataset {name}', lambda name=name: _check_dataset(config, workdir, name)
  for key in ('init_from', 'encoders_from'):
    if getattr(config, key):
      yield key, lambda key=key: _check_source(config, workdir, key)


def _read_mounts(given: Sequence[str]) -> dict[str, str]:
  """Directory to what stands there."""
  wrong = [mount for mount in given if not _WHERE.fullmatch(mount)]
  if wrong:
    raise ValueError(f'--mounts={",".join(wrong)} must be BUCKET:/mnt/DIR, without gs://.')
  parts = [_WHERE.fullmatch(mount).groups() for mount in given]
  return {directory.rstrip('/'): f'gs://{bucket}' for bucket, directory in parts}


def _unmount(value: Any, mounts: Mapping[str, str]) -> Any:
  """`value`, a tree of a config, with what lies in mounted directories where it really is."""
  if isinstance(value, Mapping):
    return {key: _unmount(v, mounts) for key, v in value.items()}
  if isinstance(value, str):
    for directory, place in mounts.items():
      if value == directory or value.startswith(f'{directory}/'):
        return place + value.removeprefix(directory)
  return value


def _check_mesh(config: cfg.TrainConfig) -> str:
  mesh = sharding.make_mesh(config.mesh)
  # The devices that stand for TPUs know of no slices.
  if _TOPOLOGY.value and mesh.shape['slice'] != _SLICES.value:
    raise ValueError(
      f'config.mesh.slice={mesh.shape["slice"]} and --slices={_SLICES.value} differ; pass '
      f'--config.mesh.slice={_SLICES.value}.'
    )
  sharding.check_sizes(config, mesh)
  return ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())


def _check_options(config: cfg.TrainConfig) -> str:
  """What they say is understood; whether the compiler takes them is tried where it is here."""
  where = chips.find(_TOPOLOGY.value, _SLICES.value) if _TOPOLOGY.value else None
  kind = where.chip.kinds[0] if where else jax.devices()[0].device_kind
  options = compiler_options.make(kind, config.compiler_options, config.sdc_checks)
  of_run = ', '.join(config.compiler_options)
  if not of_run:
    return f'those of {kind}'
  if where is None:
    compiler_options.try_out(options, jax.devices()[0])
  elif not aot_options.try_out(options, where):
    return f"{of_run}; whether the compiler knows them is found out with pip install -e '.[aot]'"
  return f'{of_run} taken by the compiler'


def _check_workdir(config: cfg.TrainConfig, workdir: epath.Path) -> str:
  workdir_lib.check_config(workdir, config)
  if storage.is_remote(workdir):
    probe = workdir / '.check'
    storage.write_whole(probe, b'')
    probe.unlink()
  else:
    _check_writable(workdir)
  steps = checkpoint.list_steps(workdir)
  return f'{workdir} continues after step {steps[-1]}' if steps else f'{workdir} is new'


def _check_writable(workdir: pathlib.Path) -> None:
  """Whether a directory can be made where the workdir is, or will be."""
  there = next(place for place in (workdir, *workdir.parents) if place.exists())
  try:
    pathlib.Path(tempfile.mkdtemp(prefix='.check', dir=there)).rmdir()
  except OSError as e:
    raise ValueError(
      f'--workdir={workdir} cannot be written: {e.strerror} in {there}. Pass a directory you may '
      'write to.'
    ) from e


def _check_wandb() -> str:
  if importlib.util.find_spec('wandb') is None:
    raise ValueError(
      "--wandb_project needs wandb where the command runs: pip install -e '.[wandb]' there, or "
      '--extras=wandb of a launcher.'
    )
  return 'installed'


def _check_vocabulary(text: cfg.TextConfig) -> str:
  prompts.make_tokenizer(text)
  return text.tokenizer or 'none needed'


def _check_dataset(config: cfg.TrainConfig, workdir: epath.Path, name: str) -> str:
  dataset = config.data.mixture[name]
  path = storage.make_path(dataset.path, f'config.data.mixture.{name}.path')
  if not path.exists():
    raise ValueError(
      f'config.data.mixture.{name}.path={dataset.path} is not there, and making it is no work for '
      'a slice; make it beforehand (data/README.md), or correct --config.data.root.'
    )
  only = dataclasses.replace(config, data=config.data.with_mixture({name: dataset}))
  splits = train.list_splits(config)
  opened = pipeline.OpenDatasets(only.data, roster.read(only.data).datasets)
  if pipeline.list_unread(only, opened, splits):
    commands = pipeline.list_statistics_commands(only, opened, splits)
    raise ValueError(
      f'beside config.data.mixture.{name}.path={dataset.path} is not all that the run needs to '
      f'know of its episodes; it would begin by reading every one. Do that beforehand: '
      f'{" && ".join(commands)}'
    )
  data = pipeline.Data.open(only, splits, start.find_known(config, workdir))
  (sampler,) = data.open_mixture()
  found = f'{len(sampler.episodes)} episodes, {len(sampler.anchors)} steps to start from'
  if config.data.features != 'require':
    return found
  hashes = _find_hashes(config, workdir)
  if hashes is None and lookup.are_beside(sampler.episodes):
    return f'{found}; whether the features stored beside it are of these encoders is not known'
  (sampler,) = data.with_features(hashes or {}).open_mixture()
  return f'{found}, {len(sampler.stored)} windows stored'


def _find_hashes(config: cfg.TrainConfig, workdir: epath.Path) -> Mapping[str, str] | None:
  """Those of the encoders that the run has, or takes over; None where they were saved without."""
  for place in (workdir, config.init_from, config.encoders_from):
    metadata = place and checkpoint.find_newest_metadata(workdir_lib.make_path(str(place)))
    if metadata:
      return metadata.get('encoders')
  return None


def _check_source(config: cfg.TrainConfig, workdir: epath.Path, key: str) -> str:
  """What the run at `config.KEY` gives this one; nothing of its arrays is read."""
  one_device = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
  source = source_lib.open_source(getattr(config, key))
  if key == 'init_from':
    start.fit_source(config, one_device, source, workdir)
  else:
    start.adopt(config, one_device, source, key, workdir)
  found = f'step {source.step} of {getattr(config, key)}'
  differing = source_lib.describe_rules(config, source.config) if key == 'init_from' else []
  if differing:
    found += f', trained further by other rules: {", ".join(differing)}'
  return found


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main)
