"""What a stored feature depends on, and where features of that description lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import sources
from wam_jax.data import windows

FORMAT = 1  # Changes when the same description would be stored as other bytes.
FOLDER = 'wam_features_'
TRANSFORMS = ('none', 'center', 'random')


def choose_transform(augment: bool, train: bool) -> str:
  """Which of TRANSFORMS the pipeline applies to a window's images."""
  if not augment:
    return 'none'
  return 'random' if train else 'center'


def make_description(
  episodes: sources.Episodes,
  anchors: windows.Anchors,
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
) -> dict[str, Any]:
  """JSON-ready: everything that a stored feature depends on.

  Args:
    weights: hashes of the encoders, from `models.encoders.fingerprint`.
    transform: one of TRANSFORMS.
  """
  seen = f'{transform} crop of {images.CROP}'
  return _to_plain(
    {
      'format': FORMAT,
      'dataset': episodes.fingerprint,
      'split': episodes.split,
      'anchors (--ranges, --failures)': _describe_anchors(anchors),
      'embodiment': _describe_robot(episodes, model),
      'transform': transform if transform == 'none' else seen,
      'model': _describe_model(model),
      'weights': dict(weights),
    }
  )


def _describe_anchors(anchors: windows.Anchors) -> str:
  columns = (anchors.episode_K, anchors.start_K, anchors.end_K, anchors.stop_K)
  table_4K = np.stack(columns).astype('<i8')
  return f'{len(anchors)} steps, {hash_bytes(table_4K.tobytes())}'


def _describe_robot(episodes: sources.Episodes, model: cfg.ModelConfig) -> dict[str, Any]:
  # Anchors stand for what decides which episodes count.
  unseen = {'state', 'action', 'episode_key', 'success'}
  # A text encoder that is trained is not run beforehand.
  if model.text.kind != 'umt5':
    unseen |= {'prompt', 'language'}
  return _without(dataclasses.asdict(episodes.record), unseen)


def _describe_model(model: cfg.ModelConfig) -> dict[str, Any]:
  text = image = None
  if model.text.kind == 'umt5':
    text = {**dataclasses.asdict(model.text), 'tokenizer': _hash_file(model.text.tokenizer)}
  if model.image.kind != 'none':
    image = dataclasses.asdict(model.image)
  return {
    'max_chunks': model.max_chunks,
    'frames_per_chunk': model.frames_per_chunk,
    'image_condition': model.image_condition,
    'tokenizer': _without(dataclasses.asdict(model.tokenizer), {'fit_windows'}),
    'text': text,
    'image': image,
  }


def hash_bytes(content: bytes) -> str:
  """64 bits of a hash, as hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()[:16]


def _hash_file(path: str) -> str:
  return hash_bytes(epath.Path(path).expanduser().read_bytes()) if path else ''


def _without(group: Mapping[str, Any], keys: Set[str]) -> dict[str, Any]:
  return {key: value for key, value in group.items() if key not in keys}


def _to_plain(value: Any) -> Any:
  """As it comes back from a JSON file."""
  return json.loads(json.dumps(value))


def choose_directory(episodes: sources.Episodes, description: Mapping[str, Any]) -> epath.Path:
  """Where the features of this description lie, if they are there."""
  fingerprint = hash_bytes(json.dumps(description, sort_keys=True).encode())
  return episodes.path / f'{FOLDER}{fingerprint}'


def list_differences(stored: Any, wanted: Any, name: str = '') -> list[str]:
  """One line per value of two JSON-like trees that is not the same."""
  if not (isinstance(stored, Mapping) and isinstance(wanted, Mapping)):
    return [] if stored == wanted else [f'{name}: {stored} stored, {wanted} here']
  lines = []
  for key in sorted(stored.keys() | wanted.keys()):
    path = f'{name}.{key}' if name else key
    lines += list_differences(stored.get(key), wanted.get(key), path)
  return lines


def make_command(episodes: sources.Episodes, transform: str) -> str:
  """The command that stores features of these episodes, but for the encoders' workdir."""
  flag = {'none': '', 'center': ' --center_crop', 'random': ' --augmentations=4'}[transform]
  return (
    f'python -m data.encode --workdir=WORKDIR --dataset={shlex.quote(str(episodes.path))}'
    f'{embodiments.write_flag(episodes.record, episodes.path)} '
    f'--split={shlex.quote(episodes.split)}{episodes.write_flags()}{flag}'
  )


def hash_prompt(ids_P: np.ndarray) -> int:
  """64 bits that stand for a prompt; padding does not count."""
  real = np.ascontiguousarray(np.trim_zeros(ids_P, 'b'), '<i4')
  return int.from_bytes(hashlib.blake2b(real.tobytes(), digest_size=8).digest(), 'little')
