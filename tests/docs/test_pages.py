"""The pages hold together: links lead somewhere, every page is found from README, what is made from
the code is what the code makes, and the site builds without a warning.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from docs import make
from docs.make import __main__ as made
from docs.make import config_reference
from tests import needs
from wam_jax import config as cfg

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
  path
  for path in ROOT.rglob('*.md')
  if not any(part.startswith('.') or part == 'build' for part in path.relative_to(ROOT).parts)
)
ROOMS = ('wam_jax', 'data', 'benchmarks', 'docs', 'launch')
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


def list_links(path: pathlib.Path) -> Iterator[str]:
  """Addresses within the repository that a page links to; code is not read."""
  text = re.sub(r'```.*?```|`[^`\n]*`', '', path.read_text(), flags=re.DOTALL)
  return (address for address in LINK.findall(text) if '://' not in address)


def list_anchors(path: pathlib.Path) -> set[str]:
  """Anchors of a page's headings, as GitHub and the site make them."""
  titles = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w -]', '', title.lower()).strip().replace(' ', '-') for title in titles}


def test_links_lead_somewhere():
  assert len(PAGES) > 20
  broken = []
  for path in PAGES:
    for address in list_links(path):
      name, _, anchor = address.partition('#')
      target = (path.parent / name).resolve() if name else path
      found = target.exists() and (not anchor or anchor in list_anchors(target))
      if not found:
        broken.append(f'{path.relative_to(ROOT)}: {address}')
  assert not broken


def list_code(path: pathlib.Path) -> list[str]:
  """What stands between backticks in the sentences of a page."""
  text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
  return re.findall(r'`([^`\n]+)`', text)


def test_files_that_pages_name_are_there():
  """By their place in the repository, in the package, or beside the page."""
  rooms = '|'.join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != '.')
  missing = []
  for path in PAGES:
    for name in list_code(path):
      # What commands write is not there yet.
      if not re.fullmatch(rf'(?:{rooms})/[\w./-]+', name) or '/evaluation/' in name:
        continue
      places = [start / name for start in (ROOT, ROOT / 'wam_jax', path.parent)]
      found = [place for place in places if place.exists() or place.with_suffix('.py').exists()]
      if not found and 'NAME' not in name:
        missing.append(f'{path.relative_to(ROOT)}: {name}')
  assert not missing


def test_flags_that_pages_name_are_those_of_commands():
  """docs/pods.md names those of gcloud, too, and has a test of its own."""
  commands = [path for room in ROOMS for path in (ROOT / room).rglob('*.py')]
  defined = '\n'.join(path.read_text() for path in commands)
  ours = set(re.findall(r"(?:DEFINE_\w+|add_argument)\(\s*'(?:--)?(\w+)'", defined))
  ours |= set(re.findall(r'\.define_(json|embodiment|mesh)\(', defined))
  # Launchers and the options of the tests say theirs in words.
  others = [*ROOT.glob('launch/*.sh'), ROOT / 'tests/conftest.py']
  ours |= {name for path in others for name in re.findall(r'--(\w+)', path.read_text())}
  unknown = [
    f'{path.relative_to(ROOT)}: --{name}'
    for path in PAGES
    if path.name != 'pods.md'
    for name in re.findall(r'(?<!\S)--(\w+)', '\n'.join(list_code(path)))
    if not {name, name.removeprefix('no')} & (ours | {'config', 'help'})
  ]
  assert not unknown


def test_keys_that_pages_name_are_those_of_the_config():
  """The list of changes also names what is no more."""
  base = cfg.base()
  groups = [key for key, value in base.items() if hasattr(value, 'keys') and key != 'data']
  unknown = []
  for path in PAGES:
    for code in list_code(path) if path.name != 'CHANGELOG.md' else ():
      match = re.fullmatch(rf'(?:--)?(config\.)?(?:({"|".join(groups)})\.)?([a-z_]+)(?:=.*)?', code)
      if not match or not (match[1] or match[2]) or match[3] in ('json', 'key'):
        continue
      # Functions are named in the same way.
      module = match[2] or 'config'
      known = importlib.util.find_spec(f'wam_jax.{module}')
      is_function = known and hasattr(importlib.import_module(f'wam_jax.{module}'), match[3])
      if match[3] not in (base[match[2]] if match[2] else base) and not is_function:
        unknown.append(f'{path.relative_to(ROOT)}: {code}')
  assert not unknown


def test_every_page_is_found_from_the_readme_and_from_the_first_page():
  """A stranger finds theirs in one step."""
  for start in ('README.md', 'docs/index.md'):
    page = ROOT / start
    linked = {(page.parent / address.partition('#')[0]).resolve() for address in list_links(page)}
    pages = set((ROOT / 'docs').glob('*.md')) - {ROOT / 'docs/index.md'}
    assert not pages - linked, start


def test_the_readme_is_short():
  """What it is, a picture, two commands, where to go, the map; the rest has a page."""
  text = (ROOT / 'README.md').read_text()
  sections = re.findall(r'^## (.*)$', text, re.MULTILINE)
  assert sections == ['Two commands', 'Who you are, where to go', 'Map']
  assert text.count('](docs/pictures/') == 1
  assert len(re.findall('^```$', text, re.MULTILINE)) == 4
  assert len(text.splitlines()) < 80


def test_what_is_made_from_the_code_is_in_step():
  stale = [
    str(path.relative_to(ROOT))
    for path, content in made.make_all().items()
    if not path.exists() or path.read_text() != content
  ]
  assert not stale, f'Run python -m {make.__name__}.'


def test_every_key_is_on_its_page_with_default_and_choices():
  page = (ROOT / 'docs/config.md').read_text()
  rows = {}
  for names, default, values in re.findall(r'^\| (`\w.*?) \| (.*?) \| (.*?) \|', page, re.M):
    rows |= dict.fromkeys(re.findall(r'`([\w.]+)`', names), (default, values))

  def walk(group, where=''):
    for key, value in group.items():
      if hasattr(value, 'items') and key not in ('mesh', 'rules', 'mixture', 'rows'):
        yield from walk(value, f'{where}{key}.') if value else [f'{where}{key}']
      else:
        yield f'{where}{key}'

  assert set(walk(cfg.base())) <= rows.keys()
  assert rows['steps'] == ('`1000`', 'whole number')
  assert rows['sample.history'] == ("`'reset'`", '`reset`, `sliding`, `window`')
  assert rows['data.mixture.NAME.weight'] == ('`1.0`', 'number')


def test_a_key_that_is_not_described_is_refused():
  class Group:
    """Keys.

    Attributes:
      steps: of something.
    """

    steps: int
    speed: float

  with pytest.raises(ValueError, match=r"must have a line for each .* differs in \['speed'\]"):
    config_reference.describe(Group)


@needs.mkdocs
def test_the_site_builds_without_a_warning(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', f'--site-dir={tmp_path}/site'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'NO_MKDOCS_2_WARNING': '1'},
    check=False,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  built = {path.relative_to(tmp_path / 'site') for path in (tmp_path / 'site').rglob('*.html')}
  for page in (ROOT / 'docs').glob('*.md'):
    assert pathlib.Path('' if page.stem == 'index' else page.stem, 'index.html') in built
  # Pages that lie elsewhere are part of it, and reached by the links of a checkout.
  first = (tmp_path / 'site/index.html').read_text()
  assert 'href="repository/benchmarks/RESULTS/"' in first
  # Nothing is fetched from elsewhere.
  assert not re.search(r'(src|href)="https?://[^"]*\.(js|css|woff2?)', first)
