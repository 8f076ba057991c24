"""A drawing in SVG: the few shapes that the pictures of the pages are made of."""

from __future__ import annotations

import html

INK = '#2b2f36'
FAINT = '#8a919c'
LINE = '#d5d9df'
GROUND = '#f6f7f9'
# One colour a kind of token, on every picture.
CLEAN = '#4c78a8'
NOISY = '#f28e2b'
ACTION = '#59a14f'
STATE = '#b07aa1'
PAPER = '#ffffff'

_FONT = 'font-family="Helvetica, Arial, sans-serif"'


class Drawing:
  """Shapes on white paper, so that it reads on dark pages, too."""

  def __init__(self, width: int, height: int, title: str):
    self._parts = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
      f'width="{width}" height="{height}" role="img" {_FONT}>',
      f'<title>{html.escape(title)}</title>',
      f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
    ]

  def box(self, x, y, width, height, fill, *, opacity=1.0) -> None:
    self._parts.append(
      f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" '
      f'fill="{fill}" fill-opacity="{opacity:g}"/>'
    )

  def dots(self, points, fill, *, radius) -> None:
    """A dot at each (x, y): strokes of no length with round ends."""
    path = ''.join(f'M{x:g} {y:g}h0' for x, y in points)
    self._parts.append(
      f'<path d="{path}" fill="none" stroke="{fill}" '
      f'stroke-width="{2 * radius:g}" stroke-linecap="round"/>'
    )

  def line(self, points, stroke) -> None:
    """Straight from point to point, each (x, y)."""
    path = ' '.join(f'{x:g},{y:g}' for x, y in points)
    self._parts.append(
      f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="1"/>'
    )

  def text(self, x, y, words, *, size=12, fill=INK, anchor='start', weight='normal') -> None:
    self._parts.append(
      f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
      f'font-weight="{weight}">{html.escape(str(words))}</text>'
    )

  def up(self, x, y, words, *, size=12, fill=INK) -> None:
    """Text that reads upwards, from (x, y)."""
    self._parts.append(
      f'<text transform="translate({x:g},{y:g}) rotate(-90)" font-size="{size}" '
      f'fill="{fill}">{html.escape(str(words))}</text>'
    )

  def finish(self) -> str:
    return '\n'.join([*self._parts, '</svg>', ''])
