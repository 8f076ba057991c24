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
import math
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

from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import presets
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop.dreamzero import config as dreamzero_config
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.dreamzero import layout as dreamzero_layout
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
  one, two = (sum(map(lazy.nbytes, _shapes(make_model(n, heads)).values())) for n in (1, 2))
  return max(
    1, min(presets.WAN2_1_I2V_14B.num_layers, 1 + int((0.95 * free / 2 - one) // (two - one)))
  )


def generate(directory: pathlib.Path, model: cfg.ModelConfig, shard_bytes: int) -> dict[str, int]:
  """Writes the checkpoint; returns the checksum of every weight."""
  shapes = _shapes(model)
  rng = np.random.default_rng(0)
  pool = (0.02 * rng.standard_normal(_POOL, np.float32)).astype(safetensors.DTYPES['BF16'])
  progress = output.Progress('make', sum(map(lazy.nbytes, shapes.values())))
  sums = {}
  with safetensors.Writer(directory, 'model', shapes, shard_bytes) as writer:
    for name, shape in shapes.items():
      weight = np.resize(pool[rng.integers(_POOL // 2) :], math.prod(shape.shape))
      sums[name] = zlib.crc32(weight.view(np.uint8).data)
      weight = weight.reshape(shape.shape)
      writer.write(name, weight)
      progress.add(weight.nbytes)
  record = embodiments.get('droid')
  quantiles = lambda width: normalize.Quantiles(*np.float32([[-1] * width, [1] * width]))
  robot = robot_lib.Robot(
    0,
    record,
    normalize.Statistics(quantiles(record.proprio_dim), quantiles(record.action_dim), 0),
    True,
  )
  experiment.write(directory, {'oxe_droid': robot}, model, None)
  jsonfile.write(
    directory / dreamzero_config.CONFIG,
    dreamzero_config.make_config(cfg.TrainConfig(model=model), 880),
  )
  return sums


def _shapes(model: cfg.ModelConfig) -> dict[str, lazy.Shape]:
  return {
    dreamzero_layout.PREFIXES[part] + name: lazy.Shape(row.torch_shape, safetensors.DTYPES['BF16'])
    for part, table in foreign.make_tables(model, 'dreamzero').items()
    for row in table
    for name in row.names
  }


def convert(*arguments: str) -> dict[str, float]:
  """Runs `python -m wam_jax.convert`; its time and peak resident memory.

  Raises:
    RuntimeError: it failed.
  """
  start = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, '-m', 'wam_jax.convert', *arguments], stdout=sys.stderr
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise RuntimeError(f'wam_jax.convert {" ".join(arguments)} ended with status {status}.')
  return {'seconds': time.monotonic() - start, 'peak_gb': usage.ru_maxrss * 1024 / 1e9}


def differing(directory: pathlib.Path, sums: dict[str, int]) -> list[str]:
  """Names that are not there, or not bit by bit what was made."""
  weights = safetensors.open_weights(epath.Path(directory), 'model')
  return [
    name
    for name in sums.keys() | weights.keys()
    if name not in weights
    or name not in sums
    or zlib.crc32(weights[name].read().reshape(-1).view(np.uint8).data) != sums[name]
  ]


def measure(directory: pathlib.Path, model: cfg.ModelConfig, shard_bytes: int) -> dict[str, Any]:
  """The whole comparison, in `directory`."""
  source, workdir, exported = (directory / name for name in ('source', 'workdir', 'exported'))
  sums = _apart(generate, source, model, shard_bytes)
  sizes = list(map(lazy.nbytes, _shapes(model).values()))
  report: dict[str, Any] = {
    'layers': model.num_layers,
    'weights': len(sums),
    'gb': sum(sizes) / 1e9,
    'largest_weight_gb': max(sizes) / 1e9,
    'largest_shard_gb': max(p.stat().st_size for p in source.glob('*.safetensors')) / 1e9,
  }
  report['nothing'] = convert('inspect', f'--source={source}')
  report['import'] = convert('import', f'--source={source}', f'--output={workdir}')
  report['workdir_gb'] = sum(p.stat().st_size for p in workdir.rglob('*') if p.is_file()) / 1e9
  shutil.rmtree(source)
  report['export'] = convert(
    'export', f'--source={workdir}', f'--output={exported}', f'--max_shard_gb={shard_bytes / 1e9}'
  )
  shutil.rmtree(workdir)
  report['differing'] = _apart(differing, exported, sums)
  return report


def _apart(call: Callable[..., Any], *args: Any) -> Any:
  """`call(*args)` in another process: the peak of a program counts from what the process that
  started it held.
  """
  with futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    return pool.submit(call, *args).result()


def main(unused_argv: list[str]) -> None:
  place = tempfile.mkdtemp(prefix='wam_jax_convert_', dir=_DIRECTORY.value)
  try:
    layers = _LAYERS.value or choose_layers(shutil.disk_usage(place).free, _HEADS.value)
    report = measure(
      pathlib.Path(place), make_model(layers, _HEADS.value), int(_SHARD_GB.value * 1e9)
    )
  finally:
    shutil.rmtree(place)
  print(
    f'{report["weights"]} weights, {report["gb"]:.2f} GB ({layers} of 40 layers), the largest '
    f'{report["largest_weight_gb"]:.3f} GB, in shards of {report["largest_shard_gb"]:.2f} GB\n'
    f'{"":<10}{"seconds":>10}{"MB/s":>10}{"peak GB":>10}'
  )
  for name in ('nothing', 'import', 'export'):
    row = report[name]
    print(
      f'{name:<10}{row["seconds"]:>10.1f}'
      f'{0 if name == "nothing" else report["gb"] * 1e3 / row["seconds"]:>10.0f}{row["peak_gb"]:>10.2f}'
    )
  print(
    f'bit-identical after both: {"no, " + ", ".join(report["differing"][:10]) if report["differing"] else "yes"}'
  )
  cli.write_json(report)


if __name__ == '__main__':
  cli.run(main)
