"""Finds rematerialisation, mesh and accumulation with which a step fits a slice and is fastest.

Thousands of choices are weighed by formula; the most promising are compiled, and what the compiler
says of one corrects what is expected of the others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import compiler
from wam_jax.aot import report
from wam_jax.data import shapes

# Of a block's activations, per token, what the backward pass finds: numbers as (times D, times M);
# and the share of the forward pass that it computes again.
_KEPT = {
  'block': (1, 0, 1.0),
  'save_attention': (2, 0, 0.9),
  'dots': (10, 1, 0.2),
  'none': (34, 4, 0.0),
}
_WORKING = (30, 4)  # Of the one block that is under way, forward and backward.


@dataclasses.dataclass(frozen=True)
class Choice:
  """One way to run the step, and what is expected of it.

  Attributes:
    mesh: axis name to size.
    bytes: of HBM per device. seconds: per step.
  """

  remat: str
  mesh: tuple[tuple[str, int], ...]
  accumulate: int
  bytes: float
  seconds: float

  @property
  def name(self) -> str:
    return (
      f'remat={self.remat} '
      + ' '.join(f'{axis}={n}' for axis, n in self.mesh if n > 1)
      + f' accumulate={self.accumulate}'
    )

  def apply(self, config: cfg.TrainConfig) -> cfg.TrainConfig:
    """The config run this way."""
    return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=self.remat),
      mesh=dict(self.mesh),
      accumulate=self.accumulate,
    )

  def flags(self) -> str:
    """What makes any config do so."""
    return ' '.join(
      [
        f'--config.model.remat={self.remat}',
        f'--config.accumulate={self.accumulate}',
        *(f'--config.mesh.{axis}={n}' for axis, n in self.mesh),
      ]
    )


def run(
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  trials: int,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """JSON-ready: what was compiled, best first, and the report of the best; None where nothing fits.

  Raises:
    ValueError: no mesh of this slice divides the batch and the model.
  """
  usable = where.chip.usable_gib * chips.GIB
  waiting = sorted(choices(config, where), key=lambda c: c.seconds)
  if not waiting:
    raise ValueError(
      f'No mesh of the {where.devices} devices of {where.name} divides config.batch_size='
      f'{config.batch_size} and the model; nearest valid batch: '
      f'{max(1, round(config.batch_size / where.devices)) * where.devices}.'
    )
  tried, correction, expected = [], {}, len(waiting)
  while waiting and len(tried) < trials:
    fitting = [c for c in waiting if c.bytes * correction.get(c.remat, 1) <= 1.1 * usable] or [
      min(waiting, key=lambda c: c.bytes * correction.get(c.remat, 1))
    ]
    choice = fitting[0]
    waiting.remove(choice)
    row = {'choice': choice, 'report': None, 'mistake': ''}
    place = directory / f'trial_{len(tried)}'
    place.mkdir()
    try:
      changed = choice.apply(config)
      heading = f'{len(tried) + 1} of {trials}: {choice.name}'
      compiled = compiler.compile_step(
        changed, where, place, say=functools.partial(_say_under, say, heading)
      )
      row['report'] = report.make(changed, where, compiled)
      correction[choice.remat] = row['report']['memory']['total'] / choice.bytes
    except ValueError as e:
      row['mistake'] = str(e)
    tried.append(row)
  return _summary(tried, expected)


def _say_under(say, heading, text):
  say(f'{heading}: {text}')


def choices(config: cfg.TrainConfig, where: chips.Slice) -> Iterator[Choice]:
  """Every choice that divides the devices, the batch and the model."""
  m = config.model
  cells = shapes.sizes(config).tokens_per_frame
  work = _Work(
    count_parameters(m),
    flops.training_tokens(m, cells),
    flops.total(flops.training(m, cells)).train,
  )
  for tensor, seq, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)):
    fsdp, rest = divmod(where.devices, tensor * seq * data)
    if rest or not fsdp or m.dim % fsdp or m.num_heads % tensor or m.mlp_dim % tensor:
      continue
    mesh = (('data', data), ('fsdp', fsdp), ('tensor', tensor), ('seq', seq))
    each, rest = divmod(config.batch_size, data * fsdp)
    if rest or not each:
      continue
    for accumulate in (n for n in (1, 2, 4, 8, 16, 32) if each % n == 0):
      for remat in _KEPT:
        yield _expect(config, where, work, remat, mesh, accumulate)


class _Work(NamedTuple):
  """Of a model: its parameters, and tokens and FLOPs of a training sample."""

  parameters: float
  tokens: int
  flops: float


def _expect(config, where, work, remat, mesh, accumulate) -> Choice:
  """By formula: state, gradients, kept activations and one block at work; arithmetic at peak and
  rings in turn.
  """
  m, axes, chip = config.model, dict(mesh), where.chip
  samples = config.batch_size / (axes['data'] * axes['fsdp'] * accumulate)
  tokens = samples * work.tokens / axes['seq']
  shards = axes['fsdp'] * axes['tensor']
  dims, mlps, again = _KEPT[remat]
  width = 2 if m.dtype == 'bfloat16' else 4
  split_mlp = m.mlp_dim / axes['tensor']
  state = (
    work.parameters
    * (4 * (3 + bool(config.optimizer.ema_decay)) + 4 * (1 + (accumulate > 1)))
    / shards
  )
  kept = width * tokens * m.num_layers * (dims * m.dim + mlps * split_mlp)
  working = width * tokens * (_WORKING[0] * m.dim + _WORKING[1] * split_mlp)
  compute_s = config.batch_size * work.flops * (1 + again / 3) / (where.chips * chip.flops)
  # Weights are gathered twice and their gradients summed over all axes of the torus; activations go
  # over single links.
  link = chip.link_bytes_per_s / chip.devices
  weights = (
    accumulate
    * 8
    * work.parameters
    / axes['tensor']
    * (axes['fsdp'] > 1)
    / (2 * len(where.shape) * link)
  )
  once = width * m.num_layers * accumulate * tokens * m.dim / link
  exchanged = once * (18 * (axes['tensor'] - 1) / axes['tensor'] + 8 * (axes['seq'] - 1))
  return Choice(remat, mesh, accumulate, state + kept + working, compute_s + weights + exchanged)


def count_parameters(m: cfg.ModelConfig) -> float:
  """About: the blocks' products, and the modulation and embeddings around them."""
  D = m.dim
  block = D * (8 * D + 2 * m.mlp_dim) + (2 * D * D if m.image_dim else 0)
  return m.num_layers * block + 8 * D * D + m.text.dim * D + 3 * m.num_embodiments * D * D


