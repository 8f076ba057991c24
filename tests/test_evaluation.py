"""Closed loop with a known failure and a known success, intervals and errors by hand, pictures
decoded again.
"""

from __future__ import annotations

import functools
import math

import imageio.v2 as imageio
import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.envs import tabletop
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import intervals
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures

DISC = embodiments.get('tabletop_disc')
KNOWN = robot_lib.Robot(0, DISC, None)
make_env = functools.partial(tabletop.TabletopEnv, 'disc', ('reach',))


@pytest.mark.parametrize(
  ('successes', 'trials', 'want'),
  [
    # (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96, z^2 = 3.8416.
    (5, 10, (0.2366, 0.7634)),  # (0.69208 -+ 1.96 * 0.186029) / 1.38416
    (0, 10, (0.0, 0.2775)),  # 2 * 0.19208 / 1.38416
    (10, 10, (0.7225, 1.0)),
    (81, 100, (0.7222, 0.8749)),
    (0, 0, (0.0, 1.0)),
  ],
)
def test_wilson(successes, trials, want):
  np.testing.assert_allclose(intervals.compute_wilson(successes, trials), want, atol=5e-5)


class ExpertAgent:
  """The scripted expert, on its own copies of the environments; they are deterministic, so they
  stay in step.
  """

  def __init__(self, seeds, batch):
    self._batches = [seeds[i : i + batch] for i in range(0, len(seeds), batch)]
    self._batch = batch
    self.resets = []

  def reset(self, instructions, composite_BIJ3, seed):
    chosen = self._batches[len(self.resets)]
    self.resets.append((list(instructions), composite_BIJ3, seed))
    self._envs = [make_env() for _ in range(self._batch)]
    self._act = []
    missing = self._batch - len(chosen)
    for env, s in zip(self._envs, [*chosen, *[chosen[-1]] * missing]):
      env.reset(s)
      self._act.append(tabletop.make_expert(env, seed=s, noise=0.0))

  def act(self, frames_BRIJ3, proprio_BX):
    np.testing.assert_array_equal(proprio_BX, [env.proprio for env in self._envs])
    actions = np.zeros((self._batch, DISC.steps_per_chunk, DISC.action_dim))
    for i, (env, act) in enumerate(zip(self._envs, self._act)):
      for s in range(DISC.steps_per_chunk):
        actions[i, s] = act()
        env.step(actions[i, s])
    return actions, 255 - frames_BRIJ3


@pytest.fixture(scope='module')
def held():
  """Three episodes in which nothing moves, the first recorded."""
  agent = baselines.HoldAgent(DISC)
  recording = closed_loop.Recording(episodes=1, scene_size=64)
  return closed_loop.run_episodes(agent, KNOWN, make_env, range(3), batch=3, recording=recording)


def run_expert(seeds, **kwargs):
  agent = ExpertAgent(seeds, batch=2)
  return agent, closed_loop.run_episodes(agent, KNOWN, make_env, seeds, batch=2, **kwargs)


@pytest.fixture(scope='module')
def solved():
  """Three episodes of the expert, the first recorded; its imagined frames are negatives of those it
  saw last.
  """
  recording = closed_loop.Recording(episodes=1, scene_size=64)
  _, episodes = run_expert(range(9, 12), recording=recording)
  return episodes


def test_doing_nothing_fails(held):
  assert [e.success for e in held] == [False] * 3
  # A failure takes all the time there is.
  np.testing.assert_allclose([e.seconds for e in held], tabletop.TIME_LIMIT_S['reach'])


def test_the_expert_succeeds(solved):
  assert [e.success for e in solved] == [True] * 3
  assert all(0 < e.seconds < tabletop.TIME_LIMIT_S['reach'] for e in solved)


def test_every_seed_is_run_once_and_in_order():
  """Three seeds in batches of two: the last is filled up, and that repeat is dropped."""
  reports = []
  agent, episodes = run_expert(
    range(5, 8), on_progress=lambda episodes: reports.append(len(episodes))
  )
  assert [e.seed for e in episodes] == [5, 6, 7]
  assert reports == [2, 3]
  env = make_env()
  for e in episodes:
    env.reset(e.seed)
    assert (e.task, e.instruction) == ('reach', env.instruction)
  # Once a batch, with the first seed of it.
  assert [seed for *_, seed in agent.resets] == [5, 7]
  assert agent.resets[1][0] == [episodes[2].instruction] * 2
  assert agent.resets[1][1].shape == (2, 32, 48, 3)


def test_records_of_a_failure(held):
  """Forty steps in five chunks of eight; a frame of the model every fourth; nobody imagined
  anything.
  """
  e = held[0]
  assert (len(e.scene), len(e.seen), len(e.imagined)) == (41, 11, 0)
  assert (len(e.asked), len(e.done)) == (40, 40)
  assert e.scene[0].shape == (64, 64, 3)
  assert e.seen[0].shape == (32, 48, 3)
  assert not held[1].scene
  assert not held[1].asked
  # Nothing moved, so every picture is the first.
  assert all(np.array_equal(picture, e.scene[0]) for picture in e.scene)
  assert all(np.array_equal(frame, e.seen[0]) for frame in e.seen)


