"""The tasks with switches: where a press counts, that the mean of both plans jams the bar, what the
lamp shows, and what the builder makes of it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from data.tabletop import builder
from wam_jax.envs import tabletop
from wam_jax.envs.tabletop import panel
from wam_jax.envs.tabletop import tasks

# From below, 'on' is a quarter turn of the clock away: at the left end.
BAR = panel.Panel(0.5, 0.4, 'below', is_on_ahead=True)


def make_env(task='press_any', seed=0, **options):
  env = tabletop.TabletopEnv('disc', (task,), **options)
  env.reset(seed)
  return env


def run_expert(env, choice_seed, noise=0.05, steps=None):
  """The expert's actions, and the observations after each."""
  act = tabletop.make_expert(env, choice_seed, noise)
  actions, seen = [], []
  for _ in range(steps or env.max_steps):
    actions.append(act())
    seen.append(env.step(actions[-1]))
  return np.stack(actions), seen


def record_both_plans(seed, **options):
  """Of each switch, the actions of a chunk that presses it in one scene, and the last observation;
  without noise.
  """
  plans = {}
  for choice_seed in range(30):
    env = make_env(seed=seed, **options)
    actions, seen = run_expert(env, choice_seed, noise=0.0, steps=8)
    plans[env.lamp.state] = actions, seen[-1]
    if len(plans) == 2:
      break
  assert set(plans) == {'on', 'off'}
  return plans


@pytest.mark.parametrize(
  'tip, pressed',
  [
    ((0.38, 0.4), 'on'),
    ((0.62, 0.4), 'off'),
    ((0.62, 0.455), 'off'),
    ((0.5, 0.4), 'jammed'),
    ((0.38, 0.47), 'jammed'),
    ((0.71, 0.4), 'jammed'),
    ((0.38, 0.50), ''),
    ((0.73, 0.4), ''),
  ],
)
def test_where_closing_presses_jams_or_does_nothing(tip, pressed):
  # A bar of 0.44 x 0.18 m around (0.5, 0.4), switches of 0.06 m at 0.12 m from there.
  assert BAR.press(tip) == pressed


@pytest.mark.parametrize(
  'front, on', [('below', 'left'), ('left', 'above'), ('above', 'right'), ('right', 'below')]
)
def test_the_switches_lie_across_the_way_of_the_tip(front, on):
  places = {'left': (0.38, 0.4), 'right': (0.62, 0.4), 'above': (0.5, 0.28), 'below': (0.5, 0.52)}
  opposite = {'left': 'right', 'right': 'left', 'above': 'below', 'below': 'above'}
  for is_on_ahead in (True, False):
    bar = panel.Panel(0.5, 0.4, front, is_on_ahead)
    end = on if is_on_ahead else opposite[on]
    np.testing.assert_allclose(bar.switch('on'), places[end])
    np.testing.assert_allclose(bar.switch('off'), places[opposite[end]])


def test_the_first_press_decides_for_good():
  lamp = panel.Lamp(BAR, 0.25)
  for tip, state in (
    ((0.9, 0.9), ''),
    ((0.5, 0.4), 'jammed'),
    ((0.38, 0.4), 'jammed'),
  ):
    lamp.press(tip)
    assert lamp.state == state


def test_light_turns_by_its_share_and_a_jam_shows_none():
  image = np.array([[[0, 100, 240]]], np.uint8)
  for tip, want in (
    ((0.38, 0.4), (0, 125, 255)),
    ((0.62, 0.4), (0, 75, 180)),
    ((0.5, 0.4), (0, 100, 240)),
  ):
    lamp = panel.Lamp(BAR, 0.25)
    np.testing.assert_array_equal(lamp.shine(image), image)
    lamp.press(tip)
    np.testing.assert_array_equal(lamp.shine(image)[0, 0], want)


@pytest.mark.parametrize('task', tabletop.PANEL_TASKS)
def test_the_expert_presses_within_its_first_chunk(task):
  env = tabletop.TabletopEnv('disc', (task,), view_size=8)
  pressed = set()
  for seed in range(60):
    env.reset(seed)
    run_expert(env, seed, steps=8)  # 0.8 s.
    pressed.add(env.lamp.state)
    assert env.lamp.state in env.scenario.wanted
    assert not env.success
    # Held for 0.4 s.
    for _ in range(4):
      env.step(np.array([0, 0, 1.0]))
    assert env.success
  assert pressed == {'on', 'off'}


def test_the_mean_of_both_plans_jams():
  for seed in range(10):
    plans = record_both_plans(seed, view_size=8)
    env = make_env(seed=seed, view_size=8)
    for action in (plans['on'][0] + plans['off'][0]) / 2:
      env.step(action)
    assert env.lamp.state == panel.JAMMED


