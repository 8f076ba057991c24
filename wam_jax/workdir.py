"""The directory of a run: who owns it and which config it belongs to. Owns no checkpoints and no
metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from wam_jax import config as cfg
from wam_jax import storage

# Files that may hold a text encoder's vocabulary, the better one first. The first and the last one
# are what it is called in a workdir.
VOCABULARIES = ('tokenizer.json', 'spiece.model', 'tokenizer.model')

_CONTINUED = ('metrics.jsonl', 'timing.jsonl', 'wandb_id')  # Files that a restart goes on from.
_ABSENT = object()

# Keys that may change between restarts: how far, how fast and where, never what is computed.
_MAY_CHANGE = frozenset(
  {
    'steps',  # But not where the learning rate reaches 0: `_find_schedule_end`.
    'optimizer.decay_steps',
    'log_every',
    'save_every',
    'eval_every',
    'eval_batches',
    'keep',
    'keep_every',
    'accumulate',
    'spike_factor',
    'stop_on_spike',
    'hang_timeout_s',
    'pause_timeout_s',
    'profile',
    'compiler_options',
    'sdc_checks',
    'data.root',
    'data.embodiments',
    'data.workers',
    'data.threads',
    'data.prefetch',
    'data.cache_gib',
    'data.features',
    'model.text.tokenizer',
  }
)
_MAY_CHANGE_GROUPS = (
  'mesh.',
  'rules.',
  'sample.',
  'evaluation.',
  'data.ranges.',
  'data.statistics.',
)


def make_path(workdir: str) -> pathlib.Path | epath.Path:
  """Absolute path of `workdir`, `~` expanded, or its gs:// path. Errors as `storage.make_path`."""
  if storage.is_remote(workdir):
    return storage.make_path(workdir, '--workdir')
  return pathlib.Path(workdir).expanduser().absolute()


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: cfg.TrainConfig) -> Iterator[storage.Folder]:
  """Makes `workdir`, holds it against a second training process, and records `config` in its
  config.json.

  Call on process 0 only. On object storage the second process takes over, and the first one stops.

  Yields:
    The folder where the small files of the run are written.
  Raises:
    ValueError: no permission, in use by another process, or a run with another config has saved a
      checkpoint there.
  """
  if storage.is_remote(workdir):
    with storage.owned_folder(workdir, _CONTINUED) as folder:
      _record_config(workdir, config)
      yield folder
    return
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(storage.lock(workdir / '.lock'))
    except BlockingIOError as e:
      raise ValueError(
        f'--workdir={workdir} is in use by another training process; wait for it, stop it, '
        'or pass another directory.'
      ) from e
    except OSError as e:
      raise ValueError(
        f'--workdir={workdir} cannot be written: {e.strerror}. Pass a directory you may write to.'
      ) from e
    _record_config(workdir, config)
    yield storage.Folder(workdir)


