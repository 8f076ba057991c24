"""What the compiled control step takes and does, as a dictionary for JSON and as a table."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.aot import control
from wam_jax.aot import gpus
from wam_jax.aot import hlo
from wam_jax.aot import roofline

# Copies of at least this share of the cache are listed: a layer's is a fortieth at 14B.
_LARGE = 0.25
_MOST_SHOWN = 10  # Kinds of operations in a line of the table.


def make(config: cfg.TrainConfig, where: chips.Slice, compiled: control.Compiled) -> dict[str, Any]:
  """The whole report, JSON-ready; without what the program does where it was refused."""
  sample = config.sample
  made = {
    'config': config.name,
    'program': 'control',
    'topology': where.chip.name if where.chip.name in gpus.GPUS else where.name,
    'devices': where.devices,
    'mesh': compiled.mesh,
    'sampling': {
      'mode': sample.mode,
      'steps': sample.steps,
      'action_steps': sample.action_steps,
      'guidance_scale': sample.guidance_scale,
      'precision': sample.precision,
    },
    'sizes': compiled.sizes,
    'memory': _memory(compiled, where.chip),
  }
  return made if compiled.shortage else made | _describe(where, compiled)


def _describe(where: chips.Slice, compiled: control.Compiled) -> dict[str, Any]:
  """What the program does, and its least time."""
  program = hlo.parse(compiled.hlo)
  subject = roofline.Subject(
    program=program,
    where=where,
    kernel_flops=_count_attention,
    coordinates=compiled.coordinates,
  )
  work = roofline.count_at_peak(subject)
  bound = roofline.bound(work, where)
  return {
    'copies': control.list_copies(program, _LARGE * compiled.held['cache'] / 2, compiled.kernels),
    'weight_copies': control.list_weight_copies(program, compiled.kernels),
    'narrow_products': control.list_products(program),
    'logits': control.list_logits(program, compiled.sizes),
    'kernels': control.count_calls(program),
    'cache_order': compiled.order,
    'flops': {'products': work.flops, 'attention': work.kernel_flops, 'hbm_bytes': work.bytes},
    'collectives': {kind: dataclasses.asdict(t) for kind, t in sorted(bound.traffic.items())},
    'bound': {
      'compute_s': bound.compute_s,
      'memory_s': bound.memory_s,
      'operations_s': bound.operations_s,
      'exposed_s': bound.exposed_s,
      'links_s': sum(total.seconds for total in bound.traffic.values()),
      'step_s': bound.step_s,
      'step_with_perfect_overlap_s': _overlapped(bound),
    },
    'loops_counted_once': work.unknown_loops,
    'compile_s': compiled.seconds,
  }


def _overlapped(bound: roofline.Bound) -> float:
  """The least time if collectives ran beside operations all the time."""
  links_s = sum(total.seconds for total in bound.traffic.values())
  return max(bound.operations_s, bound.memory_s, links_s)


def _memory(compiled: control.Compiled, chip: chips.Chip) -> dict[str, Any]:
  usable = int(chip.usable_gib * chips.GIB)
  if compiled.shortage:
    shortage = compiled.shortage.split('\n')[0]
    return {**compiled.held, 'usable': usable, 'fits': False, 'shortage': shortage}
  m = compiled.memory
  # What takes the place of an argument is counted with it.
  total = m['argument'] + m['output'] - m['alias'] + m['temp'] + m['generated_code']
  return {
    **compiled.held,
    'arguments': m['argument'],
    'aliased': m['alias'],
    'temporaries': m['temp'],
    'program': m['generated_code'],
    'total': total,
    'usable': usable,
    'fits': total <= usable,
    'shortage': '',
  }


def _count_attention(instruction: hlo.Instruction, inputs: list[hlo.Array]) -> float | None:
  """FLOPs of an attention kernel: two products over all pairs of queries and keys."""
  of_heads = [array for array in inputs if len(array.sizes) >= 3 and array.dtype in ('bf16', 'f32')]
  if len(of_heads) < 2:
    return None
  queries, keys = of_heads[:2]
  if 'cudnn' in instruction.attributes:
    # [B, T, N, K] and [B, S, N, K].
    return 4.0 * queries.elements * keys.sizes[1]
  return 4.0 * math.prod(queries.sizes) * keys.sizes[-2]


def show(made: dict[str, Any]) -> str:
  """The report as text."""
  m, sampling = made['memory'], made['sampling']
  way = ', '.join(f'{key} {value}' for key, value in sampling.items())
  lines = [
    f'{made["config"]}, the control step on {made["topology"]}: {made["devices"]} devices, {way}',
    '',
    'memory per device, GB',
  ]
  rows = ('weights', 'state', 'temporaries', 'program', 'total', 'usable')
  lines += [f'  {key:<22}{m[key] / 1e9:>9.2f}' for key in rows if key in m]
  if not m['fits']:
    lines.append(f'  DOES NOT FIT {m["shortage"]}'.rstrip())
  if not m['shortage']:
    lines += _show_program(made)
  return '\n'.join(lines)


def _show_program(made: dict[str, Any]) -> list[str]:
  m, bound = made['memory'], made['bound']
  # TPUs pad arrays to tiles.
  lost = max(0, m['state'] - m['aliased'])
  kept = 'all of it' if not lost else f'but for {lost} bytes'
  lines = [
    f'  of the state in place {m["aliased"] / 1e9:>9.2f}  {kept}',
    _list('copies of the cache', made['copies']),
    _list('copies of weights', made['weight_copies']),
    _list(
      'narrow products',
      [
        f'{p["count"]} of {p["dtype"]} in {p["place"]}, {p["flops"] / 1e12:.3f} TFLOP'
        for p in made['narrow_products']
      ],
    ),
    _list('logits of all pairs', made['logits']),
    _list('kernels', [f'{name} {count}' for name, count in made['kernels'].items()]),
    _list(
      'collectives',
      [
        f'{kind}: {t["count"]}, {t["bytes"] / 1e6:.1f} MB, {1e3 * t["seconds"]:.2f} ms'
        for kind, t in made['collectives'].items()
      ],
    ),
    f'{"at the least":<24}{_ms(bound["step_s"])}: arithmetic {_ms(bound["compute_s"])}, '
    f'memory {_ms(bound["memory_s"])}, operations in turn {_ms(bound["operations_s"])}, '
    f'waiting for collectives {_ms(bound["exposed_s"])}; '
    f'{_ms(bound["step_with_perfect_overlap_s"])} if none were waited for',
    f'{"compiled":<24}in {made["compile_s"]:.0f} s',
  ]
  if made['loops_counted_once']:
    lines.append(_list('counted once', made['loops_counted_once']))
  return lines


def _ms(seconds: float) -> str:
  return f'{1e3 * seconds:.1f} ms'


def _list(label: str, found: list[str]) -> str:
  times = collections.Counter(found)
  lines = [what if n == 1 else f'{what}, {n} times' for what, n in times.most_common(_MOST_SHOWN)]
  if hidden := len(times) - len(lines):
    lines.append(f'and {hidden} others: --json has all')
  shown = '\n                        '.join(lines) or 'none'
  return f'{label:<24}{shown}'
