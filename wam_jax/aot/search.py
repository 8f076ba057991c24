"""Finds rematerialisation, mesh and accumulation with which a step fits a slice and is fastest.

Thousands of choices are weighed by formula, with the shares of the peaks that `efficiency` has; the
most promising are compiled, and what the compiler says of one corrects what is expected of the
others. What is the best is decided by the report of the compiled program alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import sharding
from wam_jax.aot import compiler
from wam_jax.aot import efficiency
from wam_jax.aot import report
from wam_jax.aot import roofline
from wam_jax.data import shapes


class _Kept(NamedTuple):
  """What the backward pass finds of a block.

  Attributes:
    dims, mlps: activations in numbers per token, how many times D and how many times M.
    again: components of `flops.training`, and the shares of their forward pass that it computes
      again.
  """

  dims: int
  mlps: int
  again: Mapping[str, float]


_ATTENTION = ('attention', 'prompt attention')
_PRODUCTS = (
  'attention projections',
  'prompt attention projections',
  'prompt keys and values',
  'feed-forward',
)
_ALL_PRODUCTS = dict.fromkeys(_PRODUCTS, 1.0)
_PROMPT = {'prompt attention': 1.0}
# The compiler keeps more where there is room: these are for the choices that just fit.
_KEPT = {
  # The block's input.
  'block': _Kept(1, 0, again=_ALL_PRODUCTS | _PROMPT | {'attention': 1.0}),
  # The input and the result of self-attention.
  'save_attention': _Kept(2, 0, again=_ALL_PRODUCTS | _PROMPT),
  # The input; queries, keys, values and output of self-attention; query and output of the prompt's;
  # the output of the feed-forward part, and M before it.
  'dots': _Kept(8, 1, again=_PROMPT | {'attention': 1.0}),
  'dots_and_attention': _Kept(9, 1, again=_PROMPT),
  # All of these but M, whose product is half of the feed-forward part.
  'narrow': _Kept(9, 0, again=_PROMPT | {'feed-forward': 0.5}),
  # Also modulated, normalized and rotated arrays, in float32 some of them; counted off plans.
  'none': _Kept(34, 4, again={}),
}
# What the one block takes that is under way, forward and backward; counted off plans, too.
_WORKING_DIMS, _WORKING_MLPS = 30, 4
# Passes of attention's kernels over all pairs that they compute, where the model's FLOPs count six:
# the backward pass has two kernels, of which each computes the logits again (`report._KERNELS`).
_KERNEL_PASSES = 9 / 6
# Activations that go over the links in a block, forward and backward, in numbers per token, how
# many times D: with 'tensor', gathered before and scattered after self-attention, the prompt's and
# the feed-forward part, with gradients likewise and once more for what is computed again; with
# 'seq', keys and values gathered twice, their gradients scattered.
_SENT_OF_TENSOR, _SENT_OF_SEQ = 18, 8


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
    return self.report['expected']['step_s'] if self.report else math.inf


def run(
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  *,
  trials: int,
  machine_code: bool,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """JSON-ready: what was compiled, best first, and the report of the best; None where nothing fits.

  Args:
    trials: how many choices to compile to the plan of their memory.
    machine_code: whether to compile the best of them to the end.

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
    heading = f'{len(tried) + 1} of {trials}: {choice.name}'
    compile_choice = functools.partial(_try, choice, config, where, place)
    trial = compile_choice(machine_code=False, say=functools.partial(_say_under, say, heading))
    if trial.report is not None:
      correction[choice.remat] = trial.report['memory']['total'] / choice.bytes
    tried.append(trial)

  best_first = sorted(tried, key=lambda trial: (not trial.fits, trial.seconds))
  if machine_code:
    best_first = _finish(best_first, config, where, directory, say)
  return _summarize(best_first, considered)


def _finish(
  best_first: list[_Trial],
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  say: Callable[[str], None],
) -> list[_Trial]:
  """The trials, of which the best is compiled to the end; one that then does not fit goes last."""
  refused = []
  for number, trial in enumerate(best_first):
    if not trial.fits:
      break
    finished = _try(
      trial.choice,
      config,
      where,
      directory / f'best_{number}',
      machine_code=True,
      say=functools.partial(_say_under, say, f'the best: {trial.choice.name}'),
    )
    if finished.fits:
      return [finished, *best_first[number + 1 :], *refused]
    refused.append(finished)
  return [*best_first[len(refused) :], *refused]


def _try(
  choice: Choice,
  config: cfg.TrainConfig,
  where: chips.Slice,
  directory: pathlib.Path,
  *,
  machine_code: bool,
  say: Callable[[str], None],
) -> _Trial:
  directory.mkdir()
  changed = choice.apply(config)
  try:
    compiled = compiler.compile_step(changed, where, directory, machine_code, say=say)
    return _Trial(choice, report=report.make(changed, where, compiled))
  except ValueError as e:
    return _Trial(choice, mistake=str(e))


def _say_under(say: Callable[[str], None], heading: str, text: str) -> None:
  say(f'{heading}: {text}')


