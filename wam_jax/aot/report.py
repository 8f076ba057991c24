"""What a compiled step takes and does, as a dictionary for JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import compiler
from wam_jax.aot import efficiency
from wam_jax.aot import hlo
from wam_jax.aot import memory
from wam_jax.aot import roofline
from wam_jax.aot import work as work_lib
from wam_jax.data import shapes

# Matrix products of the attention kernels, by the beginning of their names; each is over all pairs
# that are computed.
# Forward: logits and values. Backward: logits and gradients of the weights again, and then those of
# the queries (dq), or of the keys and values (dkv).
_KERNELS = {
  'splash_mha_fwd': 2,
  'splash_mqa_fwd': 2,
  'splash_mha_dq': 3,
  'splash_mqa_dq': 3,
  'splash_mha_dkv': 4,
  'splash_mqa_dkv': 4,
}


def make(
  config: cfg.TrainConfig, where: chips.Slice, compiled: compiler.Compiled
) -> dict[str, Any]:
  """The whole report, JSON-ready."""
  subject = roofline.Subject(
    program=hlo.parse(compiled.hlo),
    where=where,
    kernel_flops=_kernel_flops(*compiled.attention),
    coordinates=compiled.partitions,
  )
  # Executed FLOPs are those of the program; the model's are counted by formula, without recompute.
  work = roofline.count_at_peak(subject)
  least = roofline.bound(work, where)
  expected = roofline.expect(roofline.count_as_expected(subject), where)
  components = flops.training(config.model, shapes.sizes(config).tokens_per_frame)
  of_components = {name: config.batch_size * one.train for name, one in components.items()}
  model_flops = config.batch_size * flops.total(components).train
  return {
    'config': config.name,
    'topology': where.name,
    'chips': where.chips,
    'devices': where.devices,
    'mesh': compiled.mesh,
    'batch_size': config.batch_size,
    'accumulate': config.accumulate,
    'remat': config.model.remat,
    'memory': _memory(compiled, where.chip),
    'flops': _flops(work, where.devices, model_flops) | {'model_of_components': of_components},
    'attention': _attention(config, compiled),
    'collectives': {kind: dataclasses.asdict(t) for kind, t in sorted(least.traffic.items())},
    'bound': _bound(config, where, least, model_flops),
    'expected': _expected(config, where, expected, model_flops),
    'peak': {
      'flops_per_chip': where.chip.flops,
      'hbm_bytes_per_s': where.chip.hbm_bytes_per_s,
      'link_bytes_per_s': where.chip.link_bytes_per_s,
      'wraps': where.wraps,
    },
    'efficiency': dataclasses.asdict(efficiency.TABLE[where.chip.name])
    | {'lost_beside': efficiency.LOST_BESIDE, 'hop_s': efficiency.HOP_S},
    'assumptions': {
      'bound': roofline.BOUND_ASSUMPTIONS,
      'expected': roofline.EXPECTED_ASSUMPTIONS,
      'both': [*roofline.ASSUMPTIONS, *_assumptions(config)],
    },
    'compiler': {
      'reached': _reached(compiled),
      'libtpu': compiled.libtpu,
      'seconds': compiled.seconds,
      'analysis': compiled.analysis,
    },
  }


def _memory(compiled: compiler.Compiled, chip: chips.Chip) -> dict[str, Any]:
  found = memory.read(compiled, chip)
  return dataclasses.asdict(found) | {
    'fits': found.fits and not compiled.shortage,
    'shortage': compiled.shortage.split('\n')[0],
    'of_arguments': compiled.arguments,
    'largest_temporaries': memory.list_largest_temporaries(compiled),
  }


def _flops(work: work_lib.Work, devices: int, model_flops: float) -> dict[str, Any]:
  # Every device runs the one program that was counted.
  executed = (work.flops + work.kernel_flops) * devices
  return {
    'model': model_flops,
    'executed': executed,
    'ratio': executed / model_flops,
    'executed_products': work.flops * devices,
    'executed_kernels': work.kernel_flops * devices,
    'kernels': work.kernels,
    'loops_counted_once': work.unknown_loops,
  }


def _bound(
  config: cfg.TrainConfig, where: chips.Slice, least: roofline.Bound, model_flops: float
) -> dict[str, float]:
  return {
    'compute_s': least.compute_s,
    'memory_s': least.memory_s,
    'operations_s': least.operations_s,
    'exposed_s': least.exposed_s,
  } | _speed(config, where, least.step_s, model_flops)


def _expected(
  config: cfg.TrainConfig, where: chips.Slice, expected: roofline.Expected, model_flops: float
) -> dict[str, float]:
  # What the links take beyond all operations, nothing can hide.
  hidden = _speed(config, where, max(expected.operations_s, expected.links_s), model_flops)
  unhidden = _speed(config, where, expected.step_without_overlap_s, model_flops)
  return (
    dataclasses.asdict(expected)
    | {'step_with_perfect_overlap_s': hidden['step_s'], 'mfu_with_perfect_overlap': hidden['mfu']}
    | {'mfu_without_overlap': unhidden['mfu']}
    | _speed(config, where, expected.step_s, model_flops)
  )


def _speed(
  config: cfg.TrainConfig, where: chips.Slice, step_s: float, model_flops: float
) -> dict[str, float]:
  return {
    'step_s': step_s,
    'mfu': model_flops / (step_s * where.chips * where.chip.flops),
    'samples_per_s': config.batch_size / step_s,
    'run_days': config.steps * step_s / 86400,  # Seconds of a day.
  }


def _reached(compiled: compiler.Compiled) -> str:
  """How far the compiler got: 'machine code', 'plan', or 'no room' where it refused."""
  if compiled.shortage:
    return 'no room'
  return 'machine code' if compiled.analysis else 'plan'


def _attention(config: cfg.TrainConfig, compiled: compiler.Compiled) -> dict[str, Any]:
  size = shapes.sizes(config)
  pairs = flops.training_pairs(config.model, size.tokens_per_frame)
  # All shards wait for the busiest, whose pairs the compiler's process told.
  shards = math.prod(compiled.mesh[axis] for axis in config.rules['tokens'])
  area = compiled.attention[1] * shards
  return {
    'tokens': flops.training_tokens(config.model, size.tokens_per_frame),
    'pairs': pairs,
    'computed': area or None,
    'ratio': area / pairs if area else None,
  }


def _kernel_flops(tokens: int, area: int) -> work_lib.KernelFlops:
  """FLOPs of one execution of an attention kernel: of [B, N, T, K] queries with [B, N, S, K] keys.

  Args:
    tokens: S of self-attention, of which `area` pairs are computed; other attention computes all
      pairs.
  """

  def is_of_heads(array: hlo.Array) -> bool:
    """Queries or keys; the kernels also take walks over blocks, masks and running sums."""
    numbers = array.dtype in ('bf16', 'f32')
    return numbers and len(array.sizes) >= 3 and array.sizes[-1] % 64 == 0

  def count(instruction: hlo.Instruction, inputs: list[hlo.Array]) -> float | None:
    products = next((n for name, n in _KERNELS.items() if instruction.name.startswith(name)), None)
    of_heads = [array for array in inputs if is_of_heads(array)]
    if products is None or len(of_heads) < 2:
      return None
    queries, keys = of_heads[:2]
    *heads, T, K = queries.sizes
    S = keys.sizes[-2]
    pairs = area if tokens == S else T * S
    return products * 2.0 * math.prod(heads) * K * pairs

  return count


def _assumptions(config: cfg.TrainConfig) -> list[str]:
  notes = []
  if shapes.takes_features(config):
    notes.append('latents and embeddings are stored features (python -m data.encode)')
  return notes


def show(report: dict[str, Any]) -> str:
  """The report as text."""
  mesh = ' '.join(f'{axis}={n}' for axis, n in report['mesh'].items())
  lines = [
    f'{report["config"]} on {report["topology"]}: {report["chips"]} chips, mesh {mesh}, '
    f'batch {report["batch_size"]}, accumulate {report["accumulate"]}, remat {report["remat"]}',
    '',
    *_show_memory(report['memory']),
    '',
    *_show_flops(report['flops'], report['attention']),
    '',
    *_show_collectives(report['collectives'], report['devices']),
    '',
    *_show_bound(report),
    '',
    *_show_expected(report),
    '',
    *_show_list('both assume that', report['assumptions']['both']),
    _row('compiled', _describe_reached(report['compiler'])),
  ]
  if unknown := report['flops']['loops_counted_once']:
    lines.append(_row('counted once', f'loops without a known bound: {", ".join(unknown)}'))
  return '\n'.join(lines)


def _row(label: str, text: str) -> str:
  return f'{label:<24}{text}'


def _show_flops(f: dict[str, Any], attention: dict[str, Any]) -> list[str]:
  executed = f'{_si(f["executed"])} ({_si(f["executed_kernels"])} in attention kernels, by formula)'
  lines = [
    _row(
      'FLOPs a step',
      f'model {_si(f["model"])}, executed {executed}: {f["ratio"]:.3f} of the model',
    )
  ]
  if attention['ratio']:
    computed = f'{attention["ratio"]:.3f} of the pairs that see each other'
    lines.append(_row('self-attention', f'{attention["tokens"]} tokens, computes {computed}'))
  return lines


def _show_bound(report: dict[str, Any]) -> list[str]:
  e, peak = report['bound'], report['peak']
  return [
    _row('at the least', _show_speed(e)),
    _row(
      '',
      f'arithmetic {e["compute_s"]:.3f} s, HBM {e["memory_s"]:.3f} s, operations in turn '
      f'{e["operations_s"]:.3f} s, waiting for collectives {e["exposed_s"]:.3f} s',
    ),
    _row(
      '',
      f'peak of a chip {peak["flops_per_chip"] / 1e12:.0f} TFLOP/s bfloat16, '
      f'HBM {peak["hbm_bytes_per_s"] / 1e9:.0f} GB/s, '
      f'links {peak["link_bytes_per_s"] / 1e9:.0f} GB/s each way',
    ),
    *_show_list('  if', report['assumptions']['bound']),
  ]


def _show_expected(report: dict[str, Any]) -> list[str]:
  e, shares = report['expected'], report['efficiency']
  hidden_s = e['links_s'] - e['waited_s']
  tenth_s = hidden_s / 10
  mfu_lost = e['mfu'] * tenth_s / (e['step_s'] + tenth_s)
  return [
    _row('expected, to plan by', _show_speed(e)),
    _row(
      '',
      f'products {e["products_s"]:.3f} s, kernels {e["kernels_s"]:.3f} s, HBM '
      f'{e["memory_s"]:.3f} s, vector units {e["vector_s"]:.3f} s; operations in turn '
      f'{e["operations_s"]:.3f} s',
    ),
    _row(
      '',
      f'collectives {e["links_s"]:.3f} s: {e["waited_s"]:.3f} s waited for, {hidden_s:.3f} s '
      f'beside operations, which cost {e["lost_s"]:.3f} s',
    ),
    _row(
      '  other overlap',
      f'all hidden {e["step_with_perfect_overlap_s"]:.3f} s, '
      f'{100 * e["mfu_with_perfect_overlap"]:.1f} % MFU; each 10 % of the hidden collectives that '
      f'are not costs {tenth_s:.3f} s, {100 * mfu_lost:.1f} points; none hidden '
      f'{e["step_without_overlap_s"]:.3f} s, {100 * e["mfu_without_overlap"]:.1f} %',
    ),
    _row(
      '  at',
      f'products {_percent(shares["products"])}, kernels {_percent(shares["kernels"])}, HBM '
      f'{_percent(shares["hbm"])}, links {_percent(shares["links"])} of their peaks, vector units '
      f'{shares["vector_per_s"] / 1e12:.1f} T/s (sources: wam_jax/aot/efficiency.py)',
    ),
    *_show_list('  if', report['assumptions']['expected']),
  ]


def _show_speed(e: dict[str, float]) -> str:
  return (
    f'{e["step_s"]:.3f} s a step, {100 * e["mfu"]:.1f} % MFU, '
    f'{e["samples_per_s"]:.2f} samples/s, {e["run_days"]:.1f} days for all steps'
  )


def _show_list(label: str, texts: Sequence[str]) -> list[str]:
  return [_row(label if i == 0 else '', text) for i, text in enumerate(texts)]


def _describe_reached(compiled: dict[str, Any]) -> str:
  by = f'in {compiled["seconds"]:.0f} s by libtpu {compiled["libtpu"]}'
  return {
    'machine code': f'to machine code {by}: every kernel fits the vector memory',
    'plan': f'to the plan of memory {by}: size of the program and vector memory of kernels unknown',
    'no room': f'until there was no room, {by}',
  }[compiled['reached']]


def _percent(share: float) -> str:
  return f'{100 * share:.0f} %'


def _show_memory(m: dict[str, Any]) -> list[str]:
  parts = [f'{name} {_gib(n)}' for name, n in m['of_arguments'].items() if n]
  rows = [
    ('arguments', m['arguments'], ', '.join(parts)),
    ('outputs beside them', m['outputs'], f'{_gib(m["reused"])} more take the place of arguments'),
    ('temporaries', m['temporaries'], ''),
    ('program', m['program'], ''),
    ('total', m['total'], f'of {_gib(m["usable"])} usable: {_verdict(m)}'),
  ]
  if m['host']:
    rows.append(('offloaded to the host', m['host'], ''))
  lines = [_row('HBM per device, GiB', '')]
  for name, n, note in rows:
    lines.append(f'  {name:<22}{_gib(n):>8}  {note}'.rstrip())
  if not m['fits']:
    temporaries = '\n                        '.join(m['largest_temporaries'])
    lines += [_row('  largest temporaries', temporaries), m['shortage']]
  return lines


def _verdict(m: dict[str, Any]) -> str:
  return 'fits' if m['fits'] else 'DOES NOT FIT'


def _gib(n: int) -> str:
  return f'{n / chips.GIB:.2f}'


def _show_collectives(collectives: dict[str, Any], devices: int) -> list[str]:
  if devices == 1:
    return [_row('collectives', 'none: one device')]
  lines = [f'{"collectives":<24}{"count":>8}{"GB sent":>10}{"seconds":>10}{"waited":>10}']
  for kind, t in collectives.items():
    lines.append(
      f'  {kind:<22}{t["count"]:>8}{t["bytes"] / 1e9:>10.2f}'
      f'{t["seconds"]:>10.3f}{t["exposed_s"]:>10.3f}'
    )
  return lines


def _si(n: float) -> str:
  """FLOPs with four digits and the prefix for thousands."""
  prefixes = ('', 'k', 'M', 'G', 'T', 'P', 'E')
  thousands = int(math.log10(max(n, 1)) // 3)
  power = min(len(prefixes) - 1, thousands)
  return f'{n / 1000**power:.4g} {prefixes[power]}FLOP'
