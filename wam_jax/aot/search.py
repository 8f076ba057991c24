"""Finds rematerialisation, mesh and accumulation with which a step fits a slice and is fastest.

Thousands of choices are weighed by formula; the most promising are compiled, and what the compiler
says of one corrects what is expected of the others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax.aot import compiler
from wam_jax.aot import report
from wam_jax.data import shapes


class _Kept(NamedTuple):
  """Activations of a block, in numbers per token.

  Attributes:
    dims, mlps: how many times D and how many times M.
    again: share of the forward pass that the backward pass computes again.
  """

  dims: int
  mlps: int
  again: float = 0.0


# What the backward pass finds of each block.
_KEPT = {
  'block': _Kept(1, 0, again=1.0),
  'save_attention': _Kept(2, 0, again=0.9),
  'dots': _Kept(10, 1, again=0.2),
  'none': _Kept(34, 4),
}
# What the one block takes that is under way, forward and backward.
_WORKING = _Kept(30, 4)


@dataclasses.dataclass(frozen=True)
class Choice:
  """One way to run the step, and what is expected of it.

  Attributes:
    remat: what the backward pass computes again.
    mesh: pairs of axis name and size.
    accumulate: number of passes that a step adds up.
    bytes: HBM that a device is expected to need.
    seconds: time that a step is expected to take.
  """

  remat: str
  mesh: tuple[tuple[str, int], ...]
  accumulate: int
  bytes: float
  seconds: float

  @property
  def name(self) -> str:
    split = ' '.join(f'{axis}={n}' for axis, n in self.mesh if n > 1)
    return f'remat={self.remat} {split} accumulate={self.accumulate}'

  def apply(self, config: cfg.TrainConfig) -> cfg.TrainConfig:
    """The config run this way."""
    return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=self.remat),
      mesh=dict(self.mesh),
      accumulate=self.accumulate,
    )

  def flags(self) -> str:
    """Flags that make any config run this way."""
    mesh = ' '.join(f'--config.mesh.{axis}={n}' for axis, n in self.mesh)
    return f'--config.model.remat={self.remat} --config.accumulate={self.accumulate} {mesh}'


@dataclasses.dataclass(frozen=True)
class _Trial:
  """A choice that was compiled: its report, or the mistake that it turned out to be."""

  choice: Choice
  report: dict[str, Any] | None = None
  mistake: str = ''

  @property
  def fits(self) -> bool:
    return self.report is not None and self.report['memory']['fits']

  @property
  def seconds(self) -> float:
    return self.report['estimate']['step_s'] if self.report else math.inf


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
  waiting = sorted(choices(config, where), key=lambda choice: choice.seconds)
  considered = len(waiting)
  if not waiting:
    raise ValueError(
      f'No mesh of the {where.devices} devices of {where.name} divides config.batch_size='
      f'{config.batch_size} and the model; nearest valid batch: '
      f'{max(1, round(config.batch_size / where.devices)) * where.devices}.'
    )

  # Bytes that the compiler planned, over those expected, of the last trial with each remat.
  correction: dict[str, float] = {}

  def expected_bytes(choice: Choice) -> float:
    return choice.bytes * correction.get(choice.remat, 1)

  tried: list[_Trial] = []
  while waiting and len(tried) < trials:
    # The fastest of those that may fit, with a tenth for what the formula misses.
    fitting = [choice for choice in waiting if expected_bytes(choice) <= 1.1 * usable]
    choice = fitting[0] if fitting else min(waiting, key=expected_bytes)
    waiting.remove(choice)

    place = directory / f'trial_{len(tried)}'
    place.mkdir()
    heading = f'{len(tried) + 1} of {trials}: {choice.name}'
    trial = _try(choice, config, where, place, functools.partial(_say_under, say, heading))
    if trial.report is not None:
      correction[choice.remat] = trial.report['memory']['total'] / choice.bytes
    tried.append(trial)
  return _summarize(tried, considered)


def _try(
  choice: Choice,
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  say: Callable[[str], None],
) -> _Trial:
  changed = choice.apply(config)
  try:
    compiled = compiler.compile_step(changed, where, directory, say=say)
    return _Trial(choice, report=report.make(changed, where, compiled))
  except ValueError as e:
    return _Trial(choice, mistake=str(e))


def _say_under(say: Callable[[str], None], heading: str, text: str) -> None:
  say(f'{heading}: {text}')


def choices(config: cfg.TrainConfig, where: chips.Slice) -> Iterator[Choice]:
  """Every choice that divides the devices, the batch and the model."""
  m = config.model
  cells = shapes.sizes(config).tokens_per_frame
  work = _Work(
    parameters=count_parameters(m),
    tokens=flops.training_tokens(m, cells),
    flops=flops.total(flops.training(m, cells)).train,
  )
  for tensor, seq, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)):
    # 'fsdp' takes the devices that are left.
    fsdp, rest = divmod(where.devices, tensor * seq * data)
    if rest or not fsdp or m.dim % fsdp or m.num_heads % tensor or m.mlp_dim % tensor:
      continue
    samples, rest = divmod(config.batch_size, data * fsdp)
    if rest or not samples:
      continue
    mesh = {'data': data, 'fsdp': fsdp, 'tensor': tensor, 'seq': seq}
    for accumulate in (1, 2, 4, 8, 16, 32):
      if samples % accumulate == 0:
        for remat in _KEPT:
          yield _expect(config, where, work, _Way(remat, mesh, accumulate))


class _Way(NamedTuple):
  """A choice before it is weighed; see `Choice`."""

  remat: str
  mesh: dict[str, int]
  accumulate: int


class _Work(NamedTuple):
  """Sizes of a model: its parameters, and tokens and FLOPs of a training sample."""

  parameters: float
  tokens: int
  flops: float


def _expect(config: cfg.TrainConfig, where: chips.Slice, work: _Work, way: _Way) -> Choice:
  """The choice with what it takes by formula."""
  return Choice(
    remat=way.remat,
    mesh=tuple(way.mesh.items()),
    accumulate=way.accumulate,
    bytes=_expect_bytes(config, work, way),
    seconds=_expect_seconds(config, where, work, way),
  )


def _tokens_per_device(config: cfg.TrainConfig, work: _Work, way: _Way) -> float:
  mesh = way.mesh
  samples = config.batch_size / (mesh['data'] * mesh['fsdp'] * way.accumulate)
  return samples * work.tokens / mesh['seq']


def _bytes_per_number(m: cfg.ModelConfig) -> int:
  return 2 if m.dtype == 'bfloat16' else 4


def _expect_bytes(config: cfg.TrainConfig, work: _Work, way: _Way) -> float:
  """State, gradients, kept activations of all blocks and those of the block at work."""
  m = config.model
  mesh = way.mesh
  kept = _KEPT[way.remat]
  split_mlp = m.mlp_dim / mesh['tensor']
  # float32: parameters, two moments and perhaps an average; gradients, and a sum of them.
  copies = 3 + bool(config.optimizer.ema_decay)
  gradients = 1 + (way.accumulate > 1)
  state = work.parameters * (4 * copies + 4 * gradients) / (mesh['fsdp'] * mesh['tensor'])

  numbers = _bytes_per_number(m) * _tokens_per_device(config, work, way)
  all_kept = numbers * m.num_layers * (kept.dims * m.dim + kept.mlps * split_mlp)
  working = numbers * (_WORKING.dims * m.dim + _WORKING.mlps * split_mlp)
  return state + all_kept + working


def _expect_seconds(config: cfg.TrainConfig, where: chips.Slice, work: _Work, way: _Way) -> float:
  """Arithmetic at the peak, then the rings."""
  m = config.model
  mesh = way.mesh
  # The forward pass is a third of a step.
  executed = config.batch_size * work.flops * (1 + _KEPT[way.remat].again / 3)
  compute_s = executed / (where.chips * where.chip.flops)

  # Weights are gathered twice and their gradients summed over all axes of the torus.
  link = where.chip.link_bytes_per_s / where.chip.devices
  moved = way.accumulate * 8 * work.parameters / mesh['tensor'] * (mesh['fsdp'] > 1)
  weights_s = moved / (2 * len(where.shape) * link)

  # Activations go over single links.
  numbers = _bytes_per_number(m) * m.num_layers * way.accumulate
  once_s = numbers * _tokens_per_device(config, work, way) * m.dim / link
  of_tensor = 18 * (mesh['tensor'] - 1) / mesh['tensor']
  of_seq = 8 * (mesh['seq'] - 1)
  return compute_s + weights_s + once_s * (of_tensor + of_seq)


def count_parameters(m: cfg.ModelConfig) -> float:
  """About: the blocks' products, and the modulation and embeddings around them."""
  D = m.dim
  # Four products of self- and four of cross-attention, two of the feed-forward part.
  block = D * (8 * D + 2 * m.mlp_dim)
  if m.image_dim:
    block += 2 * D * D  # Keys and values of the image.
  modulation = 8 * D * D
  robots = 3 * m.num_embodiments * D * D
  return m.num_layers * block + modulation + m.text.dim * D + robots


