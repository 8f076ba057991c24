"""The dataset card: what a validation saw, as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.validate import signals
from data.validate import survey
from data.validate import video
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources

TOP = 5  # Most frequent instructions that are listed.
COLUMNS = ('min', 'q01', 'mean', 'q99', 'max', 'std')


def make(
  episodes: sources.Episodes,
  kept: survey.Survey,
  anchors: int | None,
  clips: Sequence[video.Clip],
  lags: Mapping[str, signals.Lag | None],
) -> dict[str, Any]:
  """JSON-ready; there must be a readable episode."""
  record, lengths = kept.record, np.asarray(kept.lengths)
  return {
    'dataset': str(episodes.path),
    'split': episodes.split,
    'embodiment': record.name,
    'fingerprint': episodes.fingerprint,
    'episodes': len(episodes),
    'readable': lengths.size,
    'decoded': len(clips),
    'steps': kept.steps,
    'hours': kept.steps / record.control_hz / 3600,
    'length': {
      'min': int(lengths.min()),
      'median': float(np.median(lengths)),
      'max': int(lengths.max()),
    },
    'anchors': anchors,
    'anchor_share': None if anchors is None else anchors / kept.steps,
    'rates': {
      'control_hz': record.control_hz,
      'video_fps': record.video_fps,
      'chunk_s': record.chunk_s,
      'steps_per_chunk': record.steps_per_chunk,
      'frames_per_chunk': record.camera_frames_per_chunk,
      'timestamps_hz': 1 / float(np.median(kept.periods)) if kept.periods else None,
    },
    'instructions': {
      'distinct': len(kept.words),
      'spans': kept.words.total(),
      'most_frequent': kept.words.most_common(TOP),
      'blank_steps': {key: kept.blank[key] for key in record.language},
    },
    'images': {
      'read': int(kept.images[0]),
      'mean_bytes': float(kept.images[1] / max(kept.images[0], 1)),
    },
    'views': {key: _view(key, clips, lag) for key, lag in lags.items()},
    'dimensions': [
      row
      for part, slices, columns, counts_N in kept.parts()
      for row in _rows(part, slices, columns, counts_N, is_relative=columns is kept.relative)
    ],
  }


def _view(key: str, clips: Sequence[video.Clip], lag: signals.Lag | None) -> dict[str, Any]:
  repeated, active = video.repeats(clips, key).tolist()
  return {
    'pixels': sorted({clip.shape[key] for clip in clips}),
    'repeated_share': repeated / max(active, 1),
    'late_steps': lag.best if lag else None,
    'motion_correlation': lag.strength if lag else None,
  }


def _rows(
  part: str,
  slices: tuple[embodiments.Slice, ...],
  columns: survey.Columns,
  counts_N: np.ndarray,
  is_relative: bool,
) -> list[dict[str, Any]]:
  """A row per dimension; one that is relative has a row as stored and one as the model sees it."""
  if not columns.sketch.count:
    return []
  summary: normalize.Quantiles = columns.summary
  units = [s.unit for s in slices for _ in range(s.width)]
  return [
    {
      'part': part,
      'name': name,
      'unit': units[n],
      'relative': is_relative,
      **{key: float(getattr(summary, key)[n]) for key in COLUMNS},
    }
    for n, name in enumerate(embodiments.names(slices))
    if counts_N[n] or not is_relative
  ]


def lines(card: Mapping[str, Any]) -> Iterator[str]:
  """The card as text."""
  rates, length, words = card['rates'], card['length'], card['instructions']
  yield f'{card["dataset"]}, split {card["split"]!r}, as {card["embodiment"]!r}'
  unreadable = card['episodes'] - card['readable']
  yield _line(
    'episodes',
    f'{card["episodes"]:,}'
    + (f', {unreadable} of them unreadable' if unreadable else '')
    + f'; {length["min"]} to {length["max"]} steps, median {length["median"]:g}',
  )
  yield _line(
    'time',
    f'{card["hours"]:.3g} h, {card["steps"]:,} steps at {rates["control_hz"]:g} Hz'
    + (f' (timestamps say {rates["timestamps_hz"]:.4g})' if rates['timestamps_hz'] else ''),
  )
  yield _line(
    'chunks',
    f'{rates["chunk_s"]:g} s: {rates["steps_per_chunk"]} actions, '
    f'{rates["frames_per_chunk"]} frames at {rates["video_fps"]:g} fps',
  )
  yield _line(
    'anchors',
    'not counted: some records cannot be read'
    if card['anchors'] is None
    else f'{card["anchors"]:,}, {card["anchor_share"]:.0%} of the steps',
  )
  yield _line(
    'images',
    f'{card["images"]["read"]:,} read, {card["images"]["mean_bytes"] / 1024:.1f} KiB each; '
    f'{card["decoded"]} episodes decoded',
  )
  for key, view in card['views'].items():
    yield _line('', f'{key}: ' + _view_text(view))
  yield _line(
    'language',
    f'{words["distinct"]:,} instructions in {words["spans"]:,} spans'
    + ''.join(f'; {key} blank at {n:,} steps' for key, n in words['blank_steps'].items() if n),
  )
  for text, count in words['most_frequent']:
    yield _line('', f'{count:6,} x  {text}')
  if not card['dimensions']:
    return
  width = max(len(_label(row)) for row in card['dimensions']) + 2
  yield ''
  yield f'{"":{width}}{"unit":12}' + ''.join(f'{key:>11}' for key in COLUMNS)
  for row in card['dimensions']:
    yield f'{_label(row):{width}}{row["unit"]:12}' + ''.join(f'{row[key]:11.4g}' for key in COLUMNS)


def _line(head: str, text: str) -> str:
  return f'  {head:10}{text}'


def _view_text(view: Mapping[str, Any]) -> str:
  pixels = ', '.join(f'{rows} x {columns}' for rows, columns in view['pixels']) or 'not decoded'
  late = (
    'whether late cannot be told'
    if view['late_steps'] is None
    else (
      f"late by {view['late_steps']} steps (correlation with the robot's motion {view['motion_correlation']:.2f})"
    )
  )
  return f'{pixels}; {view["repeated_share"]:.0%} repeated; {late}'


def _label(row: Mapping[str, Any]) -> str:
  return f'{row["part"]} {row["name"]}' + (' - state' if row['relative'] else '')
