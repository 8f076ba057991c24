"""One declarative record per robot: cameras and their tiling, state and action slices with units,
rates, prompt.

Owns no I/O and no statistics. A record says how the arrays of an RLDS step become the model's
inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import prompts

FLIPS = ('', 'rows', 'columns', 'both')
RESIZES = ('area', 'bilinear')
NORMS = ('q99', 'q99_reference', 'mean_std', 'min_max', 'none')

VIDEO_FPS, FRAMES_PER_CHUNK = 5.0, 8  # The paper's, and the released models' 2 latent frames of 4.


@dataclasses.dataclass(frozen=True)
class View:
  """A camera and the rectangle it fills in the composite image.

  Attributes:
    key: of the image under `steps/observation/` (a path with '/' for nested features).
    row, column, height, width: of its rectangle, pixels; the image is resized to it.
    repeat: times that each column is drawn, side by side; the image is resized to `width / repeat`
      columns.
    flip: 'rows' where the stored image is upside down, 'columns' where it is mirrored, 'both', or
      ''.
  """

  key: str
  row: int
  column: int
  height: int
  width: int
  repeat: int = 1
  flip: str = ''


@dataclasses.dataclass(frozen=True)
class Slice:
  """Part of a state or action vector: (array[start:stop] - offset) / scale, clipped.

  Attributes:
    key: of the array under `steps/observation/` (state) or `steps/` (action), a path with '/' for
      nested features.
    start, stop: columns taken.
    unit: 'm', 'rad', 'normalized', ... of the result; one word for documentation and plots.
    relative_to: for actions, key and columns of the state slice subtracted at the chunk's first
      step, as 'key:start:stop'; '' for an absolute action.
    rest: for actions whose zero is not standing still, the state slice that changes nothing,
      written likewise.
    offset, scale: a constant change of units; offset=1, scale=-1 inverts a gripper.
    clip: lowest and highest result; () for no bounds.
    norm: how the result is brought to the model's range, see `normalize.Quantiles`.
  """

  key: str
  start: int
  stop: int
  unit: str
  relative_to: str = ''
  rest: str = ''
  offset: float = 0.0
  scale: float = 1.0
  clip: tuple[float, ...] = ()
  norm: str = 'q99'

  @property
  def width(self) -> int:
    """Columns."""
    return self.stop - self.start

  def convert(self, stored: np.ndarray) -> np.ndarray:
    """The slice's stored columns [..., width] in its own units, float32."""
    part = np.asarray(stored, np.float32)
    if (self.offset, self.scale) != (0, 1):
      part = (part - np.float32(self.offset)) / np.float32(self.scale)
    return np.clip(part, *self.clip) if self.clip else part

  def restore(self, part: np.ndarray) -> np.ndarray:
    """What `convert` was given, but for what `clip` cut off."""
    return (
      part
      if (self.offset, self.scale) == (0, 1)
      else part * np.float32(self.scale) + np.float32(self.offset)
    )


