"""Writes the notebook of every demo in this directory: python launch/colab/to_notebook.py

The .py is the source. `# %%` begins a cell of code; `# %% [markdown]` one of text, in comments.
What comments stand before the first cell stays out.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any


def convert(script: str) -> str:
  """The notebook, as JSON, of a script in percent format.

  Raises:
    ValueError: there is code before the first cell, or no cell.
  """
  before, *parts = re.split(r'^# %%(.*)\n', script, flags=re.MULTILINE)
  if not parts or re.search(r'^[^#\n]', before, re.MULTILINE):
    raise ValueError(
      f'The script must begin with a cell, "# %%" or "# %% [markdown]", not with {before[:40]!r}.'
    )
  heads = [head.strip() for head in parts[::2]]
  # Text beside the mark would be lost: formatters that fill comments put it there.
  unknown = [head for head in heads if head not in ('', '[markdown]')]
  if unknown:
    raise ValueError(
      f'A cell begins with "# %%" or "# %% [markdown]" alone on its line, not with {unknown[0]!r}.'
    )
  cells = []
  for number, (head, text) in enumerate(zip(heads, parts[1::2])):
    cells.append(_make_cell(number, 'markdown' if head else 'code', text.strip('\n')))
  notebook = {
    'cells': cells,
    'metadata': {
      'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
      'language_info': {'name': 'python'},
    },
    'nbformat': 4,
    'nbformat_minor': 5,
  }
  return json.dumps(notebook, indent=1) + '\n'


def _make_cell(number: int, kind: str, text: str) -> dict[str, Any]:
  if kind == 'markdown':
    text = re.sub(r'^# ?', '', text, flags=re.MULTILINE)
  cell = {
    'cell_type': kind,
    'id': f'cell{number}',
    'metadata': {},
    'source': text.splitlines(keepends=True),
  }
  if kind == 'code':
    cell |= {'execution_count': None, 'outputs': []}
  return cell


if __name__ == '__main__':
  here = pathlib.Path(__file__)
  for path in sorted(set(here.parent.glob('*.py')) - {here}):
    path.with_suffix('.ipynb').write_text(convert(path.read_text()))
