"""The dataset card: what a validation saw, as JSON and as text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.validate import motion
from data.validate import signals
from data.validate import survey
from data.validate import video
from wam_jax.data import record as record_lib
from wam_jax.data import sources

TOP = 5  # The number of most frequent instructions that are listed.
COLUMNS = ('min', 'q01', 'mean', 'q99', 'max', 'std')


def make(
  episodes: sources.Episodes,
  kept: survey.Survey,
  anchors: int | None,
  clips: Sequence[video.Clip],
  lags: Mapping[str, signals.Lag | None],
  followed: motion.Followed,
) -> dict[str, Any]:
  """The card, JSON-ready; there must be a readable episode.

  Args:
    anchors: see `numeric.count_anchors`.
    lags: per view, see `video.check`.
    followed: see `motion.check`.
  """
  record = kept.record
  lengths = np.asarray(kept.lengths)
  images, image_bytes = kept.images
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
    'rates': _rates(kept),
    'instructions': {
      'distinct': len(kept.words),
      'spans': kept.words.total(),
      'most_frequent': kept.words.most_common(TOP),
      'blank_steps': {key: kept.blank[key] for key in record.language},
    },
    'images': {'read': int(images), 'mean_bytes': float(image_bytes / max(images, 1))},
    'views': {key: _view(key, clips, lag) for key, lag in lags.items()},
    'commands': [_command(record, s, pairings) for s, pairings in followed],
    'dimensions': [
      row
      for part, slices, columns, counts_N in kept.parts()
      for row in _rows(part, slices, columns, counts_N, is_relative=columns is kept.relative)
    ],
  }


def _rates(kept: survey.Survey) -> dict[str, Any]:
  record = kept.record
  return {
    'control_hz': record.control_hz,
    'video_fps': record.video_fps,
    'chunk_s': record.chunk_s,
    'steps_per_chunk': record.steps_per_chunk,
    'frames_per_chunk': record.camera_frames_per_chunk,
    # What the clock of a usual episode says, where the dataset has one.
    'timestamps_hz': 1 / float(np.median(kept.periods)) if kept.periods else None,
  }


def _view(key: str, clips: Sequence[video.Clip], lag: signals.Lag | None) -> dict[str, Any]:
  repeated, active = video.repeats(clips, key).tolist()
  return {
    'pixels': sorted({clip.shape[key] for clip in clips}),
    'repeated_share': repeated / max(active, 1),
    'late_steps': lag.best if lag else None,
    'motion_correlation': lag.strength if lag else None,
  }


def _command(
  record: record_lib.Embodiment, s: record_lib.Slice, pairings: Sequence[motion.Pairing]
) -> dict[str, Any]:
  """What the state does after the commands of an action slice."""
  states, actions = record_lib.names(record.state), record_lib.names(record.action)
  return {
    'slice': f'{s.key}[{s.start}:{s.stop}]',
    'dimensions': [
      {
        'action': actions[p.action],
        'state': states[p.state],
        'is_target': p.is_target,
        'lag': p.best,
        'correlation': p.strength,
      }
      for p in pairings
    ],
  }


def _rows(
  part: str,
  slices: tuple[record_lib.Slice, ...],
  columns: survey.Columns,
  counts_N: np.ndarray,
  is_relative: bool,
) -> list[dict[str, Any]]:
  """A row per dimension; one that is relative has a row as stored and one as the model sees it."""
  if not columns.sketch.count:
    return []
  summary = columns.summary
  units = [s.unit for s in slices for _ in range(s.width)]
  rows = []
  for n, name in enumerate(record_lib.names(slices)):
    if is_relative and not counts_N[n]:
      continue
    numbers = {key: float(getattr(summary, key)[n]) for key in COLUMNS}
    rows.append({'part': part, 'name': name, 'unit': units[n], 'relative': is_relative, **numbers})
  return rows


def lines(card: Mapping[str, Any]) -> Iterator[str]:
  """The card as text."""
  yield f'{card["dataset"]}, split {card["split"]!r}, as {card["embodiment"]!r}'
  yield _line('episodes', _episodes_text(card))
  yield _line('time', _time_text(card))
  rates = card['rates']
  yield _line(
    'chunks',
    f'{rates["chunk_s"]:g} s: {rates["steps_per_chunk"]} actions, '
    f'{rates["frames_per_chunk"]} frames at {rates["video_fps"]:g} fps',
  )
  if card['anchors'] is None:
    yield _line('anchors', 'not counted: some records cannot be read')
  else:
    yield _line('anchors', f'{card["anchors"]:,}, {card["anchor_share"]:.0%} of the steps')

  images = card['images']
  yield _line(
    'images',
    f'{images["read"]:,} read, {images["mean_bytes"] / 1024:.1f} KiB each; '
    f'{card["decoded"]} episodes decoded',
  )
  for key, view in card['views'].items():
    yield _line('', f'{key}: {_view_text(view)}')

  words = card['instructions']
  blanks = [f'; {key} blank at {n:,} steps' for key, n in words['blank_steps'].items() if n]
  yield _line(
    'language',
    f'{words["distinct"]:,} instructions in {words["spans"]:,} spans' + ''.join(blanks),
  )
  for text, count in words['most_frequent']:
    yield _line('', f'{count:6,} x  {text}')

  for head, command in zip(_heads('commands'), card['commands']):
    yield _line(head, f'{command["slice"]}: {_command_text(command["dimensions"])}')

  if card['dimensions']:
    yield ''
    yield from _table(card['dimensions'])


def _heads(head: str) -> Iterator[str]:
  """The head for the first of several lines."""
  yield head
  yield from itertools.repeat('')


def _command_text(dimensions: Sequence[Mapping[str, Any]]) -> str:
  if not dimensions:
    return 'not seen in the motion'
  lags = sorted({d['lag'] for d in dimensions})
  at = f'lags {lags[0]} to {lags[-1]}' if len(lags) > 1 else f'lag {lags[0]}'
  lowest = min(d['correlation'] for d in dimensions)
  pairs = [f'{d["action"]} with {d["state"]}' for d in dimensions]
  shown = ', '.join(pairs[:TOP]) + ', ...' * (len(pairs) > TOP)
  return f'{at}, correlation {lowest:.2f} or more ({shown})'


def _line(head: str, text: str) -> str:
  return f'  {head:10}{text}'


def _episodes_text(card: Mapping[str, Any]) -> str:
  length = card['length']
  unreadable = card['episodes'] - card['readable']
  note = f', {unreadable} of them unreadable' if unreadable else ''
  return (
    f'{card["episodes"]:,}{note}; {length["min"]} to {length["max"]} steps, median '
    f'{length["median"]:g}'
  )


def _time_text(card: Mapping[str, Any]) -> str:
  rates = card['rates']
  clock = rates['timestamps_hz']
  note = f' (timestamps say {clock:.4g})' if clock else ''
  return f'{card["hours"]:.3g} h, {card["steps"]:,} steps at {rates["control_hz"]:g} Hz{note}'


def _view_text(view: Mapping[str, Any]) -> str:
  pixels = ', '.join(f'{rows} x {columns}' for rows, columns in view['pixels']) or 'not decoded'
  if view['late_steps'] is None:
    late = 'whether late cannot be told'
  else:
    late = (
      f"late by {view['late_steps']} steps (correlation with the robot's motion "
      f'{view["motion_correlation"]:.2f})'
    )
  return f'{pixels}; {view["repeated_share"]:.0%} repeated; {late}'


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """The dimensions with their numbers."""
  width = max(len(_label(row)) for row in rows) + 2
  yield f'{"":{width}}{"unit":12}' + ''.join(f'{key:>11}' for key in COLUMNS)
  for row in rows:
    numbers = ''.join(f'{row[key]:11.4g}' for key in COLUMNS)
    yield f'{_label(row):{width}}{row["unit"]:12}{numbers}'


def _label(row: Mapping[str, Any]) -> str:
  relative = ' - state' if row['relative'] else ''
  return f'{row["part"]} {row["name"]}{relative}'