@dataclasses.dataclass(frozen=True)
class Embodiment:
  """Everything the pipeline and the policy must know about one robot.

  Attributes:
    name: key of the table below and of `DataConfig.embodiments`.
    views: cameras in tiling order; together they cover `composite` (rows, columns), the rest is
      black.
    composite: pixel size of the tiled image.
    state, action: slices in the order the model sees them; no action slices for video-only data.
    control_hz: rate of the recorded actions.
    video_fps: rate of the camera frames that the model sees; must divide `control_hz`.
    chunk_s: seconds one chunk covers.
    prompt: template with one or more `{}` for the lower-cased instruction.
    language: keys under `steps/` that hold instructions (several: one is drawn per sample in
      training).
    resize: how images get their size: 'bilinear' with antialiasing, as the reference, or 'area'
      (the mean of the pixels covered where it shrinks, linear elsewhere).
    episode_key: texts of an episode, outside its steps, that joined by '--' name it in a file of
      step ranges.
    success: text that the name of a successful episode contains; '' where all episodes are.
  """

  name: str
  views: tuple[View, ...]
  composite: tuple[int, int]
  state: tuple[Slice, ...]
  action: tuple[Slice, ...]
  control_hz: float
  video_fps: float
  chunk_s: float
  prompt: str = '{}'
  language: tuple[str, ...] = ('language_instruction',)
  resize: str = 'area'
  episode_key: tuple[str, ...] = ()
  success: str = ''

  def __post_init__(self):
    problems = [*self._timing_problems(), *self._view_problems(), *self._slice_problems()]
    if self.resize not in RESIZES:
      problems.append(f'resize={self.resize!r} must be one of {RESIZES}')
    if self.success and not self.episode_key:
      problems.append(f'success={self.success!r} needs episode_key, the texts it is looked for in')
    if problems:
      raise ValueError(f'Embodiment {self.name!r}: {"; ".join(problems[:10])}.')

  def _timing_problems(self):
    if (
      self.control_hz <= 0
      or self.video_fps <= 0
      or abs(self.control_hz / self.video_fps - self.stride) > 1e-6
    ):
      yield f'video_fps={self.video_fps} must divide control_hz={self.control_hz}'
    elif (
      abs(self.control_hz * self.chunk_s - self.steps_per_chunk) > 1e-6 or not self.steps_per_chunk
    ):
      yield f'chunk_s={self.chunk_s} must be a whole number of steps at control_hz={self.control_hz}'
    elif self.steps_per_chunk % self.stride:
      yield f'{self.steps_per_chunk} steps a chunk must be a multiple of {self.stride} steps a camera frame'

  def _view_problems(self):
    if not self.views:
      yield 'needs at least one view'
    for view in self.views:
      if view.row + view.height > self.composite[0] or view.column + view.width > self.composite[1]:
        yield f'view {view.key!r} ends outside the composite {self.composite}'
      if view.flip not in FLIPS:
        yield f'flip={view.flip!r} of view {view.key!r} must be one of {FLIPS}'
      if view.repeat < 1 or view.width % view.repeat:
        yield f'repeat={view.repeat} of view {view.key!r} must divide its width {view.width}'

  def _slice_problems(self):
    for s in (*self.state, *self.action):
      if s.width < 1 or s.start < 0:
        yield f'slice {s.key!r} takes the columns {s.start} to {s.stop}'
      if not s.scale:
        yield f'scale of slice {s.key!r} must not be 0'
      if s.clip and (len(s.clip) != 2 or s.clip[0] >= s.clip[1]):
        yield f'clip={s.clip} of slice {s.key!r} must be (lowest, highest) or ()'
      if s.norm not in NORMS:
        yield f'norm={s.norm!r} of slice {s.key!r} must be one of {NORMS}'
    for s in self.action:
      for part, text in (('relative_to', s.relative_to), ('rest', s.rest)):
        if text and self._state_column(text, s.width) is None:
          yield f'{part}={text!r} of action {s.key!r} lies in no state slice, or has another width'

  def _state_column(self, text: str, width: int) -> int | None:
    """Where 'key:start:stop' begins in the model's state vector; None if it is not inside one state
    slice.
    """
    key, start, stop = text.rsplit(':', 2)
    offset = 0
    for s in self.state:
      if s.key == key and s.start <= int(start) and int(stop) <= s.stop:
        return offset + int(start) - s.start if int(stop) - int(start) == width else None
      offset += s.width
    return None

  @property
  def reference_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension subtracted at the chunk's first step; -1 where
    absolute.
    """
    return self._columns([s.relative_to for s in self.action])

  @property
  def rest_columns(self) -> tuple[int, ...]:
    """Per action dimension, the state dimension that, sent as the action, changes nothing; -1 where
    zero does.
    """
    return self._columns([s.rest for s in self.action])

  def instruct(self, text: str) -> str:
    """The prompt: the template with the lower-cased instruction at every `{}`."""
    return prompts.fill(self.prompt, text.strip())

  def _columns(self, texts: list[str]) -> tuple[int, ...]:
    widths = [s.width for s in self.action]
    return tuple(
      self._state_column(text, width) + i if text else -1
      for text, width in zip(texts, widths)
      for i in range(width)
    )

  @property
  def stride(self) -> int:
    """Control steps between two camera frames that the model sees."""
    return round(self.control_hz / self.video_fps)

  @property
  def steps_per_chunk(self) -> int:
    """Control steps in one chunk."""
    return round(self.control_hz * self.chunk_s)

  @property
  def camera_frames_per_chunk(self) -> int:
    """r."""
    return self.steps_per_chunk // self.stride

  @property
  def action_dim(self) -> int:
    """Real action dimensions."""
    return sum(s.width for s in self.action)

  @property
  def proprio_dim(self) -> int:
    """Real state dimensions."""
    return sum(s.width for s in self.state)


def read(slices: Sequence[Slice], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """[..., width of all slices] float32: the stored arrays, by key, as a record's vector.

  Raises:
    ValueError: an array is missing, or has too few columns.
  """
  problems = [
    f'{s.key!r} '
    + (f'has {np.shape(arrays[s.key])[-1]} columns' if s.key in arrays else 'is missing')
    for s in slices
    if s.key not in arrays or np.shape(arrays[s.key])[-1] < s.stop
  ]
  if problems:
    raise ValueError(
      f'{"; ".join(problems[:10])}; got {sorted(arrays)}, expected '
      + ', '.join(f'{s.key!r} with at least {s.stop} columns' for s in slices)
      + '.'
    )
  parts = [np.asarray(arrays[s.key], np.float32)[..., s.start : s.stop] for s in slices]
  return convert(slices, np.concatenate(parts, axis=-1) if parts else np.zeros(0, np.float32))


def convert(slices: Sequence[Slice], stored: np.ndarray) -> np.ndarray:
  """[..., width of all slices] float32, a record's vector: the stored columns side by side, in the
  slices' units.
  """
  return _each(slices, Slice.convert, stored)


def restore(slices: Sequence[Slice], vector: np.ndarray) -> np.ndarray:
  """Inverse of `convert`, but for what a slice's `clip` cut off."""
  return _each(slices, Slice.restore, vector)