def load_config(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The nested dict of WORKDIR/config.json, or None before the first start."""
  path = workdir / 'config.json'
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as e:
    raise ValueError(
      f'{path} is not JSON ({e}). Restore it from a copy, or start in another --workdir.'
    ) from e


def keep_vocabulary(workdir: pathlib.Path, config: cfg.TrainConfig) -> None:
  """Copies the text encoder's vocabulary into `workdir`, so that its checkpoints need no other
  file.

  Raises:
    ValueError: there is no such file, or the run in `workdir` has another one.
  """
  if config.model.text.kind == 'word':
    return
  kept = find_vocabulary(workdir)
  source = storage.make_path(config.model.text.tokenizer, 'config.model.text.tokenizer')
  if kept and is_bound(workdir):
    if source.is_file() and source.read_bytes() != kept.read_bytes():
      raise ValueError(
        f'config.model.text.tokenizer={str(source)!r} is not the vocabulary that the run in '
        f'{workdir} was begun with, {kept}. Name that one, or pass another --workdir.'
      )
    return
  if not source.is_file():
    raise ValueError(
      f'config.model.text.tokenizer={str(source)!r} is no file; give the tokenizer.json or the '
      f'sentencepiece model of the text encoder {config.model.text.kind!r}.'
    )
  # A start that came to nothing may have had another one, perhaps under the other name.
  if kept:
    kept.unlink()
  copy_vocabulary(workdir, source)


def copy_vocabulary(workdir: pathlib.Path, vocabulary: epath.Path) -> None:
  """Copies the text encoder's vocabulary into `workdir`."""
  storage.write_whole(workdir / name_vocabulary(vocabulary), vocabulary.read_bytes())


def name_vocabulary(vocabulary: epath.Path) -> str:
  """What the text encoder's vocabulary is called in a workdir."""
  return VOCABULARIES[0] if vocabulary.suffix == '.json' else VOCABULARIES[-1]


def find_vocabulary(place: epath.Path, folders: Sequence[str] = ('.',)) -> epath.Path | None:
  """The text encoder's vocabulary in `place`, if it has one; `place` itself if that is a file.

  Args:
    folders: where to look below `place`, in this order.
  """
  if place.is_file():
    return place
  for folder in folders:
    for name in VOCABULARIES:
      if (place / folder / name).exists():
        return place / folder / name
  return None


def fill_config(stored: Mapping[str, Any]) -> dict[str, Any]:
  """`stored` plus today's default for each key that did not exist when it was written.

  A new key's default always keeps the behaviour of before, so older runs stay readable.
  """
  default = cfg.base().to_dict()
  dataset = dataclasses.asdict(cfg.DatasetConfig())
  # The names of datasets are free: each that is stored has the fields of a `DatasetConfig`.
  names = stored.get('data', {}).get('mixture', {})
  default['data']['mixture'] = dict.fromkeys(names, dataset)
  return _fill(stored, default)


def is_bound(workdir: pathlib.Path) -> bool:
  """Whether a run has saved a checkpoint there, readable or not: before, any config may start."""
  places = (workdir / 'checkpoints', workdir / 'unreadable')
  return any(entry.name.isdigit() for p in places if p.is_dir() for entry in p.iterdir())


def check_config(workdir: pathlib.Path, config: cfg.TrainConfig) -> bool:
  """Whether config.json there is of this very config; raises ValueError if it is of another run."""
  now = json.loads(json.dumps(cfg.to_dict(config)))  # As it is read back.
  stored = load_config(workdir)
  if stored is not None and stored != now and is_bound(workdir):
    _check_same_run(workdir, stored, now)
  return stored == now


def _record_config(workdir: pathlib.Path, config: cfg.TrainConfig) -> None:
  """Writes config.json, or raises if the directory belongs to another run."""
  if check_config(workdir, config):
    return
  now = cfg.to_dict(config)
  storage.write_whole(workdir / 'config.json', json.dumps(now, indent=1) + '\n')


def _check_same_run(
  workdir: pathlib.Path, stored: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  differing = list_differences(fill_config(stored), now)
  if not differing:
    return
  lines = differing[:10]
  if len(differing) > 10:
    lines.append(f'... and {len(differing) - 10} more')
  raise ValueError(
    f'--workdir={workdir} belongs to a run with another config:\n  '
    + '\n  '.join(lines)
    + '\nPass another --workdir, delete that one, or set these keys back.'
    + _advise_on_schedule(workdir, stored, now)
  )


def _advise_on_schedule(
  workdir: pathlib.Path, stored: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
  """How to train longer or shorter than a run was meant to."""
  end = _find_schedule_end(fill_config(stored))
  if end == _find_schedule_end(now):
    return ''
  return (
    f' The learning rate of that run falls to 0 at step {end}: to train longer, start from its '
    f'weights by another --workdir with --config.init_from={workdir}; to stop earlier, and go on '
    f'later, set --config.optimizer.decay_steps={end} beside config.steps.'
  )


def _find_schedule_end(config: Mapping[str, Any]) -> int:
  """The step where the learning rate reaches 0."""
  return config['optimizer']['decay_steps'] or config['steps']


def list_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """One line per key whose change makes this another run."""
  old = dict(flatten(stored))
  new = dict(flatten(now))
  differing = [key for key in old | new if _find(old, key) != _find(new, key)]
  changed = [key for key in differing if not _may_change(key)]
  if _find_schedule_end(stored) != _find_schedule_end(now):
    changed += [key for key in ('steps', 'optimizer.decay_steps') if key in differing]
  return [
    f'config.{key}: {_show(old, key)} there, {_show(new, key)} now' for key in sorted(changed)
  ]


def _find(flat: Mapping[str, Any], key: str) -> Any:
  """The value of `key`, of a workdir below `data.root` the part that does not move with it."""
  value = flat.get(key, _ABSENT)
  if key in ('init_from', 'encoders_from') and value is not _ABSENT:
    return value.removeprefix(f'{flat["data.root"]}/')
  return value


def _may_change(key: str) -> bool:
  if key in _MAY_CHANGE or key.startswith(_MAY_CHANGE_GROUPS):
    return True
  # A dataset and its record may lie elsewhere; what they hold is compared by a checkpoint's.
  group, _, name = key.rpartition('.')
  places = ('path', 'prepare', 'source', 'embodiment', 'held_out')
  return group.startswith('data.mixture.') and name in places


def _show(flat: Mapping[str, Any], key: str) -> str:
  return repr(flat[key]) if key in flat else 'absent'


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _fill(stored: Any, default: Any) -> Any:
  if not isinstance(stored, Mapping) or not isinstance(default, Mapping):
    return stored
  missing = {key: value for key, value in default.items() if key not in stored}
  return {key: _fill(value, default.get(key)) for key, value in stored.items()} | missing
