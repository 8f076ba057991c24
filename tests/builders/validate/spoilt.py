"""A small dataset of a robot over a patterned table, whole or spoilt in one way, and what
`data.validate` says of it.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data.validate import checks
from data.validate import findings as findings_lib
from data.validate import video
from tests.data import synthetic
from wam_jax.data import record as record_lib
from wam_jax.data import sources

EPISODES, STEPS = 6, 60

Slice, View = record_lib.Slice, record_lib.View
# A robot over a patterned table: its camera `top` sees it move, its camera `wrist` sees the table
# move.
# Eight steps of 0.1 s a chunk and a camera frame every four.
ROBOT = record_lib.Embodiment(
  name='robot',
  views=(View('top', 0, 0, 32, 32), View('wrist', 0, 32, 32, 16)),
  composite=(32, 48),
  state=(Slice('proprio', 0, 2, 'm'), Slice('proprio', 2, 3, 'normalized')),
  action=(
    Slice('action', 0, 2, 'm', relative_to='proprio:0:2'),
    Slice('action', 2, 3, 'normalized', rest='proprio:2:3'),
  ),
  control_hz=10.0,
  video_fps=2.5,
  chunk_s=0.8,
)

FEATURES = tfds.features.FeaturesDict(
  {
    'steps': tfds.features.Dataset(
      {
        'observation': {
          'top': tfds.features.Image(shape=(32, 32, 3), encoding_format='jpeg'),
          'wrist': tfds.features.Image(shape=(32, 32, 3), encoding_format='jpeg'),
          'proprio': tfds.features.Tensor(shape=(3,), dtype=np.float32),
          'timestamp': tfds.features.Scalar(dtype=np.float32),
        },
        'action': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        'language_instruction': tfds.features.Text(),
      }
    )
  }
)


def make_episode(rng: np.random.Generator) -> dict[str, Any]:
  """Moves from point to point with rests between, the gripper changing at some; everything by
  step.
  """
  path = _wander(rng)
  now, next_ = path[:-1], path[1:]
  target = next_[:, :2] + rng.normal(0, 0.004, (STEPS, 2))  # A controller's error.
  is_closed = next_[:, 2:] > 0.5

  # A table with a pattern that is seen, and that one cannot mistake for another part of it.
  table = cv2.GaussianBlur(rng.uniform(0, 255, (96, 96, 3)).astype(np.float32), (0, 0), 3)
  table = np.clip(128 + 6 * (table - table.mean()), 0, 255).astype(np.uint8)
  return {
    'proprio': now.astype(np.float32),
    'action': np.concatenate([target, is_closed], axis=1).astype(np.float32),
    'timestamp': np.arange(STEPS, dtype=np.float32) / ROBOT.control_hz,
    'text': ['go there'] * STEPS,
    'top': [draw_top(table, x, y) for x, y, _ in now],
    'wrist': [draw_wrist(table, x, y) for x, y, _ in now],
  }


def _wander(rng: np.random.Generator) -> np.ndarray:
  """[STEPS + 1, 3] x and y in metres, and the gripper, 0 open to 1 closed."""
  path = [rng.uniform(0.2, 0.8, 3) * (1, 1, 0)]
  while len(path) < STEPS + 1:
    start = path[-1]
    target = np.append(rng.uniform(0.2, 0.8, 2), rng.integers(2))
    steps = rng.integers(5, 12)
    # Minimum jerk: at rest at both ends, as people move.
    s = np.arange(1, steps + 1)[:, None] / steps
    smooth = 10 * s**3 - 15 * s**4 + 6 * s**5
    path += [*(start + (target - start) * smooth)]
    # Pauses, which are no sign of a camera of half the rate.
    path += [target] * rng.integers(0, 5)
  return np.asarray(path[: STEPS + 1])


def draw_top(table: np.ndarray, x: float, y: float) -> np.ndarray:
  """What the camera that stands sees: a bright hand over the table."""
  row, column = np.mgrid[:32, :32]
  distance = (column - 32 * x) ** 2 + (row - 32 * y) ** 2
  hand = np.exp(-distance / 18)[..., None]
  return (table[:32, :32] * (1 - hand) + 255 * hand).astype(np.uint8)


def draw_wrist(table: np.ndarray, x: float, y: float) -> np.ndarray:
  """What the camera that rides on the hand sees: the table below it."""
  return cv2.getRectSubPix(table, (32, 32), (16 + 64 * x, 16 + 64 * y))


def jpeg(image_IJ3: np.ndarray) -> bytes:
  return cv2.imencode('.jpg', cv2.cvtColor(image_IJ3, cv2.COLOR_RGB2BGR))[1].tobytes()


def make_dataset(root, edit=lambda episodes: None, hold_out=lambda episodes: []) -> str:
  """Episodes of ROBOT, after `edit` has spoilt their arrays; `edit` may replace an image by its
  bytes. `hold_out` makes the episodes of a split `val` from them.
  """
  rng = np.random.default_rng(0)
  episodes = [make_episode(rng) for _ in range(EPISODES)]
  edit(episodes)
  splits = {'train': episodes, 'val': hold_out(episodes)}
  steps = {
    name: [[_make_step(episode, t) for t in range(len(episode['text']))] for episode in made]
    for name, made in splits.items()
    if made
  }
  return synthetic.write_dataset(root, steps, FEATURES)


def _make_step(episode: dict[str, Any], t: int) -> dict[str, Any]:
  return {
    'observation': {
      'top': _make_file(episode['top'][t]),
      'wrist': _make_file(episode['wrist'][t]),
      'proprio': episode['proprio'][t],
      'timestamp': episode['timestamp'][t],
    },
    'action': episode['action'][t],
    'language_instruction': episode['text'][t],
  }


def _make_file(image: np.ndarray | bytes) -> io.BytesIO:
  return io.BytesIO(image if isinstance(image, bytes) else jpeg(image))


def validate(path, record=ROBOT, split='train', decoded=EPISODES, accept=()):
  """(findings, result) of a dataset."""
  findings = findings_lib.Findings(frozenset(accept))
  episodes = sources.Episodes(path, split, record)
  chosen = video.spread(len(episodes), decoded)
  return findings, checks.run(episodes, chosen, range(len(episodes)), findings)


def failures(path, *args, **kwargs) -> list[tuple[str, str]]:
  return list(validate(path, *args, **kwargs)[0].messages('fail'))


def expect(found: list[tuple[str, str]], kind: str, *patterns: str) -> None:
  """All of `found` are of one kind, and each pattern is in one of them."""
  assert {k for k, _ in found} == {kind}, found
  for pattern in patterns:
    assert any(pattern in message for _, message in found), (pattern, found)
