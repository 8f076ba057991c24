"""`python -m tests.quantized_memory`: what it takes of memory to quantize weights.

Prints bytes of the weights, of a layer, of what is kept in one byte a number, and of the growth.
"""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax.control import weights

MODEL = cfg.ModelConfig()
FP8 = cfg.SampleConfig(precision='fp8')
LAYERS, KERNEL = 16, (1024, 1024)


def main() -> None:
  rng = np.random.default_rng(0)
  blocks = {
    name: {
      'w': rng.standard_normal((LAYERS, *KERNEL), np.float32),
      'b': np.zeros((LAYERS, KERNEL[1]), np.float32),
    }
    for name in ('in', 'out')
  }
  params = {'blocks': {'ffn': blocks}}
  # Everything is imported, and what rounds a kernel compiled.
  weights.place(jax.tree.map(lambda x: x[:1], params), None, MODEL, FP8)
  before = reset_peak()
  made, _ = weights.place(params, None, MODEL, FP8)
  grown = read_memory('VmHWM') - before
  sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, made)]
  print(json.dumps([sizes[0], 4 * int(np.prod(KERNEL)), sizes[1], grown]))


def reset_peak() -> int:
  """Bytes of this process now, from which on the peak counts; see proc(5)."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  return read_memory('VmRSS')


def read_memory(name: str) -> int:
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return 1024 * int(next(line for line in lines if line.startswith(f'{name}:')).split()[1])


if __name__ == '__main__':
  main()
