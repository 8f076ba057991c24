"""Anchors and the arithmetic from anchor to steps, against numbers written out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import time

import jax
import numpy as np
import pytest
from etils import epath

from tests.data import published
from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import choice
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import robot as robot_lib
from wam_jax.data import sources
from wam_jax.data import windows

CLOCK = synthetic.CLOCK  # 8 steps a chunk, a camera frame every 4.


def test_window_inside_the_span():
  window = windows.make_window(CLOCK, 2, anchor=3, stop=20)
  np.testing.assert_array_equal(window.frame_steps_R, (3, 7, 11, 15, 19))
  np.testing.assert_array_equal(window.state_steps_Q, (3, 11))
  np.testing.assert_array_equal(window.action_steps_QS, [range(3, 11), range(11, 19)])
  np.testing.assert_array_equal(window.mask_Q, (True, True))


def test_window_past_the_span_repeats_its_last_step_and_is_masked():
  # The second chunk's last frame would be step 20.
  window = windows.make_window(CLOCK, 2, anchor=4, stop=20)
  np.testing.assert_array_equal(window.frame_steps_R, (4, 8, 12, 16, 19))
  np.testing.assert_array_equal(window.mask_Q, (True, False))
  np.testing.assert_array_equal(windows.make_window(CLOCK, 2, 11, 20).state_steps_Q, (11, 19))


def test_actions_of_overlapping_chunks_go_on_to_the_end_of_the_span():
  """The last step shows what came of the actions before it, and has none itself."""
  window = windows.make_window(CLOCK, 2, anchor=3, stop=22, overlap=4)
  np.testing.assert_array_equal(window.frame_steps_R, (3, 7, 11, 15, 19))
  np.testing.assert_array_equal(window.mask_Q, (True, True))
  np.testing.assert_array_equal(window.action_steps_QS, [range(3, 15), [*range(11, 21), 21, 21]])
  np.testing.assert_array_equal(window.action_mask_QS, [[True] * 12, [True] * 10 + [False] * 2])
  # A chunk that does not count has no action, whatever there is.
  window = windows.make_window(CLOCK, 2, anchor=3, stop=18, overlap=4)
  np.testing.assert_array_equal(window.action_mask_QS, [[True] * 12, [False] * 12])


def test_actions_that_are_given_begin_a_chunk_or_end_what_is_trained_of_it():
  window = windows.make_window(CLOCK, 2, anchor=0, stop=40, overlap=3)
  given_T = np.zeros(40, bool)
  given_T[[0, 1, 10, 18]] = True
  given_Q, mask_QS = windows.find_given(given_T, window, overlap=3)
  # Steps 0 to 10: two are given at the start, and another at the end.
  # Steps 8 to 18: two are not, and what comes after step 10 was not decided by who decided these.
  np.testing.assert_array_equal(given_Q, (2, 0))
  np.testing.assert_array_equal(mask_QS, [[True] * 10 + [False], [True] * 2 + [False] * 9])
  # More of them than a chunk can begin with leave nothing to train.
  given_Q, mask_QS = windows.find_given(given_T, window, overlap=1)
  np.testing.assert_array_equal(given_Q, (0, 0))
  assert not mask_QS[0].any()


def test_anchors_are_all_steps_where_a_chunk_fits(tmp_path):
  def edit(episodes):
    for step in episodes[1][9:]:
      step['language_instruction'] = 'Other'

  path = synthetic.make_dataset(tmp_path, [10, 20, 8], edit)  # Spans: 10, 9 + 11, 8.
  anchors = windows.make_anchors(sources.Episodes(path, 'train', CLOCK))
  assert [anchors[i] for i in range(len(anchors))] == [
    (0, 0, 10),
    (0, 1, 10),
    (1, 0, 9),
    (1, 9, 20),
    (1, 10, 20),
    (1, 11, 20),
  ]


def test_no_span_is_long_enough(tmp_path):
  path = synthetic.make_dataset(tmp_path, [8, 8])
  with pytest.raises(
    ValueError, match=r'none of its 2 language spans .* one chunk of 8 steps \(longest: 8'
  ):
    windows.make_anchors(sources.Episodes(path, 'train', CLOCK))


def test_index_is_kept_and_forgotten_when_the_dataset_changes(tmp_path, monkeypatch):
  path = synthetic.make_dataset(tmp_path / 'a', [12, 12])
  windows.make_anchors(sources.Episodes(path, 'train', CLOCK))
  reads = []
  original = sources.Episodes.outline
  monkeypatch.setattr(
    sources.Episodes, 'outline', lambda self, i: reads.append(i) or original(self, i)
  )
  assert len(windows.make_anchors(sources.Episodes(path, 'train', CLOCK))) == 8
  assert not reads
  other = epath.Path(synthetic.make_dataset(tmp_path / 'b', [12, 13]))
  for file in other.iterdir():
    file.copy(epath.Path(path) / file.name, overwrite=True)
  assert len(windows.make_anchors(sources.Episodes(path, 'train', CLOCK))) == 9
  assert sorted(reads) == [0, 1]  # By several threads.


def test_millions_of_anchors_take_little_time_and_memory(monkeypatch):
  """No more than as many stretches of a single anchor each."""
  spoken = {'choice': choice.Choice(), 'list_left_out': lambda _: {}, '__len__': lambda _: 80_000}
  episodes = type('E', (), {'record': CLOCK, 'path': '', 'split': '', **spoken})()

  def make(steps):
    zero = np.zeros(80_000, int)
    spans = np.stack([np.arange(80_000), zero, np.full(80_000, steps), zero], 1)
    monkeypatch.setattr(windows.scan, 'load_spans', lambda episodes: spans)
    start = time.process_time()
    anchors = windows.make_anchors(episodes)
    return anchors, time.process_time() - start

  seconds = {400: [], 9: []}
  for _ in range(5):
    for steps, found in seconds.items():
      anchors, taken = make(steps)
      assert len(anchors) == 80_000 * (steps - 8)
      found.append(taken)
  # One by one they would take 392 times as long.
  assert min(seconds[400]) < 20 * min(seconds[9])
  anchors, _ = make(400)
  assert anchors[392 * 7 + 5] == (7, 5, 400)
  # Workers get them pickled: a row per stretch, where one per anchor would be 31 million rows.
  assert len(pickle.dumps(anchors)) < 4e6
  with pytest.raises(IndexError):
    anchors[len(anchors)]


def test_a_chunk_counts_at_the_end_of_an_episode_where_the_references_does():
  """Of a single chunk its actions and one more frame must exist."""
  droid = embodiments.get('droid')
  for length in (24, 25, 60):
    for anchor in range(length):
      frames = [anchor + 3 * i for i in range(8)] if anchor + 23 < length else []
      frames = [*frames, frames[-1] + 3] if frames and frames[-1] + 3 < length else []
      window = windows.make_window(droid, 1, anchor, length)
      assert bool(frames) == (anchor + 24 < length) == window.mask_Q[0]
      if frames:
        np.testing.assert_array_equal(window.frame_steps_R, frames)


# Record, control steps between two frames and in a chunk; the reference's where it has the robot.
RATES = [
  ('droid', 3, 24),
  ('agibot', 6, 48),
  ('agibot_reference', 3, 24),
  ('yam_reference', 3, 24),
  ('libero', 4, 32),
  ('oxe', 1, 8),
]


@pytest.mark.parametrize('name, stride, S', RATES)
def test_frames_states_and_actions_of_a_batch_tell_the_same_time(name, stride, S, tmp_path):
  """Chunk i shows the times a_i + stride ... a_i + S, acts from a_i to a_i + S - 1, and starts at
  the state of a_i.
  """
  record, lengths = embodiments.get(name), [S + 6, 2 * S + 9]
  config = make_config(name, published.write(tmp_path, name, lengths), S)
  with contextlib.closing(pipeline.Data.open(config).train_batches()) as iterator:
    batches = [next(iterator) for _ in range(4)]
  batch = jax.tree.map(lambda *x: np.concatenate(x), *batches)
  r, whole_B = 8, batch.chunk_mask_BQ.all(1)
  assert batch.frames_BRIJ3.shape[1:] == (1 + 2 * r, *record.composite, 3)
  assert 0 < whole_B.sum() < len(whole_B)
  view = record.views[0]
  # A picture of step t is grey 2 t; a pixel away from the view's edges tells it.
  grey_BR = batch.frames_BRIJ3[:, :, view.row + 9, view.column + 9, 0]
  times_BR = np.rint(grey_BR / 2).astype(int)
  anchor_B = times_BR[:, 0]
  np.testing.assert_array_equal(
    times_BR[whole_B], anchor_B[whole_B, None] + stride * np.arange(1 + 2 * r)
  )
  # The first chunk fits always.
  np.testing.assert_array_equal(times_BR[:, : 1 + r], anchor_B[:, None] + stride * np.arange(1 + r))

  # Values beyond the quantiles of the statistics are clipped: they are compared where they are not.
  state_BQX, action_BQSU = unnormalize(config, name, batch, S)
  chunk_BQ, mask_BQ = anchor_B[:, None] + S * np.arange(2), batch.chunk_mask_BQ
  # State number 0 is t at step t, action number 0 is 100 + t.
  if record.state:
    inside_BQ = mask_BQ & (np.abs(batch.proprio_BQX[..., 0]) < 1)
    assert inside_BQ.sum() > 0.8 * mask_BQ.sum()
    np.testing.assert_allclose(state_BQX[..., 0][inside_BQ], chunk_BQ[inside_BQ], atol=1e-3)
  want_BQS = chunk_BQ[..., None] + np.arange(S) + 100.0
  if record.action[0].relative_to:
    want_BQS -= chunk_BQ[..., None]
  first_BQS = batch.action_BAU.reshape(*mask_BQ.shape, S, -1)[..., 0]
  inside_BQS = mask_BQ[..., None] & (np.abs(first_BQS) < 1)
  assert inside_BQS.sum() > 0.8 * S * mask_BQ.sum()
  np.testing.assert_allclose(action_BQSU[..., 0][inside_BQS], want_BQS[inside_BQS], atol=1e-3)

  assert not batch.action_BAU[~batch.action_mask_BAU].any()
  got_BQS = batch.action_mask_BAU.reshape(*mask_BQ.shape, S, -1)[..., 0]
  want_BQS = np.repeat(mask_BQ[..., None], S, -1)
  np.testing.assert_array_equal(got_BQS, want_BQS)


def make_config(name, path, S):
  record = embodiments.get(name)
  model = cfg.ModelConfig(
    frames_per_chunk=2,
    actions_per_chunk=S,
    action_dim=max(record.action_dim, 1),
    max_chunks=2,
    proprio_dim=max(record.proprio_dim, 1),
    tokenizer=cfg.TokenizerConfig(temporal=4, spatial=8),
  )
  return cfg.TrainConfig(
    batch_size=4,
    model=model,
    data=cfg.DataConfig(
      mixture={'d': cfg.DatasetConfig(path=path, embodiment=name)}, embodiments=(name,)
    ),
  )


def unnormalize(config, name, batch, S):
  """(state [B, Q, X], action [B, Q, S, U]) in the slices' units, as relative as the record says."""
  known = robot_lib.from_metadata(pipeline.Data.open(config).metadata)[name]
  action_BQSU = batch.action_BAU.reshape(*batch.chunk_mask_BQ.shape, S, -1)[
    ..., : known.record.action_dim
  ]
  return (
    known.statistics.state.unnormalize(batch.proprio_BQX[..., : known.record.proprio_dim]),
    known.statistics.action.unnormalize(action_BQSU),
  )


