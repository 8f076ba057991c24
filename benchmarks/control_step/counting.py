"""What a program has to do at the least: arithmetic of its products, bytes of weights and caches;
and how fast this machine does both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def count_flops(function: Callable[..., Any], *args: Any, evaluations: int = 1) -> float:
  """FLOPs of the products of a traced function, attention's included.

  Args:
    evaluations: how often a loop without a fixed number of turns ran.
  """
  return _walk(jax.make_jaxpr(function)(*args).jaxpr, evaluations)


def _walk(jaxpr: Any, evaluations: int) -> float:
  return sum(_count(equation, evaluations) for equation in jaxpr.eqns)


def _count(equation: Any, evaluations: int) -> float:
  name = equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    summed = [equation.invars[0].aval.shape[axis] for axis in contracted]
    return 2.0 * np.prod(equation.outvars[0].aval.shape) * np.prod(summed)
  if 'dot_product_attention_fwd' in name:
    # [B, T, N, K] and [B, S, N, K].
    queries, keys = (equation.invars[i].aval.shape for i in (0, 1))
    return 4.0 * np.prod(queries) * keys[1]
  inside = sum(_walk(inner, evaluations) for inner in _find_jaxprs(equation.params.values()))
  if name == 'scan':
    return inside * equation.params['length']
  return inside * evaluations if name == 'while' else inside


def _find_jaxprs(values: Iterable[Any]) -> Iterator[Any]:
  for value in values:
    if isinstance(value, (tuple, list)):
      yield from _find_jaxprs(value)
    elif hasattr(value, 'eqns'):
      yield value
    elif hasattr(value, 'jaxpr'):
      yield value.jaxpr


def measure_products(dtype: Any, seconds: float = 1.0) -> float:
  """FLOPs per second of products of large square matrices."""
  size = 1024 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda x: x @ x)
  return 2.0 * size**3 / _best(lambda: multiply(x), seconds)


def measure_bandwidth(seconds: float = 1.0) -> float:
  """Bytes per second of reading and writing an array larger than caches."""
  x = jnp.ones(2**26 if jax.default_backend() == 'cpu' else 2**30, jnp.float32)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def work():
    nonlocal x
    x = add(x)
    return x

  return 2.0 * x.nbytes / _best(work, seconds)


def _best(work: Callable[[], jax.Array], seconds: float) -> float:
  """The shortest time of a call, of those that fit into so long."""
  work().block_until_ready()
  best = float('inf')
  stop = time.perf_counter() + seconds
  while time.perf_counter() < stop:
    start = time.perf_counter()
    work().block_until_ready()
    best = min(best, time.perf_counter() - start)
  return best
