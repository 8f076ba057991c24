"""The tabletop world: determinism, what actions do, what counts as success, splits, pixels and
errors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests import programs
from wam_jax.data import embodiments
from wam_jax.envs import tabletop
from wam_jax.envs.tabletop import drift
from wam_jax.envs.tabletop import render
from wam_jax.envs.tabletop import robots
from wam_jax.envs.tabletop import tasks
from wam_jax.envs.tabletop import world

# A grey table without a pattern, so that a pixel's colour can be told by hand.
PLAIN = render.Look((200, 200, 200), 'plain', 'flat', 1.0)


def _run_expert(
  embodiment: str, task: str, seed: int, split: str = 'train'
) -> tabletop.TabletopEnv:
  env = tabletop.TabletopEnv(embodiment, (task,), split, view_size=8)
  env.reset(seed)
  act = tabletop.make_expert(env, seed)
  for _ in range(env.max_steps):
    env.step(act())
    if env.success:
      break
  return env


def _scenario(items, zones=(), task='reach', tip=(0.5, 0.5), targets=1):
  return tasks.Scenario(
    task=task,
    combination=(),
    instruction='',
    items=tuple(items),
    zones=tuple(zones),
    targets=targets,
    tip=tip,
  )


@pytest.mark.parametrize('embodiment', tabletop.ROBOTS)
def test_same_seed_gives_the_same_episode_and_another_seed_another(embodiment):
  def record(seed):
    env = tabletop.TabletopEnv(embodiment, tabletop.TASKS)
    observations = [env.reset(seed)]
    act = tabletop.make_expert(env, seed)
    actions = []
    for _ in range(15):
      actions.append(act())
      observations.append(env.step(actions[-1]))
    views = {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return env.instruction, np.stack(actions), views

  words, actions, views = record(3)
  words_again, actions_again, views_again = record(3)
  assert words == words_again
  np.testing.assert_array_equal(actions, actions_again)
  for key, value in views.items():
    np.testing.assert_array_equal(value, views_again[key])

  _, _, other_views = record(4)
  assert not np.array_equal(other_views['top'], views['top'])


@pytest.mark.parametrize('embodiment', tabletop.ROBOTS)
@pytest.mark.parametrize('task', tabletop.TASKS)
def test_expert_succeeds_within_the_time_limit(embodiment, task):
  results = [_run_expert(embodiment, task, seed).success for seed in range(4)]
  assert all(results)


def test_expert_succeeds_on_held_out_splits():
  for task in tabletop.TASKS:
    for split in ('unseen_task', 'unseen_look'):
      assert _run_expert('disc', task, 5, split).success


def test_expert_recovers_from_a_disturbance():
  env = tabletop.TabletopEnv('disc', ('push',), view_size=8)
  env.reset(0)
  act = tabletop.make_expert(env, 0)
  rng = np.random.default_rng(0)
  for step in range(env.max_steps):
    # Half a second of random actions in the midst of it.
    is_disturbed = 15 <= step < 20
    action = rng.uniform(-1, 1, 3) if is_disturbed else act()
    env.step(action)
  assert env.success


@pytest.mark.parametrize('task', tabletop.TASKS)
def test_holding_still_never_succeeds_and_random_rarely(task):
  successes = {'hold': 0, 'random': 0}
  for seed in range(20):
    env = tabletop.TabletopEnv('disc', (task,), view_size=8)
    rng = np.random.default_rng(seed)
    for policy in successes:
      env.reset(1000 + seed)
      for _ in range(env.max_steps):
        action = np.zeros(3) if policy == 'hold' else rng.uniform(-1, 1, 3)
        env.step(action)
      successes[policy] += env.success
  # A success rate is worth something only where doing nothing gives none of it. What drifts comes
  # by: in 7 and 3 of 150 scenes for long enough.
  drifts = task == 'reach_moving'
  assert successes['hold'] <= (5 if drifts else 0)
  assert successes['random'] <= (5 if drifts else 2)


def test_success_needs_four_steps_in_a_row():
  env = tabletop.TabletopEnv('disc', ('reach',), view_size=8, max_distractors=0)
  env.reset(0)
  # The tip stands 0.06 m from the item, where 0.08 m count as reached; a step away is 0.05 m.
  env.scenario = _scenario([world.Item('red', 'disc', 0.5, 0.3)])
  env.world = world.World(env.scenario.items, (0.5, 0.36), 0.045)
  env.joints = (0.5, 0.36)
  assert tasks.satisfied(env.scenario, env.world)
  away = np.array([0, 1, -1.0])
  back = np.array([0, -1, -1.0])
  still = np.array([0, 0, -1.0])
  for action in (still, still, still, away, back):
    env.step(action)
    assert not env.success
  for _ in range(3):
    env.step(still)
  assert env.success
  # Once successful, an episode stays so.
  env.step(away)
  assert env.success


def test_carried_item_does_not_count_until_released():
  scenario = _scenario(
    [world.Item('red', 'disc', 0.5, 0.5)], [tasks.Zone('blue', 0.5, 0.5)], 'place'
  )
  table = world.World(scenario.items, (0.5, 0.5), 0.045)
  assert tasks.satisfied(scenario, table)
  # Closing right over the item lifts it, in the zone though it is.
  table.step((0.5, 0.5), True, 0.1)
  assert table.holding == 0
  assert not tasks.satisfied(scenario, table)


def test_disc_moves_half_a_metre_a_second():
  env = tabletop.TabletopEnv('disc', ('reach',), view_size=8)
  start = env.reset(1)['proprio']
  # Towards the middle, where no border stops it; 0.05 m in a control step of 0.1 s.
  direction = 1.0 if start[0] < 0.5 else -1.0
  moved = env.step(np.array([direction, 0.0, -1.0]))['proprio']
  np.testing.assert_allclose(moved - start, [0.05 * direction, 0, 0, 0], atol=1e-6)

  # The gripper takes two steps from open to closed.
  closing = env.step(np.array([0, 0, 1.0]))['proprio']
  np.testing.assert_allclose(closing[2:], [0.5, 0.0], atol=1e-6)


def test_actions_are_clipped():
  env = tabletop.TabletopEnv('disc', ('reach',), view_size=8)
  env.reset(1)
  clipped = env.step(np.array([0.0, 1.0, -1.0]))['proprio']
  env.reset(1)
  np.testing.assert_array_equal(env.step(np.array([0.0, 9.0, -9.0]))['proprio'], clipped)


def test_arm_and_cart_follow_their_joints():
  arm = tabletop.TabletopEnv('arm', ('reach',), view_size=8)
  start = arm.reset(2)['proprio']
  moved = arm.step(np.array([0.5, -0.5, -1.0]))['proprio']
  np.testing.assert_allclose(moved[:2] - start[:2], [0.03, -0.03], atol=1e-6)

  # Two links of 0.58 m; angles in radians, the first from straight up the table.
  shoulder, bend = moved[:2]
  tip_x = robots.ARM_BASE[0] + 0.58 * (math.sin(shoulder) + math.sin(shoulder + bend))
  tip_y = robots.ARM_BASE[1] - 0.58 * (math.cos(shoulder) + math.cos(shoulder + bend))
  np.testing.assert_allclose(moved[2:4], (tip_x, tip_y), atol=1e-5)

  cart = tabletop.TabletopEnv('cart', ('reach',), view_size=8)
  start = cart.reset(2)['proprio']
  moved = cart.step(np.array([0.5, -0.5, 0.1, -1.0]))['proprio']
  np.testing.assert_allclose(moved[:3] - start[:3], [0.05, -0.1, 0.01], atol=1e-6)


@pytest.mark.parametrize('name', tabletop.ROBOTS)
def test_inverse_kinematics_inverts_over_the_whole_table(name):
  robot = robots.ROBOTS[name]
  for x in np.linspace(0.08, 0.92, 9):
    for y in np.linspace(0.1, 0.92, 9):
      # Within the joints' limits: the expert can reach every item that a scene may hold.
      joints = robot.limit(robot.inverse(x, y))
      reached = robot.forward(joints)
      np.testing.assert_allclose(reached, (x, y), atol=1e-9, err_msg=f'{name} at {x, y}')


def test_robots_match_their_embodiment_records():
  for name, robot in robots.ROBOTS.items():
    record = embodiments.EMBODIMENTS[f'tabletop_{name}']
    assert record.control_hz == robot.control_hz
    if name == 'human':
      # Human video shows the hand alone: what moved it is not recorded.
      assert not record.action
      assert not record.state
    else:
      assert (record.action_dim, record.proprio_dim) == (robot.action_dim, robot.proprio_dim)


def test_closed_effector_pushes_and_open_one_passes_over():
  for close in (True, False):
    table = world.World((world.Item('red', 'disc', 0.5, 0.5),), (0.3, 0.5), 0.045)
    table.step((0.3, 0.5), close, 0.2)
    for tip_x in (0.35, 0.4, 0.45, 0.5):
      table.step((tip_x, 0.5), close, 0.1)
    x, y = table.position(0)
    # Contact begins at 0.115 m (0.045 of the tip and 0.07 of the disc), so 0.2 m of travel to
    # x = 0.5 leaves the item at about 0.615 m.
    assert x == pytest.approx(0.615 if close else 0.5, abs=0.02)
    assert y == pytest.approx(0.5, abs=0.01)


def test_lifted_item_follows_the_tip_and_passes_over_others():
  table = world.World(
    (world.Item('red', 'disc', 0.3, 0.5), world.Item('blue', 'square', 0.5, 0.5)),
    (0.31, 0.5),
    0.045,
  )
  table.step((0.31, 0.5), True, 0.2)
  assert table.holding == 0
  for x in (0.4, 0.5, 0.6, 0.7):
    table.step((x, 0.5), True, 0.2)
  # It hangs 0.01 m left of the tip, as it was grasped; the other one was not touched on the way.
  np.testing.assert_allclose(table.position(0), (0.69, 0.5), atol=1e-6)
  np.testing.assert_allclose(table.position(1), (0.5, 0.5), atol=1e-3)
  table.step((0.7, 0.5), False, 0.2)
  assert table.holding is None


def test_walls_keep_items_on_the_table():
  table = world.World((world.Item('red', 'disc', 0.85, 0.5),), (0.7, 0.5), 0.045)
  table.step((0.7, 0.5), True, 0.2)
  for i in range(10):
    tip_x = min(0.7 + 0.03 * i, 0.95)
    table.step((tip_x, 0.5), True, 0.1)
  x, y = table.position(0)
  assert 0 < x < 1
  assert 0 < y < 1


def test_splits_hold_out_combinations_and_looks():
  def combinations(task, split):
    rng = np.random.default_rng(0)
    return {tasks.sample(task, rng, split, 1).combination for _ in range(150)}

  for task in tabletop.TASKS:
    seen, unseen = combinations(task, 'train'), combinations(task, 'unseen_task')
    assert seen
    assert unseen
    assert not seen & unseen
    # Only the combination is new, never the word.
    words_seen = {word for combination in seen for word in combination}
    words_unseen = {word for combination in unseen for word in combination}
    assert words_unseen <= words_seen

  train, unseen = render.looks('train'), render.looks('unseen_look')
  for field in ('table', 'texture', 'finish'):
    assert not {getattr(a, field) for a in train} & {getattr(a, field) for a in unseen}
  assert render.looks('unseen_task') == train


def test_held_out_rule_by_hand():
  # reach: (colour + 2 shape) mod 6 is 0, with red 0, purple 4, disc 0 and square 1. Datasets
  # made before depend on the rule.
  assert tabletop.held_out(('reach', 'red', 'disc'))
  assert tabletop.held_out(('reach', 'purple', 'square'))
  assert not tabletop.held_out(('reach', 'red', 'square'))
  assert tabletop.held_out(('sort', 'blue', 'yellow'))


@pytest.mark.parametrize('task', tabletop.TASKS)
def test_scenes_are_unambiguous_and_spaced(task):
  rng = np.random.default_rng(1)
  for _ in range(60):
    scenario = tasks.sample(task, rng, 'train', 2)
    targets, others = scenario.items[: scenario.targets], scenario.items[scenario.targets :]
    for other in others:
      clash = [t for t in targets if t.color == other.color]
      # Two of one colour only where the instruction tells them apart by their shape.
      assert not clash or (
        task == 'reach_shape'
        and clash[0].shape != other.shape
        and f'{clash[0].color} {clash[0].shape}' in scenario.instruction
      )

    # Metres: no two items touch, and no target is reached before the first step.
    places = [(item.x, item.y) for item in scenario.items]
    for a, b in itertools.combinations(places, 2):
      assert math.dist(a, b) >= 0.17
    for place in places[: scenario.targets]:
      assert math.dist(scenario.tip, place) > 0.249

    # The word tokenizer of the small models takes 16 words.
    words = scenario.instruction
    assert words == words.lower()
    assert all(target.color in words for target in targets)
    assert len(words.split()) <= 16


def test_a_drifting_target_moves_evenly_reflects_and_turns():
  one = drift.Drift((0.5, 0.5), seed=0)
  other = drift.Drift((0.5, 0.5), seed=0)
  places = [one.advance(0.1) for _ in range(1000)]
  # The way does not depend on the steps that it is taken in.
  for _ in range(400):
    other.advance(0.25)
  np.testing.assert_allclose(other.place, places[-1], atol=1e-9)
  places = np.asarray(places)
  assert places.min() >= 0.12
  assert places.max() <= 0.88
  steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
  # 0.15 m/s: shorter where it turned or came back within a step.
  np.testing.assert_allclose(np.median(steps), 0.015, atol=1e-9)
  assert steps.max() <= 0.015 + 1e-9
  turned = np.linalg.norm(np.diff(places, n=2, axis=0), axis=1) > 1e-9
  assert 40 < turned.sum() < 200


def test_a_target_drifts_as_fast_as_it_is_told_along_the_same_turns():
  env = lambda speed: tabletop.TabletopEnv(
    'disc', ('reach_moving',), view_size=8, conditions=tabletop.Conditions(drift_speed=speed)
  )
  slow, usual = env(0.05), env(drift.SPEED)
  for each in (slow, usual):
    each.reset(3)
  for _ in range(30):
    assert math.hypot(*slow.drift.velocity) == pytest.approx(0.05)
    np.testing.assert_allclose(np.abs(slow.drift.velocity), np.abs(usual.drift.velocity) / 3)
    for each in (slow, usual):
      each.step(np.zeros(3))
  with pytest.raises(ValueError, match=r'drift_speed=-0\.1 must be 0 m/s or more'):
    env(-0.1)


def test_what_drifts_must_be_followed_for_as_long_as_a_chunk():
  env = tabletop.TabletopEnv('disc', ('reach_moving',), view_size=8, max_distractors=0)
  env.reset(0)
  in_reach = 0
  while not env.success:
    # The tip is carried along; of the disc an action of 1 is 0.05 m.
    (x, y), (tip_x, tip_y) = env.drift.place, env.world.tip
    env.step(np.array([(x - tip_x) / 0.05, (y - tip_y) / 0.05, -1.0]))
    in_reach += tasks.satisfied(env.scenario, env.world)
  assert in_reach == 8


def test_an_expert_that_is_led_astray_says_so_and_comes_back():
  """So that training sees how to go on from what a robot was committed to, and was wrong."""
  env = tabletop.TabletopEnv('disc', ('reach_moving',), view_size=8, max_distractors=0)
  env.reset(1)
  astray = tabletop.Astray(longest_s=0.6, apart_s=1.6, error=0.1)
  act = tabletop.make_expert(env, 1, noise=0.0, astray=astray)
  distance = lambda: math.dist(env.world.tip, env.drift.place)
  led, away, back = [], [], []
  for step in range(400):
    before = distance()
    env.step(act())
    led.append(act.is_led)
    if step > 20:
      (away if act.is_led else back).append(distance() - before)
  lengths = [len(run) for run in ''.join('L' if is_led else ' ' for is_led in led).split()]
  assert set(lengths) <= set(range(1, 7))
  assert len(set(lengths)) > 3
  assert np.mean(away) > 0.005
  assert np.mean(back) < -0.001


def test_an_expert_is_led_astray_where_that_is_asked_for_alone():
  for task, astray in (('reach_moving', None), ('reach', tabletop.Astray())):
    env = tabletop.TabletopEnv('disc', (task,), view_size=8)
    env.reset(1)
    act = tabletop.make_expert(env, 1, astray=astray)
    for _ in range(40):
      env.step(act())
      assert not act.is_led


@pytest.mark.parametrize('name', tabletop.ROBOTS)
def test_a_state_is_foretold_as_it_comes(name):
  env = tabletop.TabletopEnv(name, ('reach_moving',), view_size=8)
  env.reset(3)
  actions = np.random.default_rng(0).uniform(-1.5, 1.5, (6, env.action_dim))
  told = env.foretell(actions)['proprio']
  for action in actions:
    seen = env.step(action)
  np.testing.assert_allclose(told, seen['proprio'], atol=1e-6)
  np.testing.assert_array_equal(env.foretell(actions[:0])['proprio'], seen['proprio'])


def test_nothing_touches_or_lifts_what_drifts():
  env = tabletop.TabletopEnv('disc', ('reach_moving',), view_size=8, max_distractors=0)
  env.reset(0)
  act = tabletop.make_expert(env, 0)
  for _ in range(30):
    action = act()
    action[2] = 1.0
    env.step(action)
    assert env.world.holding is None
    np.testing.assert_allclose(env.world.position(0), env.drift.place, atol=1e-12)
  assert env.success


def test_reach_any_offers_two_equal_choices_and_the_expert_takes_either():
  # Deliberately bimodal: a policy that learns the mean of the two goes between them.
  sides = set()
  for seed in range(12):
    env = tabletop.TabletopEnv('disc', ('reach_any',), view_size=8)
    env.reset(0)
    tip = env.world.tip
    left, right = env.world.position(0), env.world.position(1)
    assert math.dist(tip, left) == pytest.approx(math.dist(tip, right), abs=1e-9)
    assert left[0] < tip[0] < right[0]
    act = tabletop.make_expert(env, seed)
    goes_right = bool(act()[0] > 0)
    sides.add(goes_right)
  assert sides == {True, False}


@pytest.mark.parametrize('color', tabletop.COLORS)
@pytest.mark.parametrize('shape', tabletop.SHAPES)
def test_items_have_their_colour_in_both_views(color, shape):
  scenario = _scenario([world.Item(color, shape, 0.6, 0.3, 0.4)], tip=(0.5, 0.42))
  table = world.World(scenario.items, scenario.tip, 0.045)
  draw = render.Renderer(scenario, robots.ROBOTS['disc'], PLAIN)
  top = draw.image('top', 32, table, scenario.tip)
  # (0.6, 0.3) * 32 = column 19.2, row 9.6
  assert np.abs(top[9, 19].astype(int) - render.COLORS[color]).max() <= 12
  wrist = draw.image('wrist', 32, table, scenario.tip)
  # 80 pixels a metre: 0.1 m right and 0.12 m up of the centre.
  np.testing.assert_array_equal(wrist[16 - 10, 16 + 8], render.COLORS[color])
  np.testing.assert_array_equal(top[28, 4], (200, 200, 200))


def test_colours_are_far_apart_from_each_other_and_from_tables():
  # Of 255, in the channel that differs most.
  colors = [np.array(rgb) for rgb in render.COLORS.values()]
  for a, b in itertools.combinations(colors, 2):
    assert np.abs(a - b).max() > 90
  for look in render.looks('train'):
    for color in colors:
      assert np.abs(color - look.table).max() > 90


def test_zone_is_a_ring_of_its_colour():
  scenario = _scenario([], [tasks.Zone('green', 0.5, 0.5)], tip=(0.1, 0.1))
  table = world.World((), scenario.tip, 0.045)
  draw = render.Renderer(scenario, robots.ROBOTS['disc'], PLAIN)
  image = draw.image('top', 200, table, scenario.tip)
  tint = [int(0.65 * 200 + 0.35 * c) for c in render.COLORS['green']]
  # 200 pixels a metre: 0.11 m from the middle is on the ring, 0.15 m is outside the zone.
  np.testing.assert_array_equal(image[100, 100 + 22], render.COLORS['green'])
  np.testing.assert_array_equal(image[100, 100], tint)
  np.testing.assert_array_equal(image[100, 100 + 30], (200, 200, 200))


def test_robots_look_different():
  images = []
  for robot in robots.ROBOTS.values():
    scenario = _scenario([], tip=(0.4, 0.6))
    joints = robot.limit(robot.inverse(0.4, 0.6))
    table = world.World((), scenario.tip, 0.04)
    draw = render.Renderer(scenario, robot, PLAIN)
    images.append(draw.image('top', 32, table, joints))
  for a, b in itertools.combinations(images, 2):
    difference = np.abs(a.astype(int) - b).max(-1)
    # More than 15 of the 1024 pixels clearly differ.
    assert (difference > 40).sum() > 15


def test_views_have_the_asked_size():
  env = tabletop.TabletopEnv('cart', ('push',), view_size=48)
  observation = env.reset(0)
  assert observation['top'].shape == observation['wrist'].shape == (48, 48, 3)
  assert observation['proprio'].dtype == np.float32
  assert env.render(256).shape == (256, 256, 3)
  assert env.render(96, 'wrist').shape == (96, 96, 3)
  assert env.time_s == 0
  # 9 s at 5 Hz.
  assert env.max_steps == 45
  assert env.control_hz == 5


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('robot', ('reach',)), "embodiment='robot' must be one of"),
    (('disc', ('reach', 'juggle')), "task='juggle' must be one of"),
    (('disc', ()), 'tasks is empty'),
    (('disc', ('reach',), 'test'), "split='test' must be one of"),
    (('disc', ('reach',), 'train', 4), 'view_size=4'),
    (('disc', ('reach',), 'train', 32, 9), 'max_distractors=9'),
  ],
)
def test_bad_choices_are_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    tabletop.TabletopEnv(*arguments)


def test_bad_actions_are_errors():
  env = tabletop.TabletopEnv('disc', ('reach',))
  with pytest.raises(RuntimeError, match='reset'):
    env.step(np.zeros(3))
  env.reset(0)
  before = env.proprio
  with pytest.raises(ValueError, match=r'shape \(4,\); disc takes \(3,\)'):
    env.step(np.zeros(4))
  with pytest.raises(ValueError, match='not finite'):
    env.step(np.array([0, np.nan, 0]))
  with pytest.raises(ValueError, match="view='side'"):
    env.render(32, 'side')

  # A refused action moves nothing.
  np.testing.assert_array_equal(env.proprio, before)
  assert env.time_s == 0


def test_importing_the_world_needs_neither_jax_nor_tensorflow():
  # Builders start many processes of it, each of which would pay for the imports.
  code = (
    'import sys; import wam_jax.envs.tabletop; '
    'print([m for m in ("jax", "flax", "tensorflow") if m in sys.modules])'
  )
  done = programs.run_code(code)
  assert done.stdout.strip() == '[]', done.stderr