def _each(slices, change, vector):
  if all((s.offset, s.scale, s.clip) == (0, 1, ()) for s in slices):
    return vector
  ends = np.cumsum([s.width for s in slices])
  return np.concatenate(
    [change(s, vector[..., end - s.width : end]) for s, end in zip(slices, ends)], axis=-1
  )


def names(slices: Sequence[Slice]) -> list[str]:
  """One name per dimension, for messages, tables and plots."""
  return [f'{s.key}[{i}]' for s in slices for i in range(s.start, s.stop)]


def timing(control_hz: float) -> dict[str, float]:
  """Rates of a record as in the paper: chunks of 8 camera frames, as near 5 frames a second as
  `control_hz` allows.

  Where 5 divides `control_hz`, a chunk lasts 1.6 s: 24 steps at 15 Hz, 48 at 30 Hz.
  """
  stride = max(1, round(control_hz / VIDEO_FPS))
  return dict(
    control_hz=control_hz,
    video_fps=control_hz / stride,
    chunk_s=FRAMES_PER_CHUNK * stride / control_hz,
  )


def reference_timing(record: Embodiment) -> Embodiment:
  """The record with the rates of the released weights, called NAME_reference where they are not its
  own.

  The reference takes every third frame and 24 steps a chunk of every robot: at 15 Hz these are the
  paper's rates, at 30 Hz they are 10 frames a second and 0.8 s. Its normalization does not floor
  either: 'q99' becomes 'q99_reference'.
  Source: spec 5.3, 5.4.
  """
  rates = dict(video_fps=record.control_hz / 3, chunk_s=24 / record.control_hz)
  if rates == dict(video_fps=record.video_fps, chunk_s=record.chunk_s):
    return record
  slices = {
    part: tuple(
      dataclasses.replace(s, norm='q99_reference' if s.norm == 'q99' else s.norm)
      for s in getattr(record, part)
    )
    for part in ('state', 'action')
  }
  return dataclasses.replace(record, name=f'{record.name}_reference', **rates, **slices)


