"""What setup.py declares against what the code imports and what messages tell users to install."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import pathlib
import re
import sys

import pytest
import setuptools

from tests import programs

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ('wam_jax', 'data', 'benchmarks', 'configs', 'launch', 'docs')
OURS = {'wam_jax', 'data', 'benchmarks', 'configs', 'launch', 'docs', 'tests'}

# Modules that import an extra at their top, since they are of no use without it.
OF_AN_EXTRA = {
  'wam_jax/drawing.py': 'sim',
  'wam_jax/envs/tabletop': 'sim',
  'wam_jax/evaluation/film.py': 'sim',
  'wam_jax/evaluation/pictures.py': 'sim',
  'wam_jax/serving': 'serve',
  'wam_jax/client': 'serve',
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


@functools.cache
def list_imports(path: pathlib.Path) -> frozenset[str]:
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
  return frozenset(found - sys.stdlib_module_names - OURS - {'__future__'})


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


def find_module(name: str) -> pathlib.Path | None:
  """The file of a module of ours."""
  place = ROOT / name.replace('.', '/')
  found = [path for path in (place.with_suffix('.py'), place / '__init__.py') if path.exists()]
  return found[0] if found else None


@functools.cache
def list_ours(path: pathlib.Path) -> frozenset[pathlib.Path]:
  """Modules of ours that one imports at its top, but for those within `with cli.needs(...)`."""
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      found |= {find_module(name) or find_module(node.module) for name in names}
  return frozenset(found - {None})


def test_commands_say_which_extra_they_need(declared):
  """Where an extra is not installed, a command that is made of it ends with one message: nothing
  at its top may reach what fails before.
  """
  core = {normalize(name) for name in declared['install_requires']}
  distributions = importlib.metadata.packages_distributions()
  commands = [
    path
    for room in ('wam_jax', 'data', 'benchmarks', 'docs')
    for path in (ROOT / room).rglob('*.py')
    if '\n  cli.run(' in path.read_text()
  ]
  assert len(commands) > 20
  problems = []
  for command in commands:
    reached = {command}
    waiting = [command]
    while waiting:
      for path in list_ours(waiting.pop()) - reached:
        reached.add(path)
        waiting.append(path)
    problems += [
      f'{command.relative_to(ROOT)}: {package} of {path.relative_to(ROOT)}'
      for path in sorted(reached)
      for package in sorted(list_imports(path))
      if not core & {normalize(name) for name in distributions.get(package, [package])}
    ]
  assert problems == []


def test_a_missing_extra_is_one_message():
  program = (
    "import runpy, sys; sys.modules['websockets'] = None; sys.argv = ['serve', '--help']; "
    "runpy.run_module('wam_jax.serve', run_name='__main__')"
  )
  done = programs.run_code(program)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    "error: this command needs the package websockets: pip install -e '.[serve]'.\n"
  )


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


def list_skips() -> list[tuple[str, str, str]]:
  """(place, module, reason) of every test or file of tests that is skipped without a module."""
  found = []
  for path in sorted((ROOT / 'tests').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func) == 'pytest.importorskip':
        reasons = [ast.literal_eval(k.value) for k in node.keywords if k.arg == 'reason']
        place = f'{path.relative_to(ROOT)}:{node.lineno}'
        found.append((place, ast.literal_eval(node.args[0]), ''.join(reasons)))
  return found


def test_a_skipped_test_says_what_to_install_for_it(declared):
  extras = {
    f"pip install -e '.[{extra}]'": {normalize(name) for name in names}
    for extra, names in declared['extras_require'].items()
  }
  distributions = importlib.metadata.packages_distributions()
  wrong = []
  for place, module, reason in list_skips():
    package = module.split('.')[0]
    names = {normalize(name) for name in distributions.get(package, [package])}
    # What no extra has is asked for by its own name.
    others = {f'pip install --no-deps {name}' for name in names}
    if not names & extras.get(reason, set()) and reason not in others:
      wrong.append(f'{place}: {module}, {reason!r}')
  assert wrong == []


def test_messages_give_the_command_of_the_readme():
  """The project is on no package index: `pip install wam_jax` would find nothing, or another."""
  assert [place for place, name, _ in list_hints() if name == 'wam_jax'] == []


def test_every_extra_is_on_the_page_of_commands(declared):
  page = (ROOT / 'docs/commands.md').read_text()
  assert [extra for extra in declared['extras_require'] if f'`{extra}`' not in page] == []
