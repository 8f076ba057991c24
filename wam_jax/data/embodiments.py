"""The robots that the project knows, one declarative record each, and where else a record may be.

Numbers are those of the published datasets and released models; what a field means is said in
record.py. A robot that is not here needs no line of this file: `resolve` takes its record from a
JSON file, from beside its data, or from a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os

from etils import epath

from wam_jax import config as cfg
from wam_jax import pointers
from wam_jax import storage
from wam_jax.data import prompts
from wam_jax.data import record as record_lib

FILE = 'embodiment.json'  # What a record beside a dataset is called.

Slice, View, Embodiment = record_lib.Slice, record_lib.View, record_lib.Embodiment


def _tabletop(
  name: str, state: tuple[Slice, ...], action: tuple[Slice, ...], control_hz: float
) -> Embodiment:
  """A tabletop robot: the top view beside the wrist view, which is squeezed to half its width to
  save tokens.
  """
  return Embodiment(
    name=name,
    views=(View('top', 0, 0, 32, 32), View('wrist', 0, 32, 32, 16)),
    composite=(32, 48),
    state=state,
    action=action,
    control_hz=control_hz,
    video_fps=2.5,
    chunk_s=0.8,
  )


def _quadrants(*keys: str) -> tuple[View, ...]:
  """Three views top left, bottom left and top right; the fourth quadrant stays black. Source: spec
  5.7.
  """
  corners = ((0, 0), (176, 0), (0, 320))
  return tuple(View(key, row, column, 176, 320) for key, (row, column) in zip(keys, corners))


def _pair(key: str, width: int, unit: str) -> tuple[Slice, Slice]:
  """A whole array in state and action; the action counts from the state at the chunk's start."""
  return Slice(key, 0, width, unit), Slice(
    f'action/{key}', 0, width, unit, relative_to=f'{key}:0:{width}'
  )


# All large records share one composite, so that any of them can be mixed.
_LARGE = dict(composite=(352, 640), resize='bilinear')

_TABLETOP = (
  _tabletop(
    'tabletop_disc',
    (Slice('proprio', 0, 2, 'm'), Slice('proprio', 2, 4, 'normalized')),
    (Slice('action', 0, 3, 'normalized'),),
    control_hz=10.0,
  ),
  _tabletop(
    'tabletop_arm',
    (
      Slice('proprio', 0, 2, 'rad'),
      Slice('proprio', 2, 4, 'm'),
      Slice('proprio', 4, 6, 'normalized'),
    ),
    (Slice('action', 0, 3, 'normalized'),),
    control_hz=15.0,
  ),
  _tabletop(
    'tabletop_cart',
    (
      Slice('proprio', 0, 1, 'm'),
      Slice('proprio', 1, 2, 'rad'),
      Slice('proprio', 2, 3, 'm'),
      Slice('proprio', 3, 5, 'normalized'),
    ),
    (Slice('action', 0, 4, 'normalized'),),
    control_hz=5.0,
  ),
  _tabletop('tabletop_human', (), (), control_hz=10.0),
)

# BridgeData V2 as published in RLDS. Most of its episodes have only the fixed camera image_0; the
# others are blank there. Actions are end-effector deltas already, the gripper (1 open, 0 closed) is
# absolute.
_BRIDGE = Embodiment(
  name='bridge_widowx',
  views=(View('image_0', 0, 0, 64, 64),),
  composite=(64, 64),
  state=(
    Slice('state', 0, 3, 'm'),
    Slice('state', 3, 6, 'rad'),
    Slice('state', 6, 7, 'normalized'),
  ),
  action=(
    Slice('action', 0, 3, 'm'),
    Slice('action', 3, 6, 'rad'),
    Slice('action', 6, 7, 'normalized', rest='state:6:7'),
  ),
  control_hz=5.0,
  video_fps=2.5,
  chunk_s=0.8,
)

