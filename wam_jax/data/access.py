"""Whether windows of a dataset can be read in random order at a fair price.

Without a frame index (frames.py) a window costs its whole episode: about 8 ms of CPU time for each
MB, where the window's own pictures take 70 to 100 ms to decode (three views of 180 x 320 pixels at
33 steps). Short episodes, and datasets that the cache holds, train all the same, and it is said
what the index would save; the others would leave the devices waiting, and are refused.
"""

from __future__ import annotations

import functools

from absl import logging

from wam_jax.data import sources

# Bytes of an episode, on average: from here on it is said, and from there on refused.
_NOTICED = 1 << 20
_REFUSED = 16 << 20


def check(name: str, episodes: sources.Episodes, cache_bytes: int) -> None:
  """Tells, once, what reading a dataset of the mixture without an index costs.

  Args:
    cache_bytes: what a process keeps of episodes.
  Raises:
    ValueError: the episodes are long, and the cache does not hold them.
  """
  size = episodes.record_bytes
  if episodes.has_index or size < _NOTICED:
    return
  found = (
    f'data.mixture.{name}: {episodes.path} has no index of its images, so that each window costs '
    f'its whole episode, {size / 1e6:.0f} MB on average. Make a copy with one: '
    f'python -m data.convert --source={episodes.path} --output=DIR'
  )
  if size < _REFUSED or size * len(episodes) <= cache_bytes:
    _warn_once(found)
    return
  raise ValueError(
    f'{found} (data.cache_gib does not hold the {size * len(episodes) / 2**30:.1f} GiB of split '
    f'{episodes.split!r}.)'
  )


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning('%s', message)
