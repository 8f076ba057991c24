"""A training step of a small model on this machine's CPU, against the same step in PyTorch.

  python -m benchmarks.step [--config=configs/tiny.py] [--json=FILE]

The same weights, batch and noise go through both; loss and gradients are compared before anything
is timed. Then the contestants, a process each on the same cores, take turns: this project, PyTorch
(the named baseline), and PyTorch by torch.compile. A step is from a batch in memory to new weights:
tokenizer, noise, loss, gradients, clipping, AdamW, mean of the weights. Needs PyTorch (pip install
-e '.[torch]'). The batch is random: no time depends on what it holds.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from benchmarks import provenance
from wam_jax import cli
from wam_jax import config as cfg

with cli.needs('torch'):
  from benchmarks import contest
  from benchmarks.step import work

BASELINE = 'pytorch'
CONTESTANTS = (BASELINE, 'wam_jax', 'pytorch_compiled')

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/tiny.py', 'Config file; any key can be set.'
)
_THREADS = flags.DEFINE_integer(
  'threads', 2, 'Threads of each contestant, on so many cores.', lower_bound=1
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Length of a turn.', lower_bound=0.01)
_PART = flags.DEFINE_enum(
  'part',
  '',
  ('', *CONTESTANTS),
  'For the program itself: what this process works on.',
)
cli.define_json()


def main(unused_argv: list[str]) -> None:
  config = cfg.from_config_dict(cli.read_config(_CONFIG))
  if _PART.value:
    cli.keep_memory()  # As the train command does; for all alike.
    work.serve(config, _PART.value, _THREADS.value)
    return
  cores = sorted(os.sched_getaffinity(0))[: _THREADS.value]
  if len(cores) < _THREADS.value:
    raise ValueError(
      f'--threads={_THREADS.value} must be at most the {len(cores)} cores of this process.'
    )
  # Nothing is timed before both are known to do the same.
  same = work.compare(config)
  print(
    f'loss {same["wam_jax_loss"]:.6f}, in PyTorch {same["pytorch_loss"]:.6f}; '
    f'gradients differ by {same["gradient_error"]:.1e} of the largest\n'
  )
  table = _compete(cores)
  print(f'{"":<20}{"steps/s":>9}{"samples/s":>11}{"ratio":>8}')
  for row in table:
    steps_per_s = row['samples_per_s'] / config.batch_size
    print(f'{row["name"]:<20}{steps_per_s:>9.2f}{row["samples_per_s"]:>11.1f}{row["ratio"]:>8.2f}')
  provenance.write({'same': same, 'table': table})


def _compete(cores: list[int]) -> list[dict[str, Any]]:
  """A row per contestant: median rate, and median ratio to the baseline of the same round."""
  # The contestants get the flags of this program, but for those that only it needs.
  passed_on = [a for a in sys.argv[1:] if not a.startswith(('--json', '--rounds', '--seconds'))]
  rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
  with contextlib.ExitStack() as stack:
    contestants = {}
    for name in CONTESTANTS:
      command = [sys.executable, '-m', 'benchmarks.step', f'--part={name}', *passed_on]
      contestants[name] = stack.enter_context(contest.Contestant(command, cores))
    for _ in range(_ROUNDS.value):
      for name, contestant in contestants.items():
        # A turn is measured in CPU seconds of all cores.
        turn = contestant.turn(_SECONDS.value * len(cores))
        rates[name].append(turn.samples / turn.wall_s)
  rows = []
  for name, found in rates.items():
    # Paired by round: what slows the machine for a while slows both.
    ratios = [rate / baseline for rate, baseline in zip(found, rates[BASELINE])]
    rows.append(
      {
        'name': name,
        'samples_per_s': statistics.median(found),
        'ratio': statistics.median(ratios),
      }
    )
  return rows


if __name__ == '__main__':
  cli.run(main)
