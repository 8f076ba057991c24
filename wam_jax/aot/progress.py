"""Says what is under way while a compiler works."""

from __future__ import annotations

import math
import sys
import time


class Line:
  """On stderr: one line rewritten in place on a terminal, else a line every half minute."""

  def __init__(self):
    self._in_place, self._width, self._last = sys.stderr.isatty(), 0, -math.inf

  def __call__(self, text: str) -> None:
    if self._in_place:
      print(f'\r{text:<{self._width}}', end='', file=sys.stderr, flush=True)
      self._width = len(text)
    elif time.monotonic() - self._last > 30:
      self._last = time.monotonic()
      print(text, file=sys.stderr, flush=True)

  def clear(self) -> None:
    if self._width:
      self('')
      print('\r', end='', file=sys.stderr, flush=True)
