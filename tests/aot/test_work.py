"""Programs written out by hand, in the text that XLA prints, against numbers counted by hand."""

import math
import textwrap

import pytest

from wam_jax.aot import hlo
from wam_jax.aot import work as work_lib


def no_formula(instruction, inputs):
  """FLOPs of a kernel of which none are known."""


def no_links(one: work_lib.Collective) -> None:
  """Collectives that take no time."""


def count(text: str, kernel_flops=no_formula, links=no_links, vector=math.inf) -> work_lib.Work:
  """The work of a program at 1000 FLOP/s, in kernels 500, and 100 bytes/s."""
  return work_lib.count(
    hlo.parse(textwrap.dedent(text)),
    rates=work_lib.Rates(
      products=1000.0, kernels=500.0, hbm=100.0, vector=vector, narrow={'s8': 4000.0}
    ),
    kernel_flops=kernel_flops,
    links=links,
  )


def entry(*lines: str) -> str:
  """A program of one computation."""
  return '\n'.join(['ENTRY %main (a: f32[4,8]) -> f32[4,8] {', *lines, '}'])


def test_the_flops_of_a_product_are_counted():
  work = count(
    entry(
      '%a = f32[4,8]{1,0:T(8,128)} parameter(0)',
      '%b = f32[8,16]{1,0} parameter(1)',
      'ROOT %dot.1 = f32[4,16]{1,0} dot(f32[4,8] %a, f32[8,16] %b), '
      'lhs_contracting_dims={1}, rhs_contracting_dims={0}',
    )
  )
  assert work.flops == 2 * 4 * 16 * 8
  assert work.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
  assert work.seconds == work.bytes / 100


@pytest.mark.parametrize(('dtype', 'rate'), [('s8', 4000), ('bf16', 1000)])
def test_products_of_narrow_types_have_a_rate_of_their_own(dtype, rate):
  work = count(
    entry(
      f'%a = {dtype}[4000,800]{{1,0}} parameter(0)',
      f'%b = {dtype}[800,1600]{{1,0}} parameter(1)',
      f'ROOT %dot.1 = s32[4000,1600]{{1,0}} dot({dtype}[4000,800] %a, {dtype}[800,1600] %b), '
      'lhs_contracting_dims={1}, rhs_contracting_dims={0}',
    )
  )
  assert work.flops == 2 * 4000 * 1600 * 800
  assert work.narrow_flops == ({'s8': work.flops} if dtype == 's8' else {})
  assert work.seconds == work.flops / rate > work.bytes / 100


@pytest.mark.parametrize(
  ('lhs', 'rhs', 'out', 'attributes', 'multiplied'),
  [
    # A plain product, as TPUs have it.
    ('bf16[6,5]', 'bf16[5,7]', 'bf16[6,7]', 'dim_labels=bf_io->bf', 6 * 7 * 5),
    # Three products side by side: the batch is a spatial axis of which each output meets one kernel
    # position.
    (
      'bf16[3,6,5]',
      'bf16[3,5,7]',
      'bf16[3,6,7]',
      'window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf',
      3 * 6 * 7 * 5,
    ),
    # 5 positions, kernel 3, same padding: the ends meet 2.
    (
      'f32[1,5,2]',
      'f32[3,2,4]',
      'f32[1,5,4]',
      'window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f',
      13 * 2 * 4,
    ),
  ],
)
def test_the_flops_of_a_convolution_are_counted(lhs, rhs, out, attributes, multiplied):
  work = count(
    entry(
      f'%a = {lhs}{{0}} parameter(0)',
      f'%b = {rhs}{{0}} parameter(1)',
      f'ROOT %c = {out}{{0}} convolution(%a, %b), {attributes}',
    )
  )
  assert work.flops == 2 * multiplied


LOOP = """
    %condition (s: (s32[], f32[4,4])) -> pred[] {
      %s = (s32[]{:T(128)}, f32[4,4]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %end = s32[] constant(7)
      ROOT %less = pred[] compare(%i, %end), direction=LT
    }

    %body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
      %s = (s32[]{:T(128)}, f32[4,4]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %step = s32[] constant(STEP)
      %next = s32[] add(%i, %step)
      %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
      %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
      ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%next, %y)
    }

    ENTRY %main (x: f32[4,4]) -> f32[4,4] {
      %x = f32[4,4]{1,0} parameter(0)
      %zero = s32[] constant(1)
      %begin = s32[] copy(%zero)
      %t = (s32[], f32[4,4]{1,0}) tuple(%begin, %x)
      %loop = (s32[], f32[4,4]{1,0}) while(%t), condition=%condition, body=%body
      ROOT %y = f32[4,4]{1,0} get-tuple-element(%loop), index=1
    }
"""


