"""docs/your_robot.md, executed: its commands as they stand, on a small folder and a tiny base."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex

import cv2
import numpy as np
import pyarrow as pa
import pytest

from tests import programs
from tests.builders import lerobot_dirs as dirs
from tests.interop import test_imported_run
from tests.interop import tiny
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import embodiments

PAGE = pathlib.Path(__file__).parent.parent / 'docs/your_robot.md'
FPS = 15
LENGTHS = [60] * 10
ARM = [*(f'joint_{i}' for i in range(4)), 'gripper']
NAMES = [f'{side}_{name}.pos' for side in ('left', 'right') for name in ARM]
CAMERAS = ('top', 'wrist')
# The page as it stands would take a GPU: the same commands, as small as they go.
SMALLER = {
  'data.from_lerobot': ['--workers=1'],
  'wam_jax.train': [
    '--config.steps=2',
    '--config.batch_size=2',
    '--config.save_every=2',
    '--config.eval_every=2',
    '--config.eval_batches=1',
    '--config.log_every=1',
    '--config.model.dtype=float32',
    '--config.model.remat=none',
    '--config.model.max_chunks=2',
  ],
  'wam_jax.evaluate': ['--steps=2', '--episodes=2', '--batch=2', '--videos=1'],
}


def read_commands() -> list[list[str]]:
  """The commands of the page, with its places still by name."""
  blocks = re.findall(r'```sh\n(.*?)```', PAGE.read_text(), re.S)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  return [shlex.split(line)[2:] for line in lines if line.startswith('python -m ')]


def make_motion(t: int) -> np.ndarray:
  """How far each joint is from its episode's pose, slowly."""
  return 0.2 * np.sin(t / FPS + np.arange(10))


def make_pose(episode: int, t: int) -> np.ndarray:
  """Joint angles; grippers from 0 to 1."""
  pose = np.sin(episode * 1.7 + np.arange(10)) + make_motion(t)
  pose[[4, 9]] = 0.5 + 0.5 * np.sin(t / FPS + episode)
  return pose.astype(np.float32)


def make_picture(camera: int, episode: int, t: int) -> dict:
  """What a camera sees: something that each of two joints moves."""
  image = np.random.default_rng(episode).integers(0, 80, (12, 16, 3), np.uint8)
  image = cv2.resize(image, (64, 48))
  for row, joint in ((14, camera), (34, 5 + camera)):
    column = round(32 + 100 * make_motion(t)[joint])
    cv2.circle(image, (column, row), 6, (0, 255, 120 * camera), -1)
  return {'bytes': cv2.imencode('.png', image)[1].tobytes(), 'path': f'frame_{t:06d}.png'}


def write_lerobot(root: pathlib.Path) -> pathlib.Path:
  """Two arms and two cameras, version 3, pictures in parquet, all episodes in one file."""
  steps = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
  # No robot is where it is told to be to the last digit.
  errors = 0.003 * np.random.default_rng(0).normal(size=(len(steps), 10))
  states = [make_pose(e, t) + error for (e, t), error in zip(steps, errors)]
  vector = {'dtype': 'float32', 'shape': [10], 'names': {'motors': NAMES}}
  camera = {'dtype': 'image', 'shape': [48, 64, 3], 'names': ['height', 'width', 'channels']}
  features = {'observation.state': vector, 'action': vector}
  columns = {
    'observation.state': pa.array(states, pa.list_(pa.float32())),
    # The leaders are 0.13 s ahead.
    'action': pa.array([make_pose(e, t + 2) for e, t in steps], pa.list_(pa.float32())),
  }
  picture = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  for number, name in enumerate(CAMERAS):
    key = f'observation.images.{name}'
    features[key] = camera
    columns[key] = pa.array([make_picture(number, e, t) for e, t in steps], picture)
  return dirs.write_packed(root, features, columns, LENGTHS, fps=FPS)


@pytest.fixture
def places(tmp_path) -> dict[str, str]:
  """What the page has before it begins, and where the rest goes."""
  tiny.write_dreamzero(tmp_path / 'official')
  test_imported_run.write_vocabulary(tmp_path / 'spiece.model')
  test_imported_run.run(
    'wam_jax.convert',
    'import',
    f'--source={tmp_path / "official"}',
    f'--output={tmp_path / "base"}',
    f'--tokenizer={tmp_path / "spiece.model"}',
  )
  return {
    'LEROBOT': str(write_lerobot(tmp_path / 'my_arms')),
    'DATA': str(tmp_path / 'data/my_arms/1.0.0'),
    'BASE': str(tmp_path / 'base'),
    'RUN': str(tmp_path / 'run'),
  }


@pytest.mark.slow
def test_the_page_as_it_is_typed(places):
  printed = {}
  for module, *arguments in read_commands():
    for name, place in places.items():
      arguments = [argument.replace(f'${name}', place) for argument in arguments]
    done = programs.run(module, *arguments, *SMALLER.get(module, []), timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    printed.setdefault(module, []).append(done.stdout)

  record = embodiments.resolve('', places['DATA'])
  assert [(s.start, s.stop) for s in record.action] == [(0, 4), (4, 5), (5, 9), (9, 10)]
  assert [s.relative_to for s in record.action] == ['state:0:4', '', 'state:5:9', '']
  assert [s.rest for s in record.action] == ['', 'state:4:5', '', 'state:9:10']
  assert 'passed' in printed['data.validate'][0]
  assert 'my_arms gets row 1, new' in printed['wam_jax.train'][0]
  held_out, trained_on = printed['wam_jax.evaluate']
  assert 'windows of your_robot train[90%:]\n' in held_out
  assert "9 of the 10 episodes of split 'train' of given are trained on" in trained_on
  exported = pathlib.Path(places['RUN']) / 'diffusers'
  (described,) = exported.glob('action_modules/*.json')
  assert list(json.loads(described.read_text())['data']['embodiments']) == ['my_arms']


# What the camera images of two arms come to: attention over all pixels of the large ones would take
# more memory than a machine has.
@pytest.mark.parametrize(
  'composite, spatial', [((48, 128), 4), ((128, 320), 8), ((240, 320), 20), ((240, 640), 20)]
)
def test_patches_that_a_model_from_scratch_can_attend_to(composite, spatial):
  model = cfg.base().model
  assert presets._find_spatial(model, composite) == spatial


def test_the_page_has_the_six_commands():
  modules = [module for module, *_ in read_commands()]
  assert modules == [
    'data.from_lerobot',
    'data.validate',
    'wam_jax.train',
    'wam_jax.evaluate',
    'wam_jax.evaluate',
    'wam_jax.convert',
  ]
  assert os.access(PAGE, os.R_OK)
