"""A process of a job of several, for tests: `python -m tests.joint PORT NUMBER COUNT CASE`.

Prints the outcome of each thing that the case does, one JSON a line.
"""

from __future__ import annotations

import json
import time

import jax

from wam_jax import cli
from wam_jax import hosts


def outcome(call) -> None:
  """Prints what `call` returns, or its error."""
  start = time.monotonic()
  try:
    found = call()
  except Exception as e:
    found = f'{type(e).__name__}: {e}'
  print(json.dumps({'found': found, 'seconds': time.monotonic() - start}), flush=True)


def all_or_none(fails: bool, error: Exception, limit_s: float = 60):
  with hosts.all_or_none('opening the dataset', limit_s):
    if fails:
      raise error
  return 'all'


def stages(number: int) -> None:
  """Each kind of stage, with and without a fault."""
  outcome(lambda: all_or_none(False, ValueError()))
  outcome(lambda: all_or_none(number == 1, ValueError('no such directory')))
  outcome(lambda: all_or_none(True, ValueError('no such directory')))
  outcome(lambda: all_or_none(number == 0, KeyError('a bug')))
  outcome(lambda: hosts.exchange('numbers', {'number': number}))
  outcome(lambda: hosts.decide('choosing', lambda: [number, 'chosen']))
  outcome(lambda: hosts.decide('choosing', lambda: int('x')))
  outcome(lambda: hosts.agree('config', {'config.seed': 0}, 'Start all alike.'))
  facts = {'config.seed': number, 'jax': '1', 'only_here': 2} if number else {'config.seed': 0}
  outcome(lambda: hosts.agree('config', facts | {'jax': '1'}, 'Start all alike.'))
  # The first one waits no longer than it should, and whoever comes late hears that.
  if number == 1:
    time.sleep(2)
  outcome(lambda: all_or_none(False, ValueError(), limit_s=1))


def stuck(number: int) -> None:
  """One process fails while the other one cannot hear it."""
  hosts._GRACE_S = 2
  with hosts.together():
    if number == 1:
      raise ValueError('no space left')
    time.sleep(300)


def main(argv: list[str]) -> None:
  port, number, count, case = argv[1:]
  jax.distributed.initialize(f'localhost:{port}', int(count), int(number))
  {'stages': stages, 'stuck': stuck}[case](int(number))


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
