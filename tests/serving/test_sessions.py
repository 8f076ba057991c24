"""What begins an episode, in each of its ways, what a slot is, and whose error names what."""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving import engines
from wam_jax.client import wire as codec
from wam_jax.serving import sessions as sessions_lib
from wam_jax.serving import wire

STATE = np.zeros(8, np.float32)


class Table:
  """Sessions with a clock that is set by hand.

  Attributes:
    freed: names of the sessions that the engine was told to forget.
  """

  def __init__(self, *records, slots=2, **rules):
    self.now_s = 0.0
    self.freed: list[str] = []
    records = records or (engines.DROID,)
    rules.setdefault('robot', records[0].name)
    self.table = sessions_lib.Sessions(
      {record.name: engines.make_robot(record) for record in records},
      sessions_lib.Rules(slots=slots, **rules),
      lambda session: self.freed.append(session.name),
      lambda: self.now_s,
    )

  def ask(self, connection=0, state=STATE, **message):
    """(session, why an episode begins) of an observation."""
    message = {'prompt': 'go', **message}
    message = {key: value for key, value in message.items() if value is not None}
    return self.table.take(connection, wire.read_request(codec.pack(message), 100), state)

  def why(self, *args, **message) -> str:
    return self.ask(*args, **message)[1]


def test_a_connection_an_id_and_each_reset_begin_an_episode():
  t = Table(slots=8)
  assert t.why() == 'new session'
  assert t.why() == ''
  assert t.why(session_id='a') == 'new session'
  assert t.why(env_id=3) == 'new session'
  assert t.why(1) == 'new session'
  # None of these touched another.
  assert (t.why(), t.why(session_id='a'), t.why(env_id=3), t.why(1)) == ('', '', '', '')
  assert t.why(session_id='a', reset=True) == 'reset'
  assert t.why(session_id='a', prompt='stop') == 'prompt changed'
  assert t.why(session_id='a', prompt=None) == ''
  assert t.why(session_id='a', prompt='go') == 'prompt changed'

  # By one id, by a list, and all of a connection.
  t.table.reset(0, ('a',))
  assert (t.why(session_id='a'), t.why(env_id=3), t.why()) == ('new session', '', '')
  t.table.reset(0, ('a', '3', 'nobody'))
  assert (t.why(session_id='a'), t.why(env_id=3), t.why()) == ('new session', 'new session', '')
  t.table.reset(0, None)
  assert (t.why(session_id='a'), t.why()) == ('new session', 'new session')
  assert t.why(1) == ''


def test_episodes_have_numbers_of_their_own():
  t = Table(slots=8)
  numbers = [t.ask(session_id=str(i % 3), reset=True)[0].episode for i in range(9)]
  assert len(set(numbers)) == 9


def test_clients_that_never_say():
  t = Table(reset_after_s=5.0, reset_on_jump=0.5)
  t.ask()
  t.now_s = 4
  assert t.why() == ''
  t.now_s = 10
  assert t.why() == 'silence'
  # The statistics of the robot take [-1, 1] to the model's range.
  assert t.why(state=STATE + 0.4) == ''
  assert t.why(state=STATE + 1.0) == 'jump'
  assert Table().why() == 'new session'


def test_words_come_first():
  with pytest.raises(wire.Refused, match="first observation of a session needs the key 'prompt'"):
    Table().ask(prompt=None)


def test_a_policy_of_several_robots_is_told_which():
  t = Table(engines.DROID, engines.DISC, robot='', slots=4)
  with pytest.raises(wire.Refused, match=r"acts for \['droid', 'tabletop_disc'\]: name one"):
    t.ask()
  assert t.ask(robot='tabletop_disc')[0].robot.record is engines.DISC
  assert t.why(robot='droid') == 'robot changed'
  with pytest.raises(wire.Refused, match="no robot 'panda'; this policy acts for"):
    t.ask(robot='panda')


def test_a_slot_that_was_reclaimed_is_an_error_that_names_it():
  t = Table(slots=2, reclaim_after_s=60)
  t.ask(0, session_id='a')
  t.now_s = 10
  t.ask(1, session_id='b')
  with pytest.raises(wire.Refused, match='all 2 sessions are taken'):
    t.ask(2, session_id='c')
  t.now_s = 65
  # `a` was silent for 65 s, `b` for 55.
  assert t.why(2, session_id='c') == 'new session'
  assert t.freed == ['0/a']
  for _ in range(2):
    with pytest.raises(wire.Refused, match="session 'a' was silent for 65 s and its slot went to"):
      t.ask(0, session_id='a')
  # Both ways of saying that an episode begins; the slots are full again meanwhile.
  t.now_s = 1000
  assert t.why(0, session_id='a', reset=True) == 'new session'
  assert t.why(2, session_id='c') == ''
  with pytest.raises(wire.Refused, match="session 'b' was silent for 990 s"):
    t.ask(1, session_id='b')
  t.table.reset(1, ('b',))
  t.now_s = 2000
  assert t.why(1, session_id='b') == 'new session'


def test_silent_sessions_end_and_are_told_so():
  t = Table(idle_after_s=900)
  t.ask(session_id='a')
  t.now_s = 899
  assert t.table.end_idle() == []
  t.now_s = 902
  assert [session.id for session in t.table.end_idle()] == ['a']
  assert len(t.table) == 0
  with pytest.raises(wire.Refused, match="session 'a' was silent for 902 s and it was ended"):
    t.ask(session_id='a')


def test_of_very_many_that_were_taken_away_the_newest_are_told(monkeypatch):
  """A connection may last for months, and give each episode a name of its own."""
  monkeypatch.setattr(sessions_lib, '_MOST_LOST', 3)
  t = Table(slots=1, reclaim_after_s=0)
  for name in 'abcdefg':
    t.ask(session_id=name)
  assert [name for _, name in t.table._lost] == ['d', 'e', 'f']
  assert t.why(session_id='a') == 'new session'
  with pytest.raises(wire.Refused, match="session 'f' was silent"):
    t.ask(session_id='f')


def test_a_connection_that_is_gone_leaves_nothing():
  t = Table(slots=2, reclaim_after_s=0)
  for name in 'abcdef':
    t.ask(session_id=name)
  t.table.drop(0)
  assert len(t.table) == 0
  assert not t.table._lost
  assert t.why(session_id='a') == 'new session'


def test_a_session_that_is_kept_goes_on_with_another_connection():
  t = Table(slots=2, hold_s=4)
  session, _ = t.ask(0, session_id='a', keep=True)
  request = wire.read_request(codec.pack({'session_id': 'a', 'resume': session.token}), 100)
  t.table.drop(0)
  assert len(t.table) == 1
  assert t.freed == []
  t.now_s = 3
  assert t.table.resume(1, request) is session
  assert t.why(1, session_id='a') == ''
  # Also from a connection that only looks alive.
  assert t.table.resume(2, request) is session
  assert t.why(1, session_id='a') == 'new session'
  # Held for so long, and no longer; a wrong token gets nothing.
  t.table.drop(2)
  t.now_s = 8
  t.table.end_idle()
  assert t.freed == ['2/a']
  for token in (session.token, 'guessed', ''):
    wrong = wire.read_request(codec.pack({'session_id': 'a', 'resume': token}), 100)
    with pytest.raises(wire.Refused, match='the session is gone'):
      t.table.resume(3, wrong)
