"""The benchmarks measure what they say."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import sys
import time

import cv2
import numpy as np
import pytest
from etils import epath

from benchmarks import contest
from benchmarks import tabletop
from benchmarks.data import contestants
from benchmarks.data import episodes
from benchmarks.data import work
from benchmarks.pods import work as pods
from benchmarks.precision import work as precision
from tests import programs
from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import search
from wam_jax.checkpoint import inference
from wam_jax.data import shapes

ROOT = pathlib.Path(__file__).parents[1]


def test_rate_counts_calls_per_second():
  """A call takes 0.25 s of a clock that nothing else moves."""
  now = [0.0]

  def call():
    now[0] += 0.25

  assert tabletop.rate(call, 8.0, clock=lambda: now[0]) == 4.0
  assert now[0] >= 8.8  # A tenth of the time is warm-up.


def test_the_world_runs_as_fast_as_images_are_filtered():
  """A step draws two views of 32 pixels and moves the physics in about the time in which OpenCV
  blurs one picture of 256.
  """
  rates = tabletop.measure('disc', 0.2)
  picture = np.zeros((256, 256, 3), np.uint8)
  baseline = tabletop.rate(lambda: cv2.GaussianBlur(picture, (5, 5), 0), 0.2)
  assert set(rates) == {
    'physics',
    'render 32 px',
    'render 256 px',
    'step, both views',
    'scene 384 px',
  }
  assert (
    rates['step, both views'] > 0.1 * baseline
  )  # Measured 1.0; the margin is for busy machines.
  assert rates['physics'] > rates['step, both views']


COUNTS = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import contest

def work():
  with open({log!r}, 'a') as f:
    f.write('x')
  sum(range(20_000))
  return 3

contest.serve(work)
"""


def test_a_contestant_works_only_while_it_is_measured(tmp_path):
  program = tmp_path / 'count.py'
  log = tmp_path / 'log'
  program.write_text(COUNTS.format(root=str(ROOT), log=str(log)))
  core = min(os.sched_getaffinity(0))
  with contest.Contestant([sys.executable, str(program)], [core]) as contestant:
    first = len(log.read_text())
    turn = contestant.turn(0.2)
    after = len(log.read_text())
    time.sleep(0.2)
    assert len(log.read_text()) == after
  assert turn.samples == 3 * (after - first)
  # It ends with the first work that is done after the CPU time that was asked for.
  assert 0.2 <= turn.cpu_s < 0.5
  assert turn.cpu_s < 1.1 * turn.wall_s + 0.01
  assert turn.rate == turn.samples / turn.cpu_s
  assert contestant.start_s > 0
  assert turn.rss_mib > 5


def test_a_contestant_that_fails_is_named():
  with pytest.raises(ValueError, match='ended with code 3; its messages are above'):
    contest.Contestant(
      [sys.executable, '-c', 'import sys; sys.exit(3)'], [min(os.sched_getaffinity(0))]
    )


def test_made_up_episodes_are_as_large_as_droids(tmp_path):
  example = episodes.make_episode(0, 3)
  seen = [step['observation'] for step in example['steps']]
  encoded = [[views[key].getvalue() for key in episodes.VIEWS] for views in seen]
  sizes = [len(image) for images in encoded for image in images]
  assert 15_000 < np.mean(sizes) < 28_000  # DROID: 21 kB.

  first, last = (_decode(encoded[t][2]) for t in (0, 2))
  # They move.
  assert first.shape == (180, 320, 3)
  assert 0.5 < np.abs(first - last).mean() < first.std()


def _decode(image):
  return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).astype(int)


