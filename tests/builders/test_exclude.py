"""Leaving out as a user types it: what the validator finds is left out of everything else."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from tests import programs
from tests.data import published
from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import exclusions
from wam_jax.data import pipeline
from wam_jax.data import sources


def write_moving(tmp_path, edit=lambda episodes: None) -> str:
  """A dataset that the validator passes as far as its numbers go, and its record beside it."""

  def move(episodes):
    rng = np.random.default_rng(0)
    for episode in episodes:
      walk = rng.normal(0, 0.1, (len(episode) + 1, 3)).cumsum(0).astype(np.float32)
      for t, step in enumerate(episode):
        step['observation']['proprio'] = walk[t]
        step['action'] = walk[t + 1, :2]
    edit(episodes)

  return synthetic.make_dataset(tmp_path, [30, 40, 0, 30, 30], move)


def run(module: str, path: str, *flags: str):
  return programs.run(module, f'--dataset={path}', *flags)


def test_what_the_validator_finds_is_left_out(tmp_path):
  def spoil(episodes):
    episodes[1][7]['observation']['proprio'] = np.float32([0, np.nan, 0])
    image = episodes[3][9]['observation']['top']
    cut = image.getvalue()[:-30]
    image.seek(0)
    image.truncate()
    image.write(cut)

  path = write_moving(tmp_path, spoil)
  record = tmp_path / 'record.json'
  record.write_text(json.dumps(synthetic.dataclasses.asdict(synthetic.CLOCK)))
  flags = (f'--embodiment={record}', '--nopictures', '--accept=view,alignment,copy,slice,lag,sense')

  first = run('data.validate', path, *flags, '--write_exclusions')
  assert first.returncode == 1, first.stdout + first.stderr
  for number in (1, 3):
    assert f'data.exclude --dataset={path} --split=train --episodes={number}' in first.stdout
  assert '2 damaged episodes are left out from now on; validate again' in first.stdout
  said = json.loads((pathlib.Path(path) / exclusions.FILE).read_text())
  assert [entry['episode'] for entry in said['train']] == [1, 3]
  assert 'NaN' in said['train'][0]['why']
  assert 'data.exclude' not in said['train'][0]['why']

  again = run('data.validate', path, *flags, '--write_exclusions')
  assert again.returncode == 0, again.stdout + again.stderr
  assert 'left out, as training does: 2 excluded, 1 empty' in again.stdout
  found = run('data.statistics', path, flags[0])
  assert '2 episodes, 60 steps; written to' in found.stdout, found.stderr
  assert 'left out: 2 excluded, 1 empty' in found.stdout
  config = synthetic.make_config({'d': (path, str(record), 1.0)})
  assert any('left out: 2 excluded, 1 empty' in note for note in pipeline.Data.open(config).notes)


def test_the_command_leaves_out_episodes_and_steps(tmp_path):
  path = write_moving(tmp_path)
  done = run('data.exclude', path, '--episodes=0,-1', '--why=a bad take')
  assert done.returncode == 0, done.stderr
  assert 'train episode 4: a bad take' in done.stdout
  assert 'train has 5 episodes; 2 are left out' in done.stdout
  done = run('data.exclude', path, '--episodes=1', '--steps=10:12')
  assert 'train episode 1, steps 10 to 11' in done.stdout
  opened = lambda: sources.Episodes(path, 'train', synthetic.CLOCK)
  assert [span.stop - span.start for span in opened()[0].spans] == [10, 28]
  # Said twice is said once.
  run('data.exclude', path, '--episodes=0')
  assert len(json.loads((pathlib.Path(path) / exclusions.FILE).read_text())['train']) == 3
  for flags, message in (
    (('--episodes=1', '--steps=10:12'), '--undo takes in whole episodes'),
    (('--episodes=0,2',), "exclusions.json leaves out nothing of 2 of split 'train'"),
  ):
    refused = run('data.exclude', path, *flags, '--undo')
    assert refused.returncode == 2
    assert message in refused.stderr
  done = run('data.exclude', path, '--episodes=0,4', '--undo')
  assert 'train has 5 episodes; 0 are left out, some steps of 1' in done.stdout
  assert len(opened()) == 5


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--episodes=9'], r'--episodes=9 means [9]; there are 0 to 4'),
    (['--episodes=x'], '--episodes=x must be numbers'),
    (['--steps=1:2'], '--steps needs --episodes'),
    (['--episodes=1', '--steps=3'], '--steps=3 must be FIRST:STOP'),
    (['--split=test', '--episodes=1'], "has no split 'test'"),
    (['--shards=missing'], '--shards=missing: all 1 shards are there'),
    (['--shards=x'], "train has no shards ['x']"),
    (['--names=x', '--embodiment=tabletop_disc'], 'has no episode_key'),
  ],
)
def test_mistakes_are_one_message(tmp_path, flags, message):
  done = run('data.exclude', write_moving(tmp_path), *flags)
  assert done.returncode == 2
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


def test_episodes_by_name(tmp_path):
  path = published.write(tmp_path, 'droid', [30, 30, 30])
  names = tmp_path / 'names.txt'
  names.write_text(f'{published.episode_name(1)}\n')
  flags = (f'--names={names}', '--embodiment=droid')
  done = run('data.exclude', path, *flags)
  assert 'train episode 1' in done.stdout, done.stderr
  assert len(sources.Episodes(path, 'train', embodiments.get('droid'))) == 2
  names.write_text('elsewhere\n')
  assert "does not have, as 'elsewhere'" in run('data.exclude', path, *flags).stderr
