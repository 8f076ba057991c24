"""Records that are proposed from names and numbers: right where these tell, and said where not."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from data import propose
from data.suggest import work
from tests import programs
from tests.builders import bridge
from tests.data import published
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import sources
from wam_jax.interop.dreamzero import composites
from wam_jax.interop.dreamzero import robots

ARM = ('waist.pos', 'shoulder.pos', 'wrist_roll.pos', 'gripper.pos')
BOTH = tuple(f'{side}_{name}' for side in ('left', 'right') for name in ARM)
HZ = 30.0


def path(episode, length, columns):
  """Slow joint angles around a pose of each episode's own, a gripper from 0 to 1 last."""
  t = np.arange(length + 5)[:, None] / HZ
  phase = np.arange(columns) + episode
  joints = 3 * np.sin(episode * 2.4 + np.arange(columns)) + 0.1 * np.sin(0.8 * t + phase)
  joints[:, -1] = 0.5 + 0.5 * np.sin(0.5 * t[:, 0] + episode)
  return joints


def find(names, action_of, episodes=8, length=150, **fields):
  """What a dataset would say whose actions `action_of` makes of where a robot is and will be."""
  arrays = []
  for e in range(episodes):
    q = np.concatenate([path(e + 10 * k, length, 4) for k in range(len(names) // 4)], axis=1)
    arrays.append(({'state': q[:length]}, {'action': action_of(q, length)}))
  found = propose.Found(
    name='arm',
    hz=HZ,
    cameras=(propose.Camera('top', 480, 640),),
    state=(propose.Vector('state', len(names), names),),
    action=(propose.Vector('action', len(names), names),),
    episodes=arrays,
  )
  return propose.propose(dataclasses.replace(found, **fields))


def ahead(q, length):
  """Absolute targets that are reached three steps later."""
  return q[3 : length + 3]


def test_two_arms_are_separated_as_their_names_separate_them():
  record, guesses = find(BOTH, ahead)
  pieces = [(0, 3, 'rad'), (3, 4, 'normalized'), (4, 7, 'rad'), (7, 8, 'normalized')]
  assert [(s.start, s.stop, s.unit) for s in record.state] == pieces
  assert [(s.start, s.stop, s.unit) for s in record.action] == pieces
  # Poses differ by episode and motion is slow: joints count from the chunk's start.
  assert [s.relative_to for s in record.action] == ['state:0:3', '', 'state:4:7', '']
  assert [s.rest for s in record.action] == ['', 'state:3:4', '', 'state:7:8']
  told = '\n'.join(guesses)
  assert 'a target that state:0:3 follows 0.1 s later' in told
  assert 'relative to it, since within a chunk it moves' in told
  assert (record.control_hz, record.video_fps, record.chunk_s) == (30.0, 5.0, 1.6)
  assert record.composite == (240, 320)


def tell_cameras(count: int) -> tuple[record_lib.Embodiment, str]:
  """A proposed record of `count` cameras, and what is told last, with it."""
  cameras = tuple(propose.Camera(f'cam_{i}', 480, 640) for i in range(count))
  record, guesses = find(ARM, ahead, cameras=cameras)
  return record, guesses[-1]


def test_what_the_official_server_cannot_show_is_told_before_training():
  record, told = tell_cameras(2)
  assert '"composite": [480, 640] (its right half stays black)' in told
  assert 'cam_0 at row 0, column 0, cam_1 at row 240, column 0' in told
  # Whoever does what is told can export.
  first, second = record.views
  mended = dataclasses.replace(
    record,
    views=(first, dataclasses.replace(second, row=240, column=0)),
    composite=(480, 640),
    resize='bilinear',
    prompt=prompts.TEMPLATES['xdof'],
  )
  model = cfg.ModelConfig(frames_per_chunk=4, actions_per_chunk=mended.steps_per_chunk)
  assert robots.describe('xdof', mended, model).size == (240, 320)
  assert not list(composites.list_changes('xdof', mended))
  # Three are tiled as there, and a fourth has no place.
  assert '"composite"' not in tell_cameras(3)[1]
  assert 'at most 3 of the 4 cameras' in tell_cameras(4)[1]


def test_targets_that_move_through_their_whole_range_stay_absolute():
  arrays = [
    ({'state': q[:150]}, {'action': ahead(q, 150)})
    for q in (np.sin(np.arange(155)[:, None] / 20 + np.arange(4) + e) for e in range(4))
  ]
  record, guesses = propose.propose(
    propose.Found(
      name='arm',
      hz=HZ,
      cameras=(propose.Camera('top', 64, 64),),
      state=(propose.Vector('state', 4),),
      action=(propose.Vector('action', 4),),
      episodes=arrays,
    )
  )
  assert [(s.relative_to, s.rest) for s in record.action] == [('', 'state:0:4')]
  assert 'standing still is to send state:0:4 back' in guesses[1]


def test_degrees_and_percent_are_told_by_their_size():
  q = [path(e, 150, 4) * [60, 60, 60, 100] for e in range(6)]
  record, _ = propose.propose(
    propose.Found(
      name='so100',
      hz=HZ,
      cameras=(propose.Camera('top', 64, 64),),
      state=(propose.Vector('state', 4, ARM),),
      action=(propose.Vector('action', 4, ARM),),
      episodes=[({'state': x[:150]}, {'action': ahead(x, 150)}) for x in q],
    )
  )
  assert [s.unit for s in record.state] == [s.unit for s in record.action] == ['deg', 'percent']


def test_deltas_rest_at_zero_and_an_unnamed_gripper_is_found():
  def delta(q, length):
    made = 5 * np.diff(q, axis=0)[:length]
    made[:, -1] = np.sign(np.sin(np.arange(length) / 9))
    return made

  found = {
    'state': (propose.Vector('state', 4),),
    'action': (propose.Vector('action', 4),),
  }
  record, guesses = find(ARM, delta, **found)
  assert [(s.start, s.stop, s.unit) for s in record.action][1] == (3, 4, 'normalized')
  assert not any(s.relative_to or s.rest for s in record.action)
  assert 'a change or velocity of state:0:3' in '\n'.join(guesses)


def test_an_arm_that_does_not_move_holds_its_pose():
  """Its spread is its droop; that zero would stand still is far from true."""
  rng = np.random.default_rng(0)

  def hold(q, length):
    q[:, :3] = [1.0, -0.5, 0.8]
    target = ahead(q, length).copy()
    target[:, :3] += 0.01 + 0.005 * rng.normal(size=(length, 3))
    return target

  record, guesses = find(BOTH, hold)
  assert [s.rest or s.relative_to for s in record.action] == [
    *('state:0:3', 'state:3:4', 'state:4:7', 'state:7:8')
  ]
  assert 'a target that state:0:3 holds' in '\n'.join(guesses)
  # A delta that is nearly zero is none of that pose.
  record, _ = find(BOTH, lambda q, length: hold(q, length) - q[:length])
  assert record.action[0].rest == record.action[0].relative_to == ''


def test_names_in_one_another_and_in_camel_case():
  names = [['kLeftElbow', 'kLeftHandIndex'], {'right': ['kRightElbow', 'RightGripper']}]
  flat = propose.flatten_names(names, 4)
  assert flat == ('kLeftElbow', 'kLeftHandIndex', 'kRightElbow', 'RightGripper')
  record, _ = find(flat, ahead)
  assert [(s.start, s.stop) for s in record.state] == [(0, 2), (2, 3), (3, 4)]


def test_what_nothing_tells_is_said():
  rng = np.random.default_rng(0)
  noise = lambda q, length: rng.uniform(-1, 1, (length, 4))
  record, guesses = find(ARM, noise, action=(propose.Vector('action', 4),))
  assert [s.unit for s in record.action] == ['normalized']
  assert 'follows no state, and zero is guessed to stand still' in '\n'.join(guesses)
  with pytest.raises(ValueError, match='has no camera'):
    find(ARM, noise, cameras=())
  assert propose.flatten_names({'motors': ['a', 'b']}, 2) == ('a', 'b')
  assert propose.flatten_names(['a'], 2) == propose.flatten_names(None, 2) == ()


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('left_wrist_roll.pos', ('joint', 'left')),
    ('right_gripper', ('gripper', 'right')),
    ('eef_roll', ('rotation', '')),
    ('yaw', ('rotation', '')),
    ('end_effector_x', ('position', '')),
    ('dx', ('position', '')),
    ('left_effector_position', ('gripper', 'left')),
    ('base_vx', ('base', '')),
    ('joint_3', ('joint', '')),
  ],
)
def test_kinds_of_columns(name, kind):
  assert propose._name_kind(name, '') == kind


def test_the_command_lists_and_proposes_what_passes_its_own_check(tmp_path):
  # A copy may lie anywhere: the robot is not called after the directory.
  made = synthetic.make_dataset(tmp_path, [12, 20])
  dataset = pathlib.Path(made).rename(tmp_path / 'copy')
  run = lambda *flags: programs.run('data.suggest', f'--dataset={dataset}', *flags)
  told = run()
  assert told.returncode, told.stdout
  assert 'says how many steps it has a second; look it up and give --control_hz' in told.stderr
  assert 'observation/proprio' in told.stdout
  assert 'must be 0.1 ... 1000 steps a second' in run('--control_hz=1e-9').stderr
  assert 'is a directory; name a file in it' in run(f'--output={tmp_path}').stderr
  told = run('--control_hz=10')
  assert told.returncode == 0, told.stderr
  record = embodiments.resolve('', dataset)
  assert json.loads(json.dumps(dataclasses.asdict(record)))['name'] == 'synthetic_rlds'
  assert [view.key for view in record.views] == ['top', 'wrist']
  assert len(sources.Episodes(dataset, 'train', record)) == 2
  assert 'may have been edited' in run('--control_hz=10').stderr


def test_cameras_that_never_show_anything_are_left_out(tmp_path):
  # As BridgeData V2 is published: of four cameras most episodes have one, and the others are black.
  bridge.write(tmp_path)
  dataset = next((tmp_path / 'array_record').glob('*/1.0.0'))
  record, guesses = propose.propose(work.find(sources.Dataset(dataset), 'train', 5.0, (), (), ''))
  assert [view.key for view in record.views] == ['image_0']
  assert record.composite == (64, 64)
  for i in (1, 2, 3):
    assert (
      f'view observation/image_{i} is left out: it is blank, of grey level 0, in all 30 images '
      'of 10 episodes that were looked at'
    ) in guesses


def test_published_keys_are_found(tmp_path):
  dataset = sources.Dataset(published.write(tmp_path, 'droid', [30, 30]))
  found = work.find(dataset, 'train', 15.0, (), ('action_dict/joint_position',), 'mine')
  record, _ = propose.propose(found)
  assert record.name == 'mine'
  assert [s.key for s in record.action] == ['action_dict/joint_position']
  assert record.language == (
    'language_instruction',
    'language_instruction_2',
    'language_instruction_3',
  )
  assert isinstance(dataset.open('train', record)[0].state_TX, np.ndarray)
  with pytest.raises(ValueError, match=r"\['nothing'\] are no vectors"):
    work.find(dataset, 'train', 15.0, (), ('nothing',), '')
  assert record_lib.list_differences(record, record) == []