# DROID 1.0.1 as published in RLDS (droid-dataset.github.io): three 180 x 320 cameras, commanded
# joints and gripper (0 open, 1 closed). Failed episodes lie in directories called `failure`. The
# wrist view fills the whole top row.
_DROID = Embodiment(
  name='droid',
  **_LARGE,
  **record_lib.timing(15.0),
  prompt=prompts.DROID,
  views=(
    View('exterior_image_1_left', 176, 0, 176, 320),
    View('exterior_image_2_left', 176, 320, 176, 320),
    View('wrist_image_left', 0, 0, 176, 640, repeat=2),
  ),
  state=(Slice('joint_position', 0, 7, 'rad'), Slice('gripper_position', 0, 1, 'normalized')),
  action=(
    Slice('action_dict/joint_position', 0, 7, 'rad', relative_to='joint_position:0:7'),
    Slice('action_dict/gripper_position', 0, 1, 'normalized', rest='gripper_position:0:1'),
  ),
  language=('language_instruction', 'language_instruction_2', 'language_instruction_3'),
  episode_key=('episode_metadata/recording_folderpath', 'episode_metadata/file_path'),
  success='success',
)

# AgiBot World as data.from_lerobot stores it, with the keys of its GEAR metadata.
# Everything but the base counts from the state.
_AGIBOT_PAIRS = [
  _pair(*given)
  for given in (
    ('left_arm_joint_position', 7, 'rad'),
    ('right_arm_joint_position', 7, 'rad'),
    ('left_effector_position', 1, 'normalized'),
    ('right_effector_position', 1, 'normalized'),
    ('head_position', 2, 'rad'),
    ('waist_position', 2, 'mixed'),
  )
]
_AGIBOT = Embodiment(
  name='agibot',
  **_LARGE,
  **record_lib.timing(30.0),
  prompt=prompts.AGIBOT,
  views=_quadrants('top_head', 'hand_left', 'hand_right'),
  episode_key=('episode_metadata/name',),
  state=tuple(state for state, _ in _AGIBOT_PAIRS),
  action=(*(action for _, action in _AGIBOT_PAIRS), Slice('action/robot_velocity', 0, 2, 'm/s')),
)

# AgiBot World with the arrays of its HDF5 files; their grippers, from 35 to 120, are rescaled as
# the reference does.
_GRIPPER = dict(offset=35.0, scale=85.0, clip=(0.0, 1.0))
_AGIBOT_WORLD = dataclasses.replace(
  _AGIBOT,
  name='agibot_world',
  episode_key=(),
  state=(
    Slice('joint/position', 0, 14, 'rad'),
    Slice('effector/position', 0, 2, 'normalized', **_GRIPPER),
    Slice('head/position', 0, 2, 'rad'),
    Slice('waist/position', 0, 2, 'mixed'),
  ),
  action=(
    Slice('action/joint/position', 0, 14, 'rad', 'joint/position:0:14'),
    Slice('action/effector/position', 0, 2, 'normalized', 'effector/position:0:2', **_GRIPPER),
    Slice('action/head/position', 0, 2, 'rad', 'head/position:0:2'),
    Slice('action/waist/position', 0, 2, 'mixed', 'waist/position:0:2'),
    Slice('action/robot/velocity', 0, 2, 'm/s'),
  ),
)

# Two YAM arms, likewise. Grippers count from the state, too.
_YAM_PAIRS = [
  _pair(*given)
  for given in (
    ('left_joint_pos', 6, 'rad'),
    ('left_gripper_pos', 1, 'normalized'),
    ('right_joint_pos', 6, 'rad'),
    ('right_gripper_pos', 1, 'normalized'),
  )
]
_YAM = Embodiment(
  name='yam',
  **_LARGE,
  **record_lib.timing(30.0),
  prompt=prompts.YAM,
  views=_quadrants('top_camera-images-rgb', 'left_camera-images-rgb', 'right_camera-images-rgb'),
  episode_key=('episode_metadata/name',),
  state=tuple(state for state, _ in _YAM_PAIRS),
  action=tuple(action for _, action in _YAM_PAIRS),
)

# What most Open X-Embodiment sets share: one camera that fills the composite, end-effector deltas,
# absolute gripper. State vectors differ from set to set, so there is none. For another rate:
# dataclasses.replace(.., **record_lib.timing(HZ)).
_OXE = Embodiment(
  name='oxe',
  **_LARGE,
  **record_lib.timing(5.0),
  views=(View('image', 0, 0, 352, 640),),
  state=(),
  action=(
    Slice('action', 0, 3, 'm'),
    Slice('action', 3, 6, 'rad'),
    Slice('action', 6, 7, 'normalized'),
  ),
)

