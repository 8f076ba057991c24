"""Groups of devices as XLA writes them, and what their collectives take on a torus."""

import pytest

from wam_jax import chips
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
    ('channel_id=1', list(range(8))),
  ],
)
def test_groups(text, members):
  assert roofline.group(text, 8) == members


def test_groups_of_another_form_are_not_taken_for_all_devices():
  with pytest.raises(ValueError, match='not known'):
    roofline.group('replica_groups=mesh[8] of an unknown kind', 8)


def test_rings_use_the_links_of_the_axes_they_span():
  where = chips.find('v5p:4x4x4')
  places = [[x, y, z] for x in range(4) for y in range(4) for z in range(4)]

  def seconds(kind, groups):
    collective = work_lib.Collective(
      kind=kind, attributes=f'replica_groups={groups}', bytes=64e9, times=1, overlapped=False
    )
    work = work_lib.Work(collectives=[collective])
    return roofline.estimate(work, where, places).exposed_s

  # Six links of 100 GB/s over the whole torus, two along an axis of four, one between two
  # neighbours.
  assert seconds('all-gather', '[1,64]<=[64]') == pytest.approx(63 / 600)
  assert seconds('all-reduce', '[16,4]<=[64]') == pytest.approx(2 * 48 / 200)
  assert seconds('reduce-scatter', '[32,2]<=[64]') == pytest.approx(32 / 100)
  assert seconds('all-to-all', '[16,4]<=[64]') == pytest.approx(64 / 200)


def test_a_step_takes_its_operations_and_what_is_waited_for():
  where = chips.find('v5e:1x1')
  work = work_lib.Work(flops=197e12, bytes=819e9 / 2, seconds=1.25)
  best = roofline.estimate(work, where, [[0, 0, 0]])
  assert (best.compute_s, best.memory_s, best.step_s) == (1.0, 0.5, 1.25)
