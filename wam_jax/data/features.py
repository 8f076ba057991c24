"""Stored features: what the frozen encoders make of a dataset's windows, kept beside its episodes.

`python -m data.encode` writes, the pipeline reads. DATASET/wam_features_FINGERPRINT/ holds
  plan.json                      what the features are of and how they are stored; there from the
  start index.npz                      which windows and which prompts
  windows-I-of-N.array_record    a record per window and variant; there when whole
  prompts-I-of-N.array_record    a record per prompt, its real tokens only
  manifest.json                  the plan and the bytes of each file; there when all files are
The fingerprint is of everything that a feature depends on, so that a run finds its own features or
none.

A Wan VAE encodes the first frame of a window alone and all others in its light, so that latents
belong to a window, not to a step. Windows are therefore stored on a grid of anchors, and training
draws from these alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source
from array_record.python import array_record_module
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import images
from wam_jax.data import sources
from wam_jax.data import storage
from wam_jax.data import windows

FORMAT = 1  # Changes when the same description would be stored as other bytes.
FOLDER, PLAN, INDEX, MANIFEST = 'wam_features_', 'plan.json', 'index.npz', 'manifest.json'
TRANSFORMS = ('none', 'center', 'random')
DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16)}


@dataclasses.dataclass(frozen=True)
class Storing:
  """What a user chooses about stored features; training takes any choice.

  Attributes:
    anchor_stride: control steps between two anchors.
    draw_offset: the grid of an episode starts at a step drawn within one stride, not at each span's
      first.
    variants: differently augmented copies of each window.
    seed: of offsets and augmentations.
    dtype: of the stored numbers.
    file_mib: size of a record file, about; a kill costs at most the file it interrupts.
  """

  anchor_stride: int
  draw_offset: bool = False
  variants: int = 1
  seed: int = 0
  dtype: str = 'bfloat16'
  file_mib: float = 256.0

  def __post_init__(self):
    low = [
      f'{key}={getattr(self, key)}'
      for key in ('anchor_stride', 'variants')
      if getattr(self, key) < 1
    ]
    if low:
      raise ValueError(f'{", ".join(low)}: must be at least 1.')
    if self.dtype not in DTYPES:
      raise ValueError(f'dtype={self.dtype!r} must be one of {tuple(DTYPES)}.')


def _hash(value: Any) -> str:
  return _hash_bytes(json.dumps(value, sort_keys=True).encode())


def _hash_bytes(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]


def transform_of(augment: bool, train: bool) -> str:
  """Which of TRANSFORMS the pipeline applies to a window's images."""
  return 'none' if not augment else 'random' if train else 'center'


def describe(
  episodes: sources.Episodes,
  anchors: windows.Anchors,
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
) -> dict[str, Any]:
  """JSON-ready: everything that a stored feature depends on.

  Args:
    weights: of the encoders, from `models.encoders.fingerprint`.
    transform: of TRANSFORMS.
  """
  has_text, has_image = model.text.kind == 'umt5', model.image.kind != 'none'
  # Anchors stand for what decides which episodes count; a text encoder that is trained is not run
  # beforehand.
  unseen = {
    'state',
    'action',
    'episode_key',
    'success',
    *(() if has_text else ('prompt', 'language')),
  }
  text = dataclasses.asdict(model.text) | {'tokenizer': _digest_file(model.text.tokenizer)}
  table_4K = np.stack([anchors.episode_K, anchors.start_K, anchors.end_K, anchors.stop_K]).astype(
    '<i8'
  )
  return _plain(
    {
      'format': FORMAT,
      'dataset': episodes.fingerprint,
      'split': episodes.split,
      'anchors (--ranges, --failures)': f'{len(anchors)} steps, {_hash_bytes(table_4K.tobytes())}',
      'embodiment': _without(dataclasses.asdict(episodes.record), unseen),
      'transform': transform if transform == 'none' else f'{transform} crop of {images.CROP}',
      'model': {
        'max_chunks': model.max_chunks,
        'frames_per_chunk': model.frames_per_chunk,
        'image_condition': model.image_condition,
        'tokenizer': _without(dataclasses.asdict(model.tokenizer), {'fit_windows'}),
        'text': text if has_text else None,
        'image': dataclasses.asdict(model.image) if has_image else None,
      },
      'weights': dict(weights),
    }
  )


def _digest_file(path: str) -> str:
  return _hash_bytes(epath.Path(path).expanduser().read_bytes()) if path else ''


def _without(group: dict[str, Any], keys: Set[str]) -> dict[str, Any]:
  return {key: value for key, value in group.items() if key not in keys}


