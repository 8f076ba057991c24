"""The names under which the reference takes the parts of state and action.

It knows no columns: every part is an array of its own, a relative action counts from the state of
its own name. A record may take several parts of one array, and count from columns of another: such
arrays are cut, and the parts named, which changes no number of the vectors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

from wam_jax.data import record as record_lib
from wam_jax.interop import errors

KINDS = ('state', 'action')


def shorten(key: str) -> str:
  """The name of an array without where it is in a dataset."""
  return key.rsplit('/', 1)[-1]


def flatten(key: str) -> str:
  """The key as one word. The reference takes a dot for the end of 'video', 'state' or 'action'."""
  return key.replace('/', '_').replace('.', '_')


def write_columns(s: record_lib.Slice) -> str:
  """A slice as --keys names it: ARRAY:START:STOP."""
  return f'{s.key}:{s.start}:{s.stop}'


def parse(text: str) -> dict[str, str]:
  """The names in 'ARRAY:START:STOP=NAME,...', by ARRAY:START:STOP.

  Raises:
    ValueError: it is of another form.
  """
  given = {}
  for item in filter(None, text.split(',')):
    columns, _, name = item.partition('=')
    *_, start, stop = ['', '', *columns.rsplit(':', 2)]
    if not (name.isidentifier() and start.isdigit() and stop.isdigit()):
      raise ValueError(
        f'--keys={text} must be ARRAY:START:STOP=NAME, separated by commas, as '
        f'state:0:6=joint_position,state:6:7=gripper_position; got {item!r}.'
      )
    given[columns] = name
  return given


def cut(record: record_lib.Embodiment) -> record_lib.Embodiment:
  """A record of the same vectors, in which a relative action counts from one whole state slice."""
  edges: dict[str, set[int]] = {s.key: set() for s in record.state}
  for s in record.action:
    if s.relative_to:
      key, start, stop = s.relative_to.rsplit(':', 2)
      edges[key] |= {int(start), int(stop)}
  state = [part for s in record.state for part in _cut_slice(s, edges[s.key])]
  action = [part for s in record.action for part in _cut_action(s, state)]
  return dataclasses.replace(record, state=tuple(state), action=tuple(action))


def _cut_slice(s: record_lib.Slice, edges: Collection[int]) -> list[record_lib.Slice]:
  """The slice in parts that end at `edges`, in so far as these lie within."""
  ends = sorted({s.start, s.stop, *(edge for edge in edges if s.start < edge < s.stop)})
  return [
    dataclasses.replace(s, start=start, stop=stop) for start, stop in itertools.pairwise(ends)
  ]


def _cut_action(s: record_lib.Slice, state: Sequence[record_lib.Slice]) -> list[record_lib.Slice]:
  """The slice in parts, each relative to the whole of one of the state's slices."""
  # What standing still is, the reference does not ask.
  s = dataclasses.replace(s, rest='')
  if not s.relative_to:
    return [s]
  key, start, _ = s.relative_to.rsplit(':', 2)
  # From columns of the state to columns of the action.
  shift = s.start - int(start)
  edges = {edge + shift for part in state if part.key == key for edge in (part.start, part.stop)}
  parts = []
  for part in _cut_slice(dataclasses.replace(s, relative_to=''), edges):
    counted_from = f'{key}:{part.start - shift}:{part.stop - shift}'
    parts.append(dataclasses.replace(part, relative_to=counted_from))
  return parts


def name_parts(
  record: record_lib.Embodiment, given: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(names of the state's slices, names of the action's), each different from the others of its
  kind.

  Args:
    record: as `cut` gives it.
    given: names by ARRAY:START:STOP, for slices that should have other ones.
  Raises:
    ValueError: a given name is of no slice or contradicts another.
  """
  columns = [write_columns(s) for s in (*record.state, *record.action)]
  errors.fail(
    f'--keys names parts that {record.name!r} does not have:',
    [f'{where}={name}' for where, name in given.items() if where not in columns],
    f'It has {", ".join(dict.fromkeys(columns))}.',
  )
  state = _choose_names(record.state, [given.get(write_columns(s), '') for s in record.state])
  by_columns = dict(zip(map(write_columns, record.state), state, strict=True))

  # A relative action is called as what it counts from.
  wanted = []
  problems = []
  for s in record.action:
    name = given.get(write_columns(s), '')
    own = by_columns.get(s.relative_to, '')
    if name and own and name != own:
      problems.append(f'{write_columns(s)}={name} counts from {s.relative_to}, which is {own!r}')
    wanted.append(own or name)
  action = _choose_names(record.action, wanted)
  for kind, names in (('state', state), ('action', action)):
    double = sorted({name for name in names if names.count(name) > 1})
    problems += [f'{kind} {name!r} is the name of several parts' for name in double]
  errors.fail(
    f'The parts of {record.name!r} cannot be named for the reference, which names each once:',
    problems,
    'Give other names with --keys=ARRAY:START:STOP=NAME,...',
  )
  return state, action


def _choose_names(slices: Sequence[record_lib.Slice], wanted: Sequence[str]) -> tuple[str, ...]:
  """The wanted names, and for '' the shortest that tells a slice from the others."""
  candidates = [_list_names(s) for s in slices]
  names = []
  for own, name in zip(candidates, wanted, strict=True):
    for level, candidate in enumerate(own):
      same = [others[level] for others in candidates].count(candidate)
      if not name and same == 1 and candidate not in wanted:
        name = candidate
    names.append(name or own[-1])
  return tuple(names)


def _list_names(s: record_lib.Slice) -> list[str]:
  """What a slice may be called, the shortest first."""
  short, whole = shorten(s.key).replace('.', '_'), flatten(s.key)
  columns = f'_{s.start}_{s.stop}'
  return [short, short + columns, whole, whole + columns]
