"""Low-rank adapters of a DreamZero checkpoint, merged into the weights they adapt while these are
read.

The `peft` library renames what it wraps: `blocks.0.self_attn.q.weight` becomes
`base_model.model.blocks.0.self_attn.q.weight`, with newer versions `...q.base_layer.weight`, and
beside it stand `...q.lora_A.default.weight` and `...q.lora_B.default.weight` (without `default`
where peft itself saved them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from wam_jax import finetuning
from wam_jax.interop import errors
from wam_jax.interop import lazy

_ADAPTER = re.compile(r'(?P<module>.*)\.lora_(?P<half>[AB])(?:\.default)?\.weight')


class Adapter(NamedTuple):
  """A change B A of one weight: `down` is A [r, in], `up` is B [out, r]."""

  down: lazy.Weight
  up: lazy.Weight


class Merged(NamedTuple):
  """W + scale * B A, as `finetuning.adapt` computes it."""

  base: lazy.Weight
  adapter: Adapter
  scale: float

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  def read(self) -> np.ndarray:
    return finetuning.adapt(
      self.base.read(),
      left=self.adapter.up.read(),
      right=self.adapter.down.read(),
      scale=self.scale,
    )


def split(
  weights: Mapping[str, lazy.Weight],
) -> tuple[dict[str, lazy.Weight], dict[str, Adapter]]:
  """(weights under their plain names, adapters by the name of the weight they change).

  Raises:
    ValueError: a weight is there under two names, or an adapter lacks a half.
  """
  plain: dict[str, lazy.Weight] = {}
  halves: dict[str, dict[str, lazy.Weight]] = {}
  problems = []
  for name, weight in weights.items():
    # What peft wraps and what it has not touched get the same plain names.
    short = name.replace('base_model.model.', '').replace('.base_layer.', '.')
    if match := _ADAPTER.fullmatch(short):
      of_weight = halves.setdefault(f'{match["module"]}.weight', {})
      of_weight[match['half']] = weight
    elif short in plain:
      problems.append(f'{short} is there twice, once as {name}')
    else:
      plain[short] = weight

  for name, found in halves.items():
    lost = [half for half in ('A', 'B') if half not in found]
    problems += [f'{name} has no lora_{half}' for half in lost]
  errors.fail(
    'The adapters of this LoRA checkpoint are not whole:', problems, 'Copy or download it again.'
  )
  return plain, {name: Adapter(found['A'], found['B']) for name, found in halves.items()}


def merge(
  weights: Mapping[str, lazy.Weight], adapters: Mapping[str, Adapter], rank: int, alpha: float
) -> dict[str, lazy.Weight]:
  """`weights` with every adapter added where it belongs, scaled by alpha / rank.

  Raises:
    ValueError: an adapter has no weight to change, or does not fit it.
  """
  problems = []
  for name, (down, up) in adapters.items():
    if name not in weights:
      problems.append(f'{name} is adapted, but not there')
      continue
    shape = weights[name].shape
    # Of A [r, in] and of B [out, r].
    fitting = (rank, *shape[1:]), (*shape[:1], rank)
    if (down.shape, up.shape) != fitting:
      problems.append(
        f'{name} {list(shape)} has adapters A {list(down.shape)} and B {list(up.shape)}; expected '
        f'rank {rank}'
      )
  errors.fail(
    'The adapters do not fit their base:',
    problems,
    'Pass as --base the very checkpoint that the adapters were trained on; lora_rank is in '
    'config.json.',
  )
  # Source: peft `LoraLayer.update_layer`.
  scale = alpha / rank
  merged = dict(weights)
  for name, adapter in adapters.items():
    merged[name] = Merged(weights[name], adapter, scale)
  return merged
