"""Which part of a chip's peaks programs reach, for an estimate to plan by.

Nobody has measured this project on a TPU: every share is someone else's measurement, or is said to
be assumed. Published training steps of diffusion transformers reach 17 to 30 % of the peak, of
language models 44 to 71 %; what follows explains both (`tests/aot/test_efficiency.py`). Replace a
row by your own measurement once there is one: `timing.jsonl` has the seconds of every step.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Efficiency:
  """Shares of a chip's peaks in `chips.Chip`, and what it has beside them.

  Attributes:
    products: of FLOP/s, in matrix products of thousands in every dimension.
    kernels: of FLOP/s, in attention kernels of heads of 128; their softmax, on the vector units,
      is part of it.
    hbm: of the memory's bandwidth.
    links: of the bandwidth of the interconnect.
    vector_per_s: numbers per second that a chip's vector units take through one operation.
  """

  products: float
  kernels: float
  hbm: float
  links: float
  vector_per_s: float


# All shares, with the day on which the source was read:
#
# products  v6e 0.79: profiled products of bfloat16, github.com/yangwhale/gpu-tpu-pedia, tpu/v7_perf
#           (2026-11-29). tpu7x 0.80: 893 to 950 of 1153 TFLOP/s a device, sides of 4096 to 16384,
#           github.com/AI-Hypercomputer/accelerator-microbenchmarks, Ironwood readme (2026-11-29).
#           v5p 0.80, v5e 0.78, v4 0.75: no product by itself is published. Whole steps of dense
#           language models reach 71, 67 and 57 %, of which nearly all is products: MaxText,
#           configs/v5p/README.md, configs/v5e/README.md, README.md (2026-08-22). What a step takes
#           beside its products is the rest.
# kernels   v5p 0.45: what is left for them of Wan 2.1 14B at 75,600 tokens, 36.0 s a step on four
#           chips, github.com/AI-Hypercomputer/maxdiffusion, README.md (2026-08-21); tpu7x 0.25: the
#           same of 24.6 s for 32 samples on 64 chips, github.com/AI-Hypercomputer/tpu-recipes
#           (2026-08-07). The arrays of tpu7x and v6e are 256 wide, of which heads of 128 fill half
#           (scaling book, "How to think about TPUs"), and both have the same vector units for each
#           FLOP/s: v6e is given the share of tpu7x, and v5e that of v5p. v4 has half the vector
#           units of v5p for each FLOP/s: assumed to lie between.
# hbm       0.80, assumed: no share is published.
# links     0.75: 34 MB gathered in 680 us on v5e where the links need 503, scaling book, "Sharded
#           matrices" (2025-02-04); assumed to hold for all.
# vector    Half of what the units could do, assumed. They are 8 x 128 lanes a core with four units
#           (v4: two), scaling book, at the clock that the peak FLOP/s imply: 1.05, 1.5, 1.75, 1.75
#           and 2.2 GHz; v4, v5p and tpu7x have two cores.
_LANES = 8 * 128
TABLE = {
  'v4': Efficiency(0.75, 0.35, 0.80, 0.75, vector_per_s=0.5 * 2 * 2 * _LANES * 1.05e9),
  'v5e': Efficiency(0.78, 0.45, 0.80, 0.75, vector_per_s=0.5 * 1 * 4 * _LANES * 1.5e9),
  'v5p': Efficiency(0.80, 0.45, 0.80, 0.75, vector_per_s=0.5 * 2 * 4 * _LANES * 1.75e9),
  'v6e': Efficiency(0.79, 0.25, 0.80, 0.75, vector_per_s=0.5 * 1 * 4 * _LANES * 1.75e9),
  'tpu7x': Efficiency(0.80, 0.25, 0.80, 0.75, vector_per_s=0.5 * 2 * 4 * _LANES * 2.2e9),
}

# Of the time in which collectives run beside arithmetic, the part that the step is longer for it:
# both want HBM and vector units. Assumed; reports say what each further tenth costs.
LOST_BESIDE = 0.10
# From a chip to its neighbour, whatever the size. Source: scaling book, "Sharded matrices".
HOP_S = 1e-6
