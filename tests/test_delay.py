"""Which action is executed at which control step while the policy takes its time, by hand."""

from __future__ import annotations

import types

import numpy as np
import pytest

from wam_jax.data import embodiments
from wam_jax.envs import tabletop
from wam_jax.evaluation import delay

# 8 control steps a chunk, a frame every 4.
DISC = embodiments.get('tabletop_disc')
STILL = 0


class Rollout:
  """A robot whose frame shows its control step and that keeps what it was told to do."""

  def __init__(self, steps):
    self._left = steps
    self.episode = types.SimpleNamespace(instruction='go', seed=0)
    self.proprio_X = np.zeros(4, np.float32)
    self.frame = np.zeros((1, 1, 3), np.uint8)
    self.done = []
    self.is_recorded = True
    self.imagined = {}
    self.begun = []

  @property
  def is_over(self):
    return len(self.done) == self._left

  def step(self, action_U, looks):
    assert looks
    self.done.append(float(action_U[0]))
    self.frame = self.frame + 1
    self.proprio_X = self.proprio_X + 1

  def begin_chunk(self):
    if not self.is_over:
      self.begun.append(len(self.done))

  def foretell(self, action_DU):
    return self.proprio_X + len(action_DU)

  def keep_imagined(self, frames):
    self.imagined = {number: int(frame_IJ3[0, 0, 0]) for number, frame_IJ3 in frames.items()}


class Agent:
  """Step s of the chunk that is asked for at control step t is 100 + t + s / 100; it imagines two
  frames, 10 t + 1 and 10 t + 2.
  """

  frames_per_call = 3
  overlap = 4

  def __init__(self):
    self.windows = []
    self.prefixes = []
    self.amended = []
    self.foretold = []

  def reset(self, instructions, composite_BIJ3, seed):
    self.reset_with = (instructions, composite_BIJ3.shape, seed)

  def act(self, frames_BRIJ3, proprio_BX, steps=8):
    asked = proprio_BX[0, 0]
    self.windows.append(frames_BRIJ3[0, :, 0, 0, 0].tolist())
    chunk_SU = 100 + asked + np.arange(steps)[:, None] / 100 + np.zeros((steps, 3))
    imagined_RIJ3 = np.full((2, 1, 1, 3), 10 * asked + [[[[1]]], [[[2]]]])
    return np.stack([chunk_SU] * len(proprio_BX)), np.stack([imagined_RIJ3] * len(proprio_BX))

  def act_on(self, frames_BRIJ3, proprio_BX, prefixes):
    self.prefixes.append(prefixes[0][:, 0].tolist())
    action_BSU, imagined_BRIJ3 = self.act(frames_BRIJ3, proprio_BX, steps=8 + self.overlap)
    action_BSU[:, : len(prefixes[0])] = prefixes
    return action_BSU, imagined_BRIJ3

  def act_ahead(self, frames_BRIJ3, proprio_BX):
    self.foretold.append(proprio_BX[0, 0])
    return self.act(frames_BRIJ3, proprio_BX - 3)

  def amend(self, frames_BRIJ3):
    self.amended.append(frames_BRIJ3[0, :, 0, 0, 0].tolist())


def run(when, steps, delay_steps, execute=None):
  agent, rollouts = Agent(), [Rollout(steps), Rollout(steps - 2)]
  timing = delay.Choice(when, delay_steps, execute).complete(DISC, Agent.overlap)
  course = delay.Course(agent, rollouts, DISC, timing)
  course.run()
  assert rollouts[1].done == rollouts[0].done[:-2]
  assert rollouts[0].begun == course.begun
  return agent, course, rollouts[0].done


def chunk(asked, first, last):
  return [100 + asked + s / 100 for s in range(first, last)]


def test_without_a_delay_nothing_is_lost():
  agent, course, done = run('wait', 16, 0)
  np.testing.assert_allclose(done, [*chunk(0, 0, 8), *chunk(8, 0, 8)])
  assert course.begun == [0, 8]
  # Before the episode all was as at its start.
  assert agent.windows == [[0, 0, 0], [0, 4, 8]]
  assert agent.reset_with == (['go', 'go'], (2, 1, 1, 3), 0)
  *_, naive = run('naive', 12, 0)
  np.testing.assert_allclose(naive, [*chunk(0, 0, 4), *chunk(4, 0, 4), *chunk(8, 0, 4)])


@pytest.mark.parametrize(
  ('when', 'delay_steps', 'steps', 'imagined'),
  [
    ('wait', 0, 16, {1: 1, 2: 2, 3: 81, 4: 82}),
    # What goes on into the next chunk is shown until that takes over.
    ('naive', 0, 12, {1: 1, 2: 41, 3: 81, 4: 82}),
    # Of the time at which the chunk is executed.
    ('wait', 4, 20, {2: 1, 3: 2, 5: 121, 6: 122}),
    ('lookahead', 4, 20, {2: 1, 3: 2, 4: 91, 5: 92}),
  ],
)
def test_what_was_imagined_is_kept_by_its_time(when, delay_steps, steps, imagined):
  agent, rollout = Agent(), Rollout(steps)
  timing = delay.Choice(when, delay_steps).complete(DISC, Agent.overlap)
  delay.Course(agent, [rollout], DISC, timing).run()
  assert rollout.imagined == imagined


