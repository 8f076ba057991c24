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

from absl import flags
from ml_collections import config_flags

from benchmarks import contest
from benchmarks.step import work
from wam_jax import cli
from wam_jax import config as cfg

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/tiny.py', 'Config file; any key can be set.'
)
_THREADS = flags.DEFINE_integer('threads', 2, 'Of each contestant, on so many cores.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each.', 1)
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Of a turn.', 0.01)
_PART = flags.DEFINE_enum(
  'part',
  '',
  ('', 'wam_jax', 'pytorch', 'pytorch_compiled'),
  'For the program itself: what this process works on.',
)
cli.define_json()

CONTESTANTS = ('pytorch', 'wam_jax', 'pytorch_compiled')


def main(unused_argv: list[str]) -> None:
  config = cfg.from_config_dict(_CONFIG.value.to_dict())
  if _PART.value:
    cli.keep_memory()  # As the train command does; for all alike.
    return work.serve(config, _PART.value, _THREADS.value)
  cores = sorted(os.sched_getaffinity(0))[: _THREADS.value]
  if len(cores) < _THREADS.value:
    raise ValueError(
      f'--threads={_THREADS.value} must be at most the {len(cores)} cores of this process.'
    )
  same = work.compare(config)
  print(
    f'loss {same["wam_jax_loss"]:.6f}, in PyTorch {same["pytorch_loss"]:.6f}; gradients differ by '
    f'{same["gradient_error"]:.1e} of the largest\n\n{"":<20}{"steps/s":>9}{"samples/s":>11}{"ratio":>8}'
  )
  arguments = [a for a in sys.argv[1:] if not a.startswith(('--json', '--rounds', '--seconds'))]
  rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
  with contextlib.ExitStack() as stack:
    contestants = {
      name: stack.enter_context(
        contest.Contestant(
          [sys.executable, '-m', 'benchmarks.step', f'--part={name}', *arguments], cores
        )
      )
      for name in CONTESTANTS
    }
    for _ in range(_ROUNDS.value):
      for name, contestant in contestants.items():
        turn = contestant.turn(_SECONDS.value * len(cores))
        rates[name].append(turn.samples / turn.wall_s)
  paired = lambda found: statistics.median(a / b for a, b in zip(found, rates['pytorch']))
  table = [
    {'name': name, 'samples_per_s': statistics.median(found), 'ratio': paired(found)}
    for name, found in rates.items()
  ]
  for row in table:
    print(
      f'{row["name"]:<20}{row["samples_per_s"] / config.batch_size:>9.2f}{row["samples_per_s"]:>11.1f}'
      f'{row["ratio"]:>8.2f}'
    )
  cli.write_json({'same': same, 'table': table})


if __name__ == '__main__':
  cli.run(main)
