"""Hardware by name: slices that exist, and what training reads off them."""

from __future__ import annotations

import jax
import pytest

from tests import train_config
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import sharding
from wam_jax import train
from wam_jax.data import shapes


def test_slices_are_found_by_either_name():
  assert chips.find('v5p:4x4x4').wraps == (True,) * 3
  assert chips.find('v5p:2x2x1').wraps == (False,) * 3
  assert chips.find('v6e:8x16').wraps == (False, True)
  assert chips.find('tpu7x:4x4x4').devices == 128
  # Cloud TPU counts cores of v4 and v5p, chips of the others.
  for accelerator, name in (
    ('v5p-128', 'v5p:4x4x4'),
    ('v4-8', 'v4:2x2x1'),
    ('v6e-256', 'v6e:16x16'),
    ('v5litepod-64', 'v5e:8x8'),
  ):
    assert chips.find(accelerator).name == name
  with pytest.raises(ValueError, match='v5p-100 does not exist; nearest: v5p:4x4x8'):
    chips.find('v5p-100')
  assert chips.compiler_options('cpu') == {}
  # JAX shows the two halves of a chip as two devices.
  assert chips.peak_flops('TPU7x') == 2307e12 / 2
  assert chips.peak_flops('cpu') == 0


def test_every_name_of_a_chip_is_the_same_chip():
  """The names are those of JAX; ahead of time libtpu says 'TPU v5' of what runs as 'TPU v5p'."""
  names = {
    'v4': ['TPU v4'],
    'v5e': ['TPU v5 lite', 'TPU v5e'],
    'v5p': ['TPU v5', 'TPU v5p'],
    'v6e': ['TPU v6 lite', 'TPU v6e'],
    'tpu7x': ['TPU7x'],
  }
  assert list(names) == list(chips.CHIPS)
  for name, kinds in names.items():
    chip = chips.CHIPS[name]
    assert [chips.of_kind(kind) for kind in kinds] == [chip] * len(kinds)
    for kind in kinds:
      assert chips.peak_flops(kind) == chip.flops / chip.devices
      assert chips.compiler_options(kind) == dict(chip.options)
  assert chips.of_kind('NVIDIA H200') is chips.of_kind('cpu') is None


# TPUs that JAX knows and we do not.
@pytest.mark.parametrize('kind', ['TPU v2', 'TPU v3', 'TPU v4 lite', 'TPU7', 'TPU8i', 'TPU v99'])
def test_an_unknown_tpu_is_an_error(kind):
  for ask in (chips.of_kind, chips.peak_flops, chips.compiler_options):
    with pytest.raises(ValueError, match=f"'{kind}', a TPU that is not known; known: v4 .* add"):
      ask(kind)


def test_training_divides_by_the_peak_of_its_devices(monkeypatch):
  config = cfg.from_config_dict(train_config.get_config())
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 1, 'tensor': 1, 'seq': 1}, jax.devices()[:2])
  assert train._count_work(config, mesh) == {}  # CPUs have no known peak.
  monkeypatch.setattr(train.chips, 'peak_flops', lambda kind: 3e12)
  work = flops.training(config.model, shapes.sizes(config).tokens_per_frame)
  assert train._count_work(config, mesh) == {
    'sample_flops': flops.total(work).train,
    'peak_flops': 6e12,
  }