def choices(config: cfg.TrainConfig, where: chips.Slice) -> Iterator[Choice]:
  """Every choice that training accepts on these devices."""
  m = config.model
  cells = shapes.sizes(config).tokens_per_frame
  work = _Work(
    parameters=count_parameters(m),
    tokens=flops.training_tokens(m, cells),
    components=flops.training(m, cells),
  )
  for mesh in _list_meshes(where):
    for accumulate in (1, 2, 4, 8, 16, 32):
      if _runs(config, mesh, accumulate):
        for remat in _KEPT:
          yield _expect(config, where, work, _Way(remat, mesh, accumulate))


def _list_meshes(where: chips.Slice) -> Iterator[dict[str, int]]:
  """Sizes of all axes that take up the devices; any of them can lie along the links."""
  for tensor, seq, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)):
    # 'fsdp' takes the devices that are left.
    fsdp, rest = divmod(where.devices, where.count * tensor * seq * data)
    if fsdp and not rest:
      yield {'slice': where.count, 'data': data, 'fsdp': fsdp, 'seq': seq, 'tensor': tensor}


def _runs(config: cfg.TrainConfig, mesh: dict[str, int], accumulate: int) -> bool:
  """Whether training accepts the config with this mesh."""
  changed = dataclasses.replace(config, mesh=mesh, accumulate=accumulate)
  abstract = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh))
  return not sharding.list_problems(changed, abstract)


class _Way(NamedTuple):
  """A choice before it is weighed; see `Choice`."""

  remat: str
  mesh: dict[str, int]
  accumulate: int


class _Work(NamedTuple):
  """Sizes of a model: its parameters, and tokens and work of a training sample."""

  parameters: float
  tokens: int
  components: dict[str, flops.Work]


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
  samples = config.batch_size / (mesh['slice'] * mesh['data'] * mesh['fsdp'] * way.accumulate)
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
  working = numbers * (_WORKING_DIMS * m.dim + _WORKING_MLPS * split_mlp)
  return state + all_kept + working


def _expect_seconds(config: cfg.TrainConfig, where: chips.Slice, work: _Work, way: _Way) -> float:
  """The time of `roofline.expect`, of which only the compiled program has the whole: products and
  kernels, the gathering of weights beside them, and activations that they wait for.
  """
  m = config.model
  mesh = way.mesh
  rates = roofline.expected_rates(where.chip)
  products, attention = _executed(work, _KEPT[way.remat])
  samples = config.batch_size / where.devices
  compute_s = samples * (products / rates.products + attention / rates.kernels)

  # Weights are gathered twice and their gradients summed over all axes of the torus.
  share = efficiency.TABLE[where.chip.name].links
  link = share * where.chip.link_bytes_per_s / where.chip.devices
  moved = way.accumulate * 8 * work.parameters / mesh['tensor'] * (mesh['fsdp'] > 1)
  weights_s = moved / (2 * len(where.shape) * link)
  beside_s = max(weights_s - compute_s, efficiency.LOST_BESIDE * weights_s)

  # Activations go over single links.
  numbers = _bytes_per_number(m) * m.num_layers * way.accumulate
  once_s = numbers * _tokens_per_device(config, work, way) * m.dim / link
  of_tensor = _SENT_OF_TENSOR * (mesh['tensor'] - 1) / mesh['tensor']
  of_seq = _SENT_OF_SEQ * (mesh['seq'] - 1)
  return compute_s + beside_s + once_s * (of_tensor + of_seq)


def _executed(work: _Work, kept: _Kept) -> tuple[float, float]:
  """FLOPs of a training sample, what is computed again included: (of products, of attention)."""
  products = attention = 0.0
  for name, one in work.components.items():
    executed = one.train + kept.again.get(name, 0.0) * one.forward
    if name in _ATTENTION:
      attention += executed + (_KERNEL_PASSES - 1) * one.train
    else:
      products += executed
  return products, attention


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


def _summarize(best_first: list[_Trial], considered: int) -> dict[str, Any]:
  """The trials JSON-ready, those that fit first and fast ones before slow ones."""
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
    f'{"HBM GiB":>9}{"FLOPs/model":>13}{"expected s":>12}{"MFU %":>7}{"bound %":>9}',
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
    return f'{"":>50}  impossible  {_describe(row)}: {row["mistake"]}'
  hbm_gib = made['memory']['total'] / chips.GIB
  ratio = made['flops']['ratio']
  e = made['expected']
  bound = 100 * made['bound']['mfu']
  verdict = 'fits' if made['memory']['fits'] else 'does not fit'
  return (
    f'{hbm_gib:>9.2f}{ratio:>13.3f}{e["step_s"]:>12.3f}{100 * e["mfu"]:>7.1f}{bound:>9.1f}  '
    f'{verdict:<12}  {_describe(row)}'
  )


def _describe(row: dict[str, Any]) -> str:
  mesh = ' '.join(f'{axis}={n}' for axis, n in row['mesh'].items() if n > 1)
  return f'remat={row["remat"]} accumulate={row["accumulate"]} {mesh}'
