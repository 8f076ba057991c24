"""What a compiled step takes and does, as a dictionary for JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import compiler
from wam_jax.aot import hlo
from wam_jax.aot import memory
from wam_jax.aot import roofline
from wam_jax.aot import work as work_lib
from wam_jax.data import shapes

# Matrix products of the attention kernels, by the beginning of their names; each is over all pairs
# that are computed.
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
  found = memory.planned(compiled, where.chip)
  work = work_lib.count(
    hlo.parse(compiled.hlo),
    peak_flops=where.chip.flops / where.chip.devices,
    hbm_bytes_per_s=where.chip.hbm_bytes_per_s / where.chip.devices,
    kernel_flops=_kernel_flops(*compiled.attention),
  )
  best = roofline.estimate(work, where, compiled.partitions)
  components = flops.training(config.model, shapes.sizes(config).tokens_per_frame)
  model_flops = config.batch_size * flops.total(components).train
  done = (work.flops + work.kernel_flops) * where.devices
  mfu = model_flops / (best.step_s * where.chips * where.chip.flops)
  return {
    'config': config.name,
    'topology': where.name,
    'chips': where.chips,
    'devices': where.devices,
    'mesh': compiled.mesh,
    'batch_size': config.batch_size,
    'accumulate': config.accumulate,
    'remat': config.model.remat,
    'memory': dataclasses.asdict(found)
    | {
      'fits': found.fits and not compiled.shortage,
      'shortage': compiled.shortage.split('\n')[0],
      'of_arguments': compiled.arguments,
      'largest_temporaries': memory.largest_temporaries(compiled),
    },
    'flops': {
      'model': model_flops,
      'executed': done,
      'ratio': done / model_flops,
      'executed_products': work.flops * where.devices,
      'executed_kernels': work.kernel_flops * where.devices,
      'kernels': work.kernels,
      'loops_counted_once': work.unknown_loops,
      'model_of_components': {name: config.batch_size * w.train for name, w in components.items()},
    },
    'attention': _attention(config, compiled),
    'collectives': {kind: dataclasses.asdict(t) for kind, t in sorted(best.traffic.items())},
    'estimate': {
      name: getattr(best, name)
      for name in ('compute_s', 'memory_s', 'operations_s', 'exposed_s', 'step_s')
    }
    | {
      'mfu': mfu,
      'samples_per_s': config.batch_size / best.step_s,
      'run_days': config.steps * best.step_s / 86400,
    },
    'peak': {
      'flops_per_chip': where.chip.flops,
      'hbm_bytes_per_s': where.chip.hbm_bytes_per_s,
      'link_bytes_per_s': where.chip.link_bytes_per_s,
      'wraps': where.wraps,
    },
    'assumptions': [*roofline.ASSUMPTIONS, *_assumptions(config, compiled)],
    'compiler': {
      'libtpu': compiled.libtpu,
      'seconds': compiled.seconds,
      'analysis': compiled.analysis,
    },
  }


def _attention(config, compiled) -> dict[str, Any]:
  size = shapes.sizes(config)
  pairs = flops.training_pairs(config.model, size.tokens_per_frame)
  shards = math.prod(compiled.mesh[axis] for axis in config.rules['tokens'])
  area = compiled.attention[1] * shards
  return {
    'tokens': flops.training_tokens(config.model, size.tokens_per_frame),
    'pairs': pairs,
    'computed': area or None,
    'ratio': area / pairs if area else None,
  }


def _kernel_flops(tokens: int, area: int):
  """FLOPs of one execution of an attention kernel: of [B, N, T, K] queries with [B, N, S, K] keys.

  Args:
    tokens: S of self-attention, of which `area` pairs are computed; other attention computes all
      pairs.
  """

  def count(instruction: hlo.Instruction, inputs: list[hlo.Array]) -> float | None:
    products = next((n for name, n in _KERNELS.items() if instruction.name.startswith(name)), None)
    arrays = [
      a
      for a in inputs
      if len(a.sizes) >= 3 and a.dtype in ('bf16', 'f32') and a.sizes[-1] % 64 == 0
    ]
    if products is None or len(arrays) < 2:
      return None
    (*heads, T, K), S = arrays[0].sizes, arrays[1].sizes[-2]
    return products * 2.0 * math.prod(heads) * K * (area if tokens == S else T * S)

  return count


def _assumptions(config, compiled) -> list[str]:
  notes = []
  if shapes.takes_features(config):
    notes.append('latents and embeddings are stored features (python -m data.encode)')
  if not compiled.analysis:
    notes.append('stopped before machine code: its own size is not in the memory')
  return notes


def show(report: dict[str, Any]) -> str:
  """The report as text."""
  lines = [
    f'{report["config"]} on {report["topology"]}: {report["chips"]} chips, '
    f'mesh {" ".join(f"{k}={v}" for k, v in report["mesh"].items())}, batch {report["batch_size"]}, '
    f'accumulate {report["accumulate"]}, remat {report["remat"]}',
    '',
    *_show_memory(report['memory']),
    '',
  ]
  f, a, e = report['flops'], report['attention'], report['estimate']
  lines += [
    f'FLOPs a step            model {_si(f["model"])}, executed {_si(f["executed"])} '
    f'({_si(f["executed_kernels"])} in attention kernels, by formula): {f["ratio"]:.3f} of the model'
  ]
  if a['ratio']:
    lines.append(
      f'self-attention          {a["tokens"]} tokens, computes {a["ratio"]:.3f} of the pairs that see each '
      'other'
    )
  lines += ['', *_show_collectives(report['collectives'], report['devices']), '']
  lines += [
    f'estimate                {e["step_s"]:.3f} s a step, {100 * e["mfu"]:.1f} % MFU, '
    f'{e["samples_per_s"]:.2f} samples/s, {e["run_days"]:.1f} days for all steps',
    f'                        arithmetic {e["compute_s"]:.3f} s, HBM {e["memory_s"]:.3f} s, operations in turn '
    f'{e["operations_s"]:.3f} s, waiting for collectives {e["exposed_s"]:.3f} s',
  ]
  p = report['peak']
  lines += [
    f'                        peak of a chip {p["flops_per_chip"] / 1e12:.0f} TFLOP/s bfloat16, '
    f'HBM {p["hbm_bytes_per_s"] / 1e9:.0f} GB/s, links {p["link_bytes_per_s"] / 1e9:.0f} GB/s each way',
    *(
      f'{"assuming that" if i == 0 else "":<24}{text}'
      for i, text in enumerate(report['assumptions'])
    ),
  ]
  if f['loops_counted_once']:
    lines.append(
      f'counted once            loops without a known bound: {", ".join(f["loops_counted_once"])}'
    )
  return '\n'.join(lines)


def _show_memory(m) -> list[str]:
  gib = lambda n: f'{n / chips.GIB:8.2f}'
  rows = [
    (
      'arguments',
      m['arguments'],
      ', '.join(f'{name} {n / chips.GIB:.2f}' for name, n in m['of_arguments'].items() if n),
    ),
    (
      'outputs beside them',
      m['outputs'],
      f'{m["reused"] / chips.GIB:.2f} more take the place of arguments',
    ),
    ('temporaries', m['temporaries'], ''),
    ('program', m['program'], ''),
  ]
  lines = [f'{"HBM per device, GiB":<24}'] + [
    f'  {name:<22}{gib(n)}  {note}'.rstrip() for name, n, note in rows
  ]
  verdict = 'fits' if m['fits'] else 'DOES NOT FIT'
  lines.append(
    f'  {"total":<22}{gib(m["total"])}  of {m["usable"] / chips.GIB:.2f} usable: {verdict}'
  )
  if m['host']:
    lines.append(f'  {"offloaded to the host":<22}{gib(m["host"])}')
  if not m['fits']:
    lines += [
      '  largest temporaries   ' + '\n                        '.join(m['largest_temporaries']),
      m['shortage'],
    ]
  return lines


def _show_collectives(collectives, devices) -> list[str]:
  if devices == 1:
    return ['collectives             none: one device']
  lines = [f'{"collectives":<24}{"count":>8}{"GB sent":>10}{"seconds":>10}{"waited":>10}']
  for kind, t in collectives.items():
    lines.append(
      f'  {kind:<22}{t["count"]:>8}{t["bytes"] / 1e9:>10.2f}{t["seconds"]:>10.3f}{t["exposed_s"]:>10.3f}'
    )
  return lines


def _si(n: float) -> str:
  power = min(6, int(math.log10(max(n, 1)) // 3))
  return f'{n / 1000**power:.4g} {("", "k", "M", "G", "T", "P", "E")[power]}FLOP'
