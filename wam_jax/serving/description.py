"""What a server says of itself: RoboArena's six keys, and the metadata that name every number."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib

# Stored size of DROID's images; clients of its checkpoints bring theirs to it. Source: DreamZero
# socket_test_optimized_AR.py, PolicyServerConfig.
_STORED = {'droid': (180, 320)}
_ACTION_SPACES = (
  'joint_position',
  'joint_velocity',
  'cartesian_position',
  'cartesian_velocity',
)


def make_config(
  record: record_lib.Embodiment, resolution: tuple[int, int] | None = None
) -> dict[str, Any]:
  """Exactly the keys of RoboArena's PolicyServerConfig, which its clients rebuild from the map."""
  wrist = [view for view in record.views if 'wrist' in view.key]
  keys = [s.key for s in record.action]
  spaces = [space for space in _ACTION_SPACES if any(space in key for key in keys)]
  return {
    'image_resolution': list(resolution or _resolution(record)),
    'needs_wrist_camera': bool(wrist),
    'n_external_cameras': len(record.views) - len(wrist),
    'needs_stereo_camera': False,
    'needs_session_id': True,
    # Of a robot whose actions RoboArena has no word for, the name says that it is no DROID.
    'action_space': spaces[0] if spaces else record.name,
  }


def make_metadata(
  robots: Mapping[str, robot_lib.Robot], chosen: str, about: Mapping[str, Any]
) -> dict[str, Any]:
  """The six keys, `about`, and what each robot shows and does."""
  first = robots[chosen or next(iter(robots))].record
  described = {name: describe(robot.record) for name, robot in robots.items()}
  for name, robot in robots.items():
    # Said of those alone that take a prefix.
    if robot.action_overlap:
      described[name]['action_overlap'] = robot.action_overlap
  return {**make_config(first), **about, 'robot': chosen, 'robots': described}


def describe(record: record_lib.Embodiment) -> dict[str, Any]:
  """Keys, sizes, names, units and rates; and all of the record, as JSON."""
  widths = record_lib.widths(record.state)
  return {
    'images': {
      f'observation/{view.key}': [view.height, view.width // view.repeat] for view in record.views
    },
    'state': {f'observation/{key}': width for key, width in widths.items()},
    'state_names': record_lib.names(record.state),
    'state_units': _units(record.state),
    'action_names': record_lib.names(record.action),
    'action_units': _units(record.action),
    'steps_per_chunk': record.steps_per_chunk,
    'control_hz': record.control_hz,
    'video_fps': record.video_fps,
    'frames_per_chunk': record.camera_frames_per_chunk,
    # One text: as maps and lists, a few of them would exceed what a message may hold.
    'record': json.dumps(dataclasses.asdict(record)),
  }


def _units(slices: tuple[record_lib.Slice, ...]) -> list[str]:
  return [s.unit for s in slices for _ in range(s.width)]


def _resolution(record: record_lib.Embodiment) -> tuple[int, int]:
  if record.name in _STORED:
    return _STORED[record.name]
  view = record.views[0]
  return view.height, view.width // view.repeat
