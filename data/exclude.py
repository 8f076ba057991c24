r"""Leaves episodes, or steps of them, out of a dataset for all that read it: the validator,
statistics, stored features, training and evaluation.

python -m data.exclude --dataset=DIR --split=train --episodes=4,17,30:40 [--steps=100:140] \
  [--why=TEXT] [--undo]
python -m data.exclude --dataset=DIR --split=train --names=FILE --embodiment=EMBODIMENT
python -m data.exclude --dataset=DIR --split=train --shards=missing

Episodes are numbered over the whole split, from 0. What is left out stands in exclusions.json
beside the dataset, or in the file of --exclude, to be named as config.data.exclude; without
anything to add, the command shows it. No shard is touched. `data.validate --write_exclusions` adds
the episodes that it finds damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from absl import flags
from etils import epath

from data import choosing
from wam_jax import cli
from wam_jax import storage
from wam_jax.data import embodiments
from wam_jax.data import exclusions
from wam_jax.data import scan
from wam_jax.data import sources

_DATASET = flags.DEFINE_string(
  'dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.'
)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split, without slicing.')
_EPISODES = flags.DEFINE_string(
  'episodes', '', 'Numbers in the split, as 4,17,30:40 (30 to 39); -1 is the last one.'
)
_STEPS = flags.DEFINE_string(
  'steps', '', 'Steps of those episodes, as 100:140 (100 to 139); all of them without.'
)
_NAMES = flags.DEFINE_string(
  'names', '', "File of names by the record's episode_key, a line each, in place of --episodes."
)
_EMBODIMENT = cli.define_embodiment('Whose episode_key names episodes, for --names.')
_SHARDS = flags.DEFINE_string(
  'shards', '', "Names of shards that are not read, or 'missing' for all that are not there."
)
_WHY = flags.DEFINE_string('why', '', 'Kept with what is left out.')
_UNDO = flags.DEFINE_bool('undo', False, 'Take these episodes or shards in again, whole.')
choosing.define_exclude()
cli.define_json()


def main(unused_argv: list[str]) -> None:
  file = flags.FLAGS.exclude
  path = storage.make_path(_DATASET.value, '--dataset')
  known = exclusions.open_new(path, file)
  dataset = sources.Dataset(_DATASET.value, exclude=sources.NOTHING)
  if _SPLIT.value not in dataset.splits:
    raise ValueError(f'{path} has no split {_SPLIT.value!r}; it has {dataset.splits}.')
  entries = list(_list_entries(dataset))
  if entries:
    known = _undo(known, entries) if _UNDO.value else known.with_entries(_SPLIT.value, entries)
    known.check(*dataset.list_contents())
    known.write()
  lines = list(_show(known, dataset))
  print('\n'.join(lines))
  cli.write_json({'file': str(known.place), 'left_out': lines})


def _undo(
  known: exclusions.Exclusions, entries: Sequence[exclusions.Entry]
) -> exclusions.Exclusions:
  """The same without what it says of these episodes and shards, each of which it must name."""
  if _STEPS.value:
    raise ValueError(
      '--undo takes in whole episodes, whatever steps of them are left out; give no --steps.'
    )
  said = {(entry.episode, entry.shard) for entry in known.of(_SPLIT.value).entries}
  unsaid = [str(e.shard or e.episode) for e in entries if (e.episode, e.shard) not in said]
  if unsaid:
    raise ValueError(
      f'{known.place} leaves out nothing of {exclusions.describe_missing(unsaid)} of split '
      f'{_SPLIT.value!r}; without these flags the command shows what it leaves out.'
    )
  return known.without_entries(_SPLIT.value, entries)


def _list_entries(dataset: sources.Dataset) -> Iterator[exclusions.Entry]:
  """What the flags name."""
  given = [name for name in ('episodes', 'names', 'shards') if flags.FLAGS[name].value]
  if len(given) > 1:
    raise ValueError(f'Give one of --{", --".join(given)} at a time.')
  if _STEPS.value and not _EPISODES.value:
    raise ValueError('--steps needs --episodes, whose steps they are.')
  steps = _read_steps()
  for number in _list_numbers(dataset):
    yield exclusions.Entry(episode=number, steps=steps, why=_WHY.value)
  for shard in _list_shards(dataset):
    yield exclusions.Entry(shard=shard, why=_WHY.value)


def _list_numbers(dataset: sources.Dataset) -> list[int]:
  counts, _ = dataset.list_contents()
  if _EPISODES.value:
    return exclusions.parse_numbers(_EPISODES.value, '--episodes', counts[_SPLIT.value])
  if not _NAMES.value:
    return []
  record = embodiments.resolve(_EMBODIMENT.value, _DATASET.value)
  if not record.episode_key:
    raise ValueError(
      f'--names: {record.name!r} has no episode_key that says how its episodes are named; give '
      '--episodes.'
    )
  # Those that are left out already count, too.
  episodes = sources.Dataset(_DATASET.value, keeps=False, exclude=sources.NOTHING).open(
    _SPLIT.value, record
  )
  numbers = {name: number for number, name in enumerate(scan.load_names(episodes))}
  file = epath.Path(_NAMES.value).expanduser()
  wanted = [line.strip() for line in file.read_text().splitlines() if line.strip()]
  if unknown := [name for name in wanted if name not in numbers]:
    raise ValueError(
      f'{file} names {len(unknown)} episodes that split {_SPLIT.value!r} does not have, as '
      f'{unknown[0]!r}; it has, for example, {next(iter(numbers))!r}.'
    )
  return sorted(numbers[name] for name in wanted)


def _list_shards(dataset: sources.Dataset) -> list[str]:
  if not _SHARDS.value:
    return []
  _, files = dataset.list_contents()
  if _SHARDS.value != 'missing':
    return _SHARDS.value.split(',')
  there = storage.list_sizes(dataset.path)
  missing = [name for name in files[_SPLIT.value] if name not in there]
  if not missing:
    raise ValueError(f'--shards=missing: all {len(files[_SPLIT.value])} shards are there.')
  return missing


def _read_steps() -> tuple[tuple[int, int], ...]:
  if not _STEPS.value:
    return ()
  first, _, stop = _STEPS.value.partition(':')
  if not (first.isdigit() and stop.isdigit() and int(first) < int(stop)):
    raise ValueError(f'--steps={_STEPS.value} must be FIRST:STOP, as 100:140 for 100 to 139.')
  return ((int(first), int(stop)),)


def _show(known: exclusions.Exclusions, dataset: sources.Dataset) -> Iterator[str]:
  """What is left out now, a line each."""
  counts, _ = dataset.list_contents()
  for split, of_split in known.splits.items():
    for entry in of_split.entries:
      what = f'shard {entry.shard}' if entry.shard else f'episode {entry.episode}'
      steps = ', '.join(f'{first} to {stop - 1}' for first, stop in entry.steps)
      of_it = f', steps {steps}' if steps else ''
      why = f': {entry.why}' if entry.why else ''
      yield f'{split} {what}{of_it}{why}'
    whole = len(of_split.episodes)
    yield (
      f'{known.place}: {split} has {counts[split]} episodes; {whole} are left out, some steps of '
      f'{len(of_split.steps)}, and {len(of_split.shards)} shards'
    )
  if not known.splits:
    yield f'{known.place} leaves out nothing'


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset'])
  cli.run(main)
