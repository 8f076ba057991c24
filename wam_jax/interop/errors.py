"""How a conversion refuses: one error that lists what is wrong and says what to do."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 10


def fail(title: str, problems: Iterable[str], remedy: str) -> None:
  """Raises ValueError with up to ten of `problems`, if there are any."""
  problems = list(problems)
  if not problems:
    return
  lines = [title, *(f'  {problem}' for problem in problems[:_SHOWN])]
  if len(problems) > _SHOWN:
    lines.append(f'  ... and {len(problems) - _SHOWN} more')
  raise ValueError('\n'.join([*lines, remedy]))
