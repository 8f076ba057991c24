"""Closed loop with a known failure and a known success, intervals and errors by hand, pictures
decoded again.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
import resource

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image
from PIL import ImageSequence

from tests import videos
from wam_jax import config as cfg
from wam_jax import drawing
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import tabletop
from wam_jax.evaluation import baselines
from wam_jax.evaluation import closed_loop
from wam_jax.evaluation import delay
from wam_jax.evaluation import film
from wam_jax.evaluation import intervals
from wam_jax.evaluation import open_loop
from wam_jax.evaluation import pictures
from wam_jax.evaluation import recorded
from wam_jax.evaluation import run

ROOT = pathlib.Path(__file__).parents[1]
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
  return closed_loop.run_episodes(
    closed_loop.in_turn(agent), KNOWN, make_env, range(3), batch=3, recording=recording
  )


def run_expert(seeds, **kwargs):
  agent = ExpertAgent(seeds, batch=2)
  return agent, closed_loop.run_episodes(
    closed_loop.in_turn(agent), KNOWN, make_env, seeds, batch=2, **kwargs
  )


@pytest.fixture(scope='module')
def solved():
  """Three episodes of the expert, the first recorded; its imagined frames are negatives of those it
  saw last.
  """
  recording = closed_loop.Recording(episodes=1, scene_size=64)
  _, episodes = run_expert(range(9, 12), recording=recording)
  return episodes


@pytest.fixture(scope='module')
def shown():
  """An episode of the expert, large enough for its film."""
  recording = closed_loop.Recording(episodes=1, scene_size=96)
  _, episodes = run_expert(range(9, 10), recording=recording)
  return episodes[0]


def test_doing_nothing_fails(held):
  assert [e.success for e in held] == [False] * 3
  # A failure takes all the time there is.
  np.testing.assert_allclose([e.seconds for e in held], tabletop.TIME_LIMIT_S['reach'])


def test_the_expert_succeeds(solved):
  assert [e.success for e in solved] == [True] * 3
  assert all(0 < e.seconds < tabletop.TIME_LIMIT_S['reach'] for e in solved)


def test_the_expert_of_a_world_succeeds_in_the_scenes_of_the_policy():
  """With pictures of what it sees, and none of what it imagines; a world serves several batches."""
  worlds_made = []
  recording = closed_loop.Recording(episodes=1, scene_size=16)
  episodes = closed_loop.run_episodes(
    baselines.play_expert,
    KNOWN,
    lambda: worlds_made.append(make_env()) or worlds_made[-1],
    range(3),
    batch=2,
    recording=recording,
  )
  assert [(e.seed, e.success) for e in episodes] == [(0, True), (1, True), (2, True)]
  assert len(worlds_made) == 2
  steps = round(episodes[0].seconds * DISC.control_hz)
  first = episodes[0]
  assert (len(first.scene), len(first.done), len(first.imagined)) == (steps + 1, steps, 0)
  assert len(first.seen) == 1 + steps // DISC.stride
  assert not episodes[1].scene


def make_name(config=cfg.TrainConfig(), **given):
  options = run.Options('workdir', **given)
  chosen = run._override(config, options)
  subject = run._Subject(config, chosen, None, {}, step=7, datasets=None, programs=None)
  return run._make_name(options, subject)


FLASH = cfg.TrainConfig(
  model=cfg.ModelConfig(video_sees='video'),
  flow=cfg.FlowConfig(video_hidden=0.2),
  sample=cfg.SampleConfig(steps=4, evaluate_steps=(0, 2)),
)


@pytest.mark.parametrize(
  'given, name',
  [
    ({}, 'model_joint4_train_step7'),
    (dict(policy='hold', episodes=100, batch=20), 'hold_train_step7'),
    # As the config has it, and other choices that end in the same.
    (dict(guidance_scale=1.0, solver='euler', steps=4), 'model_joint4_train_step7'),
    (dict(episodes=5), 'model_joint4_train_step7_episodes5'),
    (dict(episodes=5, batch=9), 'model_joint4_train_step7_episodes5'),
    (dict(policy='hold', timing=delay.Choice('naive', 4)), 'hold_naive4_train_step7'),
  ],
)
def test_the_place_of_an_evaluation_is_called_by_what_is_chosen(given, name):
  assert make_name(**given) == name


def test_evaluations_that_differ_have_places_of_their_own():
  timings = [
    delay.Choice(*given)
    for given in ((), ('wait', 4), ('naive', 4), ('naive', 4, 5), ('naive', 3), (None, None, 5))
  ]
  splits = ('train[90%:]', 'train[:90%]', 'train[9:]', 'train[-9:]', 'train[:9]', 'train', 'a+b')
  choices = [
    *(dict(policy=policy, timing=each) for policy in ('model', 'hold') for each in timings),
    *(dict(policy=policy, **{key: 5}) for policy in ('model', 'hold') for key in ('seed', 'batch')),
    dict(solver='unipc'),
    dict(guidance_scale=1.5),
    dict(guidance_scale=2.0),
    dict(evaluate_steps=()),
    dict(evaluate_steps=(0, 1)),
    dict(steps=8),
    dict(mode='act_only'),
    dict(mode='flash', steps=1, evaluate_steps=(), action_steps=4),
    dict(mode='flash', steps=1, evaluate_steps=(), action_steps=8),
    dict(history='sliding'),
    dict(precision='bfloat16'),
    dict(mesh=('tensor=2',)),
    dict(world='unseen_look'),
    dict(tasks=('push',)),
    dict(time_limit_s=20.0),
    dict(episodes=5),
    dict(episodes=5, batch=2),
    dict(env='dataset'),
    dict(env='metaworld'),
    *(dict(recorded=recorded.Choice(path)) for path in ('/a/set/1.0.0', '/b/set/1.0.0')),
    *(dict(env='dataset', recorded=recorded.Choice(split=split)) for split in splits),
  ]
  names = [make_name(FLASH, **given) for given in choices]
  assert len(set(names)) == len(names), sorted(names)
  assert all(re.fullmatch(r'[A-Za-z0-9._-]+', name) for name in names)
  assert 'set_1_0_0' in names[-len(splits) - 1]
  # Tasks of a whole world make no name that a disk refuses.
  many = [make_name(tasks=(*[f'task{n}' for n in range(50)], end)) for end in 'ab']
  assert len(set(many)) == 2
  assert max(map(len, many)) < 255


def test_a_world_is_as_the_config_has_it():
  """For whoever makes one: none of what it says is left out."""
  chosen = dict(tasks=('press',), max_distractors=0, time_limit_s=7.0)
  conditions = dict(light=0.75, drift_speed=0.3)
  evaluation = cfg.EvalConfig(**chosen, **conditions)
  env = closed_loop.make_env('tabletop_disc', evaluation, 'unseen_look')
  want = tabletop.TabletopEnv(
    'disc', split='unseen_look', conditions=tabletop.Conditions(**conditions), **chosen
  )
  for world in (env, want):
    world.reset(0)
    world.lamp.state = 'on'
  np.testing.assert_array_equal(env.render(64, 'top'), want.render(64, 'top'))
  assert (env.tasks, env.split, env.max_steps) == (want.tasks, want.split, 70)
  # What no config says is as in the data.
  usual = (cfg.EvalConfig().light, cfg.EvalConfig().drift_speed)
  assert usual == (tabletop.LIGHT, tabletop.DRIFT_SPEED)
  moving = dataclasses.replace(evaluation, tasks=('reach_moving',))
  env = closed_loop.make_env('tabletop_disc', moving)
  env.reset(0)
  assert math.hypot(*env.drift.velocity) == pytest.approx(0.3)
  others = [
    path.name
    for folder in ('wam_jax', 'benchmarks', 'docs')
    for path in (ROOT / folder).rglob('*.py')
    if 'worlds.make(' in path.read_text()
  ]
  assert others == ['closed_loop.py']


@pytest.mark.parametrize(
  'given, said',
  [
    (
      dict(env='metaworld', recorded=recorded.Choice(dataset='d')),
      '--dataset would change nothing',
    ),
    (dict(recorded=recorded.Choice(split='val', embodiment='e')), '--embodiment, --split would'),
    (dict(env='dataset', time_limit_s=9.0), '--time_limit_s would'),
    (dict(env='dataset', tasks=('reach',)), '--tasks would .* with --env=dataset: leave'),
    (dict(env='metaworld', world='unseen_look'), '--world would'),
    (
      dict(recorded=recorded.Choice(dataset='d'), timing=delay.Choice(delay=3)),
      '--delay, --when, --execute would',
    ),
    (dict(policy='expert', timing=delay.Choice(delay=3)), '--policy=expert never waits'),
  ],
)
def test_what_would_not_be_heeded_is_refused(given, said):
  with pytest.raises(ValueError, match=said):
    run._override(cfg.TrainConfig(), run.Options('workdir', **given))


@pytest.mark.parametrize(
  'sampling, said',
  [
    (
      dict(mode='flash', steps=1, action_steps=4, approximate_kept_video=True),
      '--when=lookahead cannot be compared with exact actions',
    ),
    (dict(mode='act_only'), '--mode=act_only imagines nothing'),
  ],
)
def test_who_cannot_look_ahead_is_refused(sampling, said):
  config = cfg.TrainConfig(flow=cfg.FlowConfig(video_hidden=0.2))
  options = run.Options('workdir', timing=delay.Choice('lookahead', 2), **sampling)
  with pytest.raises(ValueError, match=said):
    run._override(config, options)
  # The baselines do not sample, and who waits is compared.
  run._override(config, dataclasses.replace(options, policy='hold'))
  run._override(config, dataclasses.replace(options, timing=delay.Choice('wait', 2)))


def test_an_output_that_cannot_be_is_told_before_the_checkpoint_is_read(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='--output cannot be written in .*file: Not a directory'):
    run.evaluate(run.Options('/nowhere', output=str(tmp_path / 'file')))


def test_long_names_keep_the_columns_of_the_table():
  episodes = [closed_loop.Episode(0, 'button-press-topdown-wall', 'press', True, 1.5)]
  head, row = closed_loop.show_table(closed_loop.summarize('metaworld', episodes)).splitlines()
  assert row.index('100%') + 4 == head.index('rate') + 4
  assert row.index('1.5') == head.index('seconds to success')


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


def test_holding_sends_the_pose_of_now_and_no_motion():
  """In the units that the robot takes: of a target its own state, of deltas zero."""
  slice_ = record_lib.Slice
  record = dataclasses.replace(
    DISC,
    state=(slice_('joints', 0, 2, 'rad'), slice_('grip', 0, 1, 'normalized', offset=1, scale=-1)),
    action=(
      slice_('target', 0, 2, 'rad', relative_to='joints:0:2'),
      slice_('grip', 0, 1, 'normalized', rest='grip:0:1', offset=1, scale=-1),
      slice_('other', 0, 1, 'normalized', relative_to='grip:0:1', rest='grip:0:1'),
      slice_('delta', 0, 1, 'm'),
    ),
  )
  agent = baselines.HoldAgent(record)
  agent.reset(['go'] * 2, np.zeros((2, 8, 8, 3), np.uint8), 0)
  proprio_BX = np.float32([[0.5, -0.25, 0.75], [1, 2, 0]])
  actions, imagined = agent.act(np.zeros((2, 1, 8, 8, 3), np.uint8), proprio_BX)
  assert imagined is None
  # The gripper is 0.75 closed to the model, and stored as 0.25 open.
  want_BU = np.float32([[0.5, -0.25, 0.25, 0.75, 0], [1, 2, 1, 0, 0]])
  np.testing.assert_allclose(actions, np.repeat(want_BU[:, None], DISC.steps_per_chunk, axis=1))
  # What the model would have to say for that, which the open loop compares with.
  np.testing.assert_allclose(
    normalize.still(record, proprio_BX), np.float32([[0, 0, 0.75, 0, 0], [0, 0, 0, 0, 0]])
  )


def test_actions_beyond_the_limits_are_recorded_as_asked_and_as_clipped():
  # Actions of the tabletop are between -1 and 1.
  class Wild(baselines.HoldAgent):
    def act(self, frames_BRIJ3, proprio_BX):
      return np.full((self._batch, DISC.steps_per_chunk, DISC.action_dim), 3.0), None

  recording = closed_loop.Recording(episodes=1, scene_size=16)
  (e,) = closed_loop.run_episodes(
    closed_loop.in_turn(Wild(DISC)), KNOWN, make_env, [0], batch=1, recording=recording
  )
  np.testing.assert_array_equal(e.asked, np.full((40, 3), 3.0))
  np.testing.assert_array_equal(e.done, np.ones((40, 3)))


def test_the_film_strip_shows_what_was_seen_above_what_was_imagined(tmp_path, solved):
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


def check_film(frames, e, close):
  """The scene on the left; on the right what the model saw, and what it had imagined below."""
  last = frames[-1].astype(float)
  body = last[film.HEAD_ROWS : -film.ACTION_ROWS]
  half = (96 - film.GAP) // 2  # Too small for labels.
  assert np.abs(body[:, :96] - e.scene[-1]).mean() < close
  seen, imagined = body[:half, 96 + film.GAP :], body[-half:, 96 + film.GAP :]
  assert seen.shape == (45, 68, 3)  # 32 x 48 by 1.41
  for shown, frame in ((seen, e.seen[-1]), (imagined, e.imagined[-1])):
    want = cv2.resize(drawing.enlarge(frame, half), (68, 45), interpolation=cv2.INTER_AREA)
    assert np.abs(shown - want).mean() < close


def test_film_shows_the_scene_beside_what_was_seen_above_what_was_imagined(shown):
  frames = list(film.draw(shown, DISC))
  assert len(frames) == len(shown.scene)
  assert {frame.shape for frame in frames} == {(50 + 96 + 84, 96 + 6 + 68, 3)}
  check_film(frames, shown, close=1e-6)


def test_film_says_how_it_ended_and_not_before(shown):
  """Green words from the step of success on, red ones at the end of a failure."""

  def count(picture, color):
    head = picture[: film.HEAD_ROWS].astype(int)
    return int((np.abs(head - color).max(-1) < 30).sum())

  green, red = (24, 128, 72), (190, 48, 44)
  done = round(shown.seconds * DISC.control_hz)
  frames = list(film.draw(shown, DISC))
  assert [count(frame, green) > 10 for frame in frames] == [
    step >= done for step in range(len(frames))
  ]
  frames = list(film.draw(dataclasses.replace(shown, success=False), DISC))
  assert [count(frame, red) > 10 for frame in frames] == [False] * (len(frames) - 1) + [True]


def test_film_draws_the_actions(shown):
  """The first dimension's line stands where its value is; the cursor moves with time."""
  frames = list(film.draw(shown, DISC))
  steps = len(shown.done)
  plot = frames[-1][-film.ACTION_ROWS + film.GAP : -22].astype(int)
  rows, columns, _ = plot.shape
  for step in (2, steps // 2):
    column = round((step + 0.5) * (columns - 1) / steps)
    row = (rows - 1) * (0.5 - 0.46 * shown.done[step][-1])  # Drawn last, over the others.
    difference = np.abs(plot[:, column] - (24, 148, 108)).max(-1)
    assert abs(int(difference.argmin()) - row) <= 1.5
  for step in (0, 5):
    strip = frames[step][-film.ACTION_ROWS + film.GAP : -22]
    assert (strip[:, round(step * (columns - 1) / steps)] == (28, 32, 40)).all()


def find_lines(picture):
  """Columns of the plot of actions in which a line separates chunks."""
  plot = picture[-film.ACTION_ROWS + film.GAP : -22]
  return (plot[:3] == (222, 225, 230)).all((0, 2)).nonzero()[0].tolist()


def test_film_separates_chunks_where_they_began(shown):
  """Those of who acts in turn follow each other; with a delay they begin when they are there."""
  steps = len(shown.done)
  assert shown.begun == list(range(0, steps, DISC.steps_per_chunk))
  recording = closed_loop.Recording(episodes=1, scene_size=96)
  timing = delay.Choice('wait', 3).complete(DISC)
  play = functools.partial(delay.play, baselines.HoldAgent(DISC), record=DISC, timing=timing)
  (waited,) = closed_loop.run_episodes(play, KNOWN, make_env, [0], 1, recording=recording)
  # Eight steps are acted in after every three of standing still.
  assert waited.begun == [3, 14, 25, 36]
  *_, last = film.draw(waited, DISC)
  columns = last.shape[1]
  # Those of the right edge are the end, and the cursor of this picture.
  assert find_lines(last) == [round(at * (columns - 1) / 40) for at in (3, 14, 25, 36)]


def test_film_shows_the_chunk_under_way_ahead_of_time(shown):
  """Pale up to where the next one begins; nothing of who has no chunks."""

  def find_end(episode, step):
    plot = list(film.draw(episode, DISC))[step][-film.ACTION_ROWS + film.GAP : -22].astype(int)
    pale = np.array((24, 148, 108)) + 0.65 * (np.array((250, 250, 251)) - (24, 148, 108))
    found = (np.abs(plot - pale).max(-1) < 3).any(0).nonzero()[0]
    # Smooth edges of the line of what was done may look pale, too.
    return max([step, *np.rint(found * len(episode.done) / (plot.shape[1] - 1))])

  moved = dataclasses.replace(shown, begun=[3, 9])
  assert find_end(shown, 2) == 8
  assert find_end(moved, 5) == 9
  assert find_end(moved, 2) == 2
  assert find_end(dataclasses.replace(shown, begun=[]), 5) == 5


def test_film_as_mp4_and_as_webp(tmp_path, shown):
  film.save_mp4(tmp_path / 'episode.mp4', shown, DISC)
  frames, fps = videos.read(tmp_path / 'episode.mp4')
  assert fps == DISC.control_hz
  # The last picture stays for a second.
  assert len(frames) == len(shown.scene) + 10
  check_film(frames, shown, close=12)
  film.save_webp(tmp_path / 'episode.webp', shown, DISC)
  with Image.open(tmp_path / 'episode.webp') as webp:
    times, frames = [], []
    for frame in ImageSequence.Iterator(webp):
      frames.append(np.asarray(frame.convert('RGB')))
      times.append(frame.info['duration'])
  assert sum(times) == 100 * (len(shown.scene) - 1) + 1500
  check_film(frames, shown, close=12)


def test_of_a_disk_that_is_full_no_half_picture_is_left(tmp_path, shown, monkeypatch):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    with pytest.raises(OSError, match='File too large') as told:
      film.save_mp4(tmp_path / 'episode.mp4', shown, DISC)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert told.value.filename == str(tmp_path / 'episode.mp4')
  assert not list(tmp_path.iterdir())

  def fail(path, picture):
    path.write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pictures.imageio, 'imwrite', fail)
  with pytest.raises(OSError, match='No space left'):
    pictures.save_film_strip(tmp_path / 'strip.png', shown.seen[1:], shown.imagined, 'title')
  assert not list(tmp_path.iterdir())


