"""Those who watch: in threads of their own, behind bounded queues, and whole episodes or none."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from tests.serving import transcripts
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import watching

disc, observe = engines.disc, engines.observe


class Slow(watching.Watcher):
  """Takes events when it is let."""

  name = 'slow'

  def __init__(self):
    self.may = threading.Event()
    self.taken: list[watching.Event] = []
    self.lost: list[int] = []
    self.closed = False

  def take(self, event) -> None:
    assert self.may.wait(10)
    if isinstance(event, watching.Did) and event.step < 0:
      raise RuntimeError('it cannot')
    self.taken.append(event)

  def lose(self, episode) -> None:
    self.lost.append(episode)

  def close(self) -> None:
    self.closed = True


def make_step(episode, step=0, kilobytes=1):
  action_U = np.zeros(3, np.float32)
  return watching.Did(episode, step, {'top': np.zeros(1024 * kilobytes, np.uint8)}, action_U)


def test_one_that_falls_behind_loses_whole_episodes():
  slow, lost = Slow(), metrics_lib.Metrics().unwatched
  desk = watching.Desk(slow, lost, most_bytes=10 * 1024)
  desk.put(make_step(1))
  # Of the second there is no room for all; of the others there is.
  for step in range(4):
    desk.put(make_step(2, step, kilobytes=3))
  for episode in (1, 3):
    desk.put(make_step(episode, 0, kilobytes=0))
  for episode in (2, 1, 3):
    desk.put(watching.Ended(episode))
  slow.may.set()
  desk.close()
  assert slow.closed
  assert slow.lost == [2]
  assert lost.value('slow') == 1
  ended = [event.episode for event in slow.taken if isinstance(event, watching.Ended)]
  assert ended == [1, 3]
  # What fitted was taken, before it was lost.
  assert [event.episode for event in slow.taken] == [1, 2, 2, 2, 1, 3, 1, 3]
  assert not desk._broken


def test_one_that_fails_loses_that_episode_and_goes_on():
  slow, lost = Slow(), metrics_lib.Metrics().unwatched
  slow.may.set()
  desk = watching.Desk(slow, lost)
  for event in (make_step(1), make_step(2, -1), make_step(2), make_step(1), watching.Ended(2)):
    desk.put(event)
  desk.put(watching.Ended(1))
  desk.close()
  assert slow.lost == [2]
  assert not desk._broken
  assert [event.episode for event in slow.taken] == [1, 1, 1]
  assert lost.value('slow') == 1


def test_no_answer_waits_for_those_who_watch():
  """One that takes nothing at all: robots are answered as before, and what waits is bounded."""
  slow = Slow()
  with engines.serving(disc(), watchers=[slow]) as server:
    server.hub._desks[0]._most_bytes = 2**16
    client = transcripts.Client(server.port)
    for step in range(60):
      client.infer(observe(step))
    assert not slow.taken
    assert server.hub._desks[0]._bytes <= 2**16
    assert server.metrics.unwatched.value('slow') == 1
    client.close()
    slow.may.set()
  assert slow.closed


def test_the_episodes_of_a_session_in_their_order():
  slow = Slow()
  slow.may.set()
  with engines.serving(disc(), watchers=[slow]) as server:
    client = transcripts.Client(server.port)
    for prompt in ('go', 'go', 'stop'):
      client.infer(observe(0, prompt=prompt))
    client.ask({'endpoint': 'reset'})
    client.infer(observe(0))
    client.close()
    engines.wait_until(lambda: sum(isinstance(e, watching.Ended) for e in slow.taken) == 3)
  kinds = [
    (type(event).__name__, event.episode)
    for event in slow.taken
    if not isinstance(event, watching.Imagined)
  ]
  first, second, third = sorted({number for _, number in kinds})
  assert kinds == [
    *[('Began', first), *[('Saw', first), ('Answered', first)] * 2, ('Ended', first)],
    *[('Began', second), ('Saw', second), ('Answered', second), ('Ended', second)],
    *[('Began', third), ('Saw', third), ('Answered', third), ('Ended', third)],
  ]
  whys = [event.why for event in slow.taken if isinstance(event, watching.Began)]
  assert whys == ['new session', 'prompt changed', 'new session']
