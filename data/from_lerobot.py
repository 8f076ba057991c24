"""Converts a LeRobot directory (versions 2.0, 2.1 and 3.0: parquet and MP4) to a TFDS dataset in
RLDS form.

python -m data.from_lerobot --source=~/lerobot/my_robot --output=~/data/my_robot/1.0.0 --workers=8

Every feature is kept. A step of the result has
  observation/NAME      for `observation.images.NAME`, `observation.NAME`, `obs/NAME`, for any other
                        picture, and for vectors that are sensed by their name
  NAME                  for any other feature, `reward` for `next.reward`
  language_instruction  the text of task_index, or of the first annotation of modality.json
  is_first, is_last, is_terminal (`next.done` of the last row)
and an episode has episode_metadata/{name, episode_index}. Floats are float32, integers int64. A
feature of the source with one of these names comes first.

Pictures that are JPEG or PNG stay as they are, byte for byte, unless --size or --as_jpeg changes
them; frames of videos become JPEG. Their sizes are those of the files. The frames of an episode in
a file of many are found by counting. Depth, more than 8 bits a pixel, is refused. What is not as
the metadata say, what is left out, and what the record does not use, is printed.

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

from data import video
from data.lerobot import convert
from data.lerobot import plan
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
_JPEG = flags.DEFINE_boolean(
  'as_jpeg', False, f'Store pictures that are PNG as JPEG of quality {video.JPEG_QUALITY}, too.'
)
_EXCLUDE = flags.DEFINE_list('exclude', [], 'Features to leave out, comma-separated.')
_EPISODES = flags.DEFINE_string(
  'episodes',
  '',
  'Episodes to take, as 0:100,103; with a minus, as -17,-20:25, those to leave out; `present` for '
  'those whose files are there, as a partial download leaves them.',
)
_STATE = flags.DEFINE_list('state', [], 'Features that make the state of the proposed record.')
_ACTION = flags.DEFINE_list('action', [], 'Features that make its action.')
_CAMERAS = flags.DEFINE_list('cameras', [], 'Features that make its cameras, in order.')
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  converted = convert.convert(
    _SOURCE.value,
    _OUTPUT.value,
    plan.Options(
      embodiment=_EMBODIMENT.value,
      size=_SIZE.value,
      as_jpeg=_JPEG.value,
      exclude=_EXCLUDE.value,
      episodes=_EPISODES.value,
      state=_STATE.value,
      action=_ACTION.value,
      cameras=_CAMERAS.value,
    ),
    workers=_WORKERS.value,
  )
  print(_OUTPUT.value if converted.made else f'already there: {_OUTPUT.value}')
  _print_list('Of the source:', converted.notes)
  _print_list('Not used:', converted.unused)
  print(record_lib.to_python(converted.record))
  _print_list('Proposed from names and numbers; look through it:', converted.guesses)
  print(
    f'The record lies beside the data as {embodiments.FILE}, where every command takes it from; '
    'edit it there, then check it:\n'
    f'  python -m data.validate --dataset={_OUTPUT.value}'
  )


def _print_list(title: str, lines: list[str]) -> None:
  if lines:
    print(title)
    print('\n'.join(f'  {line}' for line in lines))


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  cli.run(main)
