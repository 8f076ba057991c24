"""Batches: alignment of frames, actions and states, masks, mixtures, sharding, resume, and
build-time errors.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import time

import jax
import numpy as np
import psutil
import pytest

from tests import trees
from tests.data import synthetic
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.data import episode as episode_lib
from wam_jax.data import pipeline
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.data import sources


def open_batches(config, rows=None) -> pipeline.Batches:
  return pipeline.Data.open(config).train_batches(rows)


def take(config, n, rows=None):
  with contextlib.closing(open_batches(config, rows)) as iterator:
    return list(itertools.islice(iterator, n))


def share(host: int, hosts: int) -> range:
  """Rows of a batch of 8."""
  return range(host * 8 // hosts, (host + 1) * 8 // hosts)


def take_held_out(config, n, split='val'):
  return list(pipeline.Data.open(config, [split]).eval_batches(split, n))


def join(batches) -> types.Batch:
  return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def make_clock(path, **data):
  return synthetic.make_config({'clock': (path, 'clock', 1.0)}, **data)


def mark_given(config, **features):
  """The config with `given` of these datasets of its mixture."""
  mixture = dict(config.data.mixture)
  for name, feature in features.items():
    mixture[name] = dataclasses.replace(mixture[name], given=feature)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def raw_values(config, batch):
  """(proprio [B, Q, 3], action [B, Q, A, 2]) in raw units."""
  known = robot_lib.from_metadata(pipeline.Data.open(config).metadata)['clock']
  action_BQAU = batch.action_BAU.reshape(len(batch.action_BAU), 2, -1, batch.action_BAU.shape[-1])
  return (
    known.statistics.state.unnormalize(batch.proprio_BQX[..., :3]),
    known.statistics.action.unnormalize(action_BQAU[..., :2]),
  )


def test_shapes_and_types_are_those_of_batch(clock_path):
  (batch,) = take(make_clock(clock_path), 1)
  got = {
    name: (array.shape, array.dtype.name)
    for name, array in vars(batch).items()
    if array is not None
  }
  assert isinstance(batch, types.Batch)
  assert got == {
    'frames_BRIJ3': ((8, 5, 16, 24, 3), 'uint8'),
    'action_BAU': ((8, 16, 3), 'float32'),
    'action_mask_BAU': ((8, 16, 3), 'bool'),
    'proprio_BQX': ((8, 2, 4), 'float32'),
    'chunk_mask_BQ': ((8, 2), 'bool'),
    'prompt_ids_BP': ((8, 16), 'int32'),
    'embodiment_B': ((8,), 'int32'),
    'sample_B2': ((8, 2), 'int32'),
  }


def test_frames_states_and_actions_tell_the_same_time(clock_path):
  config = make_clock(clock_path)
  batch = join(take(config, 12))
  clock_BR = batch.frames_BRIJ3[:, :, 0, 0, 1].astype(int)
  episode_BR = batch.frames_BRIJ3[:, :, 0, 0, 0].astype(int)
  assert (episode_BR == episode_BR[:, :1]).all()
  start_B = clock_BR[:, 0]
  # Episode e has 12 + 3 e steps.
  last_B = 12 + 3 * episode_BR[:, 0] - 1
  # A camera frame every 4 steps; a window that ends early repeats its last.
  want_BR = np.minimum(start_B[:, None] + 4 * np.arange(5), last_B[:, None])
  np.testing.assert_array_equal(clock_BR, want_BR)
  np.testing.assert_array_equal(batch.chunk_mask_BQ, start_B[:, None] + (8, 16) <= last_B[:, None])
  assert batch.chunk_mask_BQ[:, 0].all()
  assert 0 < batch.chunk_mask_BQ[:, 1].sum() < len(start_B)

  # Normalized values beyond the 1% and 99% quantiles are clipped: compare where they are not.
  proprio_BQX, action_BQAU = raw_values(config, batch)
  want_BQ = np.minimum(start_B[:, None] + (0, 8), last_B[:, None])
  inside_BQ = np.abs(batch.proprio_BQX[..., 0]) < 1
  np.testing.assert_allclose(proprio_BQX[..., 0][inside_BQ], want_BQ[inside_BQ], atol=1e-4)

  # The action of step t is (t, t + 0.5).
  want_BQA = start_B[:, None, None] + np.reshape([0, 8], (2, 1)) + np.arange(8)
  real_BQA = batch.action_mask_BAU.reshape(-1, 2, 8, 3)[..., 0]
  first_BQA = batch.action_BAU.reshape(-1, 2, 8, 3)[..., 0]
  inside_BQA = real_BQA & (np.abs(first_BQA) < 1)
  assert inside_BQA.sum() > 0.9 * real_BQA.sum()
  np.testing.assert_allclose(action_BQAU[..., 0][inside_BQA], want_BQA[inside_BQA], atol=1e-4)
  np.testing.assert_allclose(action_BQAU[..., 1][inside_BQA], want_BQA[inside_BQA] + 0.5, atol=1e-4)


def test_both_views_are_in_place_and_the_prompt_is_the_episodes(clock_path):
  config = make_clock(clock_path)
  (batch,) = take(config, 1)
  # Blue tells the view: 7 of `top`, 77 of `wrist`; red tells the episode.
  assert (batch.frames_BRIJ3[:, :, :, :16, 2] == 7).all()
  assert (batch.frames_BRIJ3[:, :, :, 16:, 2] == 77).all()
  for frames, ids in zip(batch.frames_BRIJ3, batch.prompt_ids_BP):
    episode = frames[0, 0, 0, 0]
    want = prompts.hash_words(f'task {episode % 3}', 16, 2048)
    np.testing.assert_array_equal(ids, want)


def test_masked_actions_and_padded_dimensions_are_zero(clock_path):
  batch = join(take(make_clock(clock_path), 4))
  mask_BQAU = batch.action_mask_BAU.reshape(-1, 2, 8, 3)
  # The robot has 2 action and 3 state dimensions, the model one more of either.
  real_BQAU = np.broadcast_to(batch.chunk_mask_BQ[..., None, None], (*mask_BQAU.shape[:-1], 2))
  np.testing.assert_array_equal(mask_BQAU[..., :2], real_BQAU)
  assert not mask_BQAU[..., 2].any()
  assert not batch.action_BAU[~batch.action_mask_BAU].any()
  assert not batch.proprio_BQX[..., 3].any()


def test_slower_robot_fills_the_first_rows_of_each_chunk(clock_path):
  batch = join(take(synthetic.make_config({'slow': (clock_path, 'clock_slow', 1.0)}), 4))
  clock_BR = batch.frames_BRIJ3[:, :, 0, 0, 1].astype(int)
  both_B = batch.chunk_mask_BQ.all(1)
  # At half the control rate a frame is 2 steps from the next, and a chunk has 4 steps for 8 rows.
  np.testing.assert_array_equal(clock_BR[both_B], clock_BR[both_B, :1] + 2 * np.arange(5))
  mask_QA = batch.action_mask_BAU[both_B][0].reshape(2, 8, 3)[..., 0]
  np.testing.assert_array_equal(mask_QA, [[True] * 4 + [False] * 4] * 2)


def test_relative_actions_count_from_the_chunks_first_state(clock_path):
  config = synthetic.make_config({'relative': (clock_path, 'clock_relative', 1.0)})
  (batch,) = take(config, 1)
  known = robot_lib.from_metadata(pipeline.Data.open(config).metadata)['clock_relative']
  raw_BQAU = known.statistics.action.unnormalize(batch.action_BAU.reshape(-1, 2, 8, 3)[..., :2])
  for raw_QAU, mask_Q in zip(raw_BQAU, batch.chunk_mask_BQ):
    np.testing.assert_allclose(raw_QAU[mask_Q, :, 0], [np.arange(8)] * mask_Q.sum(), atol=1e-4)


def test_actions_that_are_not_to_be_imitated_are_told_to_the_step(tmp_path, clock_path):
  """By the data of one robot of a mixture; those of another are drawn as ever."""
  marked = (3, 4, 5, 20)

  def mark(episodes):
    for steps in episodes:
      for t, step in enumerate(steps):
        step['is_first'] = t in marked

  path = synthetic.make_dataset(tmp_path, [30, 26], mark)
  config = mark_given(
    synthetic.make_config({'led': (path, 'clock', 1.0), 'plain': (clock_path, 'clock', 1.0)}),
    led='is_first',
  )
  model = dataclasses.replace(config.model, action_overlap=2)
  config = dataclasses.replace(config, model=model)
  batch = join(take(config, 12))
  robot = robot_lib.from_metadata(pipeline.Data.open(config).metadata)['clock']
  mask_BQA = batch.action_mask_BAU[..., 0].reshape(*batch.chunk_mask_BQ.shape, -1)
  is_led_B = batch.sample_B2[:, 0] == 0
  assert not batch.given_BQ[~is_led_B].any()

  seen = set()
  for chunk_mask_Q, proprio_QX, given_Q, mask_QA in zip(
    batch.chunk_mask_BQ[is_led_B],
    batch.proprio_BQX[is_led_B],
    batch.given_BQ[is_led_B],
    mask_BQA[is_led_B],
  ):
    for q in np.flatnonzero(chunk_mask_Q):
      first = round(float(robot.statistics.state.unnormalize(proprio_QX[q, :3])[0]))
      is_marked = [first + n in marked for n in range(10)]
      leading = is_marked.index(False)
      is_possible = leading <= 2
      next_marked = [*is_marked[leading:], True].index(True)
      assert given_Q[q] == (leading if is_possible else 0)
      trained = leading + next_marked if is_possible else 0
      assert mask_QA[q, trained:].sum() == 0
      # Only the end of the episode is another reason.
      assert mask_QA[q, :trained].all() or trained > 8
      seen.add((leading, trained))
  assert {leading for leading, _ in seen} == {0, 1, 2, 3}


def test_the_mark_of_given_actions_must_be_there(clock_path):
  with pytest.raises(
    ValueError, match=r"given='led' must be a feature .* those are \['is_first'\]"
  ):
    open_batches(mark_given(make_clock(clock_path), clock='led'))


def test_video_only_robot_has_no_action(clock_path):
  config = synthetic.make_config(
    {'video': (clock_path, 'clock_video', 1.0), 'clock': (clock_path, 'clock', 1.0)}
  )
  (batch,) = take(config, 1)
  video_B = batch.embodiment_B == 0
  assert 0 < video_B.sum() < 8
  assert not batch.action_mask_BAU[video_B].any()
  assert not batch.action_BAU[video_B].any()
  assert not batch.proprio_BQX[video_B].any()
  assert batch.action_mask_BAU[~video_B].any()
  assert batch.chunk_mask_BQ[:, 0].all()


def test_one_epoch_holds_every_sample_once_in_another_order_each_time(tmp_path):
  # 8 + 16 samples are three batches.
  config = make_clock(synthetic.make_dataset(tmp_path, [16, 24]))
  batches = take(config, 6)
  epochs = [join(part).sample_B2[:, 1].tolist() for part in (batches[:3], batches[3:])]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
  assert epochs[0] != epochs[1]
  assert epochs[0] != sorted(epochs[0])


def test_mixture_has_its_weights(clock_path):
  config = synthetic.make_config(
    {'a': (clock_path, 'clock', 3.0), 'b': (clock_path, 'clock_slow', 1.0)}
  )
  batch = join(take(config, 20))
  assert collections.Counter(batch.sample_B2[:, 0].tolist()) == {0: 120, 1: 40}
  np.testing.assert_array_equal(batch.embodiment_B, batch.sample_B2[:, 0])


def test_same_seed_same_batches_whatever_the_threads(clock_path):
  first = take(make_clock(clock_path, augment=True), 3)
  slow = make_clock(clock_path, augment=True, threads=1, prefetch=1, cache_gib=0.0)
  trees.assert_same(first, take(slow, 3))
  other = take(make_clock(clock_path, augment=True, seed=1), 3)
  assert (join(first).sample_B2 != join(other).sample_B2).any()


def test_hosts_share_the_batch_of_one_host(clock_path):
  config = make_clock(clock_path, augment=True)
  whole = take(config, 3)
  # Not neighbours, as of devices in the order of their links; and both read row 5.
  hosts = {(0, 1, 5, 7): [], (2, 3, 4, 5, 6): []}
  for rows in hosts:
    hosts[rows] = take(config, 3, rows)
  for t in range(3):
    for rows, batches in hosts.items():
      want = jax.tree.map(lambda x: x[list(rows)], whole[t])  # noqa: B023 (called at once)
      trees.assert_same(want, batches[t])


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_equals_straight(clock_path, workers):
  config = make_clock(clock_path, augment=True)
  straight = take(config, 6)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
  with contextlib.closing(open_batches(config)) as iterator:
    before = [next(iterator) for _ in range(3)]
    # A checkpoint keeps it as JSON.
    state = json.loads(json.dumps(iterator.get_state()))
  with contextlib.closing(open_batches(config)) as iterator:
    iterator.set_state(state)
    trees.assert_same(straight, before + [next(iterator) for _ in range(3)])


@pytest.mark.parametrize('before, after', [(1, 2), (2, 4), (4, 1)])
def test_a_run_goes_on_with_another_number_of_hosts(clock_path, before, after):
  config = make_clock(clock_path, augment=True)
  straight = take(config, 5)[3:]
  states = []
  for host in range(before):
    with contextlib.closing(open_batches(config, share(host, before))) as iterator:
      list(itertools.islice(iterator, 3))
      states.append(iterator.get_state())
  assert states == [{'next_index': 3}] * before
  rest = []
  for host in range(after):
    with contextlib.closing(open_batches(config, share(host, after))) as iterator:
      iterator.set_state(states[0])
      rest.append(list(itertools.islice(iterator, 2)))
  for t in range(2):
    parts = [batches[t] for batches in rest]
    trees.assert_same(straight[t], join(parts))


def test_a_state_can_be_set_again_and_again(clock_path):
  config = make_clock(clock_path)
  straight = take(config, 3)
  with contextlib.closing(open_batches(config)) as iterator:
    for step in (2, 0, 1):
      iterator.set_state({'next_index': step})
      trees.assert_same(straight[step], next(iterator))
    with pytest.raises(
      ValueError, match="Not the state of a data iterator: {'step': 1}; expected next_index"
    ):
      iterator.set_state({'step': 1})


def count_decodes(monkeypatch) -> list[tuple[str, str, int]]:
  """(episode, view, step) of every image decoded from now on."""
  seen, decode = [], episode_lib.Episode.decode_bgr
  monkeypatch.setattr(
    episode_lib.Episode,
    'decode_bgr',
    lambda self, key, step: seen.append((self.where, key, step)) or decode(self, key, step),
  )
  return seen


@pytest.mark.parametrize('augment', [False, True])
def test_only_the_frames_of_a_sample_are_decoded_each_once(clock_path, monkeypatch, augment):
  config = make_clock(clock_path, augment=augment, cache_gib=0.0)
  batches = open_batches(config)
  seen = count_decodes(monkeypatch)
  frames_BRIJ3 = batches.read(0).frames_BRIJ3
  if augment:
    # Jitter changes the clock in the pixels.
    steps = len(seen) // 2
  else:
    steps = sum(len(set(clock_R.tolist())) for clock_R in frames_BRIJ3[:, :, 0, 0, 1])
  # Two views each.
  assert len(seen) == 2 * steps
  # Some windows end before five frames.
  assert 8 * 3 <= steps <= 8 * 5
  assert augment or steps < 8 * 5


def test_nothing_is_decoded_before_the_first_batch_is_asked_for(clock_path, monkeypatch):
  seen = count_decodes(monkeypatch)
  open_batches(make_clock(clock_path)).close()
  assert not seen


def test_robot_and_human_video_one_to_one(clock_path):
  """Co-training is the second line of the mixture."""
  config = synthetic.make_config(
    {'robot': (clock_path, 'clock', 1.0), 'human': (clock_path, 'clock_video', 1.0)}, augment=True
  )
  for batch in take(config, 3):
    human_B = batch.embodiment_B == 1
    assert human_B.sum() == 4
    assert not batch.action_mask_BAU[human_B].any()
    assert batch.action_mask_BAU[~human_B].any((1, 2)).all()
    assert not batch.proprio_BQX[human_B].any()
    assert batch.chunk_mask_BQ[:, 0].all()
    assert (batch.frames_BRIJ3[:, :, :, :16].reshape(8, -1).max(1) > 0).all()


@pytest.mark.slow
def test_memory_stays_flat(clock_path):
  """Ten thousand batches with a cache that is full after a few."""
  config = dataclasses.replace(make_clock(clock_path, cache_gib=1e-4, prefetch=2), batch_size=1)
  process, held = psutil.Process(), []
  with contextlib.closing(open_batches(config)) as iterator:
    for done in range(10_000):
      next(iterator)
      if done % 2000 == 1999:
        held.append(process.memory_info().rss / 2**20)
  # MiB; were every batch kept, it would be 60.
  assert max(held) - held[0] < 8, held


def test_augmentation_changes_pixels_but_not_the_rest(clock_path):
  (plain,) = take(make_clock(clock_path, augment=False), 1)
  (augmented,) = take(make_clock(clock_path, augment=True), 1)
  trees.assert_same(plain.replace(frames_BRIJ3=0), augmented.replace(frames_BRIJ3=0))
  assert (plain.frames_BRIJ3 != augmented.frames_BRIJ3).any()


def test_instructions_are_drawn_in_training_and_the_first_in_evaluation(tmp_path, monkeypatch):
  def edit(episodes):
    for step in itertools.chain(*episodes):
      step['language_2'] = step.pop('language_instruction') + ' again'
      step['language_instruction'], step['language_3'] = 'first', ''

  features = dict(synthetic.FEATURES['steps'].feature.items())
  text = features['language_instruction']
  features = synthetic.tfds.features.FeaturesDict(
    {'steps': synthetic.tfds.features.Dataset({**features, 'language_2': text, 'language_3': text})}
  )
  splits = {
    name: [[synthetic.make_step(e, t) for t in range(20)] for e in range(3)]
    for name in ('train', 'val')
  }
  for episodes in splits.values():
    edit(episodes)
  path = synthetic.write_dataset(tmp_path, splits, features)
  record = dataclasses.replace(
    synthetic.CLOCK, language=('language_instruction', 'language_2', 'language_3')
  )
  monkeypatch.setitem(embodiments.EMBODIMENTS, 'clock', record)
  first = prompts.hash_words('first', 16, 2048)
  ids_BP = join(take(make_clock(path), 8)).prompt_ids_BP
  is_first_B = (ids_BP == first).all(1)
  # One of two, for the third is empty; 64 draws.
  assert 0.3 < is_first_B.mean() < 0.7
  assert (ids_BP != 0).any(1).all()
  assert (join(take_held_out(make_clock(path), 3)).prompt_ids_BP == first).all()


def test_eval_batches_are_fixed_and_from_their_split(clock_path):
  config = make_clock(clock_path)
  batches = take_held_out(config, 2)
  other = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=9))
  trees.assert_same(batches, take_held_out(other, 2))
  # `val` holds two episodes.
  episodes_B = join(batches).frames_BRIJ3[:, 0, 0, 0, 0]
  assert set(episodes_B.tolist()) == {0, 1}


def test_metadata_needs_no_dataset(clock_path):
  config = synthetic.make_config(
    {'a': (clock_path, 'clock', 1.0), 'b': (clock_path, 'clock_video', 1.0)}
  )
  known = robot_lib.from_metadata(json.loads(json.dumps(pipeline.Data.open(config).metadata)))
  assert known['clock'].record == synthetic.CLOCK
  assert known['clock_video'].id == 1
  assert known['clock_video'].statistics.action.q01.shape == (0,)
  np.testing.assert_allclose(known['clock'].statistics.state.q99[2], 0, atol=1e-6)


def test_several_datasets_of_one_robot_share_the_widest_statistics(tmp_path):
  paths = [synthetic.make_dataset(tmp_path / str(n), [n, n]) for n in (12, 30)]
  config = synthetic.make_config({'a': (paths[0], 'clock', 1.0), 'b': (paths[1], 'clock', 1.0)})
  stats = robot_lib.from_metadata(pipeline.Data.open(config).metadata)['clock'].statistics
  # 2 x 12 and 2 x 30 steps, of which the longer ones reach the action 28 in a chunk.
  assert stats.steps == 84
  assert stats.action.q99[0] > 27


def test_bad_sample_reaches_the_loop_with_its_name(tmp_path):
  def edit(episodes):
    for step in episodes[0]:
      step['observation']['top'].seek(0)
      step['observation']['top'].write(b'broken')

  path = synthetic.make_dataset(tmp_path, [16, 16], edit)
  with pytest.raises(
    ValueError, match="Image 'top' of step .* of record 0 of .*train.* is not a readable JPEG"
  ):
    take(make_clock(path), 4)


def test_truncated_shard_stops_before_training(tmp_path):
  path = synthetic.make_dataset(tmp_path, [16, 16])
  shard = next(pathlib.Path(path).glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes()[:-70000])
  with pytest.raises(
    ValueError, match=f'Cannot read record 0 of .*{shard.name}: the shard is missing, truncated'
  ):
    open_batches(make_clock(path))


def with_model(config, **model):
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


@pytest.mark.parametrize(
  'model, message',
  [
    (
      dict(frames_per_chunk=2),
      'clock shows 2 camera frames a chunk, the model takes .* = 4; change either',
    ),
    (
      dict(actions_per_chunk=4),
      r'clock has 8 control steps a chunk; set model.actions_per_chunk to at .*, or shorten',
    ),
    (
      dict(action_dim=1, proprio_dim=1),
      r'(?s)2 action dimensions; set model.action_dim.*take fewer.*3 state dimensions; set',
    ),
    (
      dict(actions_per_chunk=12, action_overlap=9),
      r'clock has 8 control steps a chunk; set model.action_overlap to at most that \(now 9\)',
    ),
    (dict(patch=3), r'shows the model 16 x 24 pixels; both must be multiples of .* = 12'),
  ],
)
def test_model_must_fit_the_robots(clock_path, model, message):
  with pytest.raises(ValueError, match=message):
    open_batches(with_model(make_clock(clock_path), **model))


def test_mixtures_that_cannot_be_are_refused(clock_path, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match='config.data.mixture is empty'):
    open_batches(synthetic.make_config({}))
  with pytest.raises(ValueError, match=r"weights {'a': 0.0}; every weight must be positive"):
    open_batches(synthetic.make_config({'a': (clock_path, 'clock', 0.0)}))
  with pytest.raises(
    ValueError, match=r"weights {'a': nan, 'b': inf}; every weight must be positive"
  ):
    open_batches(
      synthetic.make_config(
        {'a': (clock_path, 'clock', float('nan')), 'b': (clock_path, 'clock', float('inf'))}
      )
    )
  with pytest.raises(
    ValueError, match='none of its language spans that count is longer than one chunk'
  ):
    open_batches(make_clock(synthetic.make_dataset(tmp_path, [5, 5])))
  with pytest.raises(ValueError, match="has no split 'test'"):
    take_held_out(make_clock(clock_path), 1, 'test')
  wide = dataclasses.replace(synthetic.SLOW, composite=(16, 32))
  monkeypatch.setitem(embodiments.EMBODIMENTS, 'clock_slow', wide)
  with pytest.raises(
    ValueError, match='all embodiments need the same composite, got clock .*, clock_slow'
  ):
    open_batches(
      synthetic.make_config({'a': (clock_path, 'clock', 1.0), 'b': (clock_path, 'clock_slow', 1.0)})
    )


def test_warm_samples_cost_little(clock_path):
  """Training on two cores must not wait: a warm sample costs less than a fixed piece of work that
  takes such a core about a millisecond, in turns with it.
  """
  config = make_clock(clock_path)
  data = pipeline.Data.open(config)
  batches = data.train_batches()
  for step in range(30):
    batches.read(step)
  numbers = np.random.default_rng(0).random(15_000).tolist()
  ours_s = baseline_s = 0.0
  for step in range(30):
    start = time.process_time()
    batches.read(step)
    read = time.process_time()
    for _ in range(config.batch_size):
      sorted(numbers)
    ours_s += read - start
    baseline_s += time.process_time() - read
  assert ours_s < baseline_s
  assert 0 < data.opened.cache.used <= config.data.cache_gib * 2**30
  assert isinstance(data.open_mixture()[0].episodes, sources.Episodes)
