"""What it costs robots that somebody watches: servers of one checkpoint in turns, and one that
nobody watches.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.serving import real
from benchmarks.serving import work
from wam_jax.client import policy as policy_lib

# Seconds from an answer to the next query of another server: it shares the cores.
_REST_S = 0.04
_FLAGS = {
  'nobody': ('--imagine=off',),
  'page': (),
  'page, films, recordings': ('--films={0}/films', '--record={0}/record'),
  'at once': ('--films={0}/at_once', '--imagine=always'),
}


def measure(workdir: str, rounds: int) -> dict[str, Any]:
  """Milliseconds from query to answer by who watches, and against nobody; how many chunks had their
  pictures made, and the waiting for that which the server itself has counted.
  """
  times: dict[str, list[float]] = {who: [] for who in _FLAGS}
  with contextlib.ExitStack() as stack:
    place = stack.enter_context(tempfile.TemporaryDirectory())
    policies, ports = {}, {}
    for who, flags in _FLAGS.items():
      given = [flag.format(place) for flag in (*flags, '--compilation_cache={0}/programs')]
      port, ports[who] = stack.enter_context(real.start(workdir, *given))
      policy = policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}')
      policies[who] = stack.enter_context(policy)
    observations = [real.observe(next(iter(policies.values())), step) for step in range(16)]
    rng = np.random.default_rng(0)
    for step in range(rounds):
      # In another order each time: encoders of one still run when the next is asked.
      for who in rng.permutation(list(_FLAGS)).tolist():
        begin = time.perf_counter()
        policies[who].infer(observations[step % 16])
        times[who].append(time.perf_counter() - begin)
        time.sleep(_REST_S)
    counted = {who: work.read_metrics(port) for who, port in ports.items()}
  rows = {who: work.percentiles(times[who][4:]) for who in _FLAGS}
  for who, row in rows.items():
    row['p50 to nobody'] = round(row['p50_ms'] / rows['nobody']['p50_ms'], 3)
    row['p99 to nobody'] = round(row['p99_ms'] / rows['nobody']['p99_ms'], 3)
    row['imagined'] = counted[who].get('wam_imagined_total{what="decoded"}', 0.0)
    row['held up s'] = counted[who]['wam_held_up_seconds_total']
  return {'chunks of each': rounds, **rows}
