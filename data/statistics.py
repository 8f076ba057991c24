r"""Computes the normalization statistics of a dataset, decoding no image, and writes them beside
it, with what else training needs to know of every episode: its instructions and its name.

python -m data.statistics --dataset=~/data/tabletop/disc_reach/1.0.0 --embodiment=tabletop_disc \
  [--json=FILE]

Training does the same on first use; run this ahead for a large dataset or one on a read-only mount.
The dataset may lie in a bucket (gs://).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags

from data import choosing
from wam_jax import cli
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import statistics
from wam_jax.data import texts
from wam_jax.data import windows

_DATASET = flags.DEFINE_string(
  'dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.'
)
_EMBODIMENT = cli.define_embodiment('The robot; by default the record beside the dataset.')
_SPLIT = flags.DEFINE_string('split', 'train', 'Split, as that of the dataset in the config.')
_OVERLAP = flags.DEFINE_integer(
  'action_overlap',
  0,
  'config.model.action_overlap of the training: relative actions go on for so many steps.',
  lower_bound=0,
)
choosing.define()
cli.define_json()


def main(unused_argv: list[str]) -> None:
  record = embodiments.resolve(_EMBODIMENT.value, _DATASET.value)
  episodes = choosing.open_episodes(_DATASET.value, _SPLIT.value, record)
  finding = statistics.Finding(episodes, _OVERLAP.value)
  others: list[scan.Finding] = [scan.Spans(episodes), texts.Texts(episodes)]
  if record.episode_key:
    others.append(scan.Names(episodes))
  scan.complete([finding, *others])
  anchors = windows.make_anchors(episodes)
  found = finding.statistics
  where = str(finding.file)
  rows = [
    *make_rows('state', record.state, found.state),
    *make_rows('action', record.action, found.action),
  ]
  taken = len(np.unique(anchors.episode_K))
  print(f'{taken} episodes, {found.steps} steps; written to {where}')
  if left_out := windows.describe_left_out(episodes, anchors):
    print(left_out)
  print_table(rows)
  cli.write_json(
    dict(
      dataset=str(episodes.path),
      split=episodes.split,
      embodiment=record.name,
      file=where,
      episodes=taken,
      left_out=dict(anchors.left_out),
      steps=found.steps,
      dimensions=rows,
    )
  )


def make_rows(
  part: str, slices: tuple[record_lib.Slice, ...], quantiles: normalize.Quantiles
) -> list[dict[str, Any]]:
  """One row of the table per dimension; numbers that an older file lacks are None."""
  arrays = {key: getattr(quantiles, key) for key in normalize.ARRAYS}
  # A slice covers several columns; the table has a line for each.
  per_dimension = [(s, name) for s in slices for name in record_lib.names((s,))]
  rows = []
  for i, (s, name) in enumerate(per_dimension):
    numbers = {key: None if array is None else float(array[i]) for key, array in arrays.items()}
    row = dict(part=part, name=name, unit=s.unit, relative=bool(s.relative_to), norm=s.norm)
    rows.append({**row, **numbers, 'hardly_varies': bool(quantiles.is_flat[i])})
  return rows


def print_table(rows: list[dict[str, Any]]) -> None:
  print(f'{"":8}{"":40}' + ''.join(f'{key:>12}' for key in normalize.ARRAYS))
  for row in rows:
    relative = ' relative' if row['relative'] else ''
    name = f'{row["name"]} {row["unit"]}{relative}'
    texts = ['-' if row[key] is None else format(row[key], '.5g') for key in normalize.ARRAYS]
    numbers = ''.join(f'{text:>12}' for text in texts)
    norm = f'  {row["norm"]}' if row['norm'] != 'q99' else ''  # Most are; only others are named.
    note = '  hardly varies' if row['hardly_varies'] else ''
    print(f'{row["part"]:8}{name:40}{numbers}{norm}{note}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset'])
  cli.run(main)
