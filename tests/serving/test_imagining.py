"""Pictures of what was imagined are made when no robot waits for them, and all are."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

pytest.importorskip('websockets', reason="pip install -e '.[serve]'")

from tests.serving import engines
from tests.serving import transcripts
from wam_jax.control import turns
from wam_jax.serving import imagining
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import watching

disc, observe = engines.disc, engines.observe


class Notes(watching.Watcher):
  """Keeps all events."""

  name = 'notes'

  def __init__(self):
    self.events = []

  def take(self, event) -> None:
    self.events.append(event)

  def of(self, kind) -> list:
    return [event for event in self.events if isinstance(event, kind)]


def ask(client, step, pause_s=0.0, **more) -> float:
  """Milliseconds that an answer took."""
  start = time.perf_counter()
  client.infer(observe(step, **more))
  took_ms = 1e3 * (time.perf_counter() - start)
  time.sleep(pause_s)
  return took_ms


def test_when_a_session_is_expected():
  rhythm = imagining.Rhythm()
  rhythm.beat(episode=3, now_s=10.0)
  # Of one that asked once nothing is known, but that it pauses after a second.
  assert rhythm.expect(10.1) == 10.1
  assert rhythm.expect(11.1) == math.inf
  for now_s in (10.8, 11.7, 12.4):
    rhythm.beat(3, now_s)
  # Four fifths of the shortest of 0.8, 0.9 and 0.7.
  assert rhythm.expect(12.5) == pytest.approx(12.96)
  # It may come at any moment.
  assert rhythm.expect(13.2) == 13.2
  assert rhythm.pauses_s == pytest.approx(12.4 + 1.8)
  assert rhythm.expect(14.3) == math.inf
  # An episode may follow another at once; within it, the rhythm is as before.
  rhythm.beat(4, 20.0)
  rhythm.beat(5, 20.1)
  assert rhythm.expect(20.2) == pytest.approx(20.1 + 0.56)


def test_between_two_queries_of_a_robot_and_in_no_ones_way():
  """It takes 10 ms, a robot asks every 150: each chunk is decoded before the next is asked for."""
  notes = Notes()
  with engines.serving(disc(imagine_s=0.01), watchers=[notes]) as server:
    client = transcripts.Client(server.port)
    for step in range(8):
      ask(client, step, pause_s=0.15)
    # Those of the first two could not be placed before its rhythm was known.
    assert len(notes.of(watching.Imagined)) >= 7
    client.close()
    held_up_s = server.metrics.held_up_s.value()
  assert held_up_s == 0
  imagined = notes.of(watching.Imagined)
  assert sorted(event.step for event in imagined) == [8.0 * n for n in range(8)]
  # They are those of their chunks.
  assert len({event.frames_RIJ3[0, 0, 0].tobytes() for event in imagined}) == 8


def test_not_while_a_robot_asks_as_fast_as_it_can():
  notes = Notes()
  with engines.serving(disc(imagine_s=0.02, delay_s=0.002), watchers=[notes]) as server:
    client = transcripts.Client(server.port)
    ask(client, 0)
    for step in range(1, 15):
      ask(client, step, pause_s=0.005)
    assert not notes.of(watching.Imagined)
    client.close()
    engines.wait_until(lambda: len(notes.of(watching.Imagined)) == 15)
    assert server.metrics.held_up_s.value() == 0
    assert server.metrics.imagined.value('decoded') == 15


def test_at_once_where_that_is_asked_for():
  notes = Notes()
  engine = disc(imagine_s=0.05)
  with engines.serving(engine, watchers=[notes], imagines=imagining.ALWAYS) as server:
    client = transcripts.Client(server.port)
    took_ms = [ask(client, step, pause_s=0.01) for step in range(6)]
    client.close()
    assert len(notes.of(watching.Imagined)) >= 5
    # Who waited for it is counted.
    assert server.metrics.held_up_s.value() > 0.1
  assert np.median(took_ms) > 20
  assert engine.threads == {'device'}


# A chunk holds 40 bytes here.
@pytest.mark.parametrize(('bound', 'most'), [('_MOST_CHUNKS', 4), ('_MOST_BYTES', 4 * 40)])
def test_what_waits_is_bounded(bound, most, monkeypatch):
  monkeypatch.setattr(imagining, bound, most)
  notes = Notes()
  with engines.serving(disc(imagine_s=0.05), watchers=[notes]) as server:
    client = transcripts.Client(server.port)
    for step in range(10):
      ask(client, step)
    client.close()
    engines.wait_until(lambda: len(notes.of(watching.Imagined)) == 10)
    assert server.metrics.imagined.value('dropped') == 6
  # The oldest are told first, as those of which there is nothing.
  lost = [event.step for event in notes.of(watching.Imagined) if event.frames_RIJ3 is None]
  assert lost == [8.0 * n for n in range(6)]


def fail(*unused):
  raise RuntimeError('a secret of the device')


def test_a_chunk_that_cannot_be_kept_is_nobody_elses(caplog):
  """The robot is answered, also at its next questions, and those who watch are told."""
  engine, notes = disc(), Notes()
  engine.keep = fail
  with engines.serving(engine, watchers=[notes]) as server:
    client = transcripts.Client(server.port)
    for step in range(3):
      ask(client, step)
    client.close()
  assert 'a secret of the device' in caplog.text
  assert [event.frames_RIJ3 for event in notes.of(watching.Imagined)] == [None] * 3


def test_pictures_that_fail_when_the_server_stops(caplog):
  """Each is tried, and each is told."""
  engine, told = disc(), []
  engine.imagine = fail
  tell = lambda *event: told.append(event)
  dreams = imagining.Dreams(engine, imagining.SPARE, tell, metrics_lib.Metrics())
  acted = turns.Acted(np.zeros((8, 3)), b'', np.zeros(32, np.uint8))
  for step in range(3):
    dreams.keep(0, step, 'tabletop_disc', acted)
  dreams.finish(10.0)
  assert told == [(0, 2, None), (0, 1, None), (0, 0, None)]
  assert 'a secret of the device' in caplog.text


def test_nothing_is_decoded_where_nobody_watches():
  engine = disc()
  with engines.serving(engine) as server:
    client = transcripts.Client(server.port)
    for step in range(3):
      ask(client, step)
    client.close()
    assert server.metrics.imagined.value('decoded') == 0
    assert not len(server.scheduler._dreams)
