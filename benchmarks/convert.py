"""Peak memory and speed of converting a 14B-shaped checkpoint in and out, and whether it comes back
bit by bit.

python -m benchmarks.convert [--layers=N] [--directory=DIR] [--json=FILE]

Makes an official DreamZero directory of random bfloat16 weights, with the released widths and small
encoders, imports and exports it as users do, compares every array with what was made, and deletes
everything. All 40 layers take 33 GB twice; by default as many are made as the disk holds. The named
baseline of memory is the largest weight.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from benchmarks import provenance
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax import progress as progress_lib
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop.dreamzero import config as dreamzero_config
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.dreamzero import serving
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import safetensors

_LAYERS = flags.DEFINE_integer(
  'layers', 0, 'Of the transformer; 0 for as many of 40 as the disk holds.', 0, 40
)
_HEADS = flags.DEFINE_integer(
  'heads', 40, 'Width of the transformer in heads of 128; fewer for a quick look.', 1, 40
)
_SHARD_GB = flags.DEFINE_float('shard_gb', 5.0, 'Largest file.', 0.01)
_DIRECTORY = flags.DEFINE_string(
  'directory', None, 'Where the files are made; the temporary directory by default.'
)
cli.define_json()

_POOL = 2**22  # Random numbers, of which every weight is made.
_TOKENS = 880  # Of a latent frame of the released 14B.


def make_model(layers: int, heads: int) -> cfg.ModelConfig:
  """The released 14B with `layers` layers of `heads` heads, and encoders that take no room."""
  c = presets.WAN2_1_I2V_14B
  return dataclasses.replace(
    c,
    num_layers=layers,
    num_heads=heads,
    dim=128 * heads,
    mlp_dim=c.mlp_dim * heads // c.num_heads,
    tokenizer=dataclasses.replace(c.tokenizer, vae=cfg.VAEConfig(8, 8)),
    text=dataclasses.replace(c.text, vocab=1000, layers=1, heads=4, attention_dim=64, mlp_dim=64),
    image=dataclasses.replace(c.image, layers=2, mlp_ratio=1, out_dim=8),
  )


def choose_layers(free: int, heads: int) -> int:
  """Layers for which two copies fit into `free` bytes, at most the released 40."""
  one = _count_bytes(make_model(1, heads))
  layer = _count_bytes(make_model(2, heads)) - one
  # Source and workdir, then workdir and export, lie there at once; the rest is left to others.
  copy = 0.95 * free / 2
  fitting = 1 + int((copy - one) // layer)
  return max(1, min(presets.WAN2_1_I2V_14B.num_layers, fitting))


def _count_bytes(model: cfg.ModelConfig) -> int:
  return sum(map(lazy.nbytes, _list_shapes(model).values()))


def _list_shapes(model: cfg.ModelConfig) -> dict[str, lazy.Shape]:
  """Every weight of an official directory, in bfloat16."""
  shapes = {}
  for part, table in foreign.make_tables(model, 'dreamzero').items():
    for row in table:
      shape = lazy.Shape(row.torch_shape, safetensors.DTYPES['BF16'])
      shapes |= {dreamzero_layout.PREFIXES[part] + name: shape for name in row.names}
  return shapes


def generate(directory: pathlib.Path, model: cfg.ModelConfig, shard_bytes: int) -> dict[str, int]:
  """Writes the checkpoint; returns the checksum of every weight."""
  sums = _write_weights(directory, model, shard_bytes)
  experiment.write(directory, {'oxe_droid': _make_robot()}, model, serving.Serving())
  config = dreamzero_config.make_config(cfg.TrainConfig(model=model), _TOKENS, {})
  jsonfile.write(directory / dreamzero_config.CONFIG, config)
  return sums


def _write_weights(
  directory: pathlib.Path, model: cfg.ModelConfig, shard_bytes: int
) -> dict[str, int]:
  """The files of weights; their checksums."""
  shapes = _list_shapes(model)
  rng = np.random.default_rng(0)
  pool = (0.02 * rng.standard_normal(_POOL, np.float32)).astype(safetensors.DTYPES['BF16'])
  sums = {}
  with (
    progress_lib.Progress('make', _count_bytes(model), 'B') as progress,
    safetensors.Writer(directory, dreamzero_layout.STEM, shapes, shard_bytes) as writer,
  ):
    for name, shape in shapes.items():
      # The pool again and again, from another number on for each weight.
      start = rng.integers(_POOL // 2)
      weight = np.resize(pool[start:], shape.shape)
      sums[name] = _compute_sum(weight)
      writer.write(name, weight)
      progress.add(weight.nbytes)
  return sums


def _make_robot() -> robot_lib.Robot:
  """DROID with quantiles of -1 and 1."""
  record = embodiments.get('droid')
  return robot_lib.Robot(
    id=0,
    record=record,
    statistics=normalize.Statistics(
      state=_make_quantiles(record.proprio_dim),
      action=_make_quantiles(record.action_dim),
      steps=0,
    ),
    center_crop=True,
  )


def _make_quantiles(width: int) -> normalize.Quantiles:
  ones = np.ones(width, np.float32)
  return normalize.Quantiles(q01=-ones, q99=ones)


def _compute_sum(array: np.ndarray) -> int:
  """Checksum of the bytes."""
  return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def convert(*arguments: str) -> dict[str, float]:
  """Runs `python -m wam_jax.convert`; its time and peak resident memory.

  Raises:
    RuntimeError: it failed.
  """
  command = [sys.executable, '-m', 'wam_jax.convert', *arguments]
  start = time.monotonic()
  process = subprocess.Popen(command, stdout=sys.stderr)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise RuntimeError(f'wam_jax.convert {" ".join(arguments)} ended with status {status}.')
  # Linux counts in KiB.
  return {'seconds': time.monotonic() - start, 'peak_gb': usage.ru_maxrss * 1024 / 1e9}


def list_differing(directory: pathlib.Path, sums: dict[str, int]) -> list[str]:
  """Names that are not there, or not bit by bit what was made."""
  weights = safetensors.open_weights(epath.Path(directory), dreamzero_layout.STEM)
  common = sums.keys() & weights.keys()
  changed = [name for name in common if _compute_sum(weights[name].read()) != sums[name]]
  return [*(sums.keys() ^ weights.keys()), *changed]


def measure(directory: pathlib.Path, model: cfg.ModelConfig, shard_bytes: int) -> dict[str, Any]:
  """The whole comparison, in `directory`; at most two copies lie there at once."""
  source = directory / 'source'
  workdir = directory / 'workdir'
  exported = directory / 'exported'
  sums = _call_apart(generate, source, model, shard_bytes)
  sizes = [lazy.nbytes(shape) for shape in _list_shapes(model).values()]
  shards = [file.stat().st_size for file in source.glob('*.safetensors')]
  report: dict[str, Any] = {
    'layers': model.num_layers,
    'weights': len(sums),
    'gb': sum(sizes) / 1e9,
    'largest_weight_gb': max(sizes) / 1e9,
    'largest_shard_gb': max(shards) / 1e9,
  }
  # What the program takes without converting anything.
  report['nothing'] = convert('inspect', f'--source={source}')
  report['import'] = convert('import', f'--source={source}', f'--output={workdir}')
  written = [file.stat().st_size for file in workdir.rglob('*') if file.is_file()]
  report['workdir_gb'] = sum(written) / 1e9
  shutil.rmtree(source)

  shard_gb = f'--max_shard_gb={shard_bytes / 1e9}'
  report['export'] = convert('export', f'--source={workdir}', f'--output={exported}', shard_gb)
  shutil.rmtree(workdir)
  report['differing'] = _call_apart(list_differing, exported, sums)
  return report


def _call_apart(call: Callable[..., Any], *args: Any) -> Any:
  """`call(*args)` in another process: the peak of a program counts from what the process that
  started it held.
  """
  with futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    return pool.submit(call, *args).result()


def show(report: dict[str, Any]) -> str:
  """The report as a table."""
  total = presets.WAN2_1_I2V_14B.num_layers
  lines = [
    f'{report["weights"]} weights, {report["gb"]:.2f} GB ({report["layers"]} of {total} layers), '
    f'the largest {report["largest_weight_gb"]:.3f} GB, in shards of '
    f'{report["largest_shard_gb"]:.2f} GB',
    f'{"":<10}{"seconds":>10}{"MB/s":>10}{"peak GB":>10}',
  ]
  for name in ('nothing', 'import', 'export'):
    row = report[name]
    rate = 0 if name == 'nothing' else report['gb'] * 1e3 / row['seconds']
    lines.append(f'{name:<10}{row["seconds"]:>10.1f}{rate:>10.0f}{row["peak_gb"]:>10.2f}')
  same = 'yes'
  if report['differing']:
    same = f'no, {", ".join(report["differing"][:10])}'
  lines.append(f'bit-identical after both: {same}')
  return '\n'.join(lines)


def main(unused_argv: list[str]) -> None:
  place = tempfile.mkdtemp(prefix='wam_jax_convert_', dir=_DIRECTORY.value)
  try:
    layers = _LAYERS.value or choose_layers(shutil.disk_usage(place).free, _HEADS.value)
    model = make_model(layers, _HEADS.value)
    report = measure(pathlib.Path(place), model, int(_SHARD_GB.value * 1e9))
  finally:
    shutil.rmtree(place)
  print(show(report))
  provenance.write(report)


if __name__ == '__main__':
  cli.run(main)
