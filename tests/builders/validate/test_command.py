"""`python -m data.validate` on real and simulated data."""

from __future__ import annotations

import json
import pathlib
import subprocess

import cv2
import tensorflow_datasets as tfds

from data.tabletop import builder
from tests import programs
from tests.builders import bridge
from tests.builders.validate import spoilt


def run(*args: str) -> subprocess.CompletedProcess[str]:
  return programs.run('data.validate', *args)


def test_command_on_episodes_like_those_of_bridge(tmp_path):
  check_command(bridge.write(tmp_path), tmp_path)


def test_command_on_the_episodes_of_bridge(tmp_path, sample_bridge):
  check_command(sample_bridge, tmp_path)


def check_command(source, tmp_path):
  path = tmp_path / 'bridge/1.0.0'
  done = programs.run('data.convert', f'--source={source}', f'--output={path}')
  assert not done.returncode, done.stderr
  done = run(
    f'--dataset={path}',
    '--embodiment=bridge_widowx',
    f'--output={tmp_path}/out',
    f'--json={tmp_path}/card.json',
  )
  assert not done.returncode, done.stdout + done.stderr
  # Both splits of the published sample hold the same episodes.
  assert 'passed: 0 failures, 1 warning,' in done.stdout
  assert "25 of the 25 episodes of split 'val' are in 'train', too: record 0 of" in done.stdout
  assert 'Traceback' not in done.stderr
  assert '  episodes  25; 10 to 10 steps' in done.stdout
  assert '8 x  put carrot on plate' in done.stdout
  report = json.loads((tmp_path / 'card.json').read_text())
  assert report['failures'] == []
  assert report['card']['steps'] == 250
  assert report['card']['images']['read'] == 250
  assert [row['name'] for row in report['card']['dimensions']] == [
    f'{key}[{i}]' for key in ('state', 'action') for i in range(7)
  ]
  assert [pathlib.Path(p).name for p in report['pictures']] == [
    f'wam_validation_bridge_widowx_{part}.png' for part in ('sheet', 'state', 'action')
  ]
  # Something is drawn at a size that can be read.
  for picture in report['pictures']:
    image = cv2.imread(picture)
    assert min(image.shape[:2]) > 600
    assert image.std() > 10


def test_synthetic_bridge_has_the_published_form(tmp_path, sample_bridge):
  # What a clone without the sample is tested on is like the sample.
  made = tfds.builder_from_directory(bridge.write(tmp_path)).info
  sample = tfds.builder_from_directory(sample_bridge).info
  assert made.features.get_tensor_info() == sample.features.get_tensor_info()
  assert made.file_format == sample.file_format


def test_command_on_tabletop_writes_beside_the_data(tmp_path):
  # Twelve episodes, so that the lag of the images is estimated, too.
  config = builder.BuildConfig('arm', ('place', 'push'), episodes=12, split_names=('train',))
  path, _ = builder.build(tmp_path, config)
  done = run(f'--dataset={path}', '--embodiment=tabletop_arm', '--episodes=12')
  assert not done.returncode, done.stdout + done.stderr
  assert 'passed: 0 failures, 0 warnings' in done.stdout
  assert (path / 'wam_validation_tabletop_arm_sheet.png').exists()


def test_command_fails_with_status_1_and_lists_everything(tmp_path, good_path):
  """Bridge's record does not fit, tabletop's does; the images of the latter are spoilt."""
  done = run(f'--dataset={good_path}', '--embodiment=bridge_widowx')
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  assert done.stderr.startswith(
    f"error: {good_path} does not fit embodiment 'bridge_widowx': no 'observation/image_0'"
  )

  def edit(episodes):
    # A cut image, and an episode without words.
    episodes[1]['top'][7] = spoilt.jpeg(episodes[1]['top'][7])[:300]
    episodes[2]['text'] = [''] * spoilt.STEPS

  path = spoilt.make_dataset(tmp_path, edit)
  done = run(
    f'--dataset={path}',
    '--embodiment=tabletop_human',
    '--nopictures',
    f'--json={tmp_path}/card.json',
  )
  assert done.returncode == 1
  assert 'FAILED: 2 failures, 0 warnings, 1 note;' in done.stdout
  assert "fail image: image 'top' of step 7 of record 1 of" in done.stdout
  assert 'fail language: steps 0 to 59 of record 2 of' in done.stdout
  assert [f['kind'] for f in json.loads((tmp_path / 'card.json').read_text())['failures']] == [
    'image',
    'language',
  ]
