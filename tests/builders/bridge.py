"""A small dataset in the form in which BridgeData V2 is published: what a clone without the sample
of the real one is tested on.

The keys, shapes and types are those of the published dataset_info.json; only the first camera has a
picture, as in most of its episodes. A hand wanders over a patterned table, and its camera sees it.
"""

from __future__ import annotations

import io
import pathlib
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tests.data import synthetic
from wam_jax.data import embodiments

EPISODES, STEPS = 25, 10
# How often each instruction is given; the first is the most frequent one of the real sample, too.
INSTRUCTIONS = {'put carrot on plate': 8, 'put the spoon on the towel': 7, 'fold the cloth': 10}

_PIXELS = 64
_ROWS_IJ, _COLUMNS_IJ = np.mgrid[:_PIXELS, :_PIXELS]


def _numbers(width: int) -> tfds.features.Tensor:
  return tfds.features.Tensor(shape=(width,), dtype=np.float32)


def _make_features() -> tfds.features.FeaturesDict:
  f = tfds.features
  image = lambda: f.Image(shape=(_PIXELS, _PIXELS, 3), encoding_format='jpeg')
  steps = {
    'observation': {**{f'image_{i}': image() for i in range(4)}, 'state': _numbers(7)},
    'action': _numbers(7),
    'language_instruction': f.Text(),
    'language_embedding': _numbers(512),
    'is_first': f.Scalar(np.bool_),
    'is_last': f.Scalar(np.bool_),
    'is_terminal': f.Scalar(np.bool_),
    'discount': f.Scalar(np.float32),
    'reward': f.Scalar(np.float32),
  }
  metadata = {
    'file_path': f.Text(),
    'episode_id': f.Scalar(np.int32),
    'has_language': f.Scalar(np.bool_),
    **{f'has_image_{i}': f.Scalar(np.bool_) for i in range(4)},
  }
  return f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': metadata})


class _Bridge(synthetic.SyntheticRlds):
  """Writes the steps that it is given, with the metadata of the published dataset."""

  def _generate_examples(self, episodes):
    for number, steps in enumerate(episodes):
      yield number, {'steps': steps, 'episode_metadata': _make_metadata(number)}


def _make_metadata(number: int) -> dict[str, Any]:
  return {
    'file_path': f'/nfs/kun2/users/homer/datasets/bridge_data_all/numpy_256/{number}/out.npy',
    'episode_id': number,
    'has_language': True,
    **{f'has_image_{i}': i == 0 for i in range(4)},
  }


def write(root: pathlib.Path) -> pathlib.Path:
  """The dataset as TFRecord, `EPISODES` of `STEPS` each in `train` and in `val`; its directory."""
  rng = np.random.default_rng(0)
  texts = [text for text, count in INSTRUCTIONS.items() for _ in range(count)]
  episodes = [_make_steps(rng, text) for text in texts]
  builder = _Bridge(
    {'train': episodes, 'val': episodes},
    _make_features(),
    data_dir=str(root / 'array_record'),
    file_format='array_record',
  )
  builder.download_and_prepare()
  record = embodiments.get('bridge_widowx')
  return synthetic.copy_as_tfrecord(str(builder.data_path), root / 'bridge_dataset/1.0.0', record)


def _make_steps(rng: np.random.Generator, text: str) -> list[dict[str, Any]]:
  # The hand: metres, radians, and the gripper, which is 1 open and closes half-way.
  # An action is the way to the next pose, as BridgeData has it.
  delta_TU = rng.normal(0, 0.02, (STEPS, 6))
  pose_TU = rng.uniform((0.2, -0.1, 0.0, -0.2, -0.2, -0.2), (0.4, 0.1, 0.2, 0.2, 0.2, 0.2))
  pose_TU = pose_TU + np.cumsum(delta_TU, axis=0) - delta_TU
  gripper_T = (np.arange(STEPS) < STEPS // 2).astype(np.float64)
  # It is seen to close a row after it was told to.
  seen_T = np.append(gripper_T[:1], gripper_T[:-1])
  state_TX = np.column_stack([pose_TU, 0.1 + 0.8 * seen_T]).astype(np.float32)
  action_TU = np.column_stack([delta_TU, gripper_T]).astype(np.float32)

  table_IJ3 = cv2.GaussianBlur(rng.uniform(0, 255, (_PIXELS, _PIXELS, 3)), (0, 0), 3)
  blank = np.zeros((_PIXELS, _PIXELS, 3), np.uint8)
  return [
    {
      'observation': {
        'image_0': _jpeg(_draw(table_IJ3, *pose_TU[t, :2])),
        **{f'image_{i}': _jpeg(blank) for i in (1, 2, 3)},
        'state': state_TX[t],
      },
      'action': action_TU[t],
      'language_instruction': text,
      'language_embedding': np.zeros(512, np.float32),
      'is_first': t == 0,
      'is_last': t == STEPS - 1,
      'is_terminal': t == STEPS - 1,
      'discount': 1.0,
      'reward': float(t == STEPS - 1),
    }
    for t in range(STEPS)
  ]


def _draw(table_IJ3: np.ndarray, x: float, y: float) -> np.ndarray:
  """The table with a bright hand at x 0.1 ... 0.5 m, y -0.2 ... 0.2 m."""
  row, column = (x - 0.1) / 0.4 * _PIXELS, (y + 0.2) / 0.4 * _PIXELS
  distance_IJ = (_ROWS_IJ - row) ** 2 + (_COLUMNS_IJ - column) ** 2
  hand_IJ1 = np.exp(-distance_IJ / 72)[..., None]
  return (table_IJ3 * (1 - hand_IJ1) + 255 * hand_IJ1).astype(np.uint8)


def _jpeg(image_IJ3: np.ndarray) -> io.BytesIO:
  return io.BytesIO(cv2.imencode('.jpg', image_IJ3)[1].tobytes())