def test_bytes_that_a_layout_needs_by_hand():
  """16 devices: weights in 4 parts, 2 replicas of them beside the 2 of a sample's tokens."""
  config = cfg.from_config_dict(cfg.base())
  config = dataclasses.replace(
    config,
    batch_size=16,
    accumulate=2,
    model=dataclasses.replace(config.model, dtype='bfloat16'),
    data=dataclasses.replace(config.data, embodiments=('tabletop_disc',)),
  )
  m = config.model
  needed = pods.needed_bytes(config, {'slices': 1, 'data': 2, 'fsdp': 4, 'tensor': 1, 'seq': 2})
  weights = 2 * search.count_parameters(m)
  # Two passes: gathered forward and backward, three parts of four from others.
  assert needed['weights'] == 2 * 2 * weights * 3 / 4
  # Scattered over the four, then the fourth part is summed over four replicas.
  assert needed['gradients'] == 2 * (weights * 3 / 4 + 2 * weights / 4 * 3 / 4)
  assert needed['tensor'] == 0
  # Keys and values of two samples, bfloat16, gathered twice and scattered once, half of each.
  tokens = flops.training_tokens(m, shapes.sizes(config).tokens_per_frame)
  assert needed['seq'] == 3 * 2 * m.num_layers * 2 * 2 * tokens * m.dim / 2


def test_runs_of_pods_are_all_configs_that_are_meant_for_them():
  named = {run.name.partition(':')[0] for run in pods.RUNS}
  on_pods = [path.stem for path in (ROOT / 'configs').glob('*.py') if 'v5p' in path.read_text()]
  assert named == set(on_pods)
  with pytest.raises(ValueError, match='droid_15b is no run; there are droid_5b, droid_14b:v5p'):
    pods.measure_runs(lambda text: None, only=['droid_15b'], machine_code=False)


@pytest.mark.slow
def test_data_benchmark_prints_its_tables(tmp_path):
  written = tmp_path / 'out.json'
  done = programs.run(
    'benchmarks.data',
    f'--data={tmp_path / "data"}',
    '--episodes=1',
    '--steps=140',
    '--tensorflow_python=',
    '--rounds=1',
    '--seconds=1',
    f'--core={min(os.sched_getaffinity(0))}',
    f'--json={written}',
  )
  assert done.returncode == 0, done.stderr
  tables = json.loads(written.read_text())
  decoding, _, ours, droid = tables['throughput']
  assert [row['name'] for row in tables['throughput']] == [
    'decoding alone',
    'reading and decoding',
    'wam_jax',
    'wam_jax, tiled as DROID',
  ]
  assert 0.5 < droid['samples_per_s'] / ours['samples_per_s'] < 1.5
  assert 0.2 < ours['samples_per_s'] / decoding['samples_per_s'] < 1
  assert 0.2 < ours['of_limit'] < 1
  indexed, whole = tables['access']
  assert indexed['warm_ms'] < whole['warm_ms']
  assert tables['headline'] == {}
  assert tables['made_by']['command'].startswith('python -m benchmarks.data --data=')
  assert re.fullmatch(r'[0-9a-f]{7,}\+?|unknown', tables['made_by']['commit'])
  assert f'commit: {tables["made_by"]["commit"]}' in done.stdout
  assert 'decoding alone' in done.stdout
  assert 'one window, whole episode' in done.stdout


def test_the_headline_is_of_the_same_work():
  def row(name, of_limit):
    return {
      'name': name,
      'samples_per_s': 1.0,
      'of_limit': of_limit,
      'start_s': 1.0,
      'rss_mib': 1.0,
    }

  rows = [
    row('wam_jax', 0.56),
    row(contestants.MATCHED, 0.25),
    row(contestants.OPERATIONS, 0.16),
  ]
  assert work.headline(rows)['ratio'] == 0.56 / 0.25
  first, *_, matched, operations = work.show_throughput(rows).splitlines()
  assert first == 'wam_jax: 2.24 times the windows a CPU second of tf.data, the same work'
  assert 'a choice of about 1.5 GB' in matched
  assert 'four tf.image operations' in operations
  # Each baseline says what it does, and the matched one has our colours.
  baselines = contestants.list_baselines(epath.Path('data'))
  assert set(baselines) < set(contestants.DOES_MORE)
  assert [settings['jitter'] for settings in baselines.values()] == ['matrix', 'ops', 'ops']


