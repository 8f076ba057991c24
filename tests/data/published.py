"""Tiny datasets with the keys, types and nesting of published ones, in which everything tells its
own time.

At step t every image is grey (2 t, 2 t, 2 t), so t below 125, and of every array number j is t + j
/ 8. Arrays called `action...` are 100 more. Images are JPEG, as published.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tests.data import synthetic

f = tfds.features
ROWS, COLUMNS = 36, 64  # Of the pictures; what is published is larger.


def _image(rows: int = ROWS, columns: int = COLUMNS):
  return f.Image(shape=(rows, columns, 3), dtype=np.uint8, encoding_format='jpeg')


def _numbers(*shape: int, dtype=np.float32):
  return f.Tensor(shape=shape, dtype=dtype)


_FLAGS = dict(
  is_first=f.Scalar(np.bool_),
  is_last=f.Scalar(np.bool_),
  is_terminal=f.Scalar(np.bool_),
  discount=f.Scalar(np.float32),
  reward=f.Scalar(np.float32),
)
_WORDS = dict(language_instruction=f.Text())


def _droid():
  arm = dict(
    joint_position=_numbers(7, dtype=np.float64),
    gripper_position=_numbers(1, dtype=np.float64),
    cartesian_position=_numbers(6, dtype=np.float64),
  )
  commanded = dict(
    joint_velocity=_numbers(7, dtype=np.float64),
    gripper_velocity=_numbers(1, dtype=np.float64),
    cartesian_velocity=_numbers(6, dtype=np.float64),
  )
  cameras = ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')
  return dict(
    observation={**arm, **{camera: _image(180, 320) for camera in cameras}},
    action_dict={**arm, **commanded},
    action=_numbers(7, dtype=np.float64),
    language_instruction=f.Text(),
    language_instruction_2=f.Text(),
    language_instruction_3=f.Text(),
    **_FLAGS,
  )


def _gear(cameras: tuple[str, ...], widths: dict[str, int], more: dict[str, int]):
  arrays = {key: _numbers(width) for key, width in widths.items()}
  return dict(
    observation={**arrays, **{camera: _image() for camera in cameras}},
    action={**arrays, **{key: _numbers(width) for key, width in more.items()}},
    **_WORDS,
    **_FLAGS,
  )


_AGIBOT_CAMERAS = ('top_head', 'hand_left', 'hand_right')
STEPS = {
  'droid': _droid(),
  'agibot': _gear(
    _AGIBOT_CAMERAS,
    dict(
      left_arm_joint_position=7,
      right_arm_joint_position=7,
      left_effector_position=1,
      right_effector_position=1,
      head_position=2,
      waist_position=2,
    ),
    dict(robot_velocity=2),
  ),
  'agibot_world': dict(
    observation=dict(
      joint=dict(position=_numbers(14)),
      effector=dict(position=_numbers(2)),
      head=dict(position=_numbers(2)),
      waist=dict(position=_numbers(2)),
      **{camera: _image() for camera in _AGIBOT_CAMERAS},
    ),
    action=dict(
      joint=dict(position=_numbers(14)),
      effector=dict(position=_numbers(2)),
      head=dict(position=_numbers(2)),
      waist=dict(position=_numbers(2)),
      robot=dict(velocity=_numbers(2)),
    ),
    **_WORDS,
    **_FLAGS,
  ),
  'yam': _gear(
    tuple(f'{side}_camera-images-rgb' for side in ('top', 'left', 'right')),
    dict(left_joint_pos=6, left_gripper_pos=1, right_joint_pos=6, right_gripper_pos=1),
    {},
  ),
  'oxe': dict(observation=dict(image=_image()), action=_numbers(7), **_WORDS, **_FLAGS),
  'oxe_rt1': dict(
    observation=dict(
      image=_image(),
      base_pose_tool_reached=_numbers(7),
      gripper_closed=_numbers(1),
      natural_language_instruction=f.Text(),
    ),
    action=dict(
      world_vector=_numbers(3),
      rotation_delta=_numbers(3),
      gripper_closedness_action=_numbers(1),
      base_displacement_vector=_numbers(2),
    ),
    **_FLAGS,
  ),
  'libero': dict(
    observation=dict(
      image=_image(), wrist_image=_image(), state=_numbers(8), joint_state=_numbers(7)
    ),
    action=_numbers(7),
    **_WORDS,
    **_FLAGS,
  ),
  'human': dict(observation=dict(image=_image()), **_WORDS, **_FLAGS),
}
# Records that read the same datasets.
STEPS |= {
  'droid_wan22': STEPS['droid'],
  'agibot_reference': STEPS['agibot'],
  'yam_reference': STEPS['yam'],
  'libero_simulator': STEPS['libero'],
}

_PLACE = '/nfs/r2d2-data-full/CLVR/{}/2023-05-02/Tue_May__2_12:22:36_2023/'


def episode_metadata(number: int) -> dict[str, str]:
  """As in DROID; every third episode failed."""
  place = _PLACE.format('failure' if number % 3 == 2 else 'success')
  return dict(
    recording_folderpath=f'{place}recordings/MP4', file_path=f'{place}trajectory_{number}.h5'
  )


def episode_name(number: int) -> str:
  """As in the published files of DROID's step ranges."""
  place = _PLACE.format('failure' if number % 3 == 2 else 'success')
  return f'{place}recordings/MP4--{place}trajectory_{number}.h5'


class Published(synthetic.SyntheticRlds):
  """Writes what it is given, with `episode_metadata`."""

  def _generate_examples(self, episodes):
    for number, steps in enumerate(episodes):
      yield number, {'steps': steps, 'episode_metadata': episode_metadata(number)}


def write(root, record: str, lengths: list[int], words: str = 'Push It') -> str:
  """A dataset for the record, one episode of each length in `train`; its directory."""
  features = f.FeaturesDict(
    {
      'steps': f.Dataset(STEPS[record]),
      'episode_metadata': dict(recording_folderpath=f.Text(), file_path=f.Text()),
    }
  )
  splits = {'train': [[_step(STEPS[record], '', t, words) for t in range(n)] for n in lengths]}
  builder = Published(splits, features, data_dir=str(root), file_format='array_record')
  builder.download_and_prepare()
  return str(builder.data_path)


def _step(feature: Any, key: str, t: int, words: str) -> Any:
  """The value of a feature at step t."""
  if isinstance(feature, dict):
    return {name: _step(part, f'{key}/{name}', t, words) for name, part in feature.items()}
  if isinstance(feature, f.Image):
    return io.BytesIO(_jpeg(t, *feature.shape[:2]))
  if isinstance(feature, f.Text):
    # The second instruction is called ..._2, and ends so.
    return words + key[-2:] if key[-1].isdigit() else words
  if not feature.shape:
    return feature.np_dtype(t == 0)
  is_action = key.startswith('/action')
  values = t + np.arange(feature.shape[0]) / 8 + 100 * is_action
  return values.astype(feature.np_dtype)


@functools.cache
def _jpeg(t: int, rows: int, columns: int) -> bytes:
  return cv2.imencode('.jpg', np.full((rows, columns, 3), 2 * t, np.uint8))[1].tobytes()
