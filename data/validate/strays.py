"""Pictures that are not of their place: an episode that begins or ends with a picture of another
one, or of nothing, and a single picture amid others that it has nothing to do with.

A recorder that saves what a camera shows before it is told to look again stores the last picture of
the episode before as the first one (isaac-sim/IsaacLab-Arena#339); a camera that wakes up gives a
black one, and a cable that is loose a green one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.validate import findings as findings_lib
from data.validate import video

USUAL = 0.9  # Quantile of the changes from picture to picture that is usual in an episode.
RATIO = 3.0  # Times the usual change that is no motion.
APART = 0.9  # Of its distance to the picture after its neighbour, that to its neighbour.
LEAST = 4.0  # Grey levels of it, above noise and compression.
SHORT = 8  # Pictures under which nothing is usual.
SHARE, EPISODES = 0.5, 3  # From which it is the recorder's way, and no accident.


def check(
  views: Sequence[str], clips: Sequence[video.Clip], findings: findings_lib.Findings
) -> None:
  """Catches them by view: the first picture is what the model sees for a whole episode."""
  for key in views:
    found = [find(clip.thumbs[key]) for clip in clips]
    last = [len(clip.state_TX) - 1 for clip in clips]
    first_E = np.asarray([0 in strays for strays in found])
    last_E = np.asarray([end in strays for strays, end in zip(found, last)])
    _report_end(key, 'first', first_E, clips, findings)
    _report_end(key, 'last', last_E, clips, findings)
    amid = [
      (clip, step)
      for clip, strays, end in zip(clips, found, last)
      for step in strays
      if 0 < step < end
    ]
    if amid:
      clip, step = amid[0]
      spoilt = len({c.episode for c, _ in amid})
      findings.warn(
        'view',
        f'view {key!r} has {len(amid)} pictures that have nothing to do with those before and '
        f'after them, in {spoilt} of {len(clips)} episodes, first step {step} of {clip.where}; '
        'expected motion: leave such steps out with python -m data.exclude.',
      )


def find(thumbs_TIJ: np.ndarray) -> list[int]:
  """The steps whose picture is not of its place."""
  if len(thumbs_TIJ) < SHORT:
    return []
  thumbs_TP = thumbs_TIJ.reshape(len(thumbs_TIJ), -1).astype(np.float32)
  is_blank_T = thumbs_TP.std(1) < video.BLANK_STD
  strays = set(np.flatnonzero(is_blank_T).tolist())
  if is_blank_T.mean() > SHARE:  # A view that is blank is reported as such.
    return []

  change_T = np.abs(np.diff(thumbs_TP, axis=0)).mean(1)
  # A single picture amid others jumps twice, which is not usual in a short episode either.
  usual = min(np.quantile(change_T, USUAL), np.sort(change_T)[-3])
  is_jump_T = change_T > max(RATIO * usual, LEAST)
  if is_jump_T[0] and not is_jump_T[1] and _is_apart(thumbs_TP[:3]):
    strays.add(0)
  if is_jump_T[-1] and not is_jump_T[-2] and _is_apart(thumbs_TP[:-4:-1]):
    strays.add(len(change_T))
  for t in np.flatnonzero(is_jump_T[:-1] & is_jump_T[1:]) + 1:
    # It goes and comes back: else the scene is cut.
    across = np.abs(thumbs_TP[t + 1] - thumbs_TP[t - 1]).mean()
    if across < min(change_T[t - 1], change_T[t]) / 2:
      strays.add(int(t))
  return sorted(strays)


def _is_apart(thumbs_3P: np.ndarray) -> bool:
  """Whether the first picture is as far from the second as from the third: one on the way to them
  is nearer to the second.
  """
  near, far = np.abs(thumbs_3P[1:] - thumbs_3P[0]).mean(1)
  return bool(near >= APART * far)


def _report_end(
  key: str,
  place: str,
  is_stray_E: np.ndarray,
  clips: Sequence[video.Clip],
  findings: findings_lib.Findings,
) -> None:
  count = int(is_stray_E.sum())
  if not count:
    return
  clip = clips[int(is_stray_E.argmax())]
  is_rule = count >= EPISODES and count >= SHARE * len(clips)
  level = findings.fail if is_rule else findings.warn
  level(
    'view',
    f'the {place} picture of view {key!r} has nothing to do with its neighbour in {count} of '
    f'{len(clips)} episodes, first {clip.where}; expected the scene of its row: a recorder that '
    'saves before the camera looks again stores the picture of the episode before. Record it '
    'anew, or leave that step out: python -m data.exclude',
  )
