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
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import provenance
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import masks
from wam_jax import presets
from wam_jax.models import attention

# At the released 880 the logits of one head alone would be 0.8 GB, in float32.
_TOKENS = flags.DEFINE_integer(
  'tokens_per_frame', 96, 'Size of the window that is timed.', lower_bound=1
)
_HEADS = flags.DEFINE_integer('heads', 4, 'Heads of the layer that is timed.', lower_bound=1)
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Repeats of the timing; the medians count.', lower_bound=1
)
cli.define_json()

# Tokens of a latent frame after patching: 22 x 40 and 5 x 10.
RELEASED = {
  '14B, 880 tokens a frame': (presets.WAN2_1_I2V_14B, 880),
  '5B, 50 tokens a frame': (presets.WAN2_2_TI2V_5B, 50),
}


KINDS = ('dense', 'chunks', 'splash')


def count(c: cfg.ModelConfig, tokens_per_frame: int) -> dict[str, float]:
  """Tokens, pairs that see each other, and pairs and tokens computed by each kind."""
  layout = flops.training_layout(c, tokens_per_frame)
  units = masks.units(layout)
  chunks = _make_plan(c, 'chunks', layout)
  splash = _make_plan(c, 'splash', layout)
  tokens = len(layout.kind)
  return {
    'tokens': tokens,
    'exact': masks.area(units, attention.training_mask(c, units.layout)),
    'dense': tokens**2,
    'chunks': chunks.pattern.area,
    'splash': splash.pattern.area,
    'splash_side': splash.pattern.side,
    'splash_tokens': len(splash.order),
  }


def _make_plan(c: cfg.ModelConfig, kind: str, layout: masks.Layout) -> attention.Plan:
  return attention.make_plan(dataclasses.replace(c, attention=kind), layout)


def measure(
  c: cfg.ModelConfig, tokens_per_frame: int, heads: int, repeats: int
) -> dict[str, float]:
  """Median seconds of one layer's attention of one sample, forward and backward, in float32."""
  layout = flops.training_layout(c, tokens_per_frame)
  T = len(layout.kind)
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(1, heads, T, c.head_dim)), jnp.float32) for _ in range(3))
  plan = _make_plan(c, 'chunks', layout)
  # Both see the same pairs and keep what the backward pass needs, so that work alone differs.
  mask = attention.training_mask(c, layout)
  seen = jnp.ones((1, T), bool)

  def attend_dense(q, k, v):
    return jnp.sum(attention.attend(q, k, v, mask) ** 2)

  def attend_chunks(q, k, v):
    return jnp.sum(attention.attend_chunks(q, k, v, seen, plan.pattern, recompute=False) ** 2)

  compiled = {
    'dense': jax.jit(jax.grad(attend_dense, (0, 1, 2))),
    'chunks': jax.jit(jax.grad(attend_chunks, (0, 1, 2))),
  }
  seconds = {kind: [] for kind in compiled}
  for repeat in range(repeats + 1):
    # In alternation: what slows the machine for a while slows both.
    for kind, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(q, k, v))
      if repeat:  # The first one compiles.
        seconds[kind].append(time.perf_counter() - start)
  return {'tokens': T} | {kind: statistics.median(found) for kind, found in seconds.items()}


def show_counts(counts: Mapping[str, Mapping[str, float]]) -> str:
  """A line per released model of what `count` found."""
  kinds = ''.join(f'{kind:>10}' for kind in KINDS)
  lines = [
    f'{"pairs computed / pairs seen":<28}{kinds}'
    f'{"pairs seen":>14}{"tokens":>9}{"splash block":>14}{"its tokens":>12}'
  ]
  for name, n in counts.items():
    # 1 is the least that any kernel can do; dense pays for every pair that nobody sees.
    ratios = ''.join(f'{n[kind] / n["exact"]:>10.3f}' for kind in KINDS)
    lines.append(
      f'{name:<28}{ratios}'
      f'{n["exact"]:>14,}{n["tokens"]:>9,}{n["splash_side"]:>14}{n["splash_tokens"]:>12,}'
    )
  return '\n'.join(lines)


def main(unused_argv: list[str]) -> None:
  counts = {name: count(c, tokens_per_frame) for name, (c, tokens_per_frame) in RELEASED.items()}
  print(show_counts(counts))
  timed = measure(presets.WAN2_1_I2V_14B, _TOKENS.value, _HEADS.value, _REPEATS.value)
  print(
    f'\nforward and backward of {_HEADS.value} heads, {timed["tokens"]:,} tokens, '
    f'{jax.default_backend()}: dense {timed["dense"]:.3f} s, chunks {timed["chunks"]:.3f} s, '
    f'chunks {timed["dense"] / timed["chunks"]:.2f} times as fast as dense'
  )
  provenance.write({'pairs': counts, 'timed': timed})


if __name__ == '__main__':
  cli.run(main)
