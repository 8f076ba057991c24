"""Adapters as peft names them: found, merged as training merges them, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.interop import tiny
from wam_jax.interop.dreamzero import lora

ATTENTION = 'action_head.model.blocks.0.self_attn.q'


class Held:
  """A weight that is in memory after all."""

  def __init__(self, array):
    self.array = array
    self.shape = array.shape
    self.dtype = array.dtype

  def read(self):
    return self.array


@pytest.mark.parametrize(
  ('base_layer', 'default'), [(False, ''), (False, '.default'), (True, ''), (True, '.default')]
)
def test_adapters_are_merged_in_float32_and_rounded_once(base_layer, default):
  rng = np.random.default_rng(0)
  plain = {
    f'{ATTENTION}.weight': rng.standard_normal((6, 5)).astype(tiny.BF16),
    f'{ATTENTION}.bias': np.ones(6, np.float32),
    'action_head.model.blocks.0.norm3.weight': np.ones(6, np.float32),
  }
  adapters, wrapped, merged = tiny.adapted(plain, rank=2, base_layer=base_layer, default=default)
  assert len(adapters) == 2
  assert any('.base_layer.' in name for name in wrapped) == base_layer

  # Alpha 4 and rank 2 are a scale of 2, with which `adapted` merged.
  files = {name: Held(w) for name, w in (wrapped | adapters).items()}
  found, halves = lora.split(files)
  assert found.keys() == plain.keys()
  got = lora.merge(found, halves, rank=2, alpha=4)
  for name, w in merged.items():
    np.testing.assert_array_equal(got[name].read(), w)
    assert (got[name].shape, got[name].dtype) == (w.shape, w.dtype)
  # The adapters are large enough for bfloat16 to show them.
  adapted = f'{ATTENTION}.weight'
  assert not np.array_equal(merged[adapted], plain[adapted])


def test_adapters_that_do_not_fit_are_named():
  q = 'blocks.0.self_attn.q'
  weights = {f'{q}.weight': Held(np.zeros((6, 5))), f'{q}.lora_A.weight': Held(np.zeros((2, 5)))}
  with pytest.raises(ValueError, match=r'not whole:\n  blocks.0.self_attn.q.weight has no lora_B'):
    lora.split(weights)
  with pytest.raises(ValueError, match='is there twice'):
    lora.split(weights | {f'base_model.model.{q}.weight': Held(np.zeros(1))})

  adapter = lora.Adapter(Held(np.zeros((2, 5))), Held(np.zeros((6, 3))))
  with pytest.raises(
    ValueError, match=r'A \[2, 5\] and B \[6, 3\]; expected rank 2\n  k is adapted, but not there'
  ):
    lora.merge(weights, {f'{q}.weight': adapter, 'k': adapter}, rank=2, alpha=2)