def open_droid(tmp_path, lengths):
  return sources.Episodes(
    published.write(tmp_path, 'droid', lengths), 'train', embodiments.get('droid')
  )


def make_anchors(episodes, **wanted):
  """The anchors of a choice."""
  chosen = choice.Choice(**wanted)
  return windows.make_anchors(
    sources.Episodes(str(episodes.path), episodes.split, episodes.record, choice=chosen)
  )


def list_anchors(anchors):
  """{episode: [first, last step]} and the stops."""
  found = [anchors[i] for i in range(len(anchors))]
  steps = {e: [step for episode, step, _ in found if episode == e] for e, _, _ in found}
  assert all(x == list(range(x[0], x[-1] + 1)) for x in steps.values())
  return {e: (x[0], x[-1]) for e, x in steps.items()}


def test_failed_episodes_are_left_out_unless_wanted(tmp_path):
  episodes = open_droid(tmp_path, [30, 30, 40, 30])  # Number 2 lies in a directory called failure.
  assert list_anchors(windows.make_anchors(episodes)) == {0: (0, 5), 1: (0, 5), 3: (0, 5)}
  assert list_anchors(make_anchors(episodes, failures=True)) == {
    0: (0, 5),
    1: (0, 5),
    2: (0, 15),
    3: (0, 5),
  }
  only_failed = sources.Episodes(str(episodes.path), 'train[2:3]', episodes.record)
  with pytest.raises(
    ValueError, match="none of its 1 episodes has 'success' in its name, .*trajectory_2.h5"
  ):
    windows.make_anchors(only_failed)


