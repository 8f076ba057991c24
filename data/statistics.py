"""Computes the normalization statistics of a dataset, decoding no image, and writes them beside it.

python -m data.statistics --dataset=~/data/tabletop/disc_reach/1.0.0 --embodiment=tabletop_disc

Training does the same on first use; run this ahead for a large dataset or one on a read-only mount.
"""
from __future__ import annotations

from absl import app
from absl import flags
import numpy as np

from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import statistics

_DATASET = flags.DEFINE_string('dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.')
_EMBODIMENT = flags.DEFINE_enum('embodiment', None, sorted(embodiments.EMBODIMENTS),
                                'Record in wam_jax/data/embodiments.py.')
_SPLIT = flags.DEFINE_string('split', 'train', 'Split, without slicing, as in the config.')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Arguments without a flag: {argv[1:]}.')
  try:
    episodes = sources.Episodes(_DATASET.value, _SPLIT.value, embodiments.get(_EMBODIMENT.value))
    found = statistics.load_or_compute(episodes)
  except ValueError as e:
    raise SystemExit(f'error: {e}') from e
  print(f'{len(episodes)} episodes, {found.steps} steps; written to {statistics.find(episodes)}')
  for part, slices, q in (('state', episodes.record.state, found.state),
                          ('action', episodes.record.action, found.action)):
    _print_table(part, slices, q)


def _print_table(part: str, slices: tuple[embodiments.Slice, ...], quantiles: normalize.Quantiles) -> None:
  names = [f'{s.key}[{i}] {s.unit}' + (' relative' if s.relative_to else '') for s in slices
           for i in range(s.start, s.stop)]
  for name, q01, q99 in zip(names, quantiles.q01, quantiles.q99):
    note = '  hardly varies' if q99 - q01 < np.float32(normalize.RANGE_FLOOR) else ''
    print(f'{part:8}{name:32}q01 {q01:12.5g}  q99 {q99:12.5g}{note}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset', 'embodiment'])
  app.run(main)
