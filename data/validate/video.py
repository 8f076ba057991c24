"""What the images of a few episodes show: do they decode, do they differ, do they move with the
robot?
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import cv2
import numpy as np

from data.validate import encoded
from data.validate import findings as findings_lib
from data.validate import numeric
from data.validate import signals
from wam_jax import progress
from wam_jax.data import episode as episode_lib
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import sources

THUMB = 32  # Pixels a side: enough to see motion, and sensor noise averages out.
SHEET_EPISODES, SHEET_TIMES = 6, 6  # Of the contact sheet.
# Grey levels over an image: a lens cap and a black fill stay below, any scene is above 10.
BLANK_STD = 2.0
SAME = 2  # Grey levels by which thumbnails of one camera, encoded twice, may differ.
SAME_SHARE = 0.95  # Share of the steps at which two views are the same.
# The larger is the delay a camera may have: USB cameras are 50 to 150 ms late.
LAG_STEPS, LAG_S = 3, 0.15
LAG_REACH_S = 1.0  # Lags up to this are looked at, or up to twice the delay allowed.
LAG_STRENGTH = 0.3  # Correlation from which the robot's motion can be recognized in the images.
# In correlation over the best allowed lag, and in standard errors of that.
LAG_GAIN, LAG_ERRORS = 0.05, 3.0
WRIST = re.compile('wrist|hand|gripper', re.IGNORECASE)  # Names of views that ride on the robot.
# A view that rides moves as a whole, one that stands has a still background: often 10 times less.
WRIST_RATIO = 2.0
WRIST_MOTION = 0.5  # Grey levels of the background's motion from which a view rides.
WRIST_SHARE, WRIST_EPISODES = 0.8, 3  # How many episodes must say so.


@dataclasses.dataclass(frozen=True)
class Clip:
  """A decoded episode, small.

  Attributes:
    episode: the episode's number.
    where: the shard file and the record.
    text: the first instruction.
    state_TX, action_TU: the record's vectors.
    thumbs: per view [T, THUMB, THUMB] uint8 grey.
    shape: per view, the rows and columns as stored.
    pictures: step to composite image, of some steps.
  """

  episode: int
  where: str
  text: str
  state_TX: np.ndarray
  action_TU: np.ndarray
  thumbs: dict[str, np.ndarray]
  shape: dict[str, tuple[int, int]]
  pictures: dict[int, np.ndarray]

  def motion(self, view: str) -> tuple[np.ndarray, np.ndarray]:
    """([T - 1] mean, [T - 1] median) change of the pixels from one step to the next, grey
    levels.
    """
    thumbs_TP = self.thumbs[view].reshape(len(self.state_TX), -1).astype(np.float32)
    change_TP = np.abs(np.diff(thumbs_TP, axis=0))
    return change_TP.mean(1), np.median(change_TP, axis=1)


def spread(total: int, count: int) -> list[int]:
  """`count` of `total` numbers, evenly, always the same."""
  even = np.linspace(0, total - 1, min(count, total))
  return np.unique(even.round().astype(int)).tolist()


def decode(
  episodes: sources.Episodes, chosen: Sequence[int], findings: findings_lib.Findings
) -> list[Clip]:
  """The `chosen` episodes, every image decoded; some of them keep composite images.

  An image that does not decode is a finding, and its episode is left out.
  """
  clips = []
  pictured = {chosen[k] for k in spread(len(chosen), SHEET_EPISODES)}
  for i in progress.track(chosen, 'decoding episodes', len(chosen), 'episodes'):
    try:
      episode = episodes[i]
    except ValueError:
      continue  # A finding of `survey.read`.
    wanted = spread(episode.length, SHEET_TIMES) if i in pictured else []
    clips.append(_decode(episodes.record, i, episode, wanted, findings))
  return [clip for clip in clips if clip is not None]


def _decode(
  record: record_lib.Embodiment,
  i: int,
  episode: episode_lib.Episode,
  wanted: Sequence[int],
  findings: findings_lib.Findings,
) -> Clip | None:
  """An episode whose composite images of the steps `wanted` are kept; None if an image does not
  decode.
  """
  thumbs = {view.key: [] for view in record.views}
  shape, composites = {}, {}
  is_whole = True
  for step in range(episode.length):
    views = {}
    for key in thumbs:
      try:
        views[key] = episode.decode(key, step)
      except ValueError as e:
        is_whole = False
        if not encoded.find_problem(episode, key, step):  # Else `survey.read` has reported it.
          findings.fail('image', str(e), damaged=i)
        continue
      shape[key] = views[key].shape[:2]
      thumbs[key].append(_thumb(views[key]))
    if step in wanted and is_whole:
      composites[step] = images.compose(record, views)
  if not is_whole:
    return None
  return Clip(
    episode=i,
    where=episode.where,
    text=next((text.strip() for text in episode.texts(0) if text.strip()), ''),
    state_TX=record_lib.convert(record.state, episode.state_TX),
    action_TU=record_lib.convert(record.action, episode.action_TU),
    thumbs={key: np.stack(grey) for key, grey in thumbs.items()},
    shape=shape,
    pictures=composites,
  )


def _thumb(image_IJ3: np.ndarray) -> np.ndarray:
  grey_IJ = cv2.cvtColor(image_IJ3, cv2.COLOR_RGB2GRAY)
  return cv2.resize(grey_IJ, (THUMB, THUMB), interpolation=cv2.INTER_AREA)


def check(
  record: record_lib.Embodiment,
  clips: Sequence[Clip],
  statistics: normalize.Statistics,
  findings: findings_lib.Findings,
) -> dict[str, signals.Lag | None]:
  """Makes all checks of the decoded images; returns per view how late it is, None where that cannot
  be told.
  """
  views = [v.key for v in record.views]
  for clip in clips:
    _check_blank(clip, views, findings)
    _check_same(clip, views, findings)
  for key in views:
    _check_repeats(record, key, clips, findings)
  _check_wrist(views, clips, findings)

  speeds = [compute_speed(record, clip, statistics) for clip in clips]
  if not any(s.shape[1] for s in speeds):  # Video alone: there is nothing to be late against.
    return dict.fromkeys(views)
  lags = {
    key: estimate_lag(record, [clip.motion(key)[0] for clip in clips], speeds) for key in views
  }
  for key, lag in lags.items():
    _check_lag(record, key, lag, findings)
  return lags


def _check_blank(clip: Clip, views: Sequence[str], findings: findings_lib.Findings) -> None:
  """Catches a camera that was unplugged (black or one last frame for a whole episode): a quarter of
  what the model sees would teach nothing.
  """
  for key in views:
    thumbs_TP = clip.thumbs[key].reshape(len(clip.state_TX), -1)
    if thumbs_TP.std(1).max() < BLANK_STD:
      findings.fail(
        'view',
        f'view {key!r} of {clip.where} is blank at all {len(thumbs_TP)} steps (grey level '
        f'{thumbs_TP.mean():.0f}); expected a picture: drop the episode, or use another view.',
      )
    elif len(thumbs_TP) > 2 and (thumbs_TP == thumbs_TP[0]).all() and _moves(clip):
      findings.fail(
        'view',
        f'view {key!r} of {clip.where} shows one frozen picture for all {len(thumbs_TP)} steps '
        'while the robot moves; expected video: drop the episode, or use another view.',
      )


def _moves(clip: Clip) -> bool:
  """Whether the state changes, or, without one, another view does."""
  if clip.state_TX.shape[1]:
    return bool(np.ptp(clip.state_TX, axis=0).max() > normalize.RANGE_FLOOR)
  return any((thumbs != thumbs[0]).any() for thumbs in clip.thumbs.values())


def _check_same(clip: Clip, views: Sequence[str], findings: findings_lib.Findings) -> None:
  """Catches a converter that stored one camera under two keys."""
  for a, b in itertools.combinations(views, 2):
    difference_TIJ = np.abs(np.subtract(clip.thumbs[a], clip.thumbs[b], dtype=np.int16))
    is_same_T = difference_TIJ.max((1, 2)) <= SAME
    is_seen = clip.thumbs[a].std() >= BLANK_STD  # Two blank views are reported as such.
    if is_seen and is_same_T.mean() >= SAME_SHARE:
      findings.fail(
        'view',
        f'views {a!r} and {b!r} of {clip.where} show the same pixels; expected two cameras: '
        'correct the keys of the record, or what the dataset stores under them.',
      )


def repeats(clips: Sequence[Clip], view: str) -> np.ndarray:
  """(repeated, active) frames of a view, see `signals.repeats`."""
  counts = [signals.repeats(clip.motion(view)[0]) for clip in clips]
  return np.sum([(0, 0), *counts], axis=0)


def _check_repeats(
  record: record_lib.Embodiment,
  key: str,
  clips: Sequence[Clip],
  findings: findings_lib.Findings,
) -> None:
  """Catches a camera that is slower than the rows: the model would learn that the world stands
  still at every second step.
  """
  share, rate = signals.repeat_rate(repeats(clips, key), record.control_hz)
  message = (
    f'{share:.0%} of the frames of {key!r} repeat the frame before amid motion: they are new '
    f'{rate:.3g} times a second, {record.name!r} has {record.control_hz:g} rows a second; keep the '
    'rows with a new frame, or record at one rate.'
  )
  numeric.add_repeats(share, message, findings)


def _check_wrist(
  views: Sequence[str], clips: Sequence[Clip], findings: findings_lib.Findings
) -> None:
  """Catches two camera cables in each other's sockets: a view called wrist whose background stands
  still beside another whose background moves.
  """
  # The median pixel is background; the arm in the picture of a camera that stands is less than half
  # of it.
  background = {
    key: np.asarray([clip.motion(key)[1].mean() for clip in clips if len(clip.state_TX) > 2])
    for key in views
  }
  wrists = [key for key in views if WRIST.search(key)]
  others = [key for key in views if not WRIST.search(key)]
  for wrist, other in itertools.product(wrists, others):
    wrist_E, other_E = background[wrist], background[other]
    is_swapped_E = (other_E > WRIST_RATIO * wrist_E) & (other_E > WRIST_MOTION)
    if len(is_swapped_E) >= WRIST_EPISODES and is_swapped_E.mean() >= WRIST_SHARE:
      findings.fail(
        'view',
        f'view {other!r} moves as a whole ({other_E.mean():.1f} grey levels a step), {wrist!r} '
        f'hardly ({wrist_E.mean():.1f}), in {is_swapped_E.sum()} of {len(is_swapped_E)} episodes; '
        'expected the opposite: the two cameras are swapped.',
      )


def compute_speed(
  record: record_lib.Embodiment, clip: Clip, statistics: normalize.Statistics
) -> np.ndarray:
  """[T - 1, ...] how fast each dimension moves, in its ranges; of a robot without state, what it is
  told to do.
  """
  if record.state:
    return np.abs(np.diff(_scale(clip.state_TX, statistics.state), axis=0))
  # An action may be a target, which moves with the robot, or a velocity, which is its motion.
  scaled_TN = _scale(clip.action_TU, statistics.action)
  change_TN = np.abs(np.diff(scaled_TN, axis=0))
  return np.concatenate([change_TN, np.abs(scaled_TN[:-1])], axis=1)


def _scale(series_TN: np.ndarray, quantiles: normalize.Quantiles) -> np.ndarray:
  """The dimensions that vary, in their ranges."""
  varies_N = ~quantiles.is_flat
  return series_TN[:, varies_N] / (2 * quantiles.half_range[varies_N])


def estimate_lag(
  record: record_lib.Embodiment, motions: Sequence[np.ndarray], speeds: Sequence[np.ndarray]
) -> signals.Lag | None:
  """How late images are that move like this, of a robot that moves like that."""
  tolerance = max(LAG_STEPS, int(np.ceil(LAG_S * record.control_hz)))
  reach = max(2 * tolerance, round(LAG_REACH_S * record.control_hz))
  return signals.estimate_lag(motions, speeds, record.control_hz, tolerance, reach)


def _check_lag(
  record: record_lib.Embodiment,
  key: str,
  lag: signals.Lag | None,
  findings: findings_lib.Findings,
) -> None:
  """Catches images and rows that were merged with an offset (a video that starts earlier, clocks of
  two computers): the model would see the past or the future of what it commands.
  """
  if lag is None:
    findings.note('alignment', f'too few or too short episodes to tell whether {key!r} is late.')
    return
  if lag.strength < LAG_STRENGTH:
    findings.note(
      'alignment',
      f"the robot's motion is hardly seen in {key!r} (correlation {lag.strength:.2f}); "
      'whether it is late cannot be told.',
    )
    return
  if abs(lag.best) <= lag.tolerance:
    return
  gain, error = lag.gain
  steps = abs(lag.best)
  when = 'after' if lag.best > 0 else 'before'
  message = (
    f'images of {key!r} come about {steps} steps ({steps / record.control_hz:.2g} s) {when} the '
    f"rows they are stored with: there the robot's motion explains theirs with correlation "
    f'{lag.strength:.2f}, within {lag.tolerance} steps with {gain:.2f} +- {error:.2f} less '
    f'({len(lag.explained_EL)} episodes)'
  )
  # A failure only where chance is no explanation: a false alarm stops a user's training.
  if gain > LAG_GAIN and gain > LAG_ERRORS * error:
    findings.fail('alignment', f'{message}; expected the same step: shift the images by that much.')
  else:
    findings.note('alignment', f'{message}: not clear enough to tell.')