def test_runs_of_steps():
  """At both edges, and of one step."""
  assert choice.list_runs(np.bool_([1, 1, 0, 1, 0, 0, 1])) == [(0, 2), (3, 4), (6, 7)]
  assert choice.list_runs(np.bool_([0, 0])) == choice.list_runs(np.bool_([])) == []


def write_ranges(tmp_path, kept) -> str:
  file = tmp_path / 'ranges.json'
  file.write_text(json.dumps(kept))
  return str(file)


def test_chunks_start_inside_the_kept_ranges(tmp_path):
  episodes = open_droid(tmp_path, [110, 60, 80, 50])
  ranges = write_ranges(
    tmp_path,
    {
      published.episode_name(0): [[3, 5], [40, 95]],
      published.episode_name(2): [[0, 80]],  # Failed.
      published.episode_name(3): [],
      'an episode of another split': [[0, 9]],
    },
  )
  anchors = make_anchors(episodes, ranges=ranges)  # Episode 1 is not named, hence not kept.
  got = {anchors[i][1]: anchors[i][2] for i in range(len(anchors))}
  assert {anchors[i][0] for i in range(len(anchors))} == {0}
  # Of 40 ... 94, those with a whole chunk of 24 before the end at 110.
  assert sorted(got) == [3, 4, *range(40, 86)]
  # One chunk: the next would start at step 27 or 28, outside the range.
  # Starts at 40, 64 and 88, as far as the episode goes; only at 71.
  assert got[3] == 28
  assert got[4] == 29
  assert got[40] == 110
  assert got[71] == 71 + 24 + 1
  mask = lambda step: windows.make_window(episodes.record, 4, step, got[step]).mask_Q.tolist()
  assert mask(3) == mask(71) == [True, False, False, False]
  # The chunk from 88, or 109, is cut off by the end.
  assert mask(40) == mask(61) == [True, True, False, False]
  failed = make_anchors(episodes, ranges=ranges, failures=True)
  assert {failed[i][0] for i in range(len(failed))} == {0, 2}


