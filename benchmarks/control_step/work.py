"""What `benchmarks.control_step` measures, without flags."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.control_step import counting
from benchmarks.control_step import engines
from benchmarks.control_step import rungs
from benchmarks.control_step import scene as scene_lib
from configs import droid_5b
from configs import droid_14b_flash
from configs import tiny_flash
from wam_jax import config as cfg
from wam_jax.control import policy as policy_lib
from wam_jax.control import weights

SIZES = ('tiny', '5b', '14b')
# Float32, sums in another order, over 16 steps with guidance.
_SAME = 1e-3
_PATIENCE_S = 30.0  # Of a rung, after which it has no more turns.


@dataclasses.dataclass(frozen=True)
class Machine:
  """What this machine does at its best, measured in this run.

  Attributes:
    flops: of large products in the model's dtype, a second.
    bytes_per_s: read and written.
  """

  flops: float
  bytes_per_s: float

  @classmethod
  def measure(cls, dtype: str) -> Machine:
    return cls(counting.measure_products(jnp.dtype(dtype)), counting.measure_bandwidth())


def make_config(size: str, layers: int = 0, precision: str = 'int8') -> cfg.TrainConfig:
  """The config of a size whose noisy video sees no actions, which all rungs share.

  Args:
    layers: in place of all, where the machine is small; 0 for all.
    precision: of the quantized rung.
  """
  given = {'tiny': tiny_flash, '5b': droid_5b, '14b': droid_14b_flash}[size].get_config()
  given.model.video_sees = 'video'
  given.sample.solver = 'euler'
  given.sample.precision = precision
  if layers:
    given.model.num_layers = layers
  if jax.default_backend() == 'cpu':
    # Without halves, which most processors have no products of; and no loop over few layers.
    given.model.dtype = 'float32'
    given.model.scan_unroll = min(4, given.model.num_layers)
  return cfg.from_config_dict(given)


def climb(
  config: cfg.TrainConfig,
  machine: Machine,
  *,
  names: Sequence[str] = tuple(rungs.RUNGS),
  robots: int = 1,
  rounds: int = 30,
  longest_s: float = 60.0,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """A row for each rung, timed in turns.

  Args:
    rounds: turns of each; slow rungs have fewer, but two.
    longest_s: rungs are left out that would take longer a chunk at the machine's best.
  Returns:
    'rungs', and 'left_out' with the reason: too slow, or a precision that is not to be had here.
  Raises:
    ValueError: a rung gives other actions than the one that it only makes faster.
  """
  scene = scene_lib.make(config, robots)
  ready: dict[str, Any] = {}
  rows: dict[str, Any] = {}
  left_out = {}
  actions = {}
  for name in names:
    rung = rungs.RUNGS[name]
    if rung.quantized and (lack := rungs.find_lack(config.sample.precision)):
      left_out[name] = lack
      continue
    if name == 'apart' and (why := rungs.find_needless(config.model)):
      left_out[name] = why
      continue
    engine = rungs.build(rung, scene, config)
    flops = counting.count_flops(engine.program, *engine.arguments(), evaluations=16)
    if (least_s := flops / machine.flops) > longest_s:
      left_out[name] = f'{flops:.2g} FLOPs a chunk, {least_s:.0f} s at the least on this machine'
      continue
    start = time.perf_counter()
    actions[name] = np.asarray(engine.act())
    say(f'{name}: compiled and run in {time.perf_counter() - start:.1f} s')
    ready[name] = engine
    rows[name] = _describe(name, engine, scene, machine)
    if (other := rung.same_as or rung.near) in actions:
      rows[name]['error'] = _measure_difference(actions[name], actions[other])
    if rung.same_as in actions:
      _check_same(name, rows[name]['error'], scene.model.dtype)
  times = _time_in_turns(ready, rounds)
  slowest = None
  for name, row in rows.items():
    p50, p95 = np.percentile(times[name], (50, 95))
    slowest = slowest or p50
    row |= {
      'turns': len(times[name]),
      'p50_ms': 1e3 * p50,
      'p95_ms': 1e3 * p95,
      'least_ms': 1e3 * min(times[name]),
      'faster': slowest / p50,
      'chunks_per_s': robots / p50,
      'actions_per_s': robots * scene.model.actions_per_chunk / p50,
      'of_bound': row['bound_ms'] / (1e3 * p50),
    }
  return {'rungs': rows, 'left_out': left_out}


def compare_with_pytorch(
  config: cfg.TrainConfig, robots: int, threads: int, rounds: int
) -> dict[str, float]:
  """A cached pass of the network beside the same in PyTorch, see `pytorch.compare`.

  Raises:
    ValueError: PyTorch is not installed, or has no such network.
  """
  try:
    # Here, since all else needs no PyTorch.
    from benchmarks.control_step import pytorch
  except ModuleNotFoundError as error:
    raise ValueError(f"--pytorch needs {error.name}: pip install -e '.[torch]'.") from error
  scene = scene_lib.make(config, robots)
  sample = dataclasses.replace(
    config.sample, mode='flash', steps=1, action_steps=0, precision='model'
  )
  policy = policy_lib.Policy(config.model, sample, config.flow)
  return pytorch.compare(scene, policy, threads, rounds)


def _measure_difference(actions: np.ndarray, want: np.ndarray) -> float:
  """The largest difference of actions, relative to the largest action."""
  return float(np.abs(actions - want).max() / np.abs(want).max())


def _check_same(name: str, error: float, dtype: str) -> None:
  if dtype == 'float32' and not error < _SAME:
    raise ValueError(f'{name} gives other actions than {rungs.RUNGS[name].same_as}: by {error:.1e}')


def _describe(name: str, engine: Any, scene: scene_lib.Scene, machine: Machine) -> dict[str, Any]:
  """What the rung does, and the least time that this machine needs for it."""
  rung = rungs.RUNGS[name]
  full, commits, of_actions = rung.passes
  evaluations = 1
  if rung.sample.get('reuse') == 'cosine':
    evaluations = full = int(engine.memory.evaluations)
  blocks = weights.count_bytes(engine.params['blocks'])
  kept = 0
  if isinstance(engine, engines.Cached):
    memory = engine.memory
    kept = weights.count_bytes((memory.cache.k, memory.cache.v, memory.prompt.layers))
  flops = counting.count_flops(engine.program, *engine.arguments(), evaluations=evaluations)
  moved = (full + commits + of_actions) * (blocks + kept)
  bound_s = max(flops / machine.flops, moved / machine.bytes_per_s)
  return {
    'what': rung.what,
    'passes': {'full': full, 'committing': commits, 'actions': of_actions},
    'flops': flops,
    'bytes': moved,
    'bound_ms': 1e3 * bound_s,
  }


def _time_in_turns(ready: dict[str, Any], rounds: int) -> dict[str, list[float]]:
  """Seconds of each call; a rung that is far slower than the fastest has fewer turns."""
  times: dict[str, list[float]] = {name: [] for name in ready}
  for number in range(rounds):
    for name, engine in ready.items():
      if number > 1 and sum(times[name]) > _PATIENCE_S:
        continue
      start = time.perf_counter()
      engine.act().block_until_ready()
      times[name].append(time.perf_counter() - start)
  return times
