"""A whole validation, from the first record to the card; prints and draws nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from data.validate import card
from data.validate import findings as findings_lib
from data.validate import numeric
from data.validate import survey
from data.validate import video
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
) -> Result | None:
  """Validates a dataset; None if not one record of it can be read.

  Args:
    decoded: the episodes whose images are decoded.
    with_images: the episodes whose images are read to see that they are whole; at least those.
    findings: what is wrong is added to it.
  """
  kept = survey.read(episodes, with_images, findings)
  if not kept.steps:
    return None

  numeric.check(kept, episodes, findings)
  anchors = numeric.count_anchors(kept, episodes, findings)
  clips = video.decode(episodes, decoded, findings)
  lags = video.check(episodes.record, clips, kept.statistics, findings)
  return Result(
    card=card.make(episodes, kept, anchors, clips, lags), clips=clips, statistics=kept.statistics
  )