@pytest.mark.parametrize(
  'content, message',
  [
    ('{"a": [[0, 3]]', 'ranges.json is not JSON'),
    (
      '[[0, 3]]',
      'must map names of episodes to lists of .first step, step after the last.; it has list at '
      'the top',
    ),
    ('{"a": [[0, 3.5]], "b": [3]}', r"it has 'a': \[\[0, 3.5\]\]; 'b': \[3\]"),
    (
      '{"elsewhere--x.h5": [[0, 30]]}',
      "names none of the episodes of .*'elsewhere--x.h5', the dataset '/nfs/.*_0.h5'",
    ),
    ('{}', "names none of the episodes of .* for example, 'nothing'"),
  ],
)
def test_wrong_ranges(tmp_path, content, message):
  episodes = open_droid(tmp_path, [30])
  (tmp_path / 'ranges.json').write_text(content)
  with pytest.raises(ValueError, match=message):
    make_anchors(episodes, ranges=str(tmp_path / 'ranges.json'))


def test_ranges_need_names_and_leave_something(tmp_path):
  episodes = open_droid(tmp_path, [30])
  with pytest.raises(ValueError, match='There is no file of step ranges .*nowhere.json'):
    make_anchors(episodes, ranges=str(tmp_path / 'nowhere.json'))
  with pytest.raises(
    ValueError, match='none of its 1 language spans and kept ranges is longer than one chunk'
  ):
    make_anchors(episodes, ranges=write_ranges(tmp_path, {published.episode_name(0): [[20, 30]]}))
  path = synthetic.make_dataset(tmp_path / 'clock', [12, 12])
  with pytest.raises(ValueError, match="'clock' has no episode_key"):
    make_anchors(sources.Episodes(path, 'train', CLOCK), ranges=write_ranges(tmp_path, {}))


def test_episodes_without_a_name(tmp_path):
  record = dataclasses.replace(CLOCK, episode_key=('episode_metadata/file_path',), success='good')
  with pytest.raises(
    ValueError, match="record 0 of .* has no .*episode_metadata/file_path.* 'clock'"
  ):
    windows.make_anchors(
      sources.Episodes(synthetic.make_dataset(tmp_path, [12, 12]), 'train', record)
    )


def test_names_are_kept_beside_the_dataset(tmp_path, monkeypatch):
  episodes = open_droid(tmp_path, [30, 30, 40])
  want = list_anchors(windows.make_anchors(episodes))
  monkeypatch.setattr(sources.Episodes, '_read', lambda self, i: pytest.fail('read again'))
  assert list_anchors(windows.make_anchors(episodes)) == want


@pytest.mark.parametrize(
  'data, message',
  [
    (
      dict(ranges={'e': 'x.json'}),
      r"data.ranges names \['e'\], which data.mixture does not have; it has \['d'\]",
    ),
    (dict(failures=('e',)), r"data.failures names \['e'\]"),
    (
      dict(statistics={'hexapod': 'x.json'}),
      r"data.statistics names \['hexapod'\], which data.embodiments",
    ),
  ],
)
def test_config_names_known_datasets(data, message):
  known = dict(mixture={'d': cfg.DatasetConfig(embodiment='droid')}, embodiments=('droid',))
  with pytest.raises(ValueError, match=message):
    cfg.DataConfig(**known, **data)
