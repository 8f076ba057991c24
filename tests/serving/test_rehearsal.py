"""A server that has rehearsed: its engine has acted, nobody is there, and nothing is counted."""

from __future__ import annotations

import asyncio
import logging

import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from tests.serving import transcripts


def test_episodes_are_played_before_the_port_opens(caplog):
  caplog.set_level(logging.INFO)
  engine = engines.HashEngine(engines.DROID, engines.DISC)
  with engines.serving(engine, rehearsal_s=0.01) as server:
    assert engine.threads, 'nobody acted'
    threads = set(engine.threads)
    assert len(server.sessions) == 0
    counted = [
      line for line in server.metrics.show().splitlines() if line.startswith('wam_episodes')
    ]
    assert not counted
    assert 'episode begins' not in caplog.text
    client = transcripts.Client(server.port)
    reply = client.infer(engines.observe(0, robot='tabletop_disc'))
    assert reply['session']['began'] == 'new session'
    client.close()
    # The thread that rehearsed is the one that serves.
    assert engine.threads == threads


def test_a_policy_that_fails_opens_no_port(caplog):
  engine = engines.disc()
  engine.fails = True

  async def start() -> None:
    from wam_jax.serving import metrics as metrics_lib
    from wam_jax.serving import server as server_lib
    from wam_jax.serving import sessions as sessions_lib

    options = server_lib.Options(rehearsal_s=0.01)
    rules = sessions_lib.Rules(slots=1)
    async with server_lib.Server(engine, rules, options, metrics_lib.Metrics()).listen():
      pytest.fail('the port is open')

  with (
    caplog.at_level(logging.CRITICAL),
    pytest.raises(RuntimeError, match='could not be computed'),
  ):
    asyncio.run(start())
