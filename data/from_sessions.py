"""Makes a TFDS dataset in RLDS form of what robots did: of recordings that `wam_jax.serve --record`
or `wam_jax.client.recorder` wrote.

python -m data.from_sessions --source=RECORDINGS --output=~/data/my_sessions/1.0.0

A step of the result has observation/KEY for images (PNG, as they were sent) and states, the arrays
of the actions, language_instruction, reward, is_first, is_last, is_terminal; an episode has
episode_metadata/{name, session, policy, at_s}. Beside the data lies embodiment.json, the record of
the robot as its policy has it. Episodes are called by their outcome; where all were told, training
leaves failures out.

Brokers of wam_jax.client tell a server that records every control step, which the result then has.
Of other clients it knows what was seen when they asked. Such episodes are left out, unless
--unseen=hold repeats what was seen last; then step_ranges.json beside the data names the steps at
which a chunk may begin so that nothing of it is older than it says, for `config.data.ranges`.
"""

from __future__ import annotations

from absl import flags

from wam_jax import cli

with cli.needs('serve'):
  from data.sessions import convert

_SOURCE = flags.DEFINE_string('source', None, 'Directory of the recordings, *.episode.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make, such as NAME/1.0.0.')
_ROBOT = flags.DEFINE_string(
  'robot', '', 'Robot whose recordings are taken, if they are of several.'
)
_EMBODIMENT = cli.define_embodiment('The record in place of that in the recordings.')
_UNSEEN = flags.DEFINE_enum(
  'unseen',
  convert.LEAVE_OUT,
  convert.UNSEEN,
  'What becomes of episodes with control steps at which nothing was seen.',
)
_SUCCESSES = flags.DEFINE_bool(
  'successes', False, 'Take only episodes that were told to be successful.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  options = convert.Options(
    robot=_ROBOT.value,
    embodiment=_EMBODIMENT.value,
    unseen=_UNSEEN.value,
    successes=_SUCCESSES.value,
  )
  converted = convert.convert(_SOURCE.value, _OUTPUT.value, options, _WORKERS.value)
  print(_OUTPUT.value if converted.made else f'already there: {_OUTPUT.value}')
  print(
    f'{converted.episodes} episodes, {converted.steps} steps of {converted.record.name}; '
    + '; '.join(converted.notes)
  )
  print(f'Check it:\n  python -m data.validate --dataset={_OUTPUT.value}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  cli.run(main)
