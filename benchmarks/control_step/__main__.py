"""The control step, economy by economy: what makes a chunk of actions fast, measured in one run.

  python -m benchmarks.control_step [--size=tiny] [--robots=1] [--json=FILE]
  python -m benchmarks.control_step --size=14b            # all of it, on a GPU
  python -m benchmarks.control_step --size=5b --layers=4  # on a CPU: depth scaled down

From 16 steps with guidance, of which each computes all that was ever seen again, to actions alone
against a cache: each rung is a whole engine on the same random weights, history, chunk and noise,
and where it only leaves out what is not needed, its actions are compared with those of the rungs
before; quantized kernels give others, and it is said by how much. Times are of the device, latents
of observed frames being there: those are encoded as they arrive. Beside each the arithmetic of its
products, the bytes of weights and caches that its passes read, and what share of its time the
machine, measured in the same run, would need for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from benchmarks import provenance
from benchmarks.control_step import rungs
from benchmarks.control_step import work
from wam_jax import cli
from wam_jax.control import quantize

_SIZE = flags.DEFINE_enum('size', 'tiny', work.SIZES, 'Which model.')
_LAYERS = flags.DEFINE_integer('layers', 0, 'Layers in place of all, 0 for all.', 0)
_ROBOTS = flags.DEFINE_integer('robots', 1, 'Robots of a step.', 1)
_RUNGS = flags.DEFINE_list('rungs', list(rungs.RUNGS), 'Which of them, the first the baseline.')
_PRECISION = flags.DEFINE_enum(
  'precision', 'int8', list(quantize.SCHEMES), 'Of the kernels of the quantized rung.'
)
_PYTORCH = flags.DEFINE_bool(
  'pytorch', False, 'Also a cached pass of the same network in PyTorch; --size=tiny alone.'
)
_THREADS = flags.DEFINE_integer('threads', 2, 'Of PyTorch.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 100, 'Turns of each; of slow rungs fewer.', 2)
_LONGEST_S = flags.DEFINE_float(
  'longest_s',
  60.0,
  'Rungs that need longer for a chunk at the best of this machine are left out.',
  lower_bound=0.0,
)
cli.define_json()


def main(unused_argv: list[str]) -> None:
  names = cli.read_names(_RUNGS, rungs.RUNGS)
  if _PYTORCH.value and _SIZE.value != 'tiny':
    raise ValueError(f'--pytorch compares at --size=tiny alone, not at {_SIZE.value}.')
  config = work.make_config(_SIZE.value, _LAYERS.value, _PRECISION.value)
  c = config.model
  machine = work.Machine.measure(c.dtype)
  print(
    f'{_SIZE.value}: {c.num_layers} layers of width {c.dim}, {c.dtype}, on '
    f'{jax.devices()[0].device_kind}: {machine.flops / 1e12:.3g} TFLOP/s of products, '
    f'{machine.bytes_per_s / 1e9:.3g} GB/s',
    flush=True,
  )
  found = work.climb(
    config,
    machine,
    names=names,
    robots=_ROBOTS.value,
    rounds=_ROUNDS.value,
    longest_s=_LONGEST_S.value,
    say=lambda line: print(line, flush=True),
  )
  print(show(found))
  if _PYTORCH.value:
    found['pytorch'] = work.compare_with_pytorch(
      config, _ROBOTS.value, _THREADS.value, _ROUNDS.value
    )
    row = found['pytorch']
    print(
      f'a cached pass of the whole network: {row["wam_jax"]:.2f} ms, in PyTorch '
      f'{row["pytorch"]:.2f} ms: {row["faster"]:.2f}x (least {row["wam_jax_least"]:.2f} and '
      f'{row["pytorch_least"]:.2f} ms)'
    )
  provenance.write(
    {
      'size': _SIZE.value,
      'layers': c.num_layers,
      'dtype': c.dtype,
      'robots': _ROBOTS.value,
      'precision': _PRECISION.value,
      'machine': {'flops': machine.flops, 'bytes_per_s': machine.bytes_per_s},
      **found,
    }
  )


def show(found: Mapping[str, Any]) -> str:
  """The table, and what holds of it."""
  lines = [
    f'{"":<16}{"p50 ms":>9}{"p95 ms":>9}{"least":>9}{"faster":>8}{"chunks/s":>10}{"actions/s":>11}'
    f'{"passes":>9}{"GFLOP":>10}{"GB":>8}{"bound":>7}  {"same to":>8}'
  ]
  for name, row in found['rungs'].items():
    passes = '+'.join(str(number) for number in row['passes'].values())
    same = f'{row["error"]:.0e}' if 'error' in row else ''
    lines.append(
      f'{name:<16}{row["p50_ms"]:>9.2f}{row["p95_ms"]:>9.2f}{row["least_ms"]:>9.2f}{row["faster"]:>7.1f}x'
      f'{row["chunks_per_s"]:>10.1f}{row["actions_per_s"]:>11.0f}{passes:>9}'
      f'{row["flops"] / 1e9:>10.3g}{row["bytes"] / 1e9:>8.3g}{row["of_bound"]:>7.0%}  {same:>8}'
    )
  lines.append('passes: of the whole network + for committing alone + of actions alone')
  lines += [f'{name}: left out: {why}' for name, why in found['left_out'].items()]
  lines += [f'{name}: {rungs.RUNGS[name].what}' for name in found['rungs']]
  if slower := rungs.list_slower(found['rungs']):
    lines.append(f'slower than the rung before: {", ".join(slower)}')
  return '\n'.join(lines)


if __name__ == '__main__':
  cli.run(main)
