"""Hooks of mkdocs: pages that lie elsewhere in the repository are part of the site, and links lead
to them as they do in a checkout. Links to source lose their address and keep their words.
"""

from __future__ import annotations

import os
import pathlib
import re

from mkdocs.structure import files as files_lib

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
# Where they are in the site: below this, as in the repository.
ELSEWHERE = 'repository'
_LINK = re.compile(r'(?<!!)\[([^\]]*)\]\(([^)\s]+)\)')


def find_elsewhere() -> list[pathlib.Path]:
  """Pages outside of docs/: those of the rooms, and those at the top but for README.md, whose
  place index.md has.
  """
  rooms = ('benchmarks', 'data', 'launch', 'wam_jax', 'weights')
  found = [path for room in rooms for path in sorted((ROOT / room).rglob('*.md'))]
  return [ROOT / 'CHANGELOG.md', ROOT / 'CONTRIBUTING.md', *found]


def on_files(files, config):
  """Adds the pages that lie elsewhere."""
  for path in find_elsewhere():
    place = f'{ELSEWHERE}/{path.relative_to(ROOT)}'
    files.append(files_lib.File.generated(config, place, content=path.read_text()))
  return files


def on_page_markdown(markdown, *, page, config, files):
  """`markdown` with links as the site has them."""
  here = find_source(page.file.src_uri)

  def lead(link: re.Match) -> str:
    words, address = link.groups()
    if ':' in address or address.startswith('#'):
      return link[0]
    name, mark, anchor = address.partition('#')
    target = pathlib.Path(os.path.normpath(here.parent / name))
    place = find_place(target)
    if files.get_file_from_path(place) is None:
      # A file of the code is not in the site; one that does not exist is left for mkdocs to tell.
      return words if target.exists() else link[0]
    relative = os.path.relpath(place, pathlib.PurePosixPath(page.file.src_uri).parent)
    return f'[{words}]({relative}{mark}{anchor})'

  return _LINK.sub(lead, markdown)


def find_source(place: str) -> pathlib.Path:
  """The file of a page of the site."""
  start, _, rest = place.partition('/')
  return ROOT / rest if start == ELSEWHERE else DOCS / place


def find_place(path: pathlib.Path) -> str:
  """Where a file of the repository would be in the site."""
  if path == ROOT / 'README.md':
    return 'index.md'
  if path.is_relative_to(DOCS) and path.suffix == '.md':
    return str(path.relative_to(DOCS))
  return f'{ELSEWHERE}/{os.path.relpath(path, ROOT)}'