def test_records_of_a_success_stop_with_its_chunk(solved):
  e = solved[0]
  chunks = math.ceil(e.seconds * DISC.control_hz / DISC.steps_per_chunk)
  assert (len(e.scene), len(e.seen), len(e.imagined), len(e.asked)) == (
    1 + 8 * chunks,
    1 + 2 * chunks,
    2 * chunks,
    8 * chunks,
  )
  # Imagined frame k is for the moment of seen[1 + k]; here it inverts what came before.
  for k in range(2 * chunks):
    np.testing.assert_array_equal(e.imagined[k], 255 - e.seen[max(0, k - 1)])
  assert np.any(e.seen[-1] != e.seen[0])


def test_actions_beyond_the_limits_are_recorded_as_asked_and_as_clipped():
  # Actions of the tabletop are between -1 and 1.
  class Wild(baselines.HoldAgent):
    def act(self, frames_BRIJ3, proprio_BX):
      return np.full((self._batch, *self._shape), 3.0), None

  recording = closed_loop.Recording(episodes=1, scene_size=16)
  (e,) = closed_loop.run_episodes(Wild(DISC), KNOWN, make_env, [0], batch=1, recording=recording)
  np.testing.assert_array_equal(e.asked, np.full((40, 3), 3.0))
  np.testing.assert_array_equal(e.done, np.ones((40, 3)))


def test_film_strip(tmp_path, solved):
  """Columns of 3 x 3 pixel squares: what was seen above what was imagined, a blank column after
  each.
  """
  e = solved[0]
  pictures.save_film_strip(tmp_path / 'strip.png', e.seen[1:], e.imagined, 'title', rows=96, most=3)
  strip = imageio.imread(tmp_path / 'strip.png')
  # Title, seen, gap, imagined; three frames of 48 columns and a blank one, three pixels each.
  assert strip.shape == (22 + 96 + 4 + 96, 3 * 3 * 49, 3)
  assert strip[:22].min() < 100  # The title is written.
  column = strip[22:, 147 : 2 * 147]
  np.testing.assert_array_equal(column[:96:3, :144:3], e.seen[2])
  np.testing.assert_array_equal(column[100::3, :144:3], e.imagined[1])
  np.testing.assert_array_equal(column[:, 144:], 255)


@pytest.mark.filterwarnings('ignore:os.fork')  # The child runs the decoder, not JAX.
def test_video(tmp_path, solved):
  e = solved[0]
  pictures.save_video(tmp_path / 'episode.mp4', e, DISC, 'title')
  with imageio.get_reader(tmp_path / 'episode.mp4') as reader:
    frames = np.stack([np.asarray(frame) for frame in reader])
    assert reader.get_meta_data()['fps'] == DISC.control_hz
  assert frames.shape == (len(e.scene), 22 + 64, 64 + 2 * 96 + 18, 3)
  # Panels: scene, seen, imagined; compressed, so close on average only.
  last = frames[-1, 22:].astype(float)
  assert np.abs(last[:, :64] - e.scene[-1]).mean() < 12
  assert np.abs(last[:, 70:166] - pictures.enlarge(e.seen[-1], 64)).mean() < 12
  assert np.abs(last[:, 172:268] - pictures.enlarge(e.imagined[-1], 64)).mean() < 12


def test_action_plot(tmp_path, solved):
  done = np.stack(solved[0].done)
  actions = pictures.ActionPair(predicted=done + 0.5, executed=done, names=['x', 'y', 'grip'])
  pictures.save_action_plot(tmp_path / 'actions.png', actions, DISC, 'title')
  plot = imageio.imread(tmp_path / 'actions.png')[..., :3].astype(int)
  assert plot.shape == (round(110 * (1.6 * 3 + 0.8)), 880, 3)
  orange = [255, 127, 14]
  blue = [98, 160, 203]  # At 70 %.
  # Three lines across each.
  for color in (orange, blue):
    assert (np.abs(plot - color).max(-1) < 30).sum() > 1000


def tiny_forecast():
  """Two chunks of one frame of one pixel, two actions of two dimensions each; the last chunk is
  outside the episode.
  """
  real = np.zeros((1, 4, 2), np.float32)
  mask = np.bool_([[[1, 0], [1, 0], [1, 1], [0, 0]]])
  predicted = np.float32([[[0.1, 9], [0.2, 9], [-0.3, 0.4], [9, 9]]])
  held = np.float32([[[1, 9], [1, 9], [1, -1], [9, 9]]])
  pixel = lambda *values: np.repeat(np.uint8(values)[None, :, None, None, None], 3, -1)
  batch = types.Batch(
    frames_BRIJ3=pixel(100, 110, 140),
    action_BAU=real,
    action_mask_BAU=mask,
    proprio_BQX=np.zeros((1, 2, 3)),
    chunk_mask_BQ=np.bool_([[1, 0]]),
    prompt_ids_BP=None,
    embodiment_B=None,
    sample_B2=None,
  )
  return open_loop.Forecast(predicted, held, pixel(112, 255), batch)


