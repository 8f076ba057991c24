"""A config file's ConfigDict to the frozen dataclasses, and back."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from wam_jax.config.data import DatasetConfig
from wam_jax.config.run import DEFAULT_RULES
from wam_jax.config.run import TrainConfig


def base() -> ml_collections.ConfigDict:
  """Every key at its default, as a ConfigDict for a config file to change."""
  return ml_collections.ConfigDict(
    _plain(dataclasses.asdict(TrainConfig(rules=dict(DEFAULT_RULES))))
  )


def from_config_dict(config: Mapping[str, Any]) -> TrainConfig:
  """The frozen dataclasses of a config file's result.

  Raises:
    ValueError: keys that do not exist, are missing or have a value of another type; all of them, up
      to ten.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  problems: list[str] = []
  built = _build(TrainConfig, config, 'config', problems)
  if problems:
    raise ValueError(
      'The config has wrong keys or values:\n  '
      + '\n  '.join(problems[:10])
      + '\nEvery key, with its default and unit, is declared in wam_jax/config/.'
    )
  return built


def to_dict(config: Any) -> dict[str, Any]:
  """JSON-ready nested dict of a config dataclass; `from_config_dict` is its inverse."""
  return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
  """`value` of dicts and tuples, for whatever mappings and lists it has."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_plain(v) for v in value)
  return value


def _build(cls: type, given: Any, where: str, problems: list[str]) -> Any:
  """An object of `cls` from a dict; None, and a line in `problems` for each, where it has any."""
  if not isinstance(given, Mapping):
    problems.append(f'{where}={given!r} must be a group of keys of {cls.__name__}.')
    return None
  # All problems are collected, so that a config is put right in one go.
  hints = typing.get_type_hints(cls)
  problems.extend(
    f'{where}.{key} does not exist; {where} has {", ".join(sorted(hints))}.'
    for key in given
    if key not in hints
  )
  # What a dataset does not say has its default: a config writes each one out by hand.
  if cls is DatasetConfig:
    given = {**dataclasses.asdict(DatasetConfig()), **given}
  problems.extend(f'{where}.{key} is missing.' for key in hints if key not in given)
  before = len(problems)
  fields = {}
  for key, hint in hints.items():
    if key in given:
      fields[key] = _convert(hint, given[key], f'{where}.{key}', problems)
  # The checks of `cls` itself need all of its keys, of the right types.
  if len(problems) > before or len(fields) < len(hints):
    return None
  return cls(**fields)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
  """`value` as the field's type, from what a ConfigDict, JSON or a flag makes of it."""
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return _build(hint, value, where, problems)
  origin = typing.get_origin(hint)
  args = typing.get_args(hint)
  if origin is Literal:
    if value not in args:
      problems.append(f'{where}={value!r} must be one of {args}.')
    return value
  # A whole number is a float, too; but Python's bool is an int, which nobody means by it.
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if origin is tuple and isinstance(value, (list, tuple)):
    return tuple(_convert(args[0], v, f'{where}[{i}]', problems) for i, v in enumerate(value))
  if isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
    return {k: _convert(args[1], v, f'{where}.{k}', problems) for k, v in value.items()}
  plain = origin or hint
  if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
    problems.append(f'{where}={value!r} must be of type {getattr(plain, "__name__", plain)}.')
  return value
