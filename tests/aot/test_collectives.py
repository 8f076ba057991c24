"""What chips of a slice send each other in a step: read off programs of two layers, compiled for
slices that are not there.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from benchmarks.pods import work as pods
from configs import droid_14b
from tests import needs
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.aot import compiler
from wam_jax.aot import hlo
from wam_jax.aot import roofline
from wam_jax.aot import work as work_lib

pytestmark = [
  pytest.mark.slow,
  needs.libtpu,
]

LAYERS = 2
RUNS = {
  'v5p:4x4x4': droid_14b.get_config('v5p'),
  'v6e:16x16': droid_14b.get_config('v6e'),
  'v4:4x4x4': droid_14b.get_config('v4'),
}
# Sent over needed bytes. Where the backward pass computes products again, as on v6e and v4, the
# compiler gathers eight of twelve weights a third time.
MOST_SENT = {'v5p:4x4x4': 1.1, 'v6e:16x16': 1.2, 'v4:4x4x4': 1.22}


class Step(NamedTuple):
  topology: str
  config: cfg.TrainConfig
  program: hlo.Program
  mesh: dict[str, int]
  work: work_lib.Work


@pytest.fixture(scope='module', params=RUNS)
def step(request, tmp_path_factory) -> Step:
  config = cfg.from_config_dict(RUNS[request.param])
  model = dataclasses.replace(config.model, num_layers=LAYERS)
  config = dataclasses.replace(config, model=model)
  where = chips.find(request.param)
  compiled = compiler.compile_step(config, where, tmp_path_factory.mktemp('aot'))
  subject = roofline.Subject(
    program=hlo.parse(compiled.hlo),
    where=where,
    kernel_flops=lambda *_: 0.0,
    coordinates=compiled.partitions,
  )
  return Step(where.name, config, subject.program, compiled.mesh, roofline.count_at_peak(subject))


def of_blocks(step: Step) -> work_lib.Work:
  """What is sent inside the loops over layers."""
  turns = LAYERS * step.config.accumulate
  inside = [one for one in step.work.collectives if one.times == turns]
  return dataclasses.replace(step.work, collectives=inside)


def test_weights_are_gathered_and_gradients_scattered(step):
  """No sum over all chips of what each then takes a slice of, nor of slices padded with zeros."""
  traffic = roofline.sum_traffic(of_blocks(step))
  assert set(traffic) <= {'all-gather', 'reduce-scatter', 'all-reduce', 'collective-permute'}
  sent = {kind: one.bytes for kind, one in traffic.items()}
  # Sums are those of shards, over chips with the same weights, and of biases.
  assert sent['all-reduce'] < 0.1 * sum(sent.values())
  assert sent['reduce-scatter'] > 0.2 * sum(sent.values())


def test_the_blocks_send_what_their_layout_needs(step):
  sent = sum(one.bytes for one in roofline.sum_traffic(of_blocks(step)).values())

  def needed(layers: int) -> float:
    model = dataclasses.replace(step.config.model, num_layers=layers)
    config = dataclasses.replace(step.config, model=model)
    return sum(pods.needed_bytes(config, step.mesh).values())

  of_a_layer = needed(LAYERS + 1) - needed(LAYERS)
  assert sent < MOST_SENT[step.topology] * LAYERS * of_a_layer


def test_sums_of_scattered_gradients_stay_in_their_pass(step):
  """Moved out of the loop over passes they have come out wrong (openxla#49143): rows of the tables
  of robots are summed as often as there are passes, or with everything else.
  """
  scattered = [one for one in step.work.collectives if 'scatter-add' in one.attributes]
  assert scattered
  assert {one.times for one in scattered} == {step.config.accumulate}


def test_no_large_activation_lies_on_every_chip(step):
  """None has all samples of a pass of accumulation."""
  samples = step.config.batch_size // step.config.accumulate
  found = set()
  for computation in step.program.computations.values():
    for instruction in computation.values():
      for array in instruction.arrays:
        if array.sizes[:1] == (samples,) and array.bytes > 8 * 2**20:
          found.add(f'{instruction.opcode} {array.dtype}{array.sizes}')
  assert not found
