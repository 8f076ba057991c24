"""What the reference can say about a robot, and the record of ours that says the same.

The files that hold it are `experiment`. Source: DreamZero `DreamTransform`, `GrootSimPolicy` and
the modality configs of its data.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop.dreamzero import composites
from wam_jax.interop.dreamzero import keys

TAGS = tuple(prompts.TEMPLATES)  # Robots that the reference has a prompt for.
# Our record to their tag, where the names differ.
_OUR_TAGS = {'droid': 'oxe_droid', 'droid_wan22': 'oxe_droid', 'human': 'mecka_hands'}
# Keys of the instruction in their datasets.
_LANGUAGE = {
  'oxe_droid': (
    'annotation.language.language_instruction',
    'annotation.language.language_instruction_2',
    'annotation.language.language_instruction_3',
  ),
  'agibot': ('annotation.language.action_text',),
  'yam': ('annotation.task',),
}
_UNIT = 'raw'  # The reference has no units: arrays go to the robot as they are stored.
# What a record says beside that, and no server asks.
_NOT_SERVED = ('name', 'language', 'episode_key', 'success')
# By field of a record, why the server does otherwise.
_REASONS = {
  'resize': ': it resizes bilinear, with antialiasing',
  'prompt': ': it fills the template of the tag, whatever was trained',
  'chunk_s': ': it executes all {steps} actions of the chunk of the model',
  'video_fps': ': a chunk of its frames lasts as long as one of its {steps} actions',
}
# Control steps between two camera frames, of every robot.
# Source: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID`.
_STRIDE = 3


class Key(NamedTuple):
  """One array of the state or of the action.

  Attributes:
    name: its name, without 'state.' or 'action.'.
    width: the number of its dimensions.
    norm: our name of how it is normalized; 'none' for as it is.
  """

  name: str
  width: int
  norm: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What the reference says about one robot; names without 'video.', 'state.', 'action.'.

  Attributes:
    tag: the reference's name for it.
    views: the names of its cameras, in the order of the composite.
    size: rows and columns of each view in the composite.
    state: the arrays of the state, in order.
    action: the arrays of the action, in order.
    relative: the names of the action arrays that count from the state.
    hz: the rate of the actions.
    steps: the actions of a chunk.
    language: the keys of the instruction.
  """

  tag: str
  views: tuple[str, ...]
  size: tuple[int, int]
  state: tuple[Key, ...]
  action: tuple[Key, ...]
  relative: frozenset[str]
  hz: float
  steps: int
  language: tuple[str, ...]

  def get_keys(self, kind: str) -> tuple[Key, ...]:
    """The arrays of 'state' or 'action'."""
    return {'state': self.state, 'action': self.action}[kind]

  def list_keys(self, record: record_lib.Embodiment) -> list[str]:
    """Every key that the server is asked with or answers, and what of the record it is."""
    parts = keys.cut(record)
    pairs = [
      *(zip([f'video.{name}' for name in self.views], [view.key for view in record.views])),
      *(zip([f'state.{key.name}' for key in self.state], map(keys.write_columns, parts.state))),
      *(zip([f'action.{key.name}' for key in self.action], map(keys.write_columns, parts.action))),
    ]
    return [f'{theirs} = {ours}' for theirs, ours in pairs]

  def make_record(self, camera_frames: int) -> record_lib.Embodiment:
    """A record that says the same.

    Args:
      camera_frames: the camera frames of a chunk.
    Raises:
      ValueError: a relative action has no state to count from.
    """
    widths = {key.name: key.width for key in self.state}
    relative = [key for key in self.action if key.name in self.relative]
    lost = sorted(key.name for key in relative if widths.get(key.name) != key.width)
    if lost:
      raise ValueError(
        f'relative_action_keys {lost} have no state of the same name and width to count from'
      )
    views, composite = composites.make(self.tag, self.views, self.size)
    stride = _choose_stride(self.steps, camera_frames)
    return record_lib.Embodiment(
      name=self.tag,
      views=views,
      composite=composite,
      resize=composites.RESIZE,
      prompt=prompts.TEMPLATES[self.tag],
      state=tuple(
        record_lib.Slice(key=key.name, start=0, stop=key.width, unit=_UNIT, norm=key.norm)
        for key in self.state
      ),
      action=tuple(self._make_action(key) for key in self.action),
      control_hz=self.hz,
      video_fps=self.hz / stride,
      chunk_s=self.steps / self.hz,
      language=tuple(key.rsplit('.', 1)[-1] for key in self.language),
    )

  def _make_action(self, key: Key) -> record_lib.Slice:
    relative_to = f'{key.name}:0:{key.width}' if key.name in self.relative else ''
    return record_lib.Slice(
      key=f'action/{key.name}',
      start=0,
      stop=key.width,
      unit=_UNIT,
      norm=key.norm,
      relative_to=relative_to,
    )


def find_tag(name: str) -> str:
  """The reference's tag of a record; itself where there is none."""
  return _OUR_TAGS.get(name, name.removesuffix('_reference'))


def check_tags(robots: Mapping[str, robot_lib.Robot]) -> None:
  """Raises ValueError unless the official server has a prompt for each of the robots by tag."""
  problems = []
  for tag, robot in robots.items():
    if tag not in TAGS:
      problems.append(f'{robot.record.name}: its tag would be {tag!r}')
  errors.fail(
    'The official server has no prompt for these robots:',
    problems,
    f'Pass --embodiment=NAME --tag=TAG to export one under another tag: {", ".join(TAGS)}.',
  )