# RT-1 (fractal20220817_data), whose actions and instructions are nested.
_OXE_RT1 = Embodiment(
  name='oxe_rt1',
  **_LARGE,
  **record_lib.timing(3.0),
  views=(View('image', 0, 0, 352, 640),),
  state=(
    Slice('base_pose_tool_reached', 0, 7, 'mixed'),
    Slice('gripper_closed', 0, 1, 'normalized'),
  ),
  action=(
    Slice('action/world_vector', 0, 3, 'm'),
    Slice('action/rotation_delta', 0, 3, 'rad'),
    Slice('action/gripper_closedness_action', 0, 1, 'normalized'),
  ),
  language=('observation/natural_language_instruction',),
)

# LIBERO as published in RLDS (modified_libero_rlds). Its images were turned by half a turn, because
# the simulator gives them upside down: they are upright but mirrored. The gripper action runs from
# -1 (open) to 1 (closed); here, as elsewhere, from 1 (open) to 0.
_LIBERO = Embodiment(
  name='libero',
  **_LARGE,
  **record_lib.timing(20.0),
  views=(
    View('image', 0, 0, 352, 320, flip='columns'),
    View('wrist_image', 0, 320, 352, 320, flip='columns'),
  ),
  state=(Slice('state', 0, 3, 'm'), Slice('state', 3, 6, 'rad'), Slice('state', 6, 8, 'm')),
  action=(
    Slice('action', 0, 6, 'normalized'),
    Slice('action', 6, 7, 'normalized', offset=1.0, scale=-2.0),
  ),
)

# The same from LIBERO's own HDF5 files, or live from its simulator: the model sees the same
# pictures.
_LIBERO_SIMULATOR = dataclasses.replace(
  _LIBERO,
  name='libero_simulator',
  views=tuple(dataclasses.replace(v, flip='rows') for v in _LIBERO.views),
)

# Meta-World in simulated time, in which its experts need one to three seconds: 16 steps of 1/40 s a
# chunk.
_METAWORLD = Embodiment(
  name='metaworld',
  composite=(128, 128),
  views=(
    View('corner', 64, 0, 64, 64),
    View('corner4', 64, 64, 64, 64),
    View('gripperPOV', 0, 0, 64, 128, repeat=2),
  ),
  state=(Slice('proprio', 0, 3, 'm'), Slice('proprio', 3, 4, 'normalized')),
  action=(Slice('action', 0, 4, 'normalized'),),
  control_hz=40.0,
  video_fps=20.0,
  chunk_s=0.4,
)

# People, seen by one camera: video only.
_HUMAN = Embodiment(
  name='human',
  **_LARGE,
  **record_lib.timing(5.0),
  prompt=prompts.HUMAN,
  views=(View('image', 0, 0, 352, 640),),
  state=(),
  action=(),
)

EMBODIMENTS = {
  record.name: record
  for record in (
    *_TABLETOP,
    _BRIDGE,
    _DROID,
    record_lib.with_composite(_DROID, 320, 640, 'droid_wan22'),
    _AGIBOT,
    record_lib.reference_timing(_AGIBOT),
    _AGIBOT_WORLD,
    _YAM,
    record_lib.reference_timing(_YAM),
    _OXE,
    _OXE_RT1,
    _LIBERO,
    _LIBERO_SIMULATOR,
    _METAWORLD,
    _HUMAN,
  )
}


def get(name: str) -> Embodiment:
  """The record called `name` of the table.

  Raises:
    ValueError: there is none.
  """
  if name not in EMBODIMENTS:
    raise ValueError(
      f'There is no embodiment {name!r}; wam_jax/data/embodiments.py has {sorted(EMBODIMENTS)}. A '
      f'robot of your own is named by its JSON file, as DIR/{FILE}, or by nothing where that lies '
      'beside its data.'
    )
  return EMBODIMENTS[name]


