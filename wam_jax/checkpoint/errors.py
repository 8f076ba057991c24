"""What can be wrong with a checkpoint, and how it is told."""

from __future__ import annotations

import pathlib


class CheckpointError(ValueError):
  """A checkpoint could not be written or none can be read; the message says what to do."""


class PassingError(OSError):
  """A checkpoint cannot be read or written now; the same command may well succeed later."""


class DamageError(CheckpointError):
  """Files of a checkpoint are missing or short."""


def describe_unreadable(place: pathlib.Path, problem: str) -> str:
  return (
    f'The checkpoint {place} cannot be read: {problem}\nNone of its files was found missing or '
    'short, and nothing was changed. Run the same command again; if that does not help, move that '
    'directory away to use the one before.'
  )


def is_loss(error: BaseException) -> bool:
  """Whether reading failed because bytes are not there."""
  codes = ('NOT_FOUND', 'DATA_LOSS', 'OUT_OF_RANGE')
  return isinstance(error, FileNotFoundError) or any(code in str(error) for code in codes)


def first_line(error: BaseException) -> str:
  """The first line of its message, or its type where it has none."""
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:400]
