"""Writes the notebook of every demo in this directory, and the page that lists them:
python launch/colab/to_notebook.py

A .py with cells is the source. `# %%` begins a cell of code; `# %% [markdown]` one of text, in
comments; `# %% [setup]` one of code that is completed by begin.py, which fetches and installs the
project where it is not there. What comments stand before the first cell stays out. Where the
project is says the file REPOSITORY alone.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[1] / 'docs' / 'notebooks.md'
# In the order of the page.
DEMOS = (
  'train_and_watch',
  'look_at_your_data',
  'flash',
  'fine_tune',
  'serve_and_connect',
  'released_checkpoint',
  'tpu_host',
)
_PAGE_HEAD = """\
# Notebooks

Demos that run as they are: on Colab, in Jupyter, or in a terminal from the root of a checkout, by
`ipython launch/colab/NAME.ipynb`. Each does by commands and imports what the pages here explain;
`SIZE = 'smoke'` in its second cell makes it a matter of a minute. On Colab the setup cell installs
the project; elsewhere install what its `EXTRAS` say, and for a terminal `ipython nbformat`. A test
runs each of them so.

| notebook | shows | takes | |
|---|---|---|---|
"""
_NO_ADDRESS = """
*Open in Colab* needs the address of the project, which `launch/colab/REPOSITORY` does not say yet.
"""
_PAGE_END = """
This page and the notebooks are made by `python launch/colab/to_notebook.py`.
"""


def read_repository(path: pathlib.Path = HERE / 'REPOSITORY') -> str:
  """The address of the project; '' where the file says none.

  Raises:
    ValueError: it is another address than Colab opens.
  """
  lines = [line.strip() for line in path.read_text().splitlines()]
  address = ' '.join(line for line in lines if line and not line.startswith('#'))
  if address and not re.fullmatch(r'https://github\.com/[\w.-]+/[\w.-]+', address):
    raise ValueError(f'{path} must hold https://github.com/OWNER/NAME, not {address!r}.')
  return address.removesuffix('.git')


def make_link(name: str, repository: str) -> str:
  """The words *Open in Colab*, with an address, or why there is none."""
  if not repository:
    return '*Open in Colab*: not yet, `launch/colab/REPOSITORY` does not say where the project is.'
  notebook = f'blob/main/launch/colab/{name}.ipynb'
  where = repository.removeprefix('https://github.com/')
  return f'[Open in Colab](https://colab.research.google.com/github/{where}/{notebook})'


def convert(script: str, name: str = '', repository: str = '') -> str:
  """The notebook, as JSON, of a script in percent format.

  Raises:
    ValueError: there is code before the first cell, or no cell.
  """
  cells = []
  for number, (head, text) in enumerate(split_cells(script)):
    if head == '[setup]':
      begin = (HERE / 'begin.py').read_text().strip('\n')
      text = f'{text}\nREPOSITORY = {repository!r}  # By hand, where this is empty.\n\n{begin}'
    if number == 0 and head and name:
      # Below the title.
      text = text.replace('\n', f'\n#\n# {make_link(name, repository)}\n', 1)
    cells.append(_make_cell(number, 'markdown' if head == '[markdown]' else 'code', text))
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


def split_cells(script: str) -> list[tuple[str, str]]:
  """(what stands behind the mark, what is in the cell) of each cell."""
  before, *parts = re.split(r'^# %%(.*)\n', script, flags=re.MULTILINE)
  if not parts or re.search(r'^[^#\n]', before, re.MULTILINE):
    raise ValueError(
      f'The script must begin with a cell, "# %%" or "# %% [markdown]", not with {before[:40]!r}.'
    )
  heads = [head.strip() for head in parts[::2]]
  # Text beside the mark would be lost: formatters that fill comments put it there.
  unknown = [head for head in heads if head not in ('', '[markdown]', '[setup]')]
  if unknown:
    raise ValueError(
      'A cell begins with "# %%", "# %% [markdown]" or "# %% [setup]" alone on its line, '
      f'not with {unknown[0]!r}.'
    )
  return [(head, text.strip('\n')) for head, text in zip(heads, parts[1::2])]


def write_page(scripts: dict[str, str], repository: str) -> str:
  """The page that lists the demos: their titles, and the lines "Shows:" and "Takes:" of them."""
  rows = []
  for name, script in scripts.items():
    text = re.sub(r'\n(?:# ?)', ' ', split_cells(script)[0][1])
    title, shows, takes = re.search(
      r'^# # (.*?)  Shows: (.*?)  Takes: (.*?)(?:  |$)', text
    ).groups()
    link = make_link(name, repository) if repository else ''
    rows.append(f'| [{title}](../launch/colab/{name}.ipynb) | {shows} | {takes} | {link} |\n')
  return _PAGE_HEAD + ''.join(rows) + ('' if repository else _NO_ADDRESS) + _PAGE_END


def make_all() -> dict[pathlib.Path, str]:
  """Every made file, and what it should hold."""
  repository = read_repository()
  scripts = {name: (HERE / f'{name}.py').read_text() for name in DEMOS}
  made = {PAGE: write_page(scripts, repository)}
  for name, script in scripts.items():
    made[HERE / f'{name}.ipynb'] = convert(script, name, repository)
  return made


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
  for path, content in make_all().items():
    path.write_text(content)