def resolve(text: str, dataset: str | os.PathLike[str] = '') -> Embodiment:
  """The record that a config or a flag names.

  Args:
    text: a name of the table; a JSON file; a directory of a dataset with such a file; a workdir,
      for the record in its newest checkpoint, as WORKDIR:NAME where that has several; or '' for the
      file beside `dataset`.
    dataset: the directory of the dataset that it is for.
  Raises:
    ValueError: there is no such record, or the file does not describe one.
  """
  if cfg.is_table_name(text):
    return get(text)
  if text:
    return _read_place(text)
  if not dataset:
    raise ValueError(f'No embodiment is named, and no dataset beside which its {FILE} could lie.')
  file = storage.make_path(dataset, 'The dataset') / FILE
  if not file.exists():
    raise ValueError(
      f'There is no {file}, and no embodiment is named: give a name of '
      'wam_jax/data/embodiments.py or a JSON file. To have one proposed from the data: '
      f'python -m data.suggest --dataset={os.fspath(dataset)}'
    )
  return read(file)


def write_flag(record: Embodiment, dataset: str | os.PathLike[str]) -> str:
  """What names the record in a command on `dataset`, after a space; '' where it needs no name."""
  if EMBODIMENTS.get(record.name) == record:
    return f' --embodiment={record.name}'
  beside = storage.make_path(dataset, 'The dataset') / FILE
  return '' if beside.exists() else f' --embodiment={record.name}.json'


def read(file: epath.Path) -> Embodiment:
  """The record in a JSON file.

  Raises:
    ValueError: there is no such file, or it does not describe a robot; says what is wrong.
  """
  pointers.check(file)
  try:
    content = json.loads(file.read_text())
  except FileNotFoundError as e:
    raise ValueError(f'There is no record of a robot {file}; correct the path.') from e
  except ValueError as e:
    raise ValueError(f'{file} is not JSON ({e}).') from e
  return from_dict(content, str(file))


def from_dict(content: object, where: str = 'The record') -> Embodiment:
  """As `record.from_dict`, of what somebody has written by hand.

  Raises:
    ValueError: it does not describe a robot; calls it `where`.
  """
  if not isinstance(content, dict):
    raise ValueError(f'{where} must be a JSON object with the fields of an embodiment.')
  try:
    return record_lib.from_dict(content)
  except (TypeError, KeyError, AttributeError) as e:
    fields = [field.name for field in dataclasses.fields(Embodiment)]
    raise ValueError(
      f'{where} does not describe an embodiment ({type(e).__name__}: {e}); it has the fields '
      f'{", ".join(fields)}, those of a view and of a slice are in wam_jax/data/record.py.'
    ) from e
  except ValueError as e:
    raise ValueError(f'{where}: {e}') from e


def _read_place(text: str) -> Embodiment:
  """The record in a JSON file, beside a dataset, or in a checkpoint."""
  path = storage.make_path(text, 'The embodiment')
  if text.endswith('.json'):
    return read(path)
  if (path / FILE).exists():
    return read(path / FILE)
  place, _, name = text.rpartition(':')
  if place and '/' not in name:
    return _read_checkpoint(storage.make_path(place, 'The embodiment'), name)
  return _read_checkpoint(path, '')


def _read_checkpoint(workdir: epath.Path, name: str) -> Embodiment:
  """A record in the newest checkpoint of a run, the only one where none is named."""
  folder = workdir / 'checkpoints'
  steps = (
    sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
  )
  if not steps:
    raise ValueError(
      f'{workdir} names no embodiment: it has neither {FILE} nor a checkpoint; give a name of '
      'wam_jax/data/embodiments.py, a JSON file, or the directory of a dataset or a run.'
    )
  # Small, and read as JSON: nothing here needs the checkpoint's arrays.
  metadata = json.loads((folder / str(steps[-1]) / 'metadata' / 'metadata').read_text())
  known = metadata['data']['embodiments']
  if len(known) == 1 and not name:
    (name,) = known
  if name not in known:
    raise ValueError(f'{workdir} has robots {sorted(known)}; name one of them, as {workdir}:NAME.')
  return from_dict(known[name]['record'], f'{name!r} in {workdir}')
