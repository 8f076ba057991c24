"""What a run writes down, and what it shows."""

from __future__ import annotations

import json
import sys

import pytest

from wam_jax import config as cfg
from wam_jax import metrics


def write_run(workdir, after, steps):
  writer = metrics.MetricsWriter(workdir, after)
  for step in steps:
    writer.write(step, {'loss': 1 / step, 'grad_norm': float(step)}, {'samples_per_s': 3.0})
  writer.close()


def test_resumed_file_equals_straight_one(tmp_path):
  straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
  straight.mkdir()
  resumed.mkdir()
  write_run(straight, 0, [10, 20, 30, 40])
  write_run(resumed, 0, [10, 20, 30])
  with (resumed / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 40, "lo')  # Killed while writing.
  # From the checkpoint of step 20: lines after it are dropped and written again.
  write_run(resumed, 20, [30, 40])
  assert (resumed / 'metrics.jsonl').read_bytes() == (straight / 'metrics.jsonl').read_bytes()
  assert len((resumed / 'timing.jsonl').read_text().splitlines()) == 4


def test_clock_values_stay_out_of_metrics(tmp_path):
  write_run(tmp_path, 0, [4])
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {
    'step': 4,
    'grad_norm': 4.0,
    'loss': 0.25,
  }
  assert json.loads((tmp_path / 'timing.jsonl').read_text()) == {'step': 4, 'samples_per_s': 3.0}
  assert list((tmp_path / 'tensorboard').glob('events.*'))


def test_lines_are_json_even_when_a_value_is_not_finite(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, 0)
  # NaN is no JSON, though Python would write it.
  writer.write(1, {'action_loss': float('nan'), 'loss': 2.0}, {})
  writer.close()
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {
    'step': 1,
    'action_loss': None,
    'loss': 2.0,
  }


def test_nothing_is_rewritten_when_nothing_is_dropped(tmp_path):
  write_run(tmp_path, 0, [1, 2])
  # A file that is written whole anew has another inode.
  before = (tmp_path / 'metrics.jsonl').stat().st_ino
  metrics.drop_after(tmp_path / 'metrics.jsonl', 2)
  assert (tmp_path / 'metrics.jsonl').stat().st_ino == before


class Clock:
  """Seconds that pass when a test says so."""

  def __init__(self):
    self.now_s = 0.0

  def __call__(self):
    return self.now_s


def test_speed_is_counted_from_the_first_step_on():
  clock = Clock()
  speed = metrics.Speed(4, clock=clock)
  assert speed.samples_per_s == 0
  for step in range(1, 32):  # One second each, after a minute of compilation.
    clock.now_s = 60.0 + step
    speed.update(step)
  assert speed.samples_per_s == 4.0
  assert speed.show(1.0) == '4.0 samples/s'


def test_mfu_is_shown_with_the_peak_it_divides_by():
  clock = Clock()
  speed = metrics.Speed(4, sample_flops=5e12, peak_flops=8e12, clock=clock)
  for step in (1, 2, 3):  # Ten seconds each.
    clock.now_s = 10.0 * step
    speed.update(step)
  assert speed.show(0.1) == '0.4 samples/s  MFU 25.0% of 8 TFLOP/s'
  assert speed.timing['mfu'] == 0.25
  assert 'mfu' not in metrics.Speed(4).timing


def test_goodput_is_the_share_of_time_that_the_steps_needed():
  clock = Clock()
  speed = metrics.Speed(1, clock=clock)
  assert speed.goodput == 0
  # 100 s to begin, then a step a second, with a pause of 50 s.
  for step in range(1, 61):
    clock.now_s = 100.0 + step if step <= 40 else 150.0 + step
    speed.update(step)
  # 59 intervals of a second, of the 210 s on the clock.
  assert speed.goodput == pytest.approx(59 / 210)


class Board:
  """What a run of Weights & Biases is told."""

  def __init__(self):
    self.lines = []

  def log(self, scalars, step):
    self.lines.append((step, dict(scalars)))


def test_boards_are_shown_what_is_written(tmp_path):
  board = Board()
  writer = metrics.MetricsWriter(tmp_path, 0, [board])
  writer.write(2, {'loss': 0.5}, {'goodput': 0.9})
  writer.close()
  assert board.lines == [(2, {'loss': 0.5, 'goodput': 0.9})]


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
  # What Python takes for a module that cannot be imported.
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with (
    pytest.raises(
      ValueError,
      match=r"--wandb_project=p needs wandb: pip install -e '.\[wandb\]', or drop the flag",
    ),
    metrics.wandb_run('p', tmp_path, cfg.from_config_dict(cfg.base())),
  ):
    pass


def test_wandb_without_network(tmp_path, monkeypatch):
  """Each start of a run writes what `wandb sync` sends later, under one name."""
  pytest.importorskip('wandb', reason="pip install -e '.[wandb]'")
  monkeypatch.setenv('WANDB_MODE', 'offline')
  # Resumed: step 2 is logged twice.
  for steps in ([1, 2], [2, 3]):
    with metrics.wandb_run('project', tmp_path, cfg.from_config_dict(cfg.base())) as run:
      writer = metrics.MetricsWriter(tmp_path, steps[0] - 1, [run])
      for step in steps:
        writer.write(step, {'loss': 0.5**step}, {})
      writer.close()
  name = (tmp_path / 'wandb_id').read_text()
  assert [path.name for path in tmp_path.glob('wandb/offline-run-*/run-*.wandb')] == 2 * [
    f'run-{name}.wandb'
  ]
