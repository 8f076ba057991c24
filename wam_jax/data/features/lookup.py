"""Stored features of a run's own datasets and encoders, found beside the episodes and read."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import pointers
from wam_jax import storage
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import describe
from wam_jax.data.features import record_files


class Stored:
  """The stored features of a dataset's windows; pickles to paths and small arrays.

  Args:
    directory: where they lie.
  Raises:
    ValueError: they are not all there.
  """

  def __init__(self, directory: epath.Path):
    manifest = record_files.read_json(directory / record_files.MANIFEST)
    _check_sizes(directory, manifest['bytes'])
    self.directory = directory
    self.variants = manifest['stored']['variants']
    self._dtype = record_files.DTYPES[manifest['stored']['dtype']]
    self._model = manifest['of']['model']
    # A record holds the arrays of a window one after the other, in the order of their names.
    self._shapes = dict(sorted(manifest['shapes'].items()))
    self._files = record_files.list_files(directory, manifest)
    self._sources = {
      kind: files.open_source() for kind, files in self._files.items() if files.count
    }
    content = (directory / record_files.INDEX).read_bytes()
    with np.load(io.BytesIO(content)) as index:
      self._samples_W, keys_M = index['samples_W'], index['prompt_keys_M']
    # Sorted, so that a prompt is found by bisection.
    self._order_M = np.argsort(keys_M)
    self._keys_M = keys_M[self._order_M]

  def __len__(self) -> int:
    """Windows."""
    return len(self._samples_W)

  def find_anchor(self, window: int) -> int:
    """The sample of the dataset's anchors where a window begins."""
    return int(self._samples_W[window])

  def read(self, window: int, variant: int, ids_P: np.ndarray) -> dict[str, np.ndarray]:
    """Fields of `types.Features` by name, without the batch axis, in the encoders' dtypes.

    Args:
      window: number of the window.
      variant: which of its differently augmented copies.
      ids_P: token ids of the prompt.
    Raises:
      ValueError: a file cannot be read; or the prompt is not stored.
    """
    flat = self._read_record('windows', window * self.variants + variant)
    ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
    parts = {
      name: part.astype(np.float32).reshape(shape)
      for (name, shape), part in zip(self._shapes.items(), np.split(flat, ends[:-1]))
    }
    fields = {'clean_BFHWC': parts['clean']}
    if self._model['text']:
      fields['text_BPC'] = self._read_text(ids_P)
    if 'image' in parts:
      fields['image_BIC'] = parts['image'].astype(self._model['image']['dtype'])
    if 'condition' in parts:
      fields['condition_BFHWC'] = parts['condition']
    return fields

  def _read_text(self, ids_P: np.ndarray) -> np.ndarray:
    """[P, C], 0 after the prompt's last token."""
    key = np.uint64(describe.hash_prompt(ids_P))
    found = int(np.searchsorted(self._keys_M, key))
    if found == len(self._keys_M) or self._keys_M[found] != key:
      raise ValueError(
        f'{self.directory} has no prompt with the token ids {ids_P[ids_P != 0].tolist()}; it was '
        'made of other instructions. Delete it and run python -m data.encode again.'
      )
    text = self._model['text']
    text_PC = np.zeros((len(ids_P), text['dim']), text['dtype'])
    real_PC = self._read_record('prompts', int(self._order_M[found])).reshape(-1, text['dim'])
    text_PC[: len(real_PC)] = real_PC
    return text_PC

  def _read_record(self, kind: str, number: int) -> np.ndarray:
    try:
      return np.frombuffer(self._sources[kind][number], self._dtype)
    except Exception as e:  # array_record raises several types, with messages that name no file.
      raise ValueError(
        f'Cannot read {self._locate(kind, number)} ({type(e).__name__}: {e}). Delete that file and '
        f'{record_files.MANIFEST}, and run python -m data.encode again.'
      ) from e

  def _locate(self, kind: str, number: int) -> str:
    files = self._files[kind]
    return f'record {number % files.size} of {files.path(number // files.size)}'


