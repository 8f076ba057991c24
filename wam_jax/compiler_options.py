"""Options that the training step is compiled with: those of the chip, what a run adds to them, and
which of them are known to give wrong numbers or to hang.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wam_jax import chips

Value = bool | int | str
Options = dict[str, Value]

_FUSION = 'xla_tpu_enable_async_collective_fusion'
_FUSE_GATHER = f'{_FUSION}_fuse_all_gather'
_FUSE_REDUCE = f'{_FUSION}_fuse_all_reduce'
_OFFLOAD = 'xla_tpu_enable_sparse_core_collective_offload'
_OFFLOADS = (f'{_OFFLOAD}_all_gather', f'{_OFFLOAD}_all_reduce', f'{_OFFLOAD}_reduce_scatter')
_OTHERS = ('v4', 'v5p', 'v6e', 'tpu7x')


class _Bad(NamedTuple):
  """Options that must not be on together.

  Attributes:
    chips: names of the generations.
    groups: of each group, one option or more is on.
    why: what is known of it, and from where.
    unless_off: an option that makes it harmless where it is off.
  """

  chips: Sequence[str]
  groups: tuple[tuple[str, ...], ...]
  why: str
  unless_off: str = ''


_KNOWN_BAD = (
  _Bad(
    _OTHERS,
    ((_FUSE_GATHER, _FUSE_REDUCE),),
    'continuation fusion is for v5e alone: libtpu 0.0.52 refuses it here, since it can give '
    'incorrect results or hang, and older ones take it without a word',
    unless_off=_FUSION,
  ),
  _Bad(
    tuple(chips.CHIPS),
    (('xla_tpu_overlap_compute_collective_tc',), (_FUSE_REDUCE,)),
    'sums beside arithmetic gave NaN in a Wan transformer with splash attention (jax#38741, jax '
    '0.10.2)',
    unless_off=_FUSION,
  ),
  _Bad(
    tuple(chips.CHIPS),
    ((_FUSE_GATHER, _FUSE_REDUCE), _OFFLOADS),
    'continuation fusion and sparse cores exclude each other (MaxText, axlearn); together they '
    'hung for Wan2.1-14B on v5p (tpu-recipes, 2026-07-13)',
    unless_off=_FUSION,
  ),
  _Bad(
    ('v6e', 'tpu7x'),
    ((f'{_OFFLOAD}_all_reduce', f'{_OFFLOAD}_reduce_scatter'),),
    'sums on sparse cores changed losses in production (axlearn, v6e with jax 0.6.2, tpu7x with '
    '0.8.3)',
  ),
)


def make(
  device_kind: str,
  chosen: Sequence[str] = (),
  sdc_checks: int = 0,
  environment: Mapping[str, str] = os.environ,
) -> Options:
  """Options for programs of devices of this kind, as JAX names it.

  Args:
    chosen: NAME=VALUE of a run, which go before those of the chip.
    sdc_checks: how many times each program runs again, to compare what it gives.
    environment: whose LIBTPU_INIT_ARGS libtpu reads; what they say of the chip's options goes
      before these, too.
  Raises:
    ValueError: together they are known to be wrong, `chosen` cannot be read, or there is no check
      for silent corruption on these devices.
  """
  chip = chips.of_kind(device_kind)
  added = _read(chosen, 'config.compiler_options')
  if chip is None:
    if sdc_checks:
      raise ValueError(
        f'config.sdc_checks={sdc_checks} needs TPUs, and the devices here are {device_kind!r}; set '
        'it to 0.'
      )
    return added

  arguments = environment.get('LIBTPU_INIT_ARGS', '')
  if '\\' in arguments:
    raise ValueError(
      'LIBTPU_INIT_ARGS has a backslash, and libtpu drops every flag behind one without a word; '
      'write the flags in one line.'
    )
  given = _read(arguments.split(), 'LIBTPU_INIT_ARGS')
  options = chips.compiler_options(device_kind)
  _refuse(chip.name, options | given | added, given, added)
  options |= {name: value for name, value in given.items() if name in options}
  options |= added
  if sdc_checks:
    options |= _check_for_corruption(chip.name, sdc_checks)
  return options


def try_out(options: Options, device: jax.Device) -> None:
  """Compiles a program of one sum with the options: an hour later the step's would find out.

  Args:
    device: one that is here, or of a description of a slice.
  Raises:
    ValueError: its compiler does not take them.
  """
  if not options:
    return
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  try:
    jax.jit(lambda x: x + 1).lower(number).compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).strip().splitlines()[0].removeprefix('INVALID_ARGUMENT: ').rstrip('. :')
    listed = ', '.join(f'{name}={value}' for name, value in sorted(options.items()))
    raise ValueError(
      f'The compiler for {device.device_kind!r} does not take these options: {reason}. Correct or '
      f'take out what config.compiler_options or LIBTPU_INIT_ARGS says; all of them: {listed}.'
    ) from e


def _read(texts: Sequence[str], where: str) -> Options:
  """The options in NAME=VALUE or --NAME=VALUE; a flag without a value is on."""
  options: Options = {}
  for text in texts:
    found = re.fullmatch(r'(?:--)?(\w+)(?:=(\S*))?', text)
    if found is None or (found[2] is None and not text.startswith('--')):
      raise ValueError(
        f'{where} has {text!r}, which is not NAME=VALUE, as xla_tpu_scoped_vmem_limit_kib=65536.'
      )
    options[found[1]] = _to_value(found[2])
  return options


def _to_value(text: str | None) -> Value:
  if text is None or text.lower() in ('true', 'enabled'):
    return True
  if text.lower() in ('false', 'disabled'):
    return False
  return int(text) if re.fullmatch(r'-?\d+', text) else text


def _refuse(chip: str, options: Options, given: Options, added: Options) -> None:
  """Raises where options together are known to be bad on this chip."""
  for bad in _KNOWN_BAD:
    on = [[name for name in group if options.get(name) in (True, 1)] for group in bad.groups]
    harmless = bad.unless_off and options.get(bad.unless_off) in (False, 0)
    if chip not in bad.chips or harmless or not all(on):
      continue
    names = [name for group in on for name in group]
    sources = [
      where
      for where, part in (('LIBTPU_INIT_ARGS', given), ('config.compiler_options', added))
      if part.keys() & {*names, bad.unless_off}
    ]
    raise ValueError(
      f'{" and ".join(sources)} would compile for {chip} with {", ".join(names)}: {bad.why}. Take '
      'that out; wam_jax sets the options that are safe on each chip itself (wam_jax/chips.py).'
    )


def _check_for_corruption(chip: str, repeats: int) -> Options:
  """Each program runs again and stops where results differ; links are tried at its first run.

  Source: axlearn `infer_xsc_compiler_options`, MaxText `SDC_CHECKER`.
  """
  return {
    'xla_tpu_enable_sdc_checker': True,
    'xla_tpu_sdc_check_repeat_count': repeats,
    'xla_tpu_sdc_check_halt_on_detection': True,
    # Chips of one core repeat its instructions; others change cores.
    'xla_tpu_sdc_replicate_llo': chip in ('v5e', 'v6e'),
    'xla_tpu_sdc_checker_alternate_megacore_cores': chip not in ('v5e', 'v6e'),
    'xla_tpu_ici_sdc_test_run_on_program_start': True,
  }