def _summarize(tried: list[_Trial], considered: int) -> dict[str, Any]:
  """The trials JSON-ready, those that fit first and fast ones before slow ones."""
  best_first = sorted(tried, key=lambda trial: (not trial.fits, trial.seconds))
  rows = [
    {
      'remat': trial.choice.remat,
      'mesh': dict(trial.choice.mesh),
      'accumulate': trial.choice.accumulate,
      'flags': trial.choice.flags(),
      'mistake': trial.mistake,
      'expected_bytes': trial.choice.bytes,
      'expected_s': trial.choice.seconds,
      'report': trial.report,
    }
    for trial in best_first
  ]
  return {
    'considered': considered,
    'tried': rows,
    'best': rows[0] if best_first[0].fits else None,
  }


def show(found: dict[str, Any]) -> str:
  """The search as text: a line for each choice that was compiled, then the best."""
  lines = [
    f'{found["considered"]} choices, {len(found["tried"])} compiled:',
    f'{"HBM GiB":>9}{"FLOPs/model":>13}{"s a step":>10}{"MFU %":>7}',
  ]
  lines += [_show_row(row) for row in found['tried']]
  best = found['best']
  if best is None:
    lines += ['', 'Nothing that was tried fits; take a larger slice, or --trials of more.']
  else:
    lines += ['', f'best: {best["flags"]}', '', report.show(best['report'])]
  return '\n'.join(lines)


def _show_row(row: dict[str, Any]) -> str:
  made = row['report']
  if made is None:
    return f'{"":>39}  impossible  {_describe(row)}: {row["mistake"]}'
  hbm_gib = made['memory']['total'] / chips.GIB
  ratio = made['flops']['ratio']
  e = made['estimate']
  verdict = 'fits' if made['memory']['fits'] else 'does not fit'
  return (
    f'{hbm_gib:>9.2f}{ratio:>13.3f}{e["step_s"]:>10.3f}{100 * e["mfu"]:>7.1f}  '
    f'{verdict:<12}  {_describe(row)}'
  )


def _describe(row: dict[str, Any]) -> str:
  mesh = ' '.join(f'{axis}={n}' for axis, n in row['mesh'].items() if n > 1)
  return f'remat={row["remat"]} accumulate={row["accumulate"]} {mesh}'
