"""Who goes through the next pass, and who is told that it would come too late."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from wam_jax.serving import history
from wam_jax.serving import imagining
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import scheduler as scheduler_lib
from wam_jax.serving import sessions as sessions_lib
from wam_jax.serving import wire


def make_scheduler(rows: int) -> scheduler_lib.Scheduler:
  """One whose thread does not run."""
  engine, metrics = engines.disc(), metrics_lib.Metrics()
  engine.rows = rows
  dreams = imagining.Dreams(engine, imagining.OFF, lambda *unused: None, metrics)
  return scheduler_lib.Scheduler(engine, metrics, dreams)


def make_work(number: int, within_s: float) -> scheduler_lib.Work:
  """Of a session of its own; within an event loop."""
  now_s = time.monotonic()
  return scheduler_lib.Work(
    session=sessions_lib.Session(number, '', engines.make_robot(engines.DISC)),
    episode=number,
    prompt='go',
    seed=None,
    window=history.Window([], repeated=0, off=0.0, step=0.0),
    proprio_X=np.zeros(4, np.float32),
    prefix_DU=None,
    arrived_s=now_s,
    deadline_s=now_s + within_s,
    answer=asyncio.get_running_loop().create_future(),
  )


def test_a_pass_is_of_those_that_came_first_and_are_in_time():
  async def take() -> None:
    scheduler = make_scheduler(rows=2)
    first, late, second, third = works = [
      make_work(number, within_s) for number, within_s in enumerate((60, 0.2, 60, 60))
    ]
    for work in works:
      scheduler.submit(work)
    # Passes turn out to take longer than there is time for one of them.
    scheduler.pass_s = 1.0
    await asyncio.sleep(0.1)
    assert scheduler._take() == [first, second]
    said = await asyncio.wait_for(late.answer, 5)
    assert isinstance(said, wire.Refused)
    assert said.reason == 'overloaded'
    assert scheduler._take() == [third]
    assert scheduler._take() == []
    assert not any(work.answer.done() for work in (first, second, third))

  asyncio.run(take())


def test_what_would_begin_too_late_does_not_wait():
  """Who fills up a pass begins with it."""

  async def submit() -> None:
    scheduler = make_scheduler(rows=2)
    scheduler.pass_s = 1.0
    # Two of a pass that begins at once, two of the next one.
    for number in range(4):
      scheduler.submit(make_work(number, within_s=2.5))
    with pytest.raises(wire.Refused, match='4 sessions wait, and this chunk would come too late'):
      scheduler.submit(make_work(4, within_s=2.5))
    scheduler.submit(make_work(5, within_s=3.5))
    assert len(scheduler) == 5

  asyncio.run(submit())