def test_the_plot_shows_predicted_and_executed_actions(tmp_path, solved):
  done = np.stack(solved[0].done)
  actions = pictures.ActionPair(
    predicted=done + 0.5, executed=done, names=['x', 'y', 'grip'], begun=[3]
  )
  pictures.save_action_plot(tmp_path / 'actions.png', actions, DISC, 'title')
  plot = imageio.imread(tmp_path / 'actions.png')[..., :3].astype(int)
  assert plot.shape == (round(110 * (1.6 * 3 + 0.8)), 880, 3)
  orange = [255, 127, 14]
  blue = [98, 160, 203]  # At 70 %.
  # Three lines across each.
  for color in (orange, blue):
    assert (np.abs(plot - color).max(-1) < 30).sum() > 1000
  # One grey line through the three panels, where the one chunk begins.
  is_grey_IJ = np.abs(plot - 217).max(-1) < 8
  assert np.ptp((is_grey_IJ.sum(0) > 250).nonzero()[0]) <= 1


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

  frames_per_call = DISC.camera_frames_per_chunk

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


def test_a_window_that_slides_is_said_to_be_untried(capsys):
  for history in ('reset', 'sliding'):
    make_name(history=history)
    assert ('training shows the frame before them' in capsys.readouterr().out) == (
      history == 'sliding'
    )
