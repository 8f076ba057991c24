"""Who may import whom: each wall of the house is a line of a table.

Imports are read off the source, those inside functions too, so that nothing hides from a rule. A
rule holds for what is imported in turn, however far away.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib.util
import pathlib

import pytest

from tests import programs

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ('wam_jax', 'data', 'configs', 'benchmarks', 'docs', 'launch', 'tests')

HEAVY = ('torch', 'tensorflow')

# (rooms, what none of their modules may reach, why).
WALLS = {
  'the package stands alone': (
    ('wam_jax',),
    ('data', 'configs', 'benchmarks', 'docs', 'launch', 'tests'),
    'it is installed without them',
  ),
  'one framework': (
    ('wam_jax',),
    HEAVY,
    'weights and datasets of theirs are read without them',
  ),
  'maths knows no network': (
    ('wam_jax.flow', 'wam_jax.masks', 'wam_jax.sampler', 'wam_jax.types'),
    ('wam_jax.models', 'wam_jax.data', 'wam_jax.control'),
    'it is tested by hand-computed numbers',
  ),
  'models know no datasets': (
    ('wam_jax.models',),
    ('wam_jax.data', 'wam_jax.train_step', 'wam_jax.control'),
    'training and control share them',
  ),
  'the step is pure': (
    ('wam_jax.train_step',),
    ('wam_jax.aot', 'wam_jax.data', 'wam_jax.checkpoint', 'wam_jax.storage'),
    'it is tested without files',
  ),
  'reading knows no model': (
    ('wam_jax.data',),
    ('wam_jax.models', 'wam_jax.control', 'wam_jax.evaluation'),
    'its worker processes need no network',
  ),
  'workers load no framework of models': (
    ('wam_jax.data.samples', 'wam_jax.data.robot'),
    ('jax', 'flax', 'optax', 'orbax', 'wam_jax.types'),
    'each of them would spend its start on it',
  ),
  'control does not evaluate': (
    ('wam_jax.control',),
    ('wam_jax.evaluation', 'wam_jax.envs', 'wam_jax.train_step'),
    'a robot is controlled without worlds',
  ),
  'no compiler where programs run': (
    ('wam_jax.train', 'wam_jax.evaluate', 'wam_jax.convert', 'wam_jax.control'),
    ('wam_jax.aot',),
    'only the commands wam_jax.compile and wam_jax.check ask it',
  ),
  'a client needs no JAX': (
    ('wam_jax.serving', 'wam_jax.client', 'wam_jax.progress', 'wam_jax.chips'),
    ('jax', 'flax', 'optax', 'orbax'),
    'it runs on the computer of a robot',
  ),
}

# Arrows that may close a circle, with the reason.
CIRCLES: dict[tuple[str, str], str] = {}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
  """Every module of the repository by its dotted name."""
  found = {}
  for folder in FOLDERS:
    for path in (ROOT / folder).rglob('*.py'):
      parts = path.relative_to(ROOT).with_suffix('').parts
      name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
      found[name] = path
  return found


def ours() -> list[str]:
  """Modules of the package."""
  return sorted(name for name in modules() if within(name, ('wam_jax',)))


@functools.cache
def parse(name: str) -> ast.Module:
  return ast.parse(modules()[name].read_text())


@functools.cache
def arrows(name: str) -> frozenset[str]:
  """What a module imports: modules of ours, and other packages by their first word."""
  named = set()
  for node in ast.walk(parse(name)):
    if isinstance(node, ast.Import):
      named |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        member = f'{node.module}.{alias.name}'
        named.add(member if member in modules() else node.module)
  return frozenset(one if one in modules() else one.split('.')[0] for one in named)


@functools.cache
def reached_from(name: str) -> dict[str, str]:
  """What a module imports, directly or by way of the package, and which module imports that."""
  importer: dict[str, str] = {}
  waiting = [name]
  while waiting:
    current = waiting.pop()
    for target in arrows(current) - importer.keys():
      importer[target] = current
      if within(target, ('wam_jax',)):
        waiting.append(target)
  return importer


def within(name: str, rooms: tuple[str, ...]) -> bool:
  return any(name == room or name.startswith(f'{room}.') for room in rooms)


@pytest.mark.parametrize('wall', WALLS)
def test_walls(wall):
  rooms, forbidden, reason = WALLS[wall]
  problems = []
  for name in ours():
    if not within(name, rooms):
      continue
    for target, importer in reached_from(name).items():
      if within(target, forbidden):
        by = '' if importer == name else f' by {importer}'
        problems.append(f'{name} imports {target}{by}')
  assert not problems, f'{wall}, because {reason}:\n' + '\n'.join(sorted(problems))


def test_rooms_of_walls_are_there():
  """A wall around a room that was renamed would hold nothing."""
  named = {room for rooms, forbidden, _ in WALLS.values() for room in rooms + forbidden}
  inside = {room for room in named if within(room, ('wam_jax',))}
  assert inside <= set(ours())


def test_only_commands_that_run_nothing_import_the_compiler():
  aot = ('wam_jax.aot',)
  importers = {name for name in ours() if any(within(target, aot) for target in arrows(name))}
  assert {name for name in importers if not within(name, aot)} == {
    'wam_jax.check',
    'wam_jax.compile',
  }


def test_no_circles():
  graph = {
    name: {target for target in arrows(name) if (name, target) not in CIRCLES} for name in ours()
  }
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as e:
    pytest.fail('Imports in a circle: ' + ' <- '.join(e.args[1]))


def test_importing_the_package_needs_neither_torch_nor_tensorflow():
  """In a process of its own. Commands, which define flags, import nothing else than these."""
  names = [name for name in ours() if not is_command(parse(name))]
  if importlib.util.find_spec('websockets') is None:  # Of the extra `serve`.
    names = [name for name in names if 'websockets' not in reached_from(name)]
  program = [
    'import importlib, sys',
    f'for name in {names}: importlib.import_module(name)',
    f'print([name for name in {HEAVY} if name in sys.modules])',
  ]
  done = programs.run_code('\n'.join(program))
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == '[]'


def is_command(module: ast.Module) -> bool:
  """Whether it ends with `if __name__ == '__main__':`."""
  conditions = [ast.unparse(node.test) for node in module.body if isinstance(node, ast.If)]
  return any('__main__' in condition for condition in conditions)