def _summary(tried, expected) -> dict[str, Any]:
  rows = []
  for row in tried:
    choice, made = row['choice'], row['report']
    rows.append(
      {
        'remat': choice.remat,
        'mesh': dict(choice.mesh),
        'accumulate': choice.accumulate,
        'flags': choice.flags(),
        'mistake': row['mistake'],
        'expected_bytes': choice.bytes,
        'expected_s': choice.seconds,
        'report': made,
      }
    )
  fits = lambda row: row['report'] is not None and row['report']['memory']['fits']
  rows.sort(
    key=lambda row: (not fits(row), row['report']['estimate']['step_s'] if row['report'] else 1e9)
  )
  return {'considered': expected, 'tried': rows, 'best': rows[0] if fits(rows[0]) else None}


def show(found: dict[str, Any]) -> str:
  """The search as text: a line for each choice that was compiled, then the best."""
  lines = [
    f'{found["considered"]} choices, {len(found["tried"])} compiled:',
    f'{"HBM GiB":>9}{"FLOPs/model":>13}{"s a step":>10}{"MFU %":>7}',
  ]
  for row in found['tried']:
    made = row['report']
    if made is None:
      lines.append(f'{"":>39}  impossible  {_describe(row)}: {row["mistake"]}')
      continue
    verdict = 'fits' if made['memory']['fits'] else 'does not fit'
    e = made['estimate']
    lines.append(
      f'{made["memory"]["total"] / chips.GIB:>9.2f}{made["flops"]["ratio"]:>13.3f}{e["step_s"]:>10.3f}'
      f'{100 * e["mfu"]:>7.1f}  {verdict:<12}  {_describe(row)}'
    )
  if found['best'] is None:
    return '\n'.join(
      [*lines, '', 'Nothing that was tried fits; take a larger slice, or --trials of more.']
    )
  return '\n'.join(
    [*lines, '', f'best: {found["best"]["flags"]}', '', report.show(found['best']['report'])]
  )


def _describe(row) -> str:
  mesh = ' '.join(f'{axis}={n}' for axis, n in row['mesh'].items() if n > 1)
  return f'remat={row["remat"]} accumulate={row["accumulate"]} {mesh}'
