"""What the reference can say about a robot, and the record of ours that says the same.

The files that hold it are `experiment`. Source: DreamZero `DreamTransform`, `GrootSimPolicy` and
the modality configs of its data.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors

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
    # The reference has no units: arrays go to the robot as they are stored.
    views, composite = _make_composite(self.tag, self.views, self.size)
    stride = _choose_stride(self.steps, camera_frames)
    return record_lib.Embodiment(
      name=self.tag,
      views=views,
      composite=composite,
      resize='bilinear',
      prompt=prompts.TEMPLATES[self.tag],
      state=tuple(
        record_lib.Slice(key=key.name, start=0, stop=key.width, unit='raw', norm=key.norm)
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
      unit='raw',
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


def describe(tag: str, record: record_lib.Embodiment, model: cfg.ModelConfig) -> Description:
  """Inverse of `Description.make_record`, checked.

  Raises:
    ValueError: the reference cannot express the record.
  """
  # The composite is two by two views, or one.
  rows, columns = record.composite
  if len(record.views) > 1:
    rows, columns = rows // 2, columns // 2
  own_language = tuple(f'annotation.{_shorten(key)}' for key in record.language)
  description = Description(
    tag=tag,
    views=tuple(_shorten(view.key) for view in record.views),
    size=(rows, columns),
    state=tuple(Key(_shorten(s.key), s.width, s.norm) for s in record.state),
    action=tuple(Key(_shorten(s.key), s.width, s.norm) for s in record.action),
    relative=frozenset(_shorten(s.key) for s in record.action if s.relative_to),
    hz=record.control_hz,
    steps=record.steps_per_chunk,
    language=_LANGUAGE.get(tag, own_language),
  )
  _check_names(description, record)

  # The way back must lead to the same robot.
  want = _get_essence(description.make_record(model.camera_frames_per_chunk))
  have = _get_essence(record)
  differing = []
  for part in ('slices', 'views', 'composite'):
    here = getattr(have, part)
    there = getattr(want, part)
    if here != there:
      differing.append(f'{part}: {str(here)[:200]} here, {str(there)[:200]} there')
  errors.fail(
    f'The reference cannot express embodiment {record.name!r} under the tag {tag!r}:',
    differing,
    'It knows a fixed composite and plain arrays; only such robots can be exported to it.',
  )
  return description


def _check_names(description: Description, record: record_lib.Embodiment) -> None:
  """Raises ValueError where two slices of one kind have the same name."""
  double = []
  for kind in ('state', 'action'):
    counts = collections.Counter(key.name for key in description.get_keys(kind))
    double += [f'{kind} {name!r}' for name, count in counts.items() if count > 1]
  if double:
    raise ValueError(
      f'{record.name!r} has several slices of {", ".join(double)}; the reference names each once.'
    )


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
    views=[dataclasses.replace(view, key=_shorten(view.key)) for view in record.views],
    composite=record.composite,
    control_hz=record.control_hz,
    video_fps=record.video_fps,
    chunk_s=record.chunk_s,
    resize=record.resize,
  )


def _strip_slices(slices: Sequence[record_lib.Slice]) -> list[tuple[Any, ...]]:
  return [
    (_shorten(s.key), s.width, bool(s.relative_to), s.offset, s.scale, s.clip) for s in slices
  ]


def _shorten(key: str) -> str:
  """The name of an array without where it is in a dataset."""
  return key.rsplit('/', 1)[-1]


def _choose_stride(steps: int, camera_frames: int) -> int:
  """Control steps between camera frames: such that a chunk of both lasts as long, else the
  reference's constant.
  """
  if steps >= camera_frames and steps % camera_frames == 0:
    return steps // camera_frames
  return _STRIDE if steps % _STRIDE == 0 else 1


def _make_composite(
  tag: str, names: Sequence[str], size: tuple[int, int]
) -> tuple[tuple[record_lib.View, ...], tuple[int, int]]:
  """The views of the reference's composite and its size.

  DROID has the wrist camera above, every column twice, and the exterior cameras below; others fill
  a square by columns. Source: DreamZero `DreamTransform._prepare_video`.
  """
  rows, columns = size
  if len(names) == 1:
    whole = record_lib.View(key=names[0], row=0, column=0, height=rows, width=columns)
    return (whole,), size

  top_left = {'row': 0, 'column': 0, 'width': columns}
  top_right = {'row': 0, 'column': columns, 'width': columns}
  bottom_left = {'row': rows, 'column': 0, 'width': columns}
  bottom_right = {'row': rows, 'column': columns, 'width': columns}
  top = {'row': 0, 'column': 0, 'width': 2 * columns, 'repeat': 2}
  if tag == 'oxe_droid' and len(names) >= 3:
    places = (bottom_left, bottom_right, top)
  else:
    places = (top_left, bottom_left, top_right)
  # A fourth view has no place: the reference leaves that quarter black.
  views = [record_lib.View(key=name, height=rows, **place) for name, place in zip(names, places)]
  return tuple(views), (2 * rows, 2 * columns)