def test_open_loop_summary_by_hand():
  f = tiny_forecast()
  whole = f.batch.replace(chunk_mask_BQ=np.bool_([[1, 1]]))
  both = open_loop.Forecast(f.action_BAU, f.hold_BAU, f.frames_BRIJ3, whole)
  got = open_loop.summarize([f])
  assert got['windows'] == 1
  np.testing.assert_allclose(got['action_error'], (0.1 + 0.2 + 0.3 + 0.4) / 4, rtol=1e-6)
  np.testing.assert_allclose(got['action_error_hold'], 1.0)
  db = lambda mean_square: 10 * math.log10(255**2 / mean_square)
  np.testing.assert_allclose(got['video_psnr_db'], db(2**2))  # 112 for 110.
  np.testing.assert_allclose(got['video_psnr_db_still'], db(10**2))  # Frame 0 stays: 100 for 110.
  # With the second chunk, whose still is the real frame 1: 110 for 140; the model says 255.
  got = open_loop.summarize([f, both])
  assert got['windows'] == 2
  np.testing.assert_allclose(got['video_psnr_db'], db((2**2 + 2**2 + 115**2) / 3))
  np.testing.assert_allclose(got['video_psnr_db_still'], db((10**2 + 10**2 + 30**2) / 3))


class RecordingPolicy:
  """In place of the compiled policy: keeps what it is given and answers with the number of the
  call.
  """

  def reset(self, task, frame_BIJ3, seed):
    self.task = task
    self.observations = []

  def step(self, observation):
    self.observations.append(observation)
    call = len(self.observations)
    action_BAU = np.full(self.task.action_mask_BAU.shape, call, np.float32)
    imagined_BRIJ3 = np.full(observation.frames_BRIJ3.shape, call, np.uint8)
    return action_BAU, imagined_BRIJ3


def test_forecaster_shows_the_real_past_of_each_chunk():
  """Bridge: two frames a chunk; its gripper holds at the state's value, which statistics map
  elsewhere.
  """
  bridge = embodiments.get('bridge_widowx')
  ones = np.ones(7, np.float32)
  statistics = normalize.Statistics(
    normalize.Quantiles(-ones, ones), normalize.Quantiles(-2 * ones, 2 * ones), 9
  )
  model = cfg.ModelConfig(
    actions_per_chunk=5, action_dim=8, proprio_dim=9, max_chunks=2, frames_per_chunk=1
  )
  policy = RecordingPolicy()
  forecaster = open_loop.Forecaster(policy, model, [robot_lib.Robot(3, bridge, statistics)], seed=0)
  frames = np.broadcast_to(np.arange(5, dtype=np.uint8)[None, :, None, None, None], (1, 5, 4, 4, 3))
  proprio_BQX = np.zeros((1, 2, 9), np.float32)
  # The gripper, at the start of either chunk.
  proprio_BQX[0, :, 6] = 0.5, 0.8
  forecast = forecaster(
    types.Batch(
      frames_BRIJ3=frames,
      action_BAU=np.zeros((1, 10, 8)),
      action_mask_BAU=None,
      proprio_BQX=proprio_BQX,
      chunk_mask_BQ=None,
      prompt_ids_BP=np.zeros((1, 4)),
      embodiment_B=np.int32([3]),
      sample_B2=None,
    )
  )
  shown = [o.frames_BRIJ3[0, :, 0, 0, 0] for o in policy.observations]
  np.testing.assert_array_equal(shown, [[0, 0], [1, 2]])
  grippers = [o.proprio_BX[0, 6] for o in policy.observations]
  np.testing.assert_array_equal(grippers, np.float32([0.5, 0.8]))
  mask_AU = np.zeros((5, 8), bool)
  mask_AU[:4, :7] = True  # Four steps of 0.2 s, seven dimensions.
  np.testing.assert_array_equal(policy.task.action_mask_BAU[0], mask_AU)
  np.testing.assert_array_equal(policy.task.embodiment_B, [3])
  np.testing.assert_array_equal(forecast.action_BAU[0, :, 0], [1] * 5 + [2] * 5)
  np.testing.assert_array_equal(forecast.frames_BRIJ3[0, :, 0, 0, 0], [1, 1, 2, 2])
  want = np.zeros((10, 8), np.float32)
  # Half as wide in units of the action.
  want[:5, 6] = 0.5 / 2
  want[5:, 6] = 0.8 / 2
  np.testing.assert_allclose(forecast.hold_BAU[0], want, atol=1e-7)
