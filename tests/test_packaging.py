"""What setup.py declares against what the code imports and what messages tell users to install."""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import re
import sys

import pytest
import setuptools

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ('wam_jax', 'data', 'benchmarks', 'configs', 'launch', 'docs')
OURS = {'wam_jax', 'data', 'benchmarks', 'configs', 'launch', 'tests'}

# Modules that import an extra at their top, since they are of no use without it.
OF_AN_EXTRA = {
  'wam_jax/envs/tabletop': 'sim',
  'wam_jax/evaluation/pictures.py': 'sim',
  'data/tabletop': 'sim',
  'data/validate/pictures.py': 'sim',
  'benchmarks': 'benchmark',
}


@pytest.fixture(scope='module')
def declared() -> dict:
  """The arguments of `setuptools.setup`."""
  found = {}
  real, setuptools.setup = setuptools.setup, lambda **arguments: found.update(arguments)
  try:
    path = ROOT / 'setup.py'
    exec(compile(path.read_text(), path, 'exec'), {'__file__': str(path)})
  finally:
    setuptools.setup = real
  return found


def normalize(distribution: str) -> str:
  """The name of a requirement as package indexes compare it."""
  return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', distribution)[0]).lower()


def list_imports(path: pathlib.Path) -> set[str]:
  """Packages that a module imports when it is imported itself; those of a function come later."""
  found = set()
  statements = list(ast.parse(path.read_text()).body)
  while statements:
    node = statements.pop()
    if isinstance(node, ast.Import):
      found |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module.split('.')[0])
    elif isinstance(node, (ast.If, ast.Try)):
      statements += node.body + node.orelse
  return found - sys.stdlib_module_names - OURS - {'__future__'}


def test_what_is_imported_is_declared(declared):
  """An installation without extras imports every module but those of an extra."""
  core = {normalize(name) for name in declared['install_requires']}
  distributions = importlib.metadata.packages_distributions()
  missing = []
  for path in sorted(p for room in ('wam_jax', 'data') for p in (ROOT / room).rglob('*.py')):
    place = path.relative_to(ROOT).as_posix()
    extra = next((extra for start, extra in OF_AN_EXTRA.items() if place.startswith(start)), None)
    allowed = core | {normalize(name) for name in declared['extras_require'].get(extra, ())}
    missing += [
      f'{place}: {package}'
      for package in sorted(list_imports(path))
      if not allowed & {normalize(name) for name in distributions.get(package, [package])}
    ]
  assert missing == []


def test_everything_declared_is_used(declared):
  """Each requirement of the core is imported by the package or by the makers of data."""
  used = set()
  for path in (p for room in ('wam_jax', 'data') for p in (ROOT / room).rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        used |= {alias.name.split('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        used.add(node.module.split('.')[0])
  distributions = importlib.metadata.packages_distributions()
  imported = {normalize(name) for package in used for name in distributions.get(package, [])}
  # tensorflow-datasets imports it without declaring it.
  by_others = {'importlib-resources'}
  assert {normalize(name) for name in declared['install_requires']} - imported == by_others


def list_hints() -> list[tuple[str, str]]:
  """(place, what stands after `pip install`) of every text that names an extra of ours."""
  found = []
  paths = [p for room in FOLDERS for p in (ROOT / room).rglob('*') if p.is_file()]
  for path in sorted([*paths, *ROOT.glob('*.md')]):
    if path.suffix in ('.py', '.md', '.sh', '.ipynb'):
      # A message may be broken over two lines of source, and quoted within quotes.
      text = re.sub(r"['\"]\s*\n\s*f?['\"]", '', path.read_text())
      found += [
        (f'{path.relative_to(ROOT)}: {match[0]}', match[2], match[3])
        for match in re.finditer(r'pip install([^\n`]*?)(wam_jax|\.)\\?\[([\w,]+)\]', text)
      ]
  return found


def test_messages_name_extras_that_exist(declared):
  hints = list_hints()
  assert len(hints) > 10
  unknown = [
    place for place, _, extras in hints if set(extras.split(',')) - set(declared['extras_require'])
  ]
  assert unknown == []


def test_messages_give_the_command_of_the_readme():
  """The project is on no package index: `pip install wam_jax` would find nothing, or another."""
  assert [place for place, name, _ in list_hints() if name == 'wam_jax'] == []


def test_every_extra_is_in_the_readme(declared):
  readme = (ROOT / 'README.md').read_text()
  assert [extra for extra in declared['extras_require'] if f'`{extra}`' not in readme] == []