def _check_sizes(directory: epath.Path, sizes: Mapping[str, int]) -> None:
  """Raises unless every file is there and of its size."""
  found = storage.list_sizes(directory)  # Thousands of files, each of which would be a request.
  wrong = [name for name, size in sizes.items() if found.get(name) != size]
  for name in wrong:
    if found.get(name, pointers.LARGEST + 1) <= pointers.LARGEST:
      pointers.check(directory / name)
  if wrong:
    raise ValueError(
      f'{len(wrong)} files of {directory} are missing or cut: {", ".join(wrong[:10])}. Delete them '
      f'and {record_files.MANIFEST} and run python -m data.encode again, which makes what is '
      'missing.'
    )


def are_beside(episodes: sources.Episodes) -> bool:
  """Whether features of any kind are stored beside a dataset, finished or not."""
  return any(episodes.path.glob(f'{describe.FOLDER}*'))


def find(
  episodes: sources.Episodes,
  anchors: windows.Anchors,
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
) -> Stored | None:
  """The stored features that stand for the pixels of these windows; None if none were stored for
  this robot and split.

  Args:
    weights, transform: as in `describe.make_description`.
  Raises:
    ValueError: those that are there are of something else, or not finished.
  """
  # Only features of this very description have this name.
  wanted = describe.make_description(episodes, anchors, model, weights, transform)
  directory = describe.choose_directory(episodes, wanted)
  command = describe.make_command(episodes, transform)
  escape = 'or train on pixels with config.data.features=off'
  if (directory / record_files.MANIFEST).exists():
    return Stored(directory)
  if (directory / record_files.PLAN).exists():
    plan = record_files.read_json(directory / record_files.PLAN)
    missing = record_files.list_missing(directory, plan)
    raise ValueError(
      f'{directory} is not finished; {len(missing)} files are missing: {", ".join(missing[:10])}. '
      f'Finish it with the command that began it ({command}), {escape}.'
    )
  # None of this description. Others of this robot and split are most likely meant for this run.
  others = [describe.list_differences(stored, wanted) for stored in _read_descriptions(episodes)]
  if not others:
    return None
  nearest = min(others, key=len)
  raise ValueError(
    f'The stored features of {episodes.path} are not what this run would compute:\n  '
    + '\n  '.join(nearest[:10])
    + f'\nMake its own with {command}, {escape}.'
  )


def _read_descriptions(episodes: sources.Episodes) -> Iterator[dict[str, Any]]:
  """Descriptions of finished features of the same robot and split, slices of it aside."""
  manifests = episodes.path.glob(f'{describe.FOLDER}*/{record_files.MANIFEST}')
  for manifest in sorted(manifests):
    description = record_files.read_json(manifest)['of']
    same_split = description['split'].split('[')[0] == episodes.split.split('[')[0]
    if same_split and description['embodiment']['name'] == episodes.record.name:
      yield description


def find_all(
  datasets: Mapping[str, tuple[sources.Episodes, windows.Anchors]],
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
  required: bool,
) -> dict[str, Stored]:
  """The stored features of a mixture, by dataset; {} where none has any.

  Args:
    weights, transform: as in `describe.make_description`.
    required: every dataset must have some.
  Raises:
    ValueError: as `find`; some datasets have features and others not; or one has none although
      they are required.
  """
  found = {name: find(*dataset, model, weights, transform) for name, dataset in datasets.items()}
  missing = [name for name, stored in found.items() if stored is None]
  if not required and len(missing) == len(found):
    return {}
  if missing:
    others = sorted(found.keys() - set(missing))
    reason = (
      "config.data.features='require'"
      if required
      else f'a batch holds pixels or stored features, not both, and {others} have some'
    )
    commands = [describe.make_command(datasets[name][0], transform) for name in missing[:10]]
    raise ValueError(
      f'{missing} of config.data.mixture have no stored features, but {reason}. Make them:\n  '
      + '\n  '.join(commands)
      + '\nor train on pixels with config.data.features=off.'
    )
  return found
