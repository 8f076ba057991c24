"""Every world has the one interface, and is made by the name of its robot."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from wam_jax.data import embodiments
from wam_jax.data import robot as robot_lib
from wam_jax.envs import metaworld
from wam_jax.envs import tabletop
from wam_jax.envs import worlds


@pytest.mark.parametrize('robot', tabletop.ROBOTS)
def test_the_tabletop_is_a_world_whose_robots_have_records(robot):
  name = f'{worlds.TABLETOP}{robot}'
  env = worlds.make(name, ('reach',), split='unseen_look', max_distractors=0)
  assert isinstance(env, tabletop.TabletopEnv)
  assert (env.embodiment, env.split) == (robot, 'unseen_look')
  observation = env.reset(0)
  assert isinstance(env, worlds.Env)
  record = embodiments.get(name)
  assert env.control_hz == record.control_hz
  # What the world shows has the keys that the robot's record asks for.
  composite, state_X = robot_lib.Robot(0, record, None).observe(observation, observation)
  assert composite.shape == (*record.composite, 3)
  want_X = observation['proprio'] if record.state else []
  np.testing.assert_array_equal(state_X, want_X)


def test_metaworld_has_the_members_of_a_world():
  # By the class alone, so that it is tested where the extra `metaworld` is not installed.
  members = {name for name in dir(worlds.Env) if not name.startswith('_')}
  # Set by `reset`, not by the class.
  members |= set(worlds.Env.__annotations__) - {'success'}
  members -= {'task'}
  assert members >= {'reset', 'step', 'render', 'instruction', 'time_s', 'max_steps', 'action_dim'}
  assert not [name for name in members if not hasattr(metaworld.MetaworldEnv, name)]


def test_metaworld_is_made_by_name():
  pytest.importorskip('metaworld', reason="pip install -e '.[metaworld]'")
  env = worlds.make('metaworld', ('reach',), view_size=16)
  observation = env.reset(0)
  assert isinstance(env, worlds.Env)
  record = embodiments.get('metaworld')
  assert env.control_hz == record.control_hz
  _, state_X = robot_lib.Robot(0, record, None).observe(observation, observation)
  np.testing.assert_array_equal(state_X, observation['proprio'])
  env.close()


@pytest.mark.parametrize(
  'name, message',
  [
    ('droid', "name='droid' must be 'metaworld' or begin with 'tabletop_'"),
    ('tabletop_crane', "embodiment='crane' must be one of"),
  ],
)
def test_unknown_robots_are_errors(name, message):
  with pytest.raises(ValueError, match=message):
    worlds.make(name, ('reach',))


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wam_jax.envs.tabletop', None)
  monkeypatch.delattr('wam_jax.envs.tabletop')
  with pytest.raises(ValueError, match=r"pip install -e '\.\[sim\]'"):
    worlds.make('tabletop_disc', ('reach',))
