"""Takes released weights in, and gives ours back to PyTorch.

python -m wam_jax.convert import  --source=DIR --output=WORKDIR [--layout=NAME] [--base=DIR]
python -m wam_jax.convert export  --source=WORKDIR --output=DIR [--layout=NAME] [--dtype=bfloat16]
python -m wam_jax.convert inspect --source=DIR [--json=FILE]
python -m wam_jax.convert slim    --source=WORKDIR --output=WORKDIR [--dtype=bfloat16]

`import` makes a workdir that `serve` and `evaluate` take as it is and `train` through
--config.init_from. `export` writes what the official DreamZero server opens, or a Diffusers
directory beside which the action modules lie. `slim` makes a small workdir of the weights of a run
alone. Weights keep the dtype they have, so that import and
export give back the same bits; --dtype rounds them. They pass through memory one at a time, and the
output appears only when it is complete. Sources may lie in a bucket (gs://...). Layouts are
dreamzero, wan (import alone) and diffusers.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from wam_jax import cli
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.data import embodiments
from wam_jax.interop import exporting
from wam_jax.interop import foreign
from wam_jax.interop import importing
from wam_jax.interop import inspection
from wam_jax.interop import layouts
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop import slimming
from wam_jax.interop.dreamzero import keys
from wam_jax.interop.dreamzero import serving

_SOURCE = flags.DEFINE_string(
  'source', None, 'Checkpoint directory to read; for export and slim, a workdir.', required=True
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Directory to make: a workdir for import and slim, a checkpoint for export.'
)
_LAYOUT = flags.DEFINE_enum(
  'layout',
  None,
  layouts.LAYOUTS,
  'Of the foreign side. Import and inspect find out; export writes dreamzero by default.',
)
_BASE = flags.DEFINE_string(
  'base', None, 'Import, LoRA: the directory that the adapters were trained on.'
)
_TEXT = flags.DEFINE_string(
  'text_encoder',
  None,
  'Import, wan: file or directory of the T5, where not in the source. Export to dreamzero: where '
  'its .pth lies on the serving machine, which loads it by itself, from the hub without this.',
)
_IMAGE = flags.DEFINE_string(
  'image_encoder',
  None,
  'Import, wan: the same of CLIP. Wan2.2-TI2V has none; with one given it gets the (new) '
  'image attention that DreamZero trains. Export to dreamzero: as --text_encoder.',
)
_VAE = flags.DEFINE_string(
  'vae', None, 'Import, wan: the same of the video VAE. Export to dreamzero: as --text_encoder.'
)
_VOCABULARY = flags.DEFINE_string(
  'tokenizer',
  None,
  'Import: tokenizer.json or sentencepiece model of UMT5, where not in the source. Export to '
  'dreamzero: directory of the tokenizer on the serving machine.',
)
_IMAGE_HEADS = flags.DEFINE_integer(
  'image_heads', 0, 'Import: attention heads of a CLIP other than the released; 0 for 16.', 0
)
_NUM_EMBODIMENTS = flags.DEFINE_integer(
  'num_embodiments', 1, 'Import of weights without action modules: categories of the new ones.', 1
)
_STATISTICS = flags.DEFINE_bool(
  'statistics',
  True,
  '--nostatistics converts weights alone, whose statistics are lost: no robot can be controlled.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'keep', tuple(lazy.DTYPES), 'Of the weights written; keep: as they are.'
)
_SHARD_GB = flags.DEFINE_float('max_shard_gb', 5.0, 'Export: largest file.', 0.001)
_STEP = flags.DEFINE_integer(
  'checkpoint_step', None, 'Export, inspect, slim: of a workdir; the newest by default.'
)
_EMBODIMENT = cli.define_embodiment(
  'Export: one of the robots; needed where each has its own category of action modules. Import: '
  'whose the action modules are, where the source names no robot.'
)
_TAG = flags.DEFINE_string(
  'tag', '', "Export: DreamZero's tag for that robot, where it is not the known one."
)
_CAMERA = flags.DEFINE_string(
  'camera_resolution',
  None,
  "Export to dreamzero: COLUMNSxROWS of the robot's camera images; DROID's are known.",
)
_KEYS = flags.DEFINE_string(
  'keys',
  '',
  'Export to dreamzero: names of parts of state and action, where not those that are printed: '
  'ARRAY:START:STOP=NAME,..., as state:0:6=joint_position,state:6:7=gripper_position.',
)
cli.define_json()
# What a flag is no use for would be ignored in silence.
_SERVED = 'text_encoder image_encoder vae tokenizer tag camera_resolution keys'
_OPENED = 'layout base text_encoder image_encoder vae image_heads num_embodiments'
_USES = {
  'import': f'{_OPENED} tokenizer statistics dtype embodiment'.split(),
  'export': f'{_SERVED} layout statistics dtype max_shard_gb checkpoint_step embodiment'.split(),
  'inspect': f'{_OPENED} checkpoint_step'.split(),
  'slim': ['dtype', 'checkpoint_step'],
}


def main(argv: Sequence[str]) -> None:
  commands = {'import': _import, 'export': _export, 'inspect': _inspect, 'slim': _slim}
  if len(argv) != 2 or argv[1] not in commands:
    given = ' '.join(argv[1:]) or 'nothing'
    raise ValueError(
      'Say what to do, as in: python -m wam_jax.convert import --source=... ; one of '
      f'{", ".join(commands)}, got {given}.'
    )
  name = argv[1]
  if name != 'inspect' and not _OUTPUT.value:
    raise ValueError(f'{name} needs --output=DIRECTORY.')
  _check_flags(name)
  report = commands[name]()
  cli.write_json(report)


def _check_flags(name: str) -> None:
  """Raises ValueError for flags that are given and of no use to the command."""
  known = {flag for uses in _USES.values() for flag in uses}
  idle = [flag for flag in sorted(known - set(_USES[name])) if flags.FLAGS[flag].present]
  what = name
  if name == 'export' and _LAYOUT.value == 'diffusers':
    what += ' --layout=diffusers'
    # The rest says how the official server is to find things.
    idle += [flag for flag in _SERVED.split() if flags.FLAGS[flag].present]
  if idle:
    raise ValueError(
      f'{what} has no use for {", ".join(f"--{flag}" for flag in idle)}; see --help for what each '
      'flag is of, and leave these out.'
    )


def _import() -> dict[str, Any]:
  target = _make_local_path('output', _OUTPUT.value)
  source = layouts.open_source(_make_path(_SOURCE.value), _make_options())
  report = importing.import_checkpoint(
    source,
    target,
    dtype=_DTYPE.value,
    statistics=_STATISTICS.value,
    vocabulary=_find_vocabulary(),
    record=embodiments.resolve(_EMBODIMENT.value) if _EMBODIMENT.value else None,
  )
  print(importing.show(report))
  return report


def _export() -> dict[str, Any]:
  if _LAYOUT.value == 'wan':
    raise ValueError(
      "--layout=wan cannot be written: Wan-AI's files have no room for the action modules; "
      'pass dreamzero or diffusers.'
    )
  source = own.open_workdir(_make_local_path('source', _SOURCE.value), _STEP.value)
  options = exporting.Options(
    layout=_LAYOUT.value or 'dreamzero',
    dtype=_DTYPE.value,
    shard_bytes=int(_SHARD_GB.value * 1e9),
    embodiment=_name_robot(source),
    tag=_TAG.value,
    where=_describe_server(),
    statistics=_STATISTICS.value,
  )
  target = _make_local_path('output', _OUTPUT.value)
  report = exporting.export_checkpoint(source, target, options)
  print(exporting.show(report))
  return report


def _inspect() -> dict[str, Any]:
  report = inspection.inspect(_make_path(_SOURCE.value), _make_options(), _STEP.value)
  print(inspection.show(report))
  return report


def _slim() -> dict[str, Any]:
  source = own.open_workdir(_make_local_path('source', _SOURCE.value), _STEP.value)
  target = _make_local_path('output', _OUTPUT.value)
  report = slimming.slim(source, target, _DTYPE.value)
  print(slimming.show(report))
  return report


def _make_options() -> foreign.Options:
  given = {'text': _TEXT.value, 'image': _IMAGE.value, 'tokenizer': _VAE.value}
  return foreign.Options(
    layout=_LAYOUT.value or '',
    base=_make_path(_BASE.value) if _BASE.value else None,
    encoders={part: _make_path(place) for part, place in given.items() if place},
    image_heads=_IMAGE_HEADS.value,
    num_embodiments=_NUM_EMBODIMENTS.value,
  )


def _name_robot(source: own.Own) -> str:
  """The name of the robot that --embodiment means; '' for any."""
  text = _EMBODIMENT.value
  if not text or text in source.robots():
    return text
  return embodiments.resolve(text).name


def _find_vocabulary() -> epath.Path | None:
  """The vocabulary that was named, if any."""
  if not _VOCABULARY.value:
    return None
  found = workdir_lib.find_vocabulary(_make_path(_VOCABULARY.value), foreign.VOCABULARY_FOLDERS)
  if found is None:
    raise ValueError(
      f'--tokenizer={_VOCABULARY.value} holds none of {", ".join(workdir_lib.VOCABULARIES)}.'
    )
  return found


def _describe_server() -> serving.Serving:
  """What is said of where an export will be served."""
  flag_of = {'text': _TEXT, 'image': _IMAGE, 'tokenizer': _VAE, serving.TOKENIZER: _VOCABULARY}
  return serving.Serving(
    camera=_parse_camera(),
    names=keys.parse(_KEYS.value),
    paths={part: flag.value for part, flag in flag_of.items() if flag.value},
  )


def _parse_camera() -> tuple[int, int] | None:
  """(columns, rows) of the camera images, if they were given."""
  if not _CAMERA.value:
    return None
  columns, _, rows = _CAMERA.value.partition('x')
  if not (columns.isdigit() and rows.isdigit()):
    raise ValueError(f'--camera_resolution={_CAMERA.value} must be COLUMNSxROWS, as 320x180.')
  return int(columns), int(rows)


def _make_local_path(flag: str, place: str) -> pathlib.Path:
  path = storage.make_local_path(
    place,
    f'--{flag}',
    'A directory that is renamed when it is complete needs a file system: mount the bucket '
    '(gcsfuse, s3fs), or copy the directory.',
  )
  if flag == 'output':
    storage.check_directory(path.parent, '--output')
  return path


def _make_path(place: str) -> epath.Path:
  """A path that may be of a bucket."""
  return epath.Path(place).expanduser()


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
