"""The closed forms of convolutions; their FLOPs in programs are in test_work."""

import itertools

from wam_jax.aot import products


def test_positions_of_a_convolution_that_meet_an_element():
  """Closed forms against a loop, over all small windows."""
  windows = {
    'size': (1, 3, 4),
    'kernel': (1, 2, 5),
    'out': (1, 3, 4),
    'low': (-1, 0, 2),
    'stride': (1, 2),
    'dilate': (1, 3),
    'kernel_dilate': (1, 2),
  }
  for values in itertools.product(*windows.values()):
    w = dict(zip(windows, values))
    places = [
      o * w['stride'] + k * w['kernel_dilate'] - w['low']
      for o in range(w['out'])
      for k in range(w['kernel'])
    ]
    last = (w['size'] - 1) * w['dilate']
    met = sum(0 <= place <= last and place % w['dilate'] == 0 for place in places)
    assert products._count_valid(**w) == met, w


def test_a_million_products_side_by_side():
  """As a batch that stands as a spatial axis: each output meets one kernel position."""
  # The loop would take 10^12 steps, and so would a closed form that is none.
  n = 10**6
  met = products._count_valid(
    size=n, kernel=n, out=n, low=0, stride=n - 1, dilate=n, kernel_dilate=1
  )
  assert met == n
