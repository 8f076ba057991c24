"""The server's log: a line an event on stderr, for people or, as JSON, for what collects logs.

What is logged with `extra=journal.of(session)` and other fields is a field of its line.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from wam_jax.serving import sessions as sessions_lib

TEXT, JSON = 'text', 'json'
FORMS = (TEXT, JSON)
# What every record has; the others are fields of the event.
_USUAL = {*vars(logging.makeLogRecord({})), 'message', 'asctime', 'taskName'}
_PLAIN = re.compile(r'[\w./:+\-]+')


def keep(form: str, stream: TextIO | None = None) -> logging.Handler:
  """Writes what the server logs, from INFO on, to a stream, stderr by default.

  Args:
    form: of `FORMS`.
  """
  handler = logging.StreamHandler(stream or sys.stderr)
  handler.setFormatter(_Json() if form == JSON else _Text())
  logger = logging.getLogger('wam_jax.serving')
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False
  return handler


def of(session: sessions_lib.Session) -> dict[str, Any]:
  """Fields that tell which session, robot and episode an event is of."""
  return {
    'connection': session.connection,
    'session': session.id,
    'robot': session.robot.record.name,
    'episode': session.episode,
  }


class _Text(logging.Formatter):
  """`12:30:01.250 I session begins an episode connection=3 session=env-1`."""

  def format(self, record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created)
    fields = [f'{key}={_write(value)}' for key, value in _list_fields(record)]
    line = f'{at:%H:%M:%S}.{int(record.msecs):03} {record.levelname[0]} {record.getMessage()}'
    return '\n'.join([' '.join([line, *fields]), *_list_traceback(self, record)])


class _Json(logging.Formatter):
  """An object with `time` (UTC), `level`, `message`, the fields, and `traceback` of errors."""

  def format(self, record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    line = {
      'time': at.isoformat(timespec='milliseconds'),
      'level': record.levelname.lower(),
      'message': record.getMessage(),
      **dict(_list_fields(record)),
    }
    traceback = '\n'.join(_list_traceback(self, record))
    return json.dumps({**line, 'traceback': traceback} if traceback else line, default=str)


def _list_fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
  yield from ((key, value) for key, value in vars(record).items() if key not in _USUAL)


def _list_traceback(formatter: logging.Formatter, record: logging.LogRecord) -> Iterator[str]:
  if record.exc_info:
    yield formatter.formatException(record.exc_info)


def _write(value: Any) -> str:
  """As it is where that is one word; else quoted: ids and prompts are what clients say."""
  text = str(value)
  return text if _PLAIN.fullmatch(text) else json.dumps(text)