@pytest.mark.parametrize(('step', 'turns'), [(1, 6), (2, 3), (4, 2)])
def test_loops_count_their_turns(step, turns):
  assert count(LOOP.replace('STEP', str(step))).flops == turns * 2 * 4 * 4 * 4


def test_a_loop_without_a_bound_counts_once_and_is_named():
  asked = LOOP.replace('constant(7)', 'custom-call(), custom_call_target="ask"')
  work = count(asked.replace('STEP', '1'))
  assert work.flops == 2 * 4 * 4 * 4
  assert work.unknown_loops == ['loop']


def test_a_fusion_counts_products_inside_and_traffic_outside():
  work = count("""
      %inner (p: f32[9,4,8], i: s32[], q: f32[8,2]) -> f32[4,2] {
        %p = f32[9,4,8]{2,1,0} parameter(0)
        %i = s32[] parameter(1)
        %zero = s32[] constant(0)
        %slice = f32[1,4,8]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,4,8}
        %flat = f32[4,8]{1,0} bitcast(%slice)
        %q = f32[8,2]{1,0} parameter(2)
        ROOT %dot = f32[4,2]{1,0} dot(%flat, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
      }

      ENTRY %main (p: f32[9,4,8], i: s32[], q: f32[8,2]) -> f32[4,2] {
        %p = f32[9,4,8]{2,1,0} parameter(0)
        %i = s32[] parameter(1)
        %q = f32[8,2]{1,0:T(8,128)S(1)} parameter(2)
        ROOT %f = f32[4,2]{1,0} fusion(%p, %i, %q), kind=kOutput, calls=%inner
      }
  """)
  assert work.flops == 2 * 4 * 2 * 8
  # One slice of the stack, its index, the result; `q` lies on the chip.
  assert work.bytes == 4 * (4 * 8 + 1 + 4 * 2)


def test_an_update_in_place_moves_the_update():
  work = count("""
      %inner (p: f32[9,4], u: f32[1,4], i: s32[]) -> f32[9,4] {
        %p = f32[9,4]{1,0} parameter(0)
        %u = f32[1,4]{1,0} parameter(1)
        %i = s32[] parameter(2)
        ROOT %new = f32[9,4]{1,0} dynamic-update-slice(%p, %u, %i, %i)
      }

      ENTRY %main (p: f32[9,4], u: f32[1,4]) -> f32[9,4] {
        %p = f32[9,4]{1,0} parameter(0)
        %u = f32[1,4]{1,0} parameter(1)
        %i = s32[]{:T(128)S(6)} constant(3)
        ROOT %f = f32[9,4]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%inner
      }
  """)
  assert work.bytes == 4 * (4 + 4)


GATHERED = """
    %first (p: bf16[8,4], q: bf16[16,8], r: bf16[8,8]) -> (bf16[32,4], bf16[16,8]) {
      %p = bf16[8,4]{1,0} parameter(0)
      %g = bf16[32,4]{1,0} all-gather(%p), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
      %q = bf16[16,8]{1,0} parameter(1)
      %r = bf16[8,8]{1,0} parameter(2)
      %c = bf16[16,8]{1,0} convolution(%q, %r), dim_labels=bf_io->bf
      ROOT %t = (bf16[32,4]{1,0}, bf16[16,8]{1,0}) tuple(%g, %c)
    }

    ENTRY %main (p: bf16[8,4], q: bf16[16,8], r: bf16[8,8]) -> bf16[32,4] {
      %p = bf16[8,4]{1,0} parameter(0)
      %q = bf16[16,8]{1,0} parameter(1)
      %r = bf16[8,8]{1,0} parameter(2)
      %f1 = (bf16[32,4]{1,0}, bf16[16,8]{1,0}) fusion(%p, %q, %r), kind=kCustom, calls=%first
      %f2 = (bf16[32,4]{1,0}, bf16[16,8]{1,0}) fusion(%p, %q, %r), kind=kCustom, calls=%first
      %s = (bf16[8]{0}, bf16[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%q), PAIRS
      %again = bf16[16,8]{1,0} convolution(%q, %r), dim_labels=bf_io->bf
      %d = bf16[8]{0} collective-permute-done(%s)
      %sum = bf16[32,4]{1,0} all-reduce(%again), channel_id=2, GROUPS, to_apply=%add
      ROOT %o = bf16[32,4]{1,0} get-tuple-element(%f1), index=0
    }
"""
GATHERED = GATHERED.replace('PAIRS', 'source_target_pairs={{0,1},{1,0}}')
GATHERED = GATHERED.replace('GROUPS', 'replica_groups={{0,1},{2,3}}')


