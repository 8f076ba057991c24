"""Compiles a training step for TPUs that nobody holds yet: does it fit, how fast can it be, what
does it send around.

  python -m wam_jax.compile --config=configs/droid_14b.py --topology=v5p:4x4x4 [--json=FILE]
  python -m wam_jax.compile --config=configs/droid_14b.py --topology=v5p:4x4x4 --plan
  python -m wam_jax.compile --config=configs/droid_14b.py --topology=v6e:16x16 --search
  python -m wam_jax.compile --config=configs/droid_14b.py --topology=v5p:4x4x4 \
      --config.mesh.slice=2 --config.batch_size=256
  python -m wam_jax.compile --config=configs/droid_14b_flash.py --program=control --topology=h200

Needs libtpu (pip install -e '.[aot]') and no TPU, no dataset, no weights. The program is the one
that training runs, compiled to machine code: only there is every kernel's vector memory checked and
the size of the program known. For 14B that takes ten minutes on two cores; --plan stops when
program and memory are planned, after one. Prints HBM per device against what the chip has, executed
FLOPs against those of the model, collectives, the least time of a step and the time to plan by;
exits with status 1 if the step does not fit. --search tries rematerialisation, meshes and
accumulation, planned only, and compiles the best to the end.

--program=control compiles what a robot waits for in place of the training step, for one robot, with
the weights split over all devices, or as --mesh says: for a TPU slice or, with the extra `aot-gpu`,
for h200. Prints memory, what of the state is not updated in place, copies of the cache, logits of
all pairs, kernels, collectives and the least time; with --precision=w8a8 or fp8 also the products
of bytes.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from wam_jax import chips
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import progress
from wam_jax import storage
from wam_jax.aot import compiler
from wam_jax.aot import control
from wam_jax.aot import control_report
from wam_jax.aot import report as report_lib
from wam_jax.aot import search

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, as configs/droid_14b.py; any key can be set, as --config.batch_size=64.',
  lock_config=True,
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'Slice, as v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1; --config.mesh.slice=N for N of them. For '
  '--program=control also h200.',
)
_PROGRAM = flags.DEFINE_enum(
  'program', 'train', ['train', 'control'], 'The training step, or the control step.'
)
_PRECISION = flags.DEFINE_enum(
  'precision',
  None,
  cfg.list_choices(cfg.SampleConfig)['precision'],
  "Of the control step's weights and products; default: the config's.",
)
_MESH = cli.define_mesh("default: the config's, else all devices are 'tensor'.")
_PLAN = flags.DEFINE_bool(
  'plan',
  False,
  'Stop when program and memory are planned: quick, but kernels may still not fit vector memory.',
)
_SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'Try rematerialisation, meshes and accumulation, and print the fastest that fits.',
)
_TRIALS = flags.DEFINE_integer(
  'trials', 6, 'Search: compile so many of the most promising choices.', 1
)
_DUMP = flags.DEFINE_string(
  'dump', None, 'Keep what the compiler writes, HLO and buffers, in this new directory.'
)
cli.define_json()
# Keys of a config that lay out a training step alone. What a file says of them is no mistake: the
# same one is trained and controlled.
_LAYOUT_OF_TRAINING = ('mesh', 'batch_size', 'accumulate')


def main(unused_argv: Sequence[str]) -> int:
  say = progress.Line()
  config = cfg.from_config_dict(cli.read_config(_CONFIG))
  _check_flags()
  if _PROGRAM.value == 'control':
    return _compile_control(config)
  where = chips.find(_TOPOLOGY.value, max(1, config.mesh.get('slice', 1)))
  with tempfile.TemporaryDirectory(prefix='wam_jax_compile_') as scratch:
    directory = _make_dump(scratch)
    if _SEARCH.value:
      found = search.run(
        config,
        where,
        directory,
        trials=_TRIALS.value,
        machine_code=not _PLAN.value,
        say=say,
      )
      shown = search.show(found)
      fits = found['best'] is not None
    else:
      compiled = compiler.compile_step(config, where, directory, not _PLAN.value, say=say)
      found = report_lib.make(config, where, compiled)
      shown = report_lib.show(found)
      fits = found['memory']['fits']
  say.close()
  print(shown)
  cli.write_json(found)
  return 0 if fits else 1


def _check_flags() -> None:
  """Raises ValueError for what is asked and would be passed over."""
  if _PROGRAM.value == 'control':
    idle = [f'--{flag.name}' for flag in (_PLAN, _SEARCH, _TRIALS) if flag.present and flag.value]
    given = config_flags.get_override_values(flags.FLAGS['config'])
    idle += [f'--config.{key}' for key in given if key.split('.')[0] in _LAYOUT_OF_TRAINING]
    if idle:
      raise ValueError(
        f'--program=control has no use for {", ".join(idle)}, which the training step has: it is '
        'for one robot on all devices of one --topology, split as --mesh says. Leave these out.'
      )
    return
  if _PRECISION.value:
    raise ValueError('--precision is of --program=control; training has config.model.dtype.')
  if _MESH.value is not None:
    raise ValueError('--mesh is of --program=control; training has config.mesh.')
  if _TRIALS.present and not _SEARCH.value:
    raise ValueError('--trials is of --search; without it the config itself is compiled.')


def _make_dump(scratch: str) -> pathlib.Path:
  """The directory of --dump, or without it `scratch`: the compiler's files go with the process.

  Raises:
    ValueError: it is there, and the files of two compilations would mix; or it cannot be made.
  """
  if not _DUMP.value:
    return pathlib.Path(scratch)
  directory = storage.make_local_path(_DUMP.value, '--dump', 'Pass a directory.')
  if directory.exists():
    raise ValueError(f'--dump={directory} exists; name a new directory.')
  storage.check_directory(directory, '--dump')
  directory.mkdir(parents=True)
  return directory


def _compile_control(config: cfg.TrainConfig) -> int:
  given = {'precision': _PRECISION.value, 'mesh': cli.read_mesh(_MESH)}
  sample = cfg.override_sampling(config.sample, given)
  config = dataclasses.replace(config, sample=sample)
  where = control.find(_TOPOLOGY.value)
  with tempfile.TemporaryDirectory(prefix='wam_jax_compile_') as scratch:
    directory = _make_dump(scratch)
    compiled = control.compile_act(config, where, directory)
  found = control_report.make(config, where, compiled)
  print(control_report.show(found))
  cli.write_json(found)
  return 0 if found['memory']['fits'] else 1


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'topology'])
  cli.run(main)
