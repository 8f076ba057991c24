"""The tabletop for people: it shows what physics says, in depth, and leaves the model's views
alone.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
import pathlib

import imageio.v2 as imageio
import numpy as np
import pytest

from wam_jax.envs import tabletop
from wam_jax.envs.tabletop import render
from wam_jax.envs.tabletop import robots
from wam_jax.envs.tabletop import scene
from wam_jax.envs.tabletop import tasks
from wam_jax.envs.tabletop import world
from wam_jax.envs.tabletop.scene import camera
from wam_jax.envs.tabletop.scene import figures

PLAIN = render.Look((200, 200, 200), 'plain', 'flat', 1.0)
SIZE = 192


def make_scene(items=(), zones=(), tip=(0.2, 0.2), robot='disc'):
  scenario = tasks.Scenario('reach', (), '', tuple(items), tuple(zones), 1, tip)
  table = world.World(scenario.items, tip, 0.045)
  joints = robots.ROBOTS[robot].limit(robots.ROBOTS[robot].inverse(*tip))
  return scene.Scene(scenario, robots.ROBOTS[robot], PLAIN), table, joints


@functools.cache
def draw_alone():
  draw, table, joints = make_scene()
  return draw.image(SIZE, table, joints)


def look_at(image, x, y, height=0.0):
  """The mean RGB of the pixels where a point is seen."""
  column, row = camera.project(np.array([(x, y, height)]), len(image))[0].astype(int)
  return image[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).mean(0)


def tell_hues_apart(rgb, color):
  """0 the same hue, 0.5 the opposite one."""
  hues = [colorsys.rgb_to_hsv(*(np.asarray(c) / 255))[0] for c in (rgb, render.COLORS[color])]
  difference = abs(hues[0] - hues[1])
  return min(difference, 1 - difference)


def test_the_views_of_the_model_are_those_of_the_shipped_weights_and_datasets():
  """Bit for bit; the file was written before there were pictures for people."""
  columns = []
  for split, task in (('train', 'push'), ('unseen_look', 'sort')):
    for name in tabletop.ROBOTS:
      env = tabletop.TabletopEnv(name, (task,), split)
      env.reset(3)
      for step in range(5):
        env.render(32)
        seen = env.step(np.full(env.action_dim, 0.4 if step % 2 else -0.7))
      columns.append(np.concatenate([seen['top'], seen['wrist']]))
  want = imageio.imread(pathlib.Path(__file__).with_name('model_views.png'))
  np.testing.assert_array_equal(np.concatenate(columns, 1), want)


@pytest.mark.parametrize('color', tabletop.COLORS)
@pytest.mark.parametrize('shape', tabletop.SHAPES)
def test_items_are_seen_where_they_are_in_their_colour(color, shape):
  draw, table, joints = make_scene([world.Item(color, shape, 0.6, 0.5, 0.4)])
  image = draw.image(SIZE, table, joints)
  top = look_at(image, 0.6, 0.5, figures.ITEM_HEIGHT)
  assert tell_hues_apart(top, color) < 0.03
  # Its shadow, grey and darker than the table before, lies to the right and below.
  difference = draw_alone().astype(int) - image
  rows, columns = np.nonzero((difference.min(-1) > 12) & (np.ptp(image, axis=-1) < 12))
  column, row = camera.project(np.array([(0.6, 0.5, 0)]), SIZE)[0]
  assert len(rows) > 20
  assert columns.mean() - column > 4
  assert rows.mean() - row > 2


def test_a_nearer_item_hides_a_farther_one():
  items = [world.Item('red', 'square', 0.5, 0.5), world.Item('blue', 'square', 0.5, 0.375)]
  for order in (items, items[::-1]):
    image = scene_image(order)
    # The upper edge of the red one's back lies in front of the blue one.
    assert tell_hues_apart(look_at(image, 0.5, 0.45, figures.ITEM_HEIGHT), 'red') < 0.03


def scene_image(items):
  draw, table, joints = make_scene(items)
  return draw.image(SIZE, table, joints)


def test_a_held_item_is_lifted():
  draw, table, joints = make_scene([world.Item('red', 'disc', 0.5, 0.5)], tip=(0.5, 0.5))
  before = look_at(draw.image(SIZE, table, joints), 0.5, 0.56)
  for _ in range(5):
    table.step((0.5, 0.5), True, 0.1)
  assert table.holding == 0
  after = look_at(draw.image(SIZE, table, joints), 0.5, 0.56)
  # What it stood on is the table again.
  assert before[0] - before[1] > 60 > 20 > after[0] - after[1]


def test_zones_have_their_colour():
  draw, table, joints = make_scene(zones=[tasks.Zone('green', 0.5, 0.5)])
  image = draw.image(SIZE, table, joints)
  red, green, _ = look_at(image, 0.5 + tasks.ZONE_RADIUS - 0.011, 0.5)
  assert green > red + 40
  red, green, _ = look_at(image, 0.5 + tasks.ZONE_RADIUS + 0.02, 0.5)
  assert abs(green - red) < 4


@pytest.mark.parametrize('robot', robots.ROBOTS)
def test_robots_follow_their_tip_and_grip(robot):
  pictures = []
  for tip, closed in (((0.4, 0.6), False), ((0.4, 0.6), True), ((0.6, 0.6), False)):
    draw, table, joints = make_scene(tip=tip, robot=robot)
    table.step(tip, closed, 0.2)
    pictures.append(draw.image(SIZE, table, joints))
  for a, b in itertools.combinations(pictures, 2):
    assert (np.abs(a.astype(int) - b).max(-1) > 40).sum() > 20


def test_the_whole_table_is_in_the_picture():
  corners = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], float)
  pixels = camera.project(corners, 100)
  assert pixels.min() > 0
  assert pixels.max() < 100
  # What is nearer is larger, and lower.
  assert pixels[1, 0] - pixels[0, 0] < pixels[2, 0] - pixels[3, 0]
  assert pixels[0, 1] < pixels[3, 1]
