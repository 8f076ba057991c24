"""Groups of devices as XLA writes them, and what their collectives take on a torus."""

import numpy as np
import pytest

from wam_jax import chips
from wam_jax.aot import hlo
from wam_jax.aot import roofline
from wam_jax.aot import work as work_lib


@pytest.mark.parametrize(
  ('text', 'members'),
  [
    ('replica_groups={{0,2},{1,3}}', [0, 2]),
    ('replica_groups=[2,4]<=[8]', [0, 1, 2, 3]),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', [0, 4]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(2)2}", [0, 1]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [0, 4]),
    ('replica_groups={}', [0, 1, 2, 3, 4, 5, 6, 7]),
    ('channel_id=1', [0, 1, 2, 3, 4, 5, 6, 7]),
  ],
)
def test_the_devices_of_a_group_are_read(text, members):
  assert roofline.group(text, 8) == members


def test_groups_of_another_form_are_not_taken_for_all_devices():
  with pytest.raises(ValueError, match='not known'):
    roofline.group('replica_groups=mesh[8] of an unknown kind', 8)


def measure(where: chips.Slice, kind: str, groups: str) -> roofline.Ring:
  """A collective of 64 GB over groups of a slice, whose devices are in the order of coordinates."""
  one = work_lib.Collective(
    kind=kind, attributes=f'replica_groups={groups}', bytes=64e9, times=1, overlapped=False
  )
  places = np.stack(np.unravel_index(np.arange(where.chips), where.shape), 1)
  return roofline.measure(one, where, places.tolist())


def test_rings_use_the_links_of_the_axes_they_span():
  where = chips.find('v5p:4x4x4')

  def seconds(kind, groups):
    return measure(where, kind, groups).seconds

  # Six links of 100 GB/s over the whole torus, two along an axis of four, one between two
  # neighbours.
  assert seconds('all-gather', '[1,64]<=[64]') == pytest.approx(63 / 600)
  assert seconds('all-reduce', '[16,4]<=[64]') == pytest.approx(2 * 48 / 200)
  assert seconds('reduce-scatter', '[32,2]<=[64]') == pytest.approx(32 / 100)
  assert seconds('all-to-all', '[16,4]<=[64]') == pytest.approx(64 / 200)


def test_hops_go_half_around_a_ring_and_to_the_end_of_a_line():
  whole = measure(chips.find('v6e:16x16'), 'all-gather', '[1,256]<=[256]')
  assert (whole.hops, whole.axes) == (8 + 8, {0, 1})
  # Eight in a row have no way around.
  row = measure(chips.find('v6e:8x8'), 'all-reduce', '[8,8]<=[64]')
  assert (row.hops, row.axes) == (2 * 7, {1})


def test_at_the_least_a_step_takes_its_operations_and_what_is_waited_for():
  where = chips.find('v5e:1x1')
  work = work_lib.Work(flops=197e12, bytes=819e9 / 2, seconds=1.25)
  least = roofline.bound(work, where)
  assert (least.compute_s, least.memory_s, least.step_s) == (1.0, 0.5, 1.25)


def test_a_step_to_plan_by_pays_for_collectives_that_are_hidden():
  """By hand: 8 s of operations, 5 s of collectives of which the program hides 4."""
  where = chips.find('v5p:4x4x4')
  one = work_lib.Collective('all-gather', '', bytes=0, times=10, overlapped=True, seconds=0.5)
  work = work_lib.Work(flops=0.8 * 459e12, seconds=8.0, waited_s=1.0, collectives=[one])
  expected = roofline.expect(work, where)
  # At the share of the peak that products reach on this chip.
  assert expected.products_s == pytest.approx(1.0)
  assert (expected.links_s, expected.lost_s) == (5.0, pytest.approx(0.4))
  assert expected.step_s == pytest.approx(8 + 1 + 0.4)
  assert expected.step_without_overlap_s == 8 + 5


def test_between_slices_each_device_sends_its_part_over_the_network():
  """A quarter of 25 GB/s a host, beside whatever the links of a slice do."""
  meeting = (
    'frontend_attributes={_xla_host_transfer_rendezvous="x_0",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  text = f"""
ENTRY %main (a: f32[16000000]) -> f32[16000000] {{
  %a = f32[16000000]{{0}} parameter(0)
  %token = token[] after-all()
  %send = (f32[16000000]{{0}}, u32[]{{:S(2)}}, token[]) send(%a, %token), channel_id=3, {meeting}
  %recv = (f32[16000000]{{0}}, u32[]{{:S(2)}}, token[]) recv(%token), channel_id=2, {meeting}
  %send-done = token[] send-done(%send), channel_id=3
  %recv-done = (f32[16000000]{{0}}, token[]) recv-done(%recv), channel_id=2
  ROOT %sum = f32[16000000]{{0}} get-tuple-element(%recv-done), index=0
}}
"""
  subject = roofline.Subject(
    program=hlo.parse(text),
    where=chips.find('v5p:4x4x4', count=2),
    kernel_flops=lambda *_: None,
    coordinates=np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), 1).tolist(),
  )
  work = roofline.count_at_peak(subject)
  (one,) = work.collectives
  assert (one.kind, one.bytes, one.axes) == ('between-slices', 64e6, {3})
  assert one.sent == 64e6  # Half of it, to and fro.
  assert one.seconds == pytest.approx(64e6 / (25e9 / 4))
  assert not one.overlapped
  assert work.waited_s == one.seconds
  # Nothing of it is traffic of the memory.
  assert work.bytes == 0
