"""A whole validation, from the first record to the card; prints and draws nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from data.validate import card
from data.validate import duplicates
from data.validate import exchanged
from data.validate import findings as findings_lib
from data.validate import motion
from data.validate import numeric
from data.validate import readings
from data.validate import rests
from data.validate import strays
from data.validate import survey
from data.validate import video
from data.validate import words
from wam_jax import config as cfg
from wam_jax.data import access
from wam_jax.data import normalize
from wam_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Result:
  """What was seen: the card, and what pictures are drawn from."""

  card: dict[str, Any]
  clips: list[video.Clip]
  statistics: normalize.Statistics


def run(
  episodes: sources.Episodes,
  decoded: Sequence[int],
  with_images: Container[int],
  findings: findings_lib.Findings,
  text: cfg.TextConfig | None = None,
) -> Result | None:
  """Validates a dataset; None if not one record of it can be read.

  Args:
    decoded: the episodes whose images are decoded.
    with_images: the episodes whose images are read to see that they are whole; at least those.
    findings: what is wrong is added to it.
    text: the text encoder of the run that the dataset is for; None for no run.
  """
  kept = survey.read(episodes, with_images, findings)
  _tell_left_out(kept, episodes, findings)
  if not kept.steps:
    return None
  anchors = numeric.count_anchors(kept, episodes, findings)
  if not kept.computed.steps:  # Which is said: without a chunk there is nothing to compare.
    return None

  _check_access(episodes, findings)
  words.check(kept, text, findings)
  numeric.check(kept, episodes, findings)
  rests.check(kept, findings)
  readings.check(kept, findings)
  followed = motion.check(kept, findings)
  duplicates.check(episodes, kept.grid, kept.sketches, findings)
  clips = video.decode(episodes, [i for i in decoded if i in kept.whole], findings)
  strays.check([view.key for view in episodes.record.views], clips, findings)
  lags = video.check(episodes.record, clips, kept.statistics, findings)
  exchanged.check(episodes.record, clips, kept.statistics, lags, findings)
  return Result(
    card=card.make(episodes, kept, anchors, clips, lags, followed),
    clips=clips,
    statistics=kept.statistics,
  )


def _tell_left_out(
  kept: survey.Survey, episodes: sources.Episodes, findings: findings_lib.Findings
) -> None:
  """Counts the episodes that were not looked at, for training does not take them."""
  left_out = {**episodes.list_left_out(), **kept.left_out}
  if left_out:
    reasons = ', '.join(f'{count} {reason}' for reason, count in left_out.items())
    findings.note('record', f'left out, as training does: {reasons}')


def _check_access(episodes: sources.Episodes, findings: findings_lib.Findings) -> None:
  """Catches what training refuses to read because it would be slow, with a cache of usual size."""
  cache_bytes = int(cfg.DataConfig().cache_gib * 2**30)
  try:
    access.check(episodes.path.parent.name, episodes, cache_bytes)
  except ValueError as e:
    findings.fail('access', str(e))
