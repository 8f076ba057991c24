"""Which parameters a run trains, and low-rank adapters: their arithmetic and their place in nested
parameters.

Parameters are nested dicts; a path joins their keys by '/'. `models.layers.Einsum` makes adapters:
beside a kernel `w` lie `lora_a` and `lora_b`, and the layer acts as one with the kernel `w + alpha
/ rank * lora_a lora_b`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax import config as cfg

# Names of the two factors of an adapter, beside the kernel 'w': to the rank and from it.
DOWN, UP = 'lora_a', 'lora_b'

# Names that stand for patterns. Source of 'lora': DreamZero `WANPolicyHead`, train_architecture
# "lora".
SETS = {
  'all': ('*',),
  'lora': (f'*/{DOWN}', f'*/{UP}', 'state_encoder', 'action_encoder', 'action_decoder'),
}

Params = Mapping[str, Any]


def split(params: Params, trainable: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(what is trained, what is frozen) of nested parameters; `overlay` puts them together again.

  Args:
    trainable: names of SETS, or patterns of paths as the shell's: 'action_decoder',
      'blocks/self_attn/*/b'.
  Raises:
    ValueError: a pattern matches nothing.
  """
  patterns = [pattern for name in trainable for pattern in SETS.get(name, (name,))]
  paths = list(list_paths(params))
  trained: set[str] = set()
  unmatched = []
  for pattern in patterns:
    matched = [path for path in paths if matches(path, pattern)]
    if not matched:
      unmatched.append(pattern)
    trained.update(matched)
  if unmatched:
    names = dict.fromkeys('/'.join(path.split('/')[:2]) for path in paths)
    raise ValueError(
      f'config.trainable={tuple(trainable)}: no parameter matches '
      f'{", ".join(map(repr, unmatched))}; use {", ".join(map(repr, SETS))} or patterns of the '
      f'names here: {", ".join(names)}.'
    )
  is_trained = trained.__contains__
  return _select(params, is_trained), _select(params, lambda path: not is_trained(path))


def overlay(below: Params, above: Params) -> dict[str, Any]:
  """Nested dicts with the leaves of both, those of `above` where both have one."""
  joined = dict(below)
  for key, value in above.items():
    joined[key] = overlay(below.get(key, {}), value) if isinstance(value, Mapping) else value
  return joined


def without(params: Params, given: Params) -> dict[str, Any]:
  """The leaves of `params` that `given` has not."""
  present = set(list_paths(given))
  return _select(params, lambda path: path not in present)


def select_like(params: Params, like: Params) -> dict[str, Any]:
  """The leaves of `params` that have the shapes of those in `like`."""
  kept = {}
  for key, x in params.items():
    if isinstance(x, Mapping):
      if below := select_like(x, like[key]):
        kept[key] = below
    elif x.shape == like[key].shape:
      kept[key] = x
  return kept


def without_adapters(params: Params) -> dict[str, Any]:
  """The base."""
  return _select(params, lambda path: path.rsplit('/', 1)[-1] not in (DOWN, UP))


def merge(params: Params, lora: cfg.LoraConfig) -> dict[str, Any]:
  """Parameters, as NumPy arrays stacked over layers, that act alike without adapters."""
  if DOWN not in params:
    return {
      key: merge(value, lora) if isinstance(value, Mapping) else value
      for key, value in params.items()
    }
  layers = zip(params['w'], params[DOWN], params[UP], strict=True)
  merged = [adapt(w, down, up, lora.scale) for w, down, up in layers]
  return without_adapters(params) | {'w': np.stack(merged)}


def adapt(w: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
  """`w + scale * left right`, computed in float32 and rounded once to the dtype of `w`.

  Args:
    w: a kernel of any axes.
    left: the first axes of `w`, then the rank.
    right: the rank, then the other axes of `w`.
  """
  change = np.tensordot(left.astype(np.float32), right.astype(np.float32), 1)
  # In place: a kernel of the largest model has hundreds of megabytes.
  change *= np.float32(scale)
  change += w
  return change.astype(w.dtype)


def merged_config(config: cfg.TrainConfig) -> cfg.TrainConfig:
  """The config of a run whose adapters are merged into its weights."""
  model = dataclasses.replace(config.model, lora=cfg.LoraConfig())
  return dataclasses.replace(config, model=model, trainable=('all',))


def matches(path: str, pattern: str) -> bool:
  """Whether `pattern` says the path, or a module that it lies in."""
  return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f'{pattern}/*')


def list_paths(params: Params, prefix: str = '') -> Iterator[str]:
  """The path of every leaf."""
  for key, value in params.items():
    if isinstance(value, Mapping):
      yield from list_paths(value, f'{prefix}{key}/')
    else:
      yield prefix + key


def _select(params: Params, wanted: Callable[[str], bool], prefix: str = '') -> dict[str, Any]:
  """The leaves with a path that is wanted, without dicts that would be empty."""
  kept = {}
  for key, value in params.items():
    path = prefix + key
    if isinstance(value, Mapping):
      if below := _select(value, wanted, f'{path}/'):
        kept[key] = below
    elif wanted(path):
      kept[key] = value
  return kept
