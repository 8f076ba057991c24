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
  cells = [
    _cell(number, 'markdown' if '[markdown]' in kind else 'code', text.strip('\n'))
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2]))
  ]
  kernel = dict(display_name='Python 3', language='python', name='python3')
  metadata = dict(kernelspec=kernel, language_info=dict(name='python'))
  return (
    json.dumps(dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5), indent=1) + '\n'
  )


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
  if kind == 'markdown':
    text = re.sub(r'^# ?', '', text, flags=re.MULTILINE)
  cell = dict(
    cell_type=kind, id=f'cell{number}', metadata={}, source=text.splitlines(keepends=True)
  )
  return cell if kind == 'markdown' else cell | dict(execution_count=None, outputs=[])


if __name__ == '__main__':
  here = pathlib.Path(__file__)
  for path in sorted(set(here.parent.glob('*.py')) - {here}):
    path.with_suffix('.ipynb').write_text(convert(path.read_text()))