def describe(
  tag: str,
  record: record_lib.Embodiment,
  model: cfg.ModelConfig,
  names: Mapping[str, str] | None = None,
) -> Description:
  """Inverse of `Description.make_record`, checked.

  Args:
    tag: the reference's name of the robot.
    record: the robot.
    model: the model that controls it.
    names: of parts of arrays, as `keys.name_parts` takes them.
  Raises:
    ValueError: the reference cannot express the record.
  """
  parts = keys.cut(record)
  state, action = keys.name_parts(parts, names or {})
  relative = [name for name, s in zip(action, parts.action, strict=True) if s.relative_to]
  own_language = tuple(f'annotation.{keys.shorten(key)}' for key in record.language)
  description = Description(
    tag=tag,
    views=_name_views(record.views),
    size=composites.find_size(record),
    state=_make_keys(state, parts.state),
    action=_make_keys(action, parts.action),
    relative=frozenset(relative),
    hz=record.control_hz,
    steps=model.actions_per_chunk,
    language=_LANGUAGE.get(tag, own_language),
  )
  _check(description, parts, model)
  return description


def _name_views(views: Sequence[record_lib.View]) -> tuple[str, ...]:
  """The short names of cameras, or where two have the same, their whole ones."""
  short = tuple(keys.flatten(keys.shorten(view.key)) for view in views)
  if len(set(short)) == len(short):
    return short
  return tuple(keys.flatten(view.key) for view in views)


def _make_keys(names: Sequence[str], slices: Sequence[record_lib.Slice]) -> tuple[Key, ...]:
  return tuple(Key(name, s.width, s.norm) for name, s in zip(names, slices, strict=True))


def _check(description: Description, parts: record_lib.Embodiment, model: cfg.ModelConfig) -> None:
  """Raises ValueError unless the way back leads to the same robot, whose slices are `parts`."""
  there = description.make_record(model.camera_frames_per_chunk)
  views = zip(parts.views, description.views, strict=True)
  here = dataclasses.replace(
    parts,
    views=tuple(dataclasses.replace(view, key=name) for view, name in views),
    state=_rename(parts.state, description.state, ''),
    action=_rename(parts.action, description.action, 'action/'),
    **{field: getattr(there, field) for field in _NOT_SERVED},
  )
  lines = []
  # Whatever a record says is compared, with what may be said of it one day.
  for line in record_lib.list_differences(here, there):
    field = line.split(maxsplit=1)[0]
    why = _REASONS.get(field, '').format(steps=description.steps)
    lines.append(textwrap.shorten(line, 300, placeholder=' ...') + why)
  if len(parts.views) == 2 and (here.views, here.composite) != (there.views, there.composite):
    lines.append(
      'two cameras: the server draws the first above the second in the left half of a picture of '
      f'{there.composite} and leaves the right half black; side by side, or alone, it cannot'
    )
  errors.fail(
    f'The reference cannot express embodiment {parts.name!r} under the tag {description.tag!r}:',
    lines,
    'First what the record says, then what the official server does: it would show and do what was '
    'never trained. Train with a record that is as there (--tag chooses the prompt), or export '
    'with --layout=diffusers, which keeps the record.',
  )


def _rename(
  slices: Sequence[record_lib.Slice], their_keys: Sequence[Key], prefix: str
) -> tuple[record_lib.Slice, ...]:
  """The slices as if each were an array of its own, called as the reference calls it."""
  renamed = []
  for s, key in zip(slices, their_keys, strict=True):
    whole = f'{key.name}:0:{key.width}'
    renamed.append(
      dataclasses.replace(
        s,
        key=prefix + key.name,
        start=0,
        stop=key.width,
        unit=_UNIT,
        relative_to=whole if s.relative_to else '',
      )
    )
  return tuple(renamed)


def find_shipped(record: record_lib.Embodiment) -> record_lib.Embodiment:
  """The record of `data/embodiments.py` that sees and does the same, with this one's prompt and
  norms; else `record`.
  """
  essence = _get_essence(record)
  for shipped in embodiments.EMBODIMENTS.values():
    if _get_essence(shipped) == essence:
      return dataclasses.replace(
        shipped,
        prompt=record.prompt,
        state=_take_norms(shipped.state, record.state),
        action=_take_norms(shipped.action, record.action),
      )
  return record


def _take_norms(
  slices: Sequence[record_lib.Slice], others: Sequence[record_lib.Slice]
) -> tuple[record_lib.Slice, ...]:
  pairs = zip(slices, others, strict=True)
  return tuple(dataclasses.replace(mine, norm=other.norm) for mine, other in pairs)


class _Essence(NamedTuple):
  """What two records of one robot have in common, whatever their datasets call the arrays."""

  slices: Any
  views: Any
  composite: tuple[int, int]
  control_hz: float
  video_fps: float
  chunk_s: float
  resize: str


def _get_essence(record: record_lib.Embodiment) -> _Essence:
  return _Essence(
    slices=[_strip_slices(record.state), _strip_slices(record.action)],
    views=[dataclasses.replace(view, key=keys.shorten(view.key)) for view in record.views],
    composite=record.composite,
    control_hz=record.control_hz,
    video_fps=record.video_fps,
    chunk_s=record.chunk_s,
    resize=record.resize,
  )


def _strip_slices(slices: Sequence[record_lib.Slice]) -> list[tuple[Any, ...]]:
  return [
    (keys.shorten(s.key), s.width, bool(s.relative_to), s.offset, s.scale, s.clip, s.wrap)
    for s in slices
  ]


def _choose_stride(steps: int, camera_frames: int) -> int:
  """Control steps between camera frames: such that a chunk of both lasts as long, else the
  reference's constant.
  """
  if steps >= camera_frames and steps % camera_frames == 0:
    return steps // camera_frames
  return _STRIDE if steps % _STRIDE == 0 else 1