def test_both_switches_are_equally_far_and_the_scene_stays_on_the_table():
  rng = np.random.default_rng(0)
  seen = set()
  for split in tabletop.SPLITS:
    for _ in range(60):
      scenario = tasks.sample('press_any', rng, split, 2)
      bar, tip = scenario.panel, scenario.tip
      distances = [math.dist(tip, bar.switch(name)) for name in panel.SWITCHES]
      assert distances[0] == pytest.approx(distances[1], abs=1e-9)
      x, y = panel.FRONTS[bar.front]
      ahead = (tip[0] - bar.x) * x + (tip[1] - bar.y) * y
      assert 0.26 <= ahead <= 0.31 + 1e-9
      for place in (tip, *bar.corners):
        assert min(place) >= 0.03
        assert max(place) <= 0.97
      seen.add((bar.front, bar.is_on_ahead))
  assert len(seen) == 8


def test_press_wants_the_switch_that_the_words_name():
  for seed in range(12):
    env = make_env('press', seed, view_size=8)
    (wanted,) = env.scenario.wanted
    words = env.instruction.split()
    assert tasks.SWITCH_COLORS[wanted] in words or wanted in words
    (other,) = set(panel.SWITCHES) - {wanted}
    env.lamp.press(env.scenario.panel.switch(other))
    run_expert(env, 0)
    assert not env.success


def find_side(env, name):
  """Pixels [row, column] of a switch in the top view."""
  x, y = env.scenario.panel.switch(name)
  return int(32 * y), int(32 * x)


def test_the_model_sees_both_switches_and_the_light_in_both_views():
  for seed in range(6):
    env = make_env(seed=seed)
    top = env.render(32, 'top')
    assert top[find_side(env, 'on')].min() > 200
    assert top[find_side(env, 'off')].max() < 60
    for name, sign in (('on', 1), ('off', -1)):
      actions, seen = record_both_plans(seed)[name]
      plain = record_both_plans(seed, conditions=tabletop.Conditions(light=0.0))[name]
      # The light changes what is seen, never what is done.
      np.testing.assert_array_equal(actions, plain[0])
      for view in ('top', 'wrist'):
        difference = sign * (seen[view].astype(int) - plain[1][view])
        assert difference.min() >= 0
        assert difference.mean() > 12


def test_the_light_is_how_well_the_video_tells_the_plan():
  """A reader of the mean brightness, which knows nothing of the scene."""

  def tell(light):
    apart = []
    for seed in range(8):
      plans = record_both_plans(seed, conditions=tabletop.Conditions(light=light))
      bright = {name: plan[1]['top'].mean() for name, plan in plans.items()}
      apart.append(bright['on'] - bright['off'])
    return np.mean(apart)

  plain, lamp = abs(tell(0.0)), tell(0.25)
  assert plain < 4
  assert lamp > 15 * plain


def test_people_see_the_pressed_switch_the_bulb_and_the_light():
  pictures = {}
  for name in (*panel.SWITCHES, panel.JAMMED):
    env = make_env(seed=1)
    pictures[''] = env.render(96).astype(int)
    middle = env.scenario.panel.x, env.scenario.panel.y
    env.lamp.press(middle if name == panel.JAMMED else env.scenario.panel.switch(name))
    pictures[name] = env.render(96).astype(int)
  assert pictures['on'].mean() > pictures[''].mean() + 12
  assert pictures['off'].mean() < pictures[''].mean() - 12
  # A jam shows at the bulb alone, which turns red.
  changed = np.abs(pictures[panel.JAMMED] - pictures['']).max(-1) > 8
  assert 0 < changed.sum() < 60
  red, green, _ = pictures[panel.JAMMED][changed].mean(0)
  assert red > green + 40


@pytest.mark.parametrize('light', [-0.1, 1.5, math.nan])
def test_a_light_out_of_range_is_an_error(light):
  with pytest.raises(ValueError, match=r'light=.* must be 0 \.\.\. 1'):
    tabletop.TabletopEnv('disc', ('press',), conditions=tabletop.Conditions(light=light))


def test_the_builder_keeps_the_light_in_the_name_and_only_where_there_is_a_lamp():
  usual = builder.BuildConfig('disc', ('press', 'press_any'))
  assert (usual.name, usual.parameters['light']) == ('disc_press_press_any', 0.25)
  dark = builder.BuildConfig('disc', ('press_any',), light=0.0)
  assert dark.name == 'disc_press_any_light0'
  # Datasets made before there were lamps are still those that are asked for.
  assert 'light' not in builder.BuildConfig('disc', ('reach',)).parameters
  with pytest.raises(ValueError, match=r"light=0\.1 is for \('press', 'press_any'\)"):
    builder.BuildConfig('disc', ('reach',), light=0.1)


def test_recorded_episodes_show_two_chunks_and_the_light():
  config = builder.BuildConfig('disc', ('press_any',), episodes=1, view_size=16)
  env = builder.make_env(config, 'train')
  steps = builder.record_success(env, config, 'train', 0)['steps']
  assert len(steps) == 17  # 1.6 s at 10 Hz, and the frame before.
  assert env.lamp.state in panel.SWITCHES