def _plain(value: Any) -> Any:
  return json.loads(json.dumps(value))


def place_of(episodes: sources.Episodes, of: Mapping[str, Any]) -> epath.Path:
  """The directory of the features that `describe` describes."""
  return episodes.path / f'{FOLDER}{_hash(of)}'


def list_differences(there: Any, here: Any, name: str = '') -> list[str]:
  """One line per value of two JSON-like trees that is not the same."""
  if isinstance(there, Mapping) and isinstance(here, Mapping):
    return [
      line
      for key in sorted(there.keys() | here.keys())
      for line in list_differences(there.get(key), here.get(key), f'{name}.{key}' if name else key)
    ]
  return [] if there == here else [f'{name}: {there} stored, {here} here']


def command(episodes: sources.Episodes, transform: str) -> str:
  """The command that stores features of these episodes, but for the encoders' workdir."""
  flag = {'none': '', 'center': ' --center_crop', 'random': ' --augmentations=4'}[transform]
  return (
    f'python -m data.encode --workdir=WORKDIR --dataset={shlex.quote(str(episodes.path))} '
    f'--embodiment={episodes.record.name} --split={shlex.quote(episodes.split)}{flag}'
  )


def prompt_key(ids_P: np.ndarray) -> int:
  """64 bits that stand for a prompt; padding does not count."""
  real = np.ascontiguousarray(np.trim_zeros(ids_P, 'b'), '<i4')
  return int.from_bytes(hashlib.blake2b(real.tobytes(), digest_size=8).digest(), 'little')