def with_composite(record: Embodiment, rows: int, columns: int, name: str) -> Embodiment:
  """The record, called `name`, with its composite and the rectangles in it scaled to `rows` x
  `columns` pixels.

  Raises:
    ValueError: a rectangle would not end on whole pixels.
  """
  by_row, by_column = rows / record.composite[0], columns / record.composite[1]
  scaled = [
    dict(
      row=v.row * by_row,
      column=v.column * by_column,
      height=v.height * by_row,
      width=v.width * by_column,
    )
    for v in record.views
  ]
  if any(n != round(n) for edges in scaled for n in edges.values()):
    raise ValueError(
      f'The views of {record.name!r} do not end on whole pixels in a composite of ({rows}, {columns}); '
      f'choose a multiple or whole fraction of {record.composite}.'
    )
  views = tuple(
    dataclasses.replace(v, **{k: round(n) for k, n in edges.items()})
    for v, edges in zip(record.views, scaled)
  )
  return dataclasses.replace(record, name=name, composite=(rows, columns), views=views)


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
  **timing(15.0),
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

# AgiBot World as data.from_lerobot stores it, with the keys of its GEAR metadata (spec 5.2).
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
  **timing(30.0),
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
  **timing(30.0),
  prompt=prompts.YAM,
  views=_quadrants('top_camera-images-rgb', 'left_camera-images-rgb', 'right_camera-images-rgb'),
  episode_key=('episode_metadata/name',),
  state=tuple(state for state, _ in _YAM_PAIRS),
  action=tuple(action for _, action in _YAM_PAIRS),
)

# What most Open X-Embodiment sets share: one camera that fills the composite, end-effector deltas,
# absolute gripper. State vectors differ from set to set, so there is none. For another rate:
# dataclasses.replace(.., **timing(HZ)).
_OXE = Embodiment(
  name='oxe',
  **_LARGE,
  **timing(5.0),
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
  **timing(3.0),
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
  **timing(20.0),
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
  **timing(5.0),
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
    with_composite(_DROID, 320, 640, 'droid_wan22'),
    _AGIBOT,
    reference_timing(_AGIBOT),
    _AGIBOT_WORLD,
    _YAM,
    reference_timing(_YAM),
    _OXE,
    _OXE_RT1,
    _LIBERO,
    _LIBERO_SIMULATOR,
    _METAWORLD,
    _HUMAN,
  )
}


def get(name: str) -> Embodiment:
  """The record called `name`.

  Raises:
    ValueError: there is none.
  """
  if name not in EMBODIMENTS:
    raise ValueError(
      f'There is no embodiment {name!r}; wam_jax/data/embodiments.py has {sorted(EMBODIMENTS)}.'
    )
  return EMBODIMENTS[name]


def from_dict(record: Mapping[str, Any]) -> Embodiment:
  """Inverse of `dataclasses.asdict`, also after a trip through JSON; fields that a record lacks
  have their default.
  """
  plain = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
  slices = {part: tuple(slice_from_dict(s) for s in record[part]) for part in ('state', 'action')}
  return Embodiment(**{**plain, **slices, 'views': tuple(View(**v) for v in record['views'])})


def slice_from_dict(content: Mapping[str, Any]) -> Slice:
  """Inverse of `dataclasses.asdict` for one slice."""
  return Slice(**{**content, 'clip': tuple(content.get('clip', ()))})
