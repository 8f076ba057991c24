"""Angles at their seam: two neighbouring poses whose numbers are a whole turn apart.

Counted from a state on the other side of the seam, a small turn is nearly a whole one; and what a
model says between the two numbers of one pose is the opposite pose.
"""

from __future__ import annotations

from data.validate import findings as findings_lib
from wam_jax.data import angles
from wam_jax.data import record as record_lib


def check(
  part: str,
  seams: angles.Seams,
  where,
  findings: findings_lib.Findings,
) -> None:
  """Fails for actions, which a robot would follow the long way round; warns for states.

  Args:
    part: 'state' or 'action'.
    where: episode number to its place in the dataset.
  """
  level = findings.fail if part == 'action' else findings.warn
  names = record_lib.names(seams.slices)
  slice_N = [s for s in seams.slices for _ in range(s.width)]
  for n, s in enumerate(slice_N):
    for k, turn in enumerate(angles.TURNS.values()):
      # The difference of one that says where it goes around is the short way.
      is_mended = bool(s.wrap) and (part == 'state' or bool(s.relative_to))
      if is_mended or not seams.count_NK[n, k] or not seams.is_angle(n, k, s.unit):
        continue
      episode, step, before, after = seams.first[n, k]
      relative = f' Relative to {s.relative_to}, it is a whole turn off there.' * bool(
        s.relative_to
      )
      level(
        'angle',
        f'{part} {names[n]} jumps by a whole turn {seams.count_NK[n, k]} times, first from '
        f'{before:.5g} to {after:.5g} at step {step} of {where(episode)}; expected '
        f'neighbouring poses to have neighbouring numbers (a turn is {turn:.5g}).{relative} Unwrap '
        'it along each episode, move its seam to where the robot does not go, or store cosine and '
        'sine.',
      )
  for i, (count, episode, step) in seams.flips.items():
    s = seams.slices[i]
    level(
      'angle',
      f'{part} {s.key}[{s.start}:{s.stop}], a quaternion, changes its sign {count} times, first at '
      f'step {step} of {where(episode)}; expected neighbouring poses to have neighbouring numbers: '
      'give each the sign that is nearer to the one before.',
    )
