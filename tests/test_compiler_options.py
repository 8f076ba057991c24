"""Options of the compiler: a chip's own, what a run adds, and combinations that are refused."""

from __future__ import annotations

import jax
import pytest

from wam_jax import chips
from wam_jax import compiler_options

FUSION = 'xla_tpu_enable_async_collective_fusion'
OFFLOAD = 'xla_tpu_enable_sparse_core_collective_offload'


def make(chip, *chosen, arguments='', checks=0):
  kind = chips.CHIPS[chip].kinds[0]
  return compiler_options.make(kind, chosen, checks, {'LIBTPU_INIT_ARGS': arguments})


@pytest.mark.parametrize('chip', chips.CHIPS)
def test_options_of_the_table_are_not_known_to_be_bad(chip):
  assert make(chip) == dict(chips.CHIPS[chip].options)
  # Only v5e's compiler takes a collective into a product.
  assert (make(chip).get(f'{FUSION}_fuse_all_gather') is True) == (chip == 'v5e')
  # No sum runs where sums have been wrong.
  assert not make(chip).get(f'{OFFLOAD}_all_reduce')
  assert not make(chip).get(f'{OFFLOAD}_reduce_scatter')


@pytest.mark.parametrize(
  ('chip', 'chosen', 'why'),
  [
    ('v5p', f'{FUSION}_fuse_all_gather=true', 'for v5e alone'),
    ('v4', f'{FUSION}_fuse_all_reduce=true', 'for v5e alone'),
    ('v5e', f'{FUSION}_fuse_all_reduce=true', 'gave NaN'),
    ('v5e', f'{OFFLOAD}_all_gather=true', 'exclude each other'),
    ('v6e', f'{OFFLOAD}_all_reduce=true', 'changed losses'),
    ('tpu7x', f'{OFFLOAD}_reduce_scatter=true', 'changed losses'),
  ],
)
def test_known_bad_combinations_are_refused_by_both_routes(chip, chosen, why):
  more = [f'{FUSION}=true'] if chip == 'v6e' else []
  with pytest.raises(ValueError, match=f'config.compiler_options would compile for {chip}.*{why}'):
    make(chip, chosen, *more)
  with pytest.raises(ValueError, match=f'LIBTPU_INIT_ARGS would compile for {chip}.*{why}'):
    make(chip, arguments=f'--{chosen} --xla_tpu_scoped_vmem_limit_kib=65536')


def test_a_fusion_that_is_off_harms_nothing():
  chosen = (f'{FUSION}=false', f'{FUSION}_fuse_all_gather=true')
  assert make('v5p', *chosen)[FUSION] is False
  with pytest.raises(ValueError, match='LIBTPU_INIT_ARGS and config.compiler_options'):
    make('v6e', f'{FUSION}=true', arguments=f'--{FUSION}_fuse_all_gather')


def test_a_run_goes_before_the_environment_and_that_before_the_chip():
  name = 'xla_enable_async_all_gather'
  assert make('v5p', arguments=f'--{name}=false')[name] is False
  assert make('v5p', f'{name}=true', arguments=f'--{name}=false')[name] is True
  # What is not the chip's stays libtpu's own business.
  assert make('v5p', arguments='--xla_other=3') == make('v5p')
  assert make('v5p', 'xla_other=3')['xla_other'] == 3


def test_a_check_for_corruption():
  assert make('v5p', checks=2)['xla_tpu_sdc_check_repeat_count'] == 2
  assert make('v6e', checks=1)['xla_tpu_sdc_replicate_llo'] is True
  with pytest.raises(ValueError, match=r"config.sdc_checks=1 needs TPUs, .* 'cpu'"):
    compiler_options.make('cpu', sdc_checks=1)


def test_what_cannot_be_read_is_named():
  with pytest.raises(ValueError, match="config.compiler_options has 'xla_some'"):
    make('v5p', 'xla_some')
  with pytest.raises(ValueError, match='backslash'):
    make('v5p', arguments='--a=1 \\ --b=2')


@pytest.mark.parametrize(
  ('option', 'reason'),
  [
    ('xla_nope=true', "No such compile option: 'xla_nope'"),
    ('xla_cpu_enable_fast_math=maybe', "'maybe' is not a valid bool value"),
  ],
)
def test_what_the_compiler_does_not_take_is_one_sentence(option, reason):
  (device, *_) = jax.devices()
  options = compiler_options.make(device.device_kind, [option])
  with pytest.raises(ValueError, match=f'(?s)not take these options: .*{reason}. Correct or take'):
    compiler_options.try_out(options, device)
  compiler_options.try_out({}, device)