@dataclasses.dataclass(frozen=True)
class Files:
  """The record files of one kind: `count` records, `size` to a file.

  Attributes:
    kind: 'windows' or 'prompts'.
  """

  place: epath.Path
  kind: str
  count: int
  size: int

  def __len__(self) -> int:
    return -(-self.count // self.size)

  def path(self, number: int) -> epath.Path:
    """Of file `number`."""
    return self.place / f'{self.kind}-{number:05d}-of-{len(self):05d}.array_record'

  def rows(self, number: int) -> range:
    """The records of file `number`."""
    return range(number * self.size, min(self.count, (number + 1) * self.size))

  def missing(self, shard_index: int = 0, shard_count: int = 1) -> list[int]:
    """Files that are not there yet, of every `shard_count`-th one."""
    return [
      number
      for number in range(shard_index, len(self), shard_count)
      if not self.path(number).exists()
    ]

  def write(self, number: int, records: Iterable[bytes]) -> None:
    """Writes file `number`, whole or not at all.

    Raises:
      ValueError: the disk is full, or `records` are not as many as the file's rows.
    """
    target, count = self.path(number), len(self.rows(number))
    partial = self.place / f'.{target.name}.{uuid.uuid4().hex[:8]}'
    try:
      if (written := _write_records(partial, records)) != count:
        raise ValueError(f'{target.name} would hold {written} records where {count} belong.')
      partial.rename(target)
    finally:
      partial.unlink(missing_ok=True)

  def source(self) -> array_record_data_source.ArrayRecordDataSource:
    """Random access to the records; opens no file before it is read."""
    return array_record_data_source.ArrayRecordDataSource(
      [_Whole(str(self.path(number)), len(self.rows(number))) for number in range(len(self))]
    )


def _write_records(path: epath.Path, records: Iterable[bytes]) -> int:
  """How many records the finished file holds."""
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  try:
    for record in records:
      writer.write(record)
  finally:
    try:
      writer.close()
    except RuntimeError as e:  # Of a full disk.
      raise ValueError(
        f'{path.parent} cannot be written ({e}); make room and run the same command again, which goes '
        'on after the last whole file.'
      ) from e
  reader = array_record_module.ArrayRecordReader(str(path))
  written = reader.num_records()
  reader.close()
  return written


@dataclasses.dataclass(frozen=True)
class _Whole:
  """A whole record file, as `ArrayRecordDataSource` wants it described."""

  filename: str
  take: int
  skip: int = 0

  @property
  def examples_in_shard(self) -> int:
    return self.take


def files_of(place: epath.Path, plan: Mapping[str, Any]) -> dict[str, Files]:
  """The record files of a plan, by kind."""
  return {kind: Files(place, kind, p['count'], p['per_file']) for kind, p in plan['files'].items()}


def make_plan(
  of: Mapping[str, Any],
  storing: Storing,
  shapes: Mapping[str, Sequence[int]],
  samples_W: np.ndarray,
  prompt_ids: Sequence[np.ndarray],
  text_dim: int,
) -> dict[str, Any]:
  """What plan.json says.

  Args:
    of: from `describe`.
    shapes: of the arrays of a window, by name; a record holds them in the order of their names.
    prompt_ids: [P] token ids of each prompt.
  """
  counts = {'windows': len(samples_W) * storing.variants, 'prompts': len(prompt_ids)}
  numbers = {
    'windows': counts['windows'] * sum(math.prod(shape) for shape in shapes.values()),
    'prompts': text_dim * sum(len(np.trim_zeros(ids_P, 'b')) for ids_P in prompt_ids),
  }

  def files(kind):
    size = numbers[kind] * DTYPES[storing.dtype].itemsize
    return {
      'count': counts[kind],
      'bytes': size,
      'per_file': max(1, int(storing.file_mib * 2**20 * counts[kind] / max(1, size))),
    }

  return _plain(
    {
      'of': of,
      'stored': dataclasses.asdict(storing),
      'shapes': shapes,
      'files': {kind: files(kind) for kind in counts},
    }
  )


def begin(
  place: epath.Path,
  plan: Mapping[str, Any],
  samples_W: np.ndarray,
  prompt_ids: Sequence[np.ndarray],
) -> None:
  """Makes the directory, or takes up what an earlier call with the same plan began.

  Raises:
    ValueError: features of the same description are there or under way, stored otherwise; or no
      permission.
  """
  try:
    place.mkdir(exist_ok=True)
    if not (place / PLAN).exists():
      _write_index(place / INDEX, samples_W, prompt_ids)
      storage.write_atomic(place / PLAN, json.dumps(plan, indent=1).encode())
  except OSError as e:
    raise ValueError(
      f'{place} cannot be written ({e}); stored features lie beside the episodes, so give a copy of the '
      'dataset where you may write.'
    ) from e
  differing = list_differences(read_json(place / PLAN), plan)
  if differing:
    raise ValueError(
      f'{place} was begun otherwise:\n  '
      + '\n  '.join(differing[:10])
      + '\nGive the same flags again, or delete that directory.'
    )


def _write_index(path: epath.Path, samples_W: np.ndarray, prompt_ids: Sequence[np.ndarray]) -> None:
  content = io.BytesIO()
  np.savez(
    content,
    samples_W=samples_W,
    prompt_keys_M=np.asarray([prompt_key(ids) for ids in prompt_ids], np.uint64),
  )
  storage.write_atomic(path, content.getvalue())


def finish(place: epath.Path) -> list[str]:
  """Writes the manifest if every file of the plan is there; returns the names of those that are
  not.
  """
  plan = read_json(place / PLAN)
  kinds = files_of(place, plan).values()
  missing = [files.path(number).name for files in kinds for number in files.missing()]
  if not missing:
    sizes = {
      files.path(n).name: files.path(n).stat().length for files in kinds for n in range(len(files))
    }
    storage.write_atomic(place / MANIFEST, json.dumps({**plan, 'bytes': sizes}, indent=1).encode())
    for partial in place.glob('.*.array_record.*'):  # Of processes that were killed.
      partial.unlink(missing_ok=True)
  return missing


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a file of this module.

  Raises:
    ValueError: it is damaged.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(
      f'{path} is not JSON ({e}); delete {path.parent} and make it again: python -m data.encode'
    ) from e


class Stored:
  """The stored features of a dataset's windows; pickles to paths and small arrays.

  Args:
    place: their directory.
  Raises:
    ValueError: they are not all there.
  """

  def __init__(self, place: epath.Path):
    manifest = read_json(place / MANIFEST)
    self.place, self._model = place, manifest['of']['model']
    self.variants, self._dtype = (
      manifest['stored']['variants'],
      DTYPES[manifest['stored']['dtype']],
    )
    self._shapes = sorted(manifest['shapes'].items())
    wrong = [
      name
      for name, size in manifest['bytes'].items()
      if not (place / name).exists() or (place / name).stat().length != size
    ]
    if wrong:
      raise ValueError(
        f'{len(wrong)} files of {place} are missing or cut: {", ".join(wrong[:10])}. Delete them and '
        f'{MANIFEST} and run python -m data.encode again, which makes what is missing.'
      )
    self._files = files_of(place, manifest)
    self._sources = {kind: files.source() for kind, files in self._files.items() if files.count}
    with np.load(place / INDEX) as index:
      self._samples_W, keys_M = index['samples_W'], index['prompt_keys_M']
    self._order_M = np.argsort(keys_M)
    self._keys_M = keys_M[self._order_M]

  def __len__(self) -> int:
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
    flat = self._record('windows', window * self.variants + variant)
    ends = np.cumsum([math.prod(shape) for _, shape in self._shapes])
    parts = {
      name: part.astype(np.float32).reshape(shape)
      for (name, shape), part in zip(self._shapes, np.split(flat, ends[:-1]))
    }
    fields = {'clean_BFHWC': parts['clean']}
    if self._model['text']:
      fields['text_BPC'] = self._text(ids_P)
    if 'image' in parts:
      fields['image_BIC'] = parts['image'].astype(self._model['image']['dtype'])
    if 'condition' in parts:
      fields['condition_BFHWC'] = parts['condition']
    return fields

  def _text(self, ids_P: np.ndarray) -> np.ndarray:
    """[P, D], 0 after the prompt's last token."""
    key = np.uint64(prompt_key(ids_P))
    found = int(np.searchsorted(self._keys_M, key))
    if found == len(self._keys_M) or self._keys_M[found] != key:
      raise ValueError(
        f'{self.place} has no prompt with the token ids {ids_P[ids_P != 0].tolist()}; it was made of '
        'other instructions. Delete it and run python -m data.encode again.'
      )
    text = np.zeros((len(ids_P), self._model['text']['dim']), self._model['text']['dtype'])
    stored_PD = self._record('prompts', int(self._order_M[found])).reshape(-1, text.shape[1])
    text[: len(stored_PD)] = stored_PD
    return text

  def _record(self, kind: str, number: int) -> np.ndarray:
    try:
      return np.frombuffer(self._sources[kind][number], self._dtype)
    except Exception as e:  # array_record raises several types, with messages that name no file.
      raise ValueError(
        f'Cannot read {self._where(kind, number)} ({type(e).__name__}: {e}). Delete that file and '
        f'{MANIFEST}, and run python -m data.encode again.'
      ) from e

  def _where(self, kind: str, number: int) -> str:
    files = self._files[kind]
    return f'record {number % files.size} of {files.path(number // files.size)}'


def find(
  episodes: sources.Episodes,
  anchors: windows.Anchors,
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
) -> Stored | None:
  """The stored features that stand for the pixels of these windows; None if none were stored for
  this robot and split.

  Raises:
    ValueError: those that are there are of something else, or not finished.
  """
  of = describe(episodes, anchors, model, weights, transform)
  place, escape = place_of(episodes, of), 'or train on pixels with config.data.features=off'
  if (place / MANIFEST).exists():
    return Stored(place)
  if (place / PLAN).exists():
    missing = [
      files.path(n).name
      for files in files_of(place, read_json(place / PLAN)).values()
      for n in files.missing()
    ]
    raise ValueError(
      f'{place} is not finished; {len(missing)} files are missing: {", ".join(missing[:10])}. Finish it '
      f'with the command that began it ({command(episodes, transform)}), {escape}.'
    )
  others = [list_differences(there, of) for there in _list_others(episodes)]
  if not others:
    return None
  nearest = min(others, key=len)
  raise ValueError(
    f'The stored features of {episodes.path} are not what this run would compute:\n  '
    + '\n  '.join(nearest[:10])
    + f'\nMake its own with {command(episodes, transform)}, {escape}.'
  )


def _list_others(episodes: sources.Episodes) -> Iterator[dict[str, Any]]:
  """Descriptions of finished features of the same robot and split, slices of it aside."""
  for manifest in sorted(episodes.path.glob(f'{FOLDER}*/{MANIFEST}')):
    of = read_json(manifest)['of']
    same_split = of['split'].split('[')[0] == episodes.split.split('[')[0]
    if same_split and of['embodiment']['name'] == episodes.record.name:
      yield of


def are_beside(episodes: sources.Episodes) -> bool:
  """Whether features of any kind are stored beside a dataset, finished or not."""
  return any(episodes.path.glob(f'{FOLDER}*'))


def find_all(
  datasets: Mapping[str, tuple[sources.Episodes, windows.Anchors]],
  model: cfg.ModelConfig,
  weights: Mapping[str, str],
  transform: str,
  required: bool,
) -> dict[str, Stored]:
  """The stored features of a mixture, by dataset; {} where there are none of any.

  Args:
    weights: hashes of the encoders, from `models.encoders.fingerprint`.
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
    raise ValueError(
      f'{missing} of config.data.mixture have no stored features, but {reason}. Make them:\n  '
      + '\n  '.join(command(datasets[name][0], transform) for name in missing[:10])
      + '\nor train on pixels with config.data.features=off.'
    )
  return found
