"""Processes of one job: a fault on one is the same message on all, in seconds, and none waits for
ever.
"""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests import programs
from wam_jax import cli
from wam_jax import hosts

HOST = socket.gethostname()


def run_two(case) -> list[tuple[int, str, str]]:
  """(status, stdout, stderr) of both processes of `tests.joint`."""
  port = programs.free_port(20000, 30000)
  joint = [programs.Program('tests.joint', port, number, 2, case) for number in range(2)]
  outputs = [program.communicate(timeout=60) for program in joint]
  return [(program.returncode, *output) for program, output in zip(joint, outputs)]


def test_all_hear_the_same():
  results = run_two('stages')
  assert [status for status, _, _ in results] == [0, 0], results
  rows = [[json.loads(line) for line in stdout.splitlines()] for _, stdout, _ in results]
  first, second = ([row['found'] for row in one] for one in rows)

  here = f'Failed while opening the dataset, on 1 of 2 hosts. host 1 ({HOST}): no such directory'
  bug = f"Failed while opening the dataset, on 1 of 2 hosts. host 0 ({HOST}): KeyError: 'a bug'"
  choosing = "invalid literal for int() with base 10: 'x'"
  differ = (
    'HostMistake: The hosts of this job differ (config):\n  config.seed: 0 on host 0, 1 on host 1\n'
    '  only_here: absent on host 0, 2 on host 1\nStart all alike.'
  )
  late = 'host 1 of 2 did not come to the end of opening the dataset within 1 s of the others.'
  assert second[:-1] == [
    'all',
    f'HostMistake: {here}',
    'ValueError: no such directory',  # On all alike: it needs no names.
    f'HostFailure: {bug}',
    [{'number': 0}, {'number': 1}],
    [0, 'chosen'],
    f'HostMistake: Failed while choosing, on 1 of 2 hosts. host 0 ({HOST}): {choosing}',
    None,
    differ,
  ]
  assert first[3] == "KeyError: 'a bug'"  # With its traceback, where it was.
  assert first[:3] + first[4:] == second[:3] + second[4:]
  assert late in first[-1]
  # A mistake is known to all in about a second.
  assert max(row['seconds'] for one in rows for row in one[:-1]) < 4


def test_a_failure_ends_who_cannot_hear():
  start = time.monotonic()
  (status_0, _, stderr_0), (status_1, _, stderr_1) = run_two('stuck')
  assert (status_0, status_1) == (cli.MISTAKE, cli.MISTAKE)
  message = f'error: Failed on 1 of 2 hosts. host 1 ({HOST}): no space left\n'
  assert message in stderr_0
  assert message in stderr_1
  assert time.monotonic() - start < 30


def test_alone_nothing_changes():
  with pytest.raises(KeyError, match='a bug'), hosts.together(), hosts.all_or_none('a stage'):
    raise KeyError('a bug')
  assert hosts.decide('choosing', lambda: (1, 2)) == [1, 2]  # As all would see it.
  hosts.agree('config', {'seed': 0}, '')
