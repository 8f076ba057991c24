"""Commands end to end: train from pixels, store features, train from those: the same losses, or a
refusal.
"""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from tests import programs


@pytest.mark.slow
def test_training_from_stored_features_is_training_from_pixels(tmp_path):
  dataset = tmp_path / 'data/tabletop/disc_reach/1.0.0'
  settings = [
    '--config=tests/train_config.py',
    f'--config.data.mixture.disc.path={dataset}',
    '--config.eval_every=0',
    '--config.steps=4',
    '--config.save_every=4',
  ]
  prepare = (
    f'data.tabletop --output={tmp_path / "data"} --embodiment=disc --tasks=reach --episodes=8 '
    '--other_episodes=1'
  )

  def train(name: str, *flags: str) -> subprocess.CompletedProcess:
    return programs.run('wam_jax.train', *settings, f'--workdir={tmp_path / name}', *flags)

  done = train('pixels', f'--config.data.mixture.disc.prepare={prepare}')
  assert done.returncode == 0, done.stderr
  # Every anchor, so that both draw the same windows.
  done = programs.run(
    'data.encode',
    f'--workdir={tmp_path / "pixels"}',
    f'--dataset={dataset}',
    '--embodiment=tabletop_disc',
    '--anchor_stride=1',
    '--dtype=float16',
  )
  assert done.returncode == 0, done.stderr
  done = train('features', '--config.data.features=require')
  assert done.returncode == 0, done.stderr

  want, got = (
    [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    for name in ('pixels', 'features')
  )
  assert [line['step'] for line in got] == [line['step'] for line in want] == [2, 4]
  for key in ('loss', 'video_loss', 'action_loss'):
    np.testing.assert_allclose(
      [line[key] for line in got], [line[key] for line in want], rtol=2**-11
    )  # Of float16.

  # A tokenizer fitted to fewer windows has other weights than those that the features were made
  # with.
  done = train('other', '--config.data.features=require', '--config.model.tokenizer.fit_windows=16')
  assert done.returncode == 2, done.stderr
  assert done.stderr.count('error: ') == 1, done.stderr
  assert str(dataset) in done.stderr
  assert 'tokenizer' in done.stderr
  assert 'python -m data.encode' in done.stderr
