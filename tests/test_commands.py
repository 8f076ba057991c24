"""Every command that the project names, in a message, a docstring or a page, is one that can be
typed from a checkout: its module exists, takes the flags, and gets those that it needs.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TAKES_FLAGS_OF = {'wam_jax.check': 'wam_jax.train'}
OURS = ('wam_jax', 'data', 'benchmarks', 'configs', 'launch')
ABSL = {'help', 'helpfull', 'verbosity'}  # Flags of every program.
START = re.compile(r'python -m ((?:wam_jax|data|benchmarks)(?:\.[a-z_]+)+)')
FLAG = re.compile(r'\[?--(no)?([\w.]+)(?:=(\S+))?')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command as it is printed.

  Attributes:
    where: file and line of the text that it stands in.
    module: what `python -m` is given.
    flags: name to value; '' where it has none.
  """

  where: str
  module: str
  flags: dict[str, str]


def find_commands(where: str, text: str) -> Iterator[Command]:
  """The commands in a text; one ends at the first word that is neither flag nor subcommand."""
  text = text.replace('\\\n', ' ')
  for start in START.finditer(text):
    flags = {}
    line = text[start.end() :].partition('\n')[0]
    for word in line.split():
      flag = FLAG.match(word)
      if flag:
        flags[(flag[1] or '') + flag[2].rstrip('.')] = (flag[3] or '').rstrip('`].,;:)')
      elif word not in ('import', 'export', 'inspect', '...', '...]'):
        break
    yield Command(where, start[1].rstrip('.'), flags)


def texts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(where, text) of the strings and comments of a module, or of a page."""
  name = path.relative_to(ROOT)
  content = path.read_text()
  if path.suffix != '.py':
    yield str(name), content
    return
  # Comments are not in the tree; strings are, also those that are formatted or concatenated.
  yield str(name), '\n'.join(line for line in content.splitlines() if line.lstrip().startswith('#'))
  inside = set()
  for node in ast.walk(ast.parse(content)):
    where = f'{name}:{getattr(node, "lineno", 0)}'
    if isinstance(node, ast.JoinedStr):
      # Pieces of a formatted string, which are walked again as strings of their own.
      inside.update(node.values)
      parts = [part.value if isinstance(part, ast.Constant) else 'VALUE' for part in node.values]
      yield where, ''.join(parts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
      yield where, node.value


@functools.cache
def all_commands() -> tuple[Command, ...]:
  files = [path for folder in OURS for path in sorted((ROOT / folder).rglob('*.py'))]
  files += [path for folder in OURS for path in sorted((ROOT / folder).rglob('*.sh'))]
  files += [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]
  files += [path for folder in OURS for path in sorted((ROOT / folder).rglob('*.md'))]
  return tuple(
    command
    for path in files
    for where, text in texts(path)
    for command in find_commands(where, text)
  )


def module_file(module: str) -> pathlib.Path | None:
  place = ROOT / module.replace('.', '/')
  found = [path for path in (place.with_suffix('.py'), place / '__main__.py') if path.exists()]
  return found[0] if found else None


@functools.cache
def read_flags(module: str) -> tuple[frozenset[str], frozenset[str]]:
  """(flags, those without which it does not start) of a command; read, not run, since two commands
  in one process would define a flag twice.
  """
  defined, required = set(ABSL), set()
  if module in TAKES_FLAGS_OF:
    defined |= read_flags(TAKES_FLAGS_OF[module])[0]
  for node in ast.walk(ast.parse(module_file(module).read_text())):
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
      continue
    name = node.func.attr
    if name.startswith('DEFINE_'):
      defined.add(node.args[0].value)
    elif name in ('define_json', 'define_embodiment', 'define_mesh'):
      defined.add(name.removeprefix('define_'))
    elif name in ('mark_flag_as_required', 'mark_flags_as_required'):
      named = ast.literal_eval(node.args[0])
      required.update([named] if isinstance(named, str) else named)
  return frozenset(defined), frozenset(required)


def has_key(config_file: str, key: str) -> bool:
  """Whether `config.KEY` may be given with this config, or with the small one."""
  name = re.match(r'configs/([a-z0-9_]+)\.py', config_file)
  value = importlib.import_module(f'configs.{name[1] if name else "tiny"}').get_config()
  for part in key.split('.')[1:]:
    if part not in value:
      return False
    value = value[part]
  return True


def test_commands_are_found_in_every_kind_of_text():
  text = 'Run python -m data.convert --source=DIR \\\n  --output=OUT. Then `python -m data.encode`.'
  assert list(find_commands('here', text)) == [
    Command('here', 'data.convert', {'source': 'DIR', 'output': 'OUT'}),
    Command('here', 'data.encode', {}),
  ]
  named = {command.module for command in all_commands()}
  assert {'data.convert', 'data.encode', 'data.statistics', 'data.validate'} <= named
  # Pages, scripts, and messages that hold values and stand in several strings.
  assert {pathlib.Path(command.where.split(':')[0]).suffix for command in all_commands()} == {
    '.md',
    '.py',
    '.sh',
  }
  assert any('VALUE' in command.flags.values() for command in all_commands())


def test_every_module_that_is_named_exists():
  missing = [(c.where, c.module) for c in all_commands() if not module_file(c.module)]
  assert not missing


def test_every_flag_that_is_named_exists():
  unknown = []
  for command in all_commands():
    defined, _ = read_flags(command.module)
    for flag in command.flags:
      base = flag.partition('.')[0]
      if base not in defined and base.removeprefix('no') not in defined:
        unknown.append((command.where, command.module, flag))
  assert not unknown


def test_every_key_of_a_config_that_is_named_exists():
  unknown = []
  for command in all_commands():
    for flag in command.flags:
      is_key = flag.startswith('config.') and flag != 'config.key'
      if is_key and not has_key(command.flags.get('config', ''), flag):
        unknown.append((command.where, flag))
  assert not unknown


@pytest.mark.parametrize('folder', ['wam_jax', 'data'])
def test_commands_of_messages_have_the_flags_that_they_need(folder):
  """One that is named with flags is meant to be typed; one without is only named."""
  incomplete = [
    (command.where, command.module, sorted(missing))
    for command in all_commands()
    if command.where.startswith(f'{folder}/') and command.flags and 'help' not in command.flags
    if (missing := read_flags(command.module)[1] - command.flags.keys())
  ]
  assert not incomplete
