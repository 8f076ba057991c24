"""Converts a LeRobot directory (versions 2.0, 2.1 and 3.0: parquet and MP4) to a TFDS dataset in
RLDS form.

python -m data.from_lerobot --source=~/lerobot/my_robot --output=~/data/my_robot/1.0.0 --workers=8

Every feature is kept. A step of the result has
  observation/NAME      for `observation.images.NAME` and `observation.NAME`; images as JPEG
  NAME                  for any other feature, `reward` for `next.reward`
  language_instruction  the text of task_index, or of the first annotation of modality.json
  is_first, is_last, is_terminal (`next.done` of the last row)
and an episode has episode_metadata/{name, episode_index}. Floats are float32, integers int64. A
feature of the source with one of these names comes first.

Where meta/modality.json (GEAR) is present, the features that it slices are stored as its sub-keys,
and only so: observation/KEY for state and video, action/KEY for action, annotation/KEY for texts.
Discarded episodes are left out, step_filter.jsonl becomes step_ranges.json for
`config.data.ranges`, and the statistics, with those of relative actions, become
gear_statistics.json for `config.data.statistics`.

Beside the data lies embodiment.json, the record of the robot, which every command takes from there.
Sizes, rates, and what the columns of state and action are, are read off the data; what was guessed
is printed, for you to correct in that file.
"""

from __future__ import annotations

from absl import flags

from data.lerobot import convert
from data.lerobot import record as record_lib
from wam_jax import cli
from wam_jax.data import embodiments

_SOURCE = flags.DEFINE_string('source', None, 'LeRobot directory, with meta/info.json.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make, such as NAME/1.0.0.')
_EMBODIMENT = cli.define_embodiment('The record to check and write in place of the proposed one.')
flags.DEFINE_alias('embodiment_json', 'embodiment')  # As it was called.
_SIZE = flags.DEFINE_string(
  'size', '', 'ROWSxCOLUMNS to resize all images to; empty for the size as it is.'
)
_EXCLUDE = flags.DEFINE_list('exclude', [], 'Features to leave out, comma-separated.')
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  converted = convert.convert(
    _SOURCE.value,
    _OUTPUT.value,
    embodiment=_EMBODIMENT.value,
    size=_SIZE.value,
    exclude=_EXCLUDE.value,
    workers=_WORKERS.value,
  )
  print(_OUTPUT.value if converted.made else f'already there: {_OUTPUT.value}')
  print(record_lib.to_python(converted.record))
  if converted.guesses:
    print('Proposed from names and numbers; look through it:')
    print('\n'.join(f'  {guess}' for guess in converted.guesses))
  print(
    f'The record lies beside the data as {embodiments.FILE}, where every command takes it from; '
    'edit it there, then check it:\n'
    f'  python -m data.validate --dataset={_OUTPUT.value}'
  )


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  cli.run(main)
