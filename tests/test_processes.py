"""The start of several processes: a wait that ends with one message, and a machine that does not
say at once what its job is.
"""

from __future__ import annotations

import jax
import pytest
import requests

from tests import programs
from wam_jax import processes


@pytest.fixture
def initialize(monkeypatch):
  """Replaces `jax.distributed.initialize`; errors to raise first, and what it was called with."""
  errors = []
  calls = []

  def call(*args, **kwargs):
    calls.append((args, kwargs))
    if errors:
      raise errors.pop(0)

  monkeypatch.setattr(jax.distributed, 'initialize', call)
  monkeypatch.setattr(processes.time, 'sleep', lambda seconds: calls.append(seconds))
  return errors, calls


def test_a_metadata_server_that_fails_is_asked_again(initialize, capsys):
  errors, calls = initialize
  errors += [requests.exceptions.ConnectionError('reset by peer')] * 2
  processes.join(900)
  nothing = (None, None, None)
  patience = {'initialization_timeout': 960}
  assert calls == [(nothing, patience), 1, (nothing, patience), 2, (nothing, patience)]
  assert 'not known yet (reset by peer); asking again in 2 s' in capsys.readouterr().err


def test_it_is_not_asked_for_ever(initialize):
  errors, calls = initialize
  errors += [requests.exceptions.ConnectionError('reset by peer')] * 9
  with pytest.raises(requests.exceptions.ConnectionError):
    processes.join(900)
  assert sum(call for call in calls if isinstance(call, int)) == 31


@pytest.mark.parametrize(('has_tpu', 'asked'), [(True, 2), (False, 1)])
def test_a_machine_without_tpus_has_no_job_to_wait_for(initialize, monkeypatch, has_tpu, asked):
  errors, calls = initialize
  monkeypatch.setattr(processes, '_has_tpu', lambda: has_tpu)
  errors.append(ValueError('coordinator_address should be defined.'))
  if has_tpu:
    processes.join(900)
  else:
    with pytest.raises(ValueError, match='coordinator_address'):
      processes.join(900)
  assert sum(isinstance(call, tuple) for call in calls) == asked


def test_a_host_that_never_comes_ends_as_one_message():
  # As the first process, which the others would look for.
  address = f'localhost:{programs.free_port(20000, 30000)}'
  code = f'from wam_jax import processes; processes.join(1.0, {address!r}, 2, 0)'
  done = programs.run_code(code)
  assert done.returncode == 1
  assert 'error: Process 0 on ' in done.stderr
  assert 'has waited 1 s for the others at localhost:' in done.stderr
  assert 'Traceback' not in done.stderr