def test_a_delay_that_an_episode_is_over_before_is_refused():
  """Of whatever task lasts shortest."""
  env = tabletop.TabletopEnv('disc', ('reach', 'place'), view_size=8)
  longest, shortest = env.max_steps, round(tabletop.TIME_LIMIT_S['reach'] * env.control_hz)
  assert shortest < longest
  delay.check_episodes(0, env, range(10))
  delay.check_episodes(shortest - 1, env, range(10))
  with pytest.raises(ValueError, match=f'over after {shortest}, .* take {shortest - 1} at most'):
    delay.check_episodes(shortest, env, range(10))


def test_who_waits_stands_still_and_then_does_all():
  _, course, done = run('wait', 22, 3)
  still = [STILL] * 3
  np.testing.assert_allclose(done, [*still, *chunk(0, 0, 8), *still, *chunk(11, 0, 8)])
  assert course.held == 3


@pytest.mark.parametrize('when', ['naive', 'blend'])
def test_who_goes_on_leaves_out_what_is_past(when):
  """Of the first chunk nothing, since the robot stood still for it; with a delay of half a chunk
  there is nothing that both have, and so no blending.
  """
  agent, course, done = run(when, 16, 4)
  want = [*[STILL] * 4, *chunk(0, 0, 8), *chunk(8, 4, 8)]
  np.testing.assert_allclose(done, want)
  assert course.begun == [4, 12]
  assert course.held == 0
  assert agent.windows == [[0, 0, 0], [0, 4, 8], [4, 8, 12]]


def test_blending_goes_from_the_old_to_the_new():
  *_, done = run('blend', 9, 2)
  # Asked for at 6, there at 8: the first chunk has steps 6 and 7 left, that of 6 begins with its
  # steps 2 and 3.
  first = [*[STILL] * 2, *chunk(0, 0, 6)]
  np.testing.assert_allclose(done[:8], first)
  old, new = chunk(0, 6, 8), chunk(6, 2, 4)
  np.testing.assert_allclose(done[8], 2 / 3 * old[0] + 1 / 3 * new[0])


def test_beyond_half_a_chunk_the_robot_runs_out_and_stands():
  _, course, done = run('naive', 22, 6)
  # At 12 two steps are left; the chunk is there at 18, and goes on with its third.
  want = [*[STILL] * 6, *chunk(0, 0, 8), *[STILL] * 4, *chunk(12, 2, 6)]
  np.testing.assert_allclose(done, want)
  assert course.held == 4


def test_a_prefix_is_what_will_be_executed():
  agent, _, done = run('rtc', 16, 4)
  assert agent.prefixes[0] == []
  np.testing.assert_allclose(agent.prefixes[1], chunk(0, 4, 8))
  np.testing.assert_allclose(done, [*[STILL] * 4, *chunk(0, 0, 8), *chunk(8, 4, 8)])
  np.testing.assert_allclose(agent.prefixes[2], chunk(8, 4, 8))


def test_who_looks_ahead_loses_no_step_and_is_told_what_will_be():
  agent, course, done = run('lookahead', 24, 3)
  still = [STILL] * 3
  # Asked for at 8 and 16, three steps before the chunks end.
  np.testing.assert_allclose(done, [*still, *chunk(0, 0, 8), *chunk(8, 0, 8), *chunk(16, 0, 5)])
  assert course.begun == [3, 11, 19]
  assert course.held == 0
  # Of the frames at 3, 7 and 11 the last is to come, which then is there; states count up.
  assert agent.windows == [[0, 0, 0], [3, 7], [11, 15]]
  assert agent.amended == [[0, 0, 3], [3, 7, 11], [11, 15, 19]]
  assert agent.foretold == [11, 19]


def test_timings_that_cannot_be():
  with pytest.raises(ValueError, match='execute=2 control steps must be at least 4'):
    delay.Choice('naive', 4, 2).complete(DISC)
  with pytest.raises(ValueError, match='at most the 8 of a chunk'):
    delay.Choice('naive', 9).complete(DISC)
  with pytest.raises(ValueError, match='delay=9 control steps must be at most the 8 of a chunk'):
    delay.Choice('lookahead', 9).complete(DISC)
  with pytest.raises(ValueError, match='to look ahead execute all 8 steps'):
    delay.Choice('lookahead', 2, 4).complete(DISC)
  with pytest.raises(ValueError, match='delay of 5 .* prefix of as many, .* have 4'):
    delay.Choice('rtc', 5).complete(DISC, Agent.overlap)
  with pytest.raises(ValueError, match='when=rtc with a delay of 0 .* have 0'):
    delay.Choice('rtc').complete(DISC)
  assert delay.Choice(None, 3).complete(DISC) == delay.Timing('wait', 3, 8)


def test_jumps_are_told_apart_where_a_chunk_takes_over():
  """Actions of two robots along one axis; the second robot's episode is over after step 3."""

  def acted(a, b, is_active_b=True, is_held=False):
    action_BU = np.array([[a, 0.0], [b, 0.0]])
    return delay.Acted(action_BU, np.array([True, is_active_b]), is_held)

  course = types.SimpleNamespace(
    begun=[1, 3],
    acted=[
      acted(0, 0, is_held=True),
      acted(1, 1),
      acted(3, 2),
      acted(7, 2.5),
      acted(8, 9, is_active_b=False),
    ],
  )
  at_joints, inside = delay.collect_jumps([course])
  # What began after standing still is no joint.
  assert at_joints == [4.0, 0.5]
  assert inside == [2.0, 1.0, 1.0]
