"""Stored features are what training would compute from pixels, however the work was divided or
interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.encode import work
from tests import films as films_lib
from tests import object_store
from tests import programs
from tests import weights
from tests.data import synthetic
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.data import cache as cache_lib
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import pipeline
from wam_jax.data import prompts
from wam_jax.data import samples
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import lookup
from wam_jax.data.features import record_files
from wam_jax.models import encoders
from wam_jax.models import tokenizer

ROOT = pathlib.Path(__file__).parents[2]
CLOCK = synthetic.CLOCK
FILM = films_lib.ROBOT
PATCHES = cfg.ModelConfig(
  dim=16,
  mlp_dim=16,
  num_heads=2,
  num_layers=1,
  action_hidden=8,
  num_embodiments=2,
  action_dim=3,
  proprio_dim=4,
  actions_per_chunk=8,
  text=cfg.TextConfig(dim=8, layers=0),
)
# A window a chunk, not augmented, in bfloat16.
PLAIN = record_files.Storing(anchor_stride=8)


@pytest.fixture(scope='module', autouse=True)
def robots():
  """The synthetic robots are in the table, and nothing is cached outside the tests' directories."""
  with pytest.MonkeyPatch.context() as patch:
    for record in (CLOCK, FILM, synthetic.VIDEO):
      patch.setitem(embodiments.EMBODIMENTS, record.name, record)
    yield


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory) -> str:
  return films_lib.write_vocabulary(tmp_path_factory.mktemp('vocabulary') / 'tokenizer.json')


@pytest.fixture(scope='module')
def model(vocabulary) -> cfg.ModelConfig:
  return films_lib.make_model(vocabulary)


@pytest.fixture(scope='module')
def frozen(model) -> encoders.Encoders:
  return weights.draw_encoders(model)


@pytest.fixture(scope='module')
def patches() -> encoders.Encoders:
  """A patch tokenizer, as a run that needs no download has it."""
  t = PATCHES.tokenizer
  rng = np.random.default_rng(0)
  P = t.temporal * t.spatial**2 * 3
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  video = tokenizer.PatchTokenizer(
    draw(P), draw(P, t.channels), draw(t.channels, P), t.temporal, t.spatial
  )
  return encoders.Encoders(video, None, None, PATCHES)


@pytest.fixture
def path(tmp_path) -> str:
  """Three synthetic episodes: 4 + 9 + 16 anchors, 1 + 2 + 2 windows a chunk apart."""
  return synthetic.make_dataset(tmp_path, [12, 17, 24])


def open_data(config, frozen, split=pipeline.TRAINING) -> pipeline.Data:
  """The split of a config's datasets, of features where there are some of these encoders."""
  return pipeline.Data.open(config, [split]).with_features(encoders.fingerprint(frozen))


def find_features(config, frozen, split=pipeline.TRAINING) -> dict[str, lookup.Stored]:
  mixture = open_data(config, frozen, split).open_mixture(split)
  return {sampler.name: sampler.stored for sampler in mixture if sampler.stored}


def make_job(path, model=PATCHES, record=CLOCK, storing=PLAIN, transform='none', split='train'):
  episodes = sources.Episodes(path, split, record, cache_lib.Cache(1))
  return work.make_job(model, episodes, windows.make_anchors(episodes), storing, transform)


def run(job, frozen, *shard, batch=8):
  hashes = encoders.fingerprint(frozen)
  return work.encode(job, frozen, hashes, work.make_machine(batch, 2), *shard)


def find(job, frozen) -> lookup.Stored:
  return lookup.find(
    job.episodes, job.anchors, job.model, encoders.fingerprint(frozen), job.transform
  )


def contents(place) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in pathlib.Path(place).iterdir()}


