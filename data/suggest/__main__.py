r"""Lists what the steps of an RLDS dataset hold, and proposes a record of its robot.

python -m data.suggest --dataset=~/data/my_robot/1.0.0 --control_hz=15 [--output=FILE] [--json=FILE]

The record goes to embodiment.json beside the data, where every command takes it from, unless there
is one; what in it was guessed is printed, for you to correct. `--state` and `--action` choose other
arrays than those that are found by their names. Of images it looks at a few, for blank cameras.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags
from etils import epath

from data import propose
from data.suggest import work
from wam_jax import cli
from wam_jax import storage
from wam_jax.data import embodiments
from wam_jax.data import sources

_DATASET = flags.DEFINE_string(
  'dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.'
)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split whose numbers are looked at.')
_HZ = flags.DEFINE_float(
  'control_hz', 0.0, 'Steps a second; needed where the steps have no timestamp.', lower_bound=0.0
)
_STATE = flags.DEFINE_list('state', [], 'Arrays below observation/ that make the state, in order.')
_ACTION = flags.DEFINE_list('action', [], 'Arrays that make the action, in order.')
_NAME = flags.DEFINE_string('name', '', 'Of the robot; by default that of the dataset.')
_OUTPUT = flags.DEFINE_string('output', '', 'File of the record; beside the dataset by default.')
cli.define_json()


def main(unused_argv: list[str]) -> None:
  dataset = sources.Dataset(_DATASET.value, keeps=False)
  file = _choose_file(dataset.path)
  kinds = work.list_features(dataset.specs)
  print(f'{dataset.path} has the splits {", ".join(dataset.splits)}; its steps hold')
  for key, kind in kinds.items():
    print(f'  {key:48} {kind}')
  found = work.find(
    dataset,
    split=_SPLIT.value,
    hz=_HZ.value,
    state=_STATE.value,
    action=_ACTION.value,
    name=_NAME.value,
  )
  record, guesses = propose.propose(found)
  dataset.open(_SPLIT.value, record)  # Its own check: every key is there, and as wide.
  content = json.dumps(dataclasses.asdict(record), indent=1)
  if unused := work.list_unused(kinds, record):
    print(f'not in the record: {", ".join(unused)}')
  print(f'\n{content}\nProposed from names and numbers; look through it:')
  print('\n'.join(f'  {guess}' for guess in guesses))
  storage.write_report(file, f'{content}\n'.encode())
  print(f'written: {file}\nnext: python -m data.validate --dataset={dataset.path}')
  cli.write_json({'features': kinds, 'record': dataclasses.asdict(record), 'guesses': guesses})


def _choose_file(dataset: epath.Path) -> epath.Path:
  file = dataset / embodiments.FILE
  if _OUTPUT.value:
    file = storage.make_path(_OUTPUT.value, '--output')
  if file.is_file():
    raise ValueError(
      f'{file} is there already, and may have been edited; name another --output, or delete it.'
    )
  storage.check_file(file, '--output')
  return file


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset'])
  cli.run(main)
