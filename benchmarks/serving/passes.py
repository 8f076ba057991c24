"""The engine of `wam_jax.serve` without a wire: sessions that go through passes of several sizes,
against the same sessions one by one.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from wam_jax import checkpoint
from wam_jax.control import engine as engine_lib
from wam_jax.control import turns
from wam_jax.data import robot as robot_lib


def measure(workdir: str, rounds: int) -> dict[str, Any]:
  """Medians over `rounds` in which all sizes take turns; sessions are at the same chunk, so that a
  call of `act` is one pass.
  """
  trained = checkpoint.load_for_inference(workdir, None)
  robots = robot_lib.from_metadata(trained.metadata)
  engine = engine_lib.Engine(trained.config, trained.params, trained.frozen, robots)
  warm_s = engine.warm()
  name = next(iter(engine.robots))
  sizes = [size for size in engine_lib.SIZES if size <= engine.rows]
  states = {size: [engine.start(name, 'go') for _ in range(size)] for size in sizes}

  seconds: dict[int, list[float]] = {size: [] for size in sizes}
  for number in range(rounds):
    for size in sizes:
      given = [_make_turn(engine, name, state, number) for state in states[size]]
      begin = time.perf_counter()
      acted = engine.act(given)
      seconds[size].append(time.perf_counter() - begin)
      states[size] = [each.state for each in acted]

  one = np.median(seconds[1])
  report: dict[str, Any] = {
    'sample': trained.config.sample.mode,
    'warm s': round(warm_s, 1),
    'traces': engine.traces,
  }
  for size in sizes:
    pass_s = np.median(seconds[size])
    report[f'{size} sessions'] = {
      'p50_ms': round(1e3 * pass_s, 2),
      'least_ms': round(1e3 * min(seconds[size]), 2),
      'chunks_s': round(size / pass_s, 1),
      'throughput': round(size * one / pass_s, 2),
      'throughput by least': round(size * min(seconds[1]) / min(seconds[size]), 2),
    }
  return report


def _make_turn(engine: engine_lib.Engine, name: str, state: Any, number: int) -> turns.Turn:
  record = engine.robots[name].record
  rng = np.random.default_rng(number)
  frames = rng.integers(0, 256, (engine.frames_per_call, *record.composite, 3), np.uint8)
  return turns.Turn(
    state=state,
    robot=name,
    frames=frames,
    proprio_X=rng.uniform(-1, 1, record.proprio_dim).astype(np.float32),
  )