def pixel_batch(job) -> types.Batch:
  """Every variant of the job's windows, with the episode's prompt, as the pipeline gives them."""
  m = job.model
  rng = np.random.default_rng(0)
  rows = len(job.samples_W) * job.storing.variants
  Q = m.max_chunks
  A = Q * m.actions_per_chunk
  tokenize = prompts.make_tokenizer(m.text)
  texts = [job.episodes[job.anchors[int(sample)][0]].texts(0)[0] for sample in job.samples_W]
  ids_WP = np.stack([tokenize(job.episodes.record.instruct(words)) for words in texts])
  draw = lambda *shape: rng.normal(size=(rows, *shape)).astype(np.float32)
  return types.Batch(
    frames_BRIJ3=np.stack([job.load_frames(row) for row in range(rows)]),
    action_BAU=draw(A, m.action_dim),
    action_mask_BAU=np.ones((rows, A, m.action_dim), bool),
    proprio_BQX=draw(Q, m.proprio_dim),
    chunk_mask_BQ=np.ones((rows, Q), bool),
    prompt_ids_BP=ids_WP.repeat(job.storing.variants, 0),
    embodiment_B=np.zeros(rows, np.int32),
    sample_B2=np.zeros((rows, 2), np.int32),
  )


def feature_batch(stored: lookup.Stored, batch: types.Batch) -> types.Batch:
  """The same from stored features."""
  rows = []
  for row, ids_P in enumerate(batch.prompt_ids_BP):
    window, variant = divmod(row, stored.variants)
    rows.append(stored.read(window, variant, ids_P))
  read = samples.stack(rows)
  return batch.replace(frames_BRIJ3=None, features=types.Features(**read))


def computed(job, frozen, batch) -> types.Features:
  """What a training step computes of pixels."""
  window = jax.jit(functools.partial(train_step.encode_batch, job.model))(None, frozen, batch)
  condition = window.condition.latents_BFHWC
  return types.Features(
    clean_BFHWC=window.clean_BFHWC,
    text_BPC=None if frozen.text is None else window.text_BPC,
    image_BIC=window.condition.image_BIC,
    condition_BFHWC=None if condition is None else condition[..., 4:],
  )