def test_collectives_are_counted_once_and_what_hides_them_is_seen():
  work = count(GATHERED.replace('%first', '%async_collective_fusion.3'))
  found = {c.kind: (c.bytes, c.times, c.overlapped) for c in work.collectives}
  # The stages of one gathering are one; it and the exchange have products beside them, the sum has
  # not.
  assert found == {
    'all-gather': (2 * 32 * 4, 1, True),
    'collective-permute': (2 * 8, 1, True),
    'all-reduce': (2 * 32 * 4, 1, False),
  }
  assert len(work.collectives) == 3
  assert work.flops == 3 * 2 * 16 * 8 * 8


# Two collectives begin, then a product of 2 s; the sum begins when the gathering has ended.
SCHEDULED = """
    ENTRY %main (p: bf16[2,8], q: bf16[10,10], r: bf16[10,10]) -> bf16[8] {
      %p = bf16[2,8]{1,0} parameter(0)
      %q = bf16[10,10]{1,0:S(1)} parameter(1)
      %r = bf16[10,10]{1,0:S(1)} parameter(2)
      %g = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%p), dimensions={0}
      %s = bf16[2,8]{1,0} all-reduce-start(%p), to_apply=%add
      %c = bf16[10,10]{1,0:S(1)} convolution(%q, %r), dim_labels=bf_io->bf
      %gd = bf16[8,8]{1,0} all-gather-done(%g)
      ROOT %sd = bf16[2,8]{1,0} all-reduce-done(%s)
    }
"""


@pytest.mark.parametrize(
  ('gather_s', 'sum_s', 'axes', 'waited_s'),
  [
    # The product hides both.
    (1.0, 1.0, (0, 0), 0.0),
    # One axis carries them one after the other, 1.5 s and 1.5 s, beside 2 s of the product.
    (1.5, 1.5, (0, 0), 1.0),
    # Two axes carry both at once.
    (1.5, 1.5, (0, 1), 0.0),
    (5.0, 1.0, (0, 1), 3.0),
    (5.0, 1.0, (0, 0), 4.0),
  ],
)
def test_collectives_are_hidden_as_far_as_what_stands_beside_them_lasts(
  gather_s, sum_s, axes, waited_s
):
  def links(one):
    is_sum = one.kind == 'all-reduce'
    one.seconds = sum_s if is_sum else gather_s
    one.axes = frozenset({axes[is_sum]})

  work = count(SCHEDULED, links=links)
  assert work.seconds == 2.0
  assert work.waited_s == pytest.approx(waited_s)


def test_a_sum_that_is_not_asynchronous_is_waited_for_whole():
  def links(one):
    one.seconds = 3.0

  total = '%sum = f32[4,4]{1,0} all-reduce(%x), to_apply=%add'
  text = LOOP.replace('STEP', '1').replace(
    '%y = f32[4,4]{1,0} dot', f'{total}\n      %y = f32[4,4]{{1,0}} dot'
  )
  # In each of the six turns.
  assert count(text, links=links).waited_s == 6 * 3.0


def test_vector_units_count_each_number_once_an_operation():
  text = """
      %inner (p: f32[50,2]) -> f32[50] {
        %p = f32[50,2]{1,0} parameter(0)
        %e = f32[50,2]{1,0} exponential(%p)
        %m = f32[50,2]{1,0} multiply(%e, %p)
        %z = f32[] constant(0)
        ROOT %r = f32[50]{0} reduce(%m, %z), dimensions={1}, to_apply=%add
      }

      ENTRY %main (p: f32[50,2]) -> f32[50] {
        %p = f32[50,2]{1,0:S(1)} parameter(0)
        ROOT %f = f32[50]{0:S(1)} fusion(%p), kind=kLoop, calls=%inner
      }
  """
  work = count(text, vector=10.0)
  assert work.vector == 3 * 100
  # No arithmetic of products and no traffic with HBM: the vector units are the time.
  assert work.seconds == 30.0


def test_kernels_count_by_formula_and_those_without_one_are_listed():
  text = entry(
    '%a = f32[4,8]{1,0} parameter(0)',
    '%known.3 = f32[4,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"',
    'ROOT %other.1 = f32[4,8]{1,0} custom-call(%known.3), custom_call_target="tpu_custom_call"',
  )

  def ten_an_element(instruction, inputs):
    return 10.0 * inputs[0].elements if instruction.name.startswith('known') else None

  work = count(text, ten_an_element)
  assert work.kernel_flops == 320
  assert work.kernels == {'known': (1, 320.0), 'other': (1, None)}
