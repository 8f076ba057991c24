"""The page of every config key, from the dataclasses of `wam_jax.config` and their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from wam_jax import config as cfg

# A line of a docstring's Attributes: one or several names, then words.
_ENTRY = re.compile(r'^  ([a-z]\w*(?:, [a-z]\w*)*): (.*)$')

_HEAD = """# Every config key

`python -m docs.make` writes this page from the dataclasses of `wam_jax/config/`: change it there.

Any key can be set where a command takes `--config`, as `--config.optimizer.learning_rate=3e-4`;
tuples as `--config.trainable="('action_decoder',)"`. A config file of `configs/` starts from these
defaults and changes some; what a run used stands in `WORKDIR/config.json`. A key that does not
exist, a value of another type or out of its range stops the command before anything is computed.
"Reference" is the released PyTorch code ([differences](differences.md)).
"""


def write() -> str:
  """The page."""
  sections = [_HEAD, *_write_group('config', cfg.TrainConfig)]
  sections += _write_group('config.data.mixture.NAME', cfg.DatasetConfig)
  return '\n'.join(sections)


def _write_group(where: str, group: type) -> list[str]:
  """The section of a group of keys, then those of the groups in it."""
  hints = typing.get_type_hints(group)
  fields = {field.name: field for field in dataclasses.fields(group)}
  prefix = where.removeprefix('config').lstrip('.')
  prefix = f'{prefix}.' if prefix else ''
  rows = []
  mappings = []
  for names, words in describe(group).items():
    # Groups have sections of their own.
    names = [name for name in names if not dataclasses.is_dataclass(hints[name])]
    if not names:
      continue
    defaults = {name: _find_default(fields[name]) for name in names}
    tables = {name: value for name, value in defaults.items() if _is_table(value)}
    mappings += [_write_mapping(f'{where}.{name}', value) for name, value in tables.items()]
    cells = (
      ', '.join(f'`{prefix}{name}`' for name in names),
      ', '.join('below' if name in tables else _show(value) for name, value in defaults.items()),
      ', '.join(dict.fromkeys(_show_type(hints[name]) for name in names)),
      words,
    )
    rows.append('| ' + ' | '.join(cells) + ' |')
  first, *_ = inspect.getdoc(group).split('\n\nAttributes:')
  table = ['| key | default | values | what it says |', '|---|---|---|---|', *rows]
  sections = [f'## {where}', ' '.join(first.split()), '', *table, '', *mappings]
  for name, hint in hints.items():
    if dataclasses.is_dataclass(hint):
      sections += _write_group(f'{where}.{name}', hint)
  return sections


def describe(group: type) -> dict[tuple[str, ...], str]:
  """What its docstring says, by the names of the fields that it says it of; of fields that are
  groups it need not say anything.

  Raises:
    ValueError: fields of which it says nothing, or names that are no fields.
  """
  found: dict[tuple[str, ...], str] = {}
  _, _, text = inspect.getdoc(group).partition('Attributes:\n')
  names: tuple[str, ...] = ()
  for line in text.splitlines():
    entry = _ENTRY.match(line)
    if entry:
      names = tuple(entry[1].split(', '))
      found[names] = entry[2]
    elif names and line.strip():
      found[names] += f' {line.strip()}'

  hints = typing.get_type_hints(group)
  described = {name for names in found for name in names}
  needed = {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
  if wrong := sorted((needed - described) | (described - set(hints))):
    raise ValueError(
      f'The docstring of {group.__name__} must have a line for each of its fields, as "    name: '
      f'words"; it differs in {wrong}.'
    )
  return {names: words.replace('|', '\\|') for names, words in found.items()}


def _find_default(field: dataclasses.Field) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def _is_table(value: Any) -> bool:
  return isinstance(value, Mapping) and bool(value)


def _show(value: Any) -> str:
  if value == '':
    return "`''`"
  if isinstance(value, Mapping):
    return 'none'
  if isinstance(value, tuple):
    return '`(' + ', '.join(map(repr, value)) + (',' if len(value) == 1 else '') + ')`'
  return f'`{value!r}`'


def _show_type(hint: Any) -> str:
  """The values that a key takes, in words."""
  origin = typing.get_origin(hint)
  arguments = typing.get_args(hint)
  if origin is typing.Literal:
    return ', '.join(f'`{choice}`' for choice in arguments)
  if origin is tuple:
    return f'any number of: {_show_type(arguments[0])}'
  if isinstance(origin, type) and issubclass(origin, Mapping):
    return f'name to {_show_type(arguments[1])}'
  if dataclasses.is_dataclass(hint):
    return 'the keys of `NAME`, below'
  return {int: 'whole number', float: 'number', bool: 'True, False', str: 'text'}[hint]


def _write_mapping(where: str, default: Mapping[str, Any]) -> str:
  rows = [f'| `{key}` | {_show(value)} |' for key, value in default.items()]
  return '\n'.join([f'Default of `{where}`:', '', '| | |', '|---|---|', *rows, ''])
