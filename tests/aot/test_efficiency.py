"""The shares of the peaks against the published training steps that they are taken from."""

from __future__ import annotations

import pytest

from wam_jax import chips
from wam_jax.aot import efficiency


def wan_2_1_14b(tokens: int) -> tuple[float, float]:
  """Model FLOPs of a training sample: (of self-attention, of matrix products)."""
  L, D, M = 40, 5120, 13824
  prompt = 512
  attention = 3 * L * 4.0 * tokens**2 * D
  # Four projections of self-attention, two of the prompt's, two products between; the prompt's
  # own attention is small.
  products = 3 * L * 2.0 * tokens * (6 * D**2 + 2 * D * M + 2 * prompt * D)
  return attention, products


@pytest.mark.parametrize(
  ('chip', 'chips_used', 'samples', 'step_s'), [('v5p', 4, 1, 36.0), ('tpu7x', 64, 32, 24.58)]
)
def test_kernels_are_what_published_steps_of_wan_leave_for_them(chip, chips_used, samples, step_s):
  attention, products = wan_2_1_14b(75_600)
  # maxdiffusion prints 4893 TFLOP for each of four chips.
  assert (attention + products) / 4 == pytest.approx(4893e12, rel=0.01)

  shares = efficiency.TABLE[chip]
  peak = chips_used * chips.CHIPS[chip].flops
  # Both recompute the whole forward pass. Of six passes over all pairs, kernels make two once more
  # and three for what each of the two backward ones recomputes by itself.
  kernels_s = samples * attention * 11 / 6 / peak
  products_s = samples * products * 4 / 3 / peak
  left = kernels_s / (step_s - products_s / shares.products)
  assert shares.kernels == pytest.approx(left, abs=0.01)


@pytest.mark.parametrize(
  ('chip', 'published'),
  [('v4', 0.57), ('v5e', 0.67), ('v5p', 0.71), ('v6e', 0.50), ('tpu7x', 0.52)],
)
def test_no_published_language_model_is_faster_than_its_products(chip, published):
  """Whole steps, of which 93 to 98 % of the FLOPs are products: MaxText and tpu-recipes."""
  assert published < efficiency.TABLE[chip].products


def test_every_chip_has_its_shares():
  assert efficiency.TABLE.keys() == chips.CHIPS.keys()
