"""The agent between raw observations and raw actions: what it tells the policy and gives back."""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib

DISC = embodiments.get('tabletop_disc')


class RecordingPolicy:
  """In place of the compiled policy: keeps what it is given, and gives one action everywhere."""

  frames_per_call = 1

  def tell(self, record, instruction):
    return np.int32([len(record.instruct(instruction)), 0])

  def reset(self, task, frame_BIJ3, seed):
    self.task = task

  def step(self, observation, prefix=None):
    self.observation = observation
    self.prefix = prefix
    action_BAU = np.full(self.task.action_mask_BAU.shape, 0.5, np.float32)
    return action_BAU, 255 - observation.frames_BRIJ3


def test_raw_observations_in_and_raw_actions_out():
  """State and actions are half as large for the model as for the robot."""
  # Of -2 and 2, which become -1 and 1.
  quantiles = [normalize.Quantiles(np.full(n, -2.0), np.full(n, 2.0)) for n in (4, 3)]
  robot = robot_lib.Robot(id=2, record=DISC, statistics=normalize.Statistics(*quantiles, steps=9))
  # Wider and longer than the robot has use for, so that padding shows.
  model = cfg.ModelConfig(actions_per_chunk=10, action_dim=5, proprio_dim=6)
  policy = RecordingPolicy()
  agent = agent_lib.ModelAgent(policy, model, robot)
  frames_BRIJ3 = np.arange(2 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 4, 3)

  agent.reset(['Reach it', 'go'], frames_BRIJ3[:, 0], seed=0)
  actions, imagined = agent.act(frames_BRIJ3, np.float32([[1, 0, -1, 0.5], [0, 0, 0, 2]]))

  words = [robot.instruct(text) for text in ('Reach it', 'go')]
  np.testing.assert_array_equal(policy.task.prompt_ids_BP, [[len(text), 0] for text in words])
  np.testing.assert_array_equal(policy.task.embodiment_B, [2, 2])
  mask_AU = np.zeros((10, 5), bool)
  mask_AU[:8, :3] = True  # Eight steps of 0.1 s, three dimensions.
  np.testing.assert_array_equal(policy.task.action_mask_BAU, [mask_AU, mask_AU])
  want = [[0.5, 0, -0.5, 0.25, 0, 0], [0, 0, 0, 1, 0, 0]]
  np.testing.assert_array_equal(policy.observation.proprio_BX, want)
  np.testing.assert_array_equal(policy.observation.frames_BRIJ3, frames_BRIJ3)
  # 0.5 of the model, twice as large for the robot, without padding.
  np.testing.assert_array_equal(actions, np.ones((2, 8, 3)))
  np.testing.assert_array_equal(imagined, 255 - frames_BRIJ3)


def test_robots_that_do_not_wait_say_what_they_are_committed_to():
  """In their own units, of different lengths, and get it back with the steps beyond the chunk."""
  quantiles = [normalize.Quantiles(np.full(n, -2.0), np.full(n, 2.0)) for n in (4, 3)]
  statistics = normalize.Statistics(*quantiles, steps=9)
  robot = robot_lib.Robot(id=2, record=DISC, statistics=statistics, action_overlap=2)
  model = cfg.ModelConfig(actions_per_chunk=10, action_overlap=2, action_dim=5, proprio_dim=6)
  policy = RecordingPolicy()
  agent = agent_lib.ModelAgent(policy, model, robot)
  assert agent.overlap == 2
  frames_BRIJ3 = np.zeros((2, 2, 4, 4, 3), np.uint8)
  agent.reset(['go', 'go'], frames_BRIJ3[:, 0], seed=0)
  mask_AU = np.zeros((12, 5), bool)
  mask_AU[:10, :3] = True  # Eight steps and the overlap, three dimensions.
  np.testing.assert_array_equal(policy.task.action_mask_BAU, [mask_AU, mask_AU])

  prefixes = [np.float32([[0.1, -1, 1.7]]), np.zeros((0, 3), np.float32)]
  actions, _ = agent.act_on(frames_BRIJ3, np.zeros((2, 4), np.float32), prefixes)
  np.testing.assert_array_equal(policy.prefix.length_B, [1, 0])
  np.testing.assert_allclose(policy.prefix.action_BDU[0], [[0.05, -0.5, 0.85, 0, 0], [0] * 5])
  want = np.ones((2, 10, 3), np.float32)
  want[0, 0] = prefixes[0]
  np.testing.assert_array_equal(actions, want)
  # One that waits gets its chunk.
  actions, _ = agent.act(frames_BRIJ3, np.zeros((2, 4), np.float32))
  assert actions.shape == (2, 8, 3)
  assert policy.prefix is None
  with pytest.raises(ValueError, match='1 prefixes were given for 2 robots'):
    agent.act_on(frames_BRIJ3, np.zeros((2, 4), np.float32), prefixes[:1])


@pytest.mark.parametrize(
  'proprio_BX, said',
  [
    # Clipped to the range of training, this would be a state like others.
    (np.float32([[0, np.inf, 0, 0]]), r'proprio_BX is not finite at \[\(0, 1\)\]'),
    (np.float32([[0, 0, np.nan, 0]]), r'proprio_BX is not finite at \[\(0, 2\)\]'),
    (np.float64([[0, 0, 0, 1e300]]), r'proprio_BX is not finite at \[\(0, 3\)\]'),
    (np.zeros((1, 3)), r"of 'tabletop_disc' has shape \(1, 3\), expected \(robots, 4\)"),
    (np.zeros((1, 8)), r'shape \(1, 8\), expected'),
    (np.zeros(4), r'shape \(4,\), expected'),
    (None, r'shape \(\), expected'),
    ([['a', 0, 0, 0]], 'is no array of numbers'),
  ],
)
@pytest.mark.filterwarnings('ignore:overflow')
def test_a_state_that_is_none_of_the_robot_is_refused_before_the_step(proprio_BX, said):
  quantiles = [normalize.Quantiles(np.full(n, -2.0), np.full(n, 2.0)) for n in (4, 3)]
  robot = robot_lib.Robot(id=0, record=DISC, statistics=normalize.Statistics(*quantiles, steps=9))
  model = cfg.ModelConfig(actions_per_chunk=8, action_dim=3, proprio_dim=4)
  policy = RecordingPolicy()
  agent = agent_lib.ModelAgent(policy, model, robot)
  frames_BRIJ3 = np.zeros((1, 2, 4, 4, 3), np.uint8)
  agent.reset(['go'], frames_BRIJ3[:, 0], seed=0)
  with pytest.raises(ValueError, match=f'The observation was not used.*{said}'):
    agent.act(frames_BRIJ3, proprio_BX)
  assert not hasattr(policy, 'observation')


def test_latencies_are_summed_up_by_percentiles():
  assert agent_lib.latency_summary([0.010, 0.020, 0.030]) == {
    'p50_ms': 20.0,
    'p95_ms': 29.0,
    'calls': 3,
  }
  # An episode that ends before its first call has no percentiles.
  assert agent_lib.latency_summary([])['calls'] == 0


def test_pixels_are_rounded_and_clipped():
  got = agent_lib.to_uint8(np.float32([-1.5, -1, 0, 0.5, 1, 2]))
  np.testing.assert_array_equal(got, [0, 0, 128, 191, 255, 255])