def test_data_benchmark_needs_tensorflow_for_its_baseline(tmp_path):
  done = programs.run(
    'benchmarks.data', f'--data={tmp_path}', '--tensorflow_python=/nowhere/python'
  )
  assert done.returncode == 2
  assert 'error: --tensorflow_python=/nowhere/python cannot import tensorflow' in done.stderr
  assert not list(tmp_path.iterdir())


def test_pytorch_baseline_is_the_same_model():
  pytest.importorskip('torch', reason="pip install -e '.[torch]'")
  from benchmarks.step import work
  from configs import tiny

  given = tiny.get_config()
  given.batch_size = 2
  given.model.num_layers = 2
  given.model.dim = 24
  given.model.mlp_dim = 48
  found = work.compare(cfg.from_config_dict(given))
  assert found['gradient_error'] < 1e-5
  given.flow.weighting = 'bump'
  with pytest.raises(ValueError, match=r"flow.weighting='bump'.*use 'uniform'"):
    work.compare(cfg.from_config_dict(given))


@pytest.mark.slow
def test_the_server_is_measured_in_small():
  """Each part runs, and what is exact holds at any size."""
  pytest.importorskip('websockets', reason="pip install -e '.[serve]'")
  from benchmarks.serving import work as serving

  wire = serving.measure_wire(rounds=3)
  assert [row.split()[0] for row in wire] == ['1', '4']
  assert all(row['ours / echo'] > 0 for row in wire.values())
  hostile = serving.measure_hostile(messages=100, frames=10)
  assert hostile['equal to those without']
  assert hostile['tracebacks'] == 0
  overload = serving.measure_overload(seconds=1.0, robots=4)
  assert set(overload['refused']) <= {'overloaded', 'superseded'}
  assert overload['asked'] > 50


def test_a_server_is_weighed_when_what_is_over_is_gone(monkeypatch):
  pytest.importorskip('websockets', reason="pip install -e '.[serve]'")
  from benchmarks.serving import real

  figures = iter([9, 7, 7, 8, 6, 6, 6, 5])
  now = {'wam_sessions': 0, 'wam_device_bytes': 9}
  visit = lambda port: now.update(wam_device_bytes=next(figures))
  monkeypatch.setattr(real, '_visit', visit)
  monkeypatch.setattr(real.work, 'read_metrics', lambda health_port: dict(now))
  assert real._settle(1, 2)[0]['wam_device_bytes'] == 6
  # One that never stands still is told as it is at last.
  monkeypatch.setattr(real, '_SETTLES_S', 0.3)
  figures = iter(range(100))
  assert 1 <= real._settle(1, 2)[0]['wam_device_bytes'] < 10


@pytest.mark.slow
def test_precisions_are_compared_on_what_the_baseline_sees():
  config = cfg.TrainConfig(model=test_policy.MODEL, sample=test_policy.JOINT)
  trained = inference.Trained(
    config, test_policy.random_params(), test_policy.fitted(), metadata={}, step=0
  )
  beside = precision.Beside(trained, ['bfloat16', 'w8a8'])
  beside.reset(test_policy.TASK, test_policy.FRAMES[:, 0], seed=0)
  acted, _ = beside.step(test_policy.observe(0))
  rows = beside.compare()
  assert rows['bfloat16']['mean_error'] == 0
  real = np.asarray(acted, np.float32)[test_policy.MASK_BAU]
  error = np.abs(np.concatenate(beside.actions['w8a8']) - real)
  assert rows['w8a8']['relative_error'] == pytest.approx(error.mean() / np.abs(real).mean())
  assert rows['w8a8']['p95_error'] > 0
  wide, narrow = (beside.count_bytes(name)['layers'] for name in ('bfloat16', 'w8a8'))
  assert 0.5 < narrow / wide < 0.75
