"""Work and time of the kinds of attention over a training window.

python -m benchmarks.attention [--tokens_per_frame=N] [--heads=N] [--json=FILE]

Counts the pairs of tokens that each kind computes at the released shapes, against those that see
each other; then times one layer's attention, forward and backward, on this machine at a smaller
size: `dense`, the named baseline, against `chunks`, in alternation. `splash` is interpreted off
TPUs and so not timed.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import masks
from wam_jax import presets
from wam_jax.models import attention

_TOKENS = flags.DEFINE_integer('tokens_per_frame', 96, 'Of the window that is timed.', 1)
_HEADS = flags.DEFINE_integer('heads', 4, 'Of the layer that is timed.', 1)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Of the timing; the medians count.', 1)
cli.define_json()

RELEASED = {
  '14B, 880 tokens a frame': (presets.WAN2_1_I2V_14B, 880),
  '5B, 50 tokens a frame': (presets.WAN2_2_TI2V_5B, 50),
}


def count(c: cfg.ModelConfig, tokens_per_frame: int) -> dict[str, float]:
  """Tokens, pairs that see each other, and pairs and tokens computed by each kind."""
  layout = flops.training_layout(c, tokens_per_frame)
  units = masks.units(layout)
  exact = masks.area(units, attention.training_mask(c, units.layout))
  plans = {
    kind: attention.make_plan(dataclasses.replace(c, attention=kind), layout)
    for kind in ('chunks', 'splash')
  }
  tokens = len(layout.kind)
  return dict(
    tokens=tokens,
    exact=exact,
    dense=tokens**2,
    **{kind: plan.pattern.area for kind, plan in plans.items()},
    splash_side=plans['splash'].pattern.side,
    splash_tokens=len(plans['splash'].order),
  )


def measure(
  c: cfg.ModelConfig, tokens_per_frame: int, heads: int, repeats: int
) -> dict[str, float]:
  """Median seconds of one layer's attention of one sample, forward and backward, in float32."""
  layout = flops.training_layout(c, tokens_per_frame)
  T = len(layout.kind)
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(1, heads, T, c.head_dim)), jnp.float32) for _ in range(3))
  plan = attention.make_plan(dataclasses.replace(c, attention='chunks'), layout)
  mask, seen = attention.training_mask(c, layout), jnp.ones((1, T), bool)
  calls = {
    'dense': lambda q, k, v: attention.attend(q, k, v, mask),
    'chunks': lambda q, k, v: attention.attend_chunks(q, k, v, seen, plan.pattern, False),
  }
  compiled = {
    kind: jax.jit(jax.grad(lambda q, k, v, call=call: jnp.sum(call(q, k, v) ** 2), (0, 1, 2)))
    for kind, call in calls.items()
  }
  seconds = {kind: [] for kind in calls}
  for repeat in range(repeats + 1):
    for kind, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(q, k, v))
      if repeat:  # The first one compiles.
        seconds[kind].append(time.perf_counter() - start)
  return {'tokens': T, **{kind: statistics.median(s) for kind, s in seconds.items()}}


def main(unused_argv: list[str]) -> None:
  counts = {name: count(c, tokens_per_frame) for name, (c, tokens_per_frame) in RELEASED.items()}
  print(
    f'{"pairs computed / pairs seen":<28}'
    + ''.join(f'{kind:>10}' for kind in ('dense', 'chunks', 'splash'))
    + f'{"pairs seen":>14}{"tokens":>9}{"splash block":>14}{"its tokens":>12}'
  )
  for name, n in counts.items():
    print(
      f'{name:<28}'
      + ''.join(f'{n[kind] / n["exact"]:>10.3f}' for kind in ('dense', 'chunks', 'splash'))
      + f'{n["exact"]:>14,}{n["tokens"]:>9,}{n["splash_side"]:>14}{n["splash_tokens"]:>12,}'
    )
  timed = measure(presets.WAN2_1_I2V_14B, _TOKENS.value, _HEADS.value, _REPEATS.value)
  print(
    f'\nforward and backward of {_HEADS.value} heads, {timed["tokens"]:,} tokens, {jax.default_backend()}: '
    f'dense {timed["dense"]:.3f} s, chunks {timed["chunks"]:.3f} s, '
    f'chunks {timed["dense"] / timed["chunks"]:.2f} times as fast as dense'
  )
  cli.write_json({'pairs': counts, 'timed': timed})


if __name__ == '__main__':
  cli.run(main)
