"""Images that belong to the episode before or after: files that were numbered otherwise than the
rows, as after a take was deleted (NVIDIA/Isaac-GR00T#97, starVLA/starVLA#285).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.validate import findings as findings_lib
from data.validate import signals
from data.validate import video
from wam_jax.data import normalize
from wam_jax.data import record as record_lib

SHIFTS = (-1, 1, -2, 2)
GAIN = 2.0  # Times the correlation with its own rows, which chance does not give.
EPISODES = 3


def check(
  record: record_lib.Embodiment,
  clips: Sequence[video.Clip],
  statistics: normalize.Statistics,
  lags: Mapping[str, signals.Lag | None],
  findings: findings_lib.Findings,
) -> None:
  """Catches views whose motion is not that of their own rows, and is that of other ones.

  Only decoded episodes with such a neighbour can tell: in a large dataset, take more of them.
  """
  speeds = [video.compute_speed(record, clip, statistics) for clip in clips]
  for key, own in lags.items():
    if own is None or own.strength >= video.LAG_STRENGTH:
      continue
    for shift in SHIFTS:
      pairs = [
        (a, b)
        for a, clip in enumerate(clips)
        for b, other in enumerate(clips)
        if other.episode - clip.episode == shift
      ]
      if len(pairs) < EPISODES:
        continue
      motions, others = [], []
      for a, b in pairs:
        motion_T = clips[a].motion(key)[0]
        length = min(len(motion_T), len(speeds[b]))
        motions.append(motion_T[:length])
        others.append(speeds[b][:length])
      found = video.estimate_lag(record, motions, others)
      if found is None or found.strength < max(video.LAG_STRENGTH, GAIN * own.strength):
        continue
      place = 'after' if shift > 0 else 'before'
      findings.fail(
        'alignment',
        f'images of {key!r} show the motion of the record {abs(shift)} {place} their own: '
        f'correlation {found.strength:.2f} with its rows, {own.strength:.2f} with their own '
        f'({len(pairs)} episodes, from {clips[pairs[0][0]].where}); expected their own: number '
        'videos and rows alike, and convert again.',
      )
      break
