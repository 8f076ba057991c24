"""Meta-World behind the tabletop's interface: deterministic, upright, solved by its experts.

Needs the extra `metaworld`.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('metaworld', reason="pip install -e '.[metaworld]'")

from wam_jax.envs import metaworld


@pytest.fixture(scope='module')
def env():
  env = metaworld.MetaworldEnv(('drawer-open', 'reach'), view_size=32)
  yield env
  env.close()


def _run(env, seed, steps=8):
  first = env.reset(seed)
  act = metaworld.make_expert(env, seed, 0.1)
  later = [env.step(act()) for _ in range(steps)]
  return [first, *later]


def test_every_task_has_an_instruction_an_environment_and_an_expert():
  from metaworld import env_dict
  from metaworld import policies

  # Meta-World has 50 tasks; an instruction may tell of no two of them.
  names = {f'{task}-v3' for task in metaworld.TASKS}
  assert len(names) == 50
  assert names == set(env_dict.ALL_V3_ENVIRONMENTS) == set(policies.ENV_POLICY_MAP)
  assert len(set(metaworld.TASKS.values())) == 50
  assert all(text == text.lower().strip() for text in metaworld.TASKS.values())


def test_a_seed_decides_everything_whatever_came_before(env):
  first = _run(env, 3)
  task = env.task

  # Episodes of other seeds, and of the other task, leave nothing behind.
  tasks = set()
  for seed in (5, 6):
    _run(env, seed)
    tasks.add(env.task)
  again = _run(env, 3)
  assert env.task == task
  assert env.instruction == metaworld.TASKS[task]
  assert env.time_s == 8 / 40
  # Seeds 5 and 6 draw either task.
  assert tasks == {'drawer-open', 'reach'}
  for a, b in zip(first, again):
    assert sorted(a) == sorted((*metaworld.VIEWS, 'proprio'))
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_views_are_upright(env):
  env.reset(0)
  model, data = env._world.model, env._world.data
  # World z of image up.
  up = {}
  for i in range(model.ncam):
    rotation = data.cam_xmat[i].reshape(3, 3)
    up[model.camera(i).name] = rotation[2, 1]
  assert sorted(up) == sorted(metaworld.ALL_VIEWS)
  upside_down = [name for name, z in up.items() if z < -0.1]
  assert sorted(metaworld.UPSIDE_DOWN) == sorted(upside_down)

  # A white ball 0.3 m above the hand is drawn above a black one at the hand.
  for view in ('corner', 'corner2', 'corner4', 'behindGripper'):
    assert _row_of_ball(env, view, 0.3) < _row_of_ball(env, view, 0.0) - 3


def _row_of_ball(env, view, height):
  """Mean row where the picture changes as a ball appears."""
  model, data = env._world.model, env._world.data
  site = model.site('goal').id
  size = model.site_size[site].copy()
  position = data.site_xpos[site].copy()

  before = env.render(96, view).astype(int)
  model.site_size[site] = 0.04
  data.site_xpos[site] = data.body('hand').xpos + np.array([0, 0, height])
  changed = np.abs(env.render(96, view) - before).max(2) > 40

  model.site_size[site] = size
  data.site_xpos[site] = position
  rows, _ = np.nonzero(changed)
  return rows.mean()


def test_drawing_at_any_size_leaves_the_views_as_they_are(env):
  seen = env.reset(1)
  assert env.render(80).shape == (80, 80, 3)
  assert env.render(80, 'topview').std() > 10
  np.testing.assert_array_equal(env.render(32, 'corner'), seen['corner'])


def test_actions_move_the_hand_as_documented(env):
  start = env.reset(2)['proprio']
  for _ in range(5):
    seen = env.step([1, 0, 0, -1])
  moved = seen['proprio'] - start
  # 0.02 m each, less what the arm still lags behind.
  assert 0.04 < moved[0] <= 0.11
  assert abs(moved[1]) < 0.01

  # Clipped to 1, the gripper closes.
  for _ in range(8):
    seen = env.step([0, 0, 0, 7.0])
  assert seen['proprio'][3] < start[3] - 0.2


@pytest.mark.parametrize('task', ['door-close', 'handle-press', 'reach'])
def test_experts_succeed_within_the_limit(task, monkeypatch):
  # Drawing is what takes time.
  monkeypatch.setattr(metaworld.MetaworldEnv, '_observe', lambda self: {})
  env = metaworld.MetaworldEnv(task, view_size=8)
  for seed in range(3):
    env.reset(seed)
    act = metaworld.make_expert(env, seed, 0.1)
    while not env.success and env.time_s * env.control_hz < env.max_steps:
      env.step(act())
    assert env.success
  # Meta-World raises beyond its own horizon of 500 steps; evaluation may go on.
  for _ in range(env.max_steps):
    env.step(np.zeros(4))
  env.close()


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(tasks='fly'), "task='fly' must be one of"),
    (dict(tasks=()), 'tasks is empty'),
    (dict(tasks='reach', view_size=4), 'view_size=4'),
    (dict(tasks='reach', backend='x11'), "backend='x11'"),
  ],
)
def test_bad_choices_are_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    metaworld.MetaworldEnv(**arguments)


def test_bad_use_is_an_error(env):
  with pytest.raises(RuntimeError, match='Call reset'):
    metaworld.MetaworldEnv('reach').step(np.zeros(4))
  env.reset(0)
  for action in (np.zeros(3), [0, 0, 0, np.nan]):
    with pytest.raises(ValueError, match='must be 4 finite numbers'):
      env.step(action)
  with pytest.raises(ValueError, match="view='left'"):
    env.render(16, 'left')