def assert_rounded(got, want, bits):
  """Stored with a significand of so many bits; the rest is the order of sums."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2.0**-bits, atol=1e-5), got, want)
  jax.tree.map(lambda g, w: np.testing.assert_equal(g.dtype, w.dtype), got, want)


@pytest.fixture(scope='module')
def films(tmp_path_factory, model, frozen):
  """(job, stored features) of a tiny model with all of the released encoders."""
  job = make_job(
    synthetic.make_dataset(tmp_path_factory.mktemp('films'), [12, 17, 24]), model, FILM
  )
  summary = run(job, frozen)
  assert (summary['windows'], summary['prompts'], summary['missing_files']) == (5, 3, 0)
  return job, find(job, frozen)


def test_stored_features_are_those_of_pixels(films, frozen):
  job, stored = films
  batch = pixel_batch(job)
  assert_rounded(feature_batch(stored, batch).features, computed(job, frozen, batch), bits=8)


def test_half_precision_is_nearer(films, frozen, tmp_path):
  job, _ = films
  without_features = shutil.ignore_patterns('wam_features_*')
  path = shutil.copytree(job.episodes.path, tmp_path / 'copy', ignore=without_features)
  job = dataclasses.replace(
    job,
    storing=dataclasses.replace(PLAIN, dtype='float16'),
    episodes=sources.Episodes(path, 'train', FILM, cache_lib.Cache(1)),
  )
  run(job, frozen)
  batch = pixel_batch(job)
  assert_rounded(
    feature_batch(find(job, frozen), batch).features, computed(job, frozen, batch), bits=11
  )


def test_a_training_step_from_features_is_one_from_pixels(films, frozen):
  job, stored = films
  config = cfg.TrainConfig(model=job.model)
  params = weights.draw_params(job.model, seed=9)

  pixels = pixel_batch(job)
  m, f = config.model, config.flow
  noise = train_step.sample_noise(m, f, jax.random.key(0), frozen, pixels)
  look = jax.jit(functools.partial(train_step.encode_batch, job.model))

  @jax.jit
  def update(window):
    def loss(params):
      velocities = train_step.predict(m, f, params, window, noise)
      return train_step.velocity_loss(m, f, window, noise, velocities)[0]

    return jax.value_and_grad(loss)(params)

  # What bfloat16 alone changes, apart from what is wrong.
  rounded = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(x.dtype), computed(job, frozen, pixels)
  )
  step = lambda batch: update(look(params, frozen, batch))
  from_pixels = step(pixels)
  from_stored = step(feature_batch(stored, pixels))
  from_rounded = step(pixels.replace(frames_BRIJ3=None, features=rounded))

  norm = lambda tree: float(optax.tree.norm(tree))
  apart = lambda a, b: norm(jax.tree.map(jnp.subtract, a[1], b[1])) / norm(b[1])
  # Losses, then gradients: those of rounded features but for the order of sums, and within bfloat16
  # (8 bits) those of pixels.
  np.testing.assert_allclose(from_stored[0], from_rounded[0], rtol=1e-5)
  np.testing.assert_allclose(from_stored[0], from_pixels[0], rtol=2.0**-8)
  assert apart(from_stored, from_rounded) < 1e-4
  assert apart(from_stored, from_pixels) < 2.0**-6


def test_a_model_that_needs_no_download_stores_latents_only(path, patches):
  job = make_job(path)
  summary = run(job, patches)
  assert summary['prompts'] == 0
  assert summary['encoded_windows']['records'] == 5
  stored, batch = find(job, patches), pixel_batch(job)
  got = feature_batch(stored, batch).features
  assert got.text_BPC is None
  assert got.image_BIC is None
  assert got.condition_BFHWC is None
  assert_rounded(got, types.Features(clean_BFHWC=patches.encode(batch.frames_BRIJ3)), bits=8)

  # A second run has nothing to do.
  again = run(job, patches)
  assert again['encoded_windows']['records'] == 0
  assert again['bytes'] == summary['bytes']


def test_the_grid_begins_at_every_span_or_at_a_drawn_step(path):
  def starts(**storing):
    job = make_job(path, storing=record_files.Storing(**storing))
    return [job.anchors[int(sample)][:2] for sample in job.samples_W]

  # Episodes of 12, 17 and 24 steps: a chunk of 8 may begin at steps 0-3, 0-8, 0-15.
  assert starts(anchor_stride=8) == [(0, 0), (1, 0), (1, 8), (2, 0), (2, 8)]
  assert starts(anchor_stride=5) == [(0, 0), (1, 0), (1, 5), (2, 0), (2, 5), (2, 10), (2, 15)]
  drawn = [starts(anchor_stride=8, draw_offset=True, seed=seed) for seed in range(100)]
  # Seed 0 is the default. Over the seeds every step of the longest episode is a start.
  assert drawn[0] == starts(anchor_stride=8, draw_offset=True)
  assert {step for grid in drawn for number, step in grid if number == 2} == set(range(16))
  for grid in drawn:
    # No episode is left out, however short.
    assert {number for number, _ in grid} == {0, 1, 2}
    for (number, step), (next_number, next_step) in itertools.pairwise(grid):
      if number == next_number:
        assert next_step - step == 8


def test_variants_are_augmented_each_in_its_own_way(path, patches):
  job = make_job(path, storing=dataclasses.replace(PLAIN, variants=3), transform='random')
  assert run(job, patches)['encoded_windows']['records'] == 15
  stored, batch = find(job, patches), pixel_batch(job)
  got = feature_batch(stored, batch).features
  assert_rounded(got, types.Features(clean_BFHWC=patches.encode(batch.frames_BRIJ3)), bits=8)
  assert len({x.tobytes() for x in got.clean_BFHWC}) == 15
  # The frames of a window share their augmentation: its clock still runs, its colours keep their
  # distance.
  frames_RIJ3 = batch.frames_BRIJ3[9].astype(int)
  assert len(np.unique(frames_RIJ3.reshape(5, -1, 3)[:, 0], axis=0)) > 1
  plain = make_job(path)
  assert not (pixel_batch(plain).frames_BRIJ3[3] == frames_RIJ3).all()


def test_the_centre_crop_is_what_evaluation_sees(path, patches):
  job = make_job(path, transform='center', split='val')
  run(job, patches)
  number, step, _ = job.anchors[0]
  views = {key: job.episodes[number].decode(key, step) for key in ('top', 'wrist')}
  np.testing.assert_array_equal(
    job.load_frames(0)[0], images.compose(CLOCK, views, images.CENTER_CROP)
  )
  assert find(job, patches).variants == 1


def test_shards_share_the_work(path, tmp_path, patches):
  # A window or two in a file.
  small = dataclasses.replace(PLAIN, file_mib=0.002)
  whole = run(make_job(path, storing=small), patches)['place']
  want = contents(whole)
  assert sum(name.startswith('windows') for name in want) > 2
  shutil.rmtree(whole)
  first = run(make_job(path, storing=small), patches, 0, 2)
  assert first['missing_files'] > 0
  assert not (pathlib.Path(whole) / 'manifest.json').exists()
  second = run(make_job(path, storing=small), patches, 1, 2)
  assert second['missing_files'] == 0
  assert first['encoded_windows']['records'] + second['encoded_windows']['records'] == 5
  assert contents(whole) == want


def test_what_cannot_be_stored_is_refused(path, patches, model, frozen, monkeypatch):
  with pytest.raises(
    ValueError,
    match="'clock' shows 2 camera frames a chunk, the model of the workdir takes 4; give",
  ):
    make_job(path, model)
  with pytest.raises(
    ValueError, match='--batch=12 must be divisible by the 8 devices; nearest valid: 16'
  ):
    work.make_machine(12, 1)
  broken = patches.replace(
    tokenizer=patches.tokenizer.replace(mean_P=patches.tokenizer.mean_P * np.nan)
  )
  with pytest.raises(
    ValueError, match='give NaN, infinity or, .* for the window at step 0 of record 0 of .*train'
  ):
    run(make_job(path), broken)
  # Finite, but beyond the 65504 of float16.
  large = patches.replace(
    tokenizer=patches.tokenizer.replace(encode_PC=patches.tokenizer.encode_PC * 1e5)
  )
  with pytest.raises(
    ValueError, match='with --dtype=float16, more than that holds .* Store --dtype=bfloat16'
  ):
    run(make_job(path, storing=dataclasses.replace(PLAIN, dtype='float16')), large)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda place: shutil._ntuple_diskusage(2**40, 2**40 - 100, 100)
  )
  with pytest.raises(
    ValueError, match=r'wam_features_.* needs about 0.0 GiB more, and 0.0 GiB are free. Make room'
  ):
    run(make_job(path, storing=dataclasses.replace(PLAIN, seed=1)), patches)


def make_config(**datasets) -> cfg.TrainConfig:
  """Of a mixture of datasets {name: path} of the synthetic robot, with the patch tokenizer."""
  config = synthetic.make_config({name: (path, 'clock', 1.0) for name, path in datasets.items()})
  return dataclasses.replace(config, batch_size=5, model=PATCHES)


def with_data(config, **data) -> cfg.TrainConfig:
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def take(config, frozen, n) -> list[types.Batch]:
  with contextlib.closing(open_data(config, frozen).train_batches()) as batches:
    return list(itertools.islice(batches, n))


def test_batches_hold_features_in_place_of_pixels(path, patches):
  config, job = make_config(clock=path), make_job(path)
  assert find_features(config, patches) == {}
  run(job, patches)
  batches = take(config, patches, 3)
  (sampler,) = pipeline.Data.open(config).open_mixture()
  # One epoch each: 5 windows, every one once.
  for batch in batches:
    windows_B = batch.sample_B2[:, 1]
    assert sorted(windows_B) == [0, 1, 2, 3, 4]
    assert batch.frames_BRIJ3 is None
    clean = patches.encode(np.stack([job.load_frames(w) for w in windows_B]))
    assert_rounded(batch.features, types.Features(clean_BFHWC=clean), bits=8)
    want = samples.stack(
      [sampler(int(job.samples_W[w]), np.random.default_rng(0)) for w in windows_B]
    )
    for name in want.keys() - {'frames_BRIJ3', 'sample_B2'}:
      np.testing.assert_array_equal(getattr(batch, name), want[name])
  assert len({tuple(batch.sample_B2[:, 1]) for batch in batches}) > 1


def test_an_update_runs_on_stored_features(path, patches):
  config = make_config(clock=path)
  run(make_job(path), patches)
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:1])
  state, shardings = train_step.init_state(config, mesh, patches)
  step = train_step.make_train_step(config, mesh, shardings)
  (batch,) = take(config, patches, 1)
  frames = np.stack([make_job(path).load_frames(window) for window in batch.sample_B2[:, 1]])
  got, want = (
    step(jax.tree.map(jnp.copy, state), b)[1]
    for b in (batch, batch.replace(features=None, frames_BRIJ3=frames))
  )
  for name in ('loss', 'video_loss', 'action_loss', 'grad_norm'):
    np.testing.assert_allclose(got[name], want[name], rtol=2.0**-8, err_msg=name)


def test_prompts_of_batches_are_among_the_stored(films, frozen):
  job, stored = films
  config = dataclasses.replace(
    synthetic.make_config({'film': (str(job.episodes.path), 'clock_film', 1.0)}),
    batch_size=5,
    model=job.model,
  )
  (batch,) = take(config, frozen, 1)
  tokenize = prompts.make_tokenizer(job.model.text)
  for window, ids_P, text_PC in zip(
    batch.sample_B2[:, 1], batch.prompt_ids_BP, batch.features.text_BPC
  ):
    np.testing.assert_array_equal(
      ids_P, tokenize(f'task {job.anchors[stored.find_anchor(window)].episode % 3}')
    )
    np.testing.assert_array_equal(text_PC, stored.read(0, 0, ids_P)['text_BPC'])
    assert text_PC[: np.count_nonzero(ids_P)].any(1).all()
    assert not text_PC[np.count_nonzero(ids_P) :].any()


def test_augmented_training_and_its_evaluation_have_features_of_their_own(path, patches):
  config = with_data(make_config(clock=path), augment=True)
  run(make_job(path, storing=dataclasses.replace(PLAIN, variants=2), transform='random'), patches)
  drawn = {
    (window, x.tobytes())
    for batch in take(config, patches, 8)
    for window, x in zip(batch.sample_B2[:, 1].tolist(), batch.features.clean_BFHWC)
  }
  # Two variants of each.
  assert len(drawn) == 10
  assert find_features(config, patches, 'val') == {}
  val = make_job(path, transform='center', split='val')
  run(val, patches)
  (batch,) = open_data(config, patches, 'val').eval_batches('val', 1)
  clean = patches.encode(np.stack([val.load_frames(window) for window in batch.sample_B2[:, 1]]))
  assert_rounded(batch.features, types.Features(clean_BFHWC=clean), bits=8)
  with pytest.raises(ValueError, match='transform: random crop of 0.95 stored, none here'):
    find_features(with_data(config, augment=False), patches)
  assert find_features(with_data(config, augment=False, features='off'), patches) == {}


def test_features_of_a_part_of_the_mixture_are_refused(path, tmp_path, patches):
  other = synthetic.make_dataset(tmp_path / 'other', [12, 12])
  config = make_config(a=path, b=other)
  with pytest.raises(
    ValueError,
    match=r"\['a', 'b'\] of config.data.mixture have no stored features, but .*'require'",
  ):
    find_features(with_data(config, features='require'), patches)
  assert find_features(with_data(config, features='require'), patches, 'val') == {}
  run(make_job(path), patches)
  with pytest.raises(
    ValueError, match=r"\['b'\] of config.data.mixture have no .*not both, and \['a'\] have some"
  ):
    find_features(config, patches)
  run(make_job(other), patches)
  stored = find_features(config, patches)
  assert {len(stored[name]) for name in 'ab'} == {5, 2}
  with pytest.raises(ValueError, match="data.features='never' must be one of"):
    with_data(config, features='never')


def write_workdir(workdir, config, frozen) -> None:
  """A checkpoint of a run with these encoders."""
  state = train_step.TrainState(
    step=jnp.int32(0),
    params={'w': jnp.zeros(1)},
    ema_params=None,
    opt_state={'m': jnp.zeros(1)},
    frozen=jax.tree.map(jnp.asarray, frozen),
  )
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    metadata = {
      'config': cfg.to_dict(config),
      'data': {},
      'encoders': encoders.fingerprint(frozen),
    }
    checkpoints.save(0, state, {}, metadata)


def kill_midway(process: subprocess.Popen, dataset: pathlib.Path) -> None:
  """Kills an encoding once three of its files are there; no handler runs, as if the power went."""
  while len(list(dataset.glob('wam_features_*/windows-*'))) < 3:
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.communicate()


@pytest.mark.slow
def test_killed_and_continued_is_straight(tmp_path, patches):
  """From the command line, with an imported checkpoint of a shipped robot."""
  # 320 windows in files so small that the kill finds some of them finished and some not.
  model = dataclasses.replace(PATCHES, action_dim=7, proprio_dim=7, actions_per_chunk=4)
  write_workdir(tmp_path / 'run', cfg.TrainConfig(model=model), patches.replace(config=model))
  bridge = synthetic.write_bridge(tmp_path, episodes=40, steps=12)
  dataset = pathlib.Path(bridge).parent / 'array_record/synthetic_rlds/1.0.0'
  args = [
    sys.executable,
    '-m',
    'data.encode',
    f'--workdir={tmp_path / "run"}',
    f'--dataset={dataset}',
    '--batch=1',
    '--embodiment=bridge_widowx',
    '--anchor_stride=1',
    '--file_mib=0.02',
    f'--json={tmp_path / "summary.json"}',
  ]
  start = functools.partial(
    subprocess.Popen,
    args,
    cwd=ROOT,
    env=programs.environment(),
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  kill_midway(start(), dataset)
  place = next(dataset.glob('wam_features_*'))
  assert not (place / 'manifest.json').exists()
  kept = {p: p.stat().st_mtime_ns for p in place.glob('windows-*')}
  # What a kill in the middle of a file leaves.
  (place / '.0a1b2c3d.windows-00003-of-00320.array_record').touch()
  process = start()
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['windows'] == 320
  assert 0 < summary['encoded_windows']['records'] < 320
  assert '320 windows x 1 (none), 0 prompts' in output
  assert 'windows/s' in output
  assert kept == {p: p.stat().st_mtime_ns for p in kept}

  # Byte for byte what a run without interruption writes.
  continued = contents(place)
  shutil.rmtree(place)
  start().communicate(timeout=240)
  assert contents(place) == continued


def as_slurm_step(number: int, count: int, job: int) -> dict[str, str]:
  """What `srun` tells process `number` of so many on one host; its port follows from `job`."""
  return {
    'SLURM_JOB_ID': str(job),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(count),
    'SLURM_PROCID': str(number),
    'SLURM_LOCALID': str(number),
  }


@pytest.mark.slow
def test_two_hosts_share_a_dataset_in_a_bucket(tmp_path, patches):
  """Byte for byte what one writes to a disk, also after one that was killed."""
  model = dataclasses.replace(PATCHES, action_dim=7, proprio_dim=7, actions_per_chunk=4)
  write_workdir(tmp_path / 'run', cfg.TrainConfig(model=model), patches.replace(config=model))
  bridge = synthetic.write_bridge(tmp_path, episodes=24, steps=12)
  dataset = pathlib.Path(bridge).parent / 'array_record/synthetic_rlds/1.0.0'
  flags = (
    f'--workdir={tmp_path / "run"}',
    '--embodiment=bridge_widowx',
    '--anchor_stride=1',
    '--file_mib=0.02',
  )
  with object_store.ObjectStore() as store:
    for path in filter(pathlib.Path.is_file, dataset.rglob('*')):
      store.put(f'bridge/{path.relative_to(dataset).as_posix()}', path.read_bytes())

    def start(number: int, count: int, *more: str) -> programs.Program:
      return programs.Program(
        'data.encode',
        *(*flags, '--dataset=gs://bucket/bridge', '--distributed', *more),
        variables=store.environment | as_slurm_step(number, count, os.getpid() + count),
        one_stream=True,
      )

    def find_windows() -> dict[str, bytes]:
      names = [name for name in store.list('bridge/wam_features_') if '/windows-' in name]
      return {pathlib.Path(name).name: store.read(name) for name in names}

    killed = start(0, 1, '--batch=8')
    while len(find_windows()) < 2:
      assert killed.poll() is None, killed.communicate()[0]
      time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    early = find_windows()

    pair = [start(number, 2) for number in range(2)]
    said = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    # Each did a part of what was left; the first one speaks.
    done = re.search(r'(\d+) of (\d+) encoded now', said[0])
    assert 0 < int(done[1]) < int(done[2])
    assert 'encoded now' not in said[1]
    # One process read the episodes, and kept what it found.
    assert [name for name in store.list('bridge/') if 'wam_spans' in name]
    features = store.list('bridge/wam_features_')
    given = {pathlib.Path(name).name: store.read(name) for name in features}

  straight = programs.run('data.encode', *flags, f'--dataset={dataset}')
  assert straight.returncode == 0, straight.stderr
  (place,) = dataset.glob('wam_features_*')
  want = {path.name: path.read_bytes() for path in place.iterdir()}
  assert given.keys() == want.keys()
  records = {name for name in want if name.endswith('.array_record')}
  assert len(early) < len(records)
  assert {name: given[name] for name in records} == {name: want[name] for name in records}
  # What was there when it was killed was whole.
  assert early == {name: want[name] for name in early}
  # The name holds everything that features depend on.
  assert place.name in features[0]


@pytest.mark.parametrize(
  'given, message',
  [
    ((), 'is not the workdir of a training run'),
    (
      ('--dataset=s3://bucket/droid/1.0.1',),
      "--dataset 's3://bucket/droid/1.0.1' is an object store other than gs://. Mount it",
    ),
    (('--shard_index=2', '--shard_count=2'), '--shard_index=2 must be below --shard_count=2'),
    (('--augmentations=2', '--center_crop'), '--center_crop for the held-out one; give either'),
  ],
)
def test_mistakes_end_as_one_message(path, tmp_path, given, message):
  done = programs.run(
    'data.encode',
    f'--workdir={tmp_path}',
    f'--dataset={path}',
    '--embodiment=bridge_widowx',
    *given,
  )
  assert done.returncode == 2
  assert re.search(f'error: .*{message}', done.stderr), done.stderr


def test_what_a_run_holds_out_is_named_by_its_config():
  mixture = {
    'a': cfg.DatasetConfig('~/a', embodiment='clock', held_out='train[90%:]'),
    'b': cfg.DatasetConfig('~/b', embodiment='clock'),
  }
  config = cfg.TrainConfig(data=cfg.DataConfig(mixture=mixture, embodiments=('clock',)))
  home = os.path.expanduser('~')
  assert work.find_held_out(config, f'{home}/a') == 'train[90%:]'
  assert work.find_held_out(config, '~/b') == 'val'
  with pytest.raises(ValueError, match=r"does not train on /c; it has \['~/a', '~/b'\]"):
    work.find_held_out(config, '/c')
